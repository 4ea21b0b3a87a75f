"""--mode=verify_resume: real processes, killed at random moments, end in the same bits; what does not is found out."""

import functools
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict

import launch
from framework.checkpoint.storage import write_arrays
from framework.config import RunError
from framework.modes import outcome, verify_resume, watched
from tests.distribute.test_lifeline import are_gone

AUGMENTED = "--config=tests/augmented.py"

# The loss of an example grows with a counter of Python, which neither a check before training nor a checkpoint sees.
FORGETFUL = """
import numpy as np
import tensorflow as tf
from tests import augmented
from tests.augmented import get_config, make_data, make_metrics, make_model, make_schedule


def make_loss(cfg):
    calls, loss = [], augmented.make_loss(cfg)

    def count():
        calls.append(1)
        return np.float32(len(calls))

    def forgetful(model, batch, training):
        terms, outputs = loss(model, batch, training)
        if training:
            counter = tf.ensure_shape(tf.numpy_function(count, [], tf.float32), [])
            return {"ce": terms["ce"]._replace(sum=terms["ce"].sum * (1 + counter))}, outputs
        return terms, outputs

    return forgetful
"""


def verify(workdir, mode, kills, *overrides):
    arguments = [f"--workdir={workdir}", f"--config.train.compile={mode}", "--mode=verify_resume"]
    return launch.main(["launch.py", AUGMENTED, *arguments, f"--kills={kills}", *overrides])


