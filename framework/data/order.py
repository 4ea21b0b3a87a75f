"""The order of examples: (seed, step) -> which example stands at which place of the batch.

    order = Order(sizes=(60_000,), shares=(1,), batch_size=128, seed=0, shuffle=True, remainder="wrap")
    source, index, weight = order.at(tf.constant([1_000_000], tf.int64))      # each [1, 128]; costs what step 0 costs

The order is a pure function, so the data cursor of a run is its step: nothing is replayed when a run resumes.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from framework import rng
from framework.errors import UserError

# A mixture has its sources in exact proportion over this many positions, so weights are rounded to 1 in 10,000.
_MIXTURE_CYCLE = 10_000


class Indices(NamedTuple):
    """The examples of some batches, each a tensor [steps, places].

    Attributes:
      source: int32, the number of the source.
      index: int64, the example within its source.
      weight: float32, 1 for an example and 0 for padding.
    """

    source: tf.Tensor
    index: tf.Tensor
    weight: tf.Tensor


@dataclasses.dataclass(frozen=True)
class Order:
    """Computes which example stands at which place of a batch, for any step at the same cost.

    Position p = step * batch_size + place. One source: epoch = p // slots, and place p % slots of that epoch's
    permutation. A mixture: each cycle of `sum(shares)` positions holds `shares[s]` consecutive positions of source s,
    in permuted order, so proportions are exact and the position within a source needs no counting.

    Attributes:
      sizes: number of examples of each source.
      shares: positions of each source in a cycle; (1,) for a single source.
      batch_size: examples of the global batch.
      remainder: 'wrap', 'pad' or 'drop': how an epoch treats an incomplete last batch.
      first: the first place of each batch to compute.
      count: how many places to compute; 0 means all of them.
      stream: number of the first source among the random permutations of a seed.
    """

    sizes: tuple[int, ...]
    shares: tuple[int, ...]
    batch_size: int
    seed: int
    shuffle: bool
    remainder: str
    first: int = 0
    count: int = 0
    stream: int = 1

    @property
    def places(self) -> int:
        """Returns how many places of each batch are computed."""
        return self.count or self.batch_size

    @property
    def slots(self) -> int:
        """Returns the number of positions in one epoch of the first source."""
        size, batch = self.sizes[0], self.batch_size
        return {"wrap": size, "pad": -(-size // batch) * batch, "drop": size // batch * batch}[self.remainder]

    @property
    def steps_per_epoch(self) -> float:
        """Returns how many steps pass over the first source once."""
        return self.slots / self.batch_size * sum(self.shares) / self.shares[0]

    def at(self, steps: tf.Tensor) -> Indices:
        """Returns the examples of whole batches, or of the places from `first` on.

        Args:
          steps: int64 [steps].
        """
        source, epoch, index, size = self._places(steps)
        weight = tf.cast(index < size, tf.float32)
        index = tf.minimum(index, size - 1)
        if self.shuffle:
            index = permute(index, size, key_of(self.seed, self.stream + tf.cast(source, tf.int64), epoch))
        return Indices(source, index, weight)

    def epochs(self, steps: tf.Tensor) -> tf.Tensor:
        """Returns how often the source of each place has been passed over before: int64 [steps, places].

        Args:
          steps: int64 [steps].
        """
        return self._places(steps)[1]

    def _places(self, steps: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns source, epoch, position in the epoch, and size of the source, of each place: [steps, places]."""
        place = self.first + tf.range(self.places, dtype=tf.int64)
        position = steps[:, tf.newaxis] * self.batch_size + place  # [steps, places]
        if len(self.sizes) == 1:
            source, slots = tf.zeros_like(position, tf.int32), tf.constant([self.slots], tf.int64)
        else:
            source, position = self._mixed(position)
            slots = tf.constant(self.sizes, tf.int64)
        slots, size = tf.gather(slots, source), tf.gather(tf.constant(self.sizes, tf.int64), source)
        return source, position // slots, position % slots, size

    def _mixed(self, position: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the source of each position of a mixture, and the position within that source."""
        shares = tf.constant(self.shares, tf.int64)
        ends = tf.cumsum(shares)
        cycle, slot = position // sum(self.shares), position % sum(self.shares)
        if self.shuffle:
            slot = permute(slot, tf.fill(tf.shape(slot), ends[-1]), key_of(self.seed, 0, cycle))
        source = tf.reduce_sum(tf.cast(slot[..., tf.newaxis] >= ends[:-1], tf.int32), axis=-1)
        share, end = tf.gather(shares, source), tf.gather(ends, source)
        return source, cycle * share + slot - (end - share)

    def shard(self, first: int, count: int) -> "Order":
        """Returns the order of places first … first + count - 1 of each batch."""
        return dataclasses.replace(self, first=first, count=count)

    def next(self, step: int) -> int:
        """Returns the first step from `step` on that has a batch of this order."""
        return step

    def steps(self, first: int) -> tf.data.Dataset:
        """Returns the steps from `first` on that have a batch of this order, in turn: int64 scalars."""
        return tf.data.Dataset.range(first, np.iinfo(np.int64).max)


def key_of(seed: int, stream: Any, epoch: tf.Tensor) -> tf.Tensor:
    """Returns a uint32 key for each element: a hash of (seed, stream, epoch)."""
    key = rng.key(seed)
    hashed = rng.mix(tf.cast(stream, tf.uint32) ^ tf.constant(key & 0xFFFFFFFF, tf.uint32))
    return rng.mix(hashed ^ tf.cast(epoch, tf.uint32) ^ tf.constant(key >> 32, tf.uint32))


def cycle_of(weights: Sequence[float]) -> tuple[int, ...]:
    """Returns how many positions each source has in a cycle: whole numbers, by the largest remainder method."""
    if len(weights) == 1:
        return (1,)
    if any(not math.isfinite(weight) or weight <= 0 for weight in weights):
        raise UserError(
            f"mixture weights {tuple(weights)} must all be positive. Leave a source out to give it nothing."
        )
    exact = np.asarray(weights, np.float64) / np.sum(weights) * _MIXTURE_CYCLE
    shares = np.floor(exact).astype(int)
    for extra in np.argsort(shares - exact, kind="stable")[: _MIXTURE_CYCLE - shares.sum()]:
        shares[extra] += 1
    if shares.min() == 0:
        raise UserError(f"mixture weights {tuple(weights)}: the smallest share must be at least 1/{_MIXTURE_CYCLE}.")
    return tuple(int(share) for share in shares // np.gcd.reduce(shares))


def check_order(order: Order) -> None:
    """Raises UserError if a mixture has a remainder other than 'wrap', or every example would be dropped."""
    if len(order.sizes) > 1 and order.remainder != "wrap":
        raise UserError(
            f"data.remainder='{order.remainder}': a mixture has no epochs. Use --config.data.remainder=wrap."
        )
    if order.slots == 0:
        raise UserError(
            f"data.batch_size={order.batch_size} is more than the {order.sizes[0]} examples, and data.remainder='drop'"
            f" drops all of them. Use --config.data.batch_size={order.sizes[0]} or --config.data.remainder=wrap."
        )


def indices_of(batches: Any, order: Order, step: int) -> dict[str, np.ndarray]:
    """Returns {'source', 'index', 'weight'}, each [places], of the batch of a step; its weights are final."""
    rows = order.at(tf.constant([step], tf.int64))
    return {
        "source": rows.source[0].numpy(),
        "index": rows.index[0].numpy(),
        "weight": batches.at(step)["weight"].numpy(),
    }


_ROUNDS = 8


def permute(index: tf.Tensor, size: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
    """Returns the place of `index` in a pseudo-random permutation of [0, size): the same in eager, graph and XLA.

    The permutation is a Feistel network on Z_a x Z_b with a * b just above `size`, applied again while the result is
    outside of [0, size) (Black and Rogaway, 2002, "Ciphers with arbitrary finite domains").
    `tf.random.experimental.index_shuffle` does not compile under XLA.

    Args:
      index: int64, any shape, 0 <= index < size.
      size: int64, same shape, 1 <= size < 2**31; elements with the same key have the same size.
      key: uint32, same shape; selects the permutation.

    Returns:
      int64, same shape.
    """
    rows = tf.cast(tf.math.ceil(tf.sqrt(tf.cast(size, tf.float64))), tf.int64)
    columns = -(-size // rows)
    a, b, limit = (tf.cast(value, tf.uint32) for value in (rows, columns, size))
    numbers = np.arange(1, _ROUNDS + 1, dtype=np.uint64) * 0x9E3779B9 & 0xFFFFFFFF
    # The keys of all rounds come from one op: each further op has to be traced and compiled before the first step.
    keys = rng.mix(key ^ tf.reshape(tf.constant(numbers, tf.uint32), [_ROUNDS, *[1] * key.shape.rank]))
    round_keys = tf.unstack(keys, _ROUNDS)

    def encipher(x: tf.Tensor) -> tf.Tensor:
        left, right = x // b, x % b
        for i in range(0, _ROUNDS, 2):
            left = (left + rng.mix(right ^ round_keys[i]) % a) % a
            right = (right + rng.mix(left ^ round_keys[i + 1]) % b) % b
        return left * b + right

    def walk(x: tf.Tensor, is_inside: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        x = tf.where(is_inside, x, encipher(x))
        return x, x < limit

    # The first round is in the loop too: one trace of it is cheaper than two.
    start = (tf.cast(index, tf.uint32), tf.zeros_like(index, tf.bool))
    x, _ = tf.while_loop(lambda x, is_inside: ~tf.reduce_all(is_inside), walk, start)
    return tf.cast(x, tf.int64)
