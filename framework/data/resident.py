"""Resident batches: all examples are tensors on the device, and each batch is gathered inside the compiled block."""

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from framework import rng
from framework.data.fields import Batch, Finish, Transform
from framework.data.order import Order, indices_of


class Resident:
    """Gathers batches from examples that are tensors on the device; implements `Batches`."""

    is_resident = True
    ahead: int | None = None
    training: bool | None = None  # as given to make_batches
    to_pictures: Callable[[Batch], Batch] = dict  # of the transform

    def __init__(
        self,
        origin: dict[str, Any],
        order: Order,
        transform: Transform | None,
        arrays: Sequence[Mapping[str, np.ndarray]],
    ) -> None:
        self.batch_size = order.batch_size
        self.steps_per_epoch = order.steps_per_epoch
        self.origin = origin
        self._order = order
        self._finish = Finish(transform, order.batch_size, lambda: self.at(0))
        self._key = rng.key(order.seed)
        self._examples = {name: tf.constant(np.concatenate([each[name] for each in arrays])) for name in arrays[0]}
        self._offsets = tf.constant(np.cumsum([0, *order.sizes[:-1]]), tf.int64)

    def shard(self, first: int, count: int) -> "Resident":
        """Returns the batches of one replica, with a copy of the examples on the device in whose scope it is called."""
        shard = copy.copy(self)
        shard._order = dataclasses.replace(self._order, first=first, count=count)
        shard._examples = {name: tf.identity(examples) for name, examples in self._examples.items()}
        return shard

    @property
    def examples(self) -> Batch:
        """Returns all examples as {field: [examples, ...]}."""
        return self._examples

    def with_examples(self, examples: Batch) -> "Resident":
        """Returns the same batches, gathered from a copy of the examples that lies on another device."""
        other = copy.copy(self)
        other._examples = examples
        return other

    def at(self, step: Any) -> Batch:
        step = tf.cast(step, tf.int64)
        with rng.scope(self._key, step):
            return self.take(self.plan(step, 1, 1), tf.constant(0))

    def weighted(self, step: Any, factors: tf.Tensor) -> Batch:
        """Returns the batch of a step as if `factors` [batch] multiplied the weights of its examples; 0 is padding."""
        step = tf.cast(step, tf.int64)
        with rng.scope(self._key, step):
            plan = self.plan(step, 1, 1)
            return self.take({**plan, "weight": plan["weight"] * factors}, tf.constant(0))

    def plan(self, first_step: Any, steps: Any, size: int) -> Batch:
        del steps  # the indices of filler rows cost nothing
        all_steps = tf.cast(first_step, tf.int64) + tf.range(size, dtype=tf.int64)
        source, index, weight = self._order.at(all_steps)
        epoch = {"epoch": self._order.epochs(all_steps)} if "epoch" in self._finish.needs else {}
        return {"index": index + tf.gather(self._offsets, source), "weight": weight, **epoch}

    def take(self, plan: Batch, index: tf.Tensor) -> Batch:
        rows = tf.gather(plan["index"], index)  # [places]
        batch = {name: tf.gather(examples, rows) for name, examples in self._examples.items()}
        with rng.at_example(self._order.first):
            order_fields = {name: tf.gather(plan[name], index) for name in self._finish.needs}
            return self._finish(batch, tf.gather(plan["weight"], index), order_fields)

    def indices(self, step: int) -> dict[str, np.ndarray]:
        return indices_of(self, self._order, step)
