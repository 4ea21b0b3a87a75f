"""No file uses Keras 3, pickle or eval, or is named after helpers."""

import ast
import re
from pathlib import Path

import pytest

from tests.imported import ROOT, imported, shown

ALL_FILES = sorted(
    [
        *(ROOT / "framework").rglob("*.py"),
        *(ROOT / "experiments").rglob("*.py"),
        *(ROOT / "tests").rglob("*.py"),
        *ROOT.glob("*.py"),
    ]
)
FORBIDDEN_MODULES = {"keras", "pickle", "cloudpickle", "dill", "tensorflow.keras"}


def forbidden(source: str) -> list[str]:
    """Uses of Keras 3, of pickle and of eval."""
    tree = ast.parse(source)
    found = []
    for line, name in imported(tree, ""):
        prefixes = {".".join(name.split(".")[:length]) for length in (1, 2)}
        found += [f"line {line}: import of {module}" for module in sorted(prefixes & FORBIDDEN_MODULES)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == "keras" and _is_name(node.value, "tf", "tensorflow"):
            found.append(f"line {node.lineno}: use of tf.keras")
        if isinstance(node, ast.Call) and _is_name(node.func, "eval"):
            found.append(f"line {node.lineno}: call of eval")
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and not _is_false(node.value):
            found.append(f"line {node.value.lineno}: allow_pickle")
    return found


def _is_name(node: ast.expr, *names: str) -> bool:
    return isinstance(node, ast.Name) and node.id in names


def _is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


@pytest.mark.parametrize("path", ALL_FILES, ids=shown)
def test_forbidden_names(path: Path) -> None:
    found = forbidden(path.read_text())
    if path.name.startswith("keras3"):  # the peer of the comparison that is Keras 3
        found = [problem for problem in found if not problem.endswith("import of keras")]
    assert found == []
    assert not re.fullmatch(r"_?(utils?|helpers?)\.py", path.name)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("x = tf.keras.layers", "line 1: use of tf.keras"),
        ("from tensorflow import keras", "line 1: import of tensorflow.keras"),
        ("import tensorflow.keras.layers", "line 1: import of tensorflow.keras"),
        ("\nimport keras", "line 2: import of keras"),
        ("def f():\n    import pickle", "line 2: import of pickle"),
        ("from pickle import loads", "line 1: import of pickle"),
        ("eval('1')", "line 1: call of eval"),
        ("np.load(path, allow_pickle=True)", "line 1: allow_pickle"),
    ],
)
def test_the_check_finds_forbidden_names(source: str, found: str) -> None:
    assert forbidden(source) == [found]


def test_the_check_lets_lawful_names_pass() -> None:
    source = (
        "import tf_keras as keras\nx = keras.layers\nmodel.eval()\nnp.load(path, allow_pickle=False)\ns = 'tf.keras'"
    )
    assert forbidden(source) == []
