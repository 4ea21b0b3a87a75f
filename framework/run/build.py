"""From a config to a run, one way: config, data, durations, model, loss, optimizer, state, step, evaluation.

run = build('experiments/mnist_mlp.py', {'train.compile': 'graph'}, workdir='runs/first')
"""

import dataclasses
import functools
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
import tf_keras as keras
from ml_collections import ConfigDict, FrozenConfigDict

from framework import config, optim, paths, precision, state
from framework.checkpoint import warm_start
from framework.data.batches import Batches
from framework.data.bucketed import check_sizes, epoch_of, longest
from framework.data.dataset import DatasetBatches
from framework.data.sources import common_classes
from framework.distribute import devices
from framework.distribute.replicas import ParameterServers, Replicas, make_replicas
from framework.errors import UserError
from framework.evaluators import check_names
from framework.experiment import user_code
from framework.experiment.load import Experiment
from framework.experiment.returns import check_split, checked
from framework.layers import rematerialise
from framework.metrics import Metric, results
from framework.metrics.base import in_training
from framework.optim import Schedule
from framework.remote.address import as_typed, folder_of, is_address
from framework.remote.mirror import local_copy
from framework.run import continuity
from framework.run.arguments import check_build
from framework.run.metric_names import check_metric_names
from framework.run.request import resolve_request
from framework.run.run import Run
from framework.state import TrainState
from framework.step import asynchronous, compile_choice
from framework.step.asynchronous import AsynchronousBlock
from framework.step.block import BlockParts, TrainBlock, scalars_of
from framework.step.evaluation import EvalBlock
from framework.step.evaluation_probe import probe_evaluation
from framework.step.forward import Loss
from framework.step.metric_row import MetricRow
from framework.step.parts import StepFunction, StepParts
from framework.step.penalty_checks import check_penalties
from framework.step.probe import Probe, check_covered, probe, probe_step
from framework.step.probe_checks import check_frozen, check_mixed
from framework.step.scopes import scopes
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
    """Returns the run of an experiment, as `launch.py` and notebooks use it; nothing is written to disk yet.

    Args:
      name: 'experiments/mnist_mlp.py', also as a Path, or 'experiments/mnist_mlp.py:preset'.
      overrides: {'train.compile': 'graph'} or ['--config.train.compile=graph'].
      workdir: the run folder, or its address, such as 's3://bucket/run'; a fresh one below runs/ by default.
      from_workdir: looks at a trained run: takes the config of the run folder, applies overrides on top of it, and
        restores the newest checkpoint. Nothing is written there.
      restore: False leaves the state of a trained run's folder untrained.
      mode: what a trained run is looked at for, one of `LOOK_BACK`; overrides that the mode ignores are refused.

    Raises:
      UserError: bad input, found before a device is initialised, such as a workdir that holds a run of another config
        or experiment (the message lists the differing keys); or data that cannot be read.
    """
    started = time.monotonic()
    file, typed = check_build(name, overrides, workdir)
    place = folder_of(workdir) if workdir and not from_workdir else None
    with user_code.explained(place), as_typed(workdir):
        request = resolve_request(file, typed, workdir, from_workdir, mode)
        run = build_run(request.experiment, request.config, request.workdir, started)
        run.remote = request.remote
        if from_workdir:
            continuity.warn_of_change(request.workdir, request.experiment)
            if restore:
                run.restore(average=1 if mode == "replay" else run.resolved.checkpoint.average)
            run.recall()
    return run


