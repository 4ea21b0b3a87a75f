"""Which example stands at which place of which batch: a pure function of (seed, step).

order = Order(sizes=(60_000,), shares=(1,), batch_size=128, seed=0, shuffle=True, remainder="wrap")
source, index, weight = order.at(tf.constant([1_000_000], tf.int64))      # each [1, 128]; costs what step 0 costs
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from framework import rng
from framework.config import UserError

# Positions in which a mixture has each source in exact proportion, and so the resolution of its weights.
_MIXTURE_CYCLE = 10_000


@dataclasses.dataclass(frozen=True)
class Order:
    """Which example stands at which place of which batch: (seed, step) -> indices, with O(1) seek.

    Position p = step * batch_size + place. One source: epoch = p // slots, and place p % slots of that epoch's
    permutation. A mixture: each cycle of `sum(shares)` positions holds `shares[s]` consecutive positions of source s,
    in permuted order, so proportions are exact and the position within a source needs no counting.

    Attributes:
      sizes: examples of each source.
      shares: positions of each source in a cycle; (1,) for a single source.
      batch_size: of the global batch.
      remainder: 'wrap', 'pad' or 'drop': what an epoch does with an incomplete last batch.
      first, count: the places of each batch that are asked for; a count of 0 is all of them.
    """

    sizes: tuple[int, ...]
    shares: tuple[int, ...]
    batch_size: int
    seed: int
    shuffle: bool
    remainder: str
    first: int = 0
    count: int = 0

    @property
    def places(self) -> int:
        """How many places of each batch are asked for."""
        return self.count or self.batch_size

    @property
    def slots(self) -> int:
        """Positions of one epoch of the first source."""
        size, batch = self.sizes[0], self.batch_size
        return {"wrap": size, "pad": -(-size // batch) * batch, "drop": size // batch * batch}[self.remainder]

    @property
    def steps_per_epoch(self) -> float:
        """Steps in which the first source is seen once."""
        return self.slots / self.batch_size * sum(self.shares) / self.shares[0]

    def at(self, steps: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Indices of whole batches.

        Args:
          steps: int64 [k].

        Returns:
          source int32, index int64 (within the source) and weight float32, 0 for padding and else 1, each [k, places].
        """
        place = self.first + tf.range(self.places, dtype=tf.int64)
        position = steps[:, tf.newaxis] * self.batch_size + place  # [k, batch]
        if len(self.sizes) == 1:
            source, slots = tf.zeros_like(position, tf.int32), tf.constant([self.slots], tf.int64)
        else:
            source, position = self._mixed(position)
            slots = tf.constant(self.sizes, tf.int64)
        slots, size = tf.gather(slots, source), tf.gather(tf.constant(self.sizes, tf.int64), source)
        epoch, index = position // slots, position % slots
        weight = tf.cast(index < size, tf.float32)
        index = tf.minimum(index, size - 1)
        if self.shuffle:
            index = permute(index, size, self._key(epoch, stream=1 + tf.cast(source, tf.int64)))
        return source, index, weight

    def _mixed(self, position: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Source and position within it of each position of a mixture."""
        shares = tf.constant(self.shares, tf.int64)
        ends = tf.cumsum(shares)
        cycle, slot = position // sum(self.shares), position % sum(self.shares)
        if self.shuffle:
            slot = permute(slot, tf.fill(tf.shape(slot), ends[-1]), self._key(cycle, stream=0))
        source = tf.reduce_sum(tf.cast(slot[..., tf.newaxis] >= ends[:-1], tf.int32), axis=-1)
        share, end = tf.gather(shares, source), tf.gather(ends, source)
        return source, cycle * share + slot - (end - share)

    def _key(self, epoch: tf.Tensor, stream: Any) -> tf.Tensor:
        """uint32 key of each element: a hash of (seed, stream, epoch)."""
        key = rng.key(self.seed)
        hashed = _mix(tf.cast(stream, tf.uint32) ^ tf.constant(key & 0xFFFFFFFF, tf.uint32))
        return _mix(hashed ^ tf.cast(epoch, tf.uint32) ^ tf.constant(key >> 32, tf.uint32))


def cycle_of(weights: Sequence[float]) -> tuple[int, ...]:
    """Whole positions of each source in a cycle, by largest remainder."""
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
    if len(order.sizes) > 1 and order.remainder != "carry":
        raise UserError(
            f"data.remainder='{order.remainder}': a mixture has no epochs. Use --config.data.remainder=carry."
        )
    if order.slots == 0:
        raise UserError(
            f"data.batch_size={order.batch_size} is more than the {order.sizes[0]} examples, and data.remainder='drop'"
            f" drops all of them. Use --config.data.batch_size={order.sizes[0]} or --config.data.remainder=carry."
        )


def indices_of(batches: Any, order: Order, step: int) -> dict[str, np.ndarray]:
    source, index, _ = (rows[0].numpy() for rows in order.at(tf.constant([step], tf.int64)))
    return {"source": source, "index": index, "weight": batches.at(step)["weight"].numpy()}


_ROUNDS = 8


def permute(index: tf.Tensor, size: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
    """A pseudo-random bijection of [0, size), the same in eager, graph and XLA.

    A Feistel network on Z_a x Z_b with a * b just above `size`, walking on while it lands outside (Black and Rogaway,
    2002, "Ciphers with arbitrary finite domains"). `tf.random.experimental.index_shuffle` does not compile under XLA.

    Args:
      index: int64, any shape, 0 <= index < size.
      size: int64, same shape, 1 <= size < 2**31; equal wherever the key is.
      key: uint32, same shape; each key is another permutation.

    Returns:
      int64, same shape.
    """
    rows = tf.cast(tf.math.ceil(tf.sqrt(tf.cast(size, tf.float64))), tf.int64)
    columns = -(-size // rows)
    a, b, limit = (tf.cast(value, tf.uint32) for value in (rows, columns, size))
    numbers = np.arange(1, _ROUNDS + 1, dtype=np.uint64) * 0x9E3779B9 & 0xFFFFFFFF
    # Those of all rounds at once: each op is one more to be traced and compiled before the first step.
    keys = _mix(key ^ tf.reshape(tf.constant(numbers, tf.uint32), [_ROUNDS, *[1] * key.shape.rank]))
    round_keys = tf.unstack(keys, _ROUNDS)

    def encipher(x: tf.Tensor) -> tf.Tensor:
        left, right = x // b, x % b
        for i in range(0, _ROUNDS, 2):
            left = (left + _mix(right ^ round_keys[i]) % a) % a
            right = (right + _mix(left ^ round_keys[i + 1]) % b) % b
        return left * b + right

    def walk(x: tf.Tensor, is_inside: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        x = tf.where(is_inside, x, encipher(x))
        return x, x < limit

    # The first round in the loop too: what is traced once is there sooner.
    start = (tf.cast(index, tf.uint32), tf.zeros_like(index, tf.bool))
    x, _ = tf.while_loop(lambda x, is_inside: ~tf.reduce_all(is_inside), walk, start)
    return tf.cast(x, tf.int64)


def _mix(x: tf.Tensor) -> tf.Tensor:
    """MurmurHash3's 32-bit finaliser (Appleby, 2011): every input bit reaches every output bit."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ tf.bitwise.right_shift(x, tf.constant(shift, tf.uint32))) * tf.constant(factor, tf.uint32)
    return x ^ tf.bitwise.right_shift(x, tf.constant(16, tf.uint32))
