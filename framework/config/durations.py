"""Durations in any unit: checked as text, and turned into steps once the size of the data is known.

to_steps('2 epochs', steps_per_epoch=468.75, batch_size=128)     # 938
resolved = resolve(config, steps_per_epoch)                      # every duration a number of steps; frozen
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from ml_collections import ConfigDict, FrozenConfigDict

from framework.config.keys import KEYS
from framework.config.keys.prune import is_pruned
from framework.errors import UserError

DURATIONS = tuple(name for name, key in KEYS.items() if key.duration)
# The largest number of each unit: small enough that the duration in steps fits an int64.
UNITS = {"step": 1e15, "epoch": 1e6, "example": 1e15, "%": 100, "percent": 100}

_UNTIL = re.compile(r"(?<=\buntil=)\S+")  # of a group of parameters, see optimizer.groups
_DURATION = re.compile(rf"\s*([0-9]+(?:\.[0-9]+)?(?:e[0-9]+)?)\s*({'|'.join(UNITS)})s?\s*", re.IGNORECASE)


class Epoch(Protocol):
    """Counts the examples of steps that have different numbers of them, such as batches of several shapes."""

    @property
    def examples_per_epoch(self) -> int: ...

    def steps_for(self, examples: float) -> float:
        """Returns the steps in which so many examples are seen, not rounded."""
        ...


def check_duration(key: str, value: Any) -> None:
    """Raises UserError unless `value` is a duration that `key` can have."""
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


def to_steps(
    duration: str,
    steps_per_epoch: float,
    batch_size: int,
    total_steps: int | None = None,
    epoch: Epoch | None = None,
) -> int:
    """Returns a duration in steps, rounded up so that no part is lost: at least 1, but 0 for ''.

    Args:
      duration: such as '2 epochs'.
      steps_per_epoch: steps of an epoch.
      batch_size: examples of a step.
      total_steps: steps of the run, for percent.
      epoch: counts the examples of steps in place of the two numbers above.
    """
    if not duration:
        return 0
    match = _DURATION.fullmatch(duration)
    if match is None:
        raise UserError(f"'{duration}' is not a duration; write e.g. '2 epochs'.")
    amount, unit = float(match[1]), match[2].lower()
    if epoch is not None and unit in ("epoch", "example"):
        amount = epoch.steps_for(amount * (epoch.examples_per_epoch if unit == "epoch" else 1))
    elif unit == "epoch":
        amount *= steps_per_epoch
    elif unit == "example":
        amount /= batch_size
    elif unit in ("%", "percent"):
        if total_steps is None:
            raise UserError(f"'{duration}' is a share of a total that is not known yet.")
        amount *= total_steps / 100
    return max(1, math.ceil(amount - 1e-9))


def resolve(config: ConfigDict, steps_per_epoch: float, epoch: Epoch | None = None) -> FrozenConfigDict:
    """Returns the frozen config in which every duration is a number of steps (0 = never).

    Args:
      config: as returned by `finalize`.
      steps_per_epoch: steps in which the training split is seen once; not whole under `data.remainder=wrap`, and
        infinite if the length of the data is not known.
      epoch: see `to_steps`.

    Raises:
      UserError: epochs of data whose length is not known; a warm-up, boundary, group's end, end of pruning, begin of
        clusters, begin or freeze of quantisation past the end of the run; or boundaries, or begin and end of pruning
        and begin of clusters, that do not increase.
    """
    if math.isinf(steps_per_epoch):
        _refuse_epochs(config)
    batch_size = config.data.batch_size
    total = to_steps(config.train.duration, steps_per_epoch, batch_size, epoch=epoch)

    def steps(duration: str) -> int:
        return to_steps(duration, steps_per_epoch, batch_size, total, epoch)

    resolved = config.to_dict()
    for key in DURATIONS:
        section, _, name = key.partition(".")
        resolved[section][name] = steps(config[section][name])
    boundaries = tuple(steps(value) for value in config.schedule.boundaries)
    resolved["schedule"]["boundaries"] = boundaries
    resolved["optimizer"]["groups"] = tuple(
        _group_in_steps(str(group), steps, total) for group in config.optimizer.groups
    )
    if any(later <= earlier for earlier, later in zip(boundaries, boundaries[1:], strict=False)):
        raise UserError(f"schedule.boundaries={config.schedule.boundaries} are steps {boundaries}: they must increase.")
    for key, last in (("warmup", resolved["schedule"]["warmup"]), ("boundaries", max(boundaries, default=0))):
        if last >= total:
            raise UserError(
                f"schedule.{key}={config.schedule[key]!r} reaches step {last}, but train.duration="
                f"'{config.train.duration}' ends at step {total}. Shorten schedule.{key}."
            )
    if resolved["quantize"]["name"] != "none":
        _check_quantize(config, resolved["quantize"], total)
    if is_pruned(resolved["prune"]):
        _check_prune(config, resolved["prune"], total)
    if resolved["cluster"]["name"] != "none":
        _check_cluster(config, resolved, total)
    return FrozenConfigDict(resolved)


def _check_prune(config: ConfigDict, resolved: Mapping[str, Any], total: int) -> None:
    """Raises UserError unless masks begin before they end, and end within the run."""
    begin, end = resolved["begin"], resolved["end"]
    if resolved["schedule"] != "keep" and not begin < end <= total:
        raise UserError(
            f"prune.begin='{config.prune.begin}' and prune.end='{config.prune.end}' are updates {begin} and {end}: they"
            f" must increase and be within the run, which has {total} steps. Type e.g. --config.prune.begin=10%"
            " --config.prune.end=75%."
        )


def _check_cluster(config: ConfigDict, resolved: Mapping[str, Any], total: int) -> None:
    """Raises UserError unless clusters are found within the run, and after the last masks."""
    begin, prune = resolved["cluster"]["begin"], resolved["prune"]
    if begin >= total:
        raise UserError(
            f"cluster.begin='{config.cluster.begin}' is update {begin} of a run of {total} steps, so nothing would be"
            " clustered. Type e.g. --config.cluster.begin=50%."
        )
    if is_pruned(prune) and prune["schedule"] != "keep" and begin < prune["end"]:
        raise UserError(
            f"cluster.begin='{config.cluster.begin}' is update {begin}, before the last masks of"
            f" prune.end='{config.prune.end}', update {prune['end']}: later masks would take weights out of their"
            f" clusters. Type --config.cluster.begin='{prune['end']} steps', or --config.prune.schedule=keep."
        )


def _check_quantize(config: ConfigDict, resolved: Mapping[str, Any], total: int) -> None:
    """Raises UserError unless rounding begins, and ranges are frozen, within the run."""
    for key, why in (("begin", "nothing would be rounded"), ("freeze", "no range would stay")):
        if resolved[key] >= total:
            raise UserError(
                f"quantize.{key}='{getattr(config.quantize, key)}' is update {resolved[key]} of a run of {total} steps,"
                f" so {why}. Type e.g. --config.quantize.{key}=50%, or --config.quantize.{key}=."
            )


def _group_in_steps(group: str, steps: Callable[[str], int], total: int) -> str:
    """Returns a group of `optimizer.groups` whose 'until' is a number of steps."""
    pattern, colon, settings = group.rpartition(":")
    for until in _UNTIL.findall(settings):
        if steps(until) > total:
            raise UserError(
                f"optimizer.groups: '{group}' ends at step {steps(until)}, but train.duration ends at step {total}."
                " Leave until out, or shorten it."
            )
    return pattern + colon + _UNTIL.sub(lambda match: f"{steps(match[0])}steps", settings)


def _refuse_epochs(config: ConfigDict) -> None:
    """Raises UserError for the durations that count epochs."""
    values = {key: config[key.partition(".")[0]][key.partition(".")[2]] for key in DURATIONS}
    values["schedule.boundaries"] = ",".join(config.schedule.boundaries)
    values["optimizer.groups"] = ",".join(map(str, config.optimizer.groups))
    if counted := [key for key, value in values.items() if re.search(r"\d\s*epoch", value, re.IGNORECASE)]:
        raise UserError(
            f"{counted[0]}='{values[counted[0]]}' counts epochs, but the length of the training data is not known. Type"
            f" steps, such as {' '.join(f'--config.{key}=…' for key in counted)}; or leave out repeat(), and write"
            " dataset.apply(tf.data.experimental.assert_cardinality(…))."
        )
