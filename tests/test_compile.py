"""framework/compile.py: a healthy function is traced and compiled once, and the counters see the known traps."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf

from framework import compile as module
from framework.compile import Compiled
from framework.step.repeat import repeat

sees_compilations = pytest.mark.skipif(not module._STATUS.exists(), reason="compilations cannot be seen without /proc")
SIZE = 16
ROOT = Path(__file__).resolve().parents[1]


def make_block(variable, data):
    """K steps as the training block has them: each gathers a row by a counter that is a variable, and updates it."""

    def step(index):
        row = tf.gather(data, variable % tf.shape(data)[0])
        variable.assign_add(1)
        return tf.stack([tf.reduce_sum(row), tf.cast(index, tf.float32)]), tf.constant(False), {}

    return lambda k: repeat(step, k, SIZE, 2, tf.float32, {}).rows


@pytest.mark.parametrize("mode", module.MODES)
def test_a_block_of_any_length_computes_the_same_in_every_mode(mode):
    counter = tf.Variable(0)
    data = tf.random.stateless_uniform([7, 3], [1, 2])
    sums = tf.reduce_sum(data, 1).numpy()
    block = Compiled(make_block(counter, data), mode, "block")
    first = 0
    for k in (1, 5, 16, 3):
        rows = block(tf.constant(k)).numpy()
        assert rows.shape == (SIZE, 2)
        assert rows[:k, 0] == pytest.approx([sums[(first + i) % 7] for i in range(k)], rel=1e-6)
        assert rows[:k, 1].tolist() == list(range(k))
        assert not rows[k:].any()
        first += k
    assert int(counter) == first


@sees_compilations
@pytest.mark.parametrize(("mode", "traces", "compilations"), [("xla", 1, 1), ("graph", 1, 0), ("eager", 0, 0)])
def test_every_length_of_a_block_takes_one_trace_and_one_compilation(mode, traces, compilations):
    block = Compiled(make_block(tf.Variable(0), tf.ones([7, 3])), mode, "block")
    for k in (1, 2, 3, 5, 8, 13, 16, 1):
        block(tf.constant(k))
    assert (block.traces, block.compilations) == (traces, compilations)


@sees_compilations
def test_a_subscript_by_a_variable_is_seen_to_compile_at_every_call():
    counter, data = tf.Variable(0), tf.range(100.0)

    def subscript():
        counter.assign_add(1)
        return data[counter]

    def gather():
        counter.assign_add(1)
        return tf.gather(data, counter)

    trap, healthy = Compiled(subscript, "xla", "trap"), Compiled(gather, "xla", "healthy")
    assert [float(trap()) for _ in range(5)] == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert trap.traces == 1
    assert trap.compilations > 1
    assert [float(healthy()) for _ in range(5)] == [6.0, 7.0, 8.0, 9.0, 10.0]
    assert (healthy.traces, healthy.compilations) == (1, 1)


@sees_compilations
def test_a_range_of_a_changing_length_is_seen_to_compile_at_every_length():
    half = tf.Variable(0.5)
    trap = Compiled(lambda k: tf.reduce_sum(tf.range(tf.cast(k, tf.float32)) * half), "xla", "trap")
    assert [float(trap(tf.constant(k))) for k in (3, 4, 5)] == [1.5, 3.0, 5.0]
    assert trap.traces == 1
    assert trap.compilations > 1


@sees_compilations
@pytest.mark.parametrize("mode", ["xla", "graph"])
def test_another_shape_is_another_trace_and_compilation(mode):
    double = Compiled(lambda x: 2 * x, mode, "double")
    for length in (3, 3, 4, 3):
        assert double(tf.ones([length])).numpy().tolist() == [2.0] * length
    assert double.traces == 2
    assert double.compilations == (2 if mode == "xla" else 0)


def test_a_trace_names_the_argument_that_it_was_made_for():
    seen = []
    compiled = Compiled(lambda x, scale, *rest: x * scale, "graph", "f")
    for arguments in (
        (tf.ones([2]), 2.0),
        (tf.ones([3]), 2.0),
        (tf.ones([3]), 4.0),
        (tf.ones([3]), 2.0, {"index": [tf.ones([1, 4], tf.int64)]}),
        (tf.ones([2], tf.float64), 2.0, {"index": [tf.ones([1, 4], tf.int64)]}),
        (tf.ones([2], tf.float64), 2.0, {"index": [tf.ones([2, 4], tf.int64)]}),
    ):
        compiled(*arguments)
        compiled(*arguments)
        seen.append((compiled.traces, compiled.why_traced))
    assert seen == [
        (1, ""),
        (2, "x: float32 [2] before, float32 [3] now"),
        (3, "scale: 2.0 before, 4.0 now"),
        (4, "rest[0]['index'][0]: absent before, int64 [1, 4] now"),  # nearest to the second, not to the third
        (5, "x: float32 [3] before, float64 [2] now"),
        (6, "rest[0]['index'][0]: int64 [1, 4] before, int64 [2, 4] now"),
    ]
    compiled.forget()
    compiled(tf.ones([7]), 1.0)
    assert (compiled.traces, compiled.why_traced, compiled.has_retraced) == (1, "", False)


def test_a_trace_for_what_is_no_argument_and_for_many():
    traces = module.Traces()
    traces.add({"x": "a" * 100})
    traces.add({"x": "a" * 100})
    assert traces.why == "no argument changed, so the function reads a Python value, a variable or a strategy that did"
    traces.add(dict.fromkeys("xyzuv", 1))
    long = "'" + "a" * 39
    assert traces.why == f"x: {long}… before, 1 now, y: absent before, 1 now, z: absent before, 1 now and 2 more"


@sees_compilations
def test_the_smallest_programs_are_counted_and_apart_from_each_other():
    # Not `x + 0`: XLA makes no code for what it can leave out.
    functions = [Compiled(lambda x, n=n: x + n, "xla", f"plus {n}") for n in range(1, 9)]
    for _ in range(2):
        assert [float(function(tf.constant(0.5))) for function in functions] == [n + 0.5 for n in range(1, 9)]
    assert [function.compilations for function in functions] == [1] * 8


@sees_compilations
def test_a_program_inside_of_a_graph_is_counted():
    """Such as that of a large loss, which no mode asks for."""
    function = Compiled(lambda x: tf.square(module.jit(lambda x: x * 3.0 + 1.0)(x)), "graph", "f")
    assert [function(tf.ones([n])).numpy().tolist() for n in (2, 2, 3)] == [[16.0] * 2, [16.0] * 2, [16.0] * 3]
    assert (function.traces, function.compilations) == (2, 2)


def test_a_program_inside_of_a_graph_is_not_counted_where_that_cannot_be_seen(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_STATUS", tmp_path / "none")
    function = Compiled(lambda: module.jit(lambda: tf.ones([2]) * 3.0)(), "graph", "f")
    assert function().numpy().tolist() == [3.0, 3.0]
    assert (function.traces, function.compilations) == (1, None)


def test_where_compilations_cannot_be_seen_their_number_is_none(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_STATUS", tmp_path / "none")
    assert [Compiled(lambda: tf.constant(1), mode, "f").compilations for mode in ("graph", "xla", "eager")] == [
        0,
        None,
        0,
    ]
    function = Compiled(lambda: tf.constant(1), "xla", "f")
    assert int(function()) == 1
    assert (function.traces, function.compilations) == (1, None)


def test_modes_run_where_they_say():
    seen = []
    for mode in module.MODES:
        Compiled(lambda: seen.append(tf.executing_eagerly()) or tf.constant(1), mode, "f")()
    assert dict(zip(module.MODES, seen, strict=True)) == dict.fromkeys(module.MODES, False) | {"eager": True}


def test_python_control_flow_is_not_rewritten():
    branch = Compiled(lambda x: tf.constant(1) if x > 0 else tf.constant(2), "graph", "branch")
    with pytest.raises(tf.errors.OperatorNotAllowedInGraphError):
        branch(tf.constant(1.0))


def test_an_unknown_mode():
    with pytest.raises(ValueError) as error:
        Compiled(lambda: None, "jit", "f")
    assert str(error.value) == "mode='jit' is not one of ('graph', 'xla', 'xla_gradients', 'xla_update', 'eager')"


def test_what_is_a_program_by_itself():
    alone = {"xla": ("whole",), "xla_gradients": ("gradients",), "xla_update": ("update",)}
    assert {
        mode: module.programs(mode, False) for mode in ("auto", *module.MODES) if module.programs(mode, False)
    } == alone
    assert module.programs("xla", in_parts=True) == module.programs("xla_gradients", in_parts=True) == ("gradients",)


@sees_compilations
def test_keeping_on_compiling_is_told_from_compiling_again():
    counter, data = tf.Variable(0), tf.range(1000.0)

    def subscript(x):
        counter.assign_add(1)
        return data[counter] + x

    trap = Compiled(subscript, "xla", "trap")
    verdicts = []
    for _ in range(module.HANDFUL + 1):
        trap(tf.constant(0.0))
        verdicts.append((trap.has_recompiled, trap.keeps_compiling))
    assert verdicts[0] == (False, False)
    assert verdicts[-1] == (True, True)
    assert verdicts.index((True, False)) < verdicts.index((True, True))

    double = Compiled(lambda x: 2 * x, "graph", "double")
    for length in range(1, module.HANDFUL + 2):
        double(tf.ones([length]))
    assert double.keeps_compiling  # traces count as well
    for _ in range(4 * module.HANDFUL):
        double(tf.ones([1]))
    assert (double.has_recompiled, double.keeps_compiling) == (True, False)  # it has come to rest


KEPT = """
import sys
import framework
from framework.checkpoint import digest

run = framework.build("tests/tiny.py", {"train.compile": "xla"}, "nowhere")
for k in (1, 3, 8):
    run.train_block(k)
print(digest(run.state))
"""


@pytest.mark.slow
def test_compiled_programs_can_be_kept_and_end_in_the_same_bits(tmp_path):
    folder = tmp_path / "programs"
    flags = {"TF_XLA_FLAGS": f"--tf_xla_persistent_cache_directory={folder}"}

    def bits(flags):
        command = [sys.executable, "-c", KEPT]
        done = subprocess.run(
            command, env={**os.environ, **flags}, capture_output=True, text=True, check=True, cwd=ROOT
        )
        return done.stdout.split()[-1], {path.name: path.stat().st_mtime_ns for path in folder.glob("*")}

    alone, nothing = bits({})
    compiled, files = bits(flags)
    loaded, again = bits(flags)
    assert not nothing
    assert len(files) == 1
    assert again == files  # nothing was compiled
    assert alone == compiled == loaded
