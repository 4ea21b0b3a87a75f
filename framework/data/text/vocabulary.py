"""Vocabularies: how texts become ids, as one value that is saved as JSON.

words = text.train_word_pieces(lines, 8000, lower=True)      # or text.make_symbols(words, separator="")
ids, lengths = words.encode(["Two dogs."], end=True)         # int32 [1, 4] and [1]
words.decode(ids)                                            # ["two dogs."]
words.save("vocabulary.json")
words = text.load("vocabulary.json")                         # refused, if a byte of it changed
model.segments = words.segments()                            # the same inside a graph, see `segmentation.py`
"""

import dataclasses
import functools
import hashlib
import json
import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow as tf
from absl import logging

from framework.data.text.segmentation import SPECIAL, Segments, SymbolSegments, WordPieceSegments
from framework.errors import UserError, near
from framework.files import CorruptError, read_bytes, write_text

_BATCH = 4096  # texts encoded at a time
_HASH = "sha256"


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Pieces of texts and their ids; `WordPieces` and `Symbols` say what a piece is.

    Attributes:
      pieces: the text of each id. First come the special tokens: '<pad>' 0, '<unk>' 1, '<s>' 2, '</s>' 3, then those
        of the user.
      special: how many of them are special tokens.

    Raises:
      UserError: the special tokens are not these, two pieces are equal, or a piece is empty or has a line break.
    """

    pieces: tuple[str, ...]
    special: int = len(SPECIAL)

    def __post_init__(self) -> None:
        if self.pieces[: len(SPECIAL)] != SPECIAL or not len(SPECIAL) <= self.special <= len(self.pieces):
            raise UserError(
                f"a vocabulary begins with the special tokens {', '.join(SPECIAL)}; this one has"
                f" {', '.join(self.pieces[: self.special])}. Use train_word_pieces or make_symbols."
            )
        for piece in self.pieces:
            if not piece or "\n" in piece or "\r" in piece:
                raise UserError(f"the piece {piece!r} of a vocabulary is empty or has a line break.")
        if len(set(self.pieces)) != len(self.pieces):
            twice = next(piece for piece in self.pieces if self.pieces.count(piece) > 1)
            raise UserError(f"the piece {twice!r} is twice in a vocabulary. Name each once.")

    def __len__(self) -> int:
        return len(self.pieces)

    @property
    def sha256(self) -> str:
        """The hash of everything that decides the ids of a text."""
        return hashlib.sha256(json.dumps(self._values(), sort_keys=True).encode()).hexdigest()

    def special_id(self, token: str) -> int:
        """Returns the id of a special token: special_id('<s>') is 2.

        Raises:
          UserError: the vocabulary has no such special token.
        """
        known = self.pieces[: self.special]
        if token not in known:
            raise UserError(
                f"'{token}' is no special token of the vocabulary, which has {', '.join(known)}.{near(token, known)}"
                " Name others when it is made: special_tokens=(…,)."
            )
        return known.index(token)

    def encode(self, texts: Sequence[str], begin: bool = False, end: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Returns the ids of texts and their lengths: int32 [n, longest], padded with 0, and int32 [n].

        Args:
          texts: Unicode in form NFC, as the readers of this package return it.
          begin: whether each row starts with '<s>'.
          end: whether each row ends with '</s>'.

        Raises:
          UserError: `texts` is one text, a text is no str, or cannot be written as UTF-8.
        """
        encoded = as_bytes(texts)
        _warn_of_other_forms(texts)
        starts = range(0, max(1, len(texts)), _BATCH)
        rows = [self._rows(encoded[start : start + _BATCH], begin, end) for start in starts]
        flat, lengths = (np.concatenate(arrays) for arrays in zip(*rows, strict=True))
        ids = np.zeros([len(texts), lengths.max(initial=0)], np.int32)
        ids[np.arange(ids.shape[1]) < lengths[:, np.newaxis]] = flat
        return ids, lengths

    def decode(self, ids: np.ndarray) -> list[str]:
        """Returns the texts of ids (int [n, length]), each up to its first '</s>', without special tokens.

        It inverts `encode` up to what the class says about the form of texts; an unknown piece is shown as U+FFFD.

        Raises:
          UserError: `ids` is not of two dimensions, or has an id that the vocabulary does not have.
        """
        ids = np.asarray(ids)
        if ids.ndim != 2 or ids.dtype.kind not in "iu":
            raise UserError(f"decode takes integers [texts, length], not {ids.dtype} {list(ids.shape)}.")
        if ids.size and not 0 <= ids.min() <= ids.max() < len(self):
            raise UserError(f"ids are {ids.min()} to {ids.max()}, but those of the vocabulary 0 to {len(self) - 1}.")
        with tf.device("CPU:0"):
            return [text.decode() for text in self._segments.decode(tf.constant(ids, tf.int64)).numpy()]

    def segments(self, name: str = "vocabulary") -> Segments:
        """Returns what encodes and decodes inside a graph.

        Args:
          name: the name of the vocabulary's file in the assets of a SavedModel: '<name>.txt'.
        """
        raise NotImplementedError

    def to_json(self) -> str:
        """Returns the text of the file that `save` writes."""
        return json.dumps({**self._values(), _HASH: self.sha256}, ensure_ascii=False, indent=0) + "\n"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the vocabulary as a JSON file with a hash of its content."""
        write_text(Path(path), self.to_json())

    def _values(self) -> dict[str, Any]:
        kind = next(name for name, kind in KINDS.items() if kind is type(self))
        return {"kind": kind, **dataclasses.asdict(self)}

    @functools.cached_property
    def _segments(self) -> Segments:
        with tf.init_scope(), tf.device("CPU:0"):
            return self.segments()

    def _rows(self, texts: Sequence[bytes], begin: bool, end: bool) -> tuple[np.ndarray, np.ndarray]:
        """Returns the ids of some texts (UTF-8), one text after the other, and the length of each."""
        with tf.device("CPU:0"):
            rows = self._segments.rows(tf.constant(texts, tf.string, [len(texts)]), begin, end)
        return rows.values.numpy(), rows.row_lengths().numpy().astype(np.int32)


@dataclasses.dataclass(frozen=True)
class WordPieces(Vocabulary):
    """Pieces of words, of which each word takes the longest that fits first.

    What `encode` does not keep, so that `decode` does not return it: white space and control characters are one space
    each, and none at the ends of a text; so is '▁' (U+2581). With `lower`, characters are lower case.

    Attributes:
      lower: whether texts are made lower case.
    """

    lower: bool = False

    def segments(self, name: str = "vocabulary") -> WordPieceSegments:
        return WordPieceSegments(self.pieces, self.special, self.lower, name)


@dataclasses.dataclass(frozen=True)
class Symbols(Vocabulary):
    """Characters, or symbols of several characters between spaces, such as phonemes.

    `encode` keeps all of a text but, with the separator ' ', how wide its white space is.

    Attributes:
      separator: '' or ' '.
    """

    separator: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.separator not in ("", " "):
            raise UserError(f"separator={self.separator!r} of symbols is neither '' (characters) nor ' '.")

    def segments(self, name: str = "vocabulary") -> SymbolSegments:
        return SymbolSegments(self.pieces, self.special, self.separator, name)


KINDS: Mapping[str, type[Vocabulary]] = {"word_pieces": WordPieces, "symbols": Symbols}


def load(path: str | os.PathLike[str]) -> Vocabulary:
    """Returns the vocabulary of a file that `save` wrote.

    Raises:
      UserError: there is no such file, it is not a vocabulary, or its content is not what its hash says.
    """
    try:
        content = read_bytes(Path(path)).decode()
        values = json.loads(content)
        kind, digest = values.pop("kind"), values.pop(_HASH)
        vocabulary = KINDS[kind](**{**values, "pieces": tuple(values["pieces"])})
    except (FileNotFoundError, CorruptError) as error:
        raise UserError(f"{path} cannot be read: {error}. Name a file that save wrote.") from error
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError, UserError) as error:
        raise UserError(f"{path} is not a vocabulary, or is damaged: {error}. Save it again.") from error
    if vocabulary.sha256 != digest:
        raise UserError(
            f"{path} is damaged: its content has SHA-256 {vocabulary.sha256}, and says {digest}. Save it again."
        )
    return vocabulary


def as_bytes(texts: Iterable[str], form: Literal["NFC"] | None = None) -> list[bytes]:
    """Returns texts as UTF-8, brought to a form of Unicode before.

    Raises:
      UserError: `texts` is one text, a text is no str, or has half of a surrogate pair.
    """
    if isinstance(texts, str | bytes):
        raise UserError(f"{texts!r:.80} is one text, and a list of texts is wanted: [text].")
    given: list[Any] = list(texts)
    for number, text in enumerate(given):
        if not isinstance(text, str):
            wanted = "Decode it: text.decode()." if isinstance(text, bytes) else "Leave it out, or take ''."
            raise UserError(
                f"text {number} of {len(given)} is {text!r:.80}, a {type(text).__name__} and no str. {wanted}"
            )
    try:
        return [(unicodedata.normalize(form, text) if form else text).encode() for text in given]
    except UnicodeEncodeError as error:
        raise UserError(f"{error.object!r:.80} is not Unicode: {error.reason}. Read files as UTF-8.") from error


def _warn_of_other_forms(texts: Sequence[str]) -> None:
    if others := [text for text in texts if not unicodedata.is_normalized("NFC", text)]:
        logging.warning(
            "%d of %d texts, such as %.40r, are not in the form NFC, in which vocabularies are trained: their accents"
            " have ids of their own. Write unicodedata.normalize('NFC', text)",
            len(others),
            len(texts),
            others[0],
        )
