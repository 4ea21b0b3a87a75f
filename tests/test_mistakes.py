"""Fifteen typical mistakes, each made as a user would: what is said, and the exit status. BUILD.md lists them."""

import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import launch
from tests.documentation import read

ROOT = Path(__file__).parents[1]
EXPERIMENT = """
import numpy as np
import tf_keras as keras

from framework import config, data, losses, metrics


def get_config(arg):
    cfg = config.base_config()
    cfg.train.duration, cfg.train.compile, cfg.log.every = "8 steps", "graph", "2 steps"
    cfg.data.batch_size = cfg.eval.batch_size = 16
    cfg.model.width = 8
    return cfg


def make_data(cfg, split):
    rng = np.random.default_rng(0 if split == "train" else 1)
    label = rng.integers(0, 3, 64).astype(np.int32)
    x = (rng.normal(size=(64, 2)) + 3 * np.eye(3, 2)[label]).astype(np.float32)
    # here
    return data.make_batches(data.Source({"x": x, "label": label}, origin="clouds"), cfg, training=split == "train")


def make_model(cfg):
    last = keras.layers.Dense(3, name="last")
    return keras.Sequential([keras.layers.Dense(cfg.model.width, activation="relu"), last], name="net")


def make_loss(cfg):
    def loss(model, batch, training):
        logits = model(batch["x"], training=training)
        term = losses.sparse_cross_entropy(logits, batch["label"], batch["weight"])
        return {"cross_entropy": term}, {"logits": logits}

    return loss


def make_metrics(cfg):
    return {"accuracy": metrics.Accuracy()}
"""
TERM = 'losses.sparse_cross_entropy(logits, batch["label"], batch["weight"])'
UNREDUCED = "keras.losses.sparse_categorical_crossentropy(batch['label'], logits, from_logits=True)"
RATE = "Try a lower --config.schedule.learning_rate, a warm-up, or --config.clip.name=global_norm."
# {mistake: (what stands in the experiment instead, flags, exit status, what is said)}
MISTAKES = {
    "wrong key": (
        {},
        ["--config.trian.duration=4 steps"],
        2,
        "there is no key 'trian.duration'. Did you mean 'train.duration'?",
    ),
    "wrong shape": (
        {"# here": "label = np.eye(3, dtype=np.float32)[label]"},
        [],
        2,
        "logits have shape (16, 3) and labels (16, 3), but each row of logits has one label, the number of its class."
        " Write e.g. tf.argmax(labels, -1) of one-hot labels.",
    ),
    "NaN data": (
        {"# here": "x[5, 1] = np.nan"},
        [],
        1,
        "'x' of the batch is not finite; .* Look at the examples, at their weights and at the transform.",
    ),
    "label out of range": (
        {"# here": "label[7] = 3"},
        [],
        2,
        "the loss takes 3, which is none of the classes 0 to 2; it comes from 'label' .* of the batch, example",
    ),
    "no GPU": (
        {},
        ["--config.runtime.strategy=mirrored", "--config.runtime.devices=8"],
        2,
        "runtime.devices=8 is more than there are: .* Use --config.runtime.devices=",
    ),
    "missing data": (
        {"# here": "data.load_mnist(cfg.data.name, split, cfg.data.dir)"},
        ["--config.data.name=mnist", "--data_dir=nowhere"],
        2,
        "data_dir=nowhere: .* Correct --data_dir, or leave it out to fetch mnist.",
    ),
    "old checkpoint": (
        {},
        ["--config.resume_from=trained", "--config.model.width=9"],
        2,
        "trained/checkpoints/step-00000008 is of another model or optimizer: model/dense/bias: float32[8] in the"
        " checkpoint, float32[9] in the run; .* type --config.resume_from="
        " --config.init_from=trained/checkpoints/step-00000008.",
    ),
    "loss not reduced": (
        {TERM: UNREDUCED},
        [],
        2,
        "term 'cross_entropy' of the loss is a tensor of shape (16,), not a Term, .* losses.mean(values,"
        " batch['weight'])",
    ),
    "softmax for logits": (
        {'name="last"': 'activation="softmax", name="last"'},
        [],
        2,
        "the logits are what a softmax gives ('net/last/Softmax'), but sparse_cross_entropy takes logits. Leave out the"
        " softmax, such as activation='softmax' of the last layer",
    ),
    "frozen everything": (
        {'3, name="last")': '3, name="last", trainable=False)', "activation=": "trainable=False, activation="},
        [],
        2,
        "nothing of 'model' is trained: .* Train a part of it.",
    ),
    "learning rate 100 times too high": (
        {},
        ["--config.schedule.learning_rate=1e6", "--config.optimizer.name=sgd"],
        1,
        f"layer 'last': its output is not finite, its inputs are; .* {RATE}",
    ),
    "test data in training": (
        {'0 if split == "train" else 1': "0"},
        ["--mode=check"],
        1,
        "FAILED: 'test' tests what was trained on. Split first, or name it 'train…' if that is meant.",
    ),
}
ELSEWHERE = {"full disk", "two runs in one folder", "wrong Python"}  # the tests below


