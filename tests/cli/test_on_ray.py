"""framework/cli/on_ray.py: two workers on a Ray cluster of this machine, one of which is killed."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from framework.checkpoint import other_runs, read_arrays
from framework.cli import on_ray

ROOT = Path(__file__).parents[2]
LIMIT_SECONDS = 900
END = 120
EXPERIMENT = ["--config=tests/tiny.py", "--config.train.compile=graph", "--config.checkpoint.every=5 steps"]
EXPERIMENT += [f"--config.train.duration={END} steps", "--config.runtime.worker_timeout_seconds=600"]


def started(log, *arguments):
    with open(log, "w") as file:
        return subprocess.Popen([sys.executable, *arguments], cwd=ROOT, stdout=file, stderr=file)


def state(workdir):
    return {path: value.tobytes() for path, value in read_arrays(other_runs.find("resume_from", str(workdir))).items()}


def processes(workdir):
    """{index of a worker: its process of launch.py}."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command, environment = (path / "cmdline").read_bytes(), (path / "environ").read_bytes()
        except OSError:
            continue
        if b"launch.py\0" in command and f"--workdir={workdir}\0".encode() in command:
            (config,) = [text for text in environment.split(b"\0") if text.startswith(b"TF_CONFIG=")]
            found[json.loads(config.partition(b"=")[2])["task"]["index"]] = int(path.name)
    return found


@pytest.mark.slow
@pytest.mark.timeout(2 * LIMIT_SECONDS)
def test_a_killed_worker_costs_a_restart_and_no_bit(tmp_path):
    if importlib.util.find_spec("ray") is None:  # its import changes the environment
        pytest.skip("needs the extra ray")
    alone, workdir, log = tmp_path / "alone", tmp_path / "run", tmp_path / "driver.log"
    reference = started(tmp_path / "alone.log", "launch.py", *EXPERIMENT, f"--workdir={alone}", "--local_workers=2")
    assert reference.wait(LIMIT_SECONDS) == 0
    driver = started(log, "-m", "framework.cli.on_ray", "--workers=2", *EXPERIMENT, f"--workdir={workdir}")
    deadline = time.monotonic() + LIMIT_SECONDS
    while not list(workdir.glob("checkpoints/step-*/manifest.json")):
        assert driver.poll() is None and time.monotonic() < deadline, log.read_text()[-5000:]
        time.sleep(0.02)
    before = processes(workdir)
    os.kill(before[1], signal.SIGKILL)
    assert driver.wait(LIMIT_SECONDS) == 0, log.read_text()[-5000:]
    result = json.loads((workdir / "result.json").read_text())
    assert (result["status"], result["step"], result["replicas"]) == ("finished", END, 2)
    starts = json.loads((workdir / "environment.json").read_text())["starts"]
    assert len(starts) == 2 and 0 < starts[1]["step"] < END
    assert state(workdir) == state(alone)
    assert not processes(workdir)


def test_bad_input_ends_before_ray_is_looked_for(capsys, monkeypatch):
    monkeypatch.setattr(on_ray, "_fit", lambda own, launched: pytest.fail("Ray was started"))
    assert on_ray.main(["--workers=2", "--config=tests/tiny.py"]) == 2
    assert capsys.readouterr().err == (
        "error: --workdir is missing. Type a folder that all workers see, e.g. --workdir=/shared/mnist.\n"
    )
    assert on_ray.main(["--workers=2", "--config=tests/tiny.py", "--workdir=r", "--steep=3"]) == 2
    assert "--steep" in capsys.readouterr().err


def test_without_ray_one_line_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert on_ray.main(["--workers=2", "--config=tests/tiny.py", "--workdir=r"]) == 2
    error = capsys.readouterr().err
    assert (
        error.startswith("error: ray is not installed. Type python -m pip install ray[train]==")
        and error.count("\n") == 1
    )


def test_workers_get_what_was_typed(monkeypatch):
    seen = []
    monkeypatch.setattr(
        on_ray, "_fit", lambda own, launched: seen.append((own.workers, own.restarts, own.gpus, launched))
    )
    typed = ["--config=tests/tiny.py", "--workdir=r", "--seed=3"]
    assert on_ray.main(["--workers=4", "--gpus", *typed]) == 0
    assert seen == [(4, 3, True, [*typed, "--config.runtime.strategy=multi_worker"])]
