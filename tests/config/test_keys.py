"""framework/config/keys: each fact of a key stands in its line, and in no other file of the framework."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from framework.config.former import FORMER
from framework.config.keys import KEYS, SECTIONS

ROOT = Path(__file__).resolve().parents[2]
OTHERS = [file for file in sorted((ROOT / "framework").rglob("*.py")) if file.parent.name != "keys"]


def repeated(source):
    """(line, key) of each tuple, list or set that lists the choices of a key again, all of them or all but one.

    A dictionary by choice is no repetition: it says what each of them does.
    """
    choices = {name: set(key.choices) for name, key in KEYS.items() if key.choices}
    listed = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Tuple | ast.List | ast.Set):
            words = {entry.value for entry in node.elts if isinstance(entry, ast.Constant)}
            listed += [
                (node.lineno, name)
                for name, legal in choices.items()
                if words <= legal and len(words) >= max(2, len(legal) - (len(legal) > 3))
            ]
    return listed


@pytest.mark.parametrize("file", OTHERS, ids=lambda file: str(file.relative_to(ROOT)))
def test_legal_values_are_listed_once(file):
    assert repeated(file.read_text()) == []


@pytest.mark.parametrize(
    ("source", "listed"),
    [
        ("\nMODES = ('graph', 'xla', 'xla_gradients', 'xla_update', 'eager')", [(2, "train.compile")]),
        ("x in {'wrap', 'pad', 'drop'}", [(1, "data.remainder")]),
        ("x in ['graph', 'xla']", []),
        ("{'wrap': 1, 'pad': 2, 'drop': 3}[x]", []),
    ],
)
def test_a_planted_list_is_seen(source, listed):
    assert repeated(source) == listed


def test_keys_are_read_without_tensorflow_and_without_their_owners():
    script = "import sys, framework.config.keys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {"tensorflow", "tf_keras", "numpy"}
    rooms = {name.split(".")[1] for name in loaded if name.startswith("framework.")}
    assert rooms == {"config", "errors", "moved"}


def named(source):
    """(line, key) of each key that a text tells the user to type, or that is a whole text; none of `model`."""
    typed = re.compile(r"--config\.([a-z_]+(?:\.[a-z_0-9]+)*)(?=[= '\",.)]|$)")
    alone = re.compile(rf"({'|'.join(filter(None, {*SECTIONS} - {'model'}))})\.[a-z_0-9]+")
    keys = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            keys += [(node.lineno, match[1].rstrip(".")) for match in typed.finditer(node.value)]
            keys += [(node.lineno, node.value)] if alone.fullmatch(node.value) else []
    return keys


@pytest.mark.parametrize("file", OTHERS, ids=lambda file: str(file.relative_to(ROOT)))
def test_keys_that_the_framework_names_exist(file):
    """A key that is renamed is renamed in every message and table."""
    known = {*KEYS, *SECTIONS, *FORMER}
    assert [(line, key) for line, key in named(file.read_text()) if key not in known] == []


@pytest.mark.parametrize(
    ("source", "keys"),
    [
        ("f'Use --config.train.compil={x}.'", [(1, "train.compil")]),
        ("'Type --config.seed=1 or --config.data.batch_size=2.'", [(1, "seed"), (1, "data.batch_size")]),
        ("ORDER = ('early_stopping.mode', 'x.py')", [(1, "early_stopping.mode")]),
    ],
)
def test_a_planted_name_is_seen(source, keys):
    assert named(source) == keys
