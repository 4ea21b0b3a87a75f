"""What an evaluation computed, kept for its evaluators, which then need no second forward pass.

kept = Kept()
block(functools.partial(kept.add, "test"))     # an EvalBlock, which adds the batch and the outputs of each step
kept.is_current = snapshot.is_unchanged
kept.get("test", 0)                            # (batch, outputs), or None
"""

from collections.abc import Callable, Mapping

import tensorflow as tf

MOST_BYTES = 2**28

Tensors = Mapping[str, tf.Tensor]


class Kept:
    """Batches and outputs of the passes over splits, as many as take no more than `most_bytes`.

    Attributes:
      is_current: () -> whether the state is that of the passes; what was kept of another state is not returned.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._left = most_bytes
        self._pairs: dict[tuple[str, int], tuple[Tensors, Tensors]] = {}
        self.is_current: Callable[[], bool] = lambda: True

    def add(self, split: str, step: int, batch: Tensors, outputs: Tensors) -> None:
        """Keeps the batch of a step and the outputs of the loss for it, if they still fit."""
        tensors = [*batch.values(), *outputs.values()]
        size = sum(tensor.shape.num_elements() * tensor.dtype.size for tensor in tensors)
        if size <= self._left:
            self._left -= size
            self._pairs[split, step] = batch, outputs

    def get(self, split: str, step: int) -> tuple[Tensors, Tensors] | None:
        """Returns the batch and the outputs of a step; None if they are not kept, or are those of another state."""
        pair = self._pairs.get((split, step))
        return pair if pair is not None and self.is_current() else None
