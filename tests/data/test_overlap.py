"""framework/data/overlap.py: examples of one split that are among those of another, counted exactly."""

import numpy as np
import pytest
import tensorflow as tf

from framework import config, data
from framework.data.overlap import overlap

PLACES = ("resident", "stream")


def base(placement="resident"):
    cfg = config.base_config()
    cfg.data.placement = placement
    cfg.data.batch_size = cfg.eval.batch_size = 4
    return config.finalize(cfg)


def split(pictures, labels, placement="resident", training=False, **fields):
    arrays = {"image": pictures, "label": labels, **fields}
    return data.make_batches(data.Source(arrays, origin="made up"), base(placement), training=training)


def pictures(seed, count):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 5, 5), np.uint8), rng.integers(0, 3, count).astype(np.int32)


@pytest.mark.parametrize("placement", PLACES)
def test_each_shared_example_counts_once(placement):
    """37 of 100 test pictures are copies of training pictures; a copy with another label is none."""
    x, y = pictures(0, 300)
    test_x, test_y = pictures(1, 100)
    test_x[5:42], test_y[5:42] = x[10:84:2], y[10:84:2]
    test_x[50], test_y[50] = x[7], y[7] + 1
    x[299], y[299] = x[10], y[10]  # twice in the training data
    found = overlap(split(x, y, placement, training=True), split(test_x, test_y, placement))
    assert (found.shared, found.looked_at, found.among) == (37, 100, 300)
    assert found.first in ((5, 10), (5, 299))
    assert found.share == 0.37


def test_examples_that_the_split_repeats_itself_do_not_prove_a_leak():
    """Of 64 different examples, each of 200 is in both splits by nature; of 20 copies beside them, all count."""
    rng = np.random.default_rng(0)
    bits = [{"x": rng.integers(0, 2, (count, 6)).astype(np.int32)} for count in (2000, 200)]
    single = np.arange(2, 42, dtype=np.int32).reshape(20, 2).repeat(3, axis=1)
    for arrays in bits:
        arrays["x"] = np.concatenate([arrays["x"], single])
    train, test = (data.make_batches(data.Source(one, origin="bits"), base(), training=False) for one in bits)
    counts = np.unique(bits[1]["x"], axis=0, return_counts=True)[1]
    found = overlap(train, test)
    assert (found.shared, found.repeated) == (220, counts[counts > 1].sum())
    assert found.share == (counts == 1).sum() / 220 and (counts == 1).sum() >= 20


def test_splits_apart_share_nothing():
    found = overlap(split(*pictures(0, 300), training=True), split(*pictures(1, 100)))
    assert found == (0, 100, 300, 300, None, 0, ())


def test_many_examples_are_looked_at_in_part():
    """Of 5,000 test examples 2,000 are looked at; all of them are training examples."""
    x, y = pictures(0, 5_000)
    found = overlap(split(x, y, training=True), split(x, y))
    assert (found.shared, found.looked_at, found.among) == (2_000, 2_000, 5_000)
    found = overlap(split(x, y, training=True), split(x, y), seconds=0.0)
    assert (found.looked_at, found.among, found.of) == (2_000, 1_024, 5_000)
    assert found.share == min(1.0, found.shared / 2_000 * 5_000 / 1_024) > 0.9  # what the part says of all
    assert abs(found.shared - 2_000 * 1_024 / 5_000) < 4 * np.sqrt(2_000 * 0.2 * 0.8)  # of 410, within four deviations


def test_weights_and_fields_of_one_split_alone_do_not_count():
    x, y = pictures(0, 20)
    weight = np.full(20, 0.5, np.float32)
    more = {"note": np.arange(20)}
    found = overlap(split(x, y, training=True, weight=weight), split(x, y, **more))
    assert found.shared == 20
    other = split(x.astype(np.int32), y.astype(np.int64))
    assert overlap(split(x, y, training=True), other) is None


def test_labels_alone_are_not_compared():
    """Beside pictures of another size, and beside a field of another name, equal labels say nothing."""
    x, y = pictures(0, 20)
    train = split(x, y, training=True)
    assert overlap(train, split(np.pad(x, [(0, 0), (0, 1), (0, 1)]), y)) is None
    renamed = data.make_batches(data.Source({"photo": x, "label": y}, origin="made up"), base(), training=False)
    assert overlap(train, renamed) is None
    assert overlap(train, split(x, y.astype(np.int64))).shared == 20  # the pictures are the same


