"""framework/data/items.py: data sets that give one example at a time are sources as they are.

The classes imitate what Grain, TFDS, Hugging Face and PyTorch return: the methods that these data sets have, and the
types of their values. The libraries themselves are not needed.
"""

import numpy as np
import pytest
import tensorflow as tf

from framework import data
from framework.config import UserError, base_config

SIZE = 10
PICTURES = np.random.default_rng(0).integers(0, 256, [SIZE, 3, 2], np.uint8)
LABELS = np.arange(SIZE) * 7 % 5
TEXTS = [f"text {'é' * index}" for index in range(SIZE)]
JPEGS = [bytes([index, 255, 0, 0]) for index in range(SIZE)]  # NumPy drops zeros at the end of its own byte strings


def example(index):
    return {"picture": PICTURES[index], "label": LABELS[index], "text": TEXTS[index], "jpeg": JPEGS[index]}


class Grain:
    """A random access data source of Grain: `__len__` and `__getitem__` of one key."""

    def __len__(self):
        return SIZE

    def __getitem__(self, record_key):
        assert type(record_key) is int
        return example(record_key)


class Tfds(Grain):
    """A data source of TFDS, which reads several records at once."""

    calls = 0

    def __getitem__(self, record_key):
        raise AssertionError("__getitems__ is there")

    def __getitems__(self, record_keys):
        assert all(type(key) is int for key in record_keys)
        self.calls += 1
        return [example(key) for key in record_keys]


class HuggingFace:
    """A `Dataset` of Hugging Face: values of Python, `take` of a count, `shape` of the table, columns by name."""

    shape = (SIZE, 4)
    column_names = ("picture", "label", "text", "jpeg")

    def __len__(self):
        return SIZE

    def __getitem__(self, key):
        if isinstance(key, int):
            return {**example(key), "picture": PICTURES[key].tolist(), "label": int(LABELS[key])}
        return [self[index][key] for index in range(SIZE)]

    def __getitems__(self, keys):
        return [self[key] for key in keys]

    def take(self, n):
        raise AssertionError("not the protocol of sources")


class Tensor:
    """A tensor of PyTorch on the CPU, as NumPy sees one."""

    def __init__(self, array):
        self.array = np.asarray(array)

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.array, dtype)


class Torch(Grain):
    """A map-style set of PyTorch whose examples are dicts of tensors."""

    def __getitem__(self, index):
        whole = example(index)
        return {**whole, "picture": Tensor(whole["picture"]), "label": Tensor(whole["label"])}


GIVEN = {"grain": Grain(), "tfds": Tfds(), "hf": HuggingFace(), "torch": Torch(), "list": [*map(example, range(SIZE))]}


def config(**values):
    made = base_config()
    made.data.update({"batch_size": 4, **values})
    return made


