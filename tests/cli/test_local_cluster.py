"""Clusters of worker processes on this machine: the numbers of one device, and what a killed worker costs."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from framework.checkpoint.checkpoints import digest, read_arrays
from framework.run.progress import TIMES
from launch import main as launch_main

ROOT = Path(__file__).resolve().parents[2]
STEPS = 120
SETTINGS = (
    "--config=tests/spread.py",
    "--config.train.compile=graph",
    f"--config.train.duration={STEPS} steps",
    "--config.train.micro_batches=2",
    "--config.clip.name=global_norm",
    "--config.ema.decay=0.9",
    "--config.data.placement=stream",
    "--config.data.remainder=pad",
    "--config.data.batch_size=96",  # the last of an epoch: 48 examples, and 16 with 32 of padding
    "--config.checkpoint.every=20 steps",
    "--config.log.histograms_every=",
    "--config.export.examples=8",
)
LIMIT_SECONDS = 200


def launch(workdir, *arguments):
    return subprocess.Popen(
        [sys.executable, "launch.py", f"--workdir={workdir}", *SETTINGS, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
    )


def ended(process):
    output, _ = process.communicate(timeout=LIMIT_SECONDS)
    return process.returncode, output


def state(workdir):
    return read_arrays(workdir / "checkpoints" / f"step-{STEPS:08d}")


def rows(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """An uninterrupted run of two workers."""
    workdir = tmp_path_factory.mktemp("cluster") / "run"
    status, output = ended(launch(workdir, "--local_workers=2"))
    assert status == 0, output
    return workdir, output


def assert_same_run(one, two):
    """Weights, averages, slots and all rows, to rounding."""
    left, right = state(one), state(two)
    assert left.keys() == right.keys()
    for path in left:
        there, here = (np.nan_to_num(values[path].astype(np.float64), nan=-1.0) for values in (right, left))
        assert np.linalg.norm(there - here) <= 1e-12 * max(np.linalg.norm(here), 1e-3), path
    assert len(rows(one)) == len(rows(two))
    for row, other in zip(rows(one), rows(two), strict=True):
        assert {name for name, value in other.items() if value is None} == {n for n, v in row.items() if v is None}
        numbers = {name: value for name, value in row.items() if value is not None}
        assert {name: other[name] for name in numbers} == pytest.approx(numbers, rel=1e-9)
    skipped = int(left["skipped"])
    # Once in each epoch of 27 steps.
    assert skipped == int(right["skipped"]) == STEPS - int(right["updates"]) and skipped in (4, 5)


def test_two_workers_train_what_one_device_does(cluster, tmp_path):
    status, output = ended(launch(tmp_path / "run"))
    assert status == 0, output
    assert_same_run(tmp_path / "run", cluster[0])


@pytest.mark.slow
def test_two_workers_compiled_by_xla_train_what_one_device_does(tmp_path):
    for name, arguments in {"one": (), "two": ("--local_workers=2",)}.items():
        status, output = ended(launch(tmp_path / name, "--config.train.compile=xla", *arguments))
        assert status == 0, output
    assert_same_run(tmp_path / "one", tmp_path / "two")


def test_only_the_chief_writes_and_every_log_is_kept(cluster):
    workdir, output = cluster
    logs = {path.name: path.read_text() for path in (workdir / "workers").iterdir()}
    assert sorted(logs) == ["worker-0.log", "worker-1.log"]
    assert f"finished: step {STEPS}" in logs["worker-0.log"] and f"finished: step {STEPS}" not in logs["worker-1.log"]
    assert f"[worker 0] finished: step {STEPS} in {workdir}" in output
    result = json.loads((workdir / "result.json").read_text())
    assert (result["status"], result["replicas"], result["traces"]) == ("finished", 2, 1)
    assert len(json.loads((workdir / "environment.json").read_text())["starts"]) == 1
    assert all(report["passed"] for report in json.loads((workdir / "exports" / "report.json").read_text()))


def worker_of(supervisor, task):
    """The process id of a worker: of the one whose TF_CONFIG has this text."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int(re.search(r"PPid:\s+(\d+)", (path / "status").read_text())[1])
            environment = (path / "environ").read_bytes()
        except OSError:
            continue
        if parent == supervisor.pid and task.encode() in environment:
            return int(path.name)
    raise AssertionError(f"no process {task}")


