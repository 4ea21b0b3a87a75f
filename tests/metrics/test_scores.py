"""metrics/scores.py: edit distances of a plain table, error rates with variants, BLEU and chrF and their signatures."""

import math

import numpy as np
import pytest

from framework import metrics
from framework.errors import UserError


def distance(ours, theirs):
    """The table of Wagner and Fischer, cell by cell."""
    table = np.zeros([len(ours) + 1, len(theirs) + 1], int)
    table[:, 0], table[0] = range(len(ours) + 1), range(len(theirs) + 1)
    for i, own in enumerate(ours, 1):
        for j, other in enumerate(theirs, 1):
            table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (own != other))
    return table[-1, -1]


def sequences(rng, count):
    return [rng.choice([*"abcd"], rng.integers(0, 9)).tolist() for _ in range(count)]


def test_edit_distances_are_those_of_a_plain_table():
    rng = np.random.default_rng(0)
    ours, theirs = sequences(rng, 300), sequences(rng, 300)
    expected = [distance(*pair) for pair in zip(ours, theirs, strict=True)]
    assert metrics.edit_distances(ours, theirs).tolist() == expected
    assert metrics.edit_distances(["kitten", ""], ["sitting", "ab"]).tolist() == [3, 2]
    assert metrics.edit_distances([], []).tolist() == []


def test_the_best_of_several_references_counts():
    rng = np.random.default_rng(1)
    ours = sequences(rng, 200)
    references = [sequences(rng, rng.integers(1, 4)) for _ in ours]
    errors = tokens = wrong = 0
    for own, variants in zip(ours, references, strict=True):
        best = min(variants, key=lambda variant: distance(own, variant))
        errors, tokens, wrong = errors + distance(own, best), tokens + len(best), wrong + (own not in variants)
    rates = metrics.error_rates(ours, references)
    assert (rates.token, rates.sequence) == (errors / tokens, wrong / len(ours))
    assert metrics.error_rates(["kitten"], [["sitting"]]) == metrics.ErrorRates(3 / 7, 1.0)  # of characters
    assert metrics.error_rates([["K", "AE"]], [[["K", "AE", "T"], ["K", "AH"]]]) == metrics.ErrorRates(1 / 3, 1.0)


def corpus_bleu(hypotheses, references):
    """BLEU of tokens, in plain Python, of a corpus in which every n-gram order has a match."""
    matches, totals = np.zeros(4), np.zeros(4)
    for ours, theirs in zip(hypotheses, references, strict=True):
        for n in range(1, 5):
            grams = [[tuple(of[i : i + n]) for i in range(len(of) - n + 1)] for of in (ours, theirs)]
            matches[n - 1] += sum(min(grams[0].count(gram), grams[1].count(gram)) for gram in {*grams[0]})
            totals[n - 1] += len(grams[0])
    ours, theirs = (sum(map(len, of)) for of in (hypotheses, references))
    return 100 * min(1, math.exp(1 - theirs / ours)) * math.exp(np.log(matches / totals).mean())


def test_bleu_is_its_formula_and_says_how_it_was_computed():
    sacrebleu = pytest.importorskip("sacrebleu", reason="needs the extra 'text'")
    ours = ["The dog runs over a green field .", "two men sit in the Old house"]
    theirs = ["The dog runs over the green field .", "Two men sit in the old house today"]
    mixed, lower = (metrics.bleu(ours, theirs, lower=lower) for lower in (False, True))
    assert mixed.value == pytest.approx(corpus_bleu([t.split() for t in ours], [t.split() for t in theirs]), abs=1e-9)
    small = [[text.lower().split() for text in of] for of in (ours, theirs)]
    assert lower.value == pytest.approx(corpus_bleu(*small), abs=1e-9) and lower.value > mixed.value
    version = sacrebleu.__version__
    assert mixed.signature == f"nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:{version}"
    assert lower.signature == f"nrefs:1|case:lc|eff:no|tok:13a|smooth:exp|version:{version}"
    chrf = metrics.chrf(ours, theirs)
    assert 0 < chrf.value < 100 and chrf.signature == f"nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:{version}"
    same = [metrics.chrf(theirs, theirs).value, metrics.bleu(theirs, theirs).value]
    assert same == pytest.approx([100, 100])


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda: metrics.bleu(["a"], []), "1 hypotheses cannot be compared with 0 references"),
        (lambda: metrics.bleu("a b c d", "a b c d"), "one of them is a text"),
        (lambda: metrics.error_rates(["abc"], ["abd"]), "^the references of example 0 are 'abd', for the hypothesis"),
        (
            lambda: metrics.error_rates([["a"], ["a", "b"]], [[["a"]], ["a", "b"]]),
            r"^the references of example 1 are \['a', 'b'\], for the hypothesis \['a', 'b'\]. They are a list",
        ),
        (lambda: metrics.bleu([], []), "there is no text to score"),
        (lambda: metrics.error_rates([["a"]], [[]]), "example 0 has no reference"),
        (lambda: metrics.error_rates([["a"]], [[[]]]), "all references are empty"),
        (lambda: metrics.error_rates([["a"]], []), "1 hypotheses cannot be compared with 0 references"),
    ],
)
def test_what_cannot_be_scored_is_refused(score, message):
    with pytest.raises(UserError, match=message):
        score()
