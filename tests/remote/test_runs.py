"""Runs whose folder or data are at an address, as a user starts them: by launch.py and by framework.build."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import framework
import launch
from framework import testing
from framework.errors import UserError
from framework.remote.address import Place, Unreachable, folder_of
from framework.remote.run_copy import RunCopy
from framework.run import loop
from framework.run.interrupt import Interrupt
from tests import small

CONFIG = "tests/linear.py"
EAGER = ["--config.train.compile=eager", "--config.checkpoint.every=2 steps"]
OVERRIDES = {"train.compile": "eager", "checkpoint.every": "2 steps"}
ADDRESS = "memory://bucket/linear"


def call(*arguments):
    return launch.main(["launch.py", *arguments])


def machine(monkeypatch, tmp_path, name):
    """From now on this is the machine of that name, with a cache of its own."""
    monkeypatch.setenv("FRAMEWORK_CACHE", str(tmp_path / name))


def test_a_run_goes_on_on_another_machine_to_the_bits_of_one_that_stayed(tmp_path, monkeypatch, memory):
    def trained(workdir, steps):
        run = framework.build(CONFIG, OVERRIDES | {"train.duration": f"{steps} steps"}, workdir)
        result = framework.train(run)
        return result, testing.bits(run.state)

    trained(tmp_path / "alone", 5)
    expected = trained(tmp_path / "alone", 8)
    trained(ADDRESS, 5)
    machine(monkeypatch, tmp_path, "second")
    other = framework.build(CONFIG, (), ADDRESS, from_workdir=True)
    assert int(other.state.step) == 5 and other.workdir.is_relative_to(tmp_path / "second")
    result, bits = trained(ADDRESS, 8)
    assert bits == expected[1] and result["step"] == 8 and result["final"] == expected[0]["final"]
    steps = [json.loads(line)["step"] for line in memory.cat("/bucket/linear/metrics.jsonl").splitlines()]
    alone = [json.loads(line)["step"] for line in (tmp_path / "alone" / "metrics.jsonl").read_text().splitlines()]
    assert steps == alone
    config = json.loads(memory.cat("/bucket/linear/config.json"))
    assert config["train"]["duration"] == "8 steps"


def test_a_checkpoint_that_was_damaged_at_the_address_is_found_and_the_one_before_taken(tmp_path, monkeypatch, memory):
    framework.train(framework.build(CONFIG, OVERRIDES, ADDRESS))
    name = "/bucket/linear/checkpoints/step-00000005/arrays.bin"
    arrays = bytearray(memory.cat(name))
    arrays[7] ^= 1
    memory.pipe_file(name, bytes(arrays))
    machine(monkeypatch, tmp_path, "second")
    assert int(framework.build(CONFIG, (), ADDRESS, from_workdir=True).state.step) == 4
    framework.train(framework.build(CONFIG, OVERRIDES, ADDRESS))
    machine(monkeypatch, tmp_path, "third")
    assert int(framework.build(CONFIG, (), ADDRESS, from_workdir=True).state.step) == 5


def test_the_commands_of_a_run_at_an_address(tmp_path, monkeypatch, capsys):
    address = f"file://{tmp_path}/box/runs/first"
    train = [f"--config={CONFIG}", f"--workdir={address}", *EAGER]
    assert call(*train) == 0
    out = capsys.readouterr().out
    copy = folder_of(address)
    assert f"finished: step 5 in {address}\n" in out
    files = "report.html, result.json, metrics.jsonl, checkpoints/"
    assert f"\nEverything is in {address}, and in {copy}: {files}. Next:\n  tensorboard --logdir {copy}\n" in out
    assert (tmp_path / "box/runs/first/report.html").read_bytes() == (copy / "report.html").read_bytes()

    machine(monkeypatch, tmp_path, "second")
    assert call(*train) == 0  # has ended, says the address
    assert f"finished: step 5 in {address}\n" in capsys.readouterr().out
    assert call(*train[:2], "--mode=evaluate", "--data_dir=") == 0
    assert f"{address}, step 5\n" in capsys.readouterr().out
    assert call(*train[:2], "--mode=replay", "--step=3") == 0
    assert f"step 3 of {address}, re-run from" in capsys.readouterr().out
    assert call(*train[:2], "--mode=replay", "--step=9") == 2

    before = Place(address).listing()
    assert call(*train, "--mode=check") == 1  # because of its test data, which are those of training
    assert Place(address).listing() == before


def test_what_looks_at_runs_takes_addresses(tmp_path, monkeypatch, capsys):
    address = f"file://{tmp_path}/box/runs/first"
    train = [f"--config={CONFIG}", f"--workdir={address}", *EAGER]
    assert call(*train) == 0
    capsys.readouterr()
    machine(monkeypatch, tmp_path, "third")
    assert call("--mode=report", f"--workdir={address}") == 0
    page = capsys.readouterr().out.strip()
    assert page == str(folder_of(address, "views") / "report.html")
    assert not list(folder_of(address, "views").rglob("*.bin"))
    shutil.copytree(tmp_path / "box/runs/first", tmp_path / "box/runs/second")
    assert call("--mode=list", f"--workdir=file://{tmp_path}/box/runs") == 0
    assert [line.split()[:3] for line in capsys.readouterr().out.splitlines()[1:]] == [
        ["first", "finished", "5/5"],
        ["second", "finished", "5/5"],
    ]
    runs = [address, f"file://{tmp_path}/box/runs/second"]
    assert call("--mode=compare", *runs, f"--out={tmp_path}/page.html") == 0
    assert call("--mode=serve", f"--workdir={address}", "--development") == 2
    assert str(folder_of(address, "views") / "exports") in capsys.readouterr().err
    assert call("--mode=list", f"--workdir=file://{tmp_path}/none") == 2
    assert f"error: --workdir=file://{tmp_path}/none has no files. Type another address." in capsys.readouterr().err

    weights = [f"--config={CONFIG}", f"--workdir={tmp_path}/warm", *EAGER, f"--config.init_from={address}"]
    assert call(*weights) == 0
    assert json.loads((tmp_path / "warm/config.json").read_text())["init_from"] == address
    more = ["--config.train.duration=7 steps", f"--config.resume_from={address}/checkpoints/step-00000004"]
    assert call(f"--config={CONFIG}", f"--workdir={tmp_path}/more", *EAGER, *more) == 0
    starts = json.loads((tmp_path / "more/environment.json").read_text())["starts"]
    assert [start["step"] for start in starts] == [4]
    capsys.readouterr()
    assert call(*train, "--config.schedule.learning_rate=1.0") == 2
    err = capsys.readouterr().err
    assert f"error: --workdir={address} holds a run of another config (schedule.learning_rate: 0.05 there" in err
    assert f"there, --config.resume_from={address} continues this run." in err


def test_a_run_that_is_under_way_is_listed_as_running(tmp_path, monkeypatch, capsys):
    address = f"file://{tmp_path}/box/run"
    assert call(f"--config={CONFIG}", f"--workdir={address}", *EAGER) == 0
    copy = RunCopy(address)
    copy.fetch()
    with copy.holding():
        machine(monkeypatch, tmp_path, "second")
        capsys.readouterr()
        assert call("--mode=list", f"--workdir=file://{tmp_path}/box") == 0
    assert "running (process " in capsys.readouterr().out


def test_a_stopped_run_names_the_address_in_the_command_that_goes_on(monkeypatch, capsys):

    class Asked(Interrupt):
        def __init__(self):
            super().__init__()
            self.is_requested = True

    monkeypatch.setattr(loop, "Interrupt", Asked)
    assert call(f"--config={CONFIG}", f"--workdir={ADDRESS}", *EAGER) == 0
    out = capsys.readouterr().out
    assert f"  python launch.py --config={CONFIG} --workdir={ADDRESS} {EAGER[0]} " in out and "Everything" not in out


def test_without_a_network_the_run_ends_and_the_same_command_copies_it(tmp_path, monkeypatch, capsys):
    train = [f"--config={CONFIG}", f"--workdir={ADDRESS}", *EAGER]
    monkeypatch.setattr("framework.remote.run_copy._DELAYS", (0.01,))
    with monkeypatch.context() as patch:
        patch.setattr(Place, "put", lambda *_: (_ for _ in ()).throw(Unreachable("down")))
        assert call(*train) == 1
    captured = capsys.readouterr()
    assert "finished: step 5" in captured.out and "Everything is in" not in captured.out
    said = (
        f"error: {ADDRESS} lacks the newest files of the run (down). Nothing is lost: they are in {folder_of(ADDRESS)}."
    )
    assert captured.err.endswith(f"{said} Mend that and type the same command again, which copies them.\n")
    assert "checkpoints/step-00000004/manifest.json" not in Place(ADDRESS).listing()
    assert call(*train) == 0
    assert "checkpoints/step-00000004/manifest.json" in Place(ADDRESS).listing()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            [f"--workdir={ADDRESS}", "--local_workers=2"],
            f"--workdir={ADDRESS} is an address, and --local_workers works in a folder of this machine. Type a folder,"
            " e.g. --workdir=runs/first.",
        ),
        (
            [f"--workdir={ADDRESS}", "--mode=verify_resume"],
            f"--workdir={ADDRESS} is an address, and --mode=verify_resume works in a folder of this machine. Type a"
            " folder, e.g. --workdir=runs/first.",
        ),
        (
            [f"--workdir={ADDRESS}", "--config.runtime.strategy=multi_worker"],
            f"--workdir={ADDRESS} is an address, which one process copies to, but runtime.strategy='multi_worker' is"
            " several. Type a folder that all of them see.",
        ),
        (
            ["--workdir=simplecache::memory://run"],
            "simplecache::memory://run is a chain of file systems. Type one of them, e.g. s3://bucket/run.",
        ),
        (
            [f"--workdir={ADDRESS}", "--mode=evaluate"],
            f"--workdir={ADDRESS} has no checkpoint. Train first: --mode=train.",
        ),
        (
            ["--config.init_from=memory://none"],
            "--config.init_from=memory://none has no files. Type another address.",
        ),
        (["--data_dir=memory://none"], "--data_dir=memory://none has no files. Type another address."),
    ],
)
def test_what_does_not_work_with_an_address_is_one_line(tmp_path, monkeypatch, capsys, arguments, said):
    workdir = [] if any("--workdir" in text for text in arguments) else [f"--workdir={tmp_path}/run"]
    assert call(f"--config={CONFIG}", *arguments, *workdir) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {said}"


def test_an_address_that_became_a_path_is_refused():
    with pytest.raises(UserError, match=r"^workdir='memory:/run' was an address before it became a path. Give it as a"):
        framework.build(CONFIG, (), Path("memory://run"))


def test_data_at_an_address_are_read_from_a_copy(memory):
    """The experiment reads cfg.data.dir; config.json has it as typed, and other files there make another run of it."""
    memory.pipe_file("/data/x.npy", _npy(small.examples({}).arrays["x"]))

    def make_data(cfg, split):
        assert not cfg.data.dir.startswith("memory")
        source = small.examples({})
        x = np.load(f"{cfg.data.dir}/x.npy")
        arrays = {**source.arrays, "x": x}
        return small.make_batches(small.Source(arrays, origin=cfg.data.dir), cfg, training=split == "train")

    def built():
        return small.build(ADDRESS, functions={"make_data": make_data}, **settings)

    settings = {"data.dir": "memory://data", "train.compile": "eager", "train.duration": "4 steps"}
    run = built()
    assert run.config.data.dir == "memory://data" and run.resolved.data.dir == str(folder_of("memory://data", "read"))
    framework.train(run)
    assert json.loads(memory.cat("/bucket/linear/config.json"))["data"]["dir"] == "memory://data"
    memory.pipe_file("/data/x.npy", _npy(small.examples({}).arrays["x"] + 1))
    with pytest.raises(UserError, match=r"^the examples of 'train' changed since"):
        framework.train(built())


def _npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()
