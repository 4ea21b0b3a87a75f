"""Batches whose order is a pure function of (seed, step): the cursor is the step itself.

    batches = make_batches(source, config, training=True, transform=to_float)
    batches.at(1_000_000)                 # {'image': …, 'label': …, 'weight': …}; no step before it is computed

Every batch has `weight` [batch] float32: that of the example, 1 unless its source has a field `weight`, and 0 for
padding. `at` is the contract; the step uses its two halves, `plan` (once for a block of steps) and `take` (for one step
of it), so that thousands of indices are computed at once. Resident batches plan inside the compiled block; streamed
ones on the host, through tf.data.
"""

import copy
import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow as tf
from absl import logging
from ml_collections import ConfigDict

from framework import rng
from framework.data.fields import (
    Batch,
    Fields,
    Finish,
    Transform,
    check_same,
    check_weights,
    checked,
    fields_of,
    named_shapes,
)
from framework.data.order import Order
from framework.data.reading import RetryingReader
from framework.data.sources import Source, shares_of
from framework.distribute.memory import host_memory
from framework.errors import UserError

# Positions in which a mixture has each source in exact proportion, and so the resolution of its weights.
_MIXTURE_CYCLE = 10_000
# Bytes of batches that may lie ready, where `data.prefetch_batches` of them take less.
_SMALL = 2**26
_SAMPLED = 16  # examples of a source that it is known by


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


def _indices(batches: Any, order: Order, step: int) -> dict[str, np.ndarray]:
    source, index, _ = (rows[0].numpy() for rows in order.at(tf.constant([step], tf.int64)))
    return {"source": source, "index": index, "weight": batches.at(step)["weight"].numpy()}


class Resident:
    """Batches of examples that lie on the device as tensors; gathered inside the compiled block."""

    is_resident = True
    ahead: int | None = None
    training: bool | None = None  # what make_batches was given

    def __init__(
        self,
        sources: Sequence[Source],
        order: Order,
        transform: Transform | None,
        arrays: Sequence[Mapping[str, np.ndarray]],
    ) -> None:
        self.batch_size, self.steps_per_epoch = order.batch_size, order.steps_per_epoch
        self.origin = _origin(sources, "resident")
        self._order, self._finish = order, Finish(transform, order.batch_size, lambda: self.at(0))
        self._key = rng.key(order.seed)
        self._examples = {name: tf.constant(np.concatenate([part[name] for part in arrays])) for name in arrays[0]}
        self._offsets = tf.constant(np.cumsum([0, *order.sizes[:-1]]), tf.int64)

    def part(self, first: int, count: int) -> "Resident":
        """Its examples are copied to the device in whose scope this is called."""
        part = copy.copy(self)
        part._order = dataclasses.replace(self._order, first=first, count=count)
        part._examples = {name: tf.identity(examples) for name, examples in self._examples.items()}
        return part

    @property
    def examples(self) -> Batch:
        """All of them, [examples, ...]."""
        return self._examples

    def of(self, examples: Batch) -> "Resident":
        """The same batches, of the same `examples` on another device."""
        other = copy.copy(self)
        other._examples = examples
        return other

    def at(self, step: Any) -> Batch:
        step = tf.cast(step, tf.int64)
        with rng.scope(self._key, step):
            return self.take(self.plan(step, 1, 1), tf.constant(0))

    def plan(self, first_step: Any, steps: Any, size: int) -> Batch:
        del steps  # indices of filler rows cost nothing
        source, index, weight = self._order.at(tf.cast(first_step, tf.int64) + tf.range(size, dtype=tf.int64))
        return {"index": index + tf.gather(self._offsets, source), "weight": weight}

    def take(self, plan: Batch, index: tf.Tensor) -> Batch:
        rows = tf.gather(plan["index"], index)  # [places]
        batch = {name: tf.gather(examples, rows) for name, examples in self._examples.items()}
        with rng.at_example(self._order.first):
            return self._finish(batch, tf.gather(plan["weight"], index))

    def indices(self, step: int) -> dict[str, np.ndarray]:
        return _indices(self, self._order, step)


