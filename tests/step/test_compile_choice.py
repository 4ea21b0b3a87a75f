"""Choosing how to compile: the fastest candidate on a noisy machine, at little cost, and a state that is as it was."""

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import framework
from framework.distribute.replicas import Replicas
from framework.layers import Dropout
from framework.losses import Term
from framework.step import compile_choice as module
from framework.step.compile_choice import candidates, choose
from tests.small import HOT, build, differing, snapshot

ALL = {"graph": 1.0, "xla_update": 1.0, "xla_gradients": 1.0, "xla": 1.0}
PARTS = ("graph", "xla", "xla_gradients", "xla_update")


class Fake:
    """Blocks of a training that takes `seconds` a step, on a clock of its own."""

    def __init__(self, seconds, compiling=1.0, call=0.004, noise=lambda now: 1.0, block_steps=100):
        self.seconds, self.compiling, self.call, self.noise = seconds, compiling, call, noise
        self.now, self.block_steps, self.calls = 0.0, block_steps, []
        self.state = tf.Module()
        self.state.step = tf.Variable(0, dtype=tf.int64)
        self.failing, self.recompiling, self.compiling_of = {}, set(), {}
        self.furthest = 0

    def compiled_by(self, mode):
        return FakeBlock(self, mode)

    def clock(self):
        return self.now

    def taken(self, mode):
        return sum(k for name, k in self.calls if name == mode)


class FakeBlock:
    def __init__(self, fake, mode):
        self.fake, self.mode, self.compiled = fake, mode, self
        self.compilations = 0
        self.is_halted = False

    def __call__(self, k):
        fake = self.fake
        if self.mode in fake.failing:
            raise fake.failing[self.mode]
        assert 1 <= k <= fake.block_steps
        is_new = not self.compilations or self.mode in fake.recompiling
        self.compilations += is_new
        compiling = fake.compiling * fake.compiling_of.get(self.mode, 1)
        fake.now += is_new * compiling + (fake.call + k * fake.seconds[self.mode]) * fake.noise(fake.now)
        fake.calls.append((self.mode, k))
        fake.state.step.assign_add(k)
        fake.furthest = max(fake.furthest, int(fake.state.step))
        self.rows = range(k)
        return self


def tuned(fake, modes=module.MODES, steps=10**6, replicas=None):
    block, choice = choose(fake, modes, replicas or Replicas(), steps, clock=fake.clock)
    assert int(fake.state.step) == 0
    assert block.mode == choice.mode
    return choice


@pytest.mark.parametrize("fastest", module.MODES)
@pytest.mark.parametrize("scale", [5e-4, 0.02, 0.3])
def test_the_fastest_is_taken_and_its_times_are_told(fastest, scale):
    seconds = {mode: scale * (1 if mode == fastest else 1.2) for mode in module.MODES}
    choice = tuned(Fake(seconds, call=0.0))
    assert (choice.mode, choice.reason) == (fastest, "the fastest")
    assert choice.milliseconds == pytest.approx({mode: 1e3 * s for mode, s in seconds.items()}, rel=1e-3)


def test_a_noisy_machine_is_no_reason_to_take_a_slow_one():
    draw, hits = np.random.default_rng(0), 0
    for _ in range(100):
        factors = dict(zip(module.MODES, draw.permutation([1.0, 1.02, 1.1, 1.4]), strict=True))
        bursts = draw.uniform(
            0, 20, 40
        )  # somebody else computes for half a second, and everything takes 1.8 times as long

        def noise(now, bursts=bursts):
            return draw.gamma(4, 0.02) + 1 + 0.8 * bool(np.any((bursts < now) & (now < bursts + 0.5)))

        fake = Fake({mode: 1e-3 * factor for mode, factor in factors.items()}, noise=noise)
        hits += factors[tuned(fake).mode] <= 1.03
    assert hits >= 97


@pytest.mark.parametrize("stalled", range(20))
def test_one_stall_decides_nothing(stalled):
    """Of 50 ms or more, in one call: its thread waited for a processor. The first run of `xla` is call 10."""
    fake = Fake({"graph": 1.5e-3, "xla_update": 1.2e-3, "xla_gradients": 1.3e-3, "xla": 0.45e-3})
    fake.noise = lambda now: 12.0 if len(fake.calls) == stalled else 1.0
    assert tuned(fake).mode == "xla"


