"""A run: an experiment put together, and the folder it lives in.

    run = build('experiments/mnist_mlp.py', {'train.compile': 'graph'}, workdir='runs/first')
    run.model, run.state, run.config          # whole, untrained; nothing is on disk yet
    run.open()                                # folder, header, copy of the file; restores the newest checkpoint

`build` follows one way: config, data, durations, model, loss, state, step.
"""

import contextlib
import dataclasses
import datetime
import functools
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
import tf_keras as keras
from absl import logging
from ml_collections import ConfigDict, FrozenConfigDict

from framework import config, folder, optim, paths, precision, state
from framework.checkpoint import warm_start
from framework.checkpoint.checkpoints import Checkpoints, find
from framework.checkpoint.start import begin, goals
from framework.config.keys.runtime import SEVERAL_PROCESSES
from framework.config.overrides import override, restored
from framework.data.batches import Batches
from framework.distribute import devices
from framework.distribute.replicas import ParameterServers, Replicas
from framework.distribute.strategies import make_strategy
from framework.errors import UserError, near
from framework.experiment import load, user_code
from framework.experiment.load import Experiment
from framework.experiment.returns import check_split, checked
from framework.export.base import ExportHook
from framework.files import held, read_json, write_text
from framework.folder import check_workdir
from framework.layers import rematerialise
from framework.metrics import Metric
from framework.optim import Schedule
from framework.run import code_copies, stored_config
from framework.run.arguments import check_build, refuse_unread
from framework.run.environment import environment, git_commit
from framework.state import TrainState
from framework.step import asynchronous, coverage, tune
from framework.step.asynchronous import AsynchronousBlock
from framework.step.block import TrainBlock, scalars_of
from framework.step.evaluation import EvalBlock
from framework.step.evaluation_probe import probe_evaluation
from framework.step.gradients import Loss
from framework.step.metric_row import MetricRow, term_key
from framework.step.penalties import shown
from framework.step.probe import Probe, check_covered, check_frozen, check_penalties, probe, probe_step
from framework.step.size import refuse_too_large
from framework.step.tools import Step, Tools, standard_step
from framework.step.tune import CompileChoice

_SHOWN = 5  # most keys of one message


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
        _refuse_other_run(self.workdir, self.experiment, self.config)
        self._refuse_other_data()
        self._refuse_other_constants()
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
            "goals": goals(self.resolved),
            "constants": dict(self.constants),
            "code": code_copies.hashes(self.experiment),
            stored_config.FACT: stored_config.of(self.config).hashes()[0],
        }

    def _samples(self) -> dict[str, str | None]:
        """{split: SHA-256 of some examples}; None of batches that are not made of arrays."""
        return {split: data.origin.get("sample") for split, data in {"train": self.data, **self.eval_data}.items()}

    def _refuse_other_data(self) -> None:
        begun = self.checkpoints.facts().get("data", {})
        for split, sample in self._samples().items():
            if None not in (sample, begun.get(split)) and sample != begun[split]:
                raise UserError(
                    f"the examples of '{split}' are not those that {self.workdir} was begun with, so it cannot end as"
                    " one that was never stopped. Does make_data draw them without a seed? Use another folder; there,"
                    f" --config.resume_from={self.workdir} goes on from this run."
                )

    def _refuse_other_constants(self) -> None:
        begun = self.checkpoints.facts().get("constants")
        self._refuse([] if begun is None else coverage.differing(begun, self.constants))

    def _refuse_other_tables(self) -> None:
        """Who looks back may have other batches and splits, but not another vocabulary."""
        begun = self.checkpoints.facts(int(self.state.step)).get("constants", {})
        tables = {name: begun[name] for name in begun.keys() & self.constants.keys() if name.startswith("table")}
        self._refuse(coverage.differing(tables, {name: self.constants[name] for name in tables}))

    def _refuse(self, differing: Sequence[str]) -> None:
        if differing:
            more = f" and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
            raise UserError(
                f"{', '.join(differing[:_SHOWN])}{more}: not what {self.workdir} was begun with, so it cannot end as a"
                " run that was never stopped. Was it read from a file that changed? Put that back, or use another"
                f" folder; there, --config.resume_from={self.workdir} goes on from this run."
            )

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

    def on_one_device(self) -> "Run":
        """The same run and state without replicas, to be exported or looked at; itself if it has none."""
        if self.replicas.strategy is None:
            return self
        final = self.config.copy_and_resolve_references().unlock()
        final.runtime = config.base_config().runtime
        for name in ("deterministic", "threads"):
            final.runtime[name] = self.config.runtime[name]
        alone = build_run(self.experiment, config.locked(final), self.workdir, time.monotonic(), data_of=self)
        for path, variable in paths.variables(alone.state).items():
            variable.assign(paths.copies(paths.variables(self.state)[path])[0].read_value())
        alone.refresh()
        alone.note = self.note
        return alone

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
        self._refuse_other_tables()
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


