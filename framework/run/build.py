"""From a config to a run, one way: config, data, durations, model, loss, state, step.

run = build('experiments/mnist_mlp.py', {'train.compile': 'graph'}, workdir='runs/first')
"""

import datetime
import os
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
import tf_keras as keras
from ml_collections import ConfigDict, FrozenConfigDict

from framework import config, folder, optim, paths, precision, state
from framework.checkpoint import warm_start
from framework.checkpoint.checkpoints import Checkpoints
from framework.config.keys.runtime import SEVERAL_PROCESSES
from framework.config.overrides import override, restored
from framework.data.batches import Batches
from framework.distribute import devices
from framework.distribute.replicas import ParameterServers, Replicas
from framework.distribute.strategies import make_strategy
from framework.errors import UserError
from framework.experiment import load, user_code
from framework.experiment.load import Experiment
from framework.experiment.returns import check_split, checked
from framework.folder import check_workdir
from framework.layers import rematerialise
from framework.optim import Schedule
from framework.run import continuity, stored_config
from framework.run.arguments import check_build, refuse_unread
from framework.run.metric_names import check_metric_names
from framework.run.run import Run
from framework.state import TrainState
from framework.step import asynchronous, tune
from framework.step.asynchronous import AsynchronousBlock
from framework.step.block import BlockParts, TrainBlock, scalars_of
from framework.step.evaluation import EvalBlock
from framework.step.evaluation_probe import probe_evaluation
from framework.step.forward import Loss
from framework.step.metric_row import MetricRow
from framework.step.parts import StepFunction, StepParts
from framework.step.penalty_checks import check_penalties
from framework.step.probe import Probe, check_covered, probe, probe_step
from framework.step.probe_checks import check_frozen
from framework.step.size import refuse_too_large
from framework.step.tools import Tools, standard_step


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
            continuity.warn_of_change(workdir, loaded)
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
        continuity.refuse_unknown(workdir)
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
        continuity.refuse_no_origin(workdir, final)
        # Given by the replica, the batch size is known when these are; `open` looks again.
        continuity.refuse_other_run(
            workdir, loaded, final, ("data.batch_size",) if final.data.replica_batch_size else ()
        )
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
        tools = Tools(StepParts(created, metrics, resolved, replicas, found.has_collectives))
        step, terms, rollback_variables = _step(make, loss, created, tools, found, resolved)
    layout = MetricRow(scalars_of(created), terms, metrics)
    layout.check_results()
    check_metric_names(resolved, metrics, layout)
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
    parts = BlockParts(tools, step, rollback_variables, data, schedules, layout)
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
        train_block=AsynchronousBlock(parts) if is_asynchronous else TrainBlock(parts),
        eval_blocks={split: evaluations[config.base_split(split)] for split in final.eval.splits},
        exports=make["make_exports"](resolved) if "make_exports" in make else [],
        started=started,
        constants=constants,
    )


def on_one_device(run: Run) -> Run:
    """The same run and state without replicas, to be exported or looked at; itself if it has none."""
    if run.replicas.strategy is None:
        return run
    final = run.config.copy_and_resolve_references().unlock()
    final.runtime = config.base_config().runtime
    for name in ("deterministic", "threads"):
        final.runtime[name] = run.config.runtime[name]
    alone = build_run(run.experiment, config.locked(final), run.workdir, time.monotonic(), data_of=run)
    for path, variable in paths.variables(alone.state).items():
        variable.assign(paths.copies(paths.variables(run.state)[path])[0].read_value())
    alone.refresh()
    alone.note = run.note
    return alone


def make_schedules(make_schedule: Callable[..., Any], model: Any, resolved: FrozenConfigDict) -> dict[str, Schedule]:
    """{model: schedule}, looked at."""
    total_steps = resolved.train.duration
    made = optim.schedules_of(make_schedule(resolved, total_steps), model)
    return {name: optim.checked_schedule(schedule, total_steps, name) for name, schedule in made.items()}


def _step(
    make: Mapping[str, Any], loss: Loss, created: TrainState, tools: Tools, found: Probe, resolved: FrozenConfigDict
) -> tuple[StepFunction, tuple[str, ...], Sequence[tf.Variable]]:
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


def _numpy_seed(seed: int) -> int:
    """NumPy takes 32 bits; the whole seed still decides the data order and every draw of a layer."""
    return seed % 2**32
