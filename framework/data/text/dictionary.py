"""Dictionaries: a file with a word and its symbols, such as phonemes, a line.

words, pronunciations = read_dictionary("german.dict")          # ["Hund", …], [["h ʊ n t"], …]
"""

import os
import re
from pathlib import Path

from absl import logging

from framework.data.text.lines import whole_lines
from framework.data.text.segmentation import SPECIAL
from framework.errors import UserError

_COMMENT = re.compile(r"(^|\s)#(\s.*)?$")
_VARIANT = re.compile(r"(.+)\(\d+\)")  # 'a(2)' is the second pronunciation of 'a'


def read_dictionary(path: str | os.PathLike[str]) -> tuple[list[str], list[list[str]]]:
    """Returns the words of a dictionary, in its order, and the pronunciations of each: symbols with a space between.

    A line has a word, white space and symbols with white space between, as in CMUdict; the first tab, if there is one,
    ends the word, which may then have spaces. A word of several lines has several pronunciations, and so has one with
    lines of 'word(2)'. A '#' between spaces begins a comment; lines with nothing else, and empty ones, are left out.

    Args:
      path: the file, read as by `read_lines`.

    Raises:
      UserError: the file cannot be read or is not UTF-8, it has no word, or a line has no symbol or a special token.
    """
    variants: dict[str, list[str]] = {}
    repeated = []
    for number, line in enumerate(whole_lines(Path(path)), 1):
        if not (content := _COMMENT.sub("", line)).strip():
            continue
        word, pronunciation = _split(content)
        if not word or not pronunciation:
            has = "symbols and no word" if pronunciation else f"the word '{word}' and no symbol"
            raise UserError(
                f"{path}: line {number} has {has}. Write a word, a space or tab, and symbols with spaces between, or"
                " leave out the line."
            )
        if special := sorted({*pronunciation.split()} & {*SPECIAL}):
            raise UserError(
                f"{path}: line {number} has the symbol '{special[0]}', which is a token of every vocabulary, so no text"
                " encodes to it. Leave it out, or write it otherwise."
            )
        is_variant = _VARIANT.fullmatch(word)
        of_word = variants.setdefault(is_variant[1] if is_variant else word, [])
        if pronunciation in of_word:
            repeated.append(number)
        else:
            of_word.append(pronunciation)
    if not variants:
        raise UserError(f"{path} has no word. Write a line for each: the word, a space, and symbols between spaces.")
    if repeated:
        logging.warning(
            "%s: %d lines, such as line %d, repeat a pronunciation of their word, which counts once",
            path,
            len(repeated),
            repeated[0],
        )
    return list(variants), list(variants.values())


def _split(line: str) -> tuple[str, str]:
    """Returns the word of a line and its symbols, with one space between two; '' for what is missing."""
    word, *rest = line.split("\t" if "\t" in line else None, maxsplit=1)
    return word.strip(), " ".join("".join(rest).split())