def build(
    name: str | os.PathLike[str],
    overrides: Mapping[str, Any] | Iterable[str] = (),
    workdir: str | os.PathLike[str] | None = None,
    from_workdir: bool = False,
    restore: bool = True,
    mode: str = "",
) -> Run:
    """Puts an experiment together; what launch.py calls, and what a notebook uses.

    Args:
      name: 'experiments/mnist_mlp.py', also as a Path, or 'experiments/mnist_mlp.py:preset'.
      overrides: {'train.compile': 'graph'} or ['--config.train.compile=graph'].
      workdir: the run folder; a fresh one below runs/ by default.
      from_workdir: to look at a trained run: the config is that of the run folder, overrides go on top of it, and its
        newest checkpoint is restored. Nothing is written there.
      restore: False leaves the state of a trained run's folder untrained.
      mode: what a trained run is looked at for, one of `LOOK_BACK`; overrides that it ignores are refused.

    Raises:
      UserError: bad input, found before a device is initialised: also a workdir that holds a run of another config or
        experiment (the differing keys are listed). Later: data that cannot be had.
    """
    started = time.monotonic()
    file, typed = check_build(name, overrides, workdir)
    with user_code.explained(Path(workdir) if workdir and not from_workdir else None):
        loaded, final, workdir = resolve_request(file, typed, workdir, from_workdir, mode)
        run = build_run(loaded, final, workdir, started)
        if from_workdir:
            _warn_of_change(workdir, loaded)
            if restore:
                run.restore()
            run.recall()
    return run


def resolve_request(
    name: str,
    overrides: Mapping[str, Any] | Iterable[str] = (),
    workdir: str | os.PathLike[str] | None = None,
    from_workdir: bool = False,
    mode: str = "",
) -> tuple[Experiment, ConfigDict, Path]:
    """The first half of `build`, with its arguments: experiment, final config and run folder, all checked.

    Raises:
      UserError: bad input that can be found before a device is initialised.
    """
    workdir = Path(workdir) if workdir else fresh_workdir(name)
    if not from_workdir:
        check_workdir(workdir)
    loaded = load.load(name)
    start = loaded.get_config()
    stored = stored_config.read(workdir)
    stored_config.refuse_altered(workdir, stored, Checkpoints(workdir / folder.CHECKPOINTS, 1).facts())
    if from_workdir and stored is None:
        _refuse_unknown(workdir)
    elif from_workdir and stored is not None:
        start = restored(start, stored.values)
        if start.runtime.strategy in SEVERAL_PROCESSES:  # who looks back is alone
            start.unlock().runtime = config.base_config().runtime
    final = config.finalize(override(start, overrides), loaded.own, is_trained=not mode)
    if mode:
        refuse_unread(mode, config.flatten(start), config.flatten(final))
    _refuse_ignored(loaded, start, final)
    if "check_config" in loaded.functions:
        loaded.functions["check_config"](final)
    if not from_workdir:
        _refuse_no_origin(workdir, final)
        # Given by the replica, the batch size is known when these are; `open` looks again.
        _refuse_other_run(workdir, loaded, final, ("data.batch_size",) if final.data.replica_batch_size else ())
    return loaded, final, workdir


