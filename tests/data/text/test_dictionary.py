"""data/text/dictionary.py: words with their pronunciations, and lines that are refused."""

import pytest

from framework.data import text
from framework.errors import UserError

LINES = """\
# a head

a  AH0
'bout B AW1 T # a comment
a(2)  EY1
(a\tIH1
#tag T AE1 G
New York\tN UW1  Y AO1 R K
a AH0
Cafe\u0301 k a f e \u02d0 #
"""
WORDS = ["a", "'bout", "(a", "#tag", "New York", "Café"]
PRONUNCIATIONS = [["AH0", "EY1"], ["B AW1 T"], ["IH1"], ["T AE1 G"], ["N UW1 Y AO1 R K"], ["k a f e \u02d0"]]


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_words_stand_with_all_their_pronunciations(tmp_path, caplog, ends, encoding):
    (tmp_path / "x.dict").write_bytes(LINES.replace("\n", ends).encode(encoding))
    assert text.read_dictionary(tmp_path / "x.dict") == (WORDS, PRONUNCIATIONS)
    assert "x.dict: 1 lines, such as line 9, repeat a pronunciation of their word" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "x.dict has no word. Write a line for each: the word, a space, and symbols between spaces."),
        (b"# nothing\n\n", "x.dict has no word."),
        (b"a AH0\nb\n", "x.dict: line 2 has the word 'b' and no symbol. Write a word, a space or tab, and"),
        (b"a # AH0\n", "x.dict: line 1 has the word 'a' and no symbol."),
        (b"New York\t\n", "x.dict: line 1 has the word 'New York' and no symbol."),
        (b"a AH0\nb <s> B </s>\n", "x.dict: line 2 has the symbol '</s>', which is a token of every vocabulary"),
        (b"\tAH0 B\n", "x.dict: line 1 has symbols and no word."),
        (
            "a AH0\n".encode("utf-16"),
            "x.dict: line 1 is not UTF-8, by its byte 0xff. Convert the file: iconv -f UTF-",
        ),
    ],
)
def test_what_is_no_dictionary_is_refused_in_one_line(tmp_path, content, message):
    (tmp_path / "x.dict").write_bytes(content)
    with pytest.raises(UserError) as caught:
        text.read_dictionary(tmp_path / "x.dict")
    assert message in str(caught.value) and "\n" not in str(caught.value)
