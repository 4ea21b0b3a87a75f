"""Segmentation in plain Python, from its definition, and texts to try it on."""

import functools
import unicodedata
from unicodedata import category

import numpy as np

from framework.data.text import WordPieces

SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")
LETTERS = [*"abcdefghijklmnopqrstuvwxyzäöüßéABCDEÄÖ0123456789.,!?'\"()-▁"]
MERGED = [
    "▁the",
    "▁two",
    "two",
    "dog",
    "▁dog",
    "s.",
    "ing",
    "in",
    "▁in",
    "▁Tür",
    "tür",
    "Zw",
    "ei",
    "(b",
    "▁B",
    "ß",
    "iß",
]
WORDS = WordPieces((*SPECIAL, *dict.fromkeys([*LETTERS, *MERGED])))
LOWER = WordPieces(WORDS.pieces, len(SPECIAL), lower=True)
SENTENCES = [
    "The two dogs.",
    "Zwei Türen (blau), in   the dog-house!",
    "in\u00a0two\u2028lines\t",
    "",
    " ",
    "▁two",
    "<s> two</s>",
]


def is_separator(character):
    return category(character)[0] == "Z" or category(character) == "Cc" or character == "▁"


def normalised(text, lower):
    """The form of a text that its ids keep: what separates words is one space."""
    if lower:
        text = "".join(c.lower() if len(c.lower()) == 1 else c for c in text)
    return " ".join("".join(" " if is_separator(c) else c for c in text).split())


def units(text, lower):
    """['▁two', '▁(', 'b', ')'] for 'two (b)'."""
    for word in normalised(text, lower).split():
        unit = "▁"
        for c in word:
            if category(c)[0] in "PS":
                if unit not in ("", "▁"):
                    yield unit
                    unit = ""
                yield unit + c
                unit = ""
            else:
                unit += c
        if unit:
            yield unit


@functools.cache
def pieces_of(words):
    return {piece: number for number, piece in enumerate(words.pieces) if number >= words.special}


def ids(text, words):
    """The longest piece at each place, left to right; 1 where there is none."""
    pieces = pieces_of(words)
    out = []
    for unit in units(text, words.lower):
        while unit:
            size = next((size for size in range(len(unit), 0, -1) if unit[:size] in pieces), 0)
            out.append(pieces[unit[:size]] if size else 1)
            unit = unit[size or 1 :]
    return out


def random_texts(count, seed=0):
    """Texts of letters, of pieces, and of all characters that Unicode has had unchanged since version 3.2."""
    old = unicodedata.ucd_3_2_0
    rare = [chr(code) for code in range(1, 0x110000) if not 0xD800 <= code < 0xE000]
    rare = [c for c in rare if (category(c) == old.category(c) != "Cn") and category(c) != "Co"]
    rng = np.random.default_rng(seed)
    texts = []
    for _ in range(count):
        pool = (rare, LETTERS, MERGED, [" ", "\n", "\u0301"])
        kinds = rng.choice(4, rng.integers(0, 20), p=(0.3, 0.3, 0.2, 0.2))
        texts.append("".join(pool[kind][rng.integers(len(pool[kind]))] for kind in kinds))
    return texts
