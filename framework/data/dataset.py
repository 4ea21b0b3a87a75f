"""Batches of a tf.data pipeline: a stream that is read from its start, and skipped to the step of a run.

    dataset = tf.data.TFRecordDataset(files).map(parse).shuffle(10_000, seed=0).batch(cfg.data.batch_size)
    return data.make_batches(dataset, cfg, training=split == "train")

The elements are global batches, dicts of dense tensors. One process reads them, and its replicas share each batch. A
pipeline has no state of its own in a checkpoint: batch number `state.step` comes next. A resume, a rewind and a replay
have `make_data` build the pipeline again, and skip to that batch, which takes the time of reading so far. Data that are
read by index (`data/sources.py`) need no skipping.
"""

import copy
import functools
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging
from ml_collections import ConfigDict

from framework import rng
from framework.config import base_config
from framework.config.keys.runtime import SEVERAL_PROCESSES
from framework.data.fields import Batch, Fields, Finish, Transform, check_weight_field, check_weights, needs_of
from framework.data.skipping import Reading, hash_of
from framework.errors import UserError

_KEPT_BYTES = 2**26  # batches of a whole block are read ahead if they take no more, and so many are kept
_KEPT = 1000  # batches at most, unless a block has more
_OF_SHARDS = -1  # the place of batches that read what their shards read
_TEXT_BYTES = 2**16  # taken for the size of a string, which may be a picture
_NOT_READ = ("shuffle", "remainder", "placement", "retries", "retry_seconds")  # keys of `data`
_BY_INDEX = "Read the examples by index instead: arrays, or ArrayRecord files (framework/README.md, Sources)."


