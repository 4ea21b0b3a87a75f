"""Decoded sequences for a report: a table of samples, a histogram of lengths, and pictures of attention.

Report(
    images={"lengths": length_histogram(map(len, hypotheses), map(len, references)), "attention": attention_picture(p)},
    texts={"samples": sample_table({"source": words, "reference": references, "hypothesis": hypotheses})},
)
"""

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from framework.errors import UserError

_LINE = 0.5  # grey of the line between two heads


def sample_table(columns: Mapping[str, Sequence[str]], count: int = 12) -> str:
    """Returns a Markdown table of some examples, evenly spaced from the first to the last.

    Args:
      columns: {heading: texts}, as many of each, such as source, reference and hypothesis.
      count: the most rows.

    Raises:
      UserError: there is no column, no example, or the columns have different numbers of texts.
    """
    counts = {heading: len(texts) for heading, texts in columns.items()}
    if len(set(counts.values())) != 1 or not min(counts.values()):
        raise UserError(f"sample_table takes columns of as many texts, and at least one; it was given {counts}.")
    examples = min(counts.values())
    places = np.unique(np.linspace(0, examples - 1, min(count, examples)).round().astype(int))
    rows = [list(columns), ["---"] * len(columns)]
    rows += [[_cell(texts[place]) for texts in columns.values()] for place in places]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def length_histogram(hypotheses: Iterable[int], references: Iterable[int], cell: int = 6) -> np.ndarray:
    """Returns how often a hypothesis of each length was decoded for a reference of each length, as a picture.

    A row is a length of hypotheses and a column one of references, both from 0 at the top left, so that what has the
    right length is on the diagonal. Brightness is log(1 + count), of which the largest is white.

    Args:
      hypotheses, references: the length of each example, tokens or characters.
      cell: side of the square of a pair of lengths, in pixels.

    Returns:
      float64 [(1 + longest) * cell, (1 + longest) * cell], from 0 to 1.

    Raises:
      UserError: there is no example, or there are not as many of both.
    """
    ours, theirs = (np.fromiter(lengths, int) for lengths in (hypotheses, references))
    if len(ours) != len(theirs) or not len(ours):
        raise UserError(f"length_histogram takes as many lengths of both, at least one: {len(ours)}, {len(theirs)}.")
    size = 1 + max(ours.max(), theirs.max())
    counts = np.zeros([size, size])
    np.add.at(counts, (ours, theirs), 1)
    return _enlarged(np.log1p(counts) / np.log1p(counts.max()), cell)


def attention_picture(probabilities: np.ndarray, cell: int = 8) -> np.ndarray:
    """Returns the attention of each head beside that of the last: a row is a target token, a column a source token.

    Args:
      probabilities: floating [heads, target length, source length], from 0 (black) to 1 (white).
      cell: side of the square of a pair of tokens, in pixels.

    Returns:
      float64 [target length * cell, heads * source length * cell + heads - 1]; grey lines part the heads.

    Raises:
      UserError: `probabilities` has another shape, or a number beyond 0 to 1.
    """
    values = np.asarray(probabilities, np.float64)
    if values.ndim != 3 or not values.size:
        raise UserError(f"attention_picture takes [heads, target length, source length], not {list(values.shape)}.")
    if not (values.min() >= 0 and values.max() <= 1 + 1e-3):  # half precision rounds a sum beyond 1
        raise UserError(f"attention_picture takes probabilities, and was given {values.min():g} to {values.max():g}.")
    heads = [_enlarged(head, cell) for head in values.clip(0, 1)]
    line = np.full([heads[0].shape[0], 1], _LINE)
    return np.concatenate([heads[0], *(part for head in heads[1:] for part in (line, head))], axis=1)


def _cell(text: str) -> str:
    """Returns a text that is one cell of a table."""
    return re.sub(r"\s+", " ", text).strip().replace("\\", "\\\\").replace("|", "\\|")


def _enlarged(picture: np.ndarray, cell: int) -> np.ndarray:
    return np.kron(picture, np.ones([cell, cell]))
