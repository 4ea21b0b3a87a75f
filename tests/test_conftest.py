"""The leak guard of conftest.py, run on tests that leak, in a pytest process and a checkout of their own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).with_name("conftest.py")

LEAKS = {
    "environment": ("os.environ['LEAKED'] = '1'", "environment changed: LEAKED='1' (was None)"),
    "removed_environment": ("del os.environ['KEPT']", "environment changed: KEPT=None (was 'kept')"),
    "folder": ("os.chdir(tmp_path)", "working folder changed: cwd='"),
    "signal": ("signal.signal(signal.SIGTERM, signal.SIG_IGN)", "signal handler changed: SIGTERM=<Handlers.SIG_IGN"),
    "thread": ("threading.Thread(target=RELEASE.wait, name='leaker').start()", "thread still running: leaker"),
    "open_file": ("KEPT.append(open(tmp_path / 'held.bin', 'wb'))", "held.bin"),
    "new_file": ("(ROOT / 'left.json').write_text('{}')", "new in the repository: left.json"),
    "new_run": ("(ROOT / 'runs' / 'a').mkdir(parents=True)", "new in the repository: runs/a"),
}

HARMLESS = {
    "undone": "monkeypatch.setenv('SET', '1'); monkeypatch.chdir(tmp_path)",
    "daemon": "threading.Thread(target=RELEASE.wait, daemon=True).start()",
    "ending_thread": "threading.Thread(target=time.sleep, args=(0.3,)).start()",
    "closed_file": "open(tmp_path / 'x', 'w').close()",
    "cycle": "cycle = [open(tmp_path / 'y', 'w')]; cycle.append(cycle)",
    "source": "(ROOT / 'edited.py').write_text('')",
    "cache": "(ROOT / '.cache').mkdir()",
    "run_under_way": "(ROOT / 'runs' / 'a' / 'metrics.jsonl').write_text('')",
}

HEAD = """
import os, signal, threading, time
from pathlib import Path
ROOT = Path(__file__).resolve().parents[1]
RELEASE = threading.Event()
KEPT = []
def teardown_module():
    RELEASE.set()
"""


def _run(folder: Path, source: str) -> str:
    """Output of pytest on `source`, which stands in folder/tests beside a copy of our conftest.py."""
    (folder / "tests").mkdir(parents=True)
    shutil.copy(CONFTEST, folder / "tests")
    quick = (folder / "tests" / "conftest.py").read_text().replace("SETTLE_SECONDS = 60.0", "SETTLE_SECONDS = 0.5")
    (folder / "tests" / "conftest.py").write_text(quick)
    (folder / "tests" / "test_planted.py").write_text(source)
    (folder / "pytest.ini").write_text("[pytest]\n")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-v",
        "-W",
        "ignore",
        "tests",
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=folder, env=environment | {"KEPT": "kept"}, capture_output=True, text=True)
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def leaky(tmp_path_factory: pytest.TempPathFactory) -> str:
    tests = [
        f"def test_{name}(tmp_path):\n    {code}\ndef test_after_{name}(): pass\n" for name, (code, _) in LEAKS.items()
    ]
    return _run(tmp_path_factory.mktemp("leaky") / "checkout", HEAD + "".join(tests))


@pytest.fixture(scope="module")
def harmless(tmp_path_factory: pytest.TempPathFactory) -> str:
    tests = [f"def test_{name}(tmp_path, monkeypatch):\n    {code}\n" for name, code in HARMLESS.items()]
    folder = tmp_path_factory.mktemp("harmless") / "checkout"
    (folder / "runs" / "a").mkdir(parents=True)
    return _run(folder, HEAD + "".join(tests))


def _reports(output: str) -> dict[str, str]:
    """{test: what was said of it} from the sections of failed teardowns."""
    sections = output.split("ERROR at teardown of test_")[1:]
    return {section.partition(" ")[0]: section for section in sections}


@pytest.mark.parametrize("name", LEAKS)
def test_a_leak_fails_its_test_and_no_other(leaky: str, name: str) -> None:
    reports = _reports(leaky)
    assert LEAKS[name][1] in reports.get(name, leaky)
    assert f"after_{name}" not in reports


def test_every_leak_is_one_error(leaky: str) -> None:
    assert f"{2 * len(LEAKS)} passed, {len(LEAKS)} errors" in leaky


def test_what_is_undone_or_ends_by_itself_passes(harmless: str) -> None:
    assert _reports(harmless) == {}
    assert f"{len(HARMLESS)} passed" in harmless


def test_seeds_dtypes_and_log_level_are_reset(tmp_path: Path) -> None:
    source = """
import logging
import random
import numpy as np
import tensorflow as tf
import tf_keras as keras
SEEN = []
def draw():
    SEEN.append((random.random(), np.random.uniform(), float(tf.random.uniform([]))))
    assert keras.backend.floatx() == "float32"
    assert keras.mixed_precision.global_policy().name == "float32"
    assert not tf.config.functions_run_eagerly()
    assert logging.getLogger("absl").level == 0
def test_first():
    draw()
    keras.backend.set_floatx("float64")
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    tf.config.run_functions_eagerly(True)
    logging.getLogger("absl").setLevel("WARNING")
def test_second():
    draw()
    assert SEEN[0] == SEEN[1]
"""
    assert "2 passed" in _run(tmp_path / "checkout", source)


def test_conftest_does_not_import_tensorflow(tmp_path: Path) -> None:
    source = "import sys\ndef test_it():\n    assert not {'tensorflow', 'tf_keras', 'numpy'} & set(sys.modules)\n"
    assert "1 passed" in _run(tmp_path / "checkout", source)
