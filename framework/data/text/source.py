"""Encoded texts as a source of examples.

source = text.encoded({"source": german, "target": english}, words, origin="my corpus")
source.take(np.array([0]))        # {"source": int32 [1, 40], "source_length": int32 [1], "target": …, …}
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from absl import logging

from framework.data.sources import Source
from framework.data.text.segmentation import UNKNOWN
from framework.data.text.vocabulary import Vocabulary
from framework.errors import UserError

_MANY = 0.02  # share of unknown tokens


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedTexts(Source):
    """A source of ids whose fingerprint is another one if a vocabulary is.

    Attributes:
      vocabularies: {field: vocabulary}.
    """

    vocabularies: Mapping[str, Vocabulary] = dataclasses.field(default_factory=dict)

    def fingerprint(self) -> str | None:
        """Returns the SHA-256 of some examples and of the vocabularies."""
        hashes = [f"{field} {vocabulary.sha256}" for field, vocabulary in sorted(self.vocabularies.items())]
        return hashlib.sha256("\n".join([str(super().fingerprint()), *hashes]).encode()).hexdigest()


def encoded(
    texts: Mapping[str, Sequence[str]], vocabularies: Vocabulary | Mapping[str, Vocabulary], origin: str
) -> EncodedTexts:
    """Returns the source of texts as ids; each row ends with '</s>', and is padded with 0.

    Args:
      texts: {field: texts}, as many of each.
      vocabularies: one for all fields, or {field: vocabulary}.
      origin: a name for logs and result.json that says where the texts come from.

    Returns:
      A source of `<field>`, int32 [n, longest], and `<field>_length`, int32 [n].

    Raises:
      UserError: a field has no vocabulary, or fields have different numbers of texts.
    """
    by_field = dict.fromkeys(texts, vocabularies) if isinstance(vocabularies, Vocabulary) else dict(vocabularies)
    if texts.keys() != by_field.keys():
        raise UserError(
            f"texts are of the fields {', '.join(texts)}, and vocabularies of {', '.join(by_field)}. Name the same."
        )
    if len(set(map(len, texts.values()))) > 1:
        counts = ", ".join(f"{len(of_field)} of '{field}'" for field, of_field in texts.items())
        raise UserError(f"'{origin}' has texts in different numbers: {counts}. Give as many of each.")
    arrays: dict[str, np.ndarray] = {}
    for field, of_field in texts.items():
        ids, lengths = arrays[field], arrays[f"{field}_length"] = by_field[field].encode(of_field, end=True)
        unknown = (ids == UNKNOWN).sum() / max(1, lengths.sum())
        if unknown > _MANY:
            logging.warning(
                "%.0f %% of the tokens of '%s' in '%s' are unknown: is it the vocabulary of other texts?",
                100 * unknown,
                field,
                origin,
            )
    return EncodedTexts(arrays, origin, vocabularies=by_field)
