"""framework/pages/listing.py and --mode=list: a row for each run, whatever its state."""

import json
import subprocess
import sys
import time

import pytest

import launch
from framework import files
from framework.pages import listing
from tests.pages.folders import RESULT, ROWS, fail, make, start
from tests.pages.test_stored import FILES, WRONG


def listed(folder, capsys):
    """{run: its line} of --mode=list; the lines are checked to stand in columns."""
    assert launch.main(["launch.py", "--mode=list", f"--workdir={folder}"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["run", "state", "step", "best", "last", "started", "time", "differs"]
    at = head.index("state")
    return {line[:at].rstrip(): line[at:] for line in lines}


def test_a_row_has_state_step_results_times_and_what_differs(tmp_path, capsys):
    overridden = {"train.duration": "400 steps", "optimizer.name": "sgd", "data.name": "mnist"}
    make(tmp_path / "sweep" / "ended", starts=[start(overridden=overridden)])
    make(
        tmp_path / "early",
        result=RESULT | {"status": "stopped early", "wall_seconds": 3725.0},
        starts=[start(total=900)],
    )
    make(tmp_path / "killed", rows=ROWS[:4], result=None, saved=[100, 200])
    fail(make(tmp_path / "failed", result=None))
    (tmp_path / "notes").mkdir()
    rows = listed(tmp_path, capsys)
    assert [*rows] == ["early", "failed", "killed", "sweep/ended"]
    shown = [cell.strip() for cell in rows["sweep/ended"].split("  ") if cell.strip()]
    assert shown == [
        *("finished", "400/400", "test/accuracy 0.75 @200", "0.625 @400", "2026-11-29 04:00", "10.0 s"),
        "duration=400 steps optimizer.name=sgd data.name=mnist",
    ]
    assert rows["early"].startswith("stopped early  ") and "400/900" in rows["early"] and "1 h 2 min" in rows["early"]
    assert rows["killed"].startswith("stopped at step 200  ") and "0.75 @200" in rows["killed"]
    assert rows["failed"].startswith("failed: ValueError: a shape  ")


def test_a_terminal_that_is_too_narrow_gets_lines_of_their_own_for_each_run(tmp_path):
    for name in ("a" * 60, "b"):
        make(tmp_path / name, starts=[start(overridden={"model.hidden": 64, "data.name": "mnist"})])
    runs = listing.below(tmp_path)
    whole = listing.table(tmp_path, runs)
    assert listing.table(tmp_path, runs, 200) == whole and max(map(len, whole.splitlines())) > 80
    lines = listing.table(tmp_path, runs, 80).splitlines()
    assert max(map(len, lines)) <= 80 and [line for line in lines if line[0] != " "] == ["a" * 60, "b"]
    words = " ".join(" ".join(lines[1 : lines.index("b")]).split())
    assert words == (
        "state finished step 400/400 best test/accuracy 0.75 @200 last 0.625 @400 started 2026-11-29 04:00 time 10.0 s"
        " differs hidden=64 name=mnist"
    )


def test_a_run_under_way_is_running(tmp_path, capsys):
    now = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(time.time() - 125))
    folder = make(tmp_path / "a", result=None, starts=[start(time=now, total=800)])
    with files.held(folder / ".lock", str):
        row = listed(tmp_path, capsys)["a"]
    assert row.startswith("running (process ") and "400/800" in row and "2 min " in row


def test_a_run_folder_itself_is_a_row(tmp_path, capsys):
    make(tmp_path / "a")
    assert [*listed(tmp_path / "a", capsys)] == ["a"]


@pytest.mark.parametrize("name", FILES)
def test_damaged_runs_are_named_in_their_row(tmp_path, capsys, name):
    make(tmp_path / "whole")
    path = make(tmp_path / "damaged") / name
    if name == "checkpoints":
        path.rename(tmp_path / "damaged" / "elsewhere")
    for number, text in enumerate(WRONG):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        rows = listed(tmp_path, capsys)
        assert [*rows] == ["damaged", "whole"]
        if number < 6 and name in ("config.json", "environment.json", "result.json"):
            assert f"damaged: {name}: " in rows["damaged"], text
        assert "damaged" not in rows["whole"]


def test_names_and_values_cannot_command_a_terminal(tmp_path, capsys):
    make(tmp_path / "a\x1b[2J\nb", starts=[start(overridden={"k\x1b": "\x07\n"})])
    (name,) = rows = listed(tmp_path, capsys)
    assert name == r"a\x1b[2J\nb" and rows[name].endswith(r"k\x1b=\x07\n")


def test_it_needs_a_folder_and_no_tensorflow(tmp_path, capsys):
    assert launch.main(["launch.py", "--mode=list"]) == 2
    assert capsys.readouterr().err == (
        "error: --mode=list needs the --workdir of a folder with runs in it, e.g. --workdir=runs.\n"
    )
    assert launch.main(["launch.py", "--mode=list", f"--workdir={tmp_path}/nowhere"]) == 2
    assert "is no folder. Type one with run folders in it, e.g. --workdir=runs.\n" in capsys.readouterr().err
    assert launch.main(["launch.py", "--mode=list", f"--workdir={tmp_path}"]) == 0
    assert capsys.readouterr().out == f"no runs below {tmp_path}\n"
    make(tmp_path / "a")
    code = (
        "import sys, launch; launch.main(['launch.py', '--mode=list', '--workdir=' + sys.argv[1]]);"
        "assert not {'tensorflow', 'numpy', 'tensorboard'} & {*sys.modules}"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "finished" in done.stdout and done.stderr == ""


def test_a_pipe_or_a_folder_in_place_of_a_file_does_no_harm(tmp_path, capsys):
    folder = make(tmp_path / "a")
    for name in ("config.json", "metrics.jsonl", ".lock"):
        (folder / name).unlink()
        (folder / name).mkdir()
    assert "damaged: config.json: it is not a file; metrics.jsonl: it is not a file" in listed(tmp_path, capsys)["a"]
    assert json.loads((folder / "result.json").read_text())["step"] == 400
