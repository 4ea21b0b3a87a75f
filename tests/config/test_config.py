"""The base config: each key has one rule and a legal default; flatten; the nearest name."""

import pytest
from ml_collections import ConfigDict

from framework import config
from framework.config import DURATIONS, base_config, durations, finalize, flatten
from framework.config.keys import KEYS
from tests.config.finalized import BASE

# --- every key has a rule ---------------------------------------------------------------------------------------------


def rules(key):
    """Names of the rules that bind a key by itself; types bind bools, texts and tuples enough."""
    has = {
        "choices": key.choices,
        "duration": key.duration,
        "regex": key.regex,
        "bounds": (key.low, key.high) != (None,) * 2,
    }
    return [name for name, is_there in has.items() if is_there]


def test_base_config_is_valid():
    assert flatten(finalize(base_config())) == BASE == {name: key.default for name, key in KEYS.items()}


@pytest.mark.parametrize("name", KEYS)
def test_a_line_is_whole(name):
    key = KEYS[name]
    is_number = type(key.default) in (int, float)
    assert rules(key) == ["bounds"] if is_number else len(rules(key)) <= 1 and "bounds" not in rules(key)
    assert key.duration or not key.required
    assert is_number or not rules(key) or type(key.default) is str
    section = name.rpartition(".")[0]
    for decider, legal in key.only_with.items():
        assert set(legal) < set(KEYS[f"{section}.{decider}"].choices)
    assert key.doc and not key.doc.endswith(".") and len(key.doc) <= 160


def test_defaults_are_legal_by_their_own_line():
    assert all(key.default in key.choices for key in KEYS.values() if key.choices)
    assert all(durations._DURATION.fullmatch(BASE[name]) or not BASE[name] for name in DURATIONS)


def test_sections_are_locked_but_for_the_free_ones():
    created = base_config()
    created.data.own = 1
    created.model.own = 2
    with pytest.raises(AttributeError, match="cannot be added since the config is locked"):
        created.train.own = 3
    with pytest.raises(AttributeError, match="cannot be added since the config is locked"):
        created.own = 4
    done = finalize(created)
    for section in ("data", "model", "train"):
        with pytest.raises(AttributeError, match="cannot be added since the config is locked"):
            done[section].another = 5
    assert (done.data.own, done.model.own) == (1, 2)


# --- flatten, near ----------------------------------------------------------------------------------------------------


def test_flatten():
    nested = ConfigDict({"b": {"y": (1, 2), "x": {"deep": ""}}, "a": 0, "empty": {}})
    assert flatten(nested) == {"b.y": (1, 2), "b.x.deep": "", "a": 0}
    assert list(flatten(nested)) == ["a", "b.x.deep", "b.y"]


@pytest.mark.parametrize(
    ("word", "words", "hint"),
    [
        ("grahp", ("xla", "graph"), " Did you mean 'graph'?"),
        ("GRAPH", ("xla", "graph"), " Did you mean 'graph'?"),
        ("graph", ("xla", "Graph"), " Did you mean 'Graph'?"),
        ("zzz", ("xla", "graph"), ""),
        ("", ("xla",), ""),
        ("xla", (), ""),
    ],
)
def test_near(word, words, hint):
    assert config.near(word, words) == hint
