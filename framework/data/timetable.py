"""The timetable of buckets: step -> which bucket has its turn, and with which of its batches.

    timetable = Timetable(batches=(21, 40, 4), seed=0, shuffle=True)        # 65 steps an epoch
    timetable.at(tf.constant([1_000_000], tf.int64)).bucket                 # [1]; costs what step 0 costs
    timetable.bucket_at(64), timetable.alike(64, most=100)                  # on the host: a bucket, and for how long

An epoch has every (bucket, place) once, in an order that is a permutation by the seed and the epoch. So the bucket of a
step is a pure function of (seed, step), as its examples are.
"""

import dataclasses
import functools
import itertools
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from framework.data.order import Indices, Order, key_of, permute

FIRST_STREAM = 2  # of the permutations inside buckets; those of groups and single batches are 0 and 1


class Turns(NamedTuple):
    """The turns of some steps, each int64 [steps].

    Attributes:
      bucket: its number.
      epoch: how many epochs came before.
      place: of the batch among those that its bucket has in the epoch.
    """

    bucket: Any
    epoch: Any
    place: Any


@dataclasses.dataclass(frozen=True)
class Timetable:
    """Computes the bucket of a step, for any step at the same cost.

    Attributes:
      batches: of each bucket in an epoch, at least one.
      shuffle: False has the buckets one after the other.
      group: so many batches of a bucket follow each other; the rest of each bucket ends the epoch, one by one.
    """

    batches: tuple[int, ...]
    seed: int
    shuffle: bool
    group: int = 1

    @property
    def steps_per_epoch(self) -> int:
        """Returns the number of batches of all buckets."""
        return sum(self.batches)

    def at(self, steps: tf.Tensor) -> Turns:
        """Returns the turns of some steps.

        Args:
          steps: int64 [steps].
        """
        epoch, position = steps // self.steps_per_epoch, steps % self.steps_per_epoch
        if not self.shuffle:
            bucket, place = _located(position, self.batches)
            return Turns(bucket, epoch, place)
        groups = tuple(count // self.group for count in self.batches)
        rest = tuple(count % self.group for count in self.batches)
        in_groups = sum(groups) * self.group
        bucket = place = tf.zeros_like(position)
        if in_groups:
            at_group = tf.minimum(position, in_groups - 1)
            bucket, place = _located(self._permuted(at_group // self.group, epoch, sum(groups), stream=0), groups)
            place = place * self.group + at_group % self.group
        if any(rest):
            at_rest = tf.maximum(position - in_groups, 0)
            single, after = _located(self._permuted(at_rest, epoch, sum(rest), stream=1), rest)
            after += self.group * tf.gather(tf.constant(groups, tf.int64), single)
            bucket, place = (tf.where(position < in_groups, *pair) for pair in ((bucket, single), (place, after)))
        return Turns(bucket, epoch, place)

    def _permuted(self, index: tf.Tensor, epoch: tf.Tensor, size: int, stream: int) -> tf.Tensor:
        """Returns the place of each index in a permutation of [0, size)."""
        sizes = tf.fill(tf.shape(index), tf.constant(size, tf.int64))
        return permute(index, sizes, key_of(self.seed, stream, epoch))

    # ---- on the host

    def buckets(self, epoch: int) -> np.ndarray:
        """Returns the bucket of each step of an epoch."""
        return _epoch(self, int(epoch)).bucket

    def bucket_at(self, step: int) -> int:
        """Returns the bucket of a step."""
        epoch, position = divmod(step, self.steps_per_epoch)
        return int(self.buckets(epoch)[position])

    def alike(self, step: int, most: int) -> int:
        """Returns how many steps from `step` on have its bucket; at most `most`, and to the end of the epoch."""
        epoch, position = divmod(step, self.steps_per_epoch)
        buckets = self.buckets(epoch)[position : position + most]
        others = np.flatnonzero(buckets != buckets[0])
        return int(others[0]) if others.size else len(buckets)

    def next(self, step: int, bucket: int) -> int:
        """Returns the first step from `step` on that has a bucket."""
        total = self.steps_per_epoch
        for epoch in itertools.count(step // total):
            steps = epoch * total + np.flatnonzero(self.buckets(epoch) == bucket)
            if steps[-1] >= step:
                return int(steps[np.searchsorted(steps, step)])
        raise AssertionError("every epoch has every bucket")

    def turns(self, first: int, count: int) -> Turns:
        """Returns the turns of `count` steps from `first` on, as arrays."""
        total = self.steps_per_epoch
        start = first % total
        epochs = range(first // total, (first + count - 1) // total + 1)
        columns = zip(*(_epoch(self, epoch) for epoch in epochs), strict=True)
        return Turns(*(np.concatenate(column)[start : start + count] for column in columns))


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class BucketOrder(Order):
    """Computes the examples of the batches of one bucket.

    For a step of another bucket it returns some batch of this one: such a step is looked at for its shape alone.

    Attributes:
      timetable: of all buckets.
      bucket: number of this one.
      rows: int64 [examples of the bucket], their numbers in the source.
    """

    timetable: Timetable
    bucket: int
    rows: tf.Tensor

    def at(self, steps: tf.Tensor) -> Indices:
        return self.at_turns(self._turn(steps))

    def at_turns(self, turns: tf.Tensor) -> Indices:
        """Returns the examples of batches by how many the bucket had before each: int64 [batches]."""
        chosen = super().at(turns)
        return chosen._replace(index=tf.gather(self.rows, chosen.index))

    def epochs(self, steps: tf.Tensor) -> tf.Tensor:
        return super().epochs(self._turn(steps))

    def shard(self, first: int, count: int) -> Order:
        # A copy of the rows lies on the device in whose scope this is called.
        return dataclasses.replace(self, first=first, count=count, rows=tf.identity(self.rows))

    def next(self, step: int) -> int:
        return self.timetable.next(step, self.bucket)

    def steps(self, first: int) -> tf.data.Dataset:
        total = self.timetable.steps_per_epoch

        def of_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
            # By a table of the host: to trace the permutation once more takes longer.
            steps = tf.numpy_function(self._steps_of, [epoch], tf.int64, stateful=False)
            steps = tf.ensure_shape(steps, [None])
            return tf.data.Dataset.from_tensor_slices(tf.boolean_mask(steps, steps >= first))

        epochs = tf.data.Dataset.range(first // total, np.iinfo(np.int64).max)
        return epochs.flat_map(tf.autograph.experimental.do_not_convert(of_epoch))

    def _steps_of(self, epoch: int) -> np.ndarray:
        """Returns the steps of an epoch that have this bucket."""
        return int(epoch) * self.timetable.steps_per_epoch + np.flatnonzero(
            self.timetable.buckets(epoch) == self.bucket
        )

    def _turn(self, steps: tf.Tensor) -> tf.Tensor:
        """Returns how many batches the bucket has had before each step."""
        turns = self.timetable.at(steps)
        batches = self.timetable.batches[self.bucket]
        return turns.epoch * batches + turns.place % batches


def _located(index: tf.Tensor, counts: tuple[int, ...]) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the bucket of each index, where bucket b has counts[b] of them, and the place in that bucket."""
    ends = np.cumsum(counts)
    bucket = tf.reduce_sum(tf.cast(index[..., tf.newaxis] >= tf.constant(ends[:-1], tf.int64), tf.int64), axis=-1)
    return bucket, index - tf.gather(tf.constant(ends - counts, tf.int64), bucket)


@functools.lru_cache(maxsize=8)
def _epoch(timetable: Timetable, epoch: int) -> Turns:
    """Returns the turns of all steps of an epoch, as arrays."""
    total = timetable.steps_per_epoch
    with tf.init_scope():
        turns = timetable.at(epoch * total + tf.range(total, dtype=tf.int64))
        return Turns(*(column.numpy() for column in turns))
