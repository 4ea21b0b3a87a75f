"""Texts: vocabularies, the same segmentation in training and inside an export, readers of text files.

lines = text.read_aligned({"de": "train.de", "en": "train.en"})
words = text.train_word_pieces([*lines["de"], *lines["en"]], 8000)
source = text.encoded({"source": lines["de"], "target": lines["en"]}, words, origin="my corpus")
model.segments = words.segments()          # encode and decode inside a graph
"""

from framework.data.text.dictionary import read_dictionary
from framework.data.text.lines import read_aligned, read_lines
from framework.data.text.segmentation import BEGIN, END, PADDING, UNKNOWN, Segments
from framework.data.text.source import encoded
from framework.data.text.training import make_symbols, train_word_pieces
from framework.data.text.vocabulary import Symbols, Vocabulary, WordPieces, load

__all__ = [
    "BEGIN",
    "END",
    "PADDING",
    "UNKNOWN",
    "Segments",
    "Symbols",
    "Vocabulary",
    "WordPieces",
    "encoded",
    "load",
    "make_symbols",
    "read_aligned",
    "read_dictionary",
    "read_lines",
    "train_word_pieces",
]
