"""--mode=compare: what is typed, what is refused, and the table of the terminal."""

import os
import subprocess
import sys

import pytest

import launch
from framework.pages import stored
from framework.pages.comparison import grouped
from framework.pages.curves import Averaged
from tests.pages.folders import ROWS, evaluation, make


def call(*arguments):
    return launch.main(["launch.py", "--mode=compare", *map(str, arguments)])


@pytest.mark.parametrize(("columns", "width"), [("80", 80), ("30", 52), ("300", 300)])
def test_the_table_fits_the_terminal_and_loses_no_number_and_no_name(tmp_path, capsys, monkeypatch, columns, width):
    """Names of runs as they are by default; 52 columns are those of the numbers, and 20 of names."""
    monkeypatch.setenv("COLUMNS", columns)
    names = [f"mnist_mlp-20261129-104511-learning_rate=0.{n}-hidden=512-dropout=0.25-momentum=0.9" for n in (1, 2)]
    paths = [
        make(tmp_path / name, config={"schedule": {"learning_rate": n}}, rows=[*ROWS[:5], evaluation(400, 1.0, n / 7)])
        for n, name in enumerate(names, start=1)
    ]
    groups = grouped([stored.read(path, make=Averaged) for path in paths])
    assert call(*paths, f"--out={tmp_path / 'x.html'}") == 0
    name, head, *lines = capsys.readouterr().out.partition("\n\n")[0].splitlines()
    assert name == "test/accuracy" and max(map(len, lines)) <= width
    at = head.index("group")
    numbers = [line[:at].split() for line in lines if line[:at].strip()]
    assert numbers == [[f"{1 / 7:.6g}", "400", "0.75", "1"], [f"{2 / 7:.6g}", "400", "0.75", "1"]]
    shown = "".join(line[at:] for line in lines).replace(" ", "")
    assert shown == "".join(group.label for group in groups).replace(" ", "")


def test_what_cannot_be_compared_is_refused(tmp_path, capsys):
    a, b = make(tmp_path / "a"), make(tmp_path / "b", config={"seed": 1})
    (tmp_path / "notes").mkdir()
    os.symlink(a, tmp_path / "link")
    for arguments, said in [
        ([], "--mode=compare needs two runs or more. Type e.g. --mode=compare runs/a runs/b."),
        ([a], "--mode=compare needs two runs or more. Type e.g. --mode=compare runs/a runs/b."),
        ([a, tmp_path / "notes"], f"{tmp_path / 'notes'} is no run folder: it has no config.json. Type a run folder,"),
        ([a, tmp_path / "link"], f"{tmp_path / 'link'} is named twice. Leave one out."),
        ([a, b, "--out=x.txt"], "--out=x.txt is no page. Type e.g. --out=compare.html."),
        ([a, b, f"--out={tmp_path}/none/x.html"], "x.html cannot be written: No such file or directory."),
        ([a, b, f"--workdir={tmp_path}"], "--workdir has no effect with --mode=compare, which takes the run folders"),
    ]:
        assert call(*arguments) == 2
        assert said in capsys.readouterr().err, arguments
    assert launch.main(["launch.py", "--mode=list", f"--workdir={tmp_path}", "--out=x.html"]) == 2
    assert "--out has no effect with --mode=list. Use --mode=lr_find or --mode=compare" in capsys.readouterr().err
    assert launch.main(["launch.py", f"--workdir={tmp_path}", "--mode=list", "runs/a"]) == 2
    assert "'runs/a' is not a flag." in capsys.readouterr().err


def test_a_long_folder_with_an_equals_sign_is_no_flag(tmp_path):
    """Default names of runs have such signs."""
    folder = tmp_path / ("deep" * 30)
    a, b = make(folder / "mnist-learning_rate=0.1"), make(folder / "flagfile=x", config={"seed": 1})
    assert call(a, b, f"--out={tmp_path / 'x.html'}") == 0


def test_folders_are_typed_in_any_way_and_tensorflow_is_not_needed(tmp_path):
    a, b = make(tmp_path / "a,b"), make(tmp_path / "c", config={"seed": 1})
    code = (
        "import sys, launch; status = launch.main(['launch.py', *sys.argv[1:]]);"
        "assert not {'tensorflow', 'numpy'} & {*sys.modules}; sys.exit(status)"
    )
    command = [sys.executable, "-c", code, "--mode=compare", str(a), f"--runs={b}", f"--out={tmp_path / 'x.html'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "0.625 ± 0" in done.stdout and done.stderr == ""
    assert "<p>Nothing but the seed.</p>" in (tmp_path / "x.html").read_text()
