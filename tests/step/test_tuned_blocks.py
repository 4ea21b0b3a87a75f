"""Blocks whose compilation is chosen: no bit moves while they are timed, and every choice computes the same."""

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import framework
from framework.layers import Dropout
from framework.losses import Term
from framework.step import compile_choice as module
from framework.step.compile_choice import candidates, choose
from tests.small import HOT, build, differing, snapshot

PARTS = ("graph", "xla", "xla_gradients", "xla_update")


@pytest.fixture
def thorough(monkeypatch):
    """Tunes whatever the length of the run, in little time."""
    monkeypatch.setattr(module, "_SHARE", 1e9)
    monkeypatch.setattr(module, "_SECONDS", 0.0)
    monkeypatch.setattr(module, "_FAR", 1e9)
    monkeypatch.setattr(module, "_RUN_SECONDS", 0.01)


EVERYTHING = {
    "train.compile": "auto",
    "train.duration": "40 steps",
    "train.precision": "float16",
    "train.on_nonfinite": "rewind",
    "loss_scale.growth_interval": 2,
    "ema.decay": 0.9,
    "clip.name": "global_norm",
    "train.micro_batches": 2,
}


@pytest.mark.parametrize("modes", [("graph", "xla_update"), pytest.param(module.MODES, marks=pytest.mark.slow)])
def test_the_state_is_bit_for_bit_what_it_was_and_so_is_what_is_trained_then(thorough, modes):
    built = build(heat={(5, 3): HOT}, **EVERYTHING)
    built.train_block(3)
    before = snapshot(built)
    assert candidates(built.resolved, built.probe, built.replicas) == module.MODES
    block, choice = choose(built.train_block, modes, built.replicas, 37)
    assert not differing(snapshot(built), before)
    assert set(choice.milliseconds) == set(modes)
    assert None not in choice.milliseconds.values()
    built.compile_by(choice, block)
    assert built.train_block.compiled.traces == 1  # it is compiled already
    built.train_block(10)
    fixed = build(heat={(5, 3): HOT}, **EVERYTHING | {"train.compile": choice.mode})
    # The first steps were taken before there was a choice, in a graph.
    fixed.train_block = fixed.train_block.compiled_by("graph")
    fixed.train_block(3)
    fixed.train_block = fixed.train_block.compiled_by(choice.mode)
    fixed.train_block(10)
    assert not differing(snapshot(built), snapshot(fixed))


def test_batches_that_have_a_state_are_left_as_they_were(thorough):
    built = framework.build("tests/research/dqn.py", {"train.compile": "auto", "train.block_steps": 4}, "nowhere")
    built.train_block(4)
    before = snapshot(built)
    assert any(path.startswith("data/rows/") for path in before)
    block = choose(built.train_block, ("graph", "xla_update"), built.replicas, 40)[0]
    assert not differing(snapshot(built), before)
    block(1)
    assert differing(snapshot(built), before) >= {"step", "data/added"}


def test_candidates_that_are_not_taken_are_freed(thorough):
    built = build(**{"train.compile": "auto"})
    made, kept = {}, type(built.train_block).compiled_by

    class Watched(type(built.train_block)):
        def compiled_by(self, mode):
            block = kept(self, mode)
            made[mode] = weakref.ref(block.compiled)
            return block

    built.train_block.__class__ = Watched
    block, choice = choose(built.train_block, ("graph", "xla_update"), built.replicas, 10)
    built.compile_by(choice, block)
    gc.collect()
    assert {mode for mode, compiled in made.items() if compiled() is not None} <= {
        choice.mode,
        built.train_block.compiled.mode,
    }
    assert set(made) == {"graph", "xla_update"}


@pytest.mark.parametrize("modes", [("graph", "xla"), pytest.param(PARTS, marks=pytest.mark.slow)])
def test_averages_masks_and_losses_are_those_of_a_graph_in_every_mode_and_any_length_takes_one_compilation(modes):
    class Masks:
        """Which of its inputs a dropout keeps, as a metric of as many numbers."""

        mode = "max"

        def empty(self):
            return np.zeros(16 * 5)

        def update(self, outputs, batch):
            return tf.reshape(tf.cast(outputs["kept"] > 0, tf.float32), [-1])

        def merge(self, left, right):
            return left + right

        def result(self, state):
            return float(np.sum(state))

    def make_model(cfg):
        x = keras.Input([6])
        dense = keras.layers.Dense(5, activation="tanh", name="first")(x)
        normed = keras.layers.BatchNormalization(momentum=np.float64(0.9), name="norm")(dense)
        kept = Dropout(0.5, name="drop")(tf.ones_like(normed))
        return keras.Model(x, [keras.layers.Dense(3, name="last")(normed * kept), kept])

    def make_loss(cfg):
        def loss(model, batch, training):
            logits, kept = model(batch["x"], training=training)
            values = tf.nn.sparse_softmax_cross_entropy_with_logits(batch["label"], logits)
            return {"loss": Term(tf.reduce_sum(values), tf.cast(tf.reduce_sum(batch["weight"]), values.dtype))}, {
                "kept": kept
            }

        return loss

    functions = {"make_model": make_model, "make_loss": make_loss, "make_metrics": lambda cfg: {"masks": Masks()}}
    settings = {"train.precision": "float64", "ema.decay": 0.9, "train.duration": "21 steps"}
    found = {}
    for mode in modes:
        built = build(functions=functions, **settings, **{"train.compile": mode})
        blocks = [built.train_block(k) for k in (1, 3, built.train_block.block_steps, 7)]
        masks = [built.train_block.layout.unpack(row)["masks"] for block in blocks for row in block.rows]
        found[mode] = np.array(masks), [block.row(i)["loss"] for block in blocks for i in range(len(block.rows))], built
        assert (built.train_block.compiled.traces, len(masks)) == (1, 21)
        assert built.train_block.compiled.compilations in (None, int(mode != "graph"))
    masks, losses, graph = found["graph"]
    assert 0.4 < masks.mean() < 0.6
    for mode in modes[1:]:
        np.testing.assert_array_equal(found[mode][0], masks)
        np.testing.assert_allclose(found[mode][1], losses, rtol=1e-12)
        for path, variable in graph.state.learned.items():
            other = found[mode][2].state.learned[path]
            np.testing.assert_allclose(
                other.numpy(), variable.numpy(), rtol=1e-10, atol=1e-12, err_msg=f"{mode} {path}"
            )
        assert found[mode][2].eval_blocks["test"]() == pytest.approx(graph.eval_blocks["test"](), rel=1e-12)
        assert found[mode][2].train_block.inspect(mode).keys() == graph.train_block.inspect().keys()


