"""--mode=verify_resume --kills=K: proves that a run that is killed and resumed ends in the bits of one that was not.

    python launch.py --config=experiments/mnist_mlp.py --mode=verify_resume --kills=5 --config.train.duration='1 epoch'

The proof trains once uninterrupted. Then it trains again and kills the process (`kill -9`) at random moments of
training, of a save and of start-up; every start is a process of launch.py. A kill counts if the run has a checkpoint
between its first and its last step. The proof goes on, with further runs if need be, until K starts have resumed from
such a checkpoint in runs that reached their end. At last another run continues, by `resume_from`, from a checkpoint
near the middle.

Compared are all variables, bit by bit, the rows of metrics.jsonl without the speed, and the evaluations in result.json.
The data need no comparison of their own, because every bit that was trained depends on them.
"""

import dataclasses
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from framework.checkpoint import digest
from framework.config.keys.runtime import SEVERAL_PROCESSES
from framework.distribute import lifeline
from framework.errors import RunError, UserError
from framework.folder import TUNING
from framework.modes import outcome, watched
from framework.run.run import Run

_LAUNCH = Path(__file__).resolve().parents[2] / "launch.py"
# The moments of five kills, most of them at moments at which something can be lost.
_MOMENTS = ("training", "a save", "start-up", "a save", "training")
_SAVES = 100  # checkpoints of a run
_SAVE_SECONDS = 0.05  # longest time from the begin of a save to a kill in it
_FRUITLESS = 4  # the proof gives up after so many runs in a row that ended before a kill


def main(run: Run, overrides: Sequence[str], kills: int = 5) -> int:
    """Prints every kill and the digests; returns 1 if a killed run ended in other bits, and keeps the folders of both.

    Raises:
      UserError: the run fails without a kill, or needs several processes.
      RunError: the run cannot be killed so often; the message says how often it was killed, why, and what to type.
    """
    _refuse_cluster(run)
    command = _command(run, overrides)
    is_new = not run.workdir.exists()
    run.workdir.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="verify_resume-", dir=run.workdir))
    keeps = True
    try:
        with lifeline.terminated_as_interrupted():
            _Proof(run, command, folder, kills).prove()
        keeps = False
    except (KeyboardInterrupt, RunError):
        keeps = False
        raise
    except outcome.DifferentError as problem:
        print(f"NOT the same bits: {problem}. See {folder}.")
        return 1
    finally:
        if not keeps:
            shutil.rmtree(folder)
            if is_new:
                run.workdir.rmdir()
    print(f"the same bits after {kills} kills")
    return 0


def _refuse_cluster(run: Run) -> None:
    strategy = run.config.runtime.strategy
    if strategy in SEVERAL_PROCESSES:
        raise UserError(
            f"--mode=verify_resume kills one process, but runtime.strategy='{strategy}' is several. Leave it out:"
            " --config.runtime.strategy=one_device, or mirrored."
        )


