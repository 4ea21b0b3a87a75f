"""Configuration: the rules that bind the keys of `keys.py`, and durations in any unit.

    config = base_config()                        # every key with its default
    config = override(config, {'train.compile': 'graph'})
    config = finalize(config)                     # pure: keys, types, ranges, contradictions
    config = resolve(config, steps_per_epoch)     # '5 epochs' -> 2344 steps; frozen

Nothing here imports TensorFlow, so bad input is reported before a device is touched.
"""

import math
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from framework.config.defaults import CHOICES, DURATIONS, FREE_SECTIONS, ONLY_WITH, RANGES, UNITS, base_config
from framework.errors import UserError, closest, near

# An entry of eval.splits that ends in it is evaluated on the averaged weights.
AVERAGED = "@ema"

_DURATION = re.compile(rf"\s*([0-9]+(?:\.[0-9]+)?(?:e[0-9]+)?)\s*({'|'.join(UNITS)})s?\s*", re.IGNORECASE)
_LONGEST_SPLIT = 100  # characters: folders are named after splits
_PLAIN = (bool, int, float, str)


def base_split(split: str) -> str:
    """The split of an entry of `eval.splits`: 'test' of 'test@ema'."""
    return split.removesuffix(AVERAGED)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'train.compile': 'xla', …}: the leaves by dotted key, in alphabetical order."""
    flat: dict[str, Any] = {}
    for key in config:
        value = config[key]
        if isinstance(value, ConfigDict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def typed(value: Any) -> str:
    """`value` as it would be typed on a command line."""
    text = str(value)
    return f"'{text}'" if not text or re.search(r"[\s()',%]", text) else text


def locked(config: ConfigDict) -> ConfigDict:
    """A locked copy."""
    # `lock` does not look below what is locked already, where FREE_SECTIONS are not.
    return config.copy_and_resolve_references().unlock().lock()


def finalize(config: ConfigDict, own: Collection[str] = (), is_trained: bool = True) -> ConfigDict:
    """Checks keys, types, ranges and contradictions; pure. Returns a locked copy.

    Args:
      config: of all keys.
      own: sections that a function of the experiment reads, e.g. 'optimizer' where it has a make_optimizer: a key there
        may have an effect whatever the values of others.
      is_trained: False for a look at a trained run, which may evaluate other splits than those that training goes by.

    Raises:
      UserError: names the key, its value, what is legal and what to type.
    """
    flat, base = flatten(config), flatten(base_config())
    for key, value in flat.items():
        if key not in base:
            _check_own_key(key, value, base)
    for key, default in base.items():
        if key not in flat:
            raise UserError(f"get_config dropped '{key}'. Start from base_config(), which sets it to {default!r}.")
        value = flat[key]
        if type(value) is not type(default) and not (type(default) is float and type(value) is int):
            raise UserError(
                f"{key}={value!r} is of type {type(value).__name__}, not {type(default).__name__}."
                f" Write e.g. config.{key} = {default!r}."
            )
    _check_values(flat)
    _check_contradictions(flat, own, is_trained)
    return locked(config)


def _check_own_key(key: str, value: Any, base: Mapping[str, Any]) -> None:
    """Keys that only the experiment reads: in their place, no slip of the pen, of a type that config.json can hold."""
    if key.partition(".")[0] not in FREE_SECTIONS:
        raise UserError(
            f"get_config set '{key}', which the framework does not read.{near(key, base)}"
            f" Own keys belong in {' or '.join(f'config.{name}' for name in FREE_SECTIONS)}."
        )
    if meant := closest(key, base, cutoff=0.9):
        raise UserError(f"get_config set '{key}', which is nearly '{meant}'. Write config.{meant}, or another name.")
    check_plain(key, value)


def check_plain(key: str, value: Any) -> None:
    """Raises UserError unless config.json and a command line can hold `value`."""
    for part in value if type(value) is tuple else (value,):
        if type(part) not in _PLAIN or (type(part) is float and not math.isfinite(part)):
            raise UserError(
                f"get_config set {key}={value!r}. A value is a bool, int, str, finite float or a tuple of these:"
                " it is kept in config.json and typed on command lines."
            )


def check_choice(key: str, value: Any, choices: Iterable[str]) -> None:
    """Raises UserError unless `value` is one of `choices`; for an experiment's own keys in its `check_config`."""
    choices = tuple(choices)
    if value not in choices:
        raise UserError(
            f"{key}='{value}' is not one of {', '.join(choices)}.{near(str(value), choices)}"
            f" Use --config.{key}={closest(str(value), choices) or choices[0]}."
        )