@pytest.mark.parametrize(
    ("mode", "kills"),
    [
        pytest.param("graph", 3, marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
        pytest.param("xla", 5, marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
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
        "start-up": -(-kills // 5),
        "training": round(2 * kills / 5),
        "a save": round(2 * kills / 5),
    }
    assert all("goes on at step" in line for line in killed)
    resumes, steps = re.fullmatch(r"(\d+) resumes at steps \[(.*)\] of 60, and one by resume_from", lines[-2]).groups()
    steps = [int(step) for step in steps.split(", ")]
    assert len(steps) == int(resumes) >= kills and all(0 < step < 60 for step in steps)
    assert sum(line.startswith("resume_from at step ") for line in lines) == 1
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


# The transform counts how often it was called, in Python: a start forgets it.
FORGETFUL_DATA = """
import numpy as np
import tensorflow as tf
from framework.data.batches import make_batches
from framework.data.sources import Source
from tests.normed import get_config, make_loss, make_model, make_schedule

calls = []


def make_data(cfg, split):
    rng = np.random.default_rng(3)
    x, label = rng.normal(size=(160, 6)).astype(np.float32), rng.integers(0, 3, 160).astype(np.int32)

    def count(x):
        calls.append(1)
        return x * np.float32(1 + len(calls) / 100)

    def transform(batch):
        counted = tf.numpy_function(count, [batch["x"]], tf.float32)
        return {**batch, "x": tf.ensure_shape(counted, batch["x"].shape)}

    training = split == "train"
    source = Source({"x": x, "label": label}, origin="points")
    return make_batches(source, cfg, training=training, transform=transform if training else None)
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_pipeline_that_forgets_is_found_out(tmp_path, capsys):
    experiment, workdir = tmp_path / "forgetful.py", tmp_path / "run"
    experiment.write_text(FORGETFUL_DATA)
    arguments = [f"--config={experiment}", f"--workdir={workdir}", "--mode=verify_resume", "--kills=1"]
    assert launch.main(["launch.py", *arguments, "--config.data.placement=stream"]) == 1
    assert re.match(r"NOT the same bits: \d+ of \d+ variables differ, first ", capsys.readouterr().out.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("config", "override"),
    [
        ("tests/normed.py", "--config.data.placement=stream"),
        ("tests/piped.py", "--config.data.prefetch_batches=4"),
        ("tests/research/dqn.py", "--config.train.duration=200 steps"),  # batches that have a state
    ],
)
def test_data_that_are_streamed_or_have_a_state_are_covered(tmp_path, capsys, config, override):
    arguments = [f"--config={config}", f"--workdir={tmp_path / 'run'}", "--mode=verify_resume", "--kills=2"]
    assert launch.main(["launch.py", *arguments, "--config.train.compile=graph", override]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.match(r"[2-9] resumes at steps \[", lines[-2]) and lines[-1] == "the same bits after 2 kills"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_experiment_that_trains_otherwise_by_resume_from_is_found_out(tmp_path, capsys):
    experiment = tmp_path / "otherwise.py"
    experiment.write_text(
        "from tests import normed\n"
        "from tests.normed import get_config, make_data, make_model, make_schedule\n\n\n"
        "def make_loss(cfg):\n"
        "    loss, factor = normed.make_loss(cfg), 2 if cfg.resume_from else 1\n\n"
        "    def scaled(model, batch, training):\n"
        "        terms, outputs = loss(model, batch, training)\n"
        "        return {'ce': terms['ce']._replace(sum=terms['ce'].sum * factor)}, outputs\n\n"
        "    return scaled\n"
    )
    arguments = [f"--config={experiment}", f"--workdir={tmp_path / 'run'}", "--mode=verify_resume", "--kills=1"]
    assert launch.main(["launch.py", *arguments]) == 1
    line = capsys.readouterr().out.splitlines()[-1]
    assert re.match(r"NOT the same bits: by resume_from at step \d+: \d+ of \d+ variables differ, first ", line), line


@pytest.mark.slow
def test_a_run_that_fails_by_itself(tmp_path, capsys):
    arguments = ["--config=tests/tiny.py", f"--workdir={tmp_path / 'run'}", "--mode=verify_resume"]
    assert launch.main(["launch.py", *arguments, "--config.schedule.learning_rate=1e30"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    (log,) = (tmp_path / "run").glob("*/uninterrupted.log")
    assert line.startswith("error: the run fails without a kill: error: step ") and line.endswith(f" See {log}.")


@pytest.mark.slow
def test_killed_itself_it_takes_along_what_it_started(tmp_path):
    workdir = tmp_path / "run"
    command = [sys.executable, "launch.py", AUGMENTED, f"--workdir={workdir}", "--mode=verify_resume"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(workdir.glob("*/uninterrupted/checkpoints")) and time.monotonic() < deadline:
        time.sleep(0.05)
    trains = [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/cmdline") if is_of(path, workdir)]
    assert len(trains) == 2  # itself, and the run
    process.kill()
    process.wait()
    assert are_gone(trains, seconds=5)


def is_of(cmdline, workdir):
    try:
        return str(workdir).encode() in cmdline.read_bytes()
    except OSError:
        return False


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
    return outcome.Outcome({name: np.asarray(value) for name, value in state.items()}, rows)


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
    assert outcome.difference(whole, other) == expected


def test_a_hook_that_differs_is_named():
    whole, ended = (outcome.Outcome({}, [], hooks={"count": {"seen": seen}, "same": 1}) for seen in (4, 3))
    assert outcome.difference(whole, whole) == ""
    expected = "hook 'count' has the state {'seen': 4} uninterrupted, {'seen': 3} after kills"
    assert outcome.difference(whole, ended) == expected
    assert outcome.difference(whole, outcome.Outcome({}, [])) == expected.replace("{'seen': 3}", "None")


def test_zeros_of_another_sign_are_other_bits():
    problem = outcome.difference(left([], kernel=np.float32([0.0])), left([], kernel=np.float32([-0.0])))
    assert problem == "1 of 1 variables differ, first kernel (1 of 1 elements, by 0 at most)"


# A run of 20 steps without TensorFlow. It copies its checkpoints from a stock, one a step.
IMITATION = """
import json, os, pathlib, shutil, sys, time
stock, faults, every = pathlib.Path(sys.argv[1]), sys.argv[2].split(","), int(sys.argv[3])
given = dict(argument.lstrip("-").split("=", 1) for argument in sys.argv[4:])
workdir = pathlib.Path(given["workdir"])
if (workdir / "result.json").exists():
    sys.exit(0)
(workdir / "checkpoints").mkdir(parents=True, exist_ok=True)
source = pathlib.Path(given.get("config.resume_from", workdir)) / "checkpoints"
saved = sorted(int(name[5:]) for folder in (workdir / "checkpoints", source)
               for name in os.listdir(folder) if name.startswith("step-"))
start = saved[-1] if saved and "scratch" not in faults else 0
header, metrics = workdir / "environment.json", workdir / "metrics.jsonl"
starts = json.loads(header.read_text())["starts"] if header.exists() else []
header.write_text(json.dumps({"starts": [*starts, {"step": start}]}))
is_other = start > 0 and ("resume_from" in faults) <= ("config.resume_from" in given)
lines = metrics.read_text().splitlines() if start and metrics.exists() else []
rows = [line for line in lines if json.loads(line)["step"] <= start]
metrics.write_text("".join(f"{row}\\n" for row in rows))
for step in range(start + 1, 21):
    time.sleep(0.02)
    with metrics.open("a") as file:
        row = {"step": step, "loss": 0.5 + (is_other and "row" in faults), "examples_per_second": time.time()}
        file.write(json.dumps(row) + "\\n")
    name = f"step-{step:08d}"
    if (step % every == 0 or step == 20) and not (workdir / "checkpoints" / name).exists():
        kind = "other" if is_other and "state" in faults else "same"
        aside = workdir / "checkpoints" / f".{name}.tmp"
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(stock / kind / name, aside)
        aside.rename(workdir / "checkpoints" / name)
result = {"status": "finished", "step": 20, "best": {"test/loss": is_other and "result" in faults}}
(workdir / "result.json").write_text(json.dumps({**result, "wall_seconds": 0.5, "time_to_first_step_seconds": 0.1}))
"""


@pytest.fixture(scope="module")
def imitation(tmp_path_factory):
    """The command of a run that does not keep `faults`, and a folder for its runs."""
    stock = tmp_path_factory.mktemp("imitation")
    (stock / "run.py").write_text(IMITATION)
    for kind, slope in {"same": 1.0, "other": 2.0}.items():
        for step in range(1, 21):
            folder = stock / kind / f"step-{step:08d}"
            folder.mkdir(parents=True)
            state = {"step": np.int64(step), "kernel": np.full(3, slope * step, np.float32)}
            write_arrays(folder, {path: np.asarray(value) for path, value in state.items()}, {"step": step, "note": {}})

    def proof(folder, *faults, every=1, kills=3):
        folder.mkdir()
        run = SimpleNamespace(config=ConfigDict({"seed": 0, "init_from": ""}))
        command = [sys.executable, str(stock / "run.py"), str(stock), ",".join(faults), str(every)]
        return verify_resume._Proof(run, command, folder, kills)

    return proof


def test_a_proof_tells_where_starts_resumed(imitation, tmp_path, capsys):
    imitation(tmp_path / "proof").prove()
    lines = capsys.readouterr().out.splitlines()
    digests = {line.rpartition(": ")[2] for line in lines if " ended at step 20: " in line or "finished at" in line}
    assert len(digests) == 1
    steps = [int(step) for step in re.search(r"resumes at steps \[(.*)\] of 20", lines[-1])[1].split(", ")]
    runs = [sorted(watched.start_steps(folder)) for folder in sorted((tmp_path / "proof").glob("killed-[0-9]"))]
    assert len(steps) >= 3 and steps == [step for starts in runs for step in sorted({*starts} - {0, 20})]
    killed = [line for line in lines if line.startswith("kill ")]
    assert [line[:11] for line in killed] == ["kill 1 of 3", "kill 2 of 3", "kill 3 of 3"]
    assert all(0 < int(line.rpartition(" ")[2]) < 20 for line in killed)


@pytest.mark.parametrize(
    ("faults", "problem"),
    [
        (("state",), "1 of 2 variables differ, first kernel (3 of 3 elements, by 20 at most)"),
        (("row",), 'metrics.jsonl has {"step": '),
        (("result",), "result.json has best={'test/loss': False} uninterrupted, {'test/loss': True} after kills"),
        (("state", "resume_from"), r"by resume_from at step \d+: 1 of 2 variables differ"),
    ],
)
def test_a_resume_that_changes_something_is_found_out(imitation, tmp_path, faults, problem):
    with pytest.raises(outcome.DifferentError) as caught:
        imitation(tmp_path / "proof", *faults, kills=1).prove()
    assert re.match(problem if "resume_from" in faults else re.escape(problem), str(caught.value))


@pytest.mark.parametrize(("faults", "every"), [(("scratch",), 1), ((), 20)])
def test_where_no_start_resumes_inside_nothing_is_proven(imitation, tmp_path, faults, every, monkeypatch):
    """Always from scratch, or nothing saved before the end: the same bits, and yet no proof."""
    monkeypatch.setattr(verify_resume, "_FRUITLESS", 2)
    with pytest.raises(RunError) as caught:
        imitation(tmp_path / "proof", *faults, every=every, kills=2).prove()
    assert str(caught.value) == (
        "NOT proven: 0 of 2 starts resumed inside the run, at steps [] of 20: 2 runs in a row ended before they"
        " could be killed after their first checkpoint; training takes 0.4 s. Train longer: type e.g."
        " --config.train.duration='200 steps'."
    )


@pytest.mark.parametrize("every", ["", "60 steps", "100%"])
def test_a_run_without_a_checkpoint_inside_is_not_begun(tmp_path, capsys, every):
    workdir = tmp_path / "run"
    assert verify(workdir, "graph", 5, f"--config.checkpoint.every={every}", "--config.checkpoint.best_metric=") == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert line == (
        "error: NOT proven: no start can resume inside the run: it has 60 steps, and checkpoint.every is"
        f" {'60 steps' if every else 'never'}. Leave checkpoint.every out, or train longer: type e.g."
        " --config.train.duration='100 steps'."
    )
    assert not workdir.exists()
