"""Rules that bind several keys to each other: contradictions, and keys that have no effect beside another.

    check_contradictions(flatten(config), own=(), is_trained=True)      # UserError names the keys and what to type

A rule of one key alone stands in its line in `keys/`.
"""

from collections.abc import Collection, Mapping
from typing import Any

from ml_collections import ConfigDict

from framework.config.base import locked, typed
from framework.config.keys import KEYS
from framework.config.keys.eval import AVERAGED
from framework.config.keys.prune import is_pruned, pattern
from framework.config.keys.runtime import ALL_REDUCE
from framework.errors import UserError


def check_contradictions(flat: Mapping[str, Any], own: Collection[str], is_trained: bool) -> None:
    """Raises UserError for values that do not go together.

    Args:
      flat: {dotted key: value} of all keys, each legal by itself.
      own: sections that a function of the experiment reads: a key there may have an effect whatever the others are;
        'evaluators' if it has some, whose scalars may be watched.
      is_trained: False for a look at a trained run, whose metrics to watch may be of other splits, and which
        computes in float16 without a loss scale if the run had none.
    """
    if is_trained and "evaluators" not in own:  # whose names are known later
        _check_watched(flat)
    if is_trained and flat["checkpoint.average"] > flat["checkpoint.keep"]:
        raise UserError(
            f"checkpoint.average={flat['checkpoint.average']} is more than checkpoint.keep={flat['checkpoint.keep']}."
            f" Type --config.checkpoint.keep={flat['checkpoint.average']}."
        )
    _check_origin(flat)
    _check_evaluation(flat)
    _check_lookahead(flat)
    _check_prune(flat)
    _check_cluster(flat)
    _check_quantize(flat)
    check_effects({key: value for key, value in flat.items() if key.partition(".")[0] not in own})
    _check_micro_batches(flat)
    _check_replicas(flat)
    _check_asynchronous(flat)
    _check_tables(flat)
    _check_loss_scale(flat, is_trained)
    _check_schedule(flat)


def check_effects(flat: Mapping[str, Any]) -> None:
    """Raises UserError for a key that has no effect because of the value of another key of the same section.

    Args:
      flat: {dotted key: value} of whole sections.
    """
    for key, value in flat.items():
        if key not in KEYS or value == KEYS[key].default:
            continue
        for decider, legal in KEYS[key].only_with.items():
            decider = f"{key.partition('.')[0]}.{decider}"
            if flat[decider] not in legal:
                raise UserError(
                    f"{key}={value!r} has no effect with {decider}='{flat[decider]}'."
                    f" Use --config.{decider}={legal[0]} or --config.{key}={typed(KEYS[key].default)}."
                )
    if flat.get("optimizer.nesterov") and flat["optimizer.momentum"] == 0:
        raise UserError("optimizer.nesterov=True needs optimizer.momentum > 0. Use --config.optimizer.momentum=0.9.")


def _check_watched(flat: Mapping[str, Any]) -> None:
    splits = flat["eval.splits"]
    for key in ("early_stopping.metric", "checkpoint.best_metric"):
        split, slash, name = flat[key].partition("/")
        if flat[key] and (split not in splits or not slash or not name):
            example = f"{splits[0]}/{name or 'loss'}"
            raise UserError(
                f"{key}='{flat[key]}' is not split/metric with a split of eval.splits={splits}."
                f" Type e.g. --config.{key}={example}."
            )


def _check_origin(flat: Mapping[str, Any]) -> None:
    if flat["resume_from"] and flat["init_from"]:
        raise UserError(
            f"resume_from='{flat['resume_from']}' continues a whole state and init_from='{flat['init_from']}' starts"
            " from weights alone. Use one of them: --config.resume_from= or --config.init_from=."
        )
    for key in ("init_map", "init_weights"):
        if flat[key] != KEYS[key].default and not flat["init_from"]:
            raise UserError(
                f"{key}={flat[key]!r} has no effect without init_from."
                f" Type e.g. --config.init_from=runs/first, or --config.{key}={typed(KEYS[key].default)}."
            )


