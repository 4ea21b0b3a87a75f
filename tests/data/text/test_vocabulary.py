"""data/text/vocabulary.py: saved and loaded without loss; what is damaged or unknown is refused in one line."""

import json
import sys

import numpy as np
import pytest

from framework import data
from framework.data import text
from framework.errors import UserError
from tests.data.text.spelled import LOWER, SENTENCES, WORDS

PHONEMES = text.Symbols(("<pad>", "<unk>", "<s>", "</s>", "<en>", "AE1", "AH0", "HH", "K"), 5, " ")


@pytest.mark.parametrize("vocabulary", [WORDS, LOWER, PHONEMES], ids=["words", "lower", "phonemes"])
def test_a_vocabulary_is_saved_and_loaded(tmp_path, vocabulary):
    vocabulary.save(tmp_path / "vocabulary.json")
    loaded = text.load(tmp_path / "vocabulary.json")
    assert loaded == vocabulary and type(loaded) is type(vocabulary) and loaded.sha256 == vocabulary.sha256
    assert (tmp_path / "vocabulary.json").read_text() == vocabulary.to_json()
    assert np.array_equal(loaded.encode(SENTENCES)[0], vocabulary.encode(SENTENCES)[0])


def test_everything_that_decides_ids_is_in_the_hash():
    swapped = text.WordPieces((*WORDS.pieces[:-2], *WORDS.pieces[:-3:-1]))
    assert len({WORDS.sha256, LOWER.sha256, swapped.sha256, text.WordPieces(WORDS.pieces, 5).sha256}) == 4


def flipped(content):
    return content.replace('"two"', '"twp"')


def without_hash(content):
    values = json.loads(content)
    return json.dumps({name: value for name, value in values.items() if name != "sha256"})


@pytest.mark.parametrize("damage", [flipped, without_hash, lambda content: content[:50], lambda content: "[]"])
def test_a_damaged_file_is_refused(tmp_path, damage):
    path = tmp_path / "vocabulary.json"
    path.write_text(damage(WORDS.to_json()))
    with pytest.raises(UserError, match=f"^{path} is .*damaged.* Save it again.$"):
        text.load(path)


def test_no_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"cannot be read: .*Name a file that save wrote"):
        text.load(tmp_path / "none.json")


def test_special_tokens_are_known_by_name():
    assert text.make_symbols(["HH AH0", "K AE1 <s>"], " ", special_tokens=("<en>",)) == PHONEMES
    assert [PHONEMES.special_id(token) for token in ("<pad>", "<unk>", "<s>", "</s>", "<en>")] == [0, 1, 2, 3, 4]
    assert (text.PADDING, text.UNKNOWN, text.BEGIN, text.END) == (0, 1, 2, 3)
    with pytest.raises(UserError, match=r"^'<de>' is no special token of the vocabulary, which has .*, <en>.* '<en>'"):
        PHONEMES.special_id("<de>")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: text.WordPieces(("a", "b")),
            "begins with the special tokens <pad>, <unk>, <s>, </s>; this one has a, b",
        ),
        (lambda: text.WordPieces((*WORDS.pieces, "two")), "the piece 'two' is twice"),
        (lambda: text.WordPieces((*WORDS.pieces, "a\nb")), r"the piece 'a\\nb' of a vocabulary is empty or has a line"),
        (lambda: text.Symbols(WORDS.pieces, 4, ","), "separator=',' of symbols is neither"),
        (lambda: WORDS.encode(["a\ud800"]), "is not Unicode: surrogates not allowed"),
        (lambda: WORDS.encode("two dogs"), r"^'two dogs' is one text, and a list of texts is wanted: \[text\]."),
        (lambda: text.make_symbols("two"), "^'two' is one text"),
        (lambda: text.train_word_pieces("two", 100), "^'two' is one text"),
        (lambda: text.make_symbols(["a"], special_tokens="<en>"), r"one text. Write special_tokens=\('<en>',\)."),
        (lambda: text.make_symbols(["a <en>"], " ", ("<en>",)), "^'<en>' is a special token and a symbol of the texts"),
        (lambda: WORDS.encode(["a", None]), "^text 1 of 2 is None, a NoneType and no str. Leave it out, or take ''."),
        (lambda: WORDS.encode([b"a"]), r"^text 0 of 1 is b'a', a bytes and no str. Decode it: text.decode\(\)."),
        (lambda: text.make_symbols(["a", float("nan")]), "^text 1 of 2 is nan, a float and no str."),
        (
            lambda: text.encoded({"a": ["x", "y"], "b": ["x"]}, WORDS, "x"),
            "^'x' has texts in different numbers: 2 of 'a', 1 of 'b'. Give as many of each.",
        ),
        (
            lambda: WORDS.decode(np.array([[0, 999]])),
            f"ids are 0 to 999, but those of the vocabulary 0 to {len(WORDS) - 1}",
        ),
        (lambda: WORDS.decode(np.array([1, 2])), r"takes integers \[texts, length\], not int64 \[2\]"),
        (lambda: text.encoded({"a": ["x"]}, {"b": WORDS}, "x"), "texts are of the fields a, and vocabularies of b"),
    ],
)
def test_what_is_wrong_is_refused_in_one_line(make, message):
    with pytest.raises(UserError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_without_the_package_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"tokenizers is not installed.* pip install .*tokenizers=="):
        text.train_word_pieces(["a"], 100)


def test_no_text_has_no_ids():
    ids, lengths = WORDS.encode([])
    assert ids.shape == (0, 0) and lengths.shape == (0,) and WORDS.decode(ids) == []


def test_texts_that_the_vocabulary_was_not_made_for_are_a_warning(caplog):
    text.encoded({"a": ["two dogs", "two"]}, WORDS, origin="made up")
    assert not caplog.text
    text.encoded({"a": ["two Ж"]}, WORDS, origin="made up")  # ▁two, ▁, unknown, end
    assert "25 % of the tokens of 'a' in 'made up' are unknown: is it the vocabulary of other texts?" in caplog.text
    WORDS.encode(["two", "e\u0301"])
    assert "1 of 2 texts, such as 'e\u0301', are not in the form NFC" in caplog.text


def test_encoded_texts_are_a_source_whose_fingerprint_has_the_vocabulary():
    texts = {"source": ["two dogs.", "two"], "target": ["the dog", ""]}
    source = text.encoded(texts, WORDS, origin="made up")
    assert isinstance(source, data.Source) and len(source) == 2
    taken = source.take(np.array([1]))
    two = WORDS.pieces.index("▁two")
    assert taken["source"].tolist() == [[two, 3, *[0] * (taken["source"].shape[1] - 2)]]
    assert (taken["source_length"], taken["target_length"]) == ([2], [1]) and taken["target"][0, 0] == text.END
    longer = text.WordPieces((*WORDS.pieces, "never"))
    other = text.encoded(texts, {"source": WORDS, "target": longer}, origin="made up")
    assert all(np.array_equal(other.arrays[name], array) for name, array in source.arrays.items())
    assert other.fingerprint() != source.fingerprint() == text.encoded(texts, WORDS, origin="made up").fingerprint()
