"""Replay buffer: batches whose content is part of the run's state.

    def make_data(cfg, split):
        rows = {"observation": tf.TensorSpec([4], tf.float32), "action": tf.TensorSpec([], tf.int32)}
        return ReplayBuffer(rows, capacity=10_000, config=cfg)

    def make_step(cfg, tools):
        def step(state, batch):                      # batch: rows drawn from the buffer
            state.data.add({"observation": seen, "action": taken})

A `Batches` that is a `tf.Module` becomes `state.data`: its variables are saved with the weights, so a resumed run draws
the same rows. The state of an environment is one more variable, of a subclass or of `make_state`.
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
    """Keeps the newest `capacity` rows and draws batches from them, uniformly and with replacement.

    Rows that are added are drawn from the next batch on. While the buffer is empty, batches are zeros of weight 0. A
    field `weight` is the weight of the row; a negative weight becomes NaN, which stops the step. A step that is skipped
    adds its rows all the same: experience is not undone.

    Args:
      specs: {field: spec of one row}.
      capacity: number of rows that are kept.
      config: reads `seed` and `data.batch_size`.

    Attributes:
      rows: {field: variable [capacity, ...]}.
      added: int64 scalar variable, the number of rows ever added.
      steps_per_epoch: capacity / batch size: an epoch has as many draws as the buffer has rows.
    """

    is_resident = True

    def __init__(self, specs: Mapping[str, tf.TensorSpec], capacity: int, config: ConfigDict) -> None:
        super().__init__("replay")
        check_weight_field(specs, "the rows of a replay buffer")
        if not 1 <= capacity < 2**31:
            raise UserError(f"a replay buffer cannot hold {capacity} rows. Use a capacity from 1 to 2**31 - 1.")
        self.capacity = capacity
        self.batch_size = config.data.batch_size
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
        """Adds rows, which replace the oldest rows of a full buffer.

        Args:
          rows: {field: [n, ...]}, n <= capacity.

        Raises:
          UserError: fields, shapes or kinds of numbers are not those of the buffer, or n is more than its capacity.
        """
        if rows.keys() != self.rows.keys():
            raise UserError(
                f"a replay buffer with the fields {', '.join(self.rows)} was given rows with the fields"
                f" {', '.join(rows) or '(none)'}. Add rows with all fields of the buffer and no others."
            )
        given = {name: self._fitting(name, tf.convert_to_tensor(rows[name])) for name in self.rows}
        count = next((tensor.shape[0] for tensor in given.values() if tensor.shape[0] is not None), None)
        if count is None or count > self.capacity:
            raise UserError(
                f"a replay buffer of {self.capacity} rows was given {count or 'an unknown number of'} rows at once."
                " Add at most as many as it holds, of a number that is known when the step is traced."
            )
        for name, tensor in given.items():
            if tensor.shape[0] not in (None, count):
                raise UserError(
                    f"a replay buffer was given {tensor.shape[0]} rows of '{name}' and {count} of another field."
                    " Add one row of each field for each step of the environment."
                )
        places = (self.added + tf.range(count, dtype=tf.int64)) % self.capacity
        for name, variable in self.rows.items():
            tensor = tf.ensure_shape(given[name], [count, *variable.shape[1:]])
            variable.scatter_nd_update(places[:, tf.newaxis], tf.cast(tensor, variable.dtype))
        self.added.assign_add(count)

    def _fitting(self, name: str, tensor: tf.Tensor) -> tf.Tensor:
        """Returns the rows of a field; raises UserError for another shape, or if fractions would be cut off."""
        variable = self.rows[name]
        is_cut = tensor.dtype.is_floating and not variable.dtype.is_floating
        if is_cut or not tensor.shape.is_compatible_with([None, *variable.shape[1:]]):
            raise UserError(
                f"'{name}' of a replay buffer is {variable.dtype.name} {variable.shape[1:]} a row, but the rows to add"
                f" are {tensor.dtype.name} {tensor.shape}."
            )
        return tf.ensure_shape(tensor, [None, *variable.shape[1:]])

    def at(self, step: Any) -> dict[str, tf.Tensor]:
        """Returns the batch that step `step` draws from the current rows."""
        with rng.scope(self._key, tf.cast(step, tf.int64)):
            return self.take({}, tf.constant(0))

    def indices(self, step: int) -> dict[str, np.ndarray]:
        """Returns {'index', 'weight'} of `at(step)`: places in the buffer, and weights."""
        with rng.scope(self._key, tf.constant(step, tf.int64)):
            index, _ = self._draw()
        return {"index": index.numpy(), "weight": self.at(step)["weight"].numpy()}

    def plan(self, first_step: Any, steps: Any, size: int) -> dict[str, tf.Tensor]:
        """Returns an empty plan: rows are drawn at each step, when those of the steps before have been added."""
        return {}

    def take(self, plan: Mapping[str, tf.Tensor], index: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns a batch; draws in the `rng.scope` of its step."""
        places, weight = self._draw()
        batch = {name: tf.gather(variable, places) for name, variable in self.rows.items()}
        return {**batch, "weight": own_weight(batch["weight"], weight) if "weight" in batch else weight}

    def _draw(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns places int64 [batch], and a weight float32 [batch] that is 0 while the buffer is empty."""
        filled = tf.minimum(self.added.read_value(), self.capacity)
        bits = tf.cast(rng.random_bits("replay", self.batch_size, 1)[:, 0], tf.int64)
        # The high half of the product is uniform over the rows, up to 2**-32 (Lemire, 2019).
        places = tf.bitwise.right_shift(bits * filled, tf.constant(32, tf.int64))
        return places, tf.fill([self.batch_size], tf.cast(filled > 0, tf.float32))


__getattr__ = moved.former_names(__name__)
