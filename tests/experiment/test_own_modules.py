"""framework/experiment/own_modules.py: what an experiment imports from beside it is found last, and is its own."""

import sys
from pathlib import Path

import pytest

from framework.config import UserError
from framework.experiment import load as experiment
from framework.experiment import user_code
from framework.run import code_copies

SOURCE = """
from ml_collections import ConfigDict
{imports}


def get_config(arg): return ConfigDict({"value": {value}})
def make_data(cfg, split): ...
def make_model(cfg): ...
def make_loss(cfg): ...
def make_schedule(cfg, total_steps): ...
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The working folder; nothing of it is in sys.modules afterwards."""
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    left = {name for name in set(sys.modules) - before if not name.startswith("experiment_")}
    for name in set(sys.modules) - before:
        if name.startswith("experiment_"):
            del sys.modules[name]
    assert not {name for name in left if str(tmp_path) in str(getattr(sys.modules[name], "__file__", ""))}


def write(path, text):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)


def load(imports, value, path="exp/x.py"):
    write(path, SOURCE.replace("{imports}", imports).replace("{value}", value))
    return experiment.load(path)


def test_a_module_beside_the_experiment():
    write("exp/helpers.py", "VALUE = 3\n")
    loaded = load("import helpers", "helpers.VALUE")
    assert loaded.get_config().value == 3
    assert list(loaded.sources()) == ["x.py", "code/helpers.py"]
    assert loaded.sources()["code/helpers.py"] == (Path("exp/helpers.py").resolve(), b"VALUE = 3\n")
    assert str(Path("exp").resolve()) not in sys.path
    with pytest.raises(ModuleNotFoundError):
        __import__("helpers")


@pytest.mark.parametrize(("name", "path"), [("helpers", "helpers.py"), ("parts", "parts/__init__.py")])
def test_a_module_beside_the_experiment_that_importlib_is_asked_for(name, path):
    write(f"exp/{path}", "VALUE = 3\n")
    with pytest.raises(UserError) as caught, user_code.explained():
        load(f"import importlib\nown = importlib.import_module('{name}')", "own.VALUE")
    assert str(caught.value) == (
        f"exp/x.py:4: ModuleNotFoundError: No module named '{name}'. exp/{path} is found by `import {name}` alone,"
        " not by importlib. --debug shows the traceback."
    )


def test_packages_relative_imports_and_a_circle():
    write("exp/parts/__init__.py", "from . import first\nfrom .first import VALUE\n")
    write("exp/parts/first.py", "import helpers\nfrom .deep.second import VALUE\n")
    write("exp/parts/deep/second.py", "VALUE = 4\n\ndef late():\n    from .. import first\n    return first.VALUE\n")
    write("exp/helpers.py", "import parts.deep.second\nimport parts\nVALUE = 1\n")
    loaded = load("from parts.deep.second import late\nimport helpers", "late() + helpers.VALUE")
    assert loaded.get_config().value == 5
    copied = ["x.py", "code/helpers.py", "code/parts/__init__.py", "code/parts/deep/second.py", "code/parts/first.py"]
    assert list(loaded.sources()) == copied


def test_two_experiments_with_a_module_of_the_same_name():
    write("one/helpers.py", "VALUE = 1\n")
    write("two/helpers.py", "VALUE = 2\n")
    late = "\n\ndef value():\n    import helpers\n    return helpers"
    one = load(late, "value().VALUE", "one/x.py")
    two = load(f"import helpers{late}", "value().VALUE", "two/x.py")
    assert [one.get_config().value, two.get_config().value, one.get_config().value] == [1, 2, 1]


def test_a_second_load_reads_the_files_anew():
    write("exp/helpers.py", "VALUE = 1\n")
    first = load("import helpers", "helpers.VALUE")
    write("exp/helpers.py", "VALUE = 2\n")  # of the same second and size
    second = load("import helpers", "helpers.VALUE")
    assert (first.get_config().value, second.get_config().value) == (1, 2)
    assert first.sources()["code/helpers.py"][1] == b"VALUE = 1\n"


@pytest.mark.parametrize("name", ["json", "sys", "numpy", "absl", "tf_keras"])
def test_a_name_that_is_installed_is_refused(name):
    write(f"exp/{name}.py", "VALUE = 1\n")
    with pytest.raises(UserError) as caught:
        load(f"import {name}", "1")
    file = Path(f"exp/{name}.py").resolve()
    assert str(caught.value).startswith(f"'{name}' is the name of {name}.py beside the experiment and of a module that")
    assert str(caught.value).endswith(f"Give {file} another name.")


