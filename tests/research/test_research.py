"""Steps that no framework foresees, against plain eager code, and stopped and resumed to the same bits.

Beside this file: two gradient passes (sam), two models with second-order gradients (gan), state of its own (moco), and
batches that have a state (dqn).
"""

import dataclasses
import functools
import math

import numpy as np
import pytest
import tensorflow as tf

import framework
from framework import paths, rng
from framework.checkpoint.checkpoints import Checkpoints
from framework.config import UserError
from framework.experiment.load import load
from framework.run.build import build_run
from tests import small
from tests.research import dqn, moco, sam
from tests.small import differing, snapshot

EXPERIMENTS = ("gan", "sam", "moco", "dqn")
QUIET = {"checkpoint.every": "", "log.histograms_every": "", "train.block_steps": 20}


def build(name, mode, **overrides):
    """Nothing of it is written: the folder is never opened."""
    return framework.build(f"tests/research/{name}.py", {"train.compile": mode, **QUIET, **overrides})


@pytest.mark.parametrize("mode", [pytest.param("xla", marks=pytest.mark.slow), "graph"])
@pytest.mark.parametrize(
    "name", [EXPERIMENTS[0], *(pytest.param(name, marks=pytest.mark.slow) for name in EXPERIMENTS[1:])]
)
def test_a_run_that_was_stopped_ends_in_the_same_bits(name, mode, tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", 1)
    whole = build(name, mode)
    whole.train_block(7)
    checkpoints.save(whole.state, {})
    rows = whole.train_block(12).rows
    checkpoints.close()
    assert whole.train_block.compiled.traces == 1
    resumed = build(name, mode)
    assert differing(snapshot(whole), snapshot(resumed)) >= {"step", "updates"}
    checkpoints.restore(resumed.state)
    assert resumed.train_block(5).rows.tobytes() == rows[:5].tobytes()
    assert resumed.train_block(7).rows.tobytes() == rows[5:].tobytes()
    assert differing(snapshot(whole), snapshot(resumed)) == set()


def adam(w, g, m, v, step, rate, beta_1, beta_2=0.999, epsilon=1e-7):
    """In place, by path; m and v start empty."""
    for path, gradient in g.items():
        m[path] = beta_1 * m.get(path, 0.0) + (1 - beta_1) * gradient
        v[path] = beta_2 * v.get(path, 0.0) + (1 - beta_2) * gradient**2
        corrected = rate * math.sqrt(1 - beta_2 ** (step + 1)) / (1 - beta_1 ** (step + 1))
        w[path] = w[path] - corrected * m[path] / (np.sqrt(v[path]) + epsilon)


def put(model, w):
    for path, variable in paths.trainable(model).items():
        variable.assign(w[path])


def slopes(tape, value, model):
    variables = paths.trainable(model)
    return {path: g.numpy() for path, g in zip(variables, tape.gradient(value, [*variables.values()]), strict=True)}


def numbers(model):
    return {path: variable.numpy() for path, variable in paths.trainable(model).items()}


def distance(left, right):
    """Largest relative L2; the critic's last bias has no gradient and stays 0."""
    return max(np.linalg.norm(left[path] - right[path]) / max(np.linalg.norm(right[path]), 1e-3) for path in right)


@functools.cache
def sam_reference(steps):
    """Weights and losses: eager, by its own tape, with Adam in NumPy."""
    run = build("sam", "eager", **{"train.precision": "float64"})
    model, w, m, v = run.model, numbers(run.model), {}, {}

    def gradient(batch, step):
        with rng.scope(rng.key(0), step), tf.GradientTape() as tape:
            logits = model(batch["image"], training=True)
            value = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(batch["label"], logits))
        return slopes(tape, value, model), float(value)

    losses = []
    for step in range(steps):
        batch = run.data.at(step)
        first, loss = gradient(batch, step)
        losses.append(loss)
        norm = math.sqrt(sum((g**2).sum() for g in first.values()))
        put(model, {path: w[path] + 0.05 * first[path] / norm for path in w})
        second, _ = gradient(batch, step)
        adam(w, second, m, v, step, float(run.schedules["model"](step)), 0.9)
        put(model, w)
    return w, losses


@pytest.mark.parametrize("mode", ["xla", *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("graph", "eager"))])
def test_sam_is_that_of_plain_eager_code(mode):
    run = build("sam", mode, **{"train.precision": "float64"})
    rows = run.train_block(12)
    w, losses = sam_reference(12)
    assert distance(numbers(run.model), w) <= 1e-9
    assert [rows.row(step)["loss"] for step in range(12)] == pytest.approx(losses, rel=1e-9)