def line_of(fn, *args, **kwargs):
    with pytest.raises(UserError) as caught:
        fn(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("placement", ["stream", "resident"])
@pytest.mark.parametrize("kind", GIVEN)
def test_batches_are_those_of_the_same_arrays(kind, placement):
    batches = data.make_batches(GIVEN[kind], config(placement=placement), training=True)
    reference = data.make_batches(data.Source({"label": LABELS}, "labels"), config(), training=True)
    assert batches.steps_per_epoch == SIZE / 4
    for step in (0, 2, 7):
        batch, index = batches.at(step), reference.indices(step)["index"]
        assert batches.indices(step)["index"].tolist() == index.tolist()
        picture = batch["picture"].numpy()
        assert picture.dtype == (np.int64 if kind == "hf" else np.uint8) and (picture == PICTURES[index]).all()
        assert batch["label"].numpy().dtype == np.int64 and (batch["label"] == LABELS[index]).numpy().all()
        assert [text.decode() for text in batch["text"].numpy()] == [TEXTS[i] for i in index]
        assert batch["jpeg"].numpy().tolist() == [JPEGS[i] for i in index]


def test_placement_auto_streams_and_several_examples_are_one_call():
    given = Tfds()
    batches = data.make_batches(given, config(shuffle=False), training=True)
    assert not batches.is_resident
    before = given.calls
    assert batches.at(1)["label"].numpy().tolist() == LABELS[4:8].tolist()
    assert given.calls == before + 1


def test_a_name_and_the_protocol():
    source = data.from_items(Grain(), origin="grain of sand", is_subset=True)
    assert (source.origin, source.is_subset, len(source)) == ("grain of sand", True, SIZE)
    assert source.nbytes == SIZE * (6 + 8 + len(TEXTS[0]) + 4)
    assert source.element_spec == {
        "picture": tf.TensorSpec([3, 2], tf.uint8),
        "label": tf.TensorSpec([], tf.int64),
        "text": tf.TensorSpec([], tf.string),
        "jpeg": tf.TensorSpec([], tf.string),
    }
    assert data.from_items([example(0)]).origin == "a list of dicts"
    assert data.from_items(Grain()).origin == "tests.data.test_items.Grain"
    said = data.make_batches(Grain(), config(), training=True).origin
    assert (said["source"], said["examples"], said["bytes"]) == ("tests.data.test_items.Grain", SIZE, source.nbytes)


def test_a_mixture_of_kinds():
    labels = [{"label": np.int64(100 + index)} for index in range(6)]
    pairs = [(data.Source({"label": LABELS}, "arrays"), 3), (labels, 1)]
    batches = data.make_batches(pairs, config(placement="stream"), training=True)
    values = np.concatenate([batches.at(step)["label"].numpy() for step in range(6)])
    assert len(values) == 24 and (values >= 100).sum() == 6
    assert sorted(values[values >= 100]) == list(range(100, 106))


# --- by what a run knows its data -------------------------------------------------------------------------------------


def sample(given):
    return data.make_batches(given, config(), training=True).origin["sample"]


def test_examples_are_hashed_unless_the_data_set_has_a_fingerprint_of_its_own():
    whole = [{"x": np.float32(index)} for index in range(5)]
    arrays = data.Source({"x": np.arange(5, dtype=np.float32)}, "arrays")
    assert sample(whole) == sample(arrays)
    assert sample([*whole[:4], {"x": np.float32(9)}]) != sample(whole)

    class Own(Grain):
        def fingerprint(self):
            return "version 3"

    assert sample(Own()) == "version 3"
    assert sample([(Own(), 1), (Own(), 1)]) not in ("version 3", sample([(Own(), 1), (Grain(), 1)]))


class Rows:
    """A source of one's own, by the protocol alone."""

    origin = "rows"
    is_subset = False
    nbytes = 80

    def __init__(self, fingerprint=None, **spec):
        self.element_spec = spec or {"x": tf.TensorSpec([], tf.int64, name="x")}
        self._fingerprint = fingerprint

    def __len__(self):
        return 10

    def take(self, indices):
        return {"x": indices**2}

    def fingerprint(self):
        return self._fingerprint


def test_the_protocol_is_enough_and_a_missing_fingerprint_is_said(caplog):
    caplog.set_level("INFO")
    batches = data.make_batches(Rows(), config(shuffle=False), training=True)
    assert batches.at(1)["x"].numpy().tolist() == [16, 25, 36, 49]
    assert batches.origin["sample"] is None
    assert caplog.messages == [
        "'rows' has no fingerprint(): a resumed run does not check that its examples are those of before"
    ]
    assert sample(Rows("june")) == "june"
    assert sample([(Rows("june"), 1), (Rows(), 1)]) is None
    assert line_of(sample, Rows(7)) == "fingerprint() of 'rows' returned 7. Return a text, or None."


@pytest.mark.parametrize("spec", [tf.TensorSpec([None], tf.int64), np.int64])
def test_an_element_spec_of_unknown_shape_is_refused(spec):
    assert line_of(sample, Rows(x=spec)) == (
        f"element_spec of 'rows' is {{'x': {spec!r}}}, not {{field: tf.TensorSpec}} of one example with a known shape."
        " Return e.g. {'x': tf.TensorSpec([28, 28], tf.uint8)}."
    )


def test_a_class_with_a_part_of_the_protocol_is_told_the_rest():
    class Half:
        origin = "half"

        def take(self, indices):
            return {"x": indices}

    assert line_of(sample, Half()) == (
        "'half' is a source without __len__, fingerprint, element_spec, nbytes, is_subset. Add what"
        " framework.data.IndexedSource lists."
    )


# --- what is refused --------------------------------------------------------------------------------------------------

RAGGED = "Its rows have different lengths: pad them to one length, e.g. with np.pad, and mask the padding in the loss."
NO_VALUE = "not an array, a number, a string or bytes."
MANY = "Pad, cut or cast it, so that all examples have one shape and dtype."
BAD = {
    "a tuple": (
        (1, 2),
        "example 0 of 'bad' is of type tuple. Return a dict of arrays, numbers, strings or bytes: {'x': …}.",
    ),
    "no field": ({}, "example 0 of 'bad' is an empty dict. Return a dict of"),
    "nothing": (
        {"x": None},
        "'x' of example 0 of 'bad' is of type NoneType, not an array, a number, a string or bytes.",
    ),
    "nested": (
        {"x": {"y": 1}},
        "'x' of example 0 of 'bad' is of type dict, not an array, a number, a string or bytes.",
    ),
    "two of a name": ({1: 1.0, "1": 2.0}, "example 0 of 'bad' has two fields of one name: 1, '1'. Use texts as names."),
    "a large number": ({"x": 2**70}, f"'x' of example 0 of 'bad' is {2**70}, which is too large for 64 bits."),
    "ragged": ({"x": [[1], [2, 3]]}, f"'x' of example 0 of 'bad' is of type list. {RAGGED}"),
    "a date": ({"x": np.datetime64("2026-01-01")}, "'x' of example 0 of 'bad' is of dtype datetime64[D], which"),
    "masked": ({"x": np.ma.masked_equal([1, 2], 2)}, "'x' of example 0 of 'bad' is a masked array, whose mask"),
    "weights": ({"x": 1, "weight": [1.0]}, "'weight' of 'bad' is float64 [examples, 1], but 'weight' is the weight of"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_first_example_that_is_no_dict_of_values_is_refused(kind):
    value, line = BAD[kind]

    class Bad(Grain):
        def __getitem__(self, index):
            return value

    assert line_of(data.make_batches, data.from_items(Bad(), "bad"), config(), training=True).startswith(line)


LATER = {
    "other fields": ({"x": 1, "z": 2}, "example 4 of 'bad' has the fields x, z, but example 0 has x. Return the same"),
    "another shape": ({"x": [1]}, f"'x' of example 4 of 'bad' is int64 [1], but int64 [] in example 0. {MANY}"),
    "another dtype": ({"x": 1.0}, f"'x' of example 4 of 'bad' is float64 [], but int64 [] in example 0. {MANY}"),
    "a text": ({"x": "one"}, f"'x' of example 4 of 'bad' is text [], but int64 [] in example 0. {MANY}"),
    "a list": ([1], "example 4 of 'bad' is of type list. Return a dict of arrays, numbers, strings or bytes:"),
}


@pytest.mark.parametrize("kind", LATER)
def test_a_later_example_that_differs_is_refused_where_it_is_read(kind):
    value, line = LATER[kind]

    class Bad(Grain):
        fingerprint = staticmethod(lambda: "bad")

        def __getitem__(self, index):
            return value if index == 4 else {"x": index}  # 4 is not read at the start

    batches = data.make_batches(data.from_items(Bad(), "bad"), config(shuffle=False), training=True)
    assert line_of(batches.plan, 1, 1, 1).startswith(line)


def test_a_call_for_several_that_returns_fewer_is_refused():
    class Short(Grain):
        def __getitems__(self, keys):
            return [example(key) for key in set(keys)]

    assert line_of(data.from_items(Short(), "short").take, np.array([1, 1])) == (
        "'short': __getitems__ returned 1 examples for 2 indices. Return one example for each index, in that order."
    )


def test_a_length_that_changes_is_refused():
    given = [{"x": index} for index in range(8)]
    source = data.from_items(given, "growing")
    given.append({"x": 8})
    assert line_of(source.take, np.array([1])) == (
        "'growing' has 9 examples now, but had 8 at the start. A data set keeps its length while it is used."
    )


@pytest.mark.parametrize("returned", [None, {"x": [1, 2]}])
def test_a_call_for_several_that_returns_no_list_is_refused(returned):
    class Columns(Grain):
        def __getitems__(self, keys):
            return returned

    assert line_of(data.from_items(Columns(), "columns").take, np.array([0, 1])) == (
        f"'columns': __getitems__ returned a value of type {type(returned).__name__}. Return a list of examples."
    )


def test_texts_of_numpy_are_streamed_in_utf_8():
    texts = ["a", "é", "日本", ""]
    source = data.Source({"text": np.array(texts)}, "texts")
    plan = data.make_batches(source, config(shuffle=False, placement="stream"), training=True).plan(0, 1, 1)
    assert [text.decode() for text in plan["text"].numpy()[0]] == texts


@pytest.mark.parametrize("given", [{"x": np.zeros(3)}, np.zeros(3), "points.npz", Grain, None, iter([example(0)])])
def test_what_has_no_examples_by_index_is_refused(given):
    assert line_of(data.from_items, given).startswith("from_items was given a")


class Random(Grain):
    """A data set that augments in `__getitem__`, as is common with PyTorch."""

    def __init__(self, field):
        self.field, self.draws = field, np.random.default_rng(0)

    def __getitem__(self, record_key):
        flipped = self.draws.integers(2)
        changed = {"picture": PICTURES[record_key, ::-1], "text": "other", "jpeg": JPEGS[record_key][:2]}[self.field]
        return {**example(record_key), **({self.field: changed} if flipped else {})}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("field", ["picture", "text", "jpeg"])
def test_examples_that_change_from_reading_to_reading_are_refused(field, training, caplog):
    settings = config()
    with pytest.raises(
        UserError, match=f"'{field}' of example . of '.*Random' is another one when it is read again, so"
    ):
        data.make_batches(Random(field), settings, training=training)
    settings.runtime.deterministic = False
    data.make_batches(Random(field), settings, training=training)
    assert [
        message for message in caplog.messages if "a resumed, rewound or replayed run goes on with others" in message
    ]


def test_a_decode_function_that_draws_is_refused(tmp_path):
    path = tmp_path / "a.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for _ in range(10):
            writer.write(b"x")
    draws = np.random.default_rng(0)
    source = data.tf_records(path, lambda record: {"x": draws.normal()})
    with pytest.raises(UserError, match=r"'x' of example 0 of '.*a\.tfrecord' is another one when it is read again"):
        data.make_batches(source, config(), training=True)
    steady = data.tf_records(path, lambda record: {"x": float("nan")})  # equal bits
    data.make_batches(steady, config(), training=True)