def check_range(key: str, value: float, low: float | None, high: float | None) -> None:
    """Raises UserError unless `value` is finite and between `low` and `high`, both included; None = unbounded."""
    above = low is None or value >= low
    below = high is None or value <= high
    # Not math.isfinite, which cannot take an int beyond the largest float.
    if not (above and below and -math.inf < value < math.inf):
        bounds = (f"at least {low}" if low is not None else "", f"at most {high}" if high is not None else "")
        legal = " and ".join(text for text in ("finite" if None in (low, high) else "", *bounds) if text)
        raise UserError(f"{key}={value} is out of range: it must be {legal}. Use --config.{key}=N.")


def _check_values(flat: Mapping[str, Any]) -> None:
    for key, choices in CHOICES.items():
        check_choice(key, flat[key], choices)
    for key, (low, high) in RANGES.items():
        check_range(key, flat[key], low, high)
    for key, optional in DURATIONS.items():
        if flat[key] or not optional:
            _check_duration(key, flat[key])
    for value in flat["schedule.boundaries"]:
        _check_duration("schedule.boundaries", value)
    for value in flat["schedule.factors"]:
        if type(value) not in (int, float) or not 0 <= value < math.inf:
            raise UserError(
                f"schedule.factors={flat['schedule.factors']}: {value!r} is not a number of at least 0."
                ' Type e.g. --config.schedule.factors="(0.1,0.01)".'
            )
    _check_splits(flat["eval.splits"])


def _check_duration(key: str, value: Any) -> None:
    match = _DURATION.fullmatch(str(value))
    if not match or float(match[1]) <= 0:
        number = str(value).strip()
        example = f"'{number} steps'" if number.isdecimal() and number.isascii() and number.strip("0") else "'2 epochs'"
        example = "\"('2 epochs','4 epochs')\"" if key == "schedule.boundaries" else example
        raise UserError(
            f"{key}='{value}' is not a duration. Type e.g. --config.{key}={example} (steps, epochs, examples or %)."
        )
    unit = match[2].lower()
    if key == "train.duration" and unit in ("%", "percent"):
        raise UserError(f"train.duration='{value}' is a share of itself. Type e.g. --config.train.duration='5 epochs'.")
    if float(match[1]) > UNITS[unit]:
        most = f"{UNITS[unit]:g}{unit if unit == '%' else f' {unit}s'}"
        raise UserError(f"{key}='{value}' is out of range: it must be at most '{most}'.")


def _check_splits(splits: tuple[Any, ...]) -> None:
    if not splits:
        raise UserError(
            "eval.splits=() names no split, but a run is judged and its exports are verified on one."
            " Use --config.eval.splits=test."
        )
    for split in splits:
        if type(split) is not str or not re.fullmatch(r"[\w.-]+", base_split(split)):
            raise UserError(
                f"eval.splits={splits}: {split!r} is not a name of letters, digits, '_', '-' and '.'."
                " Type e.g. --config.eval.splits=\"('train_eval','test')\"."
            )
        if len(split) > _LONGEST_SPLIT:
            raise UserError(f"eval.splits has a name of {len(split)} characters: it must be at most {_LONGEST_SPLIT}.")
    if "train" in map(base_split, splits):
        raise UserError(
            "eval.splits contains 'train', which is shuffled and endless."
            " Give the split another name in make_data, e.g. --config.eval.splits=\"('train_eval','test')\"."
        )
    if len(set(splits)) != len(splits):
        raise UserError(f"eval.splits={splits} names a split twice. Name each once.")


def _check_contradictions(flat: Mapping[str, Any], own: Collection[str], is_trained: bool) -> None:
    splits = flat["eval.splits"]
    for key in ("early_stopping.metric", "checkpoint.best_metric") if is_trained else ():
        if not flat[key]:
            continue
        split, slash, name = flat[key].partition("/")
        if split not in splits or not slash or not name:
            example = f"{splits[0]}/{name or 'loss'}"
            raise UserError(
                f"{key}='{flat[key]}' is not split/metric with a split of eval.splits={splits}."
                f" Type e.g. --config.{key}={example}."
            )
    _check_origin(flat)
    if flat["early_stopping.metric"] and not flat["eval.every"]:
        raise UserError(
            f"early_stopping.metric='{flat['early_stopping.metric']}' needs evaluations during training, but"
            " eval.every=''. Type e.g. --config.eval.every='1 epoch'."
        )
    averaged = [split for split in splits if split.endswith(AVERAGED)]
    if not flat["ema.decay"] and (averaged or flat["export.weights"] == "ema"):
        wish = f"eval.splits has '{averaged[0]}'" if averaged else "export.weights='ema'"
        raise UserError(f"{wish}, but no average is kept: ema.decay=0. Type e.g. --config.ema.decay=0.999.")
    if flat["export.checkpoint"] == "best" and not flat["checkpoint.best_metric"]:
        raise UserError(
            "export.checkpoint='best' needs checkpoint.best_metric, which is ''."
            " Type e.g. --config.checkpoint.best_metric=test/accuracy."
        )
    check_effects({key: value for key, value in flat.items() if key.partition(".")[0] not in own})
    _check_step(flat)
    _check_replicas(flat)
    _check_asynchronous(flat)
    _check_loss_scale(flat)
    _check_schedule(flat)


