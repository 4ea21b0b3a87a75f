"""Making vocabularies of texts: word pieces by the package `tokenizers`, symbols by counting.

    words = train_word_pieces(lines, 8000, lower=True)
    letters, phonemes = make_symbols(["cat", "dog"]), make_symbols(["K AE1 T", "D AO1 G"], separator=" ")

The same texts give the same vocabulary, byte for byte. The package is needed here alone: a vocabulary that is saved is
loaded and used without it.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import tensorflow as tf
from absl import logging

from framework import extras
from framework.data.text.segmentation import SPECIAL, Units, split_symbols
from framework.data.text.vocabulary import Symbols, WordPieces, as_bytes
from framework.errors import UserError

_BATCH = 4096  # texts split at a time


def train_word_pieces(
    texts: Iterable[str], size: int, lower: bool = False, special_tokens: Sequence[str] = (), min_count: int = 2
) -> WordPieces:
    """Returns a vocabulary of word pieces, trained on texts.

    It has every character of the texts, so that only characters which they lack are unknown. Pieces are merged from
    the most frequent pairs, the training of byte pair encoding (Sennrich et al., 2016).

    Args:
      texts: in any form of Unicode; they are brought to NFC.
      size: how many pieces, special tokens among them.
      lower: whether texts are made lower case.
      special_tokens: more of them, after '<pad>', '<unk>', '<s>' and '</s>', such as '<to_de>'.
      min_count: how often two pieces must be neighbours to be merged.

    Raises:
      UserError: `size` is no whole number or too small for the characters, there is no text, or the package is not
        installed.
    """
    if not isinstance(size, int | np.integer) or isinstance(size, bool):
        raise UserError(f"train_word_pieces(size={size!r}): size must be a whole number, such as 8000.")
    if not isinstance(texts, Sequence):
        texts = list(texts)
    tokenizers = extras.load("tokenizers", "text")
    lines = list(_units(texts, lower))
    special = _special(special_tokens)
    characters = set().union(*lines) - {" "}
    if not characters:
        raise UserError(f"none of the {len(texts)} texts has a character. Give the lines of a corpus.")
    if size < len(special) + len(characters):
        raise UserError(
            f"size={size} is too small: the texts have {len(characters)} characters, and there are {len(special)}"
            f" special tokens. Use size={len(special) + len(characters)} at least."
        )
    # Without a prefix of continuations: the mark of a space says where words begin.
    trained = tokenizers.Tokenizer(tokenizers.models.WordPiece(continuing_subword_prefix=""))
    trained.pre_tokenizer = tokenizers.pre_tokenizers.CharDelimiterSplit(" ")
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=int(size) - len(special), min_frequency=min_count, continuing_subword_prefix="", show_progress=False
    )
    trained.train_from_iterator(lines, trainer)
    ids = trained.get_vocab()
    words = WordPieces((*special, *sorted(ids, key=ids.__getitem__)), len(special), lower)
    if len(words) < size:
        logging.warning("the vocabulary has %d pieces, not %d: the texts have no more", len(words), size)
    return words


def make_symbols(texts: Iterable[str], separator: str = "", special_tokens: Sequence[str] = ()) -> Symbols:
    """Returns the vocabulary of all symbols of texts, in the order of their codes.

    Args:
      texts: in any form of Unicode; they are brought to NFC.
      separator: '' for characters, ' ' for symbols between white space.
      special_tokens: more of them, after '<pad>', '<unk>', '<s>' and '</s>'.

    Raises:
      UserError: there is no symbol, or a text is not as `encode` takes it.
    """
    special = _special(special_tokens)
    lines = tf.constant(as_bytes(texts, "NFC"), tf.string)
    symbols = {symbol.decode() for symbol in split_symbols(lines, separator).values.numpy()}
    if not symbols:
        raise UserError("make_symbols was given no symbol. Give it the texts that will be encoded.")
    if both := sorted(symbols & {*special_tokens}):
        raise UserError(
            f"'{both[0]}' is a special token and a symbol of the texts, but no text encodes to a special token. Leave"
            " it out of special_tokens, or out of the texts."
        )
    return Symbols((*special, *sorted(symbols - {*special})), len(special), separator)


def _special(special_tokens: Sequence[str]) -> tuple[str, ...]:
    """Returns all special tokens, with those of the user last."""
    if isinstance(special_tokens, str):
        raise UserError(f"special_tokens={special_tokens!r} is one text. Write special_tokens=({special_tokens!r},).")
    return (*SPECIAL, *special_tokens)


def _units(texts: Sequence[str], lower: bool) -> Iterator[str]:
    """Yields the units of each text, with a space between two, as `encode` splits it."""
    split = Units(lower)
    for start in range(0, len(texts), _BATCH):
        batch = as_bytes(texts[start : start + _BATCH], "NFC")
        units = split(tf.constant(batch, tf.string, [len(batch)]))
        yield from (line.decode() for line in tf.strings.reduce_join(units, axis=1, separator=" ").numpy())
