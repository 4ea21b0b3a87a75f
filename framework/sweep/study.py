"""The trials of a sweep: which there are, how they ended, and what the next one is.

    study = open_study(Path("runs/sweep"), sweep, Plan("test/accuracy", "max"), {"config": "…"})
    trial = study.ask()               # Trial(number=7, overrides=('--config.schedule.learning_rate=0.02',), reported=0)
    study.report(trial, 1, 0.97)           # after each evaluation; True if the trial should end early
    study.end(trial, 0.981)

Optuna keeps them in `sweep.log` of the sweep's folder, a journal that several processes may write. A trial that a kill
left unfinished stays there with its number and its values; `unfinished` returns it, so that it goes on.
"""

import contextlib
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from framework import extras, files
from framework.config.overrides import plain
from framework.errors import UserError
from framework.sweep.choices import Sweep, recorded
from framework.sweep.grid import combinations

JOURNAL = "sweep.log"
SAMPLERS = ("tpe", "random", "grid")
PRUNERS = ("none", "median", "asha")

_NAME = "sweep"
_LEFT_SECONDS = 3  # after which Optuna's lock of the journal is taken from a process that is gone
_DIRECTIONS = {"min": "minimize", "max": "maximize"}
_PLAN, _CODE, _OVERRIDES, _ERROR = "plan", "code", "overrides", "error"  # attributes of the study and of its trials

_OTHER_SPACE = (
    " In all trials of a folder a name has the same choices, or numbers of one kind: use another name, or another"
    " --workdir."
)


@dataclasses.dataclass(frozen=True)
class Plan:
    """How trials are compared and proposed.

    Attributes:
      metric: 'split/metric' of an evaluation, e.g. 'test/accuracy'. Its best value over the evaluations counts.
      mode: 'min' or 'max'.
      sampler: 'tpe' (Bergstra et al., 2011), 'random', or 'grid': all combinations, in order.
      pruner: which trials end early. 'median': those whose best value is worse than the median, after as many
        evaluations, of the trials that were trained to their end, once there are four. 'asha': all but the best quarter
        at each rung, once a trial has been trained to its end (Li et al., 2018). 'none': none.
      seed: of the sampler, whose proposals depend on the seed, the number of the trial and the trials that ended.
    """

    metric: str
    mode: str
    sampler: str = "tpe"
    pruner: str = "none"
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Trial:
    """A trial that has not ended.

    Attributes:
      number: from 0.
      overrides: of the config, as typed.
      reported: the number of the newest evaluation that the study knows, from 1; 0 without one.
    """

    number: int
    overrides: tuple[str, ...]
    reported: int


def open_study(folder: Path, sweep: Sweep, plan: Plan, facts: Mapping[str, Any]) -> "Study":
    """Opens the sweep of a folder, or begins one.

    Args:
      folder: of the sweep.
      sweep: the experiment's function: a trial of Optuna -> {key of the config: value}.
      plan: how trials are compared and proposed.
      facts: JSON values; what else must be the same when the sweep goes on.

    Raises:
      UserError: Optuna is not installed, the grid is infinite, the folder has a sweep with another plan or facts, or
        its journal is damaged or cannot be written.
    """
    optuna = extras.load("optuna", "sweep")
    journal = extras.load("optuna.storages.journal", "sweep")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sweep = recorded(sweep)
    grid = combinations(sweep) if plan.sampler == "grid" else []
    wanted = dataclasses.asdict(plan) | dict(facts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with begins(folder):
            study, storage = _loaded(optuna, journal, folder, plan)
            _begin(folder, study, wanted, grid)
    except OSError as error:
        raise UserError(f"{folder / JOURNAL} cannot be written: {error.strerror}. Use another --workdir.") from error
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder / JOURNAL} is damaged ({' '.join(str(error).split())}). Put back a copy of it, or use another"
            " --workdir."
        ) from error
    return Study(optuna, study, storage, sweep, plan)


def try_out(sweep: Sweep) -> None:
    """Asks for the values of a trial of no folder, so that what no trial can use is refused before anything is written.

    Raises:
      UserError: Optuna is not installed, or `sweep` asks for values that it refuses.
    """
    optuna = extras.load("optuna", "sweep")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    _asked(recorded(sweep), optuna.create_study(sampler=optuna.samplers.RandomSampler(0)).ask())


def _asked(sweep: Sweep, trial: Any) -> Mapping[str, Any]:
    """Returns the values of a trial; raises UserError if Optuna refuses what `sweep` asks for."""
    try:
        return sweep(trial)
    except ValueError as error:  # an empty range, or another kind of one than that of an earlier trial
        why = " ".join(str(error).split())
        hint = _OTHER_SPACE if trial.number or trial.params else ""
        raise UserError(f"sweep(trial): {why}{hint}") from error