def convolution(cfg):
    return keras.Sequential(
        [
            keras.layers.Reshape([3, 2, 1]),
            keras.layers.Conv2D(2, 2),
            keras.layers.Flatten(),
            keras.layers.Dense(3, dtype="float32"),
        ]
    )


@pytest.mark.parametrize(
    ("precision", "make_model", "modes"),
    [
        ("float16", convolution, ("xla_gradients",)),
        ("bfloat16", convolution, ("graph", "xla_update", "xla_gradients")),
        ("float32", convolution, ("graph", "xla_update", "xla_gradients")),
        ("float16", None, module.MODES),
    ],
)
def test_convolutions_on_a_cpu_are_not_tried_where_they_take_minutes(precision, make_model, modes):
    functions = {} if make_model is None else {"make_model": make_model}
    built = build(functions=functions, **{"train.precision": precision, "train.compile": "auto"})
    assert candidates(built.resolved, built.probe, built.replicas) == modes


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="compilations cannot be seen without /proc")
def test_evaluation_has_convolutions_in_a_program_for_a_batch_and_not_for_the_loop():
    """Around the loop over batches they would take a hundred times as long."""
    built = build(functions={"make_model": convolution}, **{"train.compile": "xla_gradients", "eval.batch_size": 4})
    graph = build(functions={"make_model": convolution}, **{"train.compile": "graph", "eval.batch_size": 4})
    evaluate = built.eval_blocks["test"]
    assert evaluate() == pytest.approx(graph.eval_blocks["test"](), rel=1e-5)
    assert (evaluate.compiled.programs, evaluate.compiled.compilations) == (("gradients",), 1)
    assert not evaluate.compiled.function._jit_compile


def test_asking_for_them_there_is_warned_of(caplog):
    for mode, precision in (("xla_gradients", "float16"), ("auto", "bfloat16"), ("graph", "float32")):
        build(functions={"make_model": convolution}, **{"train.precision": precision, "train.compile": mode})
    build(**{"train.precision": "float16", "train.compile": "graph"})
    assert "convolutions" not in caplog.text
    for mode, precision in (("graph", "float16"), ("xla", "float32")):
        build(functions={"make_model": convolution}, **{"train.precision": precision, "train.compile": mode})
        assert caplog.messages[-1] == (
            f"train.compile='{mode}' with {precision} convolutions on a CPU: a step may take minutes. Use"
            " --config.train.compile=auto."
        )
    build(functions={"make_model": convolution}, **{"train.precision": "float16", "train.compile": "auto"})
    assert caplog.messages[-1] == (
        "train.compile=auto takes xla_gradients for float16 convolutions on a CPU: otherwise a step may take minutes."
        " --config.train.precision=bfloat16 is faster."
    )


def test_what_replicas_and_collectives_can_have():
    mirrored = {"runtime.strategy": "mirrored", "runtime.virtual_devices": 2, "train.compile": "auto"}

    def synchronised(cfg):
        return keras.Sequential([keras.layers.BatchNormalization(synchronized=True), keras.layers.Dense(3)])

    for make_model, settings, modes in (
        (None, mirrored, ("graph", "xla")),
        (synchronised, mirrored, ("graph",)),
        (synchronised, {"train.compile": "auto"}, module.MODES),
        (convolution, mirrored, ("graph", "xla")),
    ):
        built = build(functions={} if make_model is None else {"make_model": make_model}, **settings)
        assert candidates(built.resolved, built.probe, built.replicas) == modes


def test_replicas_are_tuned_and_left_as_they_were(thorough):
    mirrored = {"runtime.strategy": "mirrored", "runtime.virtual_devices": 2, "train.compile": "auto"}
    built = build(**mirrored)
    built.train_block(2)
    before = snapshot(built)
    block, choice = choose(built.train_block, ("graph", "xla"), built.replicas, 8)
    assert not differing(snapshot(built), before)
    assert set(choice.milliseconds) == {"graph", "xla"}
    assert block.compiled.traces == 1
