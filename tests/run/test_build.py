"""Putting a run together: what it refuses, and what it leaves alone."""

import dataclasses
import hashlib
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tf_keras as keras

from framework import config, metrics
from framework.config import UserError
from framework.config.overrides import override
from framework.experiment import load
from framework.folder import check_workdir
from framework.run import build, environment, evaluation, exporting, loop, request
from tests import small

TINY = "tests/tiny.py"
GRAPH = {"train.compile": "graph"}


def refusal(call):
    with pytest.raises(UserError) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "checkpoint.best_metric",
            "test/acuracy",
            "checkpoint.best_metric='test/acuracy': there is no metric 'acuracy'. Did you mean 'accuracy'?"
            " Metrics: loss, accuracy. Type e.g. --config.checkpoint.best_metric=test/loss.",
        ),
        (
            "early_stopping.metric",
            "test/f1",
            "early_stopping.metric='test/f1': there is no metric 'f1'."
            " Metrics: loss, accuracy. Type e.g. --config.early_stopping.metric=test/loss.",
        ),
    ],
)
def test_a_metric_that_does_not_exist_is_refused_before_training(tmp_path, key, value, message):
    assert refusal(lambda: build.build(TINY, {**GRAPH, key: value}, tmp_path / "run")) == message


def test_what_is_wrong_with_the_data_of_an_evaluation_names_the_split(tmp_path):
    (tmp_path / "few.py").write_text(
        "from framework import data\nfrom tests import tiny\n"
        "from tests.tiny import get_config, make_loss, make_metrics, make_model, make_schedule\n\n\n"
        "def make_data(cfg, split):\n    if split == 'test':\n        data.Buckets.by_tokens({'text': [9]}, 8)\n"
        "    return tiny.make_data(cfg, split)\n"
    )
    told = refusal(lambda: build.build(str(tmp_path / "few.py"), GRAPH, tmp_path / "run"))
    assert told.startswith("split 'test': Buckets.by_tokens: tokens=8 holds 0 examples of length 9, that of example 0,")


def test_a_loss_that_changes_the_working_folder_is_refused(tmp_path, monkeypatch):
    """Functions and hooks are refused by name; what is traced on the way is refused once the run is built."""
    monkeypatch.chdir(tmp_path)

    def make_loss(cfg):
        loss = small.make_loss(cfg)

        def leaving(*args):
            os.chdir("/")
            return loss(*args)

        return leaving

    assert refusal(lambda: small.build(functions={"make_loss": make_loss})).startswith(
        f"the loss, a metric or other code of the experiment changed the working folder from {tmp_path} to /,"
    )
    assert Path.cwd() == tmp_path


@pytest.mark.parametrize("name", ["loss", "learning_rate", "gradient_norm", "step", "examples_per_second", "data_wait"])
def test_a_metric_must_not_hide_a_number_of_the_step(name):
    loaded = load.load(TINY)
    functions = {**loaded.functions, "make_metrics": lambda cfg: {name: metrics.Accuracy()}}
    loaded = dataclasses.replace(loaded, functions=functions)
    final = config.finalize(override(loaded.get_config(), GRAPH))
    assert refusal(lambda: build.build_run(loaded, final, None, time.monotonic())) == (
        f"make_metrics names a metric '{name}', which every step reports already. Give it another name."
    )


@pytest.mark.parametrize("from_workdir", [False, True])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "cannot be read: Expecting value: line 1 column 1 (char 0)."),
        ('{"seed": ', "cannot be read: Expecting value: line 1 column 10 (char 9)."),
        ("[]", "is not the config of a run."),
    ],
)
def test_a_damaged_config_json_is_named(tmp_path, content, message, from_workdir):
    (tmp_path / "config.json").write_text(content)
    assert refusal(lambda: build.build(TINY, GRAPH, tmp_path, from_workdir)) == (
        f"{tmp_path / 'config.json'} {message} Put it back, or use another --workdir."
    )