@user_code.staying("the loss, a metric or other code of the experiment")
def build_run(loaded: Experiment, final: ConfigDict, workdir: Path, started: float, data_of: Run | None = None) -> Run:
    """Returns the run of a final config: data -> durations -> model, loss, optimizer -> state -> step -> evaluation.

    Args:
      loaded: the experiment.
      final: its config, finalized.
      workdir: the run folder, which need not exist.
      started: `time.monotonic()` when the build began.
      data_of: a run of the same experiment whose data are used again.
    """
    optim.parse_groups(final.optimizer.groups)  # mistakes in these two are told before data are read
    warm_start.parse_map(final.init_map)
    devices.setup(final)
    replicas = make_replicas(final)
    final = config.with_replicas(final, replicas.count)

    functions = checked(loaded.functions)
    local = _with_local_data(final, data_of)
    data, eval_data = (data_of.data, data_of.eval_data) if data_of else _make_data(functions, local)
    check_sizes(data, replicas.count, final.train.micro_batches)
    for batches in eval_data.values():
        check_sizes(batches, replicas.count)
    resolved = config.resolve(local, data.steps_per_epoch, epoch_of(data))
    made = _make_model(functions, data, resolved, replicas)
    train_state = _make_state(functions, made, data, resolved)
    constants = check_covered(made.probe, train_state, longest(data))

    with precision.scope(resolved.train.precision):
        trained = in_training(made.metrics)
        tools = Tools(StepParts(train_state, trained, resolved, replicas, made.probe.has_collectives))
        step, terms, rollback_variables = _make_step(functions, made, train_state, tools, resolved)
    row = MetricRow(scalars_of(train_state), terms, trained)
    results.check(made.metrics)
    evaluators = functions["make_evaluators"](resolved) if "make_evaluators" in functions else {}
    check_names(evaluators, resolved.eval.splits)
    check_metric_names(resolved, made.metrics, row, evaluators)
    check_penalties(made.model, data, resolved, replicas.count)
    block = BlockParts(tools, step, rollback_variables, data, made.schedules, row)
    is_asynchronous = isinstance(replicas, ParameterServers)

    eval_blocks, eval_constants = _make_eval_blocks(made, train_state, eval_data, resolved, replicas)
    return Run(
        experiment=loaded,
        config=final,
        resolved=resolved,
        workdir=workdir,
        data=data,
        eval_data=eval_data,
        loss=made.loss,
        metrics=made.metrics,
        schedules=made.schedules,
        probe=made.probe,
        replicas=replicas,
        state=train_state,
        train_block=AsynchronousBlock(block) if is_asynchronous else TrainBlock(block),
        eval_blocks=eval_blocks,
        exports=functions["make_exports"](resolved) if "make_exports" in functions else [],
        started=started,
        constants=constants | eval_constants,
        evaluators=evaluators,
        files=functions["make_files"](resolved) if "make_files" in functions else {},
    )


def on_one_device(run: Run) -> Run:
    """Returns the same run and state without replicas, for exports and evaluation; `run` itself if it has none."""
    if run.replicas.strategy is None:
        return run
    final = run.config.copy_and_resolve_references().unlock()
    final.runtime = config.base_config().runtime
    for name in ("deterministic", "threads"):
        final.runtime[name] = run.config.runtime[name]
    single = build_run(run.experiment, config.locked(final), run.workdir, time.monotonic(), data_of=run)
    sources = paths.variables(run.state)
    for path, variable in paths.variables(single.state).items():
        variable.assign(paths.copies(sources[path])[0].read_value())
    single.refresh()
    single.note, single.averaged = run.note, run.averaged
    return single


def check_schedules(returned: Any, model: Any, total_steps: int) -> dict[str, Schedule]:
    """Returns {model: schedule} of what `make_schedule` returned, each checked over the whole run."""
    schedules = optim.schedules_of(returned, model)
    return {name: optim.checked_schedule(schedule, total_steps, name) for name, schedule in schedules.items()}


@dataclasses.dataclass(frozen=True)
class _Made:
    """What the functions of an experiment made, before there is a state.

    Attributes:
      schedules: {model: schedule}; schedule_state: those with variables, see `optim.schedule_state`.
      updates: the counter of updates, which schedules read.
      extra: what `make_state` returned.
      quantizer: by which the model rounds.
    """

    model: Any
    loss: Loss
    metrics: Mapping[str, Metric]
    probe: Probe
    schedules: Mapping[str, Schedule]
    schedule_state: Any
    optimizer: Any
    updates: tf.Variable
    extra: tf.Module | None
    quantizer: optim.Quantizer | None


def _with_local_data(final: ConfigDict, data_of: Run | None) -> ConfigDict:
    """Returns the config that the experiment's functions get, in which an address in data.dir is its copy here."""
    if not is_address(final.data.dir):
        return final
    local = final.copy_and_resolve_references().unlock()
    local.data.dir = data_of.resolved.data.dir if data_of else str(local_copy(final.data.dir, "--data_dir"))
    return config.locked(local)