def build_run(loaded: Experiment, final: ConfigDict, workdir: Path, started: float, data_of: Run | None = None) -> Run:
    """Config -> data -> durations -> model -> loss -> state -> step.

    Args:
      data_of: a run of the same experiment, whose data need not be read again.
    """
    optim.parse_groups(final.optimizer.groups)
    warm_start.parse_map(final.init_map)
    devices.setup(final)
    comm_dtype = tf.bfloat16 if final.runtime.all_reduce_dtype == "bfloat16" else None
    strategy = make_strategy(final)
    is_asynchronous = final.runtime.strategy == "parameter_server"
    replicas = ParameterServers(strategy) if is_asynchronous else Replicas(strategy, comm_dtype)
    final = config.with_replicas(final, replicas.count)
    make = checked(loaded.functions)
    data: Batches = make["make_data"](final, "train") if data_of is None else data_of.data
    bases = dict.fromkeys(map(config.base_split, final.eval.splits))
    eval_data = {split: data_of.eval_data[split] if data_of else make["make_data"](final, split) for split in bases}
    for split, batches in {"train": data, **eval_data}.items():
        check_split(batches, split)
    resolved = config.resolve(final, data.steps_per_epoch)

    with replicas.counter_scope():
        updates = state.new_counter()
    # Weights and slots have a copy on every replica; counters, loss scale and average are one.
    with precision.scope(resolved.train.precision), replicas.scope():
        keras.utils.set_random_seed(_numpy_seed(resolved.seed))
        model = make["make_model"](resolved)
        if resolved.train.remat:
            rematerialise(model, resolved.train.remat)
        loss = make["make_loss"](resolved)
        metrics = make["make_metrics"](resolved) if "make_metrics" in make else {}
        # Tracing the loss creates the variables of models that wait for their first input.
        found = probe(loss, model, metrics, data, resolved, replicas.count)
        grouped = optim.group_parameters(model, resolved)
        if frozen := optim.freeze_layers(model, grouped):  # they run otherwise, and move nothing any more
            found = probe(loss, model, metrics, data, resolved, replicas.count)
            check_frozen(found.graph, frozen)
        refuse_too_large(found, data, resolved)
        tune.warn_of_convolutions(resolved, found, replicas)
        if is_asynchronous:
            asynchronous.check(make, model, data, found)
        schedules = make_schedules(make["make_schedule"], model, resolved)
        optimizer = optim.build_optimizers(
            make.get("make_optimizer", optim.make_optimizer), model, schedules, updates, resolved, grouped
        )
        extra = make["make_state"](resolved, model) if "make_state" in make else None
    created = state.create(
        model,
        optimizer,
        updates,
        loss_scale=precision.make_loss_scale(resolved),
        ema=optim.ExponentialMovingAverage(resolved.ema.decay, paths.variables(model)) if resolved.ema.decay else None,
        extra=extra,
        data=data if isinstance(data, tf.Module) else None,
        skip_list=resolved.train.nonfinite_limit if resolved.train.on_nonfinite == "rewind" else 0,
    )
    constants = check_covered(found, created, data)
    with precision.scope(resolved.train.precision):
        tools = Tools(created, metrics, resolved, replicas, found.has_collectives)
        step, terms, rollback_variables = _step(make, loss, created, tools, found, resolved)
    layout = MetricRow(scalars_of(created), terms, metrics)
    layout.check_results()
    _check_metric_names(resolved, metrics, layout)
    check_penalties(model, data, resolved, replicas.count)
    looked = {
        split: probe_evaluation(loss, created, batches, resolved, split, found.terms)
        for split, batches in eval_data.items()
    }
    for one in looked.values():
        constants |= one.constants
    evaluations = {
        split: EvalBlock(model, loss, metrics, batches, resolved, looked[split], replicas, found.has_collectives)
        for split, batches in eval_data.items()
    }
    parts = (created, step, tools, layout, data, schedules, resolved, rollback_variables, replicas)
    return Run(
        experiment=loaded,
        config=final,
        resolved=resolved,
        workdir=workdir,
        data=data,
        eval_data=eval_data,
        loss=loss,
        metrics=metrics,
        schedules=schedules,
        probe=found,
        replicas=replicas,
        state=created,
        train_block=AsynchronousBlock(*parts, loss=loss) if is_asynchronous else TrainBlock(*parts),
        eval_blocks={split: evaluations[config.base_split(split)] for split in final.eval.splits},
        exports=make["make_exports"](resolved) if "make_exports" in make else [],
        started=started,
        constants=constants,
    )


def make_schedules(make_schedule: Callable[..., Any], model: Any, resolved: FrozenConfigDict) -> dict[str, Schedule]:
    """{model: schedule}, looked at."""
    total_steps = resolved.train.duration
    made = optim.schedules_of(make_schedule(resolved, total_steps), model)
    return {name: optim.checked_schedule(schedule, total_steps, name) for name, schedule in made.items()}


def _step(
    make: Mapping[str, Any], loss: Loss, created: TrainState, tools: Tools, found: Probe, resolved: FrozenConfigDict
) -> tuple[Step, tuple[str, ...], Sequence[tf.Variable]]:
    """The step, the names of its terms, and the variables that it changes beside weights and slots."""
    if "make_step" not in make:
        if isinstance(created.model, Mapping):
            raise UserError(
                f"make_model returned several models ({', '.join(created.models)}), and only the experiment knows how"
                " they are trained. Define make_step(cfg, tools)."
            )
        return standard_step(loss, tools), found.terms, found.assigned_variables
    step = make["make_step"](resolved, tools)
    return step, probe_step(step, tools, found.batch, resolved, created), list(created.learned.values())