def test_a_name_that_is_too_long_for_a_folder(tmp_path):
    long = tmp_path / ("x" * 300)
    assert refusal(lambda: check_workdir(long)) == (
        f"--workdir={long} cannot be written: File name too long. Type a folder of yours, e.g. --workdir=runs/first."
    )


def test_building_leaves_nothing_on_disk(tmp_path):
    build.build(TINY, GRAPH, tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_the_same_seed_gives_the_same_weights_and_another_one_others(tmp_path):
    first, again, other = (build.build(TINY, {**GRAPH, "seed": seed}, tmp_path / "run") for seed in (5, 5, 6))
    kernels = [built.model.layers[1].kernel.numpy() for built in (first, again, other)]
    assert kernels[0].tobytes() == kernels[1].tobytes()
    assert (kernels[0] != kernels[2]).any()
    assert first.data.at(0)["label"].numpy().tolist() != other.data.at(0)["label"].numpy().tolist()


def test_runs_built_in_the_same_second_have_folders_of_their_own():
    assert len({request.fresh_workdir("experiments/x.py:small") for _ in range(20)}) == 20


def test_a_folder_that_became_another_run_since_build_is_refused(tmp_path):
    """Two runs built for one empty folder: the second to train must not go on from the first one's checkpoint."""
    short = {**GRAPH, "train.duration": "2 steps"}
    first, second = (build.build(TINY, {**short, "seed": seed}, tmp_path / "run") for seed in (1, 2))
    loop.train(first)
    assert refusal(lambda: loop.train(second)) == (
        f"--workdir={tmp_path / 'run'} holds a run of another config (seed: 1 there, 2 now). Use another folder; there,"
        f" --config.resume_from={tmp_path / 'run'} continues this run."
    )


def test_a_run_goes_on_with_the_data_that_it_was_begun_with_alone(tmp_path):
    file = tmp_path / "drawn.py"
    file.write_text(
        """
import dataclasses
import os
import numpy as np
from framework.data.batches import make_batches
from tests import tiny
from tests.tiny import get_config, make_loss, make_metrics, make_model, make_schedule


def make_data(cfg, split):
    source = tiny.digits(split)
    image = source.arrays["image"].copy()
    if split == os.environ.get("DRAWN"):
        image[7, 0, 0] += 1  # not one of the examples that `sample` hashes
    source = dataclasses.replace(source, arrays={**source.arrays, "image": image})
    return make_batches(source, cfg, training=split == "train", transform=tiny.to_float(cfg))
"""
    )
    short, workdir = {**GRAPH, "train.duration": "2 steps", "checkpoint.every": "1 step"}, tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:  # a start with other data that ended before it saved anything
        patch.setenv("DRAWN", "train")
        started = build.build(str(file), short, workdir)
        started.open()
        started.write_header([])
    loop.train(build.build(str(file), short, workdir))
    assert loop.train(build.build(str(file), short, workdir))["status"] == "finished"
    for split in ("train", "test"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DRAWN", split)
            assert refusal(lambda: loop.train(build.build(str(file), short, workdir))) == (
                f"the examples of '{split}' changed since {workdir} was begun, so the run cannot resume exactly. Does"
                " make_data draw them without a seed? Use another folder; there,"
                f" --config.resume_from={workdir} continues this run."
            )
    # What environment.json says of the data is for readers; what decides stands, hashed, in the checkpoint.
    header = json.loads((workdir / "environment.json").read_text())
    header["starts"][-1]["data"]["train"] = "0" * 64
    (workdir / "environment.json").write_text(json.dumps(header))
    assert loop.train(build.build(str(file), short, workdir))["status"] == "finished"


def test_a_trained_run_is_restored_when_looked_at(tmp_path):
    trained = build.build(TINY, {**GRAPH, "train.duration": "20 steps"}, tmp_path / "run")
    result = loop.train(trained)
    assert evaluation.evaluate(build.build(TINY, {}, tmp_path / "run", from_workdir=True)) == result["final"]


def test_an_untrained_model_is_not_exported_from_a_trained_folder(tmp_path):
    settings = {**GRAPH, "train.duration": "2 steps"}
    loop.train(build.build(TINY, settings, tmp_path / "run"))
    again = build.build(TINY, settings, tmp_path / "run")
    assert refusal(lambda: exporting.export_run(again)) == (
        f"the model is untrained, but {tmp_path / 'run'} has a checkpoint. Call run.restore() first."
    )
    assert again.restore() == 2
    assert all(report.passed for report in exporting.export_run(again))


def test_a_folder_in_use_by_another_process_is_refused(tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    hold = (
        "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); f.write('123 on host\\n');"
        " f.flush(); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(workdir / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        built = build.build(TINY, {**GRAPH, "train.duration": "2 steps"}, workdir)
        assert refusal(lambda: loop.train(built)) == (
            f"--workdir={workdir} is in use by process 123 on host. Wait for it, stop it, or use another folder."
        )
        holder.stdin.close()
    assert loop.train(built)["status"] == "finished"


def test_the_lock_of_a_process_that_died_is_taken_over(tmp_path):
    """Killed, it had no time to clean up: its number stays in the file, and is nobody's."""
    workdir = tmp_path / "run"
    hold = (
        "import os, sys, fcntl; f = open(sys.argv[1], 'a+'); fcntl.flock(f, fcntl.LOCK_EX);"
        " f.write(f'{os.getpid()} on host\\n'); f.flush(); os.kill(os.getpid(), 9)"
    )
    built = build.build(TINY, {}, workdir)
    workdir.mkdir()
    done = subprocess.run([sys.executable, "-c", hold, str(workdir / ".lock")])
    assert done.returncode == -9 and (workdir / ".lock").read_text().endswith(" on host\n")
    with built.lock():
        assert (workdir / ".lock").read_text() == f"{os.getpid()} on {os.uname().nodename}\n"


def test_how_checkpoints_are_kept_may_change(tmp_path):
    """A run that a full disk stopped goes on with fewer of them."""
    first = build.build(TINY, {}, tmp_path / "run")
    first.open()
    first.write_header(())
    settings = {"keep": 1, "keep_hours": 2.0, "asynchronous": False, "on_error": "continue"}
    again = build.build(TINY, {f"checkpoint.{name}": value for name, value in settings.items()}, tmp_path / "run")
    assert again.open() == 0


def test_a_changed_experiment_file_is_kept_beside_the_first_one(tmp_path):
    source = tmp_path / "tiny_copy.py"
    source.write_bytes(Path(TINY).read_bytes())
    first = build.build(str(source), {**GRAPH, "train.duration": "2 steps"}, tmp_path / "run")
    first.open()
    first.train_block(1)
    first.checkpoints.save(first.state, {})
    first.checkpoints.close()
    first.write_header([])
    original = source.read_text()
    source.write_text(original + "\n# changed\n")
    second = build.build(str(source), {**GRAPH, "train.duration": "2 steps"}, tmp_path / "run")
    loop.train(second)
    assert (tmp_path / "run" / "tiny_copy.py").read_text() == original
    assert (tmp_path / "run" / "tiny_copy.step-1.py").read_text() == original + "\n# changed\n"


def test_checkpoints_know_the_code_that_they_were_trained_with(tmp_path, caplog):
    """A flipped byte of a copy is found; with the experiment itself unchanged the run goes on."""
    (tmp_path / "mine").mkdir()
    source, workdir = tmp_path / "mine" / "linear_copy.py", tmp_path / "run"
    source.write_text(f"import beside\n{Path('tests/linear.py').read_text()}")
    source.with_name("beside.py").write_text("VALUE = 1\n")
    settings = {"train.duration": "2 steps"}
    trained = build.build(str(source), settings, workdir)
    loop.train(trained)
    assert trained.checkpoints.facts()["code"] == {
        name: hashlib.sha256(file.read_bytes()).hexdigest()
        for name, file in {
            "linear_copy.py": source,
            "code/beside.py": source.with_name("beside.py"),
        }.items()
    }
    copy = workdir / "code" / "beside.py"
    assert copy.read_text() == "VALUE = 1\n"
    copy.write_text("VALUE = 3\n")
    assert build.build(str(source), (), workdir, from_workdir=True).state.step == 2
    assert caplog.messages[-1] == f"{copy} was changed or damaged; the experiment itself is what was trained with"
    source.with_name("beside.py").write_text("VALUE = 2\n")
    expected = f"{copy} is not the code that the checkpoint was trained with: their SHA-256 differ."
    assert refusal(lambda: build.build(str(source), (), workdir, from_workdir=True)).startswith(expected)
    again = build.build(str(source), settings, workdir)
    assert refusal(again.open).startswith(expected)
    copy.write_text("VALUE = 1\n")
    assert again.open() == 2
    assert f"{source.with_name('beside.py')} has changed since {workdir} was started" in caplog.messages


@pytest.mark.parametrize(
    ("key", "size", "needed"),
    # A row: 784 floats, a label, a weight. The largest tensor: the pixels. 16 bytes a place, of a block: 8 steps.
    [("data", 2**31 - 1, 784 * 4 + 8 + 784 * 4 + 16 * 8), ("eval", 2**31 - 1, 784 * 4 + 8 + 16)],
)
def test_a_batch_that_no_memory_holds(key, size, needed, monkeypatch):
    monkeypatch.setattr("framework.step.size.host_memory", lambda: 10 * 2**30)
    assert refusal(lambda: build.build(TINY, {**GRAPH, f"{key}.batch_size": size})) == (
        f"{key}.batch_size={size} needs at least {needed * size / 2**30:,.1f} GiB, and this machine has 10.0. Use a"
        f" smaller --config.{key}.batch_size."
    )


def test_the_header_has_the_commit_of_the_experiment_and_ours(tmp_path):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=me", "-c", "user.email=me@here"]
    for arguments in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run([*git, *arguments], check=True)
    source = tmp_path / "tiny_copy.py"
    source.write_bytes(Path(TINY).read_bytes())
    built = build.build(str(source), GRAPH, tmp_path / "run")
    built.open()
    built.write_header([])
    start = json.loads((tmp_path / "run" / "environment.json").read_text())["starts"][-1]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert start["experiment_git"] == {"commit": commit, "dirty": True}
    assert start["git"] == environment.git_commit()


def test_an_optimizer_that_does_not_use_the_schedule_is_refused():
    loaded = load.load(TINY)
    own = {"make_optimizer": lambda cfg, learning_rate: keras.optimizers.SGD(0.1, jit_compile=False)}
    loaded = dataclasses.replace(loaded, functions={**loaded.functions, **own})
    final = config.finalize(override(loaded.get_config(), GRAPH))
    assert refusal(lambda: build.build_run(loaded, final, None, time.monotonic())) == (
        "make_optimizer returned an optimizer with a learning rate of its own, so the schedule would be logged and not"
        " used. Pass its argument on: learning_rate=learning_rate."
    )


def test_the_metric_says_which_of_its_values_is_best(tmp_path):
    built = build.build(TINY, {**GRAPH, "checkpoint.best_metric": "test/accuracy"}, tmp_path / "run")
    assert built.modes == {"test/loss": "min", "test/loss/cross_entropy": "min", "test/accuracy": "max"}
    assert built.facts()["goals"] == {"checkpoint": ["test/accuracy", "max"], "early_stopping": ["", ""]}


def test_without_make_schedule_the_config_decides(tmp_path):
    (tmp_path / "plain.py").write_text("from tests.linear import get_config, make_data, make_loss, make_model\n")
    settings = {"schedule.name": "cosine", "schedule.learning_rate": 0.1, "train.duration": "4 steps"}
    run = build.build(tmp_path / "plain.py", settings, tmp_path / "run")
    rates = [run.train_block(1).row(0)["learning_rate"] for _ in range(4)]
    assert rates == pytest.approx([0.05 * (1 + math.cos(math.pi * update / 4)) for update in range(4)], rel=1e-6)