def begins(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Opens a context that one process of a sweep is in at a time: it begins the sweep, or a trial."""
    return files.held(folder / "sweep.lock", lambda holder: f"process {holder} begins a trial in {folder}", waits=True)


def _loaded(optuna: Any, journal: Any, folder: Path, plan: Plan) -> tuple[Any, Any]:
    """Returns Optuna's study of a folder, which may be a new one, and its storage."""
    path = folder.absolute() / JOURNAL  # the lock is a link to it, whose age is not seen if the link leads nowhere
    lock = _Lock(path, journal.JournalFileSymlinkLock(str(path), grace_period=_LEFT_SECONDS))
    backend = journal.JournalFileBackend(str(path), lock)
    _cut_incomplete(path, lock)
    storage = optuna.storages.JournalStorage(backend)
    study = optuna.create_study(
        storage=storage,
        study_name=_NAME,
        direction=_DIRECTIONS[plan.mode],
        pruner=_pruner(optuna, plan.pruner),
        load_if_exists=True,
    )
    return study, storage


class _Lock:
    """Optuna's lock of the journal, which a kill leaves behind, inside of one that ends with its process.

    One process of a sweep at a time waits for Optuna's, so whoever has left that one is gone, or is a dashboard, which
    writes for an instant: a few seconds are enough, instead of thirty without a word.
    """

    def __init__(self, journal: Path, lock: Any) -> None:
        self._path, self._lock = journal.with_name(f"{journal.name}.held"), lock
        self._held = contextlib.ExitStack()

    def acquire(self) -> bool:
        with contextlib.ExitStack() as held:
            held.enter_context(
                files.held(self._path, lambda holder: f"process {holder} writes the journal", waits=True)
            )
            self._lock.acquire()
            self._held = held.pop_all()
        return True

    def release(self) -> None:
        with self._held:
            self._lock.release()


def _begin(folder: Path, study: Any, wanted: Mapping[str, Any], grid: Sequence[Mapping[str, Any]]) -> None:
    """Notes what a sweep is begun with, and the trials of a grid; refuses what it was not begun with.

    Raises:
      UserError: it was begun with other values, or with another grid.
    """
    begun = study.user_attrs.get(_PLAN)
    direction = study.direction.name.lower()  # a kill may have come before all else was noted
    mode = next(mode for mode, name in _DIRECTIONS.items() if name == direction)
    known = {**wanted, "mode": mode} if begun is None else begun
    for name, value in wanted.items():
        if known.get(name) != value:
            raise UserError(
                f"{folder} has a sweep that was begun with {name}={known.get(name)!r}, not {value!r}."
                " Type what it was begun with, or use another --workdir."
            )
    if begun is None:
        for params in grid[len(study.trials) :]:  # a kill may have left some of them
            study.enqueue_trial(params)
        study.set_user_attr(_PLAN, wanted)  # last: without it the sweep has not begun
    elif grid:
        known_grid = [trial.system_attrs.get("fixed_params") for trial in study.trials]
        if json.dumps(known_grid) != json.dumps(grid):  # its trials are those of the beginning: no other would be begun
            raise UserError(
                f"{folder} has a sweep that was begun with a grid of {len(known_grid)} combinations; sweep(trial) now"
                f" has other ones, {len(grid)}. Use another --workdir."
            )


def _cut_incomplete(path: Path, lock: Any) -> None:
    """Takes away a last line without an end, of a process that was killed or had no disk left while it wrote."""
    lock.acquire()
    try:
        with path.open("rb+") as file:
            file.truncate(file.read().rfind(b"\n") + 1)
    finally:
        lock.release()


def _pruner(optuna: Any, name: str) -> Any:
    if name == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=4)
    return optuna.pruners.SuccessiveHalvingPruner() if name == "asha" else optuna.pruners.NopPruner()