def wait_for_step(workdir, step, process):
    deadline = time.monotonic() + LIMIT_SECONDS
    path = workdir / "metrics.jsonl"
    while not path.exists() or f'"step": {step}' not in path.read_text():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow  # fast: parameter servers restart, and replicas that resume have the same bits
def test_a_killed_worker_costs_a_restart_and_no_bit(cluster, tmp_path):
    workdir = tmp_path / "run"
    process = launch(workdir, "--local_workers=2", "--config.runtime.max_restarts=1")
    wait_for_step(workdir, 45, process)
    os.kill(worker_of(process, '"index": 1'), signal.SIGKILL)
    status, output = ended(process)
    assert status == 0, output
    assert "worker 1 was killed by SIGKILL: ending all workers" in output
    assert "starting all workers again (1 of 1 restarts)" in output
    assert digest(state(workdir)) == digest(state(cluster[0]))
    assert rows(workdir) == rows(cluster[0])


@pytest.mark.slow
def test_a_killed_worker_without_restarts_ends_the_run_with_its_status(tmp_path):
    workdir = tmp_path / "run"
    process = launch(workdir, "--local_workers=2")
    wait_for_step(workdir, 5, process)
    os.kill(worker_of(process, '"index": 1'), signal.SIGKILL)
    status, output = ended(process)
    assert status == 128 + signal.SIGKILL, output


@pytest.mark.slow
def test_sigterm_stops_all_workers_and_saves(cluster, tmp_path):
    workdir = tmp_path / "run"
    process = launch(workdir, "--local_workers=2")
    wait_for_step(workdir, 25, process)
    process.terminate()
    status, output = ended(process)
    assert status == 0, output
    assert "and saved; the same command goes on from there" in output
    assert f"--workdir={workdir} --local_workers=2 --config." in output
    status, output = ended(launch(workdir, "--local_workers=2"))
    assert status == 0, output
    assert digest(state(workdir)) == digest(state(cluster[0]))


def test_a_worker_that_does_not_come_is_named(tmp_path):
    environment = {
        **os.environ,
        "TF_CONFIG": json.dumps(
            {"cluster": {"worker": ["127.0.0.1:45613", "127.0.0.1:45614"]}, "task": {"type": "worker", "index": 0}}
        ),
    }
    done = subprocess.run(
        [sys.executable, "launch.py", f"--workdir={tmp_path}/run", *SETTINGS, "--config.runtime.strategy=multi_worker",
         "--config.runtime.worker_timeout_seconds=1"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "error: worker 1 (127.0.0.1:45614) of 2 did not come within 1 s. Start all of them, or wait longer:"
        " --config.runtime.worker_timeout_seconds=N."
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--config.runtime.strategy=mirrored"],
            "--local_workers=2 starts several processes, but runtime.strategy='mirrored' runs in one."
            " Leave one of them out.",
        ),
        (
            ["--config.data.batch_size=25", "--config.train.micro_batches=1"],
            "data.batch_size=25 is not divisible by 2 replicas (runtime.strategy='multi_worker')."
            " Use --config.data.batch_size=24 or 26.",
        ),
    ],
)
def test_what_workers_cannot_do_is_said_before_they_start(tmp_path, capsys, arguments, message):
    assert launch_main(["launch.py", f"--workdir={tmp_path}/run", *SETTINGS, "--local_workers=2", *arguments]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {message}"
    assert not (tmp_path / "run").exists()
