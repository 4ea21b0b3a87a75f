"""framework/data/sources.py: rows by index, as copies, from memory or disk."""

import numpy as np
import pytest

from framework.config import UserError
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
