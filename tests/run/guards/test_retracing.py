"""framework/run/guards/retracing.py: a step that is traced again, and the argument that changed."""

import logging
from types import SimpleNamespace

import pytest
import tensorflow as tf

from framework.compile import HANDFUL, Compiled
from framework.data.streaming import Streamed
from framework.errors import RunError
from framework.run import loop
from framework.run.guards.retracing import Retracing, keeps_compiling
from tests import small

LET = "Let `plan` of the batches return the same fields, shapes and dtypes each time."


def test_a_run_tells_once_what_changed(tmp_path, monkeypatch, caplog):
    plan = Streamed.plan

    def longer(self, first_step, steps, size):
        planned = plan(self, first_step, steps, size)
        return {name: tf.concat([rows] + [rows[-1:]] * (int(first_step) // 4), 0) for name, rows in planned.items()}

    settings = {"data.placement": "stream", "train.block_steps": 2, "train.duration": "8 steps", "log.every": "4 steps"}
    result = loop.train(small.build(tmp_path / "healthy", **settings))
    assert (result["status"], result["traces"]) == ("finished", 1)
    monkeypatch.setattr(Streamed, "plan", longer)
    with caplog.at_level(logging.WARNING, "absl"):
        result = loop.train(small.build(tmp_path / "longer", **settings))
    assert (result["status"], result["traces"]) == ("finished", 2)
    assert [message for message in caplog.messages if "traced" in message] == [
        "the training step was traced 2 times for 1 shape(s) (plans[0]['x']: float32 [2, 16, 6] before, float32 [3, 16,"
        " 6] now, plans[0]['label']: int32 [2, 16] before, int32 [3, 16] now, plans[0]['heat']: float32 [2, 16] before,"
        f" float32 [3, 16] now and 1 more). {LET}"
    ]


def traced(lengths, shapes=1):
    compiled = Compiled(lambda x: 2 * x, "graph", "f", shapes=shapes)
    for length in lengths:
        compiled(tf.ones([length]))
    return compiled


def told(train, evaluations=()):
    blocks = {f"test{i}": SimpleNamespace(compiled=compiled) for i, compiled in enumerate(evaluations)}
    run = SimpleNamespace(train_block=SimpleNamespace(compiled=train), eval_blocks=blocks)
    return Retracing(run, None).look(None)


def test_a_trace_a_bucket_is_within_the_budget():
    assert told(traced([3, 4, 3, 4], shapes=2), [traced([1]), traced([2, 1, 2], shapes=2)]) == ""
    assert told(traced([3, 4, 5], shapes=2)) == (
        f"the training step was traced 3 times for 2 shape(s) (x: float32 [4] before, float32 [5] now). {LET}"
    )
    assert told(traced([3]), [traced([1]), traced([2, 1])]) == (
        f"the evaluation of test1 was traced 2 times for 1 shape(s) (x: float32 [2] before, float32 [1] now). {LET}"
    )


def test_what_xla_compiles_without_a_new_trace():
    compiled = traced([3, 3])
    compiled.compilations = 2
    assert told(compiled) == "the training step was compiled again: compare with --config.train.compile=graph"


def test_the_error_of_a_run_that_keeps_tracing_names_the_argument():
    compiled = traced(range(1, HANDFUL + 2))
    assert compiled.keeps_compiling
    run = SimpleNamespace(train_block=SimpleNamespace(compiled=compiled), state=SimpleNamespace(step=12))
    with pytest.raises(RunError) as error:
        raise keeps_compiling(run)
    assert str(error.value) == (
        "the training step keeps being compiled: 7 traces and 0 compilations in 7 calls (train.compile='graph'). The"
        f" newest trace has x: float32 [6] before, float32 [7] now. {LET} Step 12 is saved."
    )
