"""framework/data/batches.py against its order written out in NumPy, by counting examples, and by statistics."""

import itertools
import re
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from framework import rng
from framework.config import UserError, base_config
from framework.data import batches as module
from framework.data import order as order_module
from framework.data.batches import Resident, Streamed, epoch_steps, make_batches
from framework.data.order import Order, permute
from framework.data.sources import Source

MODES = {
    "eager": lambda fn: fn,
    "graph": lambda fn: tf.function(fn, autograph=False),
    "xla": lambda fn: tf.function(fn, autograph=False, jit_compile=True),
}
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


def make_order(sizes=(10,), batch_size=4, shares=(1,), seed=3, shuffle=True, remainder="wrap"):
    return Order(sizes, shares, batch_size, seed, shuffle, remainder)


def order_at(order, steps):
    return [column.numpy() for column in order.at(tf.constant(steps, tf.int64))]


def make_config(**values):
    config = base_config()
    config.seed = 5
    config.data.batch_size = 4
    config.eval.batch_size = 4
    for key, value in values.items():
        section, _, name = key.partition("__")
        config[section][name] = value
    return config


def make_source(size=10, offset=0, origin="numbers"):
    index = np.arange(offset, offset + size)
    return Source({"x": np.stack([index, index**2], 1).astype(np.float32), "label": index.astype(np.int32)}, origin)


def equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype
        assert np.array_equal(one[name], other[name]), name


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
    keys = make_order((size,))._key(tf.range(count, dtype=tf.int64), stream=1)
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


# ---- resident and streamed batches


def noisy(batch):
    """A transform with a new field, a changed one and draws of its own."""
    drawn = rng.uniform("augment", tf.shape(batch["x"])[0], 3)
    return {**batch, "x": tf.cast(batch["x"], tf.float64) / 256, "noise": drawn}


CASES = {
    "one source": (make_source(10), {}),
    "padded": (make_source(10), {"data__remainder": "pad"}),
    "in file order": (make_source(10), {"data__shuffle": False}),
    "mixture": ([(make_source(10), 3.0), (make_source(7, 100), 2.0)], {}),
}


def both(sources, transform=None, **values):
    return [
        make_batches(sources, make_config(**values, data__placement=place), training=True, transform=transform)
        for place in ("resident", "stream")
    ]


@pytest.mark.parametrize("transform", [None, noisy], ids=["plain", "transformed"])
@pytest.mark.parametrize("case", CASES)
def test_resident_and_streamed_batches_are_the_same_by_every_way(case, transform):
    sources, values = CASES[case]
    resident, streamed = both(sources, transform, **values)
    assert (resident.is_resident, streamed.is_resident) == (True, False)
    parts = [source for source, _ in sources] if isinstance(sources, list) else [sources]
    shares = (3, 2) if len(parts) > 1 else (1,)
    order = make_order(
        tuple(map(len, parts)), 4, shares, 5, values.get("data__shuffle", True), values.get("data__remainder", "wrap")
    )
    key = rng.key(5)
    for first, steps, size in ((0, 3, 3), (3, 1, 5), (4, 5, 5), (1, 2, 5), (10**6, 2, 2)):
        source, index, weight = order_at(order, range(first, first + steps))
        plans = [batches.plan(first, steps, size) for batches in (resident, streamed)]
        for row in range(steps):
            wanted = {
                name: np.stack([parts[s].arrays[name][i] for s, i in zip(source[row], index[row], strict=True)])
                for name in ("x", "label")
            }
            wanted["weight"] = weight[row]
            if transform:
                with rng.scope(key, first + row):
                    wanted["noise"] = rng.uniform("augment", 4, 3)
                wanted["x"] = wanted["x"].astype(np.float64) / 256
            for batches, plan in zip((resident, streamed), plans, strict=True):
                with rng.scope(key, first + row):
                    taken = batches.take(plan, tf.constant(row))
                equal(
                    {name: tensor.numpy() for name, tensor in taken.items()},
                    {n: np.asarray(w) for n, w in wanted.items()},
                )
                equal(taken, batches.at(first + row))


@pytest.mark.parametrize("mode", MODES)
def test_resident_batches_are_the_same_inside_a_compiled_block(mode):
    batches, _ = both(make_source(10), noisy)

    def block(first):
        plan = batches.plan(first, 3, 3)
        with rng.scope(rng.key(5), first + 1):
            return batches.take(plan, tf.constant(1))

    equal(MODES[mode](block)(tf.constant(6, tf.int64)), batches.at(7))


