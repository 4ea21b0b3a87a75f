"""Batches of examples that lie on the device as tensors."""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from framework import rng
from framework.data.fields import Batch, Finish, Transform
from framework.data.order import Order, indices_of
from framework.data.sources import Source, origin_of


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
        self.origin = origin_of(sources, "resident")
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
        return indices_of(self, self._order, step)
