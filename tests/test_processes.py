"""tests/processes.py: every test runs once, whatever file and share it is in, and a failure is seen."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import processes

ROOT = Path(processes.__file__).resolve().parents[1]
FILES = {
    "test_a.py": "import pytest\n@pytest.mark.parametrize('n', range(5))\ndef test_a(n):\n    print('ran', n)\n",
    "room/test_b.py": "def test_b(): pass\n",
    "test_none.py": "",
}


@pytest.fixture
def run(tmp_path):
    """Returns a function that runs the planted files, and more, in processes: (exit status, what was said)."""

    def run(*arguments, **more):
        (tmp_path / "tests/room").mkdir(parents=True, exist_ok=True)
        for name, source in {**FILES, **more}.items():
            (tmp_path / "tests" / name).write_text(source)
        (tmp_path / "tests/conftest.py").write_text(
            (ROOT / "tests/conftest.py").read_text().replace("COSTLY_SECONDS = 5.0", "COSTLY_SECONDS = 1.0")
        )
        code = "import sys; from pathlib import Path; from tests import processes as p; p.ROOT = Path.cwd();"
        code += " p.PREPARED = 'pytest'; p.SHARDS = {'tests/test_a.py': 2}; sys.path.pop(0); sys.exit(p.main())"
        command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        return done.returncode, done.stdout + done.stderr

    return run


def test_every_test_runs_once(run):
    status, said = run("-s")
    assert status == 0
    assert "tests/test_a.py 1/2: 3 passed" in said and "tests/test_a.py 2/2: 2 passed" in said
    assert "tests/room/test_b.py: 1 passed" in said
    assert "6 passed in " in said and "test_none" not in said


def test_a_failure_is_shown_and_counts(run):
    status, said = run(**{"test_bad.py": "def test_bad():\n    assert 1 == 2\n"})
    assert status == 1
    assert "assert 1 == 2" in said and "1 failed, 6 passed" in said
    assert said.endswith("FAILED: tests/test_bad.py (status 1)\n  FAILED tests/test_bad.py::test_bad - assert 1 == 2\n")


def test_a_process_that_dies_is_a_failure(run):
    status, said = run(**{"test_dies.py": "import os\ndef test_dies():\n    os._exit(0)\n"})
    assert status == 1
    assert "FAILED: tests/test_dies.py" in said


@pytest.mark.parametrize(("arguments", "passed"), [(("tests/room",), 1), (("tests/test_a.py::test_a", "-k", "3"), 1)])
def test_some_of_them(run, arguments, passed):
    status, said = run(*arguments)
    assert status == 0 and f"{passed} passed in " in said


def test_what_is_skipped_says_why(run):
    source = "import pytest\n@pytest.mark.parametrize('what', ['moon', 'sun'])\n"
    source += "def test_it(what):\n    pytest.skip(f'needs a {what}')\n"
    status, said = run(**{"test_first.py": source, "test_second.py": source.replace("sun", "moon")})
    assert status == 0 and "6 passed, 4 skipped in " in said
    assert said.endswith("SKIPPED: 3, needs a moon\nSKIPPED: 1, needs a sun\n")


def test_what_costs_most_is_named(run):
    source = (
        "import time\nend = time.process_time() + {1}\ndef test_{0}():\n    while time.process_time() < end: pass\n"
    )
    sources = {f"test_{name}.py": source.format(name, cost) for name, cost in (("two", 2.3), ("one", 1.3), ("no", 0.1))}
    status, said = run("tests/test_two.py", "tests/test_one.py", "tests/test_no.py", **sources)
    assert status == 0
    costs = re.findall(r"^COSTLY: (\d+) of (\d+) CPU s, (.*)$", said, re.MULTILINE)
    assert [(cost, test) for cost, _, test in costs] == [
        ("2", "tests/test_two.py::test_two"),
        ("1", "tests/test_one.py::test_one"),
    ]
    assert 3.7 <= int(costs[0][1]) <= 8


def test_no_test_at_all_is_a_failure(run):
    status, said = run("-k", "nothing")
    assert status == 1 and "no tests in " in said