def _make_data(functions: Mapping[str, Any], final: ConfigDict) -> tuple[Batches, dict[str, Batches]]:
    """Returns the training batches and {split: batches} of evaluation."""
    data = functions["make_data"](final, "train")
    splits = dict.fromkeys(map(config.base_split, final.eval.splits))
    eval_data = {split: _make_split(functions, final, split) for split in splits}
    for split, batches in {"train": data, **eval_data}.items():
        check_split(batches, split)
        if isinstance(batches, DatasetBatches):
            again = functools.partial(functions["make_data"], final, split)
            batches.check_repeatable(split, again, final.runtime.deterministic)
    made = {"train": data, **eval_data}
    common_classes({f"the split '{split}'": getattr(batches, "classes", ()) for split, batches in made.items()})
    return data, eval_data


def _make_split(functions: Mapping[str, Any], final: ConfigDict, split: str) -> Batches:
    """Returns the batches of a split of evaluation, or raises UserError with its name."""
    try:
        return functions["make_data"](final, split)
    except UserError as error:
        message = str(error)
        raise UserError(message if f"'{split}'" in message else f"split '{split}': {message}") from error


def _make_model(functions: Mapping[str, Any], data: Batches, resolved: FrozenConfigDict, replicas: Replicas) -> _Made:
    """Returns model, loss, metrics and optimizer: weights and slots have a copy on every replica, counters are one."""
    with replicas.counter_scope():
        updates = state.new_counter()
    with precision.scope(resolved.train.precision), replicas.scope():
        keras.utils.set_random_seed(resolved.seed % 2**32)  # NumPy takes 32 bits; draws and order take the whole seed
        model = functions["make_model"](resolved)
        optim.check_wrapped(model, resolved)
        if resolved.train.remat:
            rematerialise(model, resolved.train.remat)
        loss = functions["make_loss"](resolved)
        metrics = functions["make_metrics"](resolved) if "make_metrics" in functions else {}
        # Tracing the loss creates the variables of models that wait for their first input.
        # Batches of several shapes by the longest, for models that have weights for each place.
        trace = probe(loss, model, metrics, longest(data), resolved, replicas.count)
        grouped = optim.group_parameters(model, resolved)
        if frozen := optim.freeze_layers(model, grouped):  # a frozen layer runs in another way and moves no average
            trace = probe(loss, model, metrics, longest(data), resolved, replicas.count)
            check_frozen(trace.graph, frozen)
        quantizer = None
        if resolved.quantize.name != "none":
            plan = optim.Plan(resolved.quantize, model)
            with plan.watched():
                trace = probe(loss, model, metrics, longest(data), resolved, replicas.count)
            quantizer = plan.quantizer(trace.graph)
            trace = probe(loss, model, metrics, longest(data), resolved, replicas.count)
        if "make_step" not in functions:
            check_mixed(trace.batch, trace.graph, "the loss")
        refuse_too_large(trace, longest(data), resolved)
        compile_choice.warn_of_convolutions(resolved, trace, replicas)
        if isinstance(replicas, ParameterServers):
            asynchronous.check(functions, model, data, trace)
        make_schedule = functions.get("make_schedule", optim.make_schedule)
        returned = make_schedule(resolved, resolved.train.duration)
        schedules = check_schedules(returned, model, resolved.train.duration)
        schedule_state = optim.schedule_state(returned)
        make_optimizer = functions.get("make_optimizer", optim.make_optimizer)
        optimizer = optim.build_optimizers(make_optimizer, model, schedules, updates, resolved, grouped)
        extra = functions["make_state"](resolved, model) if "make_state" in functions else None
    return _Made(model, loss, metrics, trace, schedules, schedule_state, optimizer, updates, extra, quantizer)


def _make_state(functions: Mapping[str, Any], made: _Made, data: Batches, resolved: FrozenConfigDict) -> TrainState:
    """Returns all that a checkpoint of the run holds."""
    decay, slow = resolved.ema.decay, resolved.lookahead.every
    variables = paths.variables(made.model)
    ema = optim.ExponentialMovingAverage(decay, variables) if decay else None
    lookahead = optim.Lookahead(resolved.lookahead, resolved.train.duration, variables) if slow else None
    return state.create(
        made.model,
        made.optimizer,
        made.updates,
        loss_scale=precision.make_loss_scale(resolved),
        ema=ema,
        extra=made.extra,
        data=data if isinstance(data, tf.Module) else None,
        skip_list=resolved.train.nonfinite_limit if resolved.train.on_nonfinite == "rewind" else 0,
        schedule=made.schedule_state,
        lookahead=lookahead,
        prune=_make_pruner(made, resolved, ema, lookahead),
        cluster=_make_clusterer(made, resolved, ema),
        quantize=made.quantizer,
        extensions=_make_extensions(functions, made, resolved),
    )


