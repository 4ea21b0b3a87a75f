"""Batches whose order is a pure function of (seed, step): the cursor is the step itself.

    batches = make_batches(source, config, training=True, transform=to_float)
    batches.at(1_000_000)                 # {'image': …, 'label': …, 'weight': …}; no step before it is computed

Every batch has `weight` [batch] float32: that of the example, 1 unless its source has a field `weight`, and 0 for
padding. `at` is the contract; the step uses its two halves, `plan` (once for a block of steps) and `take` (for one step
of it), so that thousands of indices are computed at once. Resident batches plan inside the compiled block; streamed
ones on the host, through tf.data.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow as tf
from absl import logging
from ml_collections import ConfigDict

from framework.config import UserError
from framework.data.fields import Batch, Fields, Transform, check_same, check_weights, checked, fields_of
from framework.data.order import Order, check_order, cycle_of
from framework.data.reading import RetryingReader
from framework.data.resident import Resident
from framework.data.sources import Source, shares_of
from framework.data.streaming import Streamed
from framework.distribute.memory import host_memory
from framework.errors import UserError

# Bytes of batches that may lie ready, where `data.prefetch_batches` of them take less.
_SMALL = 2**26


class Batches(Protocol):
    """What the step needs of a data split."""

    batch_size: int
    steps_per_epoch: float  # steps in which each example is seen once
    is_resident: bool  # `plan` may be called inside a compiled function
    origin: dict[str, Any]  # where the examples came from, for result.json

    @property
    def ahead(self) -> int | None:
        """Most steps of a plan whose batches are made while the steps before are trained; None for any number."""
        ...

    def at(self, step: Any) -> Batch:
        """The batch of one step; tensors [batch, ...], with 'weight'."""
        ...

    def indices(self, step: int) -> dict[str, np.ndarray]:
        """{'source', 'index', 'weight'}, each [batch]: which examples the batch of a step holds, with their weights."""
        ...

    def plan(self, first_step: Any, steps: Any, size: int) -> Batch:
        """What `take` needs for `steps` steps from `first_step`; tensors [size, ...], rows past `steps` are filler."""
        ...

    def take(self, plan: Batch, index: tf.Tensor) -> Batch:
        """The batch of row `index` of a plan. Call it in the `rng.scope` of its step."""
        ...

    def part(self, first: int, count: int) -> "Batches":
        """The same, of places first … first + count - 1 of each batch alone: what one replica reads."""
        ...


def make_batches(
    sources: Source | Sequence[tuple[Source, float]],
    config: ConfigDict,
    *,
    training: bool,
    transform: Transform | None = None,
) -> Batches:
    """Batches of a source, or of a weighted mixture of sources with the same arrays.

    Args:
      sources: one source, or (source, weight) pairs; a weight is that source's share of the examples seen.
      config: finalized; reads `seed` and `data.*`, and `eval.batch_size` when not training.
      training: shuffled and endless, else in file order with a padded last batch.
      transform: {name: [batch, ...]} -> the same with other tensors; traced, compiled; draws through `rng`.

    Raises:
      UserError: a batch larger than the data, weights that cannot be met, a remainder a mixture cannot have, or a
        mixture that is not for training.
    """
    pairs = shares_of(sources)
    if transform is not None and not callable(transform):
        raise UserError(f"make_batches: transform is of type {type(transform).__name__}, not a function of the batch.")
    parts = [source for source, _ in pairs]
    make_reader = functools.partial(RetryingReader, config.data.retries, config.data.retry_seconds)
    fields = _fields(parts, make_reader)
    if len(parts) > 1 and not training:
        names = ", ".join(repr(part.origin) for part in parts)
        raise UserError(
            f"a mixture ({names}) has no end, so it cannot be an evaluation split."
            " Name each source in eval.splits and return it from make_data."
        )
    order = Order(
        sizes=tuple(len(part) for part in parts),
        shares=cycle_of([weight for _, weight in pairs]),
        batch_size=config.data.batch_size if training else config.eval.batch_size,
        seed=config.seed,
        shuffle=training and config.data.shuffle,
        remainder=config.data.remainder if training else "pad",
    )
    check_order(order)
    batches: Resident | Streamed
    if _is_resident(parts, config):
        batches = Resident(parts, order, transform, [_whole(part, fields, make_reader) for part in parts])
    else:
        ahead = _ahead(parts, order, config)
        batches = Streamed(parts, order, transform, fields, config.data.parallel_calls, ahead, make_reader)
    batches.training = training
    return batches


def _fields(parts: Sequence[Source], make_reader: Callable[[], RetryingReader]) -> Fields:
    """Those that all parts have; what has a `take` of its own is read once to learn them."""
    found = []
    for part in parts:
        what = f"'{part.origin}'"
        if len(part) == 0 or len(part) >= 2**31:
            raise UserError(f"{what} has {len(part)} examples; a source has between 1 and 2**31 - 1.")
        if part.has_own_take:
            first = make_reader().read(part, np.zeros(1, np.int64), 0)
            found.append(fields_of(checked(first, None, 1, what), what))
        else:
            found.append(fields_of(part.arrays, what))
            if "weight" in part.arrays:
                check_weights(part.arrays["weight"], part.origin)
        check_same(found[0], f"'{parts[0].origin}'", found[-1], what)
    return found[0]


def _whole(part: Source, fields: Fields, make_reader: Callable[[], RetryingReader]) -> Mapping[str, np.ndarray]:
    """All examples of a source."""
    if not part.has_own_take:
        return part.arrays
    arrays = checked(make_reader().read(part, np.arange(len(part)), 0), fields, len(part), f"'{part.origin}'")
    if "weight" in arrays:
        check_weights(arrays["weight"], part.origin)
    return arrays


def _ahead(parts: Sequence[Source], order: Order, config: ConfigDict) -> int:
    """How many batches are read ahead: of small ones those of a whole block, whose call costs more than they do."""
    size = order.batch_size * sum(part.nbytes for part in parts) / sum(len(part) for part in parts)
    return max(config.data.prefetch_batches, min(config.train.block_steps, int(_SMALL / max(1, size))))


def _is_resident(parts: Sequence[Source], config: ConfigDict) -> bool:
    """What `data.placement` says; 'auto' goes by size and memory, alike at each start on a machine, and says so."""
    if config.data.placement != "auto":
        return config.data.placement == "resident"
    if any(source.has_own_take for source in sources):
        return False  # `take` may give far more than the arrays
    size, memory, limit = sum(source.nbytes for source in sources), host_memory(), config.data.resident_limit_mb
    if size > limit * 2**20:
        why = f"streamed: more than data.resident_limit_mb={limit}"
    elif memory is not None and 4 * size > memory:  # they are put together, and copied to the device
        why = f"streamed: more than a quarter of the {memory / 2**20:,.0f} MB of memory"
    else:
        why = "resident"
    names = " + ".join(part.origin for part in parts)
    logging.info("data.placement=auto: %s, %.0f MB, %s", names, size / 2**20, why)
    return why == "resident"


def epoch_steps(batches: Batches) -> int:
    """Steps of one pass over an evaluation split."""
    return math.ceil(batches.steps_per_epoch)
