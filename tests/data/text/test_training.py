"""data/text/training.py: the same texts give the same bytes, all characters are known, too small a size is refused."""

import hashlib
import os
import subprocess
import sys
import unicodedata

import numpy as np
import pytest

from framework import data
from framework.data import text
from framework.errors import UserError
from tests.data.text import spelled

NOUNS = ["dog", "house", "river", "Tür", "Straße", "café"]
TEXTS = [f"The {a} sees {b}, and {a}s see the {b}-{a} ({n})." for n, a in enumerate(NOUNS) for b in NOUNS]
SIZE = 75

TRAIN = "from tests.data.text.test_training import SIZE, TEXTS; from framework.data import text;"
TRAIN += "print(text.train_word_pieces(TEXTS, SIZE, lower=True).sha256)"


@pytest.fixture(autouse=True)
def tokenizers():
    return pytest.importorskip("tokenizers", reason="needs the extra 'text'")


def test_the_same_texts_give_the_same_bytes():
    words = text.train_word_pieces(TEXTS, SIZE)
    assert words.to_json() == text.train_word_pieces(TEXTS, SIZE).to_json()
    # As another process on another day trained it.
    assert hashlib.sha256(" ".join(words.pieces).encode()).hexdigest()[:16] == "9d5fce3a82f44711"
    assert len(words) == SIZE and words.pieces[:4] == spelled.SPECIAL and "▁the" in words.pieces


@pytest.mark.slow
def test_two_processes_train_the_same_vocabulary():
    outputs = set()
    for seed, parallel in (("1", "true"), ("2", "false")):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "TOKENIZERS_PARALLELISM": parallel}
        done = subprocess.run([sys.executable, "-c", TRAIN], env=environment, check=True, capture_output=True)
        outputs.add(done.stdout.decode().strip())
    assert outputs == {text.train_word_pieces(TEXTS, SIZE, lower=True).sha256}


def test_every_character_is_known_and_text_comes_back():
    words = text.train_word_pieces(TEXTS, SIZE)
    ids, _ = words.encode(TEXTS)
    assert not (ids == text.UNKNOWN).any() and words.decode(ids) == TEXTS
    assert [row[row > 0].tolist() for row in ids] == [spelled.ids(line, words) for line in TEXTS]


def test_texts_are_brought_to_nfc_and_to_lower_case():
    decomposed = [unicodedata.normalize("NFD", line) for line in TEXTS]
    assert text.train_word_pieces(decomposed, SIZE) == text.train_word_pieces(TEXTS, SIZE)
    lower = text.train_word_pieces(TEXTS, SIZE, lower=True)
    assert lower.lower and not any(piece != piece.lower() for piece in lower.pieces)


def test_special_tokens_of_the_user_come_after_those_of_each_vocabulary():
    words = text.train_word_pieces(TEXTS, SIZE, special_tokens=("<to_de>",))
    assert words.special_id("<to_de>") == 4 and len(words) == SIZE
    assert 4 not in words.encode(["<to_de> dog"])[0]


def test_texts_may_come_from_a_generator():
    assert text.train_word_pieces((line for line in TEXTS), SIZE) == text.train_word_pieces(TEXTS, np.int64(SIZE))


@pytest.mark.parametrize("size", [float(SIZE), str(SIZE), True])
def test_a_size_that_is_no_whole_number_is_refused(size):
    with pytest.raises(UserError, match=rf"train_word_pieces\(size={size!r}\): size must be a whole number"):
        text.train_word_pieces(TEXTS, size)


def test_a_size_below_the_characters_is_refused():
    characters = {"▁"}.union(*TEXTS) - {" "}
    least = len(characters) + 4
    message = (
        f"^size={least - 1} is too small: the texts have {len(characters)} characters, and there are 4 .*{least} at"
    )
    with pytest.raises(UserError, match=message):
        text.train_word_pieces(TEXTS, least - 1)
    assert {*text.train_word_pieces(TEXTS, least).pieces[4:]} == characters


def test_fewer_pieces_than_asked_for_is_a_warning(caplog):
    words = text.train_word_pieces(["a b"], 100)
    assert f"the vocabulary has {len(words)} pieces, not 100: the texts have no more" in caplog.text


@pytest.mark.parametrize("texts", [[], ["", " \t"]])
def test_no_characters_are_refused(texts):
    with pytest.raises(UserError, match=f"none of the {len(texts)} texts has a character"):
        text.train_word_pieces(texts, 100)


@pytest.mark.slow
@pytest.mark.parametrize("lower", [False, True], ids=["mixed", "lower"])
def test_every_sentence_of_multi30k_has_the_ids_of_a_greedy_search_and_comes_back(lower):
    folder = os.path.join(os.environ.get("DATA_DIR", ""), "multi30k")
    if not os.path.isdir(folder):
        pytest.skip("needs $DATA_DIR/multi30k")
    lines = data.text.read_aligned({language: f"{folder}/train.{language}" for language in ("en", "de", "fr")})
    texts = [line for of in lines.values() for line in of]
    words = text.train_word_pieces(texts, 10_000, lower=lower)
    ids, lengths = words.encode(texts)
    assert [row[:length].tolist() for row, length in zip(ids, lengths, strict=True)] == [
        spelled.ids(line, words) for line in texts
    ]
    assert words.decode(ids) == [spelled.normalised(line, lower) for line in texts]
