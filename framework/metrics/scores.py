"""Scores of decoded sequences: error rates by edit distance, and BLEU and chrF by the package `sacrebleu`.

    rates = error_rates([["K", "AE"]], [[["K", "AE", "T"], ["K", "AH"]]])      # any of the references is right
    rates.token, rates.sequence                                               # 0.333…, 1.0
    bleu(["Two dogs ."], ["Two dogs."], lower=True)        # Score(100.0, "nrefs:1|case:lc|eff:no|tok:13a|…")

They are functions of what a model decoded, for evaluators (`make_evaluators`); metrics of a batch are in other files.
"""

import dataclasses
from collections.abc import Hashable, Sequence

import numpy as np

from framework import extras
from framework.errors import UserError

Sequences = Sequence[Sequence[Hashable]]


@dataclasses.dataclass(frozen=True)
class ErrorRates:
    """Error rates of sequences, each compared with the one of its references that has the fewest errors.

    Attributes:
      token: the phoneme or word error rate: insertions, deletions and substitutions, by the tokens of those references.
      sequence: the share of sequences that are equal to none of their references.
    """

    token: float
    sequence: float


def error_rates(hypotheses: Sequences, references: Sequence[Sequences]) -> ErrorRates:
    """Returns the error rates of decoded sequences.

    Args:
      hypotheses: a sequence of tokens for each example.
      references: one or more right sequences of tokens for each example; of several with as few errors, the first
        counts.

    Raises:
      UserError: the numbers of examples differ, an example has no list of references of the kind of its hypothesis,
        or all references are empty.
    """
    _check_counts(hypotheses, references)
    if empty := [number for number, variants in enumerate(references) if not len(variants)]:
        raise UserError(f"example {empty[0]} has no reference. Leave it out, or name what is right.")
    for number, (hypothesis, variants_of) in enumerate(zip(hypotheses, references, strict=True)):
        is_text = isinstance(hypothesis, str)
        if isinstance(variants_of, str) or any(isinstance(variant, str) != is_text for variant in variants_of):
            raise UserError(
                f"the references of example {number} are {variants_of!r:.60}, for the hypothesis {hypothesis!r:.60}."
                " They are a list of what is right, each of the kind of the hypothesis: [reference] of one."
            )
    counts = np.array([len(variants) for variants in references])
    variants = [variant for of_example in references for variant in of_example]
    repeated = [hypothesis for hypothesis, count in zip(hypotheses, counts, strict=True) for _ in range(count)]
    distances = edit_distances(repeated, variants)
    starts = np.cumsum(counts) - counts
    best = [
        start + int(np.argmin(distances[start : start + count])) for start, count in zip(starts, counts, strict=True)
    ]
    length = sum(len(variants[place]) for place in best)
    if not length:
        raise UserError("all references are empty, so there is no error rate.")
    return ErrorRates(float(distances[best].sum() / length), float(np.mean(distances[best] > 0)))


def edit_distances(hypotheses: Sequences, references: Sequences) -> np.ndarray:
    """Returns int64 [n]: the fewest insertions, deletions and substitutions from each hypothesis to its reference.

    Source: Wagner and Fischer, 1974. All pairs advance by one token of their hypothesis at a time.
    """
    _check_counts(hypotheses, references)
    if not len(hypotheses):
        return np.zeros(0, np.int64)
    numbers: dict[Hashable, int] = {}
    ours, our_lengths = _padded(hypotheses, numbers, -1)
    theirs, their_lengths = _padded(references, numbers, -2)
    columns = np.arange(theirs.shape[1] + 1)
    row = np.tile(columns, [len(ours), 1])  # [n, longest reference + 1]: distances of the first 0 tokens
    for token in range(ours.shape[1]):
        replaced = row[:, :-1] + (theirs != ours[:, token, np.newaxis])
        best = np.concatenate([row[:, :1] + 1, np.minimum(replaced, row[:, 1:] + 1)], axis=1)
        # An insertion costs 1 a column: best[j] = min over i <= j of best[i] + j - i.
        best = np.minimum.accumulate(best - columns, axis=1) + columns
        row = np.where((token < our_lengths)[:, np.newaxis], best, row)
    return row[np.arange(len(row)), their_lengths].astype(np.int64)


@dataclasses.dataclass(frozen=True)
class Score:
    """A score of a corpus, from 0 to 100.

    Attributes:
      value: the score.
      signature: how it was computed, as sacrebleu writes it: scores of other signatures are not comparable.
    """

    value: float
    signature: str


def bleu(hypotheses: Sequence[str], references: Sequence[str], lower: bool = False) -> Score:
    """Returns the BLEU of a corpus, tokenised as WMT does ('13a').

    Source: Papineni et al., 2002; Post, 2018, "A call for clarity in reporting BLEU scores".

    Args:
      hypotheses: the decoded texts, as a reader would see them.
      references: the right text of each.
      lower: whether case is ignored.

    Raises:
      UserError: the numbers of texts differ, there is none, or the package is not installed.
    """
    return _score("BLEU", hypotheses, references, lower)


def chrf(hypotheses: Sequence[str], references: Sequence[str], lower: bool = False) -> Score:
    """Returns the chrF of a corpus, an F-score of its character n-grams (Popović, 2015); see `bleu`."""
    return _score("CHRF", hypotheses, references, lower)


def _score(kind: str, hypotheses: Sequence[str], references: Sequence[str], lower: bool) -> Score:
    if isinstance(hypotheses, str) or isinstance(references, str):
        raise UserError("the texts to score are two lists of texts, and one of them is a text: [text] has one.")
    _check_counts(hypotheses, references)
    if not len(hypotheses):
        raise UserError("there is no text to score.")
    metric = getattr(extras.load("sacrebleu.metrics", "text"), kind)(lowercase=lower)
    value = metric.corpus_score(list(hypotheses), [list(references)]).score
    return Score(float(value), str(metric.get_signature()))


def _check_counts(hypotheses: Sequence[object], references: Sequence[object]) -> None:
    if len(hypotheses) != len(references):
        raise UserError(f"{len(hypotheses)} hypotheses cannot be compared with {len(references)} references.")


def _padded(sequences: Sequences, numbers: dict[Hashable, int], padding: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns tokens as numbers, int64 [n, longest], and the lengths [n]; adds new tokens to `numbers`."""
    lengths = np.array([len(sequence) for sequence in sequences])
    padded = np.full([len(sequences), lengths.max()], padding)
    for row, sequence in enumerate(sequences):
        padded[row, : len(sequence)] = [numbers.setdefault(token, len(numbers)) for token in sequence]
    return padded, lengths
