"""data/text/segmentation.py: ids of a greedy search, also in a SavedModel that a process without this project loads."""

import json
import os
import subprocess
import sys
import unicodedata

import pytest
import tensorflow as tf

from framework.data import text
from framework.export import SavedModel
from framework.export.base import Signature
from tests.data.text import spelled
from tests.data.text.spelled import LOWER, SENTENCES, WORDS

ACCENTS = ["Tür é über ÄÖÜ", "Café-Tür (ÉÄ)"]
SERVED = """
import json, sys
import tensorflow as tf
assert "framework" not in sys.modules
loaded = tf.saved_model.load(sys.argv[1])
texts = json.load(open(sys.argv[2]))
ids = loaded.signatures["serving_default"](text=tf.constant(texts))["ids"]
decoded = loaded.signatures["decode"](ids=ids)["text"].numpy()
json.dump([ids.numpy().tolist(), [text.decode() for text in decoded]], open(sys.argv[3], "w"))
"""


class Model(tf.Module):
    def __init__(self, words):
        super().__init__()
        self.segments = words.segments("german")


def exported(words, folder):
    """Exports encoding and decoding as an experiment does."""
    encode = Signature(
        lambda model, inputs: {"ids": model.segments.encode(inputs["text"], end=True)},
        {"text": tf.TensorSpec([None], tf.string)},
    )
    decode = Signature(
        lambda model, inputs: {"text": model.segments.decode(inputs["ids"])},
        {"ids": tf.TensorSpec([None, None], tf.int32)},
    )
    SavedModel({"serving_default": encode, "decode": decode}).write(Model(words), folder)


def rows(words, texts, **ends):
    ids, lengths = words.encode(texts, **ends)
    return [row[:length].tolist() for row, length in zip(ids, lengths, strict=True)]


@pytest.mark.parametrize("words", [WORDS, LOWER], ids=["mixed", "lower"])
def test_ids_are_those_of_a_greedy_search_in_plain_python(words):
    texts = [*SENTENCES, *ACCENTS, *spelled.random_texts(10_000 if words.lower else 2000)]
    expected = [spelled.ids(text, words) for text in texts]
    assert sum(1 in row for row in expected) > 200 and sum(1 not in row for row in expected) > 200
    assert rows(words, texts) == expected


@pytest.mark.parametrize("words", [WORDS, LOWER], ids=["mixed", "lower"])
def test_decode_inverts_encode_up_to_the_form_that_is_documented(words):
    texts = [text for text in [*SENTENCES, *spelled.random_texts(3000, 1)] if 1 not in spelled.ids(text, words)]
    assert len(texts) > 300
    decoded = words.decode(words.encode(texts, begin=True, end=True)[0])
    assert decoded == [spelled.normalised(text, words.lower) for text in texts]
    assert words.decode(words.encode(["Zwei Türen (blau)"])[0]) == [
        "zwei türen (blau)" if words.lower else "Zwei Türen (blau)"
    ]


def test_a_saved_model_has_the_ids_of_training_in_a_process_without_this_project(tmp_path):
    exported(LOWER, tmp_path / "model")
    assert (tmp_path / "model/assets/german.txt").read_text().splitlines() == [*LOWER.pieces]
    decomposed = [unicodedata.normalize("NFD", accent) for accent in ACCENTS]
    texts = [*SENTENCES, *ACCENTS, *decomposed, "\x00two\x85", *spelled.random_texts(10_000, 2)]
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    command = [sys.executable, "-c", SERVED, "model", "texts.json", "out.json"]
    # In a Turkish locale, TensorFlow's own lower case of 'I' is another one.
    environment = {**os.environ, "LC_ALL": "tr_TR.UTF-8"}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    served, decoded = json.loads((tmp_path / "out.json").read_text())
    ids, _ = LOWER.encode(texts, end=True)
    assert served == ids.tolist()
    assert decoded == LOWER.decode(ids)


def test_decomposed_accents_have_ids_of_their_own_and_readers_compose_them(tmp_path):
    composed, decomposed = "Tür", unicodedata.normalize("NFD", "Tür")
    tuer = WORDS.pieces.index("▁Tür")
    assert rows(WORDS, [composed, decomposed]) == [[tuer], spelled.ids(decomposed, WORDS)]
    assert 1 in rows(WORDS, [decomposed])[0]  # the accent alone is not in the vocabulary
    (tmp_path / "lines.txt").write_text(decomposed)
    assert rows(WORDS, text.read_lines(tmp_path / "lines.txt")) == [[tuer]]


def test_rows_are_padded_to_a_length_and_have_ends():
    segments = WORDS.segments()
    two = WORDS.pieces.index("▁two")
    encoded = segments.encode(tf.constant(["two", "two two"]), length=5, begin=True, end=True)
    assert encoded.numpy().tolist() == [[2, two, 3, 0, 0], [2, two, two, 3, 0]] and encoded.dtype == tf.int32
    assert segments.encode(tf.constant(["", "two"])).numpy().tolist() == [[0], [two]]
    assert segments.encode(tf.constant([], tf.string)).shape == [0, 0]
    with pytest.raises(tf.errors.InvalidArgumentError, match="a text has more than length=2 tokens"):
        tf.function(segments.encode)(tf.constant(["two two two"]), length=2)


def test_a_text_ends_at_its_first_end_and_unknown_ids_are_shown():
    two = WORDS.pieces.index("▁two")
    ids = [
        [2, two, 0, two, 3, two],
        [two, 1, two, 0, 0, 0],
        [two, -5, len(WORDS), 3, 1, 1],
        [3, two, two, two, two, two],
    ]
    decoded = WORDS.segments().decode(tf.constant(ids)).numpy()
    assert [text.decode() for text in decoded] == ["two two", "two\ufffd two", "two\ufffd\ufffd", ""]


def test_bytes_that_are_not_utf_8_are_replaced():
    segments = WORDS.segments()
    assert segments.encode(tf.constant([b"two\xff"])).numpy().tolist() == rows(WORDS, ["two\ufffd"])


def test_a_long_unit_of_unknown_characters_ends():
    assert rows(WORDS, ["\u4e00" * 99 + "dog"]) == [[WORDS.pieces.index("▁"), *[1] * 99, WORDS.pieces.index("dog")]]


@pytest.mark.parametrize("separator", ["", " "])
def test_symbols_are_characters_or_stand_between_spaces(separator):
    line, pieces = ("HH AH0  HH", ["AH0", "HH"]) if separator else ("dädä", ["d", "ä"])
    symbols = text.make_symbols([line], separator)
    assert symbols.pieces == (*spelled.SPECIAL, *sorted(pieces))
    split = line.split() if separator else [*line]
    assert rows(symbols, [line], end=True) == [[*map(symbols.pieces.index, split), text.END]]
    assert rows(symbols, [f"{line} <s>"])[0][-1] == text.UNKNOWN  # a special token in a text is none
    assert symbols.decode(symbols.encode([line], begin=True, end=True)[0]) == [separator.join(split)]
