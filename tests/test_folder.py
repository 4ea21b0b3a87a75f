"""A run folder in which something cannot be reached: one line, and nothing is thrown away."""

import errno
import json
import os
import shutil
import socket
from pathlib import Path

import pytest

from framework import folder, paths
from framework.checkpoint import checkpoints as checkpoint
from framework.cli import flags
from framework.config import UserError
from framework.errors import MachineError
from framework.folder import check_workdir, name_of
from framework.run import build as run
from framework.run import loop
from tests.small import build, differing, snapshot

SETTINGS = {"train.duration": "8 steps", "checkpoint.every": "2 steps", "train.block_steps": 2}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of 8 steps that has ended: checkpoints of 4, 6 and 8."""
    workdir = tmp_path_factory.mktemp("folder") / "run"
    loop.train(build(workdir, **SETTINGS))
    return workdir


@pytest.fixture
def workdir(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def built(whole):
    """A fresh run of the same config; `start` puts its state back and opens a folder with it."""
    made = build(whole, **SETTINGS)
    return made, {path: variable.numpy() for path, variable in paths.variables(made.state).items()}


def start(built, workdir):
    """Opens `workdir` as `train` does; the step to go on from."""
    made, fresh = built
    for path, variable in paths.variables(made.state).items():
        variable.assign(fresh[path])
    made.workdir = workdir
    made.__dict__.pop("checkpoints", None)
    check_workdir(workdir)
    return made.open()


def refusal(call):
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rows(workdir):
    return (workdir / "metrics.jsonl").read_bytes()


def killed(workdir, step):
    """Leaves what a run has that was killed after a step, with its checkpoints up to there."""
    (workdir / "result.json").unlink()
    kept = [line for line in rows(workdir).splitlines(keepends=True) if json.loads(line)["step"] <= step]
    (workdir / "metrics.jsonl").write_bytes(b"".join(kept))
    for path in (workdir / "checkpoints").glob("step-*"):
        if int(path.name[5:]) > step:
            shutil.rmtree(path)


def test_checkpoints_on_another_disk_are_gone_on_from(built, workdir, tmp_path):
    shutil.move(workdir / "checkpoints", tmp_path / "disk")
    (workdir / "checkpoints").symlink_to(tmp_path / "disk")
    (tmp_path / "link").symlink_to(workdir)
    assert start(built, tmp_path / "link") == 8


@pytest.mark.parametrize("what", ["dangling", "file", "unreadable", "pipe", "socket"])
@pytest.mark.parametrize("else_left", [True, False])
def test_checkpoints_that_cannot_be_reached(built, workdir, what, else_left, monkeypatch):
    checkpoints = workdir / "checkpoints"
    if what == "unreadable":  # tests may run as root, who may read everything
        listed = os.listdir

        def refuse(path):
            if Path(path) == checkpoints:
                raise PermissionError(errno.EACCES, "Permission denied")
            return listed(path)

        monkeypatch.setattr(checkpoint.os, "listdir", refuse)
    else:
        shutil.move(checkpoints, workdir.parent / "away")
        sock = socket.socket(socket.AF_UNIX)
        monkeypatch.chdir(workdir)  # the path of a socket must be short
        {
            "dangling": lambda: checkpoints.symlink_to("/unmounted/run"),
            "file": lambda: checkpoints.write_text(""),
            "pipe": lambda: os.mkfifo(checkpoints),
            "socket": lambda: sock.bind("checkpoints"),
        }[what]()
        sock.close()
    if not else_left:
        (workdir / "result.json").unlink()
        (workdir / "environment.json").unlink()
    before = rows(workdir)
    said = refusal(lambda: start(built, workdir))
    why = {
        "dangling": "cannot be reached: it is a link to /unmounted/run, which does not exist.",
        "unreadable": "denied.",
    }
    assert said.startswith(str(checkpoints)) and why.get(what, "is not a folder") in said
    assert said.endswith("use another --workdir.") and rows(workdir) == before
    # Who looks back does not take it for an untrained run either.
    assert refusal(built[0].restore).startswith(f"{checkpoints} cannot be reached: ")


@pytest.mark.parametrize("how", ["absent", "empty", "half written"])
@pytest.mark.parametrize("sign", ["result.json", "environment.json", "report.json", "metrics.jsonl"])
def test_checkpoints_that_are_gone_although_there_were_some(built, workdir, how, sign):
    shutil.rmtree(workdir / "checkpoints")
    if how != "absent":
        (workdir / "checkpoints" / (".step-00000002.tmp" if how == "half written" else "")).mkdir(parents=True)
    if sign != "result.json":
        (workdir / "result.json").unlink()
    if sign != "metrics.jsonl":
        (workdir / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    if sign == "environment.json":
        header = json.loads((workdir / sign).read_text())
        (workdir / sign).write_text(json.dumps({"starts": [*header["starts"], {**header["starts"][0], "step": 4}]}))
    if sign == "report.json":
        (workdir / "exports").mkdir()
        (workdir / "exports" / sign).write_text('[{"hook": "lite", "step": 8, "passed": true}]')
    before = rows(workdir)
    says = {
        "result.json": "result.json is of step 8",
        "environment.json": "the run has resumed at step 4 before (environment.json)",
        "report.json": "step 8 was exported",
        "metrics.jsonl": "metrics.jsonl has rows up to step 8, and a checkpoint was due every 2 steps",
    }[sign]
    assert refusal(lambda: start(built, workdir)) == (
        f"{workdir / 'checkpoints'} has no checkpoint, but {says}. A start from scratch would lose what was"
        " trained. Put the checkpoints back, or use another --workdir."
    )
    assert rows(workdir) == before


@pytest.mark.parametrize("has_folder", [True, False])
def test_a_run_killed_before_its_first_checkpoint_starts_from_scratch(built, workdir, has_folder):
    killed(workdir, 1)
    assert os.listdir(workdir / "checkpoints") == ["last.json"]
    shutil.rmtree(workdir / "checkpoints")
    if has_folder:
        (workdir / "checkpoints" / ".step-00000002.tmp").mkdir(parents=True)
    (workdir / "tuning.json").write_text("{}")
    assert start(built, workdir) == 0


def test_a_run_killed_later_goes_on_and_ends_in_the_same_bits(built, workdir, whole):
    expected = build(whole, **SETTINGS)
    expected.restore()
    before = rows(whole).splitlines()
    killed(workdir, 4)
    again = build(workdir, **SETTINGS)
    assert loop.train(again)["status"] == "finished"
    assert not differing(snapshot(again), snapshot(expected))

    def without_speed(line):
        return {name: value for name, value in json.loads(line).items() if "per_second" not in name}

    assert list(map(without_speed, rows(workdir).splitlines())) == list(map(without_speed, before))


def test_no_checkpoint_is_whole(built, workdir):
    for path in (workdir / "checkpoints").glob("step-*"):
        (path / "arrays.bin").write_bytes(b"")
    before = rows(workdir), sorted(os.listdir(workdir / "checkpoints"))
    said = refusal(lambda: start(built, workdir))
    line = f"every checkpoint is damaged, so a start would lose what was trained ({workdir}/checkpoints/step-0"
    assert said.startswith(line)
    assert (rows(workdir), sorted(os.listdir(workdir / "checkpoints"))) == before


@pytest.mark.parametrize("else_gone", [False, True])
def test_checkpoints_without_a_config(built, workdir, else_gone):
    (workdir / "config.json").unlink()
    if else_gone:
        for name in ("environment.json", "metrics.jsonl", "result.json"):
            (workdir / name).unlink()
    assert refusal(lambda: start(built, workdir)) == (
        f"--workdir={workdir} has checkpoints but no config.json, which says how they were trained."
        f" Put the file back, or use another folder; there, --config.resume_from={workdir} continues this run."
    )


def test_a_config_that_cannot_be_reached(built, workdir):
    (workdir / "config.json").unlink()
    (workdir / "config.json").symlink_to("/unmounted/config.json")
    assert refusal(lambda: start(built, workdir)) == (
        f"{workdir / 'config.json'} cannot be reached: it is a link to /unmounted/config.json, which does not exist."
        " Put it back, or use another --workdir."
    )


@pytest.mark.parametrize("name", ["metrics.jsonl", "tuning.json", "result.json", "environment.json"])
@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_a_folder_or_pipe_in_the_place_of_a_file(built, workdir, name, make):
    (workdir / name).unlink(missing_ok=True)
    make(workdir / name)
    assert refusal(lambda: start(built, workdir)) == (
        f"{workdir / name} is not a file, and the run needs one there. Move it, or use another --workdir."
    )


@pytest.mark.parametrize("name", ["tensorboard", "exports", "failure", "workers"])
def test_a_file_in_the_place_of_a_folder(built, workdir, name):
    shutil.rmtree(workdir / name, ignore_errors=True)
    (workdir / name).write_text("")
    assert refusal(lambda: start(built, workdir)) == (
        f"{workdir / name} is not a folder, and the run needs one there. Move it, or use another --workdir."
    )


@pytest.mark.parametrize("kind", ["dangling", "file", "read-only"])
def test_a_run_folder_that_is_none(tmp_path, kind, monkeypatch):
    path = tmp_path / "run"
    if kind == "dangling":
        path.symlink_to("/unmounted/run")
    elif kind == "file":
        path.write_text("")
    else:

        def refuse(self, content):
            raise OSError(errno.EROFS, "Read-only file system")

        monkeypatch.setattr(folder.Path, "write_bytes", refuse)
    why = {
        "dangling": "cannot be reached: it is a link to /unmounted/run, which does not exist. Type a folder of yours.",
        "file": "cannot be written: File exists. Type a folder of yours, e.g. --workdir=runs/first.",
        "read-only": "cannot be written: Read-only file system. Type a folder of yours, e.g. --workdir=runs/first.",
    }[kind]
    assert refusal(lambda: check_workdir(path)) == f"--workdir={path} {why}"


# --- names among the checkpoints --------------------------------------------------------------------------------------


def test_an_unpadded_name_is_left_alone(built, workdir, caplog):
    shutil.copytree(workdir / "checkpoints/step-00000008", workdir / "checkpoints/step-50")
    for name in ("step--3", "step-1e3", "step-٣", "step-", "step-00000000000000000004", "stepping", "step-8.old"):
        (workdir / "checkpoints" / name).mkdir()
    assert start(built, workdir) == 8
    assert f"{workdir}/checkpoints/step-50 is not the name of a checkpoint and is left alone" in caplog.text
    assert (workdir / "checkpoints/step-50/arrays.bin").exists()


@pytest.mark.parametrize("step", [10, 10**30])
def test_a_folder_of_another_program_is_renamed_and_kept(built, workdir, step, caplog):
    foreign = workdir / "checkpoints" / name_of(step)
    foreign.mkdir()
    (foreign / "notes.txt").write_text("mine")
    assert start(built, workdir) == 8
    assert (workdir / "checkpoints" / f"damaged-{foreign.name}" / "notes.txt").read_text() == "mine"


def test_a_checkpoint_under_the_name_of_another_step(built, workdir):
    shutil.copytree(workdir / "checkpoints/step-00000004", workdir / "checkpoints/step-00000099")
    assert start(built, workdir) == 8 and built[0].checkpoints.steps() == [4, 6, 8]


def test_checkpoints_behind_links(built, workdir, tmp_path):
    """They are gone on from, and when their time comes the link goes and what it leads to stays."""
    killed(workdir, 6)
    for step in (4, 6):
        path = workdir / "checkpoints" / name_of(step)
        shutil.move(path, tmp_path / str(step))
        path.symlink_to(tmp_path / str(step))
    (workdir / "checkpoints" / ".step-00000099.tmp").symlink_to(tmp_path / "4")
    again = build(workdir, **SETTINGS, **{"checkpoint.keep": 1})
    assert again.open() == 6
    again.train_block(2)
    again.checkpoints.save(again.state, {})
    again.checkpoints.close()
    assert sorted(os.listdir(workdir / "checkpoints")) == ["last.json", "step-00000008"]
    assert all((tmp_path / str(step) / "arrays.bin").stat().st_size for step in (4, 6))


def test_a_checkpoint_behind_a_dangling_link_is_not_passed_over(built, workdir):
    newest = workdir / "checkpoints/step-00000008"
    shutil.rmtree(newest)
    newest.symlink_to("/unmounted/8")
    assert refusal(lambda: start(built, workdir)) == (
        f"{newest} cannot be reached: it is a link to /unmounted/8, which does not exist."
        " Put it back, or use another --workdir."
    )


def test_a_pointer_whose_digit_flipped_chooses_no_other_best(tmp_path):
    """Both of its entries say the step; a flip makes them say two."""
    made = build(tmp_path, **SETTINGS)
    for step in (3, 4):
        made.state.step.assign(step)
        made.state.best.step.assign(3)
        made.checkpoints.save(made.state, {})
    for content in ('{"step": 4, "checkpoint": "step-00000006"}', '{"step": 4}', "[]", ""):
        assert made.checkpoints.pointed("best") == 3
        (tmp_path / "checkpoints/best.json").write_text(content)
    assert made.checkpoints.pointed("best") == 3


# --- what steers a run is not read from files without a hash ----------------------------------------------------------


TUNED = {"mode": "xla_update", "milliseconds": {"graph": 2.0, "xla": None}, "reason": "the fastest"}


@pytest.mark.parametrize(
    "content", ["", "{", "5", '{"mode": "xla"}', json.dumps({**TUNED, "mode": "xlb"}), "[" * 10**5]
)
def test_a_damaged_tuning_is_timed_anew(built, tmp_path, content, caplog, monkeypatch):
    made, _ = built
    monkeypatch.setattr(made, "workdir", tmp_path)
    monkeypatch.setattr(made, "note", {})
    monkeypatch.setattr(made, "config", made.config.copy_and_resolve_references())
    made.config.unlock().train.compile = "auto"
    (tmp_path / "tuning.json").write_text(content)
    made.recall()
    assert made.choice is None
    assert caplog.messages[0].startswith(f"{tmp_path / 'tuning.json'} is damaged (")


def test_the_choice_of_the_checkpoint_counts_and_not_that_of_the_file(built, tmp_path, monkeypatch):
    made, _ = built
    chosen = []
    monkeypatch.setattr(made, "workdir", tmp_path)
    monkeypatch.setattr(made, "note", {"tuning": TUNED})
    monkeypatch.setattr(made, "config", made.config.copy_and_resolve_references())
    monkeypatch.setattr(made, "compile_by", lambda choice: chosen.append(choice.mode))
    made.config.unlock().train.compile = "auto"
    (tmp_path / "tuning.json").write_text(json.dumps({**TUNED, "mode": "xla"}))
    made.recall()
    made.note = {}
    made.recall()
    assert chosen == ["xla_update", "xla"]


def test_a_damaged_header_is_kept_and_the_run_goes_on(built, workdir, caplog):
    killed(workdir, 6)
    header = workdir / "environment.json"
    header.write_text(header.read_text().replace('"starts"', '"starus"'))
    damaged = header.read_bytes()
    assert start(built, workdir) == 6
    built[0].write_header([])
    assert (workdir / "environment.damaged.json").read_bytes() == damaged
    assert [entry["step"] for entry in folder.starts(workdir)] == [6]
    assert f"{header} is damaged (it has no 'starts'): the starts before this one are not known" in caplog.messages


def test_the_lock_of_a_run_that_is_a_link_truncates_nothing(built, workdir):
    (workdir / ".lock").unlink()
    (workdir / ".lock").symlink_to(workdir / "result.json")
    before = (workdir / "result.json").read_bytes()
    made, _ = built
    made.workdir = workdir
    with pytest.raises(UserError, match=r"\.lock cannot be locked: it is a link\. Remove it, or use another folder\.$"):
        loop.train(made)
    assert (workdir / "result.json").read_bytes() == before


def test_a_folder_that_may_not_be_written_is_one_line(built, workdir, monkeypatch):
    killed(workdir, 6)
    start(built, workdir)

    def refuse(path, text):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("framework.run.run.write_text", refuse)
    built[0].state.step.assign(0)
    with pytest.raises(MachineError) as caught:
        loop.train(built[0])
    assert str(caught.value) == (
        f"[Errno 13] Permission denied: '{workdir / 'overrides.txt'}'. Mend that and type the same command again."
    )


def test_who_looks_back_is_told_that_the_config_is_missing(workdir):
    (workdir / "config.json").unlink()
    with pytest.raises(UserError, match=r"has checkpoints but no config\.json\. Put it back\.$"):
        flags.parse(["launch.py", "--config=tests/tiny.py", f"--workdir={workdir}", "--mode=evaluate"])
    assert "has checkpoints but no config.json" in refusal(lambda: run.build("tests/tiny.py", (), workdir, True))
