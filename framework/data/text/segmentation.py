"""Segmentation: texts to ids and back, by operations of core TensorFlow, which every server of a SavedModel has.

    segments = WordPieceSegments(pieces, special=4, lower=True)
    segments.encode(tf.constant(["Two dogs."]), end=True)     # int32 [1, length], padded with 0
    segments.decode(ids)                                      # [b"two dogs."]

The same operations make the ids of training and those inside an export. Core TensorFlow cannot bring a text to the
form NFC of Unicode, so `encode` takes a text as it is: the readers of `lines.py` return NFC, and clients send NFC.
"""

import functools
import shutil
import sys
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path

import tensorflow as tf

SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")
PADDING, UNKNOWN, BEGIN, END = range(len(SPECIAL))

MARK = "▁"  # U+2581 stands before a piece that follows a space, or begins a text
SHOWN_UNKNOWN = "\N{REPLACEMENT CHARACTER}"  # in place of an unknown token in a decoded text

_SEPARATORS = rf"[\p{{Z}}\p{{Cc}}{MARK}]+"  # every white space of Unicode, control characters, and the mark itself
_ALONE = r"[\p{P}\p{S}]"  # each punctuation mark and symbol is a unit of its own
_SPACE = "\x01"  # a space, until units are split; a control character, so no text has it by then