def labels(batches, blocks):
    """Labels of the batches read in blocks of (first step, steps)."""
    taken = []
    for first, steps in blocks:
        plan = batches.plan(first, steps, 5)
        taken += [batches.take(plan, tf.constant(row))["label"].numpy().tolist() for row in range(steps)]
    return taken


@pytest.mark.parametrize("placement", [0, 1], ids=["resident", "streamed"])
def test_batches_do_not_depend_on_the_length_of_blocks(placement):
    one, two, three = (both(make_source(37))[placement] for _ in range(3))
    wanted = [one.at(step)["label"].numpy().tolist() for step in range(12)]
    assert labels(two, [(0, 5), (5, 5), (10, 2)]) == wanted
    assert labels(three, [(0, 1), (1, 3), (4, 1), (5, 2), (7, 5)]) == wanted


def test_a_streamed_iterator_is_kept_while_steps_follow_one_another_and_sought_when_not(monkeypatch):
    _, batches = both(make_source(37))
    opened, dataset = [], batches._dataset
    monkeypatch.setattr(batches, "_dataset", lambda first: opened.append(first) or dataset(first))
    wanted = [batches.at(step)["label"].numpy().tolist() for step in range(30)]
    found = labels(batches, [(0, 2), (2, 5), (7, 1), (20, 3), (23, 2), (3, 2), (3, 1), (4, 1)])
    steps = [*range(8), *range(20, 25), 3, 4, 3, 4]
    assert found == [wanted[step] for step in steps]
    assert opened == [0, 20, 3, 3]


def test_filler_rows_of_a_plan_have_the_shape_of_the_others():
    for batches in both(make_source(10)):
        for tensor in batches.plan(0, 2, 7).values():
            assert tensor.shape[0] == 7


def test_a_streamed_transform_is_traced_once_for_all_seeks_and_at_is_the_same_without():
    traced = []

    def transform(batch):
        traced.append(tf.executing_eagerly())
        return batch

    _, batches = both(make_source(10), transform)
    labels(batches, [(0, 2), (5, 2), (3, 1), (9, 1)])
    looks = 2  # for draws that are constants
    assert traced == [False] * (looks + 1)
    batches.at(0)
    assert traced == [False] * (looks + 1) + [True]


class Slow(Source):
    """Early steps take longer than later ones, so that batches prepared side by side finish out of order."""

    def take(self, indices):
        time.sleep(0.02 if indices[0] % 4 == 0 else 0.0)
        return super().take(indices)


@pytest.mark.parametrize("calls", [1, 4])
def test_batches_prepared_side_by_side_come_in_order(calls):
    source = Slow(make_source(64).arrays, "slow")
    batches = make_batches(
        source, make_config(data__placement="stream", data__parallel_calls=calls, data__shuffle=False), training=True
    )
    assert np.ravel(labels(batches, [(0, 5), (5, 5)])).tolist() == list(range(40))


def test_a_memory_mapped_source_is_streamed_without_being_read(tmp_path):
    statm = Path("/proc/self/statm")

    def resident_bytes():
        return int(statm.read_text().split()[1]) * 4096 if statm.exists() else 0  # not to be seen: the rest still holds

    size, width = 2200, 2**20
    pictures = np.memmap(tmp_path / "x", np.uint8, "w+", shape=(size, width))  # sparse: 2.2 GB that take no space
    batches = make_batches(Source({"x": pictures, "label": np.arange(size)}, "map"), make_config(), training=True)
    assert isinstance(batches, Streamed)  # more than data.resident_limit_mb
    _, (wanted,), _ = order_at(make_order((size,), 4, seed=5), [11])
    pictures[wanted, 0] = [1, 2, 3, 4]
    before = resident_bytes()
    batch = batches.at(11)
    assert batch["label"].numpy().tolist() == wanted.tolist()
    assert batch["x"].numpy()[:, 0].tolist() == [1, 2, 3, 4]
    assert batch["x"].shape == (4, width)
    assert resident_bytes() - before < 200 * 2**20


@pytest.mark.parametrize(
    ("placement", "limit_mb", "kind"),
    [("auto", 1, Resident), ("auto", 0, Streamed), ("resident", 0, Resident), ("stream", 1, Streamed)],
)
def test_placement_auto_goes_by_size(placement, limit_mb, kind):
    config = make_config(data__placement=placement, data__resident_limit_mb=limit_mb)
    assert type(make_batches(make_source(), config, training=True)) is kind


