"""In which order the peers of PyTorch and JAX see the examples.

rows = Order(examples=60_000, batch=128).take(100)      # int64 [100, 128]
"""

import numpy as np


class Order:
    """Rows of indices, one a batch: a permutation for every epoch, without its last partial batch."""

    def __init__(self, examples: int, batch: int) -> None:
        self._examples, self._batch = examples, batch
        self._rng = np.random.default_rng(0)
        self._left = np.empty([0, batch], np.int64)

    def take(self, count: int) -> np.ndarray:
        """The next `count` rows, int64 [count, batch]."""
        while len(self._left) < count:
            # Of int64 a permutation takes half of what it takes of int32, or PyTorch's.
            shuffled = self._rng.permutation(self._examples)
            rows = shuffled[: self._examples // self._batch * self._batch].reshape(-1, self._batch)
            self._left = np.concatenate([self._left, rows]) if len(self._left) else rows
        taken, self._left = self._left[:count], self._left[count:]
        return taken