class DatasetBatches:
    """Reads global batches from a tf.data pipeline; implements `Batches`.

    Args:
      dataset: the pipeline.
      config: a finalized config.
      training: True repeats a pipeline that ends.
      transform: applied to each batch in the pipeline, or None.

    Attributes:
      name: names the pipeline in messages.
      to_pictures: that of the transform, for TensorBoard.
    """

    is_resident = False
    to_pictures: Callable[[Batch], Batch] = dict  # of the transform
    advice = (
        "Give the slow `map` of the pipeline num_parallel_calls=tf.data.AUTOTUNE, `cache` what does not change, or"
        " decode once and store the result."
    )

    def __init__(
        self, dataset: tf.data.Dataset, config: ConfigDict, training: bool, transform: Transform | None
    ) -> None:
        self.name = "the tf.data pipeline"
        self.training = training
        self.batch_size = config.data.batch_size if training else config.eval.batch_size
        self._key_of_size = "data.batch_size" if training else "eval.batch_size"
        self._dataset = dataset
        self._again: Callable[[], tf.data.Dataset] = lambda: dataset
        self._check_elements(dataset)
        self._parallel_calls = config.data.parallel_calls
        self._key = rng.key(config.seed)
        self.to_pictures: Callable[[Batch], Batch] = getattr(transform, "to_pictures", dict)
        self._finish = Finish(transform, self.batch_size, self._first_batch)
        self._first = 0
        self._count = self.batch_size
        fitting = self._fitting(dataset)
        self.ahead: int | None = max(config.data.prefetch_batches, min(config.train.block_steps, fitting))
        self._kept = max(2 * self.ahead, min(fitting, _KEPT))
        self.origin: dict[str, Any] = {
            "placement": "pipeline",
            "source": "a tf.data pipeline",
            "examples": None,
            "bytes": None,
            "subset": False,
            "sample": None,
        }
        self._fields: Fields = {}
        self._begin()

    @property
    def steps_per_epoch(self) -> float:
        """Returns the number of batches of the pipeline; infinity, of training alone, if it is not known."""
        return math.inf if self._cardinality is None else float(self._cardinality)

    # ---- the protocol of batches

    def shard(self, first: int, count: int) -> "DatasetBatches":
        """Returns the batches of one replica. The shard of place 0 begins a reading that the next shards share."""
        shard = copy.copy(self)
        shard._first, shard._count = first, count
        if first == 0:
            self._reading = self._new_reading()
            self._place = _OF_SHARDS
        shard._reading = self._reading
        shard._place = self._reading.join(shard._finished)
        return shard

    def at(self, step: Any) -> Batch:
        """Returns the batch of a step; eagerly, the one that training reads next is not read twice."""
        if tf.executing_eagerly():
            read = self._reading.get(int(step))
            if self._place == _OF_SHARDS:
                return self._finished(tf.cast(step, tf.int64), read.raw)
            return read.shards[self._place]
        fields = self._known_fields()
        raw = tf.numpy_function(
            lambda step: [self._reading.get(int(step)).raw[name].numpy() for name in fields],
            [tf.cast(step, tf.int64)],
            [spec.dtype for spec in fields.values()],
            stateful=False,
        )
        return self._finished(tf.cast(step, tf.int64), dict(zip(fields, raw, strict=True)))

    def weighted(self, step: Any, factors: tf.Tensor) -> Batch:
        """Returns the batch of a step as if `factors` [batch] multiplied the weights of its examples; 0 is padding."""
        return self._finished(tf.cast(step, tf.int64), self._reading.get(int(step)).raw, factors)

    def indices(self, step: int) -> dict[str, np.ndarray]:
        """Returns {'source', 'index', 'weight'}, each [batch]; an index counts the examples of the stream."""
        rows = _rows_of(self._reading.get(step).raw)
        place = np.minimum(np.arange(self._first, self._first + self._count), rows - 1)
        weight = self.at(step)["weight"].numpy()
        return {"source": np.zeros(self._count, np.int32), "index": step * self.batch_size + place, "weight": weight}

    def plan(self, first_step: Any, steps: Any, size: int) -> Batch:
        first, count = int(first_step), int(steps)
        batches = [self.at(step) for step in range(first, first + count)]
        filled = batches + [batches[-1]] * (size - count)
        return {name: tf.stack([batch[name] for batch in filled]) for name in batches[0]}

    def take(self, plan: Batch, index: tf.Tensor) -> Batch:
        return {name: tf.gather(rows, index) for name, rows in plan.items()}

    def close(self) -> None:
        """Stops reading ahead; the next read builds the pipeline again, and skips to its batch."""
        self._reading.close()

    # ---- what a run recognises a pipeline by

    def check_repeatable(self, split: str, again: Callable[[], Any], is_deterministic: bool) -> None:
        """Reads the first batches of the pipeline twice, and says what a pipeline cannot do.

        Args:
          split: the name of the split, for messages.
          again: returns `DatasetBatches` of the same pipeline, built once more. From now on all is read from those.
          is_deterministic: `runtime.deterministic`.

        Raises:
          UserError: the two readings differ and the run must be repeatable; or the batches are not of the batch size.
        """
        self.name = f"the tf.data pipeline of '{split}'"
        self.origin["source"] = f"a tf.data pipeline ('{split}')"
        self._again = lambda: again()._dataset
        read = list(self._dataset.take(2))
        if not read:
            raise UserError(f"{self.name} has no batch.")
        self._check_first(read[0])
        once, twice = ([hash_of(raw) for raw in each] for each in (read, self._again().take(2)))
        self._begin()
        self.origin["examples"] = None if self._cardinality is None else self._cardinality * self.batch_size
        if once == twice:
            self.origin["sample"] = once[0]
            logging.info(
                "%s decides the order of its batches. A resume reads it from its start and skips to the step; sources"
                " that are read by index do not skip",
                self.name,
            )
            return
        if is_deterministic:
            raise UserError(
                f"{self.name} gives other batches when it is built and read again, so no resume can be exact. Give"
                " `shuffle` a seed, build the pipeline inside make_data, and leave out deterministic=False; or type"
                " --config.runtime.deterministic=false."
            )
        logging.warning(
            "%s gives other batches when it is read again: a resumed, rewound or replayed run goes on with others",
            self.name,
        )

    def hash_at(self, step: int) -> str | None:
        """Returns the SHA-256 of the batch of a step; None if the pipeline has no repeatable order."""
        return None if self.origin["sample"] is None else hash_of(self._reading.get(step).raw)

    # ---- reading

    def _begin(self) -> None:
        """Starts a reading of the pipeline for these batches alone."""
        self._reading = self._new_reading()
        self._place = self._reading.join(self._finished)

    def _new_reading(self) -> Reading:
        return Reading(self.name, self._opened, self._check, self._kept)

    def _opened(self, first: int, prepare: Callable[..., Any]) -> tf.data.Dataset:
        """Returns the batches from number `first` on, prepared."""
        dataset = self._again()
        if dataset.element_spec != self._dataset.element_spec:
            raise UserError(
                f"{self.name} is {dataset.element_spec} when make_data builds it again, but was"
                f" {self._dataset.element_spec}. Build the same pipeline each time."
            )
        dataset = dataset.repeat() if self.training else dataset
        steps = tf.data.Dataset.range(first, np.iinfo(np.int64).max)
        numbered = tf.data.Dataset.zip((steps, dataset.skip(first)))
        traced = tf.function(prepare, input_signature=list(numbered.element_spec), autograph=False)
        prepared = numbered.map(traced, num_parallel_calls=self._parallel_calls, deterministic=True)
        return prepared.prefetch(self.ahead or 1)

    def _finished(self, step: tf.Tensor, raw: Batch, factors: tf.Tensor | None = None) -> Batch:
        """Returns this shard's places of a global batch, filled up with examples of weight 0, and transformed."""
        rows = tf.shape(next(iter(raw.values())), tf.int64)[0]
        place = self._first + tf.range(self._count, dtype=tf.int64)
        padding = tf.cast(place < rows, tf.float32)
        padding = padding if factors is None else padding * factors
        fields = self._known_fields()
        batch = {}
        for name, value in raw.items():
            spec = fields[name]
            value = tf.ensure_shape(value, [None, *spec.shape])
            batch[name] = tf.ensure_shape(tf.gather(value, tf.minimum(place, rows - 1)), [self._count, *spec.shape])
        with rng.scope(self._key, step, self._first):
            return self._finish(batch, padding)

    def _first_batch(self) -> Batch:
        """Returns the first batch, transformed outside of the pipeline: there every shape is known."""
        return self._finished(tf.constant(0, tf.int64), next(iter(self._again().take(1))))

    def _known_fields(self) -> Fields:
        """Returns {field: spec of one example}; shapes that the pipeline does not know are those of its first batch."""
        if not self._fields:
            fields = {
                name: tf.TensorSpec(spec.shape[1:], spec.dtype) for name, spec in self._dataset.element_spec.items()
            }
            if not all(spec.shape.is_fully_defined() for spec in fields.values()):
                with tf.init_scope():
                    first = next(iter(self._again().take(1)))
                fields = {name: tf.TensorSpec(value.shape[1:], value.dtype) for name, value in first.items()}
            self._fields = fields
        return self._fields

    # ---- checks

    def _check_elements(self, dataset: tf.data.Dataset) -> None:
        spec = dataset.element_spec
        if not isinstance(spec, Mapping) or not spec:
            raise UserError(
                f"the elements of the tf.data.Dataset are {spec}, not dicts. Write e.g."
                " dataset.map(lambda x, y: {'x': x, 'y': y})."
            )
        for name, field in spec.items():
            if not isinstance(field, tf.TensorSpec):
                raise UserError(
                    f"'{name}' of the tf.data.Dataset is a {type(field).__name__}, not a dense tensor. Pad it to one"
                    f" shape: dataset.map(lambda batch: {{**batch, '{name}': batch['{name}'].to_tensor(…)}})."
                )
            if field.shape.rank == 0 or (field.shape.rank and field.shape[0] not in (None, self.batch_size)):
                raise UserError(
                    f"'{name}' of the tf.data.Dataset is {field.dtype.name} {field.shape}, but its elements are global"
                    f" batches of {self.batch_size} examples ({self._key_of_size}). Write"
                    f" dataset.batch({self.batch_size}), or set the key."
                )
        rows = {name: tf.TensorSpec(field.shape[1:], field.dtype) for name, field in spec.items() if field.shape.rank}
        check_weight_field(rows, "the tf.data.Dataset")

    @functools.cached_property
    def _cardinality(self) -> int | None:
        """The number of batches of the pipeline; None, of training alone, if it has no end or is not known."""
        count = int(self._dataset.cardinality())
        if count >= 0 or self.training:
            return count if count >= 0 else None
        if count == tf.data.INFINITE_CARDINALITY:
            raise UserError(f"{self.name} has no end, but is an evaluation split. Leave out repeat(), or add take(…).")
        start = time.monotonic()
        count = sum(1 for _ in self._again())
        seconds = time.monotonic() - start
        how = f"dataset.apply(tf.data.experimental.assert_cardinality({count}))"
        logging.info("%s has %d batches, counted in %.1f s; %s needs no count", self.name, count, seconds, how)
        return count

    def _check_first(self, raw: Batch) -> None:
        """Raises UserError if the first batch is not full although others follow."""
        self._check(0, raw)
        rows = _rows_of(raw)
        if rows < self.batch_size and self._cardinality != 1:
            raise UserError(
                f"the first batch of {self.name} has {rows} examples, but {self._key_of_size}={self.batch_size}; only"
                f" the last one may have fewer. Type --config.{self._key_of_size}={rows}, or write"
                f" dataset.batch({self.batch_size})."
            )

    def _check(self, step: int, raw: Batch) -> None:
        """Raises UserError if a batch has too many examples or a weight that is none."""
        rows = _rows_of(raw)
        if rows > self.batch_size or not rows:
            raise UserError(
                f"batch {step} of {self.name} has {rows} examples, but {self._key_of_size}={self.batch_size}. Type"
                f" --config.{self._key_of_size}={rows}, or write dataset.batch({self.batch_size})."
            )
        if "weight" in raw:
            check_weights(raw["weight"].numpy(), self.name, step * self.batch_size + np.arange(rows))

    def _fitting(self, dataset: tf.data.Dataset) -> int:
        """Returns how many batches take 64 MB; 0 if the size of a batch is not known."""
        sizes = [
            (spec.shape[1:].num_elements() or _KEPT_BYTES)
            * (_TEXT_BYTES if spec.dtype == tf.string else spec.dtype.size)
            for spec in dataset.element_spec.values()
        ]
        return _KEPT_BYTES // (self.batch_size * sum(sizes))


def from_dataset(
    dataset: tf.data.Dataset, config: ConfigDict, training: bool, transform: Transform | None
) -> DatasetBatches:
    """Returns the batches of a tf.data pipeline.

    Raises:
      UserError: a run of several processes; a key that a pipeline does not read; elements that are no batches.
    """
    if config.runtime.strategy in SEVERAL_PROCESSES:
        raise UserError(
            f"runtime.strategy='{config.runtime.strategy}': a tf.data.Dataset is read by one process, and every worker"
            f" would read all of it. {_BY_INDEX}"
        )
    defaults = base_config().data
    if ignored := [name for name in _NOT_READ if training and config.data[name] not in (defaults[name], "stream")]:
        raise UserError(
            f"data.{ignored[0]}={config.data[ignored[0]]!r} is not read with a tf.data.Dataset, which decides order and"
            f" batches itself. Leave the key out. {_BY_INDEX}"
        )
    if needs := needs_of(transform):
        raise UserError(
            f"the transform needs the '{needs[0]}' of each example, which a tf.data.Dataset does not tell. {_BY_INDEX}"
        )
    return DatasetBatches(dataset, config, training, transform)


def _rows_of(raw: Batch) -> int:
    return int(next(iter(raw.values())).shape[0])
