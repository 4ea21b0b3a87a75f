"""A run: an experiment put together, and the folder it lives in.

run.model, run.state, run.config          # whole, untrained; nothing is on disk yet
run.open()                                # folder, header, copy of the file; restores the newest checkpoint
"""

import contextlib
import dataclasses
import datetime
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tf_keras as keras
from ml_collections import ConfigDict, FrozenConfigDict

from framework import folder, state
from framework.checkpoint.checkpoints import Checkpoints
from framework.checkpoint.start import begin, goals
from framework.data.batches import Batches
from framework.distribute.replicas import Replicas
from framework.errors import UserError
from framework.experiment.load import Experiment
from framework.export.base import ExportHook
from framework.files import held, read_json, write_text
from framework.metrics import Metric
from framework.optim import Schedule
from framework.run import code_copies, continuity, metric_names, stored_config
from framework.run.environment import environment, git_commit
from framework.state import TrainState
from framework.step import tune
from framework.step.block import TrainBlock
from framework.step.evaluation import EvalBlock
from framework.step.forward import Loss
from framework.step.penalties import shown
from framework.step.probe import Probe
from framework.step.tune import CompileChoice


@dataclasses.dataclass
class Run:
    """An experiment put together.

    Attributes:
      experiment: the file and its functions.
      config: final values as typed; durations as text.
      resolved: the same with durations in steps; what the experiment's `make_*` functions get.
      workdir: the run folder.
      data: training batches; eval_data: {split: batches}.
      schedules: {model: update -> learning rate}; a single model is called 'model'.
      probe: names and shapes found by tracing the loss once.
      replicas: what shares a step.
      state: all that is checkpointed, the model in it.
      train_block: K compiled steps; eval_blocks: {split: one compiled pass}.
      exports: the experiment's export hooks.
      started: `time.monotonic()` when `build` was called; None after a `train`, whose successor counts for itself.
      note: what the last restored checkpoint said of the run so far.
      choice: how `train.compile=auto` chose to compile the blocks; None before, and where the config says how.
      constants: {name: SHA-256} of the tables and constants that its traces compute with, see `step/coverage.py`.
    """

    experiment: Experiment
    config: ConfigDict
    resolved: FrozenConfigDict
    workdir: Path
    data: Batches
    eval_data: Mapping[str, Batches]
    loss: Loss
    metrics: Mapping[str, Metric]
    schedules: Mapping[str, Schedule]
    probe: Probe
    replicas: Replicas
    state: TrainState
    train_block: TrainBlock
    eval_blocks: Mapping[str, EvalBlock]
    exports: Sequence[ExportHook]
    started: float | None
    note: dict[str, Any] = dataclasses.field(default_factory=dict)
    choice: CompileChoice | None = None
    constants: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def model(self) -> keras.Model:
        """The model that the state holds."""
        return self.state.model

    @contextlib.contextmanager
    def weights(self, which: str) -> Iterator[None]:
        """Lends the model its averaged weights ('ema') or leaves it alone ('model')."""
        average = self.state.ema if which == "ema" else None
        with average.swapped() if average is not None else contextlib.nullcontext():
            yield

    @property
    def modes(self) -> dict[str, str]:
        """{'test/accuracy': 'max', …}: whether the minimum or the maximum of each evaluated metric is best."""
        return metric_names.modes(self.eval_blocks, shown(self.probe.terms), self.metrics)

    @property
    def total_steps(self) -> int:
        """Length of the run."""
        return self.resolved.train.duration

    @functools.cached_property
    def checkpoints(self) -> Checkpoints:
        """Those of the run folder."""
        settings = self.resolved.checkpoint
        kept = settings.keep, settings.keep_hours, settings.asynchronous, settings.on_error
        return Checkpoints(self.workdir / folder.CHECKPOINTS, *kept)

    def open(self) -> int:
        """Makes or enters the run folder and sets the state to go on from (`origin`); returns its step.

        Raises:
          UserError: the folder has become that of another run since `build`, was begun with other data, or the state
            cannot be had.
        """
        continuity.refuse_other_run(self.workdir, self.experiment, self.config)
        continuity.refuse_other_data(self.workdir, self._samples(), self.checkpoints.facts())
        continuity.refuse_other_constants(self.workdir, self.constants, self.checkpoints.facts())
        code_copies.refuse_damaged(self.workdir, self.experiment, self.checkpoints.facts().get("code", {}))
        chief = self.replicas.is_chief
        note = begin(self.state, self.checkpoints, self.resolved, self.workdir, chief, self.facts())
        self.note = self.note if note is None else note
        self.refuse_altered()
        self.refresh()
        return int(self.state.step)

    def refuse_altered(self) -> None:
        """Raises UserError unless config.json is what the checkpoint just restored was trained with."""
        facts = self.checkpoints.facts(int(self.state.step))
        stored_config.refuse_altered(self.workdir, stored_config.read(self.workdir), facts)

    def refresh(self) -> None:
        """Makes layers compute with the state as it is, after it was assigned from elsewhere; see `state.refresh`."""
        if state.refresh(self.state):
            self.train_block.forget()
            for block in self.eval_blocks.values():
                block.compiled.forget()

    def facts(self) -> dict[str, Any]:
        """What each checkpoint of this run says of it, for a resumed run to be compared with: JSON, hashes mostly.

        'data' is a SHA-256 of some examples of each split; 'goals' are the metrics that decide what is best;
        'constants' are hashes of the tables and constants of the traces; 'code' are those of the experiment's files;
        'config' is the hash of the config.
        """
        return {
            "data": self._samples(),
            "goals": goals(self.resolved, self.modes),
            "constants": dict(self.constants),
            "code": code_copies.hashes(self.experiment),
            stored_config.FACT: stored_config.of(self.config).hashes()[0],
        }

    def _samples(self) -> dict[str, str | None]:
        """{split: SHA-256 of some examples}; None of batches that are not made of arrays."""
        return {split: data.origin.get("sample") for split, data in {"train": self.data, **self.eval_data}.items()}

    def compile_by(self, choice: CompileChoice, block: TrainBlock | None = None) -> None:
        """Compiles the blocks in the chosen way; `block` is the training block if that is compiled already."""
        self.choice, self.train_block = choice, block or self.train_block.compiled_by(choice.mode)
        blocks = {id(block): block.compiled_by(choice.mode) for block in self.eval_blocks.values()}
        self.eval_blocks = {split: blocks[id(block)] for split, block in self.eval_blocks.items()}

    def recall(self) -> None:
        """Under `train.compile=auto`, compiles the blocks as the run did before, if it did and that can be had here."""
        if self.config.train.compile != "auto":
            return
        # The note is hashed; the file is all that there is before the first checkpoint.
        kept = CompileChoice.of(self.note["tuning"]) if self.note.get("tuning") else None
        kept = kept or read_json(self.workdir / folder.TUNING, CompileChoice.of, None, "the step is timed anew")
        if kept is not None and kept.mode in tune.candidates(self.resolved, self.probe, self.replicas):
            self.compile_by(kept)

    def restore(self, which: str | int = "last", repair: bool = False) -> int:
        """Restores a checkpoint of the run folder, 'last', 'best' or that of a step, and returns its step.

        Args:
          which: see `Checkpoints.restore`; repair: the same.

        Raises:
          UserError: there is none, or not that one, or a lookup table of it was another.
        """
        restored = self.checkpoints.restore(self.state, which, repair)
        if restored is None:
            some = "no checkpoint that is whole" if self.checkpoints.steps() else "no checkpoint"
            raise UserError(f"--workdir={self.workdir} has {some}. Train first: --mode=train.")
        self.note = restored
        self.refuse_altered()
        continuity.refuse_other_tables(self.workdir, self.constants, self.checkpoints.facts(int(self.state.step)))
        self.refresh()
        trained = self.checkpoints.facts(int(self.state.step)).get("code", {})
        code_copies.refuse_damaged(self.workdir, self.experiment, trained)
        return int(self.state.step)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps every other process from training in the run folder; the system lets go of it when we die.

        Raises:
          UserError: another process has it, or it cannot be locked.
        """
        self.workdir.mkdir(parents=True, exist_ok=True)
        busy = "--workdir={} is in use by process {}. Wait for it, stop it, or use another folder."
        with held(self.workdir / folder.LOCK, lambda holder: busy.format(self.workdir, holder)):
            yield

    def write_header(self, overrides: Iterable[str]) -> None:
        """Writes config.json, overrides.txt, environment.json and the copies of the experiment's code."""
        lines = [line if len(line.splitlines()) < 2 else repr(line) for line in overrides]  # one a line
        write_text(self.workdir / folder.OVERRIDES, "".join(f"{line}\n" for line in lines))
        code_copies.write(self.workdir, self.experiment, int(self.state.step))
        self.experiment.modules.close()
        now: dict[str, Any] = {
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "step": int(self.state.step),
        }
        now["replicas"] = self.replicas.count
        now["data"] = self._samples()
        now["experiment_git"] = git_commit(self.experiment.path.resolve().parent)
        folder.add_start(self.workdir, now | environment())
        # Last: a folder with a config.json is one that a run can be compared with.
        stored = stored_config.read(self.workdir) or stored_config.of(self.config)
        stored_config.write(self.workdir, stored.changed(self.config, int(self.state.step)))