def test_what_nobody_of_the_experiment_imports_is_no_matter():
    write("exp/random.py", "raise SystemError\n")
    write("exp/framework.py", "raise SystemError\n")
    loaded = load("import tempfile, shutil\nfrom framework.config import base_config", "1")
    assert loaded.get_config().value == 1
    assert list(loaded.sources()) == ["x.py"]


def test_a_module_imported_after_the_run_was_built(caplog):
    write("exp/helpers.py", "def f():\n    import late\n    return late.VALUE\n")
    write("exp/late.py", "VALUE = 5\n")
    loaded = load("import helpers", "helpers.f()")
    loaded.modules.close()
    assert caplog.messages == []
    assert [loaded.get_config().value, loaded.get_config().value] == [5, 5]
    assert [message.partition(":")[0] for message in caplog.messages] == [
        "module 'late' was imported after the run was built"
    ]
    assert list(loaded.sources()) == ["x.py", "code/helpers.py"]


def test_modules_from_elsewhere_are_copied_by_their_names(monkeypatch):
    write("library/mine/__init__.py", "")
    write("library/mine/deep.py", "VALUE = 6\n")
    monkeypatch.syspath_prepend("library")
    loaded = load("from mine import deep\nimport numpy, os", "deep.VALUE")
    assert list(loaded.sources()) == ["x.py", "code/mine/__init__.py", "code/mine/deep.py"]
    for name in ("mine", "mine.deep"):
        del sys.modules[name]


# --- the copies of a run folder ---------------------------------------------------------------------------------------


def run_folder(value=1):
    write("exp/helpers.py", f"VALUE = {value}\n")
    loaded = load("import helpers", "helpers.VALUE")
    code_copies.write(Path("run"), loaded, 0)
    write("run/config.json", "{}")
    return loaded


def files(folder="run"):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())


def test_the_copy_runs_with_the_copies_of_its_modules():
    run_folder()
    assert files() == ["code/helpers.py", "config.json", "x.py"]
    write("exp/helpers.py", "VALUE = 2\n")
    copy = experiment.load("run/x.py")
    assert copy.get_config().value == 1
    assert (experiment.load("exp/x.py").get_config().value, code_copies.changed(Path("run"), copy)) == (2, [])
    code_copies.write(Path("run"), copy, 7)
    assert files() == ["code/helpers.py", "config.json", "x.py"]


def test_a_changed_module_is_listed_and_kept_by_its_step():
    run_folder()
    changed = run_folder(value=2)
    assert code_copies.changed(Path("run"), changed) == ["exp/helpers.py"]
    assert files() == [
        "code.step-0/helpers.py",
        "code/helpers.py",
        "config.json",
        "x.py",
        "x.step-0.py",
    ]
    assert experiment.load("run/x.step-0.py").get_config().value == 2
    assert experiment.load("run/x.py").get_config().value == 1


def test_copies_that_are_not_what_was_trained_with(caplog):
    loaded = run_folder()
    trained = code_copies.hashes(loaded)
    code_copies.refuse_damaged(Path("run"), loaded, trained)
    Path("run/code/helpers.py").write_bytes(b"VALUE = 5\n")
    code_copies.refuse_damaged(Path("run"), loaded, trained)
    assert caplog.messages == [
        "run/code/helpers.py was changed or damaged; the experiment itself is what was trained with"
    ]
    for other in (experiment.load("run/x.py"), run_folder(value=3)):
        with pytest.raises(
            UserError, match=r"^run/code/helpers.py is not the code that the checkpoint was trained with"
        ):
            code_copies.refuse_damaged(Path("run"), other, trained)


def test_what_is_too_large_to_copy(caplog):
    write("exp/large.py", f"VALUE = {'1' * 5_000_001!r}\n")
    loaded = load("import large", "1")
    code_copies.write(Path("run"), loaded, 0)
    assert files() == ["x.py"]
    assert caplog.messages[0].startswith("the code of the run has more than 5 MB: ")


def test_the_file_is_known_as_it_was_loaded_when_the_working_folder_is_gone(monkeypatch, tmp_path):
    """A checkpoint hashes the file: it must not be looked for again, under a path relative to another folder."""
    loaded = load("", "1")
    before = code_copies.hashes(loaded)
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert code_copies.hashes(loaded) == before
    monkeypatch.chdir(tmp_path)