def written(folder, swaps=()):
    text = EXPERIMENT
    for old, new in dict(swaps).items():
        assert old in text
        text = text.replace(old, new)
    (folder / "mine.py").write_text(text)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_with_what_to_do(mistake, tmp_path, monkeypatch, capsys):
    swaps, flags, status, said = MISTAKES[mistake]
    monkeypatch.chdir(tmp_path)
    if mistake == "old checkpoint":
        written(tmp_path)
        assert launch.main(["launch.py", "--config=mine.py", "--workdir=trained"]) == 0
    written(tmp_path, swaps)
    capsys.readouterr()
    assert launch.main(["launch.py", "--config=mine.py", "--workdir=run", *flags]) == status
    printed = capsys.readouterr()
    line = printed.out if mistake == "test data in training" else printed.err.splitlines()[-1]
    pattern = " .*".join(map(re.escape, said.split(" .*")))
    assert re.search(pattern, line), line
    assert "Traceback" not in printed.err


def test_a_rate_that_does_not_overflow_is_told_too(tmp_path, monkeypatch, caplog):
    """Adam's steps have a size, so nothing becomes infinite: the loss is 1,000 times what it was at the start."""
    written(tmp_path)
    monkeypatch.chdir(tmp_path)
    flags = ["--config.schedule.learning_rate=1000", "--config.train.duration=40 steps"]
    assert launch.main(["launch.py", "--config=mine.py", "--workdir=run", *flags]) == 0
    assert [line for line in caplog.messages if line.startswith("the loss has not fallen") and "--mode=lr_find" in line]


def test_two_runs_in_one_folder(tmp_path, monkeypatch, capsys):
    written(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    holder = (
        "import fcntl, sys, time; f = open('run/.lock', 'w'); fcntl.flock(f, fcntl.LOCK_EX); f.write('7 on host\\n');"
    )
    holder += " f.flush(); print(1, flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", holder], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert launch.main(["launch.py", "--config=mine.py", "--workdir=run"]) == 2
        process.kill()
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: --workdir=run is in use by process 7 on host. Wait for it, stop it, or use another folder."
    )


def test_a_full_disk(tmp_path):
    """A limit of the size of files stands for a disk that is full: a checkpoint of 2 MB does not fit below 1 MB."""
    written(tmp_path, {"cfg.model.width = 8": "cfg.model.width = 30_000"})
    limit = 2**20
    command = [
        sys.executable,
        ROOT / "launch.py",
        "--config=mine.py",
        "--workdir=run",
        "--config.log.histograms_every=",
    ]
    ended = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert ended.returncode == 1
    line = ended.stderr.splitlines()[-1]
    assert re.search(r"error: .*File too large.* Mend that and type the same command again\.", line), line


def test_wrong_python(tmp_path):
    for name in ("Makefile", "requirements.txt", "requirements-data.txt", "requirements-dev.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "tests/benchmarks", tmp_path / "tests/benchmarks")
    old = tmp_path / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.2\nexit 1\n')
    old.chmod(0o755)
    ended = subprocess.run(["make", "run", f"PYTHON={old}"], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[0] == (
        f"Python 3.11, 3.12 or 3.13 is needed; '{old}' is Python 3.9.2. Type e.g. make run PYTHON=python3.11"
    )
    assert not (tmp_path / ".venv").exists()


def test_the_page_lists_them():
    table = read("BUILD.md").partition("## Fifteen mistakes")[2].partition("\n## ")[0]
    listed = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")][1:]
    assert sorted(listed) == sorted([*MISTAKES, *ELSEWHERE])
    assert len(listed) == 15
