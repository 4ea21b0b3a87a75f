"""The least memory that a step needs, known before anything is allocated."""

import tensorflow as tf
from ml_collections import FrozenConfigDict

from framework.data.batches import Batches
from framework.distribute.memory import host_memory
from framework.errors import UserError
from framework.step.probe import Probe

_PLACE_BYTES = 16  # source (int32), index (int64) and weight (float32) of a place of a batch


def refuse_too_large(probe: Probe, data: Batches, resolved: FrozenConfigDict) -> None:
    """Raises UserError if what a step holds at once is more than the memory of this machine.

    The batch, the largest tensor of the forward pass and the indices of the examples of a block are counted. A step
    needs much more, so a batch that passes may still be too large.
    """
    available = host_memory()
    size = data.batch_size
    batch = sum(bytes_of(spec) for spec in probe.batch.values())
    largest = max((bytes_of(tensor) for op in probe.graph.get_operations() for tensor in op.outputs), default=0)
    steps = min(resolved.train.block_steps, resolved.train.duration) if data.is_resident else 1
    needed = {
        "data": batch + largest + _PLACE_BYTES * size * steps,
        "eval": batch * resolved.eval.batch_size // size + _PLACE_BYTES * resolved.eval.batch_size,
    }
    for key, total in needed.items():
        if available is not None and total > available:
            raise UserError(
                f"{key}.batch_size={resolved[key].batch_size} needs at least {total / 2**30:,.1f} GiB, and this machine"
                f" has {available / 2**30:,.1f}. Use a smaller --config.{key}.batch_size."
            )


def bytes_of(tensor: tf.Tensor | tf.TensorSpec | tf.Variable) -> int:
    """Returns the bytes of a tensor; 0 if its size is not known before the step runs."""
    elements = tensor.shape.num_elements() if tensor.shape.rank is not None else None
    return (elements or 0) * tensor.dtype.size if tensor.dtype.is_numpy_compatible else 0
