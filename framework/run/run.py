"""A run: the model, data, state and compiled steps of an experiment, and the run folder.

    run.model, run.state, run.config          # complete and untrained; nothing is on disk yet
    run.open()                                # enters the run folder and restores its newest checkpoint

`run/build.py` makes runs, `run/loop.py` trains them.
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

from framework import folder, paths, state
from framework.checkpoint.checkpoints import Checkpoints
from framework.checkpoint.mean import restore_mean
from framework.checkpoint.start import begin, goals
from framework.data.batches import Batches
from framework.data.dataset import DatasetBatches
from framework.data.sources import close
from framework.distribute.replicas import Replicas
from framework.errors import UserError
from framework.evaluators import Evaluator, modes_of
from framework.experiment.load import Experiment
from framework.export.base import ExportHook
from framework.files import held, read_json, write_text
from framework.metrics import Metric
from framework.optim import Schedule
from framework.remote.run_copy import RunCopy
from framework.run import averaging, code_copies, continuity, metric_names, own_files, stored_config
from framework.run.environment import environment, git_commit
from framework.state import TrainState
from framework.step import compile_choice
from framework.step.block import TrainBlock
from framework.step.compile_choice import CompileChoice
from framework.step.evaluation import EvalBlock
from framework.step.forward import Loss
from framework.step.kept import Kept
from framework.step.penalties import shown
from framework.step.probe import Probe


@dataclasses.dataclass(repr=False)
class Run:
    """An experiment, ready to train, evaluate or export.

    Attributes:
      experiment: the file and its functions.
      config: final values; durations as they were typed.
      resolved: the same with durations in steps; the experiment's `make_*` functions get it.
      workdir: the run folder; of one at an address, its copy on this machine.
      data: training batches.
      eval_data: {split: batches} of evaluation.
      loss: what `make_loss` returned.
      metrics: {name: metric} of `make_metrics`.
      schedules: {model: update -> learning rate}; a single model is called 'model'.
      probe: names and shapes of one trace of the loss.
      replicas: the devices and processes that share a step.
      state: everything that a checkpoint holds, the model included.
      train_block: K compiled steps.
      eval_blocks: {split: one compiled pass}.
      exports: the experiment's export hooks.
      evaluators: {name: evaluator} of `make_evaluators`.
      averaged: the steps of the checkpoints whose mean the weights are; () unless `restore` took a mean.
      files: {name: text} of `make_files`, such as a vocabulary.
      kept: batches and outputs of the evaluation whose evaluators are being called; None at any other time.
      started: `time.monotonic()` when `build` was called; None once `train` has counted the time from there.
      note: what the last restored checkpoint says about the run so far.
      choice: how `train.compile=auto` compiles the blocks; None before it chose, and if the config chose.
      remote: the copy of a run folder at an address; None of a folder of this machine.
      constants: {name: SHA-256} of the tables and constants in the traces, see `step/coverage.py`.
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
    evaluators: Mapping[str, Evaluator] = dataclasses.field(default_factory=dict)
    averaged: tuple[int, ...] = ()
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    kept: Kept | None = None
    remote: RunCopy | None = None

    def __repr__(self) -> str:
        """Four lines: the run and its step, the model and what it learns from, the data, and how a step is taken."""
        splits = {"train": self.data, **self.eval_data}
        sizes = ", ".join(f"{split} {_thousands(data.origin['examples'])}" for split, data in splits.items())
        count = sum(variable.shape.num_elements() for variable in paths.trainable(self.model).values())
        names = ", ".join(type(model).__name__ for model in paths.models(self.model).values())
        settings = self.config.train
        sizes_of_buckets = [bucket["size"] for bucket in self.data.origin.get("buckets", ())]
        least, most = min(sizes_of_buckets, default=0), max(sizes_of_buckets, default=0)
        size = f"{least} to {most}" if least < most else str(self.data.batch_size)
        return "\n".join(
            (
                f"{self.experiment.name} in {self.workdir}: step {int(self.state.step):,} of {self.total_steps:,}",
                f"  model    {names}, {count:,} parameters; terms {', '.join(shown(self.probe.terms))};"
                f" metrics {', '.join(self.metrics) or 'none'}",
                f"  data     {sizes} examples from {self.data.origin['source']}, batches of {size}",
                f"  step     {self.train_block.compiled.mode}, {settings.precision}, {self.replicas.count} replicas,"
                f" {settings.micro_batches} micro-batches",
            )
        )

    @property
    def model(self) -> keras.Model:
        """The model of the state; of several models, a dict."""
        return self.state.model

    @contextlib.contextmanager
    def weights(self, which: str) -> Iterator[None]:
        """Gives the model its averaged weights while open ('ema'), or changes nothing ('model')."""
        average = self.state.ema if which == "ema" else None
        with average.swapped() if average is not None else contextlib.nullcontext():
            yield

    def sparsity(self) -> dict[str, float]:
        """Returns the shares of the weights that pruning made 0; {} without pruning."""
        if self.state.prune is None:
            return {}
        return self.state.prune.shares(sum(v.shape.num_elements() for v in paths.trainable(self.model).values()))

    def distinct_values(self) -> dict[str, float]:
        """Returns the largest number of distinct values of a clustered variable; {} before there are clusters."""
        return {} if self.state.cluster is None else self.state.cluster.row()

    @property
    def typed_workdir(self) -> str:
        """The run folder, or its address, as a command names it."""
        return str(self.workdir) if self.remote is None else self.remote.address

    @property
    def modes(self) -> dict[str, str]:
        """{'test/accuracy': 'max', …}: whether the minimum or maximum is best, of each metric or declared scalar."""
        of_splits = metric_names.modes(self.eval_blocks, shown(self.probe.terms), self.metrics)
        return of_splits | modes_of(self.evaluators)

    @property
    def total_steps(self) -> int:
        """Length of the run, in steps."""
        return self.resolved.train.duration

    @functools.cached_property
    def checkpoints(self) -> Checkpoints:
        """The checkpoints of the run folder."""
        settings = self.resolved.checkpoint
        path = self.workdir / folder.CHECKPOINTS
        return Checkpoints(
            path,
            settings.keep,
            settings.keep_hours,
            settings.asynchronous,
            settings.on_error,
            on_saved=lambda: None if self.remote is None else self.remote.later(),
        )

    def open(self) -> int:
        """Enters the run folder, restores the state to continue from (`checkpoint/start.py`) and returns its step.

        Raises:
          UserError: since `build` the folder became that of another run; or it was begun with other data, tables or
            code; or the state cannot be restored.
        """
        continuity.refuse_other_run(self.workdir, self.experiment, self.config)
        metric_names.check_watched(self.config, [*self.eval_blocks], [*self.evaluators])
        continuity.refuse_other_data(self.workdir, self.data_facts(), self.checkpoints.facts())
        continuity.refuse_other_constants(self.workdir, self.constants, self.checkpoints.facts())
        own_files.refuse_other(self.workdir, self.files, self.checkpoints.facts())
        code_copies.refuse_damaged(self.workdir, self.experiment, self.checkpoints.facts().get("code", {}))
        chief = self.replicas.is_chief
        note = begin(self.state, self.checkpoints, self.resolved, self.workdir, chief, self.facts())
        self.note = self.note if note is None else note
        self.refuse_altered()
        step = int(self.state.step)
        if not step:
            self.refuse_useless_start()
        continuity.refuse_other_batch(self.workdir, step, self._last_batch(step), self.checkpoints.facts(step))
        self.refresh()
        return step

    def refuse_useless_start(self) -> None:
        """Raises UserError if the weights from which training starts leave nothing to prune or to cluster."""
        for follower in (self.state.prune, self.state.cluster):
            if follower is not None:
                follower.refuse_useless_start()

    def refuse_altered(self) -> None:
        """Raises UserError if config.json changed since the checkpoint that was just restored."""
        facts = self.checkpoints.facts(int(self.state.step))
        stored_config.refuse_altered(self.workdir, stored_config.read(self.workdir), facts)

    def refresh(self) -> None:
        """Makes layers use the state after it was assigned from outside of a step; see `state.refresh`."""
        if state.refresh(self.state):
            self.train_block.forget()
            for block in self.eval_blocks.values():
                block.forget()

    def facts(self) -> dict[str, Any]:
        """Returns what each checkpoint records about this run, as JSON; a resumed run must have the same.

        'data' and 'arrays' hold what each split is known by, 'goals' the metrics that decide which checkpoint is the
        best, 'constants' hashes of the tables and constants of the traces, 'code' hashes of the experiment's files,
        'config' the hash of the config, 'files' those of `make_files`. 'last_batch' is the hash of the batch that a
        tf.data pipeline gave last.
        """
        return {
            **self.data_facts(),
            "goals": goals(self.resolved, self.modes),
            "constants": dict(self.constants),
            "code": code_copies.hashes(self.experiment),
            **own_files.facts(self.files),
            stored_config.FACT: stored_config.of(self.config).hashes()[0],
            **self._last_batch(int(self.state.step)),
        }

    def _last_batch(self, step: int) -> dict[str, str]:
        """Returns {'last_batch': SHA-256 of the batch before a step}, of a tf.data pipeline alone."""
        known = self.data.hash_at(step - 1) if isinstance(self.data, DatasetBatches) and step else None
        return {} if known is None else {"last_batch": known}

    def data_facts(self) -> dict[str, dict[str, str | None]]:
        """Returns {'data': {split: fingerprint}, 'arrays': {split: SHA-256 of all examples}}, None if there is none.

        Checkpoints of earlier versions have 'data' alone: the hash of some examples of arrays.
        """
        splits = {"train": self.data, **self.eval_data}
        names = {"data": "sample", "arrays": "sha256"}
        return {fact: {split: data.origin.get(name) for split, data in splits.items()} for fact, name in names.items()}

    def compile_by(self, choice: CompileChoice, block: TrainBlock | None = None) -> None:
        """Compiles the blocks by `choice`; `block` is the training block if it is compiled already."""
        self.choice = choice
        self.train_block = block or self.train_block.compiled_by(choice.mode)
        blocks = {id(block): block.compiled_by(choice.mode) for block in self.eval_blocks.values()}
        self.eval_blocks = {split: blocks[id(block)] for split, block in self.eval_blocks.items()}

    def recall(self) -> None:
        """Under `train.compile=auto`, compiles the blocks as the run did before, if these devices can."""
        if self.config.train.compile != "auto":
            return
        # The note is covered by a hash; before the first checkpoint there is only the file.
        kept = CompileChoice.of(self.note["tuning"]) if self.note.get("tuning") else None
        kept = kept or read_json(self.workdir / folder.TUNING, CompileChoice.of, None, "the step is timed again")
        if kept is not None and kept.mode in compile_choice.candidates(self.resolved, self.probe, self.replicas):
            self.compile_by(kept)

    def restore(self, which: str | int = "last", repair: bool = False, average: int = 1) -> int:
        """Restores a checkpoint of the run folder and returns its step.

        Args:
          which: 'last', 'best' or a step, as for `Checkpoints.restore`.
          repair: moves damaged checkpoints aside, as `Checkpoints.restore` does.
          average: of how many checkpoints the weights are the mean: the newest, the best or those up to the step. All
            else is that of the newest of them. A run does not train on from a mean.

        Raises:
          UserError: there is no such checkpoint, or it was trained with another config, lookup table or code.
        """
        self.averaged = self.to_average(which, average)
        note: dict[str, Any] | None
        if self.averaged:
            note = restore_mean(self.state, [self.checkpoints.directory.path(step) for step in self.averaged])
        else:
            note = self.checkpoints.restore(self.state, which, repair)
        if note is None:
            some = "no checkpoint that is whole" if self.checkpoints.steps() else "no checkpoint"
            raise UserError(f"--workdir={self.workdir} has {some}. Train first: --mode=train.")
        self.note = note
        self.refuse_altered()
        continuity.refuse_other_tables(self.workdir, self.constants, self.checkpoints.facts(int(self.state.step)))
        own_files.refuse_other(self.workdir, self.files, self.checkpoints.facts(int(self.state.step)))
        self.refresh()
        trained = self.checkpoints.facts(int(self.state.step)).get("code", {})
        code_copies.refuse_damaged(self.workdir, self.experiment, trained)
        return int(self.state.step)

    def to_average(self, which: str | int, count: int) -> tuple[int, ...]:
        """Returns the steps of the checkpoints whose mean `restore` takes, in order; () for a count of 1.

        Raises:
          UserError: there are fewer.
        """
        if count == 1:
            return ()
        metric, ranks = self.config.checkpoint.best_metric, {}
        if which == "best":
            ranks = averaging.ranking(self.workdir, metric, self.modes.get(metric, "min"))
        return averaging.chosen(self.checkpoints, which, count, ranks)

    def close(self) -> None:
        """Stops reading ahead and closes files of the data; a later step or evaluation opens them again."""
        for batches in (self.data, *self.eval_data.values()):
            close(batches)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other processes from training in the run folder; the system releases the lock if this process dies.

        Raises:
          UserError: another process holds the lock, or the folder cannot be locked.
        """
        self.workdir.mkdir(parents=True, exist_ok=True)
        busy = "--workdir={} is in use by process {}. Wait for it, stop it, or use another folder."
        with held(self.workdir / folder.LOCK, lambda holder: busy.format(self.workdir, holder)):
            yield

    def copying(self) -> contextlib.AbstractContextManager[None]:
        """Keeps the address of the run folder for this process and copies to it, as `RunCopy.holding` does."""
        return contextlib.nullcontext() if self.remote is None else self.remote.holding()

    def write_header(self, overrides: Iterable[str]) -> None:
        """Writes config.json, overrides.txt, environment.json, files/ and the copies of the experiment's code."""
        lines = [line if len(line.splitlines()) < 2 else repr(line) for line in overrides]  # one override a line
        write_text(self.workdir / folder.OVERRIDES, "".join(f"{line}\n" for line in lines))
        code_copies.write(self.workdir, self.experiment, int(self.state.step))
        own_files.write(self.workdir / folder.FILES, self.files)
        self.experiment.modules.close()
        now: dict[str, Any] = {
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "step": int(self.state.step),
            "total_steps": self.total_steps,
            "replicas": self.replicas.count,
            "modes": self.modes,
            "overridden": stored_config.unlike(self.config, self.experiment.get_config()),
            "data": self.data_facts()["data"],
            "experiment_git": git_commit(self.experiment.path.resolve().parent),
        }
        folder.add_start(self.workdir, now | environment())
        # Last: from now on `continuity` compares other runs with this folder.
        stored = stored_config.read(self.workdir) or stored_config.of(self.config)
        stored_config.write(self.workdir, stored.changed(self.config, int(self.state.step)))


def _thousands(count: int | None) -> str:
    return "?" if count is None else f"{count:,}"