class Segments(tf.Module):
    """Encodes and decodes texts inside a graph; an attribute of a model, so that its tables are exported with it.

    Args:
      pieces: the text of each id; the special tokens first.
      special: how many special tokens there are. No text encodes to them, and a decoded text does not show them.
      name: the name of the file in the assets of a SavedModel: '<name>.txt', one piece a line.
    """

    def __init__(self, pieces: Sequence[str], special: int, name: str = "vocabulary"):
        super().__init__()
        folder = tempfile.mkdtemp()
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        path = Path(folder) / f"{name}.txt"
        path.write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8", newline="\n")
        self.special = special
        self.longest = max(map(len, pieces))
        self.to_id = _table(path, is_encoding=True)
        self.to_piece = _table(path, is_encoding=False)

    def encode(self, texts: tf.Tensor, length: int | None = None, begin: bool = False, end: bool = False) -> tf.Tensor:
        """Returns the ids of texts, int32 [n, length], padded with 0.

        Args:
          texts: string [n], UTF-8; a byte that is not becomes U+FFFD.
          length: the number of columns; None for the longest text. A longer text is an error.
          begin: whether each row starts with the token of the beginning.
          end: whether each row ends with the token of the end.
        """
        rows = self.rows(texts, begin, end)
        if length is not None:
            longest = tf.reduce_max(tf.concat([[0], rows.row_lengths()], 0))
            message = f"a text has more than length={length} tokens"
            with tf.control_dependencies([tf.debugging.Assert(longest <= length, [message, longest])]):
                rows = tf.identity(rows)
        return rows.to_tensor(PADDING, shape=[None, length])

    def rows(self, texts: tf.Tensor, begin: bool = False, end: bool = False) -> tf.RaggedTensor:
        """Returns the ids of texts (string [n]) without padding: int32 [n, None]."""
        rows = self._rows(tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8"))
        column = tf.ones([tf.size(texts), 1], tf.int32)
        first = [BEGIN * column] if begin else []
        last = [END * column] if end else []
        return tf.concat([*first, rows, *last], axis=1)

    def decode(self, ids: tf.Tensor) -> tf.Tensor:
        """Returns the texts (string [n]) of ids (int [n, length]), each up to its first token of the end."""
        ids = tf.cast(ids, tf.int64)
        has_ended = tf.cumsum(tf.cast(ids == END, tf.int32), axis=1) > 0
        is_known = (ids >= self.special) & (ids < self.to_piece.size())
        is_shown = ~has_ended & ((ids >= self.special) | (ids == UNKNOWN) | (ids < 0))
        pieces = tf.where(is_known, self.to_piece.lookup(ids), SHOWN_UNKNOWN)
        return self._joined(tf.ragged.boolean_mask(pieces, is_shown))

    def _rows(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """Returns int32 [n, None]: the ids of valid UTF-8."""
        raise NotImplementedError

    def _joined(self, pieces: tf.RaggedTensor) -> tf.Tensor:
        """Returns string [n]: the texts of pieces, string [n, None]."""
        raise NotImplementedError

    def _ids(self, pieces: tf.Tensor) -> tf.Tensor:
        """Returns the ids of pieces, int32 of the same shape; -1 for one that the vocabulary does not have."""
        ids = tf.cast(self.to_id.lookup(pieces), tf.int32)
        return tf.where(ids >= self.special, ids, -1)


class WordPieceSegments(Segments):
    """Splits texts into units (words, and each punctuation mark alone), and units greedily into the longest pieces.

    Source: Wu et al., 2016, "Google's neural machine translation system" (WordPiece); the mark of a space instead of
    one of a continuation, which makes the segmentation invertible, is of Kudo and Richardson, 2018, "SentencePiece".

    Args:
      lower: whether texts are made lower case first, by the table of `_lower_case`.
    """

    def __init__(self, pieces: Sequence[str], special: int, lower: bool, name: str = "vocabulary"):
        super().__init__(pieces, special, name)
        self.units = Units(lower)

    def _rows(self, texts: tf.Tensor) -> tf.RaggedTensor:
        units = self.units(texts)  # [n, None]
        distinct, places = tf.unique(units.values)
        pieces = tf.gather(self._longest_matches(distinct), places)  # [units, None]
        return tf.RaggedTensor.from_row_splits(pieces, units.row_splits, validate=False).merge_dims(1, 2)

    def _longest_matches(self, units: tf.Tensor) -> tf.RaggedTensor:
        """Returns int32 [n, None]: the ids of each unit (string [n]); a character without a piece is UNKNOWN."""
        sizes = tf.range(1, self.longest + 1)

        def more(rest: tf.Tensor, *_: tf.Tensor) -> tf.Tensor:
            return tf.size(rest) > 0

        def step(rest: tf.Tensor, unit: tf.Tensor, ids: tf.Tensor, units: tf.Tensor) -> tuple[tf.Tensor, ...]:
            left = tf.strings.length(rest, "UTF8_CHAR")  # [rest]
            lengths = tf.repeat(sizes[tf.newaxis], tf.size(rest), axis=0)
            starts = tf.strings.substr(rest[:, tf.newaxis], tf.zeros_like(lengths), lengths, "UTF8_CHAR")
            matches = self._ids(starts)  # [rest, longest]
            best = tf.reduce_max(tf.where(matches >= 0, sizes, 0), axis=1)
            chosen = tf.gather(matches, tf.maximum(best - 1, 0), batch_dims=1)
            ids = tf.concat([ids, tf.where(best > 0, chosen, UNKNOWN)], 0)
            units = tf.concat([units, unit], 0)
            taken = tf.clip_by_value(best, 1, left)  # behind the end of a unit, its starts are the unit itself
            is_left = taken < left
            rest, taken, left, unit = (tf.boolean_mask(tensor, is_left) for tensor in (rest, taken, left, unit))
            return tf.strings.substr(rest, taken, left - taken, "UTF8_CHAR"), unit, ids, units

        none = tf.zeros([0], tf.int32)
        start = (units, tf.range(tf.size(units)), none, none)
        free = tf.TensorShape([None])
        *_, ids, owners = tf.while_loop(more, step, start, shape_invariants=(free,) * 4)
        order = tf.argsort(owners, stable=True)
        ids, owners = tf.gather(ids, order), tf.gather(owners, order)
        owners = tf.cast(owners, tf.int64)
        return tf.RaggedTensor.from_value_rowids(ids, owners, tf.size(units, tf.int64), validate=False)

    def _joined(self, pieces: tf.RaggedTensor) -> tf.Tensor:
        texts = tf.strings.regex_replace(tf.strings.reduce_join(pieces, axis=1), MARK, " ")
        return tf.strings.regex_replace(texts, "^ ", "")


class SymbolSegments(Segments):
    """Splits texts at a separator; '' splits them into characters.

    Args:
      separator: '', or ' ' for symbols of several characters, which white space separates.
    """

    def __init__(self, pieces: Sequence[str], special: int, separator: str, name: str = "vocabulary"):
        super().__init__(pieces, special, name)
        self.separator = separator

    def _rows(self, texts: tf.Tensor) -> tf.RaggedTensor:
        symbols = split_symbols(texts, self.separator)
        ids = self._ids(symbols.values)
        return symbols.with_values(tf.where(ids >= 0, ids, UNKNOWN))

    def _joined(self, pieces: tf.RaggedTensor) -> tf.Tensor:
        return tf.strings.reduce_join(pieces, axis=1, separator=self.separator)


class Units(tf.Module):
    """Splits texts into units: string [n] -> string [n, None]. A unit that follows a space begins with MARK."""

    def __init__(self, lower: bool):
        super().__init__()
        self.lower_case = _lower_case() if lower else None

    def __call__(self, texts: tf.Tensor) -> tf.RaggedTensor:
        if self.lower_case is not None:
            codes = tf.strings.unicode_decode(texts, "UTF-8")
            lower = self.lower_case.lookup(codes.values)
            codes = codes.with_values(tf.where(lower > 0, lower, codes.values))
            texts = tf.strings.unicode_encode(codes, "UTF-8")
        texts = tf.strings.regex_replace(tf.strings.join([" ", texts]), f"{_SEPARATORS}$", "")
        texts = tf.strings.regex_replace(texts, _SEPARATORS, _SPACE)
        texts = tf.strings.regex_replace(texts, f"{_SPACE}?{_ALONE}", r" \0 ")
        return tf.strings.split(tf.strings.regex_replace(texts, _SPACE, f" {MARK}"))


def split_symbols(texts: tf.Tensor, separator: str) -> tf.RaggedTensor:
    """Returns the symbols of texts (string [n]): string [n, None]."""
    return tf.strings.split(texts) if separator else tf.strings.unicode_split(texts, "UTF-8")


def lowered(text: str) -> str:
    """Returns a text in lower case, character by character, as `encode` makes it."""
    return "".join(lower if len(lower := character.lower()) == 1 else character for character in text)


def _table(path: Path, is_encoding: bool) -> tf.lookup.StaticHashTable:
    text, number = tf.lookup.TextFileIndex.WHOLE_LINE, tf.lookup.TextFileIndex.LINE_NUMBER
    text_and_number = ((tf.string, text), (tf.int64, number))
    key, value = text_and_number if is_encoding else text_and_number[::-1]
    initializer = tf.lookup.TextFileInitializer(str(path), *key, *value)
    return tf.lookup.StaticHashTable(initializer, -1 if is_encoding else SHOWN_UNKNOWN)


def _lower_case() -> tf.lookup.StaticHashTable:
    """Returns the table from a character's code to that of its lower case; 0 for none.

    tf.strings.lower depends on the locale of the process (in a Turkish one, 'I' becomes a dotless i), and on the
    letters around a sigma.
    """
    keys, values = (tf.constant(codes, tf.int32) for codes in zip(*_lower_codes(), strict=True))
    return tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, values), 0)


@functools.cache
def _lower_codes() -> tuple[tuple[int, int], ...]:
    """Returns (code, code of the lower case) of each character that has a lower case of one character."""
    pairs = ((code, lowered(chr(code))) for code in range(sys.maxunicode + 1))
    return tuple((code, ord(lower)) for code, lower in pairs if lower != chr(code))