class Streamed:
    """Batches read from sources that do not fit the device, prepared side by side by tf.data, in exact order."""

    is_resident = False
    training: bool | None = None

    def __init__(
        self,
        sources: Sequence[Source],
        order: Order,
        transform: Transform | None,
        fields: Fields,
        parallel_calls: int,
        prefetch: int,
        make_reader: Callable[[], RetryingReader],
    ) -> None:
        self.batch_size, self.steps_per_epoch = order.batch_size, order.steps_per_epoch
        self.origin = _origin(sources, "stream")
        self.ahead: int | None = prefetch
        self._sources, self._order, self._fields = sources, order, fields
        self._finish = Finish(transform, order.batch_size, lambda: self.at(0))
        self._key = rng.key(order.seed)
        self._parallel_calls, self._prefetch = parallel_calls, prefetch
        self._make_reader = make_reader
        self._open()

    def part(self, first: int, count: int) -> "Streamed":
        """It reads no other examples than its own."""
        part = copy.copy(self)
        part._order = dataclasses.replace(self._order, first=first, count=count)
        part._open()
        return part

    def _open(self) -> None:
        self._reader = self._make_reader()
        # Traced once for all seeks, and without autograph as everywhere.
        self._traced = tf.function(self._prepare, input_signature=[tf.TensorSpec([], tf.int64)], autograph=False)
        self._next_step = -1
        self._iterator: Iterator[Batch] = iter(())

    def at(self, step: Any) -> Batch:
        return self._prepare(tf.cast(step, tf.int64))

    def plan(self, first_step: Any, steps: Any, size: int) -> Batch:
        first, count = int(first_step), int(steps)
        if first != self._next_step:
            self._close()
            self._iterator = iter(self._dataset(first))
        self._next_step = first + count
        batches = self._next(count)
        filled = batches + [batches[-1]] * (size - count)
        return {name: tf.stack([batch[name] for batch in filled]) for name in batches[0]}

    def take(self, plan: Batch, index: tf.Tensor) -> Batch:
        return {name: tf.gather(rows, index) for name, rows in plan.items()}

    def indices(self, step: int) -> dict[str, np.ndarray]:
        return _indices(self, self._order, step)

    def _next(self, count: int) -> list[Batch]:
        try:
            with named_shapes():
                return [next(self._iterator) for _ in range(count)]
        except tf.errors.OpError as error:
            failure = self._reader.failure()
            self._close()
            if failure is None:
                raise
            raise failure from error

    def _close(self) -> None:
        """Ends reading ahead, which would hold its threads; the next `plan` starts anew."""
        self._reader.stop()
        self._iterator, self._next_step = iter(()), -1
        self._reader = self._make_reader()

    def _dataset(self, first_step: int) -> tf.data.Dataset:
        steps = tf.data.Dataset.range(first_step, np.iinfo(np.int64).max)
        prepared = steps.map(self._traced, num_parallel_calls=self._parallel_calls, deterministic=True)
        return prepared.prefetch(self._prefetch)

    def _prepare(self, step: tf.Tensor) -> Batch:
        source, index, padding = (rows[0] for rows in self._order.at(step[tf.newaxis]))
        arrays = tf.numpy_function(
            self._rows,
            (source, index, step),
            [spec.dtype for spec in self._fields.values()],
            stateful=False,  # under op determinism tf.data would run a stateful one batch after the other
        )
        arrays = [arrays] if tf.is_tensor(arrays) else arrays  # of one field, eagerly
        batch = {
            name: tf.ensure_shape(array, (self._order.places, *spec.shape))
            for (name, spec), array in zip(self._fields.items(), arrays, strict=True)
        }
        with rng.scope(self._key, step, self._order.first):
            return self._finish(batch, padding)

    def _rows(self, source: np.ndarray, index: np.ndarray, step: int) -> list[np.ndarray]:
        """Rows of the sources for the batch of a step, in the order asked for; one array for each of `_fields`."""
        with self._reader.noting(int(step)):
            if len(self._sources) == 1:
                arrays = self._read(0, index, int(step))
                return [arrays[name] for name in self._fields]
            rows = {
                name: np.empty((len(index), *spec.shape), spec.dtype.as_numpy_dtype)
                for name, spec in self._fields.items()
            }
            for number in np.unique(source):
                here = source == number
                for name, array in self._read(number, index[here], int(step)).items():
                    rows[name][here] = array
            return list(rows.values())

    def _read(self, number: int, index: np.ndarray, step: int) -> dict[str, np.ndarray]:
        source = self._sources[number]
        taken = self._reader.read(source, index, step)
        arrays = checked(taken, self._fields, len(index), f"batch {step} of '{source.origin}'")
        if "weight" in arrays:
            check_weights(arrays["weight"], source.origin, index)
        return arrays


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
        shares=_shares([weight for _, weight in pairs]),
        batch_size=config.data.batch_size if training else config.eval.batch_size,
        seed=config.seed,
        shuffle=training and config.data.shuffle,
        remainder=config.data.remainder if training else "pad",
    )
    _check_order(order)
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
    if any(part.has_own_take for part in parts):
        return False  # what its `take` gives may be far more than its arrays
    size, memory, limit = sum(part.nbytes for part in parts), host_memory(), config.data.resident_limit_mb
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


