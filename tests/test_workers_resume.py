"""Two workers that train BatchNormalization are killed, restarted, rewound and gone on from, and lose no bit."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from framework.checkpoint.checkpoints import digest, read_arrays
from tests.cli.test_local_cluster import ROOT, ended, rows, wait_for_step, worker_of
from tests.distribute.test_lifeline import are_gone

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
STEPS = 120


def launch(workdir, *arguments):
    command = [sys.executable, "launch.py", "--config=tests/normed.py", f"--workdir={workdir}", "--local_workers=2"]
    return subprocess.Popen(
        [*command, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
    )


def state(workdir, step=STEPS):
    return read_arrays(workdir / "checkpoints" / f"step-{step:08d}")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run."""
    workdir = tmp_path_factory.mktemp("workers") / "run"
    status, output = ended(launch(workdir))
    assert status == 0, output
    return workdir


def assert_same(workdir, whole):
    assert digest(state(workdir)) == digest(state(whole))
    assert rows(workdir) == rows(whole)


def starts(workdir):
    return [start["step"] for start in json.loads((workdir / "environment.json").read_text())["starts"]]


def test_a_killed_supervisor_takes_its_workers_along_and_the_same_command_goes_on(whole, tmp_path):
    workdir = tmp_path / "run"
    process = launch(workdir)
    wait_for_step(workdir, 25, process)
    workers = [worker_of(process, f'"index": {index}') for index in (0, 1)]
    process.kill()
    process.wait()
    again = launch(workdir)  # at once
    assert are_gone(workers, seconds=5)
    process.stdout.close()
    status, output = ended(again)
    assert status == 0, output
    assert_same(workdir, whole)
    assert len(starts(workdir)) == 2 and 20 <= starts(workdir)[1] < STEPS


def test_a_killed_worker_restarts_all(whole, tmp_path):
    workdir = tmp_path / "run"
    process = launch(workdir, "--config.runtime.max_restarts=1")
    wait_for_step(workdir, 45, process)
    os.kill(worker_of(process, '"index": 1'), signal.SIGKILL)
    status, output = ended(process)
    assert status == 0, output
    assert "starting all workers again (1 of 1 restarts)" in output
    assert_same(workdir, whole)


def test_resume_from_goes_on_with_the_same_bits(whole, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(whole, source)
    for step in (110, 120):
        shutil.rmtree(source / "checkpoints" / f"step-{step:08d}")
    status, output = ended(launch(tmp_path / "run", f"--config.resume_from={source}"))
    assert status == 0, output
    assert digest(state(tmp_path / "run")) == digest(state(whole))
    assert rows(tmp_path / "run") == [row for row in rows(whole) if row["step"] > 100]


def test_init_from_takes_moving_averages(whole, tmp_path):
    arguments = ("--config.train.duration=1 step", "--config.schedule.learning_rate=0.0")
    status, output = ended(launch(tmp_path / "run", f"--config.init_from={whole}", *arguments))
    assert status == 0, output
    source, found = state(whole), state(tmp_path / "run", 1)
    weights = [path for path in source if path.startswith("model/") and "moving" not in path]
    assert len(weights) == 6 and all(found[path].tobytes() == source[path].tobytes() for path in weights)
    # One step moves them by a hundredth of the way to the statistics of a batch: of what was there, 0.99 are left.
    for name in ("moving_mean", "moving_variance"):
        moved = (found[f"model/norm/{name}"] - 0.99 * source[f"model/norm/{name}"]) / 0.01
        assert np.all(moved >= 0) and np.all(np.abs(source[f"model/norm/{name}"]) > 0.01)


def test_rewind_goes_back_on_all_workers_and_ends_as_one_that_was_told_to_leave_the_step_out(tmp_path):
    """Once in each epoch of 10 steps: by skip at once, by rewind after going back to the checkpoint before."""
    digests = {}
    for policy in ("rewind", "skip"):
        workdir = tmp_path / policy
        arguments = (f"--config.train.on_nonfinite={policy}", "--config.model.bad_step=44")
        status, output = ended(launch(workdir, *arguments, "--config.train.duration=50 steps"))
        assert status == 0, output
        arrays = state(workdir, 50)
        assert int(arrays["skipped"]) == 5 and int(arrays["updates"]) == 45
        digests[policy] = digest({path: array for path, array in arrays.items() if path != "skip_list"})
    assert digests["rewind"] == digests["skip"]


def test_a_step_that_is_not_finite_stops_all_workers_with_one_line(tmp_path):
    status, output = ended(launch(tmp_path / "run", "--config.model.bad_step=44"))
    assert status == 1, output
    assert re.search(r"error: step \d+ cannot be taken: 'x' of the batch is not finite", output), output
    assert "Traceback" not in output
    (folder,) = (tmp_path / "run" / "failure").iterdir()
    assert {path.name for path in folder.iterdir()} == {"arrays.bin", "batch.npz", "failure.json", "manifest.json"}
