"""Streamed batches: tf.data reads them ahead, in exact order, from sources that do not fit the device."""

import copy
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from framework import rng
from framework.data.fields import Batch, Fields, Finish, Transform, check_weights, checked, named_shapes
from framework.data.order import Order, indices_of
from framework.data.reading import RetryingReader
from framework.data.sources import IndexedSource, close


class Streamed:
    """Reads batches in parallel threads of tf.data, in exact order; implements `Batches`.

    Args:
      sources: the sources, by the numbers that `order` gives them.
      origin: where the examples come from, for result.json.
      transform: applied to each batch, or None.
      fields: the fields of the sources.
      parallel_calls: batches that are prepared at the same time.
      make_reader: returns a new reader, one for each tf.data iterator.
      order: tells which examples a step has.
      prefetch: batches that are read ahead.
      lengths: {field: length} to which fields are cut, of a bucket.
    """

    is_resident = False
    training: bool | None = None
    to_pictures: Callable[[Batch], Batch] = dict  # of the transform
    classes: tuple[str, ...] = ()  # names by label, of sources that say them

    def __init__(
        self,
        sources: Sequence[IndexedSource],
        origin: dict[str, Any],
        transform: Transform | None,
        fields: Fields,
        parallel_calls: int,
        make_reader: Callable[[], RetryingReader],
        order: Order,
        prefetch: int,
        lengths: Mapping[str, int] | None = None,
    ) -> None:
        self.batch_size = order.batch_size
        self.steps_per_epoch = order.steps_per_epoch
        self.origin = origin
        self.ahead: int | None = prefetch
        self._sources = sources
        self._order = order
        self._fields = fields
        self._finish = Finish(transform, order.batch_size, lambda: self.at(0), lengths)
        self._key = rng.key(order.seed)
        self._parallel_calls = parallel_calls
        self._prefetch = prefetch
        self._make_reader = make_reader
        self._open()

    @property
    def advice(self) -> str:
        """Returns what to change if training waits for these batches."""
        return (
            f"Prepare more batches at a time (--config.data.parallel_calls={2 * self._parallel_calls}), keep the"
            " examples on the device if they fit (--config.data.placement=resident), or do less in `take` and"
            " `transform`: decode once, and store the result."
        )

    def shard(self, first: int, count: int) -> "Streamed":
        """Returns the batches of one replica, which read the examples of its places alone."""
        shard = copy.copy(self)
        shard._order = self._order.shard(first, count)
        shard._open()
        self._shards.add(shard)
        return shard

    def close(self) -> None:
        """Stops reading ahead, here and in the shards, and closes the sources; the next read opens them again."""
        for batches in (self, *self._shards):
            batches._close()
        for source in self._sources:
            close(source)

    def _open(self) -> None:
        self._shards: weakref.WeakSet[Streamed] = weakref.WeakSet()
        self._reader = self._make_reader()
        # One trace serves all seeks; autograph is off, as everywhere in the framework.
        self._traced = tf.function(self._prepare, input_signature=[tf.TensorSpec([], tf.int64)], autograph=False)
        self._next_step = -1
        self._iterator: Iterator[Batch] = iter(())

    def at(self, step: Any) -> Batch:
        return self._prepare(tf.cast(step, tf.int64))

    def weighted(self, step: Any, factors: tf.Tensor) -> Batch:
        """Returns the batch of a step as if `factors` [batch] multiplied the weights of its examples; 0 is padding."""
        return self._prepare(tf.cast(step, tf.int64), factors)

    def plan(self, first_step: Any, steps: Any, size: int) -> Batch:
        first = self._order.next(int(first_step))
        count = int(steps)
        if first != self._next_step:
            self._close()
            self._iterator = iter(self._dataset(first))
        self._next_step = first
        for _ in range(count):
            self._next_step = self._order.next(self._next_step + 1)
        batches = self._next(count)
        filled = batches + [batches[-1]] * (size - count)
        return {name: tf.stack([batch[name] for batch in filled]) for name in batches[0]}

    def take(self, plan: Batch, index: tf.Tensor) -> Batch:
        return {name: tf.gather(rows, index) for name, rows in plan.items()}

    def indices(self, step: int) -> dict[str, np.ndarray]:
        return indices_of(self, self._order, step)

    @property
    def raw_count(self) -> int:
        """The number of examples of all sources."""
        return sum(map(len, self._sources))

    def raw(self, index: np.ndarray) -> dict[str, np.ndarray]:
        """Returns examples as the sources give them, by their numbers among those of all sources."""
        ends = np.cumsum([*map(len, self._sources)])
        source = np.searchsorted(ends, index, "right")
        row = index - np.concatenate([[0], ends[:-1]])[source]
        return dict(zip(self._fields, self._rows(source, row, 0), strict=True))

    def _next(self, count: int) -> list[Batch]:
        """Returns the next batches; raises the error of the source itself, which tf.data replaces by one of its own."""
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
        """Stops reading ahead and frees its threads; the next `plan` starts a new iterator."""
        self._reader.stop()
        self._iterator = iter(())
        self._next_step = -1
        self._reader = self._make_reader()

    def _dataset(self, first_step: int) -> tf.data.Dataset:
        prepared = self._order.steps(first_step).map(
            self._traced, num_parallel_calls=self._parallel_calls, deterministic=True
        )
        return prepared.prefetch(self._prefetch)

    def _prepare(self, step: tf.Tensor, factors: tf.Tensor | None = None) -> Batch:
        """Returns the batch of a step; traced into the tf.data pipeline, and called eagerly by `at`."""
        source, index, padding = (rows[0] for rows in self._order.at(step[tf.newaxis]))
        padding = padding if factors is None else padding * factors
        arrays = tf.numpy_function(
            self._rows,
            (source, index, step),
            [spec.dtype for spec in self._fields.values()],
            stateful=False,  # under op determinism tf.data runs a stateful function for one batch at a time
        )
        arrays = [arrays] if tf.is_tensor(arrays) else arrays  # eagerly, a single field is not a list
        batch = {
            name: tf.ensure_shape(array, (self._order.places, *spec.shape))
            for (name, spec), array in zip(self._fields.items(), arrays, strict=True)
        }
        offsets = np.cumsum([0, *self._order.sizes[:-1]])
        order_fields = {}
        if self._finish.needs:
            order_fields["index"] = index + tf.gather(tf.constant(offsets, tf.int64), source)
            order_fields["epoch"] = self._order.epochs(step[tf.newaxis])[0]
        with rng.scope(self._key, step, self._order.first):
            return self._finish(batch, padding, order_fields)

    def _rows(self, source: np.ndarray, index: np.ndarray, step: int) -> list[np.ndarray]:
        """Returns the rows of a batch, in the order of `source` and `index`: one array for each field."""
        with self._reader.noting(int(step)):
            if len(self._sources) == 1:
                arrays = self._read(0, index, int(step))
                return [arrays[name] for name in self._fields]
            rows = {
                name: np.empty((len(index), *spec.shape), spec.dtype.as_numpy_dtype)
                for name, spec in self._fields.items()
            }
            for number in np.unique(source):
                is_here = source == number
                for name, array in self._read(number, index[is_here], int(step)).items():
                    rows[name][is_here] = array
            return list(rows.values())

    def _read(self, number: int, index: np.ndarray, step: int) -> dict[str, np.ndarray]:
        """Returns checked rows of one source."""
        source = self._sources[number]
        taken = self._reader.read(source, index, step)
        arrays = checked(taken, self._fields, len(index), f"batch {step} of '{source.origin}'")
        if "weight" in arrays:
            check_weights(arrays["weight"], source.origin, index)
        return arrays
