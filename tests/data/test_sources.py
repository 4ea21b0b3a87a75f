"""framework/data/sources.py: rows by index, as copies, from memory or disk."""

import numpy as np
import pytest
import tensorflow as tf

from framework.config import UserError
from framework.data.mixture import shares_of
from framework.data.sources import Source


def test_take_follows_the_indices_and_copies():
    source = Source({"x": np.arange(12).reshape(6, 2), "y": np.arange(6)}, "here")
    taken = source.take(np.array([4, 0, 4]))
    np.testing.assert_array_equal(taken["x"], [[8, 9], [0, 1], [8, 9]])
    np.testing.assert_array_equal(taken["y"], [4, 0, 4])
    taken["y"][:] = -1
    np.testing.assert_array_equal(source.arrays["y"], np.arange(6))
    assert len(source) == 6 and source.nbytes == 18 * 8 and not source.is_subset


def test_take_from_a_memmap_is_a_plain_array(tmp_path):
    np.arange(10, dtype=np.int16).tofile(tmp_path / "x")
    mapped = np.memmap(tmp_path / "x", np.int16, "r")
    taken = Source({"x": mapped}, "disk").take(np.array([9, 2]))["x"]
    assert type(taken) is np.ndarray and taken.tolist() == [9, 2]


@pytest.mark.parametrize(
    ("arrays", "shapes"),
    [
        ({"x": np.zeros((3, 2)), "y": np.zeros(4)}, "{'x': (3, 2), 'y': (4,)}"),
        ({"x": np.zeros(3), "y": np.float32(1)}, "{'x': (3,), 'y': ()}"),
        ({}, "{}"),
    ],
)
def test_first_dimensions_must_agree(arrays, shapes):
    with pytest.raises(UserError) as caught:
        Source(arrays, "here")
    assert str(caught.value) == f"the arrays of a source must have the same first dimension; shapes are {shapes}."


def test_a_list_is_no_array():
    with pytest.raises(UserError) as caught:
        Source({"x": np.zeros(3), "y": [1, 2, 3]}, "here")
    assert str(caught.value) == "'y' of a source is of type list, not an array. Write np.asarray(…)."


class Made:
    """Something that looks like what another library makes."""

    def __init__(self, **attributes):
        self.__dict__.update(attributes)


def line_of(fn, *args, **kwargs):
    with pytest.raises(UserError) as caught:
        fn(*args, **kwargs)
    return str(caught.value)


DATASET = Made(as_numpy_iterator=iter)
FRAME = Made(columns=["x"], to_numpy=dict)
INSTEAD = {
    "a tf.data.Dataset, which cannot be read by index. make_batches takes one alone, with batches as": DATASET,
    "a Made. Write Source({name: frame[name].to_numpy() for name in frame.columns}, origin='…'), of the": FRAME,
    "a generator, which cannot be read by index. If its examples fit memory, write rows = list(…) and": (
        i for i in "ab"
    ),
    "a function, which cannot be read by index. If its examples fit memory, write rows = list(…) and": line_of,
    "an array alone. Write Source({'x': np.asarray(…)}, origin='…').": np.zeros(3),
    "a value of type NoneType. It takes arrays by name: Source({'x': array, …}, origin='…').": None,
    "a value of type str. It takes arrays by name: Source({'x': array, …}, origin='…').": "points.npz",
}


@pytest.mark.parametrize(("line", "given"), INSTEAD.items(), ids=range(len(INSTEAD)))
def test_what_is_no_source_is_refused_with_how_to_make_one(line, given):
    assert line_of(shares_of, given).startswith(f"make_batches was given {line}")
    assert line_of(Source, given, "here").startswith(f"a source was given {line}")
    assert line_of(shares_of, [(given, 1.0)]).startswith("make_batches was given a list with ")


def test_a_dict_of_arrays_is_no_source_yet():
    assert line_of(shares_of, {"x": np.zeros(3)}) == (
        "make_batches was given a dict. Write Source({'x': array, …}, origin='…')."
    )


def test_real_data_sets_and_ragged_tensors_are_told_too():
    dataset = tf.data.Dataset.from_tensor_slices({"x": [1.0, 2.0]})
    assert line_of(shares_of, dataset).startswith("make_batches was given a tf.data.Dataset, which cannot be read by")
    assert line_of(Source, {"x": dataset}, "here").endswith(
        "Write np.stack(list(…)); of a tf.data.Dataset, list its as_numpy_iterator()."
    )
    ragged = tf.ragged.constant([[1], [2, 3]])
    assert line_of(Source, {"x": ragged}, "here") == (
        "'x' of a source is of type RaggedTensor, not an array. Pad its rows to one length: ragged.to_tensor().numpy()."
    )
    assert line_of(Source, {"x": tf.ones(3)}, "here").endswith(
        "of type EagerTensor, not an array. Write np.asarray(…)."
    )


RAGGED = "Its rows have different lengths: pad them to one length, e.g. with np.pad, and mask the padding in the loss."


@pytest.mark.parametrize(
    ("field", "line"),
    [
        ([[1], [2, 3]], f"of type list, not an array. {RAGGED}"),
        ((i for i in range(3)), "of type generator, not an array. Write np.stack(list(…)); of a tf.data.Dataset, list"),
        (
            Made(to_numpy=list),
            "of type Made, not an array. Write column.to_numpy(); the column",
        ),
        (np.array([[1], [2, 3]], object), f"an array of Python objects, such as a value of type list. {RAGGED}"),
        (np.array([1, None], object), "an array of Python objects, such as a value of type int. Write array.astype("),
        (np.zeros(3, "datetime64[s]"), "of dtype datetime64[s], which TensorFlow does not have. Make it numbers"),
        (np.zeros(3, [("a", "f4")]), "of dtype [('a', '<f4')], which TensorFlow does not have. Make it numbers"),
        (np.ma.masked_equal([1, 2], 2), "a masked array, whose mask would be lost. Write array.filled(…), and mask in"),
        (None, "of type NoneType, not an array. Write np.asarray(…)."),
    ],
)
def test_a_field_that_is_no_array_of_numbers_or_texts_is_refused(field, line):
    assert line_of(Source, {"x": field}, "here").startswith(f"'x' of a source is {line}")


@pytest.mark.parametrize("array", [np.array(["a", "bc"]), np.array(["a", b"bc"], object), np.zeros(2, ">f4")])
def test_texts_and_numbers_of_other_machines_are_arrays(array):
    assert len(Source({"x": array}, "here")) == 2


def test_a_mixture_is_pairs_of_source_and_share():
    source = Source({"x": np.zeros(3)}, "here")
    assert shares_of(source) == [(source, 1.0)]
    assert shares_of([(source, 3), (source, 0.5)]) == [(source, 3), (source, 0.5)]
    assert line_of(shares_of, [source, source]) == (
        "make_batches was given a list with 'here' alone. A mixture is [(source, share), …]."
    )
    assert line_of(shares_of, [(source, "half")]) == (
        "make_batches: the share of 'here' in a mixture is 'half', not a number."
    )
    assert line_of(shares_of, []).startswith("make_batches was given a value of type list. It takes arrays by name:")
