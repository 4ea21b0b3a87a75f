"""The micro-batches of one replica's shard of a batch.

micro_batches = split(shard, replica=1, count=4, counters=rng.save_counters())
micro_batches.at(index, differentiate)     # draws what these examples draw in a pass over the whole global batch
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from framework import rng
from framework.errors import UserError
from framework.step.forward import Batch


@dataclasses.dataclass(frozen=True)
class MicroBatches:
    """Consecutive examples, cut into micro-batches of one size.

    Attributes:
      batch: {name: [count, size, ...]}; {name: [size, ...]} if `count` is 1.
      count: how many micro-batches.
      size: examples of each.
      first: index of the first example in the global batch.
      counters: where each micro-batch numbers its draws from, see `rng.save_counters`.
    """

    batch: Batch
    count: int
    size: int
    first: int
    counters: Counter[str]

    def at(self, index: Any, fn: Callable[[Batch], Any]) -> Any:
        """Returns fn(micro-batch `index`), whose draws are those of a pass over the whole global batch."""
        with rng.replay_from(self.counters), rng.at_example(self.first + index * self.size):
            if self.count == 1:
                return fn(self.batch)
            return fn({name: tf.gather(value, index) for name, value in self.batch.items()})


def split(shard: Batch, replica: int, count: int, counters: Counter[str]) -> MicroBatches:
    """Cuts the shard of a replica into `count` micro-batches of consecutive examples."""
    examples = examples_of(shard)
    size = examples // count
    if count > 1:
        shard = {name: tf.reshape(value, [count, size, *value.shape[1:]]) for name, value in shard.items()}
    return MicroBatches(shard, count, size, replica * examples, counters)


def examples_of(nest: Any) -> int:
    """Returns the number of examples of a batch, or of another nest of [examples, ...].

    Raises:
      UserError: no tensor has a first dimension that is known before it is computed.
    """
    has_weight = isinstance(nest, Mapping) and "weight" in nest
    tensors = [nest["weight"]] if has_weight else [tensor for tensor in tf.nest.flatten(nest) if tensor.shape.rank]
    sizes = [int(tensor.shape[0]) for tensor in tensors if tensor.shape[0] is not None]
    if not sizes:
        raise UserError(
            "a step was given a batch in which no tensor has a known number of examples: pass on its 'weight', or set"
            " the shape of one, e.g. tf.ensure_shape(x, [examples, None])."
        )
    return sizes[0]


def add_up(
    fn: Callable[[tf.Tensor], Any], first: int, count: int, start: Any, add: Callable[[Any, Any], Any] | None = None
) -> Any:
    """Returns start + fn(first) + … + fn(count - 1) of nests of tensors, in one compiled loop.

    Args:
      add: (nest, nest) -> their sum; None adds tensor by tensor.
    """
    if first == count:
        return start

    def body(index: tf.Tensor, sums: Any) -> tuple[tf.Tensor, Any]:
        more = fn(index)
        return index + 1, tf.nest.map_structure(tf.add, sums, more) if add is None else add(sums, more)

    return tf.while_loop(lambda index, sums: index < count, body, (tf.constant(first), start), parallel_iterations=1)[1]
