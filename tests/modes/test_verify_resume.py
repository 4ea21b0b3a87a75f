"""--mode=verify_resume: real processes, killed at random moments, end in the same bits; what does not is found out."""

import functools
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import launch
from framework.modes import verify_resume

AUGMENTED = "--config=tests/augmented.py"

# The loss of an example grows with a counter that no checkpoint holds.
FORGETFUL = """
import tensorflow as tf
from tests import augmented
from tests.augmented import get_config, make_data, make_metrics, make_model, make_schedule


def make_loss(cfg):
    counter, loss = tf.Variable(0.0, trainable=False), augmented.make_loss(cfg)
    count = tf.function(lambda: counter.assign_add(1.0), autograph=False)  # unseen by the check before training

    def forgetful(model, batch, training):
        terms, outputs = loss(model, batch, training)
        if training:
            count()
        return {"ce": terms["ce"]._replace(sum=terms["ce"].sum * (1 + counter))}, outputs

    return forgetful
"""


def verify(workdir, mode, kills, *overrides):
    arguments = [f"--workdir={workdir}", f"--config.train.compile={mode}", "--mode=verify_resume"]
    return launch.main(["launch.py", AUGMENTED, *arguments, f"--kills={kills}", *overrides])


@pytest.mark.parametrize(
    ("mode", "kills"),
    [
        ("graph", 5),
        pytest.param("xla", 5, marks=pytest.mark.slow),
        pytest.param("graph", 50, marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
        pytest.param("xla", 50, marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
    ],
)
def test_a_killed_run_ends_in_the_same_bits(tmp_path, capsys, mode, kills):
    """Dropout, augmentation, micro-batches, averaged weights, and float16 that skips steps."""
    workdir = tmp_path / "a folder"
    assert verify(workdir, mode, kills) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "checkpoint.every='1 steps' instead of '5 steps', for many saves"
    digests = [
        line.rpartition(" ")[2] for line in lines if "ended at step 60: " in line or "finished at step 60" in line
    ]
    assert len(digests) >= 2 and len(set(digests)) == 1 and re.fullmatch(r"[0-9a-f]{64}", digests[0])
    killed = [line for line in lines if line.startswith("kill ")]
    assert [line.partition(",")[0] for line in killed] == [
        f"kill {number} of {kills}" for number in range(1, kills + 1)
    ]
    moments = [re.search(r", in (.*): (goes on at step \d+|starts from scratch)$", line)[1] for line in killed]
    assert {moment: moments.count(moment) for moment in set(moments)} == {
        "start-up": kills // 5,
        "training": 2 * kills // 5,
        "a save": 2 * kills // 5,
    }
    assert any("goes on at step" in line for line in killed)
    assert lines[-1] == f"the same bits after {kills} kills"
    assert not workdir.exists()


@pytest.mark.slow
def test_a_run_that_forgets_is_found_out(tmp_path, capsys):
    """State outside of TrainState: the one kill makes the run start to count anew."""
    experiment, workdir = tmp_path / "forgetful.py", tmp_path / "run"
    experiment.write_text(FORGETFUL)
    overrides = ["--config.train.compile=graph", "--config.train.duration=40 steps", "--config.eval.every="]
    arguments = [f"--config={experiment}", f"--workdir={workdir}", "--mode=verify_resume", "--kills=1", *overrides]
    assert launch.main(["launch.py", *arguments]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    one = r"\S+ \(\d+ of \d+ elements, by \S+ at most\)"
    assert re.match(rf"NOT the same bits: \d+ of 44 variables differ, first {one}(, {one}){{4}}\. See ", last), last
    (folder,) = workdir.iterdir()
    assert last.endswith(f"{folder}.")
    assert {path.name for path in folder.iterdir()} >= {
        "uninterrupted",
        "uninterrupted.log",
        "killed-1",
        "killed-1.log",
    }


@pytest.mark.slow
def test_a_run_that_fails_by_itself(tmp_path, capsys):
    arguments = ["--config=tests/tiny.py", f"--workdir={tmp_path / 'run'}", "--mode=verify_resume"]
    assert launch.main(["launch.py", *arguments, "--config.schedule.learning_rate=1e30"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    (log,) = (tmp_path / "run").glob("*/uninterrupted.log")
    assert line.startswith("error: the run fails without a kill: error: step ") and line.endswith(f" See {log}.")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_all_that_it_started(tmp_path, number):
    """No process goes on training, and nothing stays on disk."""
    workdir = tmp_path / "run"
    command = [sys.executable, "launch.py", AUGMENTED, f"--workdir={workdir}", "--mode=verify_resume", "--kills=50"]
    # Whatever a shell starts in the background ignores SIGINT, and so does all that it starts, these tests too.
    heard = functools.partial(signal.signal, number, signal.SIG_DFL)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    deadline = time.monotonic() + 120
    while not list(workdir.glob("*/killed-1/checkpoints")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.endswith("interrupted; checkpoints, if there are any, stay\n")
    assert not workdir.exists()
    others = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.parent.exists()]
    assert not any(str(workdir).encode() in words for words in others)


def left(rows, **state):
    return verify_resume._Ended({name: np.asarray(value) for name, value in state.items()}, rows)


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (left([{"step": 1, "loss": 0.5}], step=np.int64(3), kernel=np.float32([1, 2, np.nan])), ""),
        (
            left([{"step": 1, "loss": 0.5}], step=np.int64(3), kernel=np.float32([1, 2.5, np.nan])),
            "1 of 2 variables differ, first kernel (1 of 3 elements, by 0.5 at most)",
        ),
        (
            left([{"step": 1, "loss": 0.5}], step=np.int64(2), kernel=np.float32([-0.0, 0, np.nan])),
            "2 of 2 variables differ, first step (1 of 1 elements, by 1 at most),"
            " kernel (2 of 3 elements, by 2 at most)",
        ),
        (
            left([{"step": 1, "loss": 0.25}], step=np.int64(3), kernel=np.float32([1, 2, np.nan])),
            'metrics.jsonl has {"step": 1, "loss": 0.5} uninterrupted, {"step": 1, "loss": 0.25} after kills',
        ),
        (
            left([], step=np.int64(3), kernel=np.float32([1, 2, np.nan])),
            "metrics.jsonl has 1 rows uninterrupted, 0 after kills",
        ),
    ],
)
def test_what_differs_is_named(other, expected):
    whole = left([{"step": 1, "loss": 0.5}], step=np.int64(3), kernel=np.float32([1, 2, np.nan]))
    assert verify_resume._difference(whole, other) == expected


def test_zeros_of_another_sign_are_other_bits():
    problem = verify_resume._difference(left([], kernel=np.float32([0.0])), left([], kernel=np.float32([-0.0])))
    assert problem == "1 of 1 variables differ, first kernel (1 of 1 elements, by 0 at most)"