def test_timing_takes_a_few_seconds_and_most_of_them_for_what_is_close():
    fake = Fake({"graph": 1e-3, "xla_update": 1.01e-3, "xla_gradients": 1.2e-3, "xla": 1.7e-3})
    tuned(fake)
    assert fake.now - 4 * fake.compiling < 6
    assert fake.taken("graph") > 2 * fake.taken("xla_gradients") > 2 * fake.taken("xla") > 0
    slow = Fake({"graph": 0.5, "xla_update": 0.5, "xla_gradients": 3.0, "xla": 3.0}, compiling=5.0)
    tuned(slow)
    assert slow.now - 4 * slow.compiling < 22
    assert slow.taken("xla_gradients") == slow.taken("xla") == 2


def test_the_whole_step_is_tried_where_its_gradients_alone_are_slow():
    """Tables of embeddings: XLA copies them for a program of the gradients, and not inside of one of the whole step."""
    fake = Fake({"graph": 5.7e-3, "xla_update": 2.7e-3, "xla_gradients": 20.8e-3, "xla": 0.8e-3})
    assert tuned(fake).mode == "xla"


def test_a_short_run_is_not_tuned():
    fake = Fake(dict(ALL, graph=1e-3), compiling=0.5)
    choice = tuned(fake, steps=2000)
    assert (choice.mode, set(choice.milliseconds)) == ("graph", {"graph"})
    assert choice.reason.startswith("not tuned: that would cost more than 2000 steps of 1.2 ms")
    assert fake.now < 0.5 + 0.2
    # Nor one that lasts longer, but compiles for long as well.
    assert set(tuned(Fake(dict(ALL, graph=1e-3), compiling=3.0), steps=40_000).milliseconds) == {"graph"}
    assert len(tuned(Fake(dict(ALL, graph=1e-3), compiling=1.0), steps=200_000).milliseconds) == 4


@pytest.mark.parametrize("run_seconds", [5, 20, 40, 100, 400, 2000])
@pytest.mark.parametrize(("step", "compiling"), [(1e-3, 0.5), (0.02, 1.0), (0.2, 4.0), (0.5, 12.0)])
def test_tuning_takes_a_tenth_of_the_run_at_most(step, compiling, run_seconds):
    """Beside the compilation of the graph, which a run that is not tuned has too; what is slow costs as much."""
    for factor in (0.4, 1.0, 5.0):
        seconds = {mode: step * (1 if mode == "graph" else factor) for mode in module.MODES}
        fake = Fake(seconds, compiling=compiling)
        fake.compiling_of = {"xla_update": 2, "xla_gradients": 3, "xla": 4}
        choice = tuned(fake, steps=round(run_seconds / step))
        # Three single steps are what the estimate itself takes.
        assert fake.now - compiling <= 0.1 * run_seconds * (1 + 0.004 / step) + 3 * step + 0.15
        if len(choice.milliseconds) > 1:
            assert (choice.mode == "graph") == (factor >= 1)
        assert choice.compiling == pytest.approx(
            compiling * fake.compiling_of.get(choice.mode, 1) + step * (1 if choice.mode == "graph" else factor),
            abs=0.01,
        )


def test_what_may_gain_most_is_tried_first_where_not_all_can_be():
    fake = Fake({"graph": 1.3e-3, "xla_update": 1.0e-3, "xla_gradients": 1.1e-3, "xla": 0.45e-3}, compiling=0.6)
    fake.compiling_of = {"xla_update": 2, "xla_gradients": 3, "xla": 4}
    choice = tuned(fake, steps=31_000)  # 40 s
    assert choice.mode == "xla"
    assert set(choice.milliseconds) == {"graph", "xla"}


def test_a_candidate_that_compiles_longer_than_expected_leaves_no_time_for_the_next():
    fake = Fake(dict.fromkeys(module.MODES, 0.001), compiling=0.5)
    fake.compiling_of = {"xla_update": 20}
    assert set(tuned(fake, steps=70_000).milliseconds) == {"graph", "xla_update"}
    fake = Fake(dict.fromkeys(module.MODES, 0.001), compiling=0.5)
    assert set(tuned(fake, steps=70_000).milliseconds) == set(module.MODES)


