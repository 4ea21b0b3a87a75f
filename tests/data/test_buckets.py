"""framework/data/buckets.py, shapes.py, timetable.py and bucketed.py against brute force and the order in NumPy."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from framework.config import UserError, base_config
from framework.data import Buckets, Source, from_items, make_batches
from framework.data.bucketed import alike, bucket_at, last_steps, members_of
from framework.data.shapes import least_padding
from framework.data.timetable import Timetable
from tests.shuffled import walked

RNG = np.random.default_rng(0)
EXAMPLES = 45
SOURCE = RNG.integers(1, 10, EXAMPLES)
TARGET = np.clip(SOURCE + RNG.integers(-2, 3, EXAMPLES), 1, 12)


def make_source():
    """Returns sentences whose tokens are 100 times the example plus their place, padded with 0."""
    fields = {}
    for name, lengths, longest in (("source", SOURCE, 9), ("target", TARGET, 14)):
        place = np.arange(longest)
        fields[name] = np.where(place < lengths[:, None], 100 * np.arange(EXAMPLES)[:, None] + place + 1, 0)
    return Source({**fields, "number": np.arange(EXAMPLES)}, origin="sentences")


def make_buckets(tokens=64, count=3, multiple=2, **settings):
    lengths = {"source": SOURCE, "target": TARGET}
    return Buckets.by_tokens(lengths, tokens, count, multiple=multiple, **settings)


def make_config(placement="resident", remainder="pad", shuffle=True, prefetch=3):
    config = base_config()
    config.seed = 7
    config.data.placement, config.data.remainder, config.data.shuffle = placement, remainder, shuffle
    config.data.prefetch_batches = prefetch
    return config


def make(training=True, buckets=None, transform=None, **settings):
    buckets = buckets or make_buckets()
    config = make_config(**settings)
    return make_batches(make_source(), config, training=training, buckets=buckets, transform=transform)


# ---- shapes


def cost(shapes, lengths):
    """The places of all examples, each in the first shape that holds it."""
    holds = (np.array(shapes)[:, :, None] >= lengths).all(axis=1)
    return np.sum(shapes, axis=1)[holds.argmax(axis=0)].sum()


@pytest.mark.parametrize("fields", [1, 2])
def test_least_padding_is_that_of_brute_force(fields):
    rng = np.random.default_rng(fields)
    for _ in range(60):
        lengths, count = rng.integers(1, 6, (fields, rng.integers(3, 15))), int(rng.integers(1, 5))
        points = list(itertools.product(*map(np.unique, lengths)))
        best = min(
            cost(chain, lengths)
            for length in range(1, count + 1)
            for chain in itertools.combinations(points, length)
            if chain[-1] == tuple(lengths.max(axis=1))
            and all(np.less_equal(*pair).all() for pair in itertools.pairwise(chain))
        )
        shapes = least_padding(lengths, count)
        assert len(shapes) <= count
        assert cost(shapes, lengths) == best


def test_many_lengths_still_hold_every_example():
    lengths = np.random.default_rng(0).geometric(0.01, (2, 5000))
    shapes = least_padding(lengths, 6)
    assert len(shapes) == 6
    assert shapes[-1].tolist() == lengths.max(axis=1).tolist()
    assert cost(shapes, lengths) < 0.75 * cost(shapes[-1:], lengths)


# ---- buckets


def test_sizes_are_even_multiples_within_the_budget():
    buckets = make_buckets(tokens=64, multiple=4)
    for shape, size, rows in zip(buckets.shapes, buckets.sizes, buckets.rows, strict=True):
        most = 64 // max(shape.values()) // 4 * 4
        batches = -(-len(rows) // most)
        assert size == min(n for n in range(4, most + 1, 4) if n * batches >= len(rows))
    assert sorted(np.concatenate(buckets.rows)) == list(range(EXAMPLES))
    for number, rows in enumerate(buckets.rows):
        for lengths, field in ((SOURCE, "source"), (TARGET, "target")):
            assert lengths[rows].max() <= buckets.shapes[number][field]


def test_long_examples_are_refused_or_counted():
    longest = {"source": 9, "target": 8}
    too_long = np.flatnonzero(TARGET > 8)
    first = int(too_long[0])
    with pytest.raises(UserError) as error:
        make_buckets(longest=longest)
    assert str(error.value) == (
        f"Buckets.by_tokens: {len(too_long)} of {EXAMPLES} examples are longer than longest={longest}, such as example"
        f" {first} of lengths {{'source': {SOURCE[first]}, 'target': {TARGET[first]}}}. Raise longest, or type"
        " longer='leave_out'."
    )
    with pytest.raises(UserError, match=rf"^Buckets.by_tokens: {EXAMPLES} of {EXAMPLES} .* Raise longest\.$"):
        Buckets.by_tokens({"source": SOURCE + 1, "target": TARGET}, 64, longest={"source": 1}, longer="leave_out")
    buckets = make_buckets(longest=longest, longer="leave_out")
    assert buckets.left_out == len(too_long)
    assert sorted(np.concatenate(buckets.rows)) == sorted(set(range(EXAMPLES)) - set(too_long))
    batches = make(buckets=buckets)
    assert batches.origin["left_out"] == len(too_long)
    assert batches.examples_per_epoch == EXAMPLES - len(too_long)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            lambda: make_buckets(tokens=20, multiple=4),
            "Buckets.by_tokens: tokens=20 holds 1 examples of length 11, that of example"
            f" {np.maximum(SOURCE, TARGET).argmax()}, and a batch has a multiple of 4. Use tokens=44 or more, or a"
            " smaller longest.",
        ),
        (lambda: make_buckets(tokens=True), "Buckets.by_tokens: tokens=True is not a whole number of at least 1."),
        (
            lambda: make_buckets(longest={"source": 3.5}, longer="leave_out"),
            "Buckets.by_tokens: longest of 'source'=3.5 is not a whole number of at least 1.",
        ),
        (
            lambda: Buckets.by_tokens(SOURCE, 64),
            "Buckets.by_tokens: lengths are a ndarray, not {field: int [examples]} of 1 to 2 fields.",
        ),
        (lambda: make_buckets(count=0), "Buckets.by_tokens: count=0 is not a whole number of at least 1."),
        (
            lambda: make_buckets(longer="cut"),
            "Buckets.by_tokens: longer='cut' is neither 'refuse' nor 'leave_out'.",
        ),
        (
            lambda: Buckets.by_tokens({"source": SOURCE / 2}, 64),
            "Buckets.by_tokens: the lengths of 'source' are float64 [45], not an array of whole numbers of at least 1,"
            " one for each example.",
        ),
        (
            lambda: Buckets.by_tokens({"source": SOURCE - 1}, 64),
            f"Buckets.by_tokens: the length of 'source' is 0 in {(SOURCE == 1).sum()} examples, such as"
            f" {SOURCE.argmin()}, and must be at least 1. Leave them out, or give each a token of its end.",
        ),
        (
            lambda: make_buckets(longest={"sorce": 9}),
            "Buckets.by_tokens: longest has 'sorce', but lengths are of source, target. Did you mean 'source'?",
        ),
        (
            lambda: Buckets.by_tokens({"source": SOURCE, "target": TARGET[1:]}, 64),
            "Buckets.by_tokens: lengths are of different numbers of examples: {'source': 45, 'target': 44}.",
        ),
        (
            lambda: make(remainder="wrap"),
            "data.remainder='wrap': the last batch of a bucket cannot be filled from the next epoch, which has other"
            " batches between. Use --config.data.remainder=pad or drop.",
        ),
        (
            lambda: make(buckets=Buckets.by_tokens({"source": SOURCE[1:]}, 128)),
            "the buckets have lengths of 'source' of 44 examples, and 'sentences' has 45.",
        ),
        (
            lambda: make(buckets=Buckets.by_tokens({"words": SOURCE}, 128)),
            "the buckets have lengths of 'words', but the fields [examples, longest] of 'sentences' are source,"
            " target.",
        ),
        (
            lambda: make(buckets=Buckets.by_tokens({"source": TARGET}, 128)),
            "the longest bucket has 'source' of length 11, but in 'sentences' it is [45, 9].",
        ),
    ],
)
def test_what_cannot_be_is_refused(wrong, message):
    with pytest.raises(UserError) as error:
        wrong()
    assert str(error.value) == message


@pytest.mark.parametrize("padding", [0, -1, np.nan])
@pytest.mark.parametrize("in_memory", [True, False])
def test_lengths_that_leave_a_token_out_are_refused(padding, in_memory):
    """Lengths of texts, of ids that have a token of the end too: each batch would lack the last token."""
    arrays = dict(make_source().arrays)
    behind = np.arange(14) >= TARGET[:, None]
    arrays["target"] = np.where(behind, padding, arrays["target"])
    arrays["vectors"] = np.repeat(arrays["target"][:, :, None], 3, axis=2)
    source = Source(arrays, origin="sentences") if in_memory else rows_of(arrays)
    for field in ("target", "vectors"):
        buckets = Buckets.by_tokens({field: TARGET}, 128)
        make_batches(source, make_config(), training=True, buckets=buckets)
        short = np.maximum(TARGET - 1, 1)
        first = int(np.flatnonzero(TARGET > 1)[0])
        with pytest.raises(UserError, match=f"'{field}' of example {first} of 'sentences' has .* behind its length of"):
            make_batches(source, make_config(), training=True, buckets=Buckets.by_tokens({field: short}, 128))


def rows_of(arrays):
    """Returns a source that is read by index, of a data set that is no arrays."""
    rows = [{name: array[row] for name, array in arrays.items()} for row in range(EXAMPLES)]
    return from_items(rows, origin="sentences")


# ---- the order


@pytest.mark.parametrize("placement", ["resident", "stream"])
@pytest.mark.parametrize(
    ("remainder", "shuffle", "group"), [("pad", True, 1), ("drop", True, 1), ("pad", True, 3), ("pad", False, 1)]
)
def test_batches_are_those_of_numpy(placement, remainder, shuffle, group):
    buckets = make_buckets(group=group)
    batches = make(buckets=buckets, placement=placement, remainder=remainder, shuffle=shuffle)
    arrays = make_source().arrays
    steps = batches.steps_per_epoch + 3
    for step, (bucket, examples, weight) in enumerate(walked(buckets, 7, steps, remainder, shuffle)):
        assert bucket_at(batches, step) == bucket
        batch = {name: tensor.numpy() for name, tensor in batches.at(step).items()}
        assert np.array_equal(batch["number"], examples)
        assert np.array_equal(batch["weight"], weight)
        for field, length in buckets.shapes[bucket].items():
            assert np.array_equal(batch[field], arrays[field][examples, :length])
    chosen = batches.indices(step)
    assert np.array_equal(chosen["index"], examples)
    assert np.array_equal(chosen["weight"], weight)


@pytest.mark.parametrize("mode", ["graph", "xla"])
def test_a_compiled_plan_has_the_same_batches(mode):
    batches = make(buckets=make_buckets(group=2))
    for bucket in [1] if mode == "xla" else range(3):
        member = members_of(batches)[bucket]
        take = tf.function(
            lambda step, member=member: member.take(member.plan(step, 2, 4), tf.constant(1)),
            autograph=False,
            jit_compile=mode == "xla",
        )
        step = batches.timetable.next(3, bucket)
        for name, tensor in take(tf.constant(step - 1, tf.int64)).items():
            assert np.array_equal(tensor, batches.at(step)[name]), name


@pytest.mark.parametrize("group", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_streamed_plans_are_the_batches_in_turn_and_from_any_step(group):
    batches = make(buckets=make_buckets(group=group), placement="stream")
    total = batches.steps_per_epoch
    walk = walked(make_buckets(group=group), 7, 2 * total + 4)
    arrays = make_source().arrays
    for start, end in ((0, total + 2), (total + 3, 2 * total + 3), (5, 8)):
        step = start
        while step < end:
            count = alike(batches, step, most=2)
            member = members_of(batches)[bucket_at(batches, step)]
            plan = {name: rows.numpy() for name, rows in member.plan(step, count, 2).items()}
            for i in range(count):
                _, examples, weight = walk[step + i]
                assert np.array_equal(plan["number"][i], examples)
                assert np.array_equal(plan["weight"][i], weight)
                source = plan["source"][i]
                assert np.array_equal(source, arrays["source"][examples, : source.shape[1]])
            step += count


def test_a_transform_sees_the_shape_of_the_bucket_and_the_number_in_the_source():
    class Numbered:
        needs = ("index", "epoch")

        def __call__(self, batch):
            assert batch["source"].shape.is_fully_defined()
            return {**batch, "same": tf.cast(batch["index"] == batch["number"], tf.int32), "age": batch["epoch"]}

    for placement in ("resident", "stream"):
        batches = make(transform=Numbered(), placement=placement)
        for step in (0, 1, batches.steps_per_epoch, 2 * batches.steps_per_epoch + 1):
            batch = batches.at(step)
            assert np.all(batch["same"] == 1)
            assert np.all(batch["age"] == step // batches.steps_per_epoch)


def test_shards_are_the_places_of_the_whole():
    for placement in ("resident", "stream"):
        batches = make(placement=placement)
        shards = [
            [member.shard(i * member.batch_size // 2, member.batch_size // 2) for i in (0, 1)]
            for member in members_of(batches)
        ]
        for step in range(batches.steps_per_epoch):
            whole, halves = batches.at(step), [shard.at(step) for shard in shards[bucket_at(batches, step)]]
            for name, tensor in whole.items():
                assert np.array_equal(tensor, np.concatenate([half[name] for half in halves])), name


def test_evaluation_has_every_example_once_in_the_order_of_buckets():
    batches = make(training=False)
    rows = [batches.indices(step) for step in range(batches.steps_per_epoch)]
    index = np.concatenate([row["index"][row["weight"] > 0] for row in rows])
    assert np.array_equal(index, np.concatenate(make_buckets().rows))
    put_back = np.empty(EXAMPLES, int)
    numbers = [batches.at(step)["number"].numpy() for step in range(batches.steps_per_epoch)]
    put_back[index] = np.concatenate([n[row["weight"] > 0] for n, row in zip(numbers, rows, strict=True)])
    assert np.array_equal(put_back, np.arange(EXAMPLES))
    ends = np.cumsum([-(-len(r) // s) for r, s in zip(make_buckets().rows, make_buckets().sizes, strict=True)]) - 1
    assert last_steps(batches) == list(ends)


def test_an_epoch_has_every_batch_once_and_in_another_order():
    timetable = Timetable((5, 8, 1), seed=3, shuffle=True, group=2)
    turns = timetable.turns(0, 28)
    epochs = [
        [*zip(turns.bucket[first : first + 14], turns.place[first : first + 14], strict=True)] for first in (0, 14)
    ]
    every = [(bucket, place) for bucket, count in enumerate((5, 8, 1)) for place in range(count)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == every
    assert epochs[0] != epochs[1]
    assert timetable.alike(0, 9) == next(i for i in itertools.count(1) if turns.bucket[i] != turns.bucket[0])


def test_what_is_seen_is_counted_without_padding():
    for remainder in ("pad", "drop"):
        batches, buckets = make(remainder=remainder), make_buckets()
        walk = walked(buckets, 7, 2 * batches.steps_per_epoch, remainder)
        examples = [int(weight.sum()) for _, _, weight in walk]
        tokens = [int(((SOURCE + TARGET)[rows] * weight).sum()) for _, rows, weight in walk]
        places = [buckets.sizes[b] * sum(buckets.shapes[b].values()) for b, _, _ in walk]
        for first, count in ((0, 1), (2, 5), (0, batches.steps_per_epoch), (3, batches.steps_per_epoch)):
            chosen = slice(first, first + count)
            seen = batches.seen(first, count)
            assert seen == (sum(examples[chosen]), sum(tokens[chosen]), sum(places[chosen]))
            assert seen.padding == 1 - seen.tokens / seen.places
        assert batches.examples_per_epoch == sum(examples[: batches.steps_per_epoch])
        for step in range(1, len(walk)):
            assert batches.steps_for(sum(examples[:step])) == pytest.approx(step)
        assert batches.steps_for(sum(examples[:3]) + examples[3] / 2) == pytest.approx(3.5)
