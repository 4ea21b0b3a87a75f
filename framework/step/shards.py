"""The shards of a batch: what each replica of this process reads of it, on its own device."""

from collections.abc import Sequence

import tensorflow as tf

from framework.data.batches import Batch, Batches
from framework.distribute.replicas import Replicas
from framework.trace import guards


def steps_per_call(batches: Batches, steps: int) -> int:
    """Returns the most steps of one call: `steps`, or the fewer streamed batches read ahead, or steps of one bucket."""
    return min(steps, *(getattr(batches, name, None) or steps for name in ("ahead", "run_length")))


def shards_of(batches: Batches, replicas: Replicas) -> list[Batches]:
    """Returns the shards of the replicas of this process; the batches themselves on one device."""
    if replicas.strategy is None:
        return [batches]
    size = batches.batch_size // replicas.count
    shards = []
    for index, device in enumerate(replicas.devices, start=replicas.first):
        with tf.device(device):
            shards.append(batches.shard(index * size, size))
    return shards


def take_shards(
    replicas: Replicas, shards: Sequence[Batches], plans: Sequence[Batch], index: tf.Tensor
) -> tuple[Batch, list[tf.Tensor]]:
    """Takes batch `index` of a plan, each shard on the device of its replica.

    Returns:
      the batch, and how many guards of its transform do not hold: [scalar], or [] without guards.
    """
    has_guards = False

    def take(replica: int) -> tuple[Batch, tf.Tensor]:
        nonlocal has_guards
        with guards.watched({}) as watch:
            batch = shards[replica - replicas.first].take(plans[replica - replicas.first], index)
        has_guards |= watch.has_any
        return batch, watch.violations(tf.float32)

    batch, violations = replicas.run(take)
    if not has_guards:
        return batch, []
    return batch, [replicas.all_reduce_sum(lambda replica, count: count, violations)]