def _check_metric_names(resolved: FrozenConfigDict, metrics: Mapping[str, Metric], layout: MetricRow) -> None:
    """A metric must not hide a number of the step; and those that config keys name are known only now."""
    for name in {*metrics} & {"step", "examples_per_second", *layout.scalars}:
        raise UserError(
            f"make_metrics names a metric '{name}', which every step reports already. Give it another name."
        )
    for name in (name for name in metrics if name.startswith(("mean/", "eval/"))):
        raise UserError(
            f"make_metrics names a metric '{name}', but rows of metrics.jsonl have names of their own below"
            f" '{name[:5]}'. Leave that out."
        )
    known = ["loss", *(term_key(name) for name in shown(layout.terms) if len(layout.terms) > 1), *metrics]
    early, best = resolved.early_stopping, resolved.checkpoint
    for key, chosen, mode_key, mode in (
        ("early_stopping.metric", early.metric, "early_stopping.mode", early.mode),
        ("checkpoint.best_metric", best.best_metric, "checkpoint.best_mode", best.best_mode),
    ):
        split, _, name = chosen.partition("/")
        if chosen and name not in known:
            raise UserError(
                f"{key}='{chosen}': there is no metric '{name}'.{near(name, known)} Metrics: {', '.join(known)}."
                f" Type e.g. --config.{key}={split}/loss."
            )
        better = metrics[name].mode if name in metrics else "min"
        if chosen and mode != better:
            raise UserError(
                f"{mode_key}='{mode}', but of {key}='{chosen}' the {better}imum is the best."
                f" Use --config.{mode_key}={better}."
            )


def fresh_workdir(name: str) -> Path:
    """runs/<experiment>-<time>-<random>, a folder that is not there yet and that no run of the same second gets."""
    stem = Path(name.partition(":")[0]).stem
    return Path("runs") / f"{stem}-{datetime.datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def _refuse_ignored(loaded: Experiment, start: ConfigDict, final: ConfigDict) -> None:
    """An experiment's own optimizer need not read the keys of those of the framework."""
    before, name = config.flatten(start), "make_optimizer"
    for key, value in config.flatten(final).items():
        is_typed = key.startswith("optimizer.") and key != "optimizer.groups" and value != before[key]
        if is_typed and load.ignores(loaded.path, name, key):
            raise UserError(
                f"{key}={value!r} has no effect: {name} of {loaded.path} does not read cfg.{key}."
                " Leave it out, or read it there."
            )


def _refuse_other_run(workdir: Path, loaded: Experiment, final: ConfigDict, unknown: Sequence[str] = ()) -> None:
    stored, copy = stored_config.read(workdir), workdir / loaded.path.name
    if stored is None:
        _refuse_unknown(workdir, final.resume_from)
        return
    differing = [
        f"{key}: {there!r} there, {now!r} now"
        for key, (there, now) in stored.differing(final).items()
        if key not in (*stored_config.MAY_DIFFER, *unknown)
    ]
    if stored.is_longer(final, unknown):  # whether that can be shows when the run is to train
        differing = []
    if not copy.exists():
        differing.insert(0, f"experiment: {copy.name} now, another file there")
    if differing:
        more = f"; and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
        is_longer = any(text.startswith("train.duration: ") for text in differing)
        longer = "To train longer, type the rest as it is there. Else use" if is_longer else "Use"
        raise UserError(
            f"--workdir={workdir} holds a run of another config ({'; '.join(differing[:_SHOWN])}{more}). {longer}"
            f" another folder; there, --config.resume_from={workdir} goes on from this run."
        )
    _warn_of_change(workdir, loaded)


def _refuse_no_origin(workdir: Path, final: ConfigDict) -> None:
    """Before a folder is made: `origin` reads these keys only if the run has no checkpoint of its own."""
    warm_start.parse_map(final.init_map)
    for key in ("resume_from", "init_from"):
        if final[key] and not Path(final[key]).exists() and not (workdir / folder.CHECKPOINTS).exists():
            find(key, final[key])


def _refuse_unknown(workdir: Path, resume_from: str = "") -> None:
    """Checkpoints without a config.json: what they were trained with is not known."""
    # A run that was killed while it took its first checkpoint from `resume_from` has nothing else yet.
    is_begun = not resume_from or (workdir / folder.ENVIRONMENT).exists()
    if is_begun and Checkpoints(workdir / folder.CHECKPOINTS, 1).steps():
        raise UserError(
            f"--workdir={workdir} has checkpoints but no config.json, so it is not known what they were trained with."
            f" Put it back, or use another folder; there, --config.resume_from={workdir} goes on from this run."
        )


def _warn_of_change(workdir: Path, loaded: Experiment) -> None:
    if not (workdir / loaded.path.name).exists():
        logging.warning("%s is not the experiment that %s was started with", loaded.path, workdir)
    elif files := code_copies.changed(workdir, loaded):
        verb = "has" if len(files) == 1 else "have"
        logging.warning("%s %s changed since %s was started", ", ".join(files), verb, workdir)


def _numpy_seed(seed: int) -> int:
    """NumPy takes 32 bits; the whole seed still decides the data order and every draw of a layer."""
    return seed % 2**32
