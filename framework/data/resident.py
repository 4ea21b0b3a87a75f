"""Resident batches: all examples are tensors on the device, and each batch is gathered inside the compiled block."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from framework import rng
from framework.data.fields import Batch, Finish, Transform
from framework.data.order import Order, indices_of


class Resident:
    """Gathers batches from examples that are tensors on the device; implements `Batches`.

    Args:
      origin: where the examples come from, for result.json.
      transform: applied to each batch, or None.
      examples: all examples, of one source after the other, see `on_device`.
      order: tells which examples a step has.
      lengths: {field: length} to which fields are cut, of a bucket.
      copies: {replica: its copy of the examples}, which the buckets share; filled by `shard`.
    """

    is_resident = True
    ahead: int | None = None
    training: bool | None = None  # as given to make_batches
    to_pictures: Callable[[Batch], Batch] = dict  # of the transform
    classes: tuple[str, ...] = ()  # names by label, of sources that say them

    def __init__(
        self,
        origin: dict[str, Any],
        transform: Transform | None,
        examples: Batch,
        order: Order,
        lengths: Mapping[str, int] | None = None,
        copies: dict[int, Batch] | None = None,
    ) -> None:
        self.batch_size = order.batch_size
        self.steps_per_epoch = order.steps_per_epoch
        self.origin = origin
        self._order = order
        self._finish = Finish(transform, order.batch_size, lambda: self.at(0), lengths)
        self._key = rng.key(order.seed)
        self._examples = examples
        self._copies = {} if copies is None else copies
        self._offsets = tf.constant(np.cumsum([0, *order.sizes[:-1]]), tf.int64)

    def shard(self, first: int, count: int) -> "Resident":
        """Returns the batches of one replica, with a copy of the examples on the device in whose scope it is called."""
        shard = copy.copy(self)
        shard._order = self._order.shard(first, count)
        replica = first // count
        if replica not in self._copies:
            self._copies[replica] = {name: tf.identity(examples) for name, examples in self._examples.items()}
        shard._examples = self._copies[replica]
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

    @property
    def raw_count(self) -> int:
        """The number of examples of all sources."""
        return next(iter(self._examples.values())).shape[0]

    def raw(self, index: np.ndarray) -> dict[str, np.ndarray]:
        """Returns examples as the sources gave them, by their numbers among those of all sources."""
        return {name: tf.gather(examples, index).numpy() for name, examples in self._examples.items()}

    def indices(self, step: int) -> dict[str, np.ndarray]:
        return indices_of(self, self._order, step)


def on_device(arrays: Sequence[Mapping[str, np.ndarray]]) -> Batch:
    """Returns the examples of all sources as {field: tensor [examples, ...]}."""
    return {name: tf.constant(np.concatenate([each[name] for each in arrays])) for name in arrays[0]}
