"""Batches of several shapes: each step has the shape of its bucket.

    batches = make_batches(source, cfg, training=True, buckets=buckets)      # Bucketed
    members_of(batches)[bucket_at(batches, 7)].at(7)         # the batch of step 7; the same as batches.at(7)
    alike(batches, 7, most=10)                               # how many steps from 7 on have the same bucket

A member has the batches of one bucket, under the steps of the run; a compiled block of steps has those of one member.
The functions take batches of one shape too.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from framework.data.buckets import Buckets
from framework.data.fields import Batch
from framework.data.order import Order
from framework.data.sources import close
from framework.data.timetable import FIRST_STREAM, BucketOrder, Timetable, Turns
from framework.errors import UserError

ROW = ("size", "examples", "batches")  # of a row of the table of buckets in `origin`, beside the lengths


class Seen(NamedTuple):
    """What some steps have seen.

    Attributes:
      examples: without padding.
      tokens: of all fields with lengths, without padding.
      places: for tokens, with padding.
    """

    examples: int
    tokens: int
    places: int

    @property
    def padding(self) -> float:
        """Returns the share of the places that hold padding."""
        return 1 - self.tokens / self.places


class Bucketed:
    """The batches of several buckets; implements `Batches`, but a block plans and takes those of a member.

    Args:
      make_member: returns the batches of an order, with fields cut to the lengths of a shape.
      orders: of each bucket.
      buckets: of the examples.
      origin: where the examples come from, for result.json.

    Attributes:
      members: the batches of each bucket, under the steps of the run.
      timetable: says which bucket a step has.
      batch_size: the most examples of a batch.
      examples_per_epoch: without those that `data.remainder=drop` leaves out.
    """

    training: bool | None = None
    to_pictures: Callable[[Batch], Batch] = dict  # of the transform
    classes: tuple[str, ...] = ()  # names by label, of sources that say them

    def __init__(
        self,
        make_member: Callable[[Order, Mapping[str, int]], Any],
        orders: Sequence[BucketOrder],
        buckets: Buckets,
        origin: dict[str, Any],
    ) -> None:
        self.members = [make_member(order, shape) for order, shape in zip(orders, buckets.shapes, strict=True)]
        self.timetable = orders[0].timetable
        self.batch_size = max(buckets.sizes)
        self.steps_per_epoch = self.timetable.steps_per_epoch
        self.is_resident = self.members[0].is_resident
        self._orders = orders
        self._buckets = buckets
        self._sizes = np.array(buckets.sizes)
        self._kept: dict[int, np.ndarray] = {}
        full = self._sizes * self.timetable.batches
        self.examples_per_epoch = int(np.minimum(full, [order.sizes[0] for order in orders]).sum())
        self.origin = origin | {"buckets": self._table(), "left_out": buckets.left_out}

    @property
    def ahead(self) -> int | None:
        """Returns how many batches of a bucket are read ahead, in that which reads most."""
        return None if self.is_resident else max(member.ahead for member in self.members)

    @property
    def advice(self) -> str:
        """Returns what to change if training waits for these batches."""
        return self.members[0].advice

    @property
    def run_length(self) -> int:
        """Returns how many steps of one bucket follow each other; the rest of a bucket and chance make other runs."""
        return self.timetable.group if self.timetable.shuffle else max(self.timetable.batches)

    @property
    def busiest(self) -> int:
        """Returns the bucket in which an epoch has the most places, and so spends the most time."""
        return int(np.argmax(self._sizes * self._places * self.timetable.batches))

    def at(self, step: Any) -> Batch:
        return self.members[self.timetable.bucket_at(int(step))].at(step)

    def weighted(self, step: Any, factors: tf.Tensor) -> Batch:
        """Returns the batch of a step as if `factors` [batch] multiplied the weights of its examples; 0 is padding."""
        return self.members[self.timetable.bucket_at(int(step))].weighted(step, factors)

    def indices(self, step: int) -> dict[str, np.ndarray]:
        """Returns {'source', 'index', 'weight'}, each [batch of this step]."""
        return self.members[self.timetable.bucket_at(step)].indices(step)

    def plan(self, first_step: Any, steps: Any, size: int) -> Batch:
        raise TypeError("batches of several shapes are planned by the member that has the bucket of the step")

    def take(self, plan: Batch, index: tf.Tensor) -> Batch:
        raise TypeError("batches of several shapes are taken from the member that has the bucket of the step")

    def shard(self, first: int, count: int) -> Any:
        raise TypeError("batches of several shapes are cut into shards by their members")

    def close(self) -> None:
        """Stops reading ahead and closes the sources; the next read opens them again."""
        for member in self.members:
            close(member)

    # ---- what an epoch holds

    def steps_for(self, examples: float) -> float:
        """Returns the steps in which so many examples are seen, padding not counted; not rounded up to whole steps."""
        epochs, rest = divmod(examples, self.examples_per_epoch)
        first = int(epochs) * self.steps_per_epoch
        turns = self.timetable.turns(first, self.steps_per_epoch)
        before = np.concatenate([[0], np.cumsum(self._examples(turns))])
        return first + float(np.interp(rest, before, np.arange(len(before))))

    def seen(self, first: int, steps: int) -> Seen:
        """Returns what `steps` steps from `first` on see."""
        turns = self.timetable.turns(first, steps)
        number = self._starts[turns.bucket] + turns.place
        tokens = sum(self._tokens(epoch)[number[turns.epoch == epoch]].sum() for epoch in np.unique(turns.epoch))
        places = (self._sizes * self._places)[turns.bucket].sum()
        return Seen(int(self._examples(turns).sum()), int(tokens), int(places))

    @functools.cached_property
    def _places(self) -> np.ndarray:
        """Returns how many places an example of each bucket takes, over all fields."""
        return np.array([sum(shape.values()) for shape in self._buckets.shapes])

    @functools.cached_property
    def _starts(self) -> np.ndarray:
        """Returns how many batches the buckets before each have in an epoch."""
        return np.cumsum([0, *self.timetable.batches[:-1]])

    def _examples(self, turns: Turns) -> np.ndarray:
        """Returns the examples of each step, without padding."""
        size = self._sizes[turns.bucket]
        counts = np.array([order.sizes[0] for order in self._orders])
        return np.minimum(size, counts[turns.bucket] - turns.place * size)

    def _tokens(self, epoch: int) -> np.ndarray:
        """Returns the tokens of all batches of an epoch, bucket after bucket; those of two epochs are kept."""
        if epoch not in self._kept:
            lengths = np.sum([*self._buckets.lengths.values()], axis=0)
            tokens = []
            for order, batches in zip(self._orders, self.timetable.batches, strict=True):
                chosen = order.at_turns(int(epoch) * batches + tf.range(batches, dtype=tf.int64))
                tokens.append((lengths[chosen.index.numpy()] * chosen.weight.numpy().astype(np.int64)).sum(axis=1))
            self._kept = dict([*self._kept.items()][-1:]) | {epoch: np.concatenate(tokens)}
        return self._kept[epoch]

    def _table(self) -> list[dict[str, Any]]:
        """Returns a row for each bucket, for result.json: its lengths, the size of a batch, examples and batches."""
        columns = zip(self._buckets.shapes, self._buckets.sizes, self._orders, self.timetable.batches, strict=True)
        return [
            {**shape, **dict(zip(ROW, (size, order.sizes[0], batches), strict=True))}
            for shape, size, order, batches in columns
        ]


def orders_of(buckets: Buckets, seed: int, shuffle: bool, remainder: str) -> list[BucketOrder]:
    """Returns the order of each bucket.

    Raises:
      UserError: the remainder is 'wrap', or a bucket would have no batch.
    """
    if remainder == "wrap":
        raise UserError(
            "data.remainder='wrap': the last batch of a bucket cannot be filled from the next epoch, which has other"
            " batches between. Use --config.data.remainder=pad or drop."
        )
    batches = []
    for shape, size, rows in zip(buckets.shapes, buckets.sizes, buckets.rows, strict=True):
        batches.append(-(-len(rows) // size) if remainder == "pad" else len(rows) // size)
        if not batches[-1]:
            raise UserError(
                f"data.remainder='drop' leaves out the whole bucket {dict(shape)}: it has {len(rows)} examples, and a"
                f" batch has {size}. Use --config.data.remainder=pad, or fewer buckets."
            )
    timetable = Timetable(tuple(batches), seed, shuffle, buckets.group)
    return [
        BucketOrder(
            sizes=(len(rows),),
            shares=(1,),
            batch_size=size,
            seed=seed,
            shuffle=shuffle,
            remainder=remainder,
            stream=FIRST_STREAM + number,
            timetable=timetable,
            bucket=number,
            rows=tf.constant(rows),
        )
        for number, (size, rows) in enumerate(zip(buckets.sizes, buckets.rows, strict=True))
    ]


def members_of(batches: Any) -> Sequence[Any]:
    """Returns the batches of each shape; batches of one shape are their own single member."""
    return batches.members if isinstance(batches, Bucketed) else [batches]


def bucket_at(batches: Any, step: int) -> int:
    """Returns the number of the member that has the batch of a step."""
    return batches.timetable.bucket_at(step) if isinstance(batches, Bucketed) else 0


def alike(batches: Any, step: int, most: int) -> int:
    """Returns for how many steps from `step` on, at most `most`, one member has the batches."""
    return batches.timetable.alike(step, most) if isinstance(batches, Bucketed) else most


def busiest(batches: Any) -> int | None:
    """Returns the number of the member that most of the time goes to; None of batches of one shape."""
    return batches.busiest if isinstance(batches, Bucketed) else None


def mean_size(batches: Any) -> float:
    """Returns the examples of a step, in the mean over an epoch."""
    is_even = not isinstance(batches, Bucketed)
    return batches.batch_size if is_even else batches.examples_per_epoch / batches.steps_per_epoch


def epoch_of(batches: Any) -> Bucketed | None:
    """Returns the batches if their steps have different numbers of examples: `config.resolve` counts by their table."""
    return batches if isinstance(batches, Bucketed) else None


def check_sizes(batches: Any, replicas: int, micro_batches: int = 1) -> None:
    """Raises UserError if a batch of a bucket cannot be cut into equal shares of replicas and micro-batches."""
    pieces = replicas * micro_batches
    for member in members_of(batches):
        if isinstance(batches, Bucketed) and member.batch_size % pieces:
            raise UserError(
                f"a bucket has batches of {member.batch_size} examples, which {replicas} replicas of {micro_batches}"
                f" micro-batches cannot share. Write Buckets.by_tokens(…, multiple={math.lcm(8, pieces)})."
            )


def longest(batches: Any) -> Any:
    """Returns the member with the longest shape."""
    return members_of(batches)[-1]


def last_steps(batches: Any) -> list[int]:
    """Returns the steps of an epoch that may have padding: that of the last batch of each member."""
    if not isinstance(batches, Bucketed):
        return [] if math.isinf(batches.steps_per_epoch) else [math.ceil(batches.steps_per_epoch) - 1]
    turns = batches.timetable.turns(0, batches.steps_per_epoch)
    ends = np.array(batches.timetable.batches) - 1
    return [int(step) for step in np.flatnonzero(turns.place == ends[turns.bucket])]
