"""The same batch at each step, for `--mode=overfit`.

batches = OneBatch(run.data)        # that of step 0, made once: whatever the transform drew for it stays
batches.at(7)
"""

import copy
from typing import Any

import numpy as np
import tensorflow as tf

from framework.data.batches import Batches
from framework.data.fields import Batch


class OneBatch:
    """Gives each step the batch that `batches` give step 0; implements `Batches`."""

    is_resident = True
    ahead: int | None = None

    def __init__(self, batches: Batches) -> None:
        self._batch = {name: tf.identity(tensor) for name, tensor in batches.at(0).items()}
        self._batches = batches
        self.batch_size = int(self._batch["weight"].shape[0])
        self.origin: dict[str, Any] = batches.origin

    @property
    def steps_per_epoch(self) -> float:
        """Those of the batches, by which durations in epochs go."""
        return self._batches.steps_per_epoch

    def at(self, step: Any) -> Batch:
        return dict(self._batch)

    def indices(self, step: int) -> dict[str, np.ndarray]:
        return self._batches.indices(0)

    def plan(self, first_step: Any, steps: Any, size: int) -> Batch:
        return {"step": tf.zeros([size], tf.int64)}

    def take(self, plan: Batch, index: tf.Tensor) -> Batch:
        return dict(self._batch)

    def shard(self, first: int, count: int) -> "OneBatch":
        """Returns the batches of one replica, on the device in whose scope it is called."""
        shard = copy.copy(self)
        shard._batch = {
            name: tf.identity(tensor[first : first + count] if tensor.shape[:1] == [self.batch_size] else tensor)
            for name, tensor in self._batch.items()
        }
        return shard