def _shares(weights: Sequence[float]) -> tuple[int, ...]:
    """Whole positions of each source in a cycle, by largest remainder."""
    if len(weights) == 1:
        return (1,)
    if any(not math.isfinite(weight) or weight <= 0 for weight in weights):
        raise UserError(
            f"mixture weights {tuple(weights)} must all be positive. Leave a source out to give it nothing."
        )
    exact = np.asarray(weights, np.float64) / np.sum(weights) * _MIXTURE_CYCLE
    shares = np.floor(exact).astype(int)
    for extra in np.argsort(shares - exact, kind="stable")[: _MIXTURE_CYCLE - shares.sum()]:
        shares[extra] += 1
    if shares.min() == 0:
        raise UserError(f"mixture weights {tuple(weights)}: the smallest share must be at least 1/{_MIXTURE_CYCLE}.")
    return tuple(int(share) for share in shares // np.gcd.reduce(shares))


def _check_order(order: Order) -> None:
    if len(order.sizes) > 1 and order.remainder != "wrap":
        raise UserError(
            f"data.remainder='{order.remainder}': a mixture has no epochs. Use --config.data.remainder=wrap."
        )
    if order.slots == 0:
        raise UserError(
            f"data.batch_size={order.batch_size} is more than the {order.sizes[0]} examples, and data.remainder='drop'"
            f" drops all of them. Use --config.data.batch_size={order.sizes[0]} or --config.data.remainder=wrap."
        )


def _origin(sources: Sequence[Source], placement: str) -> dict[str, Any]:
    return {
        "placement": placement,
        "source": " + ".join(source.origin for source in sources),
        "examples": sum(len(source) for source in sources),
        "bytes": sum(source.nbytes for source in sources),
        "subset": any(source.is_subset for source in sources),
        "sample": _sample(sources),
    }


def _sample(sources: Sequence[Source]) -> str | None:
    """SHA-256 of some examples, by which a run knows its data again; None of a source that reads in its own way."""
    digest = hashlib.sha256()
    for source in sources:
        if source.has_own_take:
            return None
        rows = np.unique(np.linspace(0, len(source) - 1, _SAMPLED).astype(np.int64))
        for name, array in sorted(source.take(rows).items()):
            digest.update(f"{name} {array.dtype} {array.shape} {len(source)} ".encode())
            # Of objects, such as texts, the bytes are addresses.
            digest.update(repr(array.tolist()).encode() if array.dtype.hasobject else array.tobytes())
    return digest.hexdigest()