def _check_evaluation(flat: Mapping[str, Any]) -> None:
    if flat["early_stopping.metric"] and not flat["eval.every"]:
        raise UserError(
            f"early_stopping.metric='{flat['early_stopping.metric']}' needs evaluations during training, but"
            " eval.every=''. Type e.g. --config.eval.every='1 epoch'."
        )
    averaged = [split for split in flat["eval.splits"] if split.endswith(AVERAGED)]
    if not flat["ema.decay"] and (averaged or flat["export.weights"] == "ema"):
        wish = f"eval.splits has '{averaged[0]}'" if averaged else "export.weights='ema'"
        raise UserError(f"{wish}, but no average is kept: ema.decay=0. Type e.g. --config.ema.decay=0.999.")
    if flat["export.checkpoint"] == "best" and not flat["checkpoint.best_metric"]:
        raise UserError(
            "export.checkpoint='best' needs checkpoint.best_metric, which is ''."
            " Type e.g. --config.checkpoint.best_metric=test/accuracy."
        )


def _check_lookahead(flat: Mapping[str, Any]) -> None:
    for key in ("lookahead.alpha", "lookahead.power"):
        if flat[key] != KEYS[key].default and not flat["lookahead.every"]:
            raise UserError(
                f"{key}={flat[key]!r} has no effect with lookahead.every=0."
                f" Type e.g. --config.lookahead.every=5, or --config.{key}={typed(KEYS[key].default)}."
            )


def _check_prune(flat: Mapping[str, Any]) -> None:
    prune = {key.removeprefix("prune."): value for key, value in flat.items() if key.startswith("prune.")}
    sparsity, initial = prune["sparsity"], prune["initial"]
    if not is_pruned(prune):
        for name, value in prune.items():
            if value != KEYS[f"prune.{name}"].default:
                raise UserError(
                    f"prune.{name}={value!r} has no effect with prune.sparsity=0. Type e.g."
                    f" --config.prune.sparsity=0.8, or --config.prune.{name}={typed(KEYS[f'prune.{name}'].default)}."
                )
        return
    if prune["schedule"] == "polynomial" and initial >= sparsity:
        raise UserError(
            f"prune.initial={initial} is not below prune.sparsity={sparsity}, to which it rises."
            " Use --config.prune.initial=0, or --config.prune.schedule=constant."
        )
    if (zeros_of := pattern(prune["pattern"])) is None or prune["schedule"] == "keep":
        return
    share = zeros_of[0] / zeros_of[1]
    if sparsity != share or prune["schedule"] != "constant":
        raise UserError(
            f"prune.pattern='{prune['pattern']}' is a sparsity of {share} from prune.begin on, but prune.sparsity="
            f"{sparsity} and prune.schedule='{prune['schedule']}'. Use --config.prune.sparsity={share}"
            " --config.prune.schedule=constant."
        )


def _check_cluster(flat: Mapping[str, Any]) -> None:
    if flat["cluster.name"] != "none" and not (flat["cluster.begin"] or flat["init_from"] or flat["resume_from"]):
        raise UserError(
            f"cluster.name='{flat['cluster.name']}' with cluster.begin='' clusters the weights that training starts"
            " from, which are not trained without init_from. Type --config.init_from=RUN, or e.g."
            " --config.cluster.begin=50%."
        )


def _check_quantize(flat: Mapping[str, Any]) -> None:
    if flat["quantize.name"] != "none" and flat["train.remat"]:
        raise UserError(
            f"train.remat={flat['train.remat']!r} does not work with quantize.name={flat['quantize.name']!r}: ranges of"
            " activations cannot be seen where they are computed twice. Use --config.train.remat=, or"
            " --config.quantize.name=none."
        )


def _check_micro_batches(flat: Mapping[str, Any]) -> None:
    batch_size = flat["data.batch_size"]
    micro_batches = flat["train.micro_batches"]
    if batch_size % micro_batches:
        fitting = max(1, round(batch_size / micro_batches)) * micro_batches
        raise UserError(
            f"data.batch_size={batch_size} is not divisible by train.micro_batches={micro_batches}."
            f" Use --config.data.batch_size={fitting}."
        )