def _command(run: Run, overrides: Sequence[str]) -> list[str]:
    """Returns the command that starts a run; raises RunError if the run saves nothing before its end."""
    command = [sys.executable, str(_LAUNCH), f"--config={run.experiment.name}", *overrides]
    total, every = run.total_steps, run.resolved.checkpoint.every
    if not any(text.startswith(("--config.checkpoint.every", "-config.checkpoint.every")) for text in overrides):
        every = max(1, total // _SAVES)
        print(f"checkpoint.every='{every} steps' instead of '{run.config.checkpoint.every}', for many saves")
        command.append(f"--config.checkpoint.every={every} steps")
    best = run.resolved.eval.every if run.resolved.checkpoint.best_metric else 0
    if not any(0 < steps < total for steps in (every, best)):
        raise RunError(
            f"NOT proven: no start can resume inside the run: it has {total} steps, and checkpoint.every is"
            f" {f'{every} steps' if every else 'never'}. Leave checkpoint.every out, or train longer: type e.g."
            f" --config.train.duration='{max(100, total)} steps'."
        )
    return command


class _Proof:
    """Trains an uninterrupted run and killed runs, and compares them."""

    def __init__(self, run: Run, command: Sequence[str], folder: Path, kills: int) -> None:
        self._run = run
        self._command = command
        self._folder = folder
        self._kills = kills
        self._draws = np.random.default_rng(run.config.seed)
        self._moments = [_MOMENTS[number % len(_MOMENTS)] for number in range(kills)]
        self._draws.shuffle(self._moments)
        self._done = 0  # kills that count
        self._resumes: list[int] = []  # steps from which starts resumed, in runs that reached their end
        self._was_in_start_up = True  # whether the last kill was
        self._middle: int | None = None  # step of the newest checkpoint in the folder 'middle'

    def prove(self) -> None:
        """Raises outcome.DifferentError if bits differ, or RunError if there is no proof."""
        self._train_whole(self._folder / "uninterrupted")
        runs = fruitless = 0
        while self._is_short(0):
            if fruitless == _FRUITLESS:
                raise RunError(self._shortfall())
            runs += 1
            resumed = self._train_killed(self._folder / f"killed-{runs}", runs)
            self._resumes += resumed
            fruitless = 0 if resumed else fruitless + 1
        self._resume_from(self._folder / "resumed-from")
        print(f"{len(self._resumes)} resumes at steps {self._resumes} of {self._total}, and one by resume_from")

    def _is_short(self, further: int) -> bool:
        """Returns whether more kills are needed, given so many resumes of the present run."""
        return self._done < self._kills or len(self._resumes) + further < self._kills

    def _shortfall(self) -> str:
        return (
            f"NOT proven: {len(self._resumes)} of {self._kills} starts resumed inside the run, at steps {self._resumes}"
            f" of {self._total}: {_FRUITLESS} runs in a row ended before they could be killed after their first"
            f" checkpoint; training takes {self._training:.2g} s. Train longer: type e.g."
            f" --config.train.duration='{10 * self._total} steps'."
        )

    def _train_whole(self, workdir: Path) -> None:
        begin = time.monotonic()
        with watched.process(self._command, workdir) as process:
            watched.is_saving(process, workdir)
            self._start_up = time.monotonic() - begin  # seconds until the first save
            process.wait()
        if not watched.has_ended(workdir):
            raise UserError(
                f"the run fails without a kill: {watched.last_line(workdir)} See {workdir.with_suffix('.log')}."
            )
        result = json.loads((workdir / "result.json").read_text())
        self._training = result["wall_seconds"] - (result["time_to_first_step_seconds"] or 0.0)
        self._window = self._training / self._kills  # longest wait for a kill, so that several fit one run
        self._whole = outcome.read(workdir)
        self._begin, self._total = watched.start_steps(workdir)[0], int(self._whole.state["step"])
        print(f"uninterrupted, {self._whole.result['status']} at step {self._total}: {digest(self._whole.state)}")

    def _train_killed(self, workdir: Path, number: int) -> list[int]:
        """Trains with kills to the end and compares; returns the steps from which the run resumed."""
        workdir.mkdir()
        if (self._folder / "uninterrupted" / TUNING).exists():  # bits depend on how the step is compiled
            shutil.copyfile(self._folder / "uninterrupted" / TUNING, workdir / TUNING)
        while not watched.has_ended(workdir) and self._is_short(len(self._inside(workdir))):
            self._kill(workdir)
        ended = self._ended(self._command, workdir)
        resumed = self._inside(workdir)
        print(f"run {number} with kills ended at step {int(ended.state['step'])}: {digest(ended.state)}", flush=True)
        if problem := outcome.difference(self._whole, ended):
            raise outcome.DifferentError(problem)
        return resumed

    def _kill(self, workdir: Path) -> None:
        """Starts the run and kills it, unless it ends before."""
        moment, before = self._next_moment(workdir), watched.newest(workdir)
        with watched.process(self._command, workdir) as process:
            if moment == "start-up":
                watched.is_running_after(process, self._draws.uniform(0, self._start_up))
            elif watched.has_saved(process, workdir, before):
                watched.is_running_after(process, self._draws.uniform(0, self._window))
                if moment == "a save" and watched.is_saving(process, workdir):
                    watched.is_running_after(process, self._draws.uniform(0, _SAVE_SECONDS))
            process.kill()
            was_killed = process.wait() == -signal.SIGKILL
        step = watched.newest(workdir)
        if not was_killed or step >= self._total:
            self._window /= 2  # the run was faster than the kill
        if not was_killed:
            if not watched.has_ended(workdir):
                raise outcome.DifferentError(f"after kill {self._done} the run fails: {watched.last_line(workdir)}")
            return
        goes_on = f"in {moment}: {f'goes on at step {step}' if step else 'starts from scratch'}"
        if not self._begin < step < self._total:
            print(f"not counted, a kill {goes_on}", flush=True)
            return
        self._done += 1
        if self._moments:
            self._moments.remove(moment if moment in self._moments else self._moments[0])
        label = f"kill {self._done} of {self._kills}" if self._done <= self._kills else "one more kill"
        print(f"{label}, {goes_on}", flush=True)
        self._keep_middle(workdir, step)

    def _next_moment(self, workdir: Path) -> str:
        """Returns the moment of the next kill; one in start-up needs a checkpoint inside the run, and no two follow."""
        is_due = not self._was_in_start_up and self._begin < watched.newest(workdir) < self._total
        self._was_in_start_up = is_due and "start-up" in self._moments
        if self._was_in_start_up:
            return "start-up"
        return next((moment for moment in self._moments if moment != "start-up"), "training")

    def _inside(self, workdir: Path) -> list[int]:
        """Returns the steps inside the run from which it resumed, or will; without those that a later start undid."""
        steps: list[int] = []
        for step in reversed(
            [*watched.start_steps(workdir), *([] if watched.has_ended(workdir) else [watched.newest(workdir)])]
        ):
            if self._begin < step < min([self._total, *steps]):
                steps.append(step)
        return steps[::-1]

    def _ended(self, command: Sequence[str], workdir: Path) -> outcome.Outcome:
        """Trains a run to its end, if it has not ended, and returns its outcome."""
        if not watched.has_ended(workdir):
            with watched.process(command, workdir) as process:
                process.wait()
        if not watched.has_ended(workdir):
            raise outcome.DifferentError(f"after kill {self._done} the run fails: {watched.last_line(workdir)}")
        return outcome.read(workdir)

    def _keep_middle(self, workdir: Path, step: int) -> None:
        """Keeps a copy of the killed run whose checkpoint is nearest to the middle."""
        if self._middle is None or abs(2 * step - self._total) < abs(2 * self._middle - self._total):
            shutil.rmtree(self._folder / "middle", ignore_errors=True)
            shutil.copytree(workdir, self._folder / "middle")
            self._middle = step

    def _resume_from(self, workdir: Path) -> None:
        """Trains a new run in `workdir`, by resume_from, from the kept checkpoint near the middle of a killed run.

        Raises:
          outcome.DifferentError: the new run fails, or its state, result or rows after that step are other ones.
        """
        arguments = [f"--config.resume_from={self._folder / 'middle'}"]
        if self._run.config.init_from:
            arguments += ["--config.init_from=", "--config.init_map=()", "--config.init_weights=model"]
        ended, start = self._ended([*self._command, *arguments], workdir), watched.start_steps(workdir)[0]
        print(
            f"resume_from at step {start} ended at step {int(ended.state['step'])}: {digest(ended.state)}", flush=True
        )
        rest = [row for row in self._whole.rows if row["step"] > start]
        if problem := outcome.difference(dataclasses.replace(self._whole, rows=rest), ended):
            raise outcome.DifferentError(f"by resume_from at step {start}: {problem}")
