"""Checks that a transform treats examples apart: it makes of a part of a batch what it makes of the whole batch.

    check_apart(batches)            # ["the transform makes another 'image' of 64 and 64 examples of a batch, as …"]

Replicas transform their parts of a batch. A mean over the batch, or a partner from its other end, is another one there,
without a word.
"""

import copy
import math
from collections.abc import Mapping

import numpy as np
import tensorflow as tf
from absl import logging

from framework.data.batches import Batches
from framework.data.bucketed import longest
from framework.errors import UserError

_CLOSE = 1e-4  # relative to the largest number of a field: vectorised kernels round by the place in the batch
_CLOSE_IN_HALF = 1e-2
_ROUNDED = 1  # of 255: pixels that are computed, and rounded to uint8


def refuse_together(batches: Batches) -> None:
    """Raises UserError for the first field that `check_apart` finds."""
    for problem in check_apart(batches) or []:
        raise UserError(problem)


def check_apart(batches: Batches) -> list[str] | None:
    """Returns a sentence for each field of the first batch that is another one if the batch is made in two parts.

    The first part has an even number of examples, because augmentations that mix pair neighbours. Eager.

    Args:
      batches: of several shapes, the longest is checked. Without a method `shard`, or with fewer than four examples,
        the result is [].

    Returns:
      The sentences; None, after a warning, if a part cannot be made.
    """
    batches = longest(batches)
    examples = batches.batch_size
    first = examples // 4 * 2
    if not first or not hasattr(batches, "shard"):
        return []
    batches = copy.copy(batches)  # of a tf.data pipeline, the parts and the whole begin a reading of their own
    shards = [batches.shard(0, first), batches.shard(first, examples - first)]
    whole = batches.at(0)
    try:
        parts = [shard.at(0) for shard in shards]
    except (tf.errors.OpError, UserError, ValueError, TypeError) as error:  # such as a tf.range(batch size)
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        logging.warning("the transform cannot be given %d of the %d examples of a batch: %s", first, examples, reason)
        return None
    sentences = []
    for name, tensor in whole.items():
        largest = _largest_difference(tensor.numpy(), *(_values(part, name) for part in parts))
        if largest:
            sentences.append(
                f"the transform makes another '{name}' of {first} and {examples - first} examples of a batch, as"
                f" replicas have them, than of all {examples} (the largest difference is {largest:.3g}). A transform"
                " treats each example by itself: compute a mean or another statistic once, of all data, in make_data,"
                " and pair neighbours (places 0 and 1, 2 and 3) as augment.MixUp does."
            )
    return sentences


def _values(batch: Mapping[str, tf.Tensor], name: str) -> np.ndarray | None:
    return batch[name].numpy() if name in batch else None


def _largest_difference(whole: np.ndarray, first: np.ndarray | None, second: np.ndarray | None) -> float:
    """Returns the largest difference of a field to that of the parts; 0 if it is no more than rounding."""
    if first is None or second is None:
        return math.inf
    of_examples = whole.ndim and len(first) + len(second) == len(whole)
    # A field that is no example's, such as a table, is the same in each part.
    pairs = [(whole, np.concatenate([first, second]))] if of_examples else [(whole, first), (whole, second)]
    return max(_difference(*pair) for pair in pairs)


def _difference(one: np.ndarray, other: np.ndarray) -> float:
    if one.shape != other.shape:
        return math.inf
    if one.dtype.kind not in "biuf" and one.dtype != tf.bfloat16.as_numpy_dtype:  # texts
        return 0.0 if np.array_equal(one, other) else math.inf
    left, right = one.astype(np.float64), other.astype(np.float64)
    differs = ~((left == right) | (np.isnan(left) & np.isnan(right)))
    if not differs.any():
        return 0.0
    largest = float(np.max(np.abs(left - right)[differs]))
    if one.dtype.kind in "biu":
        close = float(_ROUNDED if one.dtype == np.uint8 else 0)
    else:
        close = (_CLOSE if one.dtype.itemsize > 2 else _CLOSE_IN_HALF) * float(np.max(np.abs(left), initial=0.0))
    return 0.0 if largest <= close else largest
