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