def test_sam_ends_where_adam_alone_does_not():
    plain = framework.build("tests/tiny.py", {"train.compile": "graph", **QUIET, "train.precision": "float64"})
    plain.train_block(12)
    assert distance(numbers(plain.model), sam_reference(12)[0]) > 1e-3


@functools.cache
def gan_reference(steps):
    """Weights of both models: eager, by tapes of its own, with Adam in NumPy."""
    run = build("gan", "eager", **{"train.precision": "float64"})
    models = run.model
    w = {name: numbers(model) for name, model in models.items()}
    slots = {name: ({}, {}) for name in models}

    def update(name, value, tape, step, rate):
        adam(w[name], slopes(tape, value, models[name]), *slots[name], step, rate, 0.5)
        put(models[name], w[name])

    for step in range(steps):
        real, rate = run.data.at(step)["real"], float(run.schedules["critic"](step))
        with rng.scope(rng.key(0), step):
            noise = [2 * tf.cast(rng.uniform("noise", 64, 4), tf.float64) - 1 for _ in range(2)]
            share = tf.cast(rng.uniform("mix", 64, 1), tf.float64)
        with tf.GradientTape() as tape:
            fake = models["generator"](noise[0])
            between = share * real + (1 - share) * fake
            with tf.GradientTape() as inner:
                inner.watch(between)
                score = tf.reduce_sum(models["critic"](between))
            slope = tf.sqrt(tf.reduce_sum(inner.gradient(score, between) ** 2, axis=1))
            value = tf.reduce_mean(models["critic"](fake)) - tf.reduce_mean(models["critic"](real))
            value += tf.reduce_mean((slope - 1) ** 2)
        update("critic", value, tape, step, rate)
        with tf.GradientTape() as tape:
            value = -tf.reduce_mean(models["critic"](models["generator"](noise[1])))
        update("generator", value, tape, step, rate)
    return w


@pytest.mark.parametrize(
    ("mode", "micro_batches"),
    [
        pytest.param("xla", 1, marks=pytest.mark.slow),
        pytest.param("graph", 1, marks=pytest.mark.slow),
        ("graph", 4),
        pytest.param("xla", 4, marks=pytest.mark.slow),
        ("eager", 1),
    ],
)
def test_gradient_penalty_is_that_of_plain_eager_code(mode, micro_batches):
    run = build("gan", mode, **{"train.precision": "float64", "train.micro_batches": micro_batches})
    run.train_block(12)
    w = gan_reference(12)
    for name, model in run.model.items():
        assert distance(numbers(model), w[name]) <= 1e-9, name
    assert set(run.train_block.layout.widths) >= {"loss/critic", "loss/slope", "gradient_norm/generator"}


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("moco", "graph"),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("gan", "graph"), ("sam", "xla"), ("moco", "xla"))),
    ],
)
def test_on_two_replicas_it_is_the_step_of_one_device(name, mode):
    mirrored = {"runtime.strategy": "mirrored", "runtime.virtual_devices": 2}
    one = build(name, mode, **{"train.precision": "float64"})
    two = build(name, mode, **{"train.precision": "float64"}, **mirrored)
    rows, found = one.train_block(10), two.train_block(10)
    for step in range(10):
        assert found.row(step) == pytest.approx(rows.row(step), rel=1e-9, abs=1e-12)
    for path, variable in one.state.learned.items():
        np.testing.assert_allclose(
            two.state.learned[path].numpy(), variable.numpy(), rtol=1e-9, atol=1e-11, err_msg=path
        )


def test_an_environment_lives_on_one_device():
    with pytest.raises(UserError) as error:
        build("dqn", "graph", **{"runtime.strategy": "mirrored", "runtime.virtual_devices": 2})
    assert str(error.value) == (
        "batches that have a state live on one device, but there are 2 replicas."
        " Use --config.runtime.strategy=one_device."
    )


@pytest.mark.slow
def test_the_gan_finds_the_ring():
    run = build("gan", "xla", **{"train.block_steps": 600})
    away = abs(run.eval_blocks["test"]()["radius"] - 2)
    run.train_block(600)
    assert away > 0.5 > 0.15 > abs(run.eval_blocks["test"]()["radius"] - 2)


