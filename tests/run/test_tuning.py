"""A run that chooses how its step is compiled keeps its choice; a run that keeps compiling is stopped."""

import json
import re
from pathlib import Path

import pytest
import tensorflow as tf
import tf_keras as keras

from framework.checkpoint.checkpoints import digest
from framework.config import RunError, UserError
from framework.run import build as run
from framework.run import evaluation, loop
from framework.run.replay import replay_step
from framework.step import compile_choice
from framework.step.compile_choice import CompileChoice
from tests import small
from tests.run.tiny_runs import TINY, before_blocks, build, interrupt_at

QUIET = {"log.histograms_every": ""}  # whose gradients are a program of their own


@pytest.fixture
def chooses(monkeypatch):
    """Makes tuning take a candidate that is not the first; (mode, steps) of each time it was asked."""
    asked = []

    def choose(block, modes, replicas, steps):
        asked.append((modes, steps))
        return block.compiled_by("xla_update"), CompileChoice("xla_update", {"graph": 2.0, "xla": None}, "the fastest")

    monkeypatch.setattr(compile_choice, "choose", choose)
    return asked


def test_auto_is_tuned_once_and_what_it_chose_is_kept_with_the_run(tmp_path, chooses, caplog):
    caplog.set_level("INFO")
    whole, parts = (build(tmp_path / name, "auto", **QUIET) for name in ("whole", "parts"))
    assert whole.train_block.compiled.mode == "graph"  # until it is tuned
    result = loop.train(whole)
    assert "train.compile=auto: xla_update, the fastest (ms a step: graph 2, xla -)" in caplog.messages
    assert re.search(
        r"first step after [\d.]+ s, of which building [\d.]+, tuning [\d.]+, compiling [\d.]+", caplog.text
    )
    kept = {"mode": "xla_update", "milliseconds": {"graph": 2.0, "xla": None}, "reason": "the fastest", "compiling": 0}
    assert (result["compile"], result["tuning"], result["traces"]) == ("xla_update", kept, 1)
    assert json.loads((tmp_path / "whole" / "tuning.json").read_text()) == kept
    assert whole.eval_blocks["test"].compiled.mode == "graph"  # which is what goes with it

    interrupt_at(parts, 20)
    loop.train(parts)
    assert chooses == [(compile_choice.MODES, 40)] * 2
    (tmp_path / "parts" / "tuning.json").unlink()  # a checkpoint that was copied elsewhere knows by itself
    caplog.clear()
    again = build(tmp_path / "parts", "auto", **QUIET)
    loop.train(again)
    assert "train.compile=auto: xla_update, as before" in caplog.messages
    assert len(chooses) == 2
    assert again.train_block.compiled.mode == "xla_update"
    assert digest(again.state) == digest(whole.state)

    looked = run.build(TINY, {}, tmp_path / "whole", from_workdir=True)
    assert looked.train_block.compiled.mode == "xla_update"
    assert evaluation.evaluate(looked) == result["final"]
    shown = replay_step(looked, 10)
    assert shown.logged
    assert not shown.differing
    with pytest.raises(UserError) as error:
        build(tmp_path / "whole", "xla_update", **QUIET)
    assert str(error.value) == (
        f"--workdir={tmp_path / 'whole'} holds a run of another config (train.compile: 'auto' there, 'xla_update' now)."
        f" Use another folder; there, --config.resume_from={tmp_path / 'whole'} continues this run."
    )


def test_a_run_that_died_before_its_first_checkpoint_takes_the_same_choice(tmp_path, chooses):
    first = build(tmp_path / "run", "auto", **QUIET)

    def die(first_step, k):
        raise RuntimeError("killed")

    before_blocks(first, die)
    with pytest.raises(RuntimeError, match="killed"):
        loop.train(first)
    assert not (tmp_path / "run" / "checkpoints").exists()
    result = loop.train(build(tmp_path / "run", "auto", **QUIET))
    assert (result["compile"], len(chooses)) == ("xla_update", 1)


def test_a_choice_that_cannot_be_had_on_these_devices_is_made_again(tmp_path, chooses, monkeypatch):
    built = build(
        tmp_path / "run", "auto", **{"train.duration": "10 steps", "eval.every": "", "log.histograms_every": ""}
    )
    interrupt_at(built, 5)
    loop.train(built)
    mirrored = {"runtime.strategy": "mirrored", "runtime.virtual_devices": 2, "train.duration": "10 steps"}
    elsewhere = build(tmp_path / "run", "auto", **mirrored, **{"eval.every": "", "log.histograms_every": ""})

    def choose(block, modes, replicas, steps):
        chooses.append((modes, steps))
        return block.compiled_by(modes[0]), CompileChoice(modes[0], {}, "the first")

    monkeypatch.setattr(compile_choice, "choose", choose)
    assert loop.train(elsewhere)["compile"] == "graph"
    assert chooses[-1][0] == ("graph", "xla")


class Turning(keras.layers.Layer):
    """Adds a row of a table whose number is in a variable that each step moves on."""

    def __init__(self, take):
        super().__init__()
        self.take = take

    def build(self, shape):
        self.row = self.add_weight("row", [], dtype="int32", trainable=False, initializer="zeros")
        self.table = self.add_weight("table", [40, 6], trainable=False, initializer="zeros")

    def call(self, x, training=False):
        if training:
            self.row.assign((self.row + 1) % 40)
        return x + self.take(self.table, self.row.read_value())


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="compilations cannot be seen without /proc")
def test_a_run_that_keeps_compiling_is_stopped_and_saved(tmp_path):
    def turning(workdir, take):
        functions = {"make_model": lambda cfg: keras.Sequential([Turning(take), keras.layers.Dense(3)])}
        settings = {
            "train.compile": "xla",
            "train.block_steps": 2,
            "train.duration": "40 steps",
            "log.every": "20 steps",
        }
        return small.build(workdir, functions=functions, **settings)

    trap = turning(tmp_path / "trap", lambda table, i: table[i])
    with pytest.raises(RunError) as error:
        loop.train(trap)
    calls = trap.train_block.compiled.calls
    step = int(trap.state.step)
    assert step < 20
    assert str(error.value) == (
        f"the training step keeps being compiled: 1 traces and {calls} compilations in {calls} calls"
        " (train.compile='xla'). In a compiled step x[i], with i read from a variable, compiles again for each i: write"
        " tf.gather(x, i). What cannot be changed, such as an LSTM on a CPU, needs --config.train.compile=graph, in"
        f" another folder. Step {step} is saved."
    )
    assert trap.checkpoints.steps() == [step]
    result = loop.train(turning(tmp_path / "healthy", tf.gather))
    assert (result["status"], result["traces"], result["compilations"]) == ("finished", 1, 1)
