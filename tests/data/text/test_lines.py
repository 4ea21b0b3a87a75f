"""data/text/lines.py: lines of files, aligned; what is not UTF-8, not aligned or empty is refused."""

import gzip

import pytest

from framework.data import text
from framework.errors import UserError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "x.en").write_bytes("one\r\ntwo \u2028 lines\n\nCafe\u0301\n".encode())
    (tmp_path / "x.de.gz").write_bytes(gzip.compress("eins\nzwei\ndrei\nKaffee".encode("utf-8-sig")))
    return tmp_path


def test_aligned_files_are_read_line_by_line(folder):
    paths = {"en": folder / "x.en", "de": folder / "x.de"}
    assert text.read_aligned(paths, "keep") == {
        "en": ["one", "two \u2028 lines", "", "Café"],
        "de": ["eins", "zwei", "drei", "Kaffee"],
    }
    assert text.read_aligned(paths, "drop") == {
        "en": ["one", "two \u2028 lines", "Café"],
        "de": ["eins", "zwei", "Kaffee"],
    }
    assert text.read_lines(folder / "x.de.gz") == ["eins", "zwei", "drei", "Kaffee"]
    (folder / "joined").write_bytes("one\n".encode("utf-8-sig") * 2)  # by `cat` of two files, each with a mark
    assert text.read_lines(folder / "joined") == ["one", "one"]
    (folder / "none").write_bytes(b"")
    assert text.read_lines(folder / "none", "keep") == text.read_lines(folder / "none", "drop") == []


@pytest.mark.parametrize(
    ("content", "empty", "message"),
    [
        (b"one\ntwo \xff\n", "refuse", "x: line 2 is not UTF-8, by its byte 0xff. Convert the file"),
        (b"one\n \t\nthree\n", "refuse", "x: line 2 is empty. Fill it, or read with empty='drop' or empty='keep'."),
        (b"one\n", "skip", "empty='skip' is not one of refuse, keep, drop."),
        (
            "one\ntwo".encode("utf-16"),
            "refuse",
            "x: line 1 is not UTF-8, by its byte 0xff. Convert the file: iconv -f UTF-16",
        ),
        (
            "one\n".encode("utf-16-le"),
            "refuse",
            "x: line 1 is not UTF-8, by its byte 0x00. Convert the file: iconv -f UTF-16",
        ),
        (b"one\ntwo \xe9\n", "refuse", "0xe9. Convert the file: iconv -f LATIN1 -t UTF-8."),
        (b"one\rtwo\r", "refuse", "x has carriage returns and no line feed. Convert the file: tr '\\r' '\\n'."),
        (b"\xef\xbb\xbf\n", "refuse", "x: line 1 is empty."),
        (b"", "refuse", "x: there is no line. Give a file with a text a line."),
        (b"\xef\xbb\xbf", "refuse", "x: there is no line. Give a file with a text a line."),
        (b"\x1f\x8bno", "refuse", "x cannot be read: "),
    ],
)
def test_what_is_wrong_with_a_file_is_refused_in_one_line(tmp_path, content, empty, message):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(UserError) as caught:
        text.read_lines(tmp_path / "x", empty)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_files_of_unequal_length_are_refused(folder):
    (folder / "x.fr").write_bytes(b"un\ndeux\n")
    with pytest.raises(UserError) as caught:
        text.read_aligned({"de": folder / "x.de", "fr": folder / "x.fr"})
    told = f"{folder}/x.de.gz has 4 lines, {folder}/x.fr has 2 lines: aligned files have as many."
    assert str(caught.value) == told


def test_no_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="none cannot be read: No such file or directory"):
        text.read_lines(tmp_path / "none")
    with pytest.raises(UserError, match=r"^\. cannot be read: Is a directory"):
        text.read_lines(".")


@pytest.mark.parametrize("paths", ["corpus.de", ["corpus.de", "corpus.en"]])
def test_files_without_names_are_refused(paths):
    with pytest.raises(UserError, match=r"read_aligned\(.*corpus.de.*\): give \{name: file\}, or read one file with"):
        text.read_aligned(paths)