def check_effects(flat: Mapping[str, Any]) -> None:
    """Raises UserError for a key that does nothing because of the value of another of the same section.

    Args:
      flat: {dotted key: value} of whole sections.
    """
    base = flatten(base_config())
    for key, (decider, wanted) in ONLY_WITH.items():
        if key in flat and flat[key] != base[key] and flat[decider] not in wanted:
            raise UserError(
                f"{key}={flat[key]!r} has no effect with {decider}='{flat[decider]}'."
                f" Use --config.{decider}={wanted[0]} or --config.{key}={typed(base[key])}."
            )
    if flat.get("optimizer.nesterov") and flat["optimizer.momentum"] == 0:
        raise UserError("optimizer.nesterov=True needs optimizer.momentum > 0. Use --config.optimizer.momentum=0.9.")


def _check_origin(flat: Mapping[str, Any]) -> None:
    if flat["resume_from"] and flat["init_from"]:
        raise UserError(
            f"resume_from='{flat['resume_from']}' goes on from a whole state and init_from='{flat['init_from']}' starts"
            " from weights alone. Use one of them: --config.resume_from= or --config.init_from=."
        )
    base = flatten(base_config())
    for key in ("init_map", "init_weights"):
        if flat[key] != base[key] and not flat["init_from"]:
            raise UserError(
                f"{key}={flat[key]!r} has no effect without init_from."
                f" Type e.g. --config.init_from=runs/first, or --config.{key}={typed(base[key])}."
            )


def _check_step(flat: Mapping[str, Any]) -> None:
    batch_size, parts = flat["data.batch_size"], flat["train.micro_batches"]
    if batch_size % parts:
        fitting = max(1, round(batch_size / parts)) * parts
        raise UserError(
            f"data.batch_size={batch_size} is not divisible by train.micro_batches={parts}."
            f" Use --config.data.batch_size={fitting}."
        )
    for key in ("train.remat", "clip.exclude"):
        try:
            re.compile(flat[key])
        except re.error as error:
            raise UserError(f"{key}='{flat[key]}' is not a regular expression: {error}.") from error


_ALL_REDUCE = {"mirrored": ("auto", "nccl", "hierarchical", "one_device"), "multi_worker": ("auto", "nccl", "ring")}


def _check_replicas(flat: Mapping[str, Any]) -> None:
    strategy, algorithm = flat["runtime.strategy"], flat["runtime.all_reduce"]
    legal = _ALL_REDUCE.get(strategy, ("auto",))
    if algorithm not in legal:
        raise UserError(
            f"runtime.all_reduce='{algorithm}' is not one that runtime.strategy='{strategy}' has: {', '.join(legal)}."
            " Use --config.runtime.all_reduce=auto."
        )
    if strategy not in ("one_device", "parameter_server") and flat["train.compile"] == "xla_update":
        raise UserError(
            f"train.compile='xla_update' cannot be had with runtime.strategy='{strategy}': XLA cannot assign to the"
            " copies of a variable. Use --config.train.compile=auto."
        )
    devices, virtual = flat["runtime.devices"], flat["runtime.virtual_devices"]
    if virtual and devices > virtual:
        raise UserError(
            f"runtime.devices={devices} is more than runtime.virtual_devices={virtual}."
            f" Use --config.runtime.virtual_devices={devices}."
        )


def _check_asynchronous(flat: Mapping[str, Any]) -> None:
    """What needs that all see the same weights after the same step, or variables on the device that computes."""
    if flat["runtime.strategy"] != "parameter_server":
        return
    for key, legal, why in (
        ("train.compile", ("graph", "auto"), "XLA cannot read weights that lie on another device"),
        ("ema.decay", (0,), "an average would read all weights after every update"),
        ("train.on_nonfinite", ("stop", "skip"), "what other workers did meanwhile cannot be undone"),
        ("loss_scale.name", ("auto", "none"), "updates are not in the order that a loss scale counts"),
        ("train.precision", ("float32", "float64", "bfloat16"), "float16 needs a loss scale"),
    ):
        if flat[key] not in legal:
            raise UserError(
                f"{key}={flat[key]!r} cannot be had with runtime.strategy='parameter_server': {why}."
                f" Use --config.{key}={legal[0]}."
            )