def _check_replicas(flat: Mapping[str, Any]) -> None:
    strategy = flat["runtime.strategy"]
    algorithm = flat["runtime.all_reduce"]
    legal = ALL_REDUCE.get(strategy, ("auto",))
    if algorithm not in legal:
        raise UserError(
            f"runtime.all_reduce='{algorithm}' is not one that runtime.strategy='{strategy}' has: {', '.join(legal)}."
            " Use --config.runtime.all_reduce=auto."
        )
    if strategy not in ("one_device", "parameter_server") and flat["train.compile"] == "xla_update":
        raise UserError(
            f"train.compile='xla_update' does not work with runtime.strategy='{strategy}': XLA cannot assign to the"
            " copies of a variable. Use --config.train.compile=auto."
        )
    devices = flat["runtime.devices"]
    virtual = flat["runtime.virtual_devices"]
    if virtual and devices > virtual:
        raise UserError(
            f"runtime.devices={devices} is more than runtime.virtual_devices={virtual}."
            f" Use --config.runtime.virtual_devices={devices}."
        )


def _check_asynchronous(flat: Mapping[str, Any]) -> None:
    """Parameter servers: no step sees all updates before it, and variables lie on another device."""
    if flat["runtime.strategy"] != "parameter_server":
        return
    for key, legal, why in (
        ("train.compile", ("graph", "auto"), "XLA cannot read weights that lie on another device"),
        ("ema.decay", (0,), "an average would read all weights after every update"),
        ("lookahead.every", (0,), "slow weights would replace weights that other workers are reading"),
        ("prune.sparsity", (0.0,), "masks would write all weights after every update"),
        ("prune.schedule", _without("prune.schedule", "keep"), "masks would write all weights after every update"),
        ("cluster.name", ("none",), "clusters would write all weights after every update"),
        ("quantize.name", ("none",), "ranges would follow the activations of several workers at once"),
        ("train.on_nonfinite", ("stop", "skip"), "what other workers did meanwhile cannot be undone"),
        ("loss_scale.name", ("auto", "none"), "updates are not in the order that a loss scale counts"),
        ("train.precision", _without("train.precision", "float16"), "float16 needs a loss scale"),
    ):
        if flat[key] not in legal:
            raise UserError(
                f"{key}={flat[key]!r} does not work with runtime.strategy='parameter_server': {why}."
                f" Use --config.{key}={legal[0]}."
            )


def _check_tables(flat: Mapping[str, Any]) -> None:
    """Gradients that are rows of tables: several pieces of a batch have other rows, and XLA does not know how many."""
    if flat["optimizer.table_gradients"] == "dense":
        groups = [
            f"optimizer.groups: '{text}'" for text in flat["optimizer.groups"] if "name=lazy_adam" in text.split()
        ]
        named = ["optimizer.name='lazy_adam'"] if flat["optimizer.name"] == "lazy_adam" else groups
        if named:
            raise UserError(
                f"{named[0]} changes the rows of tables that a step looked up, but"
                " optimizer.table_gradients='dense' does not say which. Use --config.optimizer.table_gradients=rows."
            )
        return
    for key, legal, why in (
        ("train.compile", ("graph", "auto", "eager"), "XLA would have to know how many rows there are"),
        ("train.micro_batches", (1,), "micro-batches look up other rows each"),
        ("runtime.strategy", ("one_device", "parameter_server"), "replicas look up other rows each"),
        ("prune.sparsity", (0.0,), "masks would write whole tables after every update"),
        ("prune.schedule", _without("prune.schedule", "keep"), "masks would write whole tables after every update"),
        ("cluster.name", ("none",), "clusters would write whole tables after every update"),
        ("quantize.name", ("none",), "the range of a table is that of all its rows"),
    ):
        if flat[key] not in legal:
            raise UserError(
                f"{key}={flat[key]!r} does not work with optimizer.table_gradients='rows': {why}."
                f" Use --config.{key}={legal[0]}, or --config.optimizer.table_gradients=dense."
            )


def _without(key: str, choice: str) -> tuple[str, ...]:
    return tuple(legal for legal in KEYS[key].choices if legal != choice)