def _make_extensions(
    functions: Mapping[str, Any], made: _Made, resolved: FrozenConfigDict
) -> Mapping[str, optim.Extension] | None:
    if "make_extensions" not in functions:
        return None
    extensions: Mapping[str, optim.Extension] = functions["make_extensions"](resolved, made.model)
    with scopes(resolved.train.precision, 0, tf.constant(0, tf.int64)):  # as in a step: extensions may draw
        optim.check_extensions(extensions, made.model)
    return extensions


def _make_pruner(
    made: _Made,
    resolved: FrozenConfigDict,
    ema: optim.ExponentialMovingAverage | None,
    lookahead: optim.Lookahead | None,
) -> optim.Pruner | None:
    """Returns the masks of the trained parameters, with averages and slow weights that follow them."""
    if not config.is_pruned(resolved.prune):
        return None
    followers = [*([ema.averages] if ema else []), *([lookahead.slow] if lookahead else [])]
    pruned = optim.pruned_variables(resolved.prune, _trained(made))
    return optim.Pruner(resolved.prune, pruned, followers, lookahead.is_due if lookahead else None)


def _make_clusterer(
    made: _Made, resolved: FrozenConfigDict, ema: optim.ExponentialMovingAverage | None
) -> optim.Clusterer | None:
    """Returns the clusters of the trained parameters, with averages that follow them."""
    if resolved.cluster.name == "none":
        return None
    clustered = optim.clustered_variables(resolved.cluster, _trained(made))
    return optim.Clusterer(resolved.cluster, clustered, [ema.averages] if ema else [])


def _trained(made: _Made) -> dict[str, tf.Variable]:
    """Returns {path: variable} of the parameters that an optimizer changes."""
    trained = {id(v) for one in paths.models(made.optimizer).values() for v in one.trained.values()}
    return {path: variable for path, variable in paths.trainable(made.model).items() if id(variable) in trained}


def _make_step(
    functions: Mapping[str, Any], made: _Made, train_state: TrainState, tools: Tools, resolved: FrozenConfigDict
) -> tuple[StepFunction, tuple[str, ...], Sequence[tf.Variable]]:
    """Returns the step, the names of its terms, and the variables that it changes beside weights and slots."""
    if "make_step" not in functions:
        if isinstance(train_state.model, Mapping):
            raise UserError(
                f"make_model returned several models ({', '.join(train_state.models)}), and only the experiment knows"
                " how they are trained. Define make_step(cfg, tools)."
            )
        return standard_step(made.loss, tools), made.probe.terms, made.probe.assigned_variables
    step = functions["make_step"](resolved, tools)
    return step, probe_step(step, tools, made.probe.batch, resolved, train_state), list(train_state.learned.values())


def _make_eval_blocks(
    made: _Made,
    train_state: TrainState,
    eval_data: Mapping[str, Batches],
    resolved: FrozenConfigDict,
    replicas: Replicas,
) -> tuple[dict[str, EvalBlock], dict[str, str]]:
    """Returns {split: compiled pass}, 'test' and 'test/ema' sharing one, and the constants of their traces by name."""
    blocks: dict[str, EvalBlock] = {}
    constants: dict[str, str] = {}
    probes = {
        split: probe_evaluation(made.loss, train_state, batches, resolved, split, made.probe.terms, made.probe.batch)
        for split, batches in eval_data.items()
    }
    for split, batches in eval_data.items():
        constants |= probes[split].constants
        blocks[split] = EvalBlock(
            made.model,
            made.loss,
            made.metrics,
            batches,
            resolved,
            probes[split],
            replicas,
            made.probe.has_collectives,
        )
    return {split: blocks[config.base_split(split)] for split in resolved.eval.splits}, constants