def test_no_step_past_the_end_of_the_run_is_taken(monkeypatch):
    monkeypatch.setattr(module, "_SHARE", 1e9)
    fake = Fake(dict(ALL, graph=0.5, xla=0.001), compiling=0.0)
    assert tuned(fake, steps=60).mode == "xla"
    assert fake.furthest <= 60


def test_what_xla_cannot_compile_and_what_compiles_without_end_are_out(caplog):
    fake = Fake({"graph": 0.01, "xla_update": 0.02, "xla_gradients": 1e-4, "xla": 1e-4})
    fake.failing = {"xla": tf.errors.InvalidArgumentError(None, None, "Detected unsupported operations\nmore")}
    fake.recompiling = {"xla_gradients"}
    fake.compiling = 0.003
    choice = tuned(fake)
    assert choice.mode == "graph"
    assert choice.milliseconds["xla"] is None
    with pytest.raises(tf.errors.InvalidArgumentError):
        broken = Fake(ALL)
        broken.failing = {"graph": tf.errors.InvalidArgumentError(None, None, "wrong shapes")}
        tuned(broken)


@pytest.mark.parametrize("modes", [("graph", "xla"), ("xla", "graph")])
def test_one_that_keeps_being_compiled_decides_nothing_however_fast_its_steps(modes):
    fake = Fake({"graph": 3.0, "xla": 0.2}, compiling=0.5, block_steps=10)
    fake.recompiling = {"xla"}
    assert tuned(fake, modes).mode == "graph"


def test_one_that_fails_late_decides_nothing():
    fake, calls = Fake({"graph": 1.0, "xla": 0.01}), []

    class Late(FakeBlock):
        def __call__(self, k):
            calls.append(k)
            if len(calls) == 3:
                raise tf.errors.ResourceExhaustedError(None, None, "out of memory")
            return super().__call__(k)

    fake.compiled_by = lambda mode: (Late if mode == "xla" else FakeBlock)(fake, mode)
    assert tuned(fake, ("graph", "xla")).mode == "graph"
    assert len(calls) == 3


def test_workers_decide_by_the_slowest_of_them():
    class Others(Replicas):
        """On another worker `xla` is slow."""

        def all_workers(self, value, most):
            if not most:  # how long a run may be
                return value
            return value * (1 if fake.calls[-1][0] == "graph" else 5)

    fake = Fake({"graph": 0.01, "xla": 0.005})
    assert tuned(fake, ("graph", "xla"), replicas=Others()).mode == "graph"
    assert tuned(Fake(fake.seconds), ("graph", "xla")).mode == "xla"


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


def test_the_state_is_bit_for_bit_what_it_was_and_so_is_what_is_trained_then(thorough):
    built = build(heat={(5, 3): HOT}, **EVERYTHING)
    built.train_block(3)
    before = snapshot(built)
    modes = candidates(built.resolved, built.probe, built.replicas)
    assert modes == module.MODES
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
    block, choice = choose(built.train_block, module.MODES, built.replicas, 10)
    built.compile_by(choice, block)
    gc.collect()
    assert {mode for mode, compiled in made.items() if compiled() is not None} <= {
        choice.mode,
        built.train_block.compiled.mode,
    }
    assert len(made) == 4


def test_averages_masks_and_losses_are_those_of_a_graph_in_every_mode_and_any_length_takes_one_compilation():
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
    for mode in PARTS:
        built = build(functions=functions, **settings, **{"train.compile": mode})
        blocks = [built.train_block(k) for k in (1, 3, built.train_block.block_steps, 7)]
        masks = [built.train_block.layout.unpack(row)["masks"] for block in blocks for row in block.rows]
        found[mode] = np.array(masks), [block.row(i)["loss"] for block in blocks for i in range(len(block.rows))], built
        assert (built.train_block.compiled.traces, len(masks)) == (1, 21)
        assert built.train_block.compiled.compilations in (None, int(mode != "graph"))
    masks, losses, graph = found["graph"]
    assert 0.4 < masks.mean() < 0.6
    for mode in PARTS[1:]:
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


def test_a_single_way_is_not_timed():
    fake = Fake(ALL)
    assert tuned(fake, ("graph",)).milliseconds == {}
    assert not fake.calls
