"""The data order in NumPy, the reference of tests: its permutations, and the batches of buckets."""

import numpy as np

from framework import rng

U32 = np.uint32


def mix(x):
    """MurmurHash3's finaliser, on uint32 arrays."""
    x = np.atleast_1d(np.asarray(x, U32))
    x = (x ^ (x >> U32(16))) * U32(0x85EBCA6B)
    x = (x ^ (x >> U32(13))) * U32(0xC2B2AE35)
    return x ^ (x >> U32(16))


def permuted(size, key):
    """The whole permutation of [0, size): a generalised Feistel network of 8 rounds with cycle walking."""
    rows = int(np.ceil(np.sqrt(size)))
    columns = -(-size // rows)
    keys = [mix(U32(key) ^ U32(0x9E3779B9 * (i + 1) % 2**32)) for i in range(8)]

    def encipher(x):
        left, right = x // columns, x % columns
        for even, odd in zip(keys[::2], keys[1::2], strict=True):
            left = (left + mix(right ^ even) % U32(rows)) % rows
            right = (right + mix(left.astype(U32) ^ odd) % U32(columns)) % columns
        return (left * columns + right).astype(U32)

    x = encipher(np.arange(size, dtype=U32))
    while (outside := x >= size).any():
        x[outside] = encipher(x[outside])
    return x.astype(np.int64)


def epoch_key(seed, stream, epoch):
    key = rng.key(seed)
    return mix(mix(U32(stream) ^ U32(key % 2**32)) ^ U32(epoch) ^ U32(key >> 32)).item()


def located(index, counts):
    """The bucket of an index and the place in it, one count after the other."""
    for bucket, count in enumerate(counts):
        if index < count:
            return bucket, index
        index -= count
    raise AssertionError


def walked(buckets, seed, steps, remainder="pad", shuffle=True):
    """(bucket, numbers of the examples, weights) of each step, by whole permutations of an epoch in NumPy."""
    divide = {"pad": lambda n, size: -(-n // size), "drop": lambda n, size: n // size}[remainder]
    counts = [divide(len(rows), size) for rows, size in zip(buckets.rows, buckets.sizes, strict=True)]
    group = buckets.group
    groups, rest = [n // group for n in counts], [n % group for n in counts]
    total = sum(counts)
    result = []
    for step in range(steps):
        epoch, position = divmod(step, total)
        if not shuffle:
            bucket, place = located(position, counts)
        elif position < sum(groups) * group:
            number = permuted(sum(groups), epoch_key(seed, 0, epoch))[position // group]
            bucket, place = located(number, groups)
            place = place * group + position % group
        else:
            number = permuted(sum(rest), epoch_key(seed, 1, epoch))[position - sum(groups) * group]
            bucket, place = located(number, rest)
            place += groups[bucket] * group
        rows, size = buckets.rows[bucket], buckets.sizes[bucket]
        order = permuted(len(rows), epoch_key(seed, 2 + bucket, epoch)) if shuffle else np.arange(len(rows))
        places = np.arange(place * size, (place + 1) * size)
        examples = rows[order[np.minimum(places, len(rows) - 1)]]
        result.append((bucket, examples, (places < len(rows)).astype(np.float32)))
    return result