@pytest.mark.parametrize("mode", [pytest.param("xla", marks=pytest.mark.slow), "graph"])
def test_the_queue_holds_the_last_keys_and_the_copy_follows(mode):
    run = build("moco", mode)
    run.train_block(6)
    memory = run.state.extra
    slow = {path: variable.numpy() for path, variable in paths.variables(memory.slow).items()}
    queue = memory.queue.numpy()
    with rng.scope(rng.key(0), 6):
        first, second = moco.two_views(run.data.at(6)["image"])
    queries, keys = run.model(first).numpy(), memory.slow(second).numpy()
    row = run.train_block(1).row(0)
    logits = np.concatenate([(queries * keys).sum(1, keepdims=True), queries @ queue.T], axis=1) / moco.TEMPERATURE
    logits = logits.astype(np.float64)
    assert row["loss"] == pytest.approx((np.log(np.exp(logits).sum(1)) - logits[:, 0]).mean(), rel=1e-4)
    np.testing.assert_allclose(memory.queue.numpy()[:128], keys, rtol=1e-4, atol=1e-5)
    assert memory.queue.numpy()[128:].tobytes() == queue[:-128].tobytes()
    for path, variable in paths.variables(memory.slow).items():
        wanted = moco.MOMENTUM * slow[path] + (1 - moco.MOMENTUM) * paths.variables(run.model)[path].numpy()
        np.testing.assert_allclose(variable.numpy(), wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("mode", ["xla", pytest.param("graph", marks=pytest.mark.slow)])
def test_dqn_learns_the_values_of_the_corridor(mode):
    run = build("dqn", mode, **{"train.block_steps": 1500})
    run.train_block(1500)
    cells = np.arange(dqn.CELLS)
    right = dqn.GAMMA ** (dqn.CELLS - 1 - cells)  # the reward is that many steps away
    left = dqn.GAMMA * right[np.maximum(cells - 1, 0)]
    np.testing.assert_allclose(run.model(tf.constant(cells)).numpy(), np.stack([left, right], 1), atol=2e-3)
    assert run.eval_blocks["test"]()["loss"] < 1e-5
    assert int(run.state.data.added) == 1500 * dqn.WALKERS


@pytest.mark.parametrize("mode", [pytest.param("xla", marks=pytest.mark.slow), "graph"])
def test_a_bad_step_of_ones_own_changes_counters_alone(mode):
    """SAM's weights are infinitely far uphill when the second pass is made; they come back to the last bit."""
    step = {"make_step": lambda cfg, tools: sam.sharpness_aware(small.make_loss(cfg), 0.05, tools)}
    skip = {"train.on_nonfinite": "skip", "train.nonfinite_limit": 3, "train.compile": mode}
    run = small.build(heat={(4, 3): small.HOT}, functions=step, **skip)
    run.train_block(4)
    before = snapshot(run)
    assert not math.isfinite(run.train_block(1).row(0)["loss"])
    assert differing(before, snapshot(run)) == {"step", "skipped", "skipped_in_row"}


@pytest.mark.parametrize("mode", [pytest.param("xla", marks=pytest.mark.slow), "graph"])
def test_a_block_that_halts_knows_the_batch_it_halted_at(mode):
    """The buffer has moved on by then, and would not give it again."""

    def with_nan(cfg, tools):
        def step(state, batch):
            factor = tf.where(state.step == 7, math.nan, 1.0)

            def one_pass(part):
                terms, outputs = dqn.surprise(state.model, state.extra.model, part)
                return {"surprise": terms["surprise"]._replace(sum=terms["surprise"].sum * factor)}, outputs

            found = tools.gradients(one_pass, batch)
            tools.apply(found.gradients)
            state.data.walk(state.model)
            state.extra.follow(state.model, state.updates)
            return found.terms, found.metrics

        return step

    whole = build("dqn", mode)
    whole.train_block(7)
    wanted = {name: tensor.numpy() for name, tensor in whole.data.at(7).items()}
    loaded = load("tests/research/dqn.py")
    loaded = dataclasses.replace(loaded, functions={**loaded.functions, "make_step": with_nan})
    halting = build_run(loaded, whole.config, whole.workdir, 0.0)
    block = halting.train_block(20)
    assert block.is_halted and len(block.rows) == 8 and int(halting.state.step) == 7
    seen = halting.train_block.batch()
    assert {name: tensor.numpy().tobytes() for name, tensor in seen.items()} == {
        name: array.tobytes() for name, array in wanted.items()
    }
