"""framework/data/order.py against the order written out in NumPy, by counting examples, and by statistics."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from framework import rng
from framework.data import order as order_module
from framework.data.order import key_of, permute
from tests.compile_modes import MODES
from tests.data.numbered import make_order, order_at
from tests.shuffled import epoch_key, mix, permuted


def walked(order, steps):
    """Source, index and weight of each place of the first batches, one position after the other."""
    seed, cycle = order.seed, sum(order.shares)
    seen, rows = [0] * len(order.sizes), []
    several = len(order.sizes) > 1
    permutations = {}

    def permutation(size, stream, epoch):
        if not order.shuffle:
            return range(size)
        if (stream, epoch) not in permutations:
            permutations[stream, epoch] = permuted(size, epoch_key(seed, stream, epoch))
        return permutations[stream, epoch]

    owner = np.repeat(range(len(order.shares)), order.shares)
    for position in range(steps * order.batch_size):
        source = 0
        if several:
            slot = permutation(cycle, 0, position // cycle)[position % cycle]
            source = owner[slot]
            # Within a cycle a source's positions stand in the order of their slots.
            place = position // cycle * order.shares[source] + slot - list(owner).index(source)
        else:
            place = seen[0]
        seen[source] += 1
        size = order.sizes[source]
        slots = size if several else order.slots
        epoch, index = divmod(place, slots)
        weight = float(index < size)
        rows.append((source, permutation(size, 1 + source, epoch)[min(index, size - 1)], weight))
    return [np.reshape(column, (steps, order.batch_size)) for column in zip(*rows, strict=True)]


def tensors(size, key):
    return (
        tf.range(size, dtype=tf.int64),
        tf.fill([size], tf.constant(size, tf.int64)),
        tf.fill([size], tf.constant(key, tf.uint32)),
    )


# ---- the hash and the permutation


@pytest.mark.parametrize(
    ("word", "hashed"),
    [(0, 0), (1, 0x514E28B7), (2, 0x30F4C306), (0xFFFFFFFF, 0x81F16F39), (0xDEADBEEF, 0x0DE5C6A9)],
)
def test_mix_gives_the_known_answers_of_murmur3(word, hashed):
    assert int(rng.mix(tf.constant(word, tf.uint32))) == hashed
    assert mix(word).item() == hashed


SIZES = [1, 2, 3, 4, 5, 6, 7, 9, 10, 12, 13, 97, 99, 100, 101, 127, 128, 1000, 9999, 10_000, 10_001, 60_000]


@pytest.mark.parametrize("size", SIZES)
def test_permute_is_the_feistel_network_and_a_bijection(size):
    for key in (0, 1, 0x9E3779B9, 2**32 - 1, 123456789):
        drawn = permute(*tensors(size, key)).numpy()
        assert np.array_equal(np.sort(drawn), np.arange(size))
        assert np.array_equal(drawn, permuted(size, key))


def test_permute_is_a_bijection_of_a_million():
    size = 2**20 + 7
    drawn = tf.function(permute, jit_compile=True, autograph=False)(*tensors(size, 99)).numpy()
    assert np.array_equal(np.sort(drawn), np.arange(size))


@pytest.mark.parametrize("size", [46_340**2, 46_340**2 + 1, 46_341 * 46_340, 2**31 - 1])
def test_permute_of_the_largest_sizes_stays_inside_and_hits_nothing_twice(size):
    index = np.unique(np.concatenate([np.arange(5000), size - 1 - np.arange(5000), np.arange(5000) * (size // 5000)]))
    drawn = permute(
        tf.constant(index),
        tf.fill([len(index)], tf.constant(size, tf.int64)),
        tf.fill([len(index)], tf.constant(5, tf.uint32)),
    )
    assert drawn.numpy().min() >= 0
    assert drawn.numpy().max() < size
    assert len(np.unique(drawn)) == len(index)


@pytest.mark.parametrize("size", [1, 10, 1000, 60_000])
def test_permute_is_the_same_in_every_mode(size):
    eager, *others = (wrap(permute)(*tensors(size, 77)).numpy() for wrap in MODES.values())
    for other in others:
        assert np.array_equal(eager, other)


def test_permute_takes_sizes_and_keys_of_each_element():
    sizes, keys = [3, 10, 97], [8, 9, 10]
    parts = [permute(*tensors(size, key)) for size, key in zip(sizes, keys, strict=True)]
    joined = [
        tf.concat(part, 0) for part in zip(*(tensors(s, k) for s, k in zip(sizes, keys, strict=True)), strict=True)
    ]
    assert np.array_equal(permute(*joined), tf.concat(parts, 0))


def permutations_of(size, count):
    """[count, size]: permutations as successive epochs have them."""
    index, sizes, _ = tensors(size, 0)
    keys = key_of(3, 1, tf.range(count, dtype=tf.int64))
    every = [tf.tile(part[tf.newaxis], [count, 1]) for part in (index, sizes)]
    return permute(*every, tf.tile(keys[:, tf.newaxis], [1, size])).numpy()


def is_chi_square(counts, sigmas=4.5):
    """Whether counts look like draws from a uniform distribution, neither too uneven nor too even."""
    expected, free = counts.mean(), counts.size - 1
    return abs(((counts - expected) ** 2).sum() / expected - free) < sigmas * np.sqrt(2 * free)


@pytest.mark.parametrize(("size", "tolerance"), [(2, 0.1), (3, 0.1), (4, 0.2), (5, 0.6)])
def test_every_permutation_of_a_few_occurs_and_none_is_a_favourite(size, tolerance):
    # Eight rounds over the least domains (2 x 2, 3 x 2) leave a bias that shows in whole permutations alone.
    drawn = permutations_of(size, 24_000)
    found, counts = np.unique(drawn, axis=0, return_counts=True)
    assert len(found) == len(list(itertools.permutations(range(size))))
    assert np.abs(counts / counts.mean() - 1).max() < tolerance


@pytest.mark.parametrize("size", [3, 5, 7, 10, 97, 128])
def test_over_epochs_every_example_is_equally_often_at_every_place(size):
    epochs = 4000
    drawn = permutations_of(size, epochs)
    counts = np.zeros((size, size))
    np.add.at(counts, (np.arange(size)[np.newaxis], drawn), 1)
    # Rows and columns of the table have fixed sums, which takes 2 * size - 1 degrees of freedom.
    statistic, free = ((counts - epochs / size) ** 2).sum() / (epochs / size), (size - 1) ** 2
    assert abs(statistic - free) < 4.5 * np.sqrt(2 * free)
    fixed = (drawn == np.arange(size)).sum(1)
    assert abs(fixed.mean() - 1) < 4.5 / np.sqrt(epochs)
    assert abs(fixed.var() - 1) < 0.15 or size < 10


@pytest.mark.parametrize("size", [97, 1000])
def test_neighbours_and_successive_epochs_are_uncorrelated(size):
    epochs = 500
    scores = permutations_of(size, epochs) - (size - 1) / 2
    variance = (size**2 - 1) / 12
    for product in (scores[:, 1:] * scores[:, :-1], scores[:, 2:] * scores[:, :-2], scores[1:] * scores[:-1]):
        correlation = product.mean() / variance
        assert abs(correlation) < 4.5 / np.sqrt(product.size) + 1 / size  # neighbours: -1 / (size - 1) by construction
    after = (scores[:, 1:] - scores[:, :-1]) % size  # the difference of neighbours takes each value but 0 equally often
    assert is_chi_square(np.bincount(after.astype(int).ravel(), minlength=size)[1:])


# ---- the order
ORDERS = {
    "wrap": make_order(),
    "wrap, batch larger than the data": make_order((3,), 8),
    "wrap, whole batches": make_order((12,), 4),
    "pad": make_order(remainder="pad"),
    "pad, batch larger than the data": make_order((3,), 8, remainder="pad"),
    "drop": make_order((11,), remainder="drop"),
    "in file order": make_order(shuffle=False),
    "one example": make_order((1,), 2),
    "another seed": make_order(seed=2**63 - 1),
    "mixture": make_order((10, 7), 8, (3, 2)),
    "mixture in file order": make_order((10, 7), 8, (3, 2), shuffle=False),
    "mixture of three": make_order((5, 97, 2), 16, (1, 7, 2), seed=0),
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_order_is_what_walking_through_the_epochs_gives(order):
    steps = 25
    walk = walked(order, steps)
    for mode, wrap in MODES.items():
        if mode != "eager" and order not in (ORDERS["wrap"], ORDERS["pad"], ORDERS["mixture"]):
            continue  # compiling takes longer than all the rest
        source, index, weight = wrap(order.at)(tf.range(steps, dtype=tf.int64))
        assert (source.dtype, index.dtype, weight.dtype) == (tf.int32, tf.int64, tf.float32)
        for found, wanted in zip((source, index, weight), walk, strict=True):
            assert np.array_equal(found, wanted)
    for step in (0, 7, 24):  # a step alone
        for found, wanted in zip(order_at(order, [step]), walk, strict=True):
            assert np.array_equal(found[0], wanted[step])


@pytest.mark.parametrize("remainder", ["wrap", "pad", "drop"])
@pytest.mark.parametrize(("size", "batch_size"), [(10, 4), (12, 4), (97, 10), (5, 1)])
def test_every_epoch_has_each_example_once(remainder, size, batch_size):
    order = make_order((size,), batch_size, remainder=remainder)
    epochs = 6
    steps = int(np.ceil(order.steps_per_epoch * epochs))
    _, index, weight = order_at(order, range(steps))
    index, weight = index.ravel(), weight.ravel()
    for epoch in range(epochs):
        places = slice(epoch * order.slots, (epoch + 1) * order.slots)
        counts = np.bincount(index[places], weights=weight[places], minlength=size)
        if remainder == "drop":
            assert sorted(counts) == sorted([1.0] * order.slots + [0.0] * (size - order.slots))
        else:
            assert np.array_equal(counts, np.ones(size))
    if remainder != "pad":
        assert weight.all()
    else:  # padding stands at the end of an epoch's last batch and nowhere else
        full = weight.reshape(epochs, -1)
        assert np.array_equal(full, np.tile(np.arange(order.slots) < size, (epochs, 1)))


@pytest.mark.parametrize(
    ("remainder", "steps_per_epoch"), [("wrap", 2.5), ("pad", 3.0), ("drop", 2.0)], ids=["wrap", "pad", "drop"]
)
def test_steps_per_epoch_counts_a_part_of_a_batch_as_the_remainder_does(remainder, steps_per_epoch):
    assert make_order(remainder=remainder).steps_per_epoch == steps_per_epoch


def test_steps_per_epoch_of_a_mixture_is_of_the_first_source():
    assert make_order((30, 7), 5, (3, 2)).steps_per_epoch == 10.0  # 3 of 5 examples: 3 a step


@pytest.mark.parametrize("step", [10**6, 10**9])
def test_a_far_step_costs_nothing_and_is_the_formulas(step):
    size, batch = 60_000, 128
    _, index, weight = order_at(make_order((size,), batch, seed=3), [step])
    positions = step * batch + np.arange(batch)
    wanted = [permuted(size, epoch_key(3, 1, position // size))[position % size] for position in positions[[0, 64, -1]]]
    assert index[0, [0, 64, -1]].tolist() == wanted
    assert weight.all()


def test_a_far_step_of_a_mixture_is_the_formulas():
    order, step = make_order((10, 7), 5, (3, 2)), 10**9
    source, index, _ = order_at(order, [step])
    slots = permuted(5, epoch_key(3, 0, step))  # a batch is a cycle
    assert np.array_equal(source[0], slots >= 3)
    for place, slot in enumerate(slots):
        size, position, stream = (10, step * 3 + slot, 1) if slot < 3 else (7, step * 2 + slot - 3, 2)
        assert index[0, place] == permuted(size, epoch_key(3, stream, position // size))[position % size]


def test_the_order_depends_on_the_seed_and_not_on_the_batch_size():
    one, other = (order_at(make_order((50,), batch), range(100))[1].ravel() for batch in (4, 10))
    assert np.array_equal(one, other[:400])
    shuffled = order_at(make_order((50,), 10, seed=4), range(100))[1].ravel()
    assert (shuffled != other).mean() > 0.9


def test_a_mixture_has_exact_shares_and_each_source_its_own_epochs():
    sizes, shares = (10, 7, 4), (5, 3, 2)
    order = make_order(sizes, 8, shares)
    cycles = 28
    source, index, weight = (column.ravel() for column in order_at(order, range(cycles * 10 // 8)))
    assert weight.all()
    for cycle in range(cycles):
        assert np.bincount(source[cycle * 10 : cycle * 10 + 10], minlength=3).tolist() == [5, 3, 2]
    for number, (size, share) in enumerate(zip(sizes, shares, strict=True)):
        # Up to the order within a cycle, the source runs through its own shuffled epochs.
        place = np.arange(cycles * share)
        own = np.concatenate([permuted(size, epoch_key(3, 1 + number, e)) for e in range(cycles * share // size + 1)])
        for cycle in range(cycles):
            here = index[cycle * 10 : cycle * 10 + 10][source[cycle * 10 : cycle * 10 + 10] == number]
            assert sorted(here) == sorted(own[place[cycle * share : (cycle + 1) * share]])
        whole_epochs = cycles * share // size
        if whole_epochs * size == cycles * share:
            assert set(np.bincount(index[source == number])) == {whole_epochs}


def test_shares_are_whole_numbers_by_largest_remainder():
    assert order_module.cycle_of([3.0]) == (1,)
    assert order_module.cycle_of([0.7, 0.3]) == (7, 3)
    assert order_module.cycle_of([2, 2, 2, 2]) == (1, 1, 1, 1)
    assert order_module.cycle_of([1, 1, 1]) == (3334, 3333, 3333)
    assert order_module.cycle_of([1, 9999]) == (1, 9999)