def _check_loss_scale(flat: Mapping[str, Any], is_trained: bool) -> None:
    name = flat["loss_scale.name"]
    precision = flat["train.precision"]
    if is_trained and precision == "float16" and name == "none":
        raise UserError(
            "train.precision='float16' needs a loss scale, or small gradients become 0, but loss_scale.name='none'."
            " Use --config.loss_scale.name=dynamic."
        )
    if name == "auto" and precision != "float16":
        for key in flat:
            if key.startswith("loss_scale.") and flat[key] != KEYS[key].default:
                raise UserError(
                    f"{key}={flat[key]!r} has no effect: with loss_scale.name='auto' only train.precision='float16' has"
                    f" a loss scale, and it is '{precision}'. Use --config.loss_scale.name=dynamic."
                )
    low, start, high = (flat[f"loss_scale.{key}"] for key in ("floor", "initial", "ceiling"))
    if name in KEYS["loss_scale.floor"].only_with["name"] and not low <= start <= high:
        raise UserError(
            f"loss_scale.initial={start:g} is not between loss_scale.floor={low:g} and loss_scale.ceiling={high:g}."
            f" Use --config.loss_scale.initial={min(max(start, low), max(high, low)):g}."
        )


def _check_schedule(flat: Mapping[str, Any]) -> None:
    name = flat["schedule.name"]
    if flat["schedule.start_fraction"] and not flat["schedule.warmup"]:
        raise UserError(
            f"schedule.start_fraction={flat['schedule.start_fraction']} has no effect without a warm-up."
            " Type e.g. --config.schedule.warmup=5%."
        )
    if name == "one_cycle" and not flat["schedule.warmup"]:
        raise UserError(
            "schedule.name='one_cycle' rises over schedule.warmup, which is ''. Use --config.schedule.warmup=30%."
        )
    if name == "restarts" and not flat["schedule.period"]:
        raise UserError(
            "schedule.name='restarts' needs schedule.period, which is ''."
            " Type e.g. --config.schedule.period='5 epochs'."
        )
    if name == "inverse_sqrt" and not (flat["schedule.warmup"] or flat["schedule.timescale"]):
        raise UserError(
            "schedule.name='inverse_sqrt' needs schedule.warmup or schedule.timescale. Type e.g."
            " --config.schedule.warmup='4000 steps'."
        )
    boundaries = flat["schedule.boundaries"]
    factors = flat["schedule.factors"]
    if name == "piecewise" and (not boundaries or len(boundaries) != len(factors)):
        raise UserError(
            f"schedule.name='piecewise' needs as many schedule.factors ({len(factors)}) as schedule.boundaries"
            f" ({len(boundaries)}), at least one. Type e.g. --config.schedule.boundaries=\"('2 epochs','4 epochs')\""
            ' --config.schedule.factors="(0.1,0.01)".'
        )


def with_replicas(config: ConfigDict, replicas: int) -> ConfigDict:
    """Returns the config of a run on this many replicas: sets data.batch_size from data.replica_batch_size.

    Raises:
      UserError: a batch of which the replicas, or their micro-batches, cannot get equal shares.
    """
    if config.data.replica_batch_size:
        config = config.copy_and_resolve_references().unlock()
        config.data.batch_size = config.data.replica_batch_size * replicas
        config = locked(config)
    micro_batches = config.train.micro_batches
    of = f"{replicas} replicas" + (f" of {micro_batches} micro-batches" if micro_batches > 1 else "")
    for key, size, pieces in (
        ("data.batch_size", config.data.batch_size, replicas * micro_batches),
        ("eval.batch_size", config.eval.batch_size, replicas),
    ):
        if size % pieces:
            lower, upper = size // pieces * pieces, -(-size // pieces) * pieces
            raise UserError(
                f"{key}={size} is not divisible by {of if key == 'data.batch_size' else f'{replicas} replicas'}"
                f" (runtime.strategy='{config.runtime.strategy}')."
                f" Use --config.{key}={f'{lower} or {upper}' if lower else upper}."
            )
    return config
