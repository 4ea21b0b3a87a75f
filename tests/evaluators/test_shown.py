"""framework/evaluators/shown.py: tables, histograms and pictures of decoded sequences."""

import numpy as np
import pytest

from framework import evaluators
from framework.errors import UserError


def test_a_table_has_examples_evenly_spaced():
    columns = {"word": [f"w{i}" for i in range(101)], "said": [f"s{i}" for i in range(101)]}
    table = evaluators.sample_table(columns, count=5).splitlines()
    assert table[:2] == ["| word | said |", "| --- | --- |"]
    assert table[2:] == [f"| w{i} | s{i} |" for i in (0, 25, 50, 75, 100)]
    few = evaluators.sample_table({"word": ["a", "b"]}, count=5)
    assert few == "| word |\n| --- |\n| a |\n| b |"


def test_a_text_stays_in_its_cell():
    table = evaluators.sample_table({"text": [" two\nlines |  and\\or\t"]})
    assert table.splitlines()[-1] == r"| two lines \| and\\or |"


@pytest.mark.parametrize("columns", [{}, {"a": []}, {"a": ["x"], "b": ["x", "y"]}])
def test_a_table_of_unequal_columns_is_refused(columns):
    with pytest.raises(UserError, match="sample_table takes columns of as many texts, and at least one; it was given"):
        evaluators.sample_table(columns)


def test_a_histogram_of_lengths_counts_pairs():
    rng = np.random.default_rng(0)
    ours, theirs = rng.integers(0, 4, 50), rng.integers(1, 6, 50)
    picture = evaluators.length_histogram(iter(ours), iter(theirs), cell=2)
    counts = np.zeros([6, 6])
    for pair in zip(ours, theirs, strict=True):
        counts[pair] += 1
    assert picture.shape == (12, 12) and picture.max() == 1
    for row, column in np.ndindex(12, 12):
        expected = np.log(1 + counts[row // 2, column // 2]) / np.log(1 + counts.max())
        assert picture[row, column] == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize(("ours", "theirs"), [([], []), ([1], [1, 2])])
def test_lengths_of_unequal_numbers_are_refused(ours, theirs):
    with pytest.raises(UserError, match="length_histogram takes as many lengths of both, at least one"):
        evaluators.length_histogram(ours, theirs)


def test_attention_has_the_heads_beside_each_other():
    probabilities = np.random.default_rng(0).dirichlet(np.ones(5), size=[3, 4])  # [heads, target, source]
    picture = evaluators.attention_picture(probabilities, cell=2)
    assert picture.shape == (8, 3 * 10 + 2)
    for head in range(3):
        start = head * 11
        corner = picture[::2, start : start + 10 : 2]
        np.testing.assert_array_equal(corner, probabilities[head])
        np.testing.assert_array_equal(picture[1::2, start + 1 : start + 10 : 2], corner)
    assert (picture[:, [10, 21]] == 0.5).all()


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (np.zeros([4, 5]), r"takes \[heads, target length, source length\], not \[4, 5\]"),
        (np.zeros([2, 0, 5]), r"not \[2, 0, 5\]"),
        (np.full([1, 2, 2], 1.5), "was given 1.5 to 1.5"),
        (np.full([1, 2, 2], -1.0), "was given -1 to -1"),
        (np.full([1, 2, 2], np.nan), "was given nan to nan"),
    ],
)
def test_what_is_no_attention_is_refused(values, line):
    with pytest.raises(UserError, match=line):
        evaluators.attention_picture(values)