def test_placement_auto_counts_all_sources_and_the_limit_is_inclusive():
    half = Source({"x": np.zeros(2**19, np.uint8)}, "half")
    config = make_config(data__resident_limit_mb=1)
    assert type(make_batches([(half, 1), (half, 1)], config, training=True)) is Resident
    over = Source({"x": np.zeros(2**19 + 1, np.uint8)}, "over")
    assert type(make_batches([(half, 1), (over, 1)], config, training=True)) is Streamed


@pytest.mark.parametrize(
    ("memory", "limit_mb", "why"),
    [
        (4 * 2**20, 1, "resident"),
        (4 * 2**20 - 1, 1, "streamed: more than a quarter of the 4 MB of memory"),
        (None, 1, "resident"),  # nothing tells
        (2**40, 0, "streamed: more than data.resident_limit_mb=0"),
    ],
)
def test_placement_auto_leaves_memory_for_a_copy_and_says_why(memory, limit_mb, why, monkeypatch, caplog):
    monkeypatch.setattr(module, "host_memory", lambda: memory)
    caplog.set_level("INFO")
    config = make_config(data__resident_limit_mb=limit_mb)
    batches = make_batches(Source({"x": np.zeros(2**20, np.uint8)}, "made up"), config, training=True)
    assert type(batches) is (Resident if why == "resident" else Streamed)
    assert caplog.messages == [f"data.placement=auto: made up, 1 MB, {why}"]


def test_what_is_asked_for_is_not_weighed(monkeypatch, caplog):
    monkeypatch.setattr(module, "host_memory", lambda: 0)
    caplog.set_level("INFO")
    assert type(make_batches(make_source(), make_config(data__placement="resident"), training=True)) is Resident
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("megabytes", "block_steps", "prefetch", "ahead"),
    [(1, 100, 8, 64), (1, 20, 8, 20), (1, 20, 32, 32), (16, 100, 8, 8), (0.0625, 100, 8, 100)],
)
def test_of_small_batches_those_of_a_block_are_read_ahead(megabytes, block_steps, prefetch, ahead):
    """64 MB of them; else as many as `data.prefetch_batches` says."""
    pictures = np.broadcast_to(np.uint8(0), (40, int(megabytes * 2**18)))  # no memory; four of them are a batch
    config = make_config(data__placement="stream", data__prefetch_batches=prefetch, train__block_steps=block_steps)
    batches = make_batches(Source({"x": pictures}, "made up"), config, training=True)
    assert batches.ahead == ahead


def test_streamed_batches_are_read_while_those_before_are_trained(monkeypatch):
    """Once a plan is there, all batches of the next one are read without anybody asking."""
    read, wanted = set(), set(range(6, 12))

    class Recorded(module.RetryingReader):
        def read(self, source, index, step):
            read.add(step)
            return super().read(source, index, step)

    monkeypatch.setattr(module, "RetryingReader", Recorded)
    monkeypatch.setattr(module, "_READ_AHEAD_BYTES", 0)
    config = make_config(data__placement="stream", data__prefetch_batches=6)
    batches = make_batches(make_source(), config, training=True)
    assert batches.ahead == 6
    batches.plan(0, 6, 6)
    deadline = time.monotonic() + 60
    while not wanted <= read and time.monotonic() < deadline:
        time.sleep(0.01)
    assert wanted <= read
    batches._close()


@pytest.mark.parametrize("placement", ["resident", "stream"])
def test_an_evaluation_split_is_one_padded_pass_in_file_order(placement):
    config = make_config(data__placement=placement, data__remainder="drop", eval__batch_size=4)
    batches = make_batches(make_source(10), config, training=False)
    assert epoch_steps(batches) == 3
    rows = [batches.at(step) for step in range(3)]
    assert np.concatenate([row["weight"] for row in rows]).tolist() == [1.0] * 10 + [0.0] * 2
    assert np.concatenate([row["label"] for row in rows])[:10].tolist() == list(range(10))


@pytest.mark.parametrize("placement", ["resident", "stream"])
def test_batches_say_what_they_are(placement):
    sources = [(make_source(10, origin="one"), 3), (Source(make_source(7).arrays, "two", is_subset=True), 1)]
    batches = make_batches(sources, make_config(data__placement=placement), training=True)
    assert batches.batch_size == 4
    assert batches.steps_per_epoch == 10 / 3
    assert batches.origin == {
        "placement": placement,
        "source": "one + two",
        "examples": 17,
        "bytes": 17 * 12,
        "subset": True,
        "sample": batches.origin["sample"],
    }


def sample(arrays, **values):
    return make_batches(Source(arrays, "x"), make_config(**values), training=True).origin["sample"]