def with_replicas(config: ConfigDict, replicas: int) -> ConfigDict:
    """The config of a run on so many replicas: the batch size is the global one, and each replica gets its share.

    Raises:
      UserError: a batch that does not divide.
    """
    if config.data.replica_batch_size:
        config = config.copy_and_resolve_references().unlock()
        config.data.batch_size = config.data.replica_batch_size * replicas
        config = locked(config)
    parts = config.train.micro_batches
    of = f"{replicas} replicas" + (f" of {parts} micro-batches" if parts > 1 else "")
    for key, size, pieces in (
        ("data.batch_size", config.data.batch_size, replicas * parts),
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


def _check_loss_scale(flat: Mapping[str, Any]) -> None:
    name, precision = flat["loss_scale.name"], flat["train.precision"]
    if precision == "float16" and name == "none":
        raise UserError(
            "train.precision='float16' needs a loss scale, or small gradients become 0, but loss_scale.name='none'."
            " Use --config.loss_scale.name=dynamic."
        )
    if name == "auto" and precision != "float16":
        base = flatten(base_config())
        for key in flat:
            if key.startswith("loss_scale.") and flat[key] != base[key]:
                raise UserError(
                    f"{key}={flat[key]!r} has no effect: with loss_scale.name='auto' only train.precision='float16' has"
                    f" a loss scale, and it is '{precision}'. Use --config.loss_scale.name=dynamic."
                )
    low, start, high = (flat[f"loss_scale.{key}"] for key in ("floor", "initial", "ceiling"))
    if name in ("auto", "dynamic") and not low <= start <= high:
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
    boundaries, factors = flat["schedule.boundaries"], flat["schedule.factors"]
    if name == "piecewise" and (not boundaries or len(boundaries) != len(factors)):
        raise UserError(
            f"schedule.name='piecewise' needs as many schedule.factors ({len(factors)}) as schedule.boundaries"
            f" ({len(boundaries)}), at least one. Type e.g. --config.schedule.boundaries=\"('2 epochs','4 epochs')\""
            ' --config.schedule.factors="(0.1,0.01)".'
        )


def to_steps(duration: str, steps_per_epoch: float, batch_size: int, total_steps: int | None = None) -> int:
    """'2 epochs' -> steps, rounded up so that no part is lost; '' -> 0. At least 1 unless ''."""
    if not duration:
        return 0
    match = _DURATION.fullmatch(duration)
    if match is None:
        raise UserError(f"'{duration}' is not a duration; write e.g. '2 epochs'.")
    amount, unit = float(match[1]), match[2].lower()
    if unit == "epoch":
        amount *= steps_per_epoch
    elif unit == "example":
        amount /= batch_size
    elif unit in ("%", "percent"):
        if total_steps is None:
            raise UserError(f"'{duration}' is a share of a total that is not known yet.")
        amount *= total_steps / 100
    return max(1, math.ceil(amount - 1e-9))


def resolve(config: ConfigDict, steps_per_epoch: float) -> FrozenConfigDict:
    """Returns the frozen config in which every duration is a number of steps (0 = never).

    Args:
      config: as returned by `finalize`.
      steps_per_epoch: steps in which the training split is seen once; not whole under `data.remainder=carry`.

    Raises:
      UserError: a warm-up or boundary that lies past the end of the run.
    """
    batch_size = config.data.batch_size
    total = to_steps(config.train.duration, steps_per_epoch, batch_size)

    def steps(duration: str) -> int:
        return to_steps(duration, steps_per_epoch, batch_size, total)

    resolved = config.to_dict()
    for key in DURATIONS:
        section, _, name = key.partition(".")
        resolved[section][name] = steps(config[section][name])
    boundaries = tuple(steps(value) for value in config.schedule.boundaries)
    resolved["schedule"]["boundaries"] = boundaries
    if any(later <= earlier for earlier, later in zip(boundaries, boundaries[1:], strict=False)):
        raise UserError(f"schedule.boundaries={config.schedule.boundaries} are steps {boundaries}: they must increase.")
    for key, last in (("warmup", resolved["schedule"]["warmup"]), ("boundaries", max(boundaries, default=0))):
        if last >= total:
            raise UserError(
                f"schedule.{key}={config.schedule[key]!r} reaches step {last}, but train.duration="
                f"'{config.train.duration}' ends at step {total}. Shorten schedule.{key}."
            )
    return FrozenConfigDict(resolved)
