"""No file but framework/compat.py uses a private name, and each function of it has a test."""

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import tf_keras as keras

from framework import compat

ROOT = Path(__file__).resolve().parents[2]
OTHER_FILES = [path for path in sorted((ROOT / "framework").rglob("*.py")) if path.name != "compat.py"]
LIBRARIES = ("tensorflow", "tf_keras", "keras")
OF_PYTHON = {"_getframe", "_exit", "_replace", "_asdict", "_fields"}


def private_uses(source: str, classes: dict[str, type] | None = None) -> list[str]:
    """Returns 'line N: name' of each private name of a library that a file uses.

    Args:
      source: its text.
      classes: those that it defines, by name; what a library's class has is private to it in a subclass too.
    """
    tree = ast.parse(source)
    own = _defined(tree)
    uses = list(_imports(tree))
    inherited = {name: _of_libraries(kind) for name, kind in (classes or {}).items()}
    for scope, node in _attributes(tree):
        is_of_itself = (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")) or _is_super(node.value)
        if (is_of_itself and node.attr in inherited.get(scope, ())) or (
            not is_of_itself and node.attr not in own | OF_PYTHON
        ):
            uses.append(f"line {node.lineno}: {node.attr}")
    for scope, node in _methods(tree):
        if node.name in inherited.get(scope, ()):
            uses.append(f"line {node.lineno}: {node.name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in _names_of_keras() - own:
            uses.append(f"line {node.lineno}: '{node.value}'")
    return uses


def _is_private(name: str) -> bool:
    return re.fullmatch(r"_[a-zA-Z]\w*", name) is not None


def _is_super(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"


def _defined(tree: ast.Module) -> set[str]:
    """Private names that a file itself defines or sets on `self`."""
    names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    names |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    names |= {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self"
    }
    return set(filter(_is_private, names))


def _imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        yield from (
            f"line {node.lineno}: {name}" for name in names if re.match(r"tensorflow\.python|(tf_)?keras\.src", name)
        )


def _attributes(tree: ast.Module) -> Iterator[tuple[str, ast.Attribute]]:
    """(class, node) of each private attribute that is read or set; '' outside of classes."""
    yield from (
        (scope, node) for scope, node in _scoped(tree) if isinstance(node, ast.Attribute) and _is_private(node.attr)
    )


def _methods(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    yield from (
        (scope, node) for scope, node in _scoped(tree) if isinstance(node, ast.FunctionDef) and _is_private(node.name)
    )


def _scoped(node: ast.AST, scope: str = "") -> Iterator[tuple[str, ast.AST]]:
    for child in ast.iter_child_nodes(node):
        yield scope, child
        yield from _scoped(child, child.name if isinstance(child, ast.ClassDef) else scope)


def _of_libraries(kind: type) -> set[str]:
    """Private names that the library classes below a class define or set."""
    names: set[str] = set()
    for base in kind.__mro__:
        if base.__module__.partition(".")[0] in LIBRARIES:
            names |= {name for name in vars(base) if _is_private(name)}
            names |= set(re.findall(r"self\.(_[a-zA-Z]\w*) =", inspect.getsource(base)))
    return names


def _names_of_keras() -> set[str]:
    """Private names in the files of tf_keras that a string may name: for getattr, or a key of vars()."""
    if not _NAMES:
        folder = Path(keras.__file__).parent / "src"
        for file in (
            *folder.glob("engine/*.py"),
            *folder.glob("optimizers/*.py"),
            *folder.glob("layers/attention/*.py"),
        ):
            _NAMES.update(re.findall(r"(?:self\.|def )(_[a-zA-Z]\w*)", file.read_text()))
    return _NAMES


_NAMES: set[str] = set()


@pytest.mark.parametrize("path", OTHER_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_other_file_uses_a_private_name(path):
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    module = importlib.import_module(name)
    classes = {
        kind: value for kind, value in vars(module).items() if inspect.isclass(value) and value.__module__ == name
    }
    assert private_uses(path.read_text(), classes) == []


@pytest.mark.parametrize(
    ("source", "uses"),
    [
        ("from tensorflow.python.ops import x", ["line 1: tensorflow.python.ops"]),
        ("import tf_keras.src.backend", ["line 1: tf_keras.src.backend"]),
        ("model._flatten_layers()", ["line 1: _flatten_layers"]),
        ("getattr(layer, '_callable_losses')", ["line 1: '_callable_losses'"]),
        ("class A:\n    def __init__(self):\n        self._x = 1\n\ny = a._x\nz = t._replace(a=1)", []),
        ("class D(keras.layers.Dense):\n    def call(self):\n        self._own = self._name", ["line 3: _name"]),
        ("class D(keras.layers.Dense):\n    def _set_dtype_policy(self): ...", ["line 2: _set_dtype_policy"]),
    ],
)
def test_a_planted_use_is_found(source, uses):
    assert private_uses(source, {"D": keras.layers.Dense}) == uses


def test_each_function_of_compat_has_a_test():
    public = {name for name, value in vars(compat).items() if getattr(value, "__module__", "") == compat.__name__}
    tested = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    assert [name for name in sorted(public) if f"compat.{name}" not in tested] == []