def test_batches_are_known_by_some_of_their_examples():
    x = np.arange(1000, dtype=np.float32)
    known = sample({"x": x})
    assert re.fullmatch("[0-9a-f]{64}", known) and known == sample({"x": x.copy()}, data__placement="stream")
    last, first = x.copy(), x.copy()
    last[-1], first[0] = 7, 7
    others = [
        {"x": last},
        {"x": first},
        {"y": x},
        {"x": x.view(np.int32)},
        {"x": x[:, np.newaxis]},
        {"x": np.append(x, x[-1])},
    ]
    assert len({known, *map(sample, others)}) == 1 + len(others)


def test_a_source_that_reads_in_a_way_of_its_own_is_not_read_to_be_known():
    class Far(Source):
        def take(self, indices):
            return super().take(indices)

    config = make_config(data__placement="stream")
    assert make_batches(Far(make_source().arrays, "far"), config, training=True).origin["sample"] is None


def test_texts_are_known_by_what_they_say():
    one, other = (np.array([str(number) for number in range(1000, 1010)], object) for _ in range(2))
    assert one[0] is not other[0]
    assert Source({"x": one}, "x").fingerprint() == Source({"x": other}, "x").fingerprint()


# ---- errors


def test_a_batch_of_which_drop_leaves_nothing():
    with pytest.raises(UserError) as error:
        make_batches(make_source(3), make_config(data__remainder="drop"), training=True)
    assert str(error.value) == (
        "data.batch_size=4 is more than the 3 examples, and data.remainder='drop' drops all of them."
        " Use --config.data.batch_size=3 or --config.data.remainder=wrap."
    )


@pytest.mark.parametrize("remainder", ["pad", "drop"])
def test_a_mixture_with_epochs(remainder):
    with pytest.raises(UserError) as error:
        make_batches([(make_source(), 1), (make_source(), 1)], make_config(data__remainder=remainder), training=True)
    assert str(error.value) == (
        f"data.remainder='{remainder}': a mixture has no epochs. Use --config.data.remainder=wrap."
    )


def test_a_mixture_as_evaluation_split():
    with pytest.raises(UserError) as error:
        make_batches([(make_source(origin="a"), 1), (make_source(origin="b"), 1)], make_config(), training=False)
    assert str(error.value) == (
        "a mixture ('a', 'b') has no end, so it cannot be an evaluation split."
        " Name each source in eval.splits and return it from make_data."
    )


@pytest.mark.parametrize("weights", [(1, 0), (1, -1), (1, float("nan")), (float("inf"), 1)])
def test_mixture_weights_that_are_no_shares(weights):
    with pytest.raises(UserError) as error:
        make_batches([(make_source(), weight) for weight in weights], make_config(), training=True)
    assert str(error.value) == f"mixture weights {weights} must all be positive. Leave a source out to give it nothing."


def test_a_mixture_weight_below_the_resolution():
    with pytest.raises(UserError) as error:
        make_batches([(make_source(), 1), (make_source(), 1e-6)], make_config(), training=True)
    assert str(error.value) == "mixture weights (1, 1e-06): the smallest share must be at least 1/10000."


def test_an_empty_source():
    with pytest.raises(UserError) as error:
        make_batches(make_source(0, origin="nothing.npz"), make_config(), training=True)
    assert str(error.value) == "'nothing.npz' has 0 examples; a source has between 1 and 2**31 - 1."


def test_sources_of_a_mixture_that_differ():
    other = Source({"x": np.zeros((3, 3), np.float64)}, "other")
    with pytest.raises(UserError) as error:
        make_batches([(make_source(), 1), (other, 1)], make_config(), training=True)
    assert str(error.value) == ("the sources of a mixture differ: 'numbers' has a field 'label', and 'other' does not.")


def test_streamed_batches_are_read_side_by_side_under_determinism():
    """tf.data runs a stateful map one by one under op determinism; both readers must be inside at once."""
    both = threading.Barrier(2, timeout=20)

    class Meeting(Source):
        def take(self, indices):
            if len(indices) > 1:  # not the look at one example when the batches are made
                both.wait()
            return super().take(indices)

    tf.config.experimental.enable_op_determinism()
    source = Meeting({"x": np.arange(64)}, "meeting")
    settings = {"data__placement": "stream", "data__parallel_calls": 2, "data__batch_size": 8}
    made = make_batches(source, make_config(**settings), training=True)
    assert made.plan(0, 4, 4)["x"].shape == (4, 8)