class Study:
    """The trials of one sweep, as `open_study` returns them."""

    def __init__(self, optuna: Any, study: Any, storage: Any, sweep: Sweep, plan: Plan) -> None:
        self.plan = plan
        self._optuna, self._study, self._storage, self._sweep = optuna, study, storage, sweep
        self._states = optuna.trial.TrialState

    def changed(self, code: Mapping[str, str]) -> list[str]:
        """Returns the names of files whose hash is not that of the sweep's first start, which this notes.

        Args:
          code: {name: hash} of the files that the experiment consists of.
        """
        known = self._study.user_attrs.get(_CODE)
        if known is None:
            self._study.set_user_attr(_CODE, dict(code))
            return []
        return [name for name, digest in code.items() if known.get(name, digest) != digest]

    @property
    def started(self) -> int:
        """Returns how many trials were begun, whether they have ended or not."""
        return sum(frozen.state != self._states.WAITING for frozen in self._trials())

    def ask(self) -> Trial | None:
        """Returns a new trial; None if every combination of a grid has one.

        Raises:
          UserError: `sweep` asks for values that Optuna refuses.
        """
        if self.plan.sampler != "grid":
            return self._proposed()
        if self.started == len(self._trials()):
            return None
        return self._described(self._study.ask())

    def _proposed(self) -> Trial:
        """Returns a new trial, which the journal gets in one line, with all of its values.

        Optuna's own `ask` writes a line for each value. After a kill between two of them the sampler would draw the
        others anew, from its first random numbers, and from what is known by then.
        """
        known = self._trials()
        draft = self._optuna.create_study(direction=self._study.direction, sampler=self._sampler(len(known)))
        draft.add_trials(known)

        def asked(trial: Any) -> Mapping[str, Any]:
            values = self._sweep(trial)
            for name, distribution in trial.distributions.items():
                for earlier in (one.distributions[name] for one in known if name in one.distributions):
                    self._optuna.distributions.check_distribution_compatibility(earlier, distribution)
            return values

        trial = draft.ask()
        overrides = _typed(_asked(asked, trial))
        trial.set_user_attr(_OVERRIDES, list(overrides))
        self._study.add_trial(draft.get_trials(deepcopy=False)[-1])
        return Trial(len(known), overrides, 0)

    def unfinished(self) -> list[Trial]:
        """Returns the trials that were begun and have not ended, in order; each keeps the values that it has."""
        return [self._begun(frozen) for frozen in self._trials() if frozen.state == self._states.RUNNING]

    def _begun(self, frozen: Any) -> Trial:
        """Returns a trial with the values that it was begun with, whatever `sweep` asks for today."""
        overrides = frozen.user_attrs.get(_OVERRIDES)
        if overrides is None:  # of a grid, which was killed before it was given its values: it has them already
            return self._described(self._opened(frozen.number))
        return Trial(frozen.number, tuple(overrides), max(frozen.intermediate_values, default=0))

    def is_unfinished(self, trial: Trial) -> bool:
        """Returns whether a trial has not ended, as another process that trained it may have done meanwhile."""
        return bool(self._trials()[trial.number].state == self._states.RUNNING)

    def report(self, trial: Trial, evaluations: int, best: float) -> bool:
        """Notes the best value of a trial after so many evaluations; returns whether the trial should end."""
        opened = self._opened(trial.number)
        if evaluations > trial.reported:
            opened.report(best, evaluations)
        return bool(opened.should_prune())

    def end(self, trial: Trial, value: float | None) -> None:
        """Notes that a trial was trained to its end; one whose metric was never finite has failed."""
        if value is None or not math.isfinite(value):
            self.fail(trial, f"{self.plan.metric} was never finite")
        else:
            self._study.tell(trial.number, value)

    def prune(self, trial: Trial) -> None:
        """Notes that a trial was ended early."""
        self._study.tell(trial.number, state=self._states.PRUNED)

    def fail(self, trial: Trial, why: str) -> None:
        """Notes that a trial failed."""
        self._opened(trial.number).set_user_attr(_ERROR, why)
        self._study.tell(trial.number, state=self._states.FAIL)

    def rows(self) -> list[dict[str, Any]]:
        """Returns a row for each trial that was begun: number, state, value, overrides, error."""
        return [
            {
                "number": frozen.number,
                "state": {"COMPLETE": "finished", "PRUNED": "ended early", "FAIL": "failed"}.get(
                    frozen.state.name, "unfinished"
                ),
                "value": frozen.value,
                "overrides": frozen.user_attrs.get(_OVERRIDES, []),
                # A kill after the first line of `fail` leaves the error to a trial that goes on.
                "error": frozen.user_attrs.get(_ERROR, "") if frozen.state == self._states.FAIL else "",
            }
            for frozen in self._trials()
            if frozen.state != self._states.WAITING
        ]

    def best(self) -> dict[str, Any] | None:
        """Returns the row of the best trial that was trained to its end; None if there is none."""
        sign = -1 if self.plan.mode == "max" else 1
        ended = [row for row in self.rows() if row["state"] == "finished"]
        return min(ended, key=lambda row: sign * row["value"], default=None)

    def _trials(self) -> list[Any]:
        return self._study.get_trials(deepcopy=False)

    def _sampler(self, number: int) -> Any:
        """Returns the sampler of a trial; one seed for all would begin again at a resume."""
        seed = (self.plan.seed * 1_000_003 + number) % 2**32
        if self.plan.sampler == "tpe":
            return self._optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        return self._optuna.samplers.RandomSampler(seed=seed)

    def _opened(self, number: int) -> Any:
        """Returns Optuna's trial of a number, which keeps its values and may report."""
        study_id = self._storage.get_study_id_from_name(_NAME)
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(study_id, number)
        self._study.sampler = self._sampler(number)  # of what was not asked for before a kill
        return self._optuna.trial.Trial(self._study, trial_id)

    def _described(self, trial: Any) -> Trial:
        """Returns a trial with the values that `sweep` asks for, and notes them."""
        overrides = _typed(_asked(self._sweep, trial))
        trial.set_user_attr(_OVERRIDES, list(overrides))
        return Trial(trial.number, overrides, 0)


def _typed(values: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(f"--config.{key}={plain(value)}" for key, value in values.items())