def test_large_examples_are_read_few_at_a_time(monkeypatch):
    monkeypatch.setattr("framework.data.overlap._CHUNK_BYTES", 29 * 7)  # a picture and its label have 29 bytes
    x, y = pictures(0, 30)
    train, sizes = split(x, y, training=True), []
    raw = train.raw
    monkeypatch.setattr(train, "raw", lambda index: sizes.append(len(index)) or raw(index))
    assert overlap(train, split(x, y))[:3] == (30, 30, 30)
    assert sizes == [1, 7, 7, 7, 7, 7, 2]  # the first for its shapes, then 7 of 64 for fields that are numbers


def test_texts_are_told_apart_by_their_ends():
    """b'ab', b'c' is not b'a', b'bc'."""
    texts = np.array([[b"ab", b"c"], [b"x", b"yz"]], object)
    shifted = np.array([[b"a", b"bc"], [b"x", b"yz"]], object)
    number = np.arange(2)
    train, test = (split(number, number, "stream", text=each) for each in (texts, shifted))
    assert overlap(train, test)[:3] == (1, 2, 2)


def sentences(seed, count, longest):
    """{'source', 'target': ids of 4 to `longest` tokens, padded with 0; 'line': their numbers}, no two alike."""
    rng = np.random.default_rng(seed)
    fields = {}
    for name in ("source", "target"):
        lengths = rng.integers(4, longest + 1, count)
        ids = rng.integers(1, 1_000_000, (count, longest)).astype(np.int32)
        fields[name] = np.where(np.arange(longest) < lengths[:, np.newaxis], ids, 0)
    return {**fields, "line": np.arange(count)}


def test_sequences_are_compared_without_their_padding_and_their_numbers():
    """9 of 40 sentences are those of another split, which pads less and numbers its lines by itself."""
    ours, theirs = sentences(0, 100, 12), sentences(1, 40, 7)
    short = np.flatnonzero(((ours["source"] != 0).sum(1) <= 7) & ((ours["target"] != 0).sum(1) <= 7))[:9]
    assert len(short) == 9
    for name in ("source", "target"):
        theirs[name][10:19] = ours[name][short, :7]
    theirs["target"][30], theirs["source"][30] = ours["target"][short[0], :7], 1  # of another source
    train, test = (
        data.make_batches(data.Source(one, origin="lines"), base(), training=False) for one in (ours, theirs)
    )
    found = overlap(train, test)
    assert (found.shared, found.looked_at, found.among, found.numbers) == (9, 40, 100, ("line",))
    assert found.first == (10, short[0])
    assert overlap(test, train).shared == 9


def test_other_integers_are_compared():
    """Ids that differ from example to example, but are not its number, tell examples apart."""
    x, y = np.arange(1, 41, dtype=np.int32), np.random.default_rng(0).permutation(40)
    train, test = (
        data.make_batches(data.Source({"user": u, "item": y}, origin="ids"), base(), training=False)
        for u in (x[::-1].copy(), np.roll(x, 7))
    )
    same = sum(a == b for a in zip(x[::-1], y, strict=True) for b in zip(np.roll(x, 7), y, strict=True))
    assert overlap(train, test).shared == same


def test_what_numbers_the_examples_of_one_split_alone_is_compared():
    """The last film of each user is among the films that others saw, and with this user it is not."""
    rng = np.random.default_rng(0)
    users, last = rng.permutation(np.repeat(np.arange(40), 5)), rng.permutation(40)
    films = (last[users] + 1 + rng.integers(0, 39, 200)) % 40  # any but the last one of the user
    ratings = [{"user": users, "film": films}, {"user": np.arange(40), "film": last}]
    train, test = (data.make_batches(data.Source(one, origin="films"), base(), training=False) for one in ratings)
    assert overlap(train, test)[:3] == (0, 40, 200) and overlap(train, test).numbers == ()


def test_a_pipeline_is_not_compared():
    cfg = config.base_config()
    cfg.data.batch_size = 4
    stream = tf.data.Dataset.from_tensor_slices({"x": np.arange(8)}).batch(4)
    piped = data.make_batches(stream, config.finalize(cfg), training=True)
    assert overlap(piped, split(*pictures(0, 20))) is None


def test_mixtures_count_examples_of_all_sources():
    x, y = pictures(0, 30)
    cfg = config.base_config()
    cfg.data.placement = "stream"
    cfg.data.batch_size = 4
    sources = [data.Source({"image": a, "label": b}, origin="part") for a, b in ((x[:10], y[:10]), (x[10:], y[10:]))]
    mixed = data.make_batches([(sources[0], 1), (sources[1], 1)], config.finalize(cfg), training=True)
    found = overlap(mixed, split(x[25:], y[25:]))
    assert (found.shared, found.looked_at, found.among, found.first) == (5, 5, 30, (0, 25))
