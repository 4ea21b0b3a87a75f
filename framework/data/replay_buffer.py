"""Batches that have a state: a replay buffer, whose content is part of the run's state.

    def make_data(cfg, split):
        rows = {"observation": tf.TensorSpec([4], tf.float32), "action": tf.TensorSpec([], tf.int32)}
        return ReplayBuffer(rows, capacity=10_000, config=cfg)

    def make_step(cfg, tools):
        def step(state, batch):                      # batch: rows drawn from what has been added
            state.data.add({"observation": seen, "action": taken})

A `Batches` that is a `tf.Module` becomes `state.data`: its variables are saved with the weights, so a run that was
stopped draws the same rows again. An environment is one more variable of a subclass, or of `make_state`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict

from framework import moved, rng
from framework.data.fields import check_weight_field, own_weight
from framework.errors import UserError


class ReplayBuffer(tf.Module):
    """The newest `capacity` rows, from which batches are drawn uniformly, with replacement.

    What `add` is given is seen from the next batch on. While nothing has been added, batches are zeros of weight 0.
    A row with a field `weight` has that weight; one that is negative is NaN, at which the step stops. A step that is
    skipped adds its rows all the same: what was lived through is not undone.

    Args:
      specs: {field: spec of one row}.
      capacity: rows kept.
      config: reads `seed` and `data.batch_size`.

    Attributes:
      rows: {field: variable [capacity, ...]}.
      added: int64 scalar variable; rows ever added.
      steps_per_epoch: an epoch are as many draws as the buffer has rows.
    """

    is_resident = True

    def __init__(self, specs: Mapping[str, tf.TensorSpec], capacity: int, config: ConfigDict) -> None:
        super().__init__("replay")
        check_weight_field(specs, "the rows of a replay buffer")
        if not 1 <= capacity < 2**31:
            raise UserError(f"a replay buffer of {capacity} rows: it holds between 1 and 2**31 - 1.")
        self.capacity, self.batch_size = capacity, config.data.batch_size
        self.steps_per_epoch = capacity / self.batch_size
        self.rows = {
            name: tf.Variable(tf.zeros([capacity, *spec.shape], spec.dtype), trainable=False)
            for name, spec in specs.items()
        }
        self.added = tf.Variable(0, trainable=False, dtype=tf.int64)
        size = sum(int(np.prod(variable.shape)) * variable.dtype.size for variable in self.rows.values())
        self.origin = {"source": "replay buffer", "examples": capacity, "bytes": size, "subset": False}
        self._key = rng.key(config.seed)

    def add(self, rows: Mapping[str, tf.Tensor]) -> None:
        """Writes rows over the oldest ones.

        Args:
          rows: {field: [n, ...]}, n <= capacity.

        Raises:
          UserError: other fields, shapes or kinds of numbers than the buffer has, or more rows than it holds.
        """
        if rows.keys() != self.rows.keys():
            raise UserError(f"a replay buffer of {', '.join(self.rows)} was given rows of {', '.join(rows)}.")
        given = {name: self._fitting(name, tf.convert_to_tensor(rows[name])) for name in self.rows}
        count = next((tensor.shape[0] for tensor in given.values() if tensor.shape[0] is not None), None)
        if count is None or count > self.capacity:
            raise UserError(
                f"a replay buffer of {self.capacity} rows was given {count or 'an unknown number'} at once."
            )
        for name, tensor in given.items():
            if tensor.shape[0] not in (None, count):
                raise UserError(f"a replay buffer was given {tensor.shape[0]} rows of '{name}' and {count} of another.")
        places = (self.added + tf.range(count, dtype=tf.int64)) % self.capacity
        for name, variable in self.rows.items():
            tensor = tf.ensure_shape(given[name], [count, *variable.shape[1:]])
            variable.scatter_nd_update(places[:, tf.newaxis], tf.cast(tensor, variable.dtype))
        self.added.assign_add(count)

    def _fitting(self, name: str, tensor: tf.Tensor) -> tf.Tensor:
        """Rows of a field; UserError if they are of another shape, or would be cut to whole numbers."""
        variable = self.rows[name]
        is_cut = tensor.dtype.is_floating and not variable.dtype.is_floating
        if is_cut or not tensor.shape.is_compatible_with([None, *variable.shape[1:]]):
            raise UserError(
                f"a replay buffer has '{name}' as {variable.dtype.name} {variable.shape[1:]} a row, and was given"
                f" {tensor.dtype.name} {tensor.shape}."
            )
        return tf.ensure_shape(tensor, [None, *variable.shape[1:]])

    def at(self, step: Any) -> dict[str, tf.Tensor]:
        """What the step would draw from the rows of now."""
        with rng.scope(self._key, tf.cast(step, tf.int64)):
            return self.take({}, tf.constant(0))

    def indices(self, step: int) -> dict[str, np.ndarray]:
        """{'index', 'weight'}: places in the buffer of what `at(step)` draws."""
        with rng.scope(self._key, tf.constant(step, tf.int64)):
            index, _ = self._draw()
        return {"index": index.numpy(), "weight": self.at(step)["weight"].numpy()}

    def plan(self, first_step: Any, steps: Any, size: int) -> dict[str, tf.Tensor]:
        """Nothing: which rows there will be is known at each step alone."""
        return {}

    def take(self, plan: Mapping[str, tf.Tensor], index: tf.Tensor) -> dict[str, tf.Tensor]:
        """A batch, drawn in the `rng.scope` of its step."""
        places, filled = self._draw()
        batch = {name: tf.gather(variable, places) for name, variable in self.rows.items()}
        return {**batch, "weight": own_weight(batch["weight"], filled) if "weight" in batch else filled}

    def _draw(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Places int64 [batch], and the weight float32 [batch] that is 0 before there are rows."""
        filled = tf.minimum(self.added.read_value(), self.capacity)
        words = tf.cast(rng.random_bits("replay", self.batch_size, 1)[:, 0], tf.int64)
        # The high half of a product is uniform over the rows, to 2**-32 (Lemire, 2019).
        places = tf.bitwise.right_shift(words * filled, tf.constant(32, tf.int64))
        return places, tf.fill([self.batch_size], tf.cast(filled > 0, tf.float32))


__getattr__ = moved.former_names(__name__)
