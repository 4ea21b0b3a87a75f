"""Text files: one text a line, aligned by line with files in other languages.

    lines = read_lines("corpus.txt")                                           # also corpus.txt.gz
    pairs = read_aligned({"de": "multi30k/train.de", "en": "multi30k/train.en"})      # {"de": […], "en": […]}

Lines end with a line feed, and with no other character that Unicode calls a line break. Texts are returned in Unicode's
form NFC, with spaces at their ends cut off, and byte order marks at their starts.
"""

import codecs
import gzip
import os
import unicodedata
import zlib
from collections.abc import Mapping
from pathlib import Path

from framework.errors import UserError

_EMPTY = ("refuse", "keep", "drop")
_MARK = "\ufeff"  # of the byte order; `cat` leaves that of each file but the first inside of a text
_MARKS_OF_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_lines(path: str | os.PathLike[str], empty: str = "refuse") -> list[str]:
    """Returns the lines of a text file.

    Args:
      path: the file; if there is none, '<path>.gz'. A gzip file is unpacked.
      empty: 'refuse', 'keep' or 'drop' lines without a character; 'refuse' a file without a line, too.

    Raises:
      UserError: the file cannot be read, a line is not UTF-8 or is empty, or there is no line.
    """
    return read_aligned({"": path}, empty)[""]


def read_aligned(paths: Mapping[str, str | os.PathLike[str]], empty: str = "refuse") -> dict[str, list[str]]:
    """Returns the lines of several files, of which line n of each says the same: {name: lines}.

    Args:
      paths: {name: file}, as for `read_lines`.
      empty: 'refuse' or 'keep' empty lines, or 'drop' such a line with those that are aligned with it.

    Raises:
      UserError: a file cannot be read, a line is not UTF-8 or is empty, there is no line, or the files have different
        numbers of lines.
    """
    if empty not in _EMPTY:
        raise UserError(f"empty='{empty}' is not one of {', '.join(_EMPTY)}.")
    if not isinstance(paths, Mapping):
        raise UserError(f"read_aligned({paths!r}): give {{name: file}}, or read one file with read_lines.")
    files = {name: _existing(Path(path)) for name, path in paths.items()}
    lines = {name: [line.strip() for line in whole_lines(path)] for name, path in files.items()}
    counts = {str(files[name]): len(of) for name, of in lines.items()}
    if len(set(counts.values())) > 1:
        raise UserError(
            f"{', '.join(f'{path} has {count} lines' for path, count in counts.items())}: aligned files have as many."
        )
    if empty == "keep":
        return lines
    if empty == "refuse" and not all(counts.values()):
        raise UserError(f"{', '.join(counts)}: there is no line. Give a file with a text a line.")
    rows = [row for row in zip(*lines.values(), strict=True) if all(row)]
    if empty == "refuse" and len(rows) < min(counts.values(), default=0):
        name, number = next((name, of.index("") + 1) for name, of in lines.items() if "" in of)
        raise UserError(f"{files[name]}: line {number} is empty. Fill it, or read with empty='drop' or empty='keep'.")
    return {name: [row[column] for row in rows] for column, name in enumerate(lines)}


def _existing(path: Path) -> Path:
    packed = Path(f"{path}.gz")
    return packed if not path.exists() and packed.exists() else path


def whole_lines(path: Path) -> list[str]:
    """Returns the lines of a file or '<path>.gz' in form NFC, with the spaces at their ends.

    Raises:
      UserError: the file cannot be read or is not UTF-8.
    """
    path = _existing(path)
    try:
        raw = path.read_bytes()
        if raw.startswith(b"\x1f\x8b"):
            raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _other_encoding(path, raw, error.start) from error
    if "\0" in text:
        raise _other_encoding(path, raw, raw.index(b"\0"))
    if "\n" not in text and "\r" in text:
        raise UserError(f"{path} has carriage returns and no line feed. Convert the file: tr '\\r' '\\n'.")
    lines = unicodedata.normalize("NFC", text).split("\n")
    return [line.lstrip(_MARK) for line in (lines if lines[-1] else lines[:-1])]


def _other_encoding(path: Path, raw: bytes, place: int) -> UserError:
    """Returns the error of a file whose byte at a place is none of a text in UTF-8."""
    encoding = "UTF-16" if b"\0" in raw or raw.startswith(_MARKS_OF_UTF16) else "LATIN1"
    number = raw.count(b"\n", 0, place) + 1
    return UserError(
        f"{path}: line {number} is not UTF-8, by its byte 0x{raw[place]:02x}. Convert the"
        f" file: iconv -f {encoding} -t UTF-8."
    )
