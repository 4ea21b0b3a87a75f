"""The layout: a room is one folder and one stretch of the import order, files are short, the root holds few of them."""

import ast
from itertools import groupby

import pytest

from tests.test_imports import FRAMEWORK_FILES, ROOT, ROWS

LONGEST = 400  # lines
REASON = f"Over {LONGEST} lines: "  # starts a line of the docstring of a longer file

# Each file at the root of framework/: what an experiment imports, and the ground floor, which many rooms import.
AT_THE_ROOT = {
    "__init__": "the public functions: build, train, evaluate, export_run, replay_step",
    "precision": "an experiment imports it",
    "rng": "an experiment imports it",
    "state": "an experiment's make_step gets it",
    "compat": "ground floor: private names of TensorFlow and tf_keras",
    "compile": "ground floor: jit and Compiled",
    "errors": "ground floor: UserError, RunError",
    "extras": "ground floor: optional packages",
    "files": "ground floor: small files written, read and locked",
    "folder": "ground floor: names in a run folder",
    "layer_names": "ground floor: whose name a layer has",
    "manifest": "ground floor: hashes of exported versions",
    "moved": "ground floor: former names, for experiments of older runs",
    "paths": "ground floor: names of variables",
}


def lengths(files: dict[str, str]) -> list[str]:
    """Returns the files that are too long and do not say why at their top."""
    long = {name: source for name, source in files.items() if len(source.splitlines()) > LONGEST}
    return [name for name, source in long.items() if not _has_reason(source)]


def _has_reason(source: str) -> bool:
    lines = (ast.get_docstring(ast.parse(source)) or "").splitlines()
    return any(line.startswith(REASON) and len(line) > len(REASON) for line in lines)


def rooms(rows: tuple[tuple[str, ...], ...]) -> list[str]:
    """Returns the rooms of the import order, one for each stretch of rows; files at the root are rooms of their own."""
    return [room for room, _ in groupby(name.partition(".")[0].removesuffix("/*") for row in rows for name in row)]


def with_autograph(source: str) -> list[int]:
    """Returns the lines that name `tf.function` and do not switch AutoGraph off.

    AutoGraph reads the file of a function when it is traced: a file edited after the start of a run would compute the
    edited code from then on, at the first evaluation or export.
    """
    tree = ast.parse(source)
    off = {
        call.func
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and any(ast.unparse(keyword) == "autograph=False" for keyword in call.keywords)
    }
    named = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and ast.unparse(node) == "tf.function")
    return sorted(node.lineno for node in named if node not in off)


def test_no_function_is_traced_by_autograph() -> None:
    folders = (ROOT / name for name in ("experiments", "tests/examples", "tests/research"))
    files = [*FRAMEWORK_FILES, *(path for folder in folders for path in folder.rglob("*.py"))]
    found = {str(path.relative_to(ROOT)): with_autograph(path.read_text()) for path in files}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_a_function_that_is_traced_by_autograph_is_found() -> None:
    planted = "f = tf.function(g, autograph=False)\nf = tf.function(g)\n\n\n@tf.function\ndef h():\n    pass\n"
    assert with_autograph(planted) == [2, 5]


def test_a_file_over_400_lines_says_why_at_its_top() -> None:
    assert lengths({str(path.relative_to(ROOT)): path.read_text() for path in FRAMEWORK_FILES}) == []


@pytest.mark.parametrize(
    ("source", "is_fine"),
    [
        ("x = 1\n" * 400, True),
        ("x = 1\n" * 401, False),
        ('"""A file.\n\nOver 400 lines: one table.\n"""\n' + "x = 1\n" * 400, True),
        ('"""A file.\n\nOver 400 lines: \n"""\n' + "x = 1\n" * 400, False),
    ],
)
def test_a_planted_long_file_is_found(source: str, is_fine: bool) -> None:
    assert lengths({"x.py": source}) == ([] if is_fine else ["x.py"])


def test_the_root_holds_what_an_experiment_imports_and_the_ground_floor() -> None:
    assert {path.stem for path in (ROOT / "framework").glob("*.py")} == set(AT_THE_ROOT)


def test_each_folder_is_a_room_with_a_docstring() -> None:
    folders = {path.parent for path in FRAMEWORK_FILES} - {ROOT / "framework"}
    assert [
        folder for folder in folders if not ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
    ] == []


def test_the_rows_of_a_room_stand_together() -> None:
    order = rooms(ROWS)
    assert [room for room in order if order.count(room) > 1] == []
    names = [name for row in ROWS for name in row]
    assert [name for name in names if names.count(name) > 1] == []
    assert rooms((("a.x",), ("b.y", "a.z"), ("b",))) == ["a", "b", "a", "b"]


def test_every_row_names_a_file() -> None:
    modules = {".".join(path.relative_to(ROOT / "framework").with_suffix("").parts) for path in FRAMEWORK_FILES}
    modules = {name.removesuffix("__init__").rstrip(".") for name in modules}
    named = {name for row in ROWS for name in row if not name.endswith("/*")}
    assert sorted(named - modules) == []
