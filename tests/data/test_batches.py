"""framework/data/batches.py: resident and streamed batches are the same; unfit sources are refused."""

import hashlib
import re
import time

import numpy as np
import pytest
import tensorflow as tf

from framework import rng
from framework.config import UserError
from framework.data import sources
from framework.data.batches import epoch_steps, make_batches
from framework.data.sources import Source
from tests.compile_modes import MODES
from tests.data.numbered import both, equal, make_config, make_order, make_source, order_at

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
        "sha256": batches.origin["sha256"],
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


def test_arrays_are_known_by_all_of_their_examples(monkeypatch):
    """One label of a thousand that was mended between two starts is other data."""
    x, y = np.arange(3000, dtype=np.float32).reshape(1000, 3), np.arange(1000) % 10

    def known(**arrays):
        return make_batches(Source(arrays, "x"), make_config(), training=True).origin["sha256"]

    expected = hashlib.sha256(b"x float32 (1000, 3) " + x.tobytes() + b"y int64 (1000,) " + y.tobytes()).hexdigest()
    assert known(x=x, y=y) == known(y=y.copy(), x=np.asfortranarray(x)) == expected
    relabelled = y.copy()
    relabelled[517] = 3
    assert sample({"x": x, "y": relabelled}) == sample({"x": x, "y": y})
    assert known(x=x, y=relabelled) != expected
    monkeypatch.setattr(sources, "_CHUNK", 100)
    assert known(x=x, y=y) == expected
    assert sources.hash_of_arrays([Source({"x": np.zeros(2**30 + 1, np.uint8)}, "x")]) is None


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
