"""A replayed step is the step: its numbers are the logged ones to the last bit, in each compile mode, from anywhere."""

import dataclasses
import hashlib
import json
import math

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework import layers, losses
from framework.checkpoint.checkpoints import digest
from framework.config import UserError, finalize
from framework.config.overrides import override
from framework.experiment.load import load
from framework.modes import replay as replay_mode
from framework.run import build, loop
from framework.run.build import build_run
from framework.run.nonfinite import NonFiniteError
from framework.run.replay import replay_step
from framework.step.diagnose import look
from tests import small
from tests.augmented import SIDE

AUGMENTED, LINEAR = "tests/augmented.py", "tests/linear.py"
SHORT = {"train.duration": "24 steps", "eval.every": "", "checkpoint.every": "7 steps", "eval.splits": "test"}
SHORT |= {"checkpoint.best_metric": "", "checkpoint.keep": 10}


def trained(workdir, mode, name=AUGMENTED, **overrides):
    built = build.build(name, {**SHORT, "train.compile": mode, **overrides}, workdir)
    loop.train(built)
    return built


def again(workdir, name=AUGMENTED):
    return build.build(name, workdir=workdir, from_workdir=True, restore=False)


def rows(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in lines if "loss" in line}


def contents(folder):
    """{path: (SHA-256, time of change)} of a folder's files, and its folders' times."""
    return {
        path: (hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "", path.stat().st_mtime_ns)
        for path in (folder, *folder.rglob("*"))
    }


@pytest.fixture(scope="module", params=["graph", pytest.param("xla", marks=pytest.mark.slow)])
def half(request, tmp_path_factory):
    """A run in float16 that skips a step now and then."""
    workdir = tmp_path_factory.mktemp("replay") / "run"
    return trained(workdir, request.param), workdir


def test_the_logged_numbers_exactly_and_nothing_is_written(half):
    """Before the first checkpoint, at one, behind it, at the end, and a step that was skipped."""
    original, workdir = half
    logged = rows(workdir)
    skipped = next(step for step, row in logged.items() if row["gradient_norm"] is None)
    built, before = again(workdir), contents(workdir)
    with built.lock():  # as if it were training
        before = contents(workdir)
        for step, start in {3: 0, 7: 0, 8: 7, 19: 14, 24: 21, skipped: (skipped - 1) // 7 * 7}.items():
            shown = replay_step(built, step)
            others = {"step", "examples_per_second", "mean/loss", "mean/accuracy"}
            expected = {name: logged[step][name] for name in logged[step].keys() - others}
            assert shown.logged == expected
            assert {name: v if math.isfinite(v) else None for name, v in shown.scalars.items()} == expected
            assert (shown.step, shown.start, shown.differing) == (step, start, [])
            assert shown.outcome == ("skipped: it is not finite" if step == skipped else "applied")
            assert int(built.state.step) == step
    assert contents(workdir) == before
    # The last one was of an earlier step. At the end of the run the state is that of the run as well.
    replay_step(built, 24)
    assert digest(built.state) == digest(original.state)


class Masked(keras.Model):
    """Gives the mask of its dropout away."""

    def __init__(self):
        super().__init__()
        self.flat, self.hidden = keras.layers.Flatten(), keras.layers.Dense(16, activation="tanh")
        self.drop, self.out = layers.Dropout(0.25), keras.layers.Dense(4)

    def call(self, inputs, training=None):
        hidden = self.hidden(self.flat(inputs))
        kept = self.drop(tf.ones_like(hidden), training=training)
        return self.out(hidden * kept), kept


class Bits:
    """A metric whose state is whole numbers below 2**24: sums of the masks, and of the bits of the pictures."""

    mode = "max"

    def empty(self):
        return np.zeros(16 + 2 * SIDE * SIDE, np.float32)

    def update(self, outputs, batch):
        place = tf.range(tf.shape(outputs["kept"])[0]) + 1  # which example has which mask counts
        masks = tf.reduce_sum(tf.cast(outputs["kept"] > 0, tf.int32) * tf.square(place)[:, tf.newaxis], axis=0)
        bits = tf.bitcast(tf.reshape(batch["image"], [-1, SIDE * SIDE]), tf.uint32) * tf.cast(place, tf.uint32)[:, None]
        halves = tf.concat([bits // 2**16, bits % 2**16], axis=1)
        return tf.concat([tf.cast(masks, tf.float32), tf.cast(tf.reduce_sum(halves, axis=0), tf.float32)], axis=0)

    def merge(self, first, second):
        return first + second

    def result(self, state):
        return float(np.sum(state))


@pytest.mark.parametrize("mode", ["graph", pytest.param("xla", marks=pytest.mark.slow)])
def test_eager_agrees_and_draws_the_same(tmp_path, mode):
    """Masks and pictures bit for bit, loss and gradient norm to 1e-5; norms and examples are those of the step."""

    def make_loss(cfg):
        def loss(model, batch, training):
            logits, kept = model(batch["image"], training=training)
            return {"ce": losses.sparse_cross_entropy(logits, batch["label"], batch["weight"])}, {"kept": kept}

        return loss

    loaded = load(f"{AUGMENTED}:float32")
    own = {"make_model": lambda cfg: Masked(), "make_loss": make_loss, "make_metrics": lambda cfg: {"bits": Bits()}}
    loaded = dataclasses.replace(loaded, functions={**loaded.functions, **own})
    final = finalize(override(loaded.get_config(), {**SHORT, "train.compile": mode}))
    built = build_run(loaded, final, tmp_path / "run", 0.0)
    loop.train(built)
    for step in (5, 18):
        shown = replay_step(built, step, eager=True)
        assert shown.differing == [] and shown.finding == ""
        assert set(shown.eager) == {"loss", "gradient_norm"}
        for name, value in shown.eager.items():
            assert value == pytest.approx(shown.scalars[name], rel=1e-5)
    assert set(shown.gradient_norms) == set(shown.weight_norms) == set(built.state.optimizer.trained)
    for norms, whole in ((shown.gradient_norms, "gradient_norm"), (shown.weight_norms, "parameter_norm")):
        assert math.sqrt(sum(norm**2 for norm in norms.values())) == pytest.approx(shown.scalars[whole], rel=1e-6)
    labels = np.random.default_rng(0).integers(0, 4, 128)
    np.testing.assert_array_equal(labels[shown.indices["index"]], built.data.at(17)["label"].numpy())
    assert set(shown.indices["source"]) == {0} and set(shown.indices["weight"]) == {1}

    drawn = look(built.train_block).gradients.metrics["bits"].numpy()  # of step 19
    compiled = built.train_block(1)
    np.testing.assert_array_equal(drawn, compiled.layout.unpack(compiled.rows[0])["bits"])
    assert 0.6 < np.mean(drawn[:16]) / (2 * sum(place**2 for place in range(1, 9))) < 0.9, "masks of another rate"
    other = look(built.train_block).gradients.metrics["bits"].numpy()  # of step 20
    assert np.mean(drawn == other) < 0.1


def test_a_run_that_was_killed_before_its_first_checkpoint(tmp_path, monkeypatch):
    built = build.build(AUGMENTED, {**SHORT, "train.compile": "graph"}, tmp_path / "run")

    def die(run_, hooks, step, progress):
        if step >= 6:
            raise MemoryError
        return 1

    monkeypatch.setattr(loop, "_block_length", die)
    with pytest.raises(MemoryError):
        loop.train(built)
    assert built.checkpoints.steps() == []
    with (tmp_path / "run" / "metrics.jsonl").open("a") as log:
        log.write('{"step": 9, "lo')  # and in the middle of a line
    fresh = again(tmp_path / "run")
    shown = replay_step(fresh, 6)
    assert (shown.start, shown.differing, len(shown.logged)) == (0, [], 9)
    with pytest.raises(UserError) as caught:
        replay_step(fresh, 7)
    assert str(caught.value) == (f"--step=7 was not trained yet: {tmp_path / 'run'} has come to step 6. Use --step=6.")


def test_a_step_that_the_run_left_out_is_left_out_again(tmp_path):
    """Step 8 was bad, and the checkpoint of step 5 does not know yet that it is on the skip list."""
    settings = {"train.on_nonfinite": "rewind", "checkpoint.every": "5 steps", "checkpoint.keep": 10}
    built = small.build(tmp_path / "run", {(7, 3): small.HOT}, **settings)
    loop.train(built)
    assert 7 in built.state.skip_list.numpy()
    fresh = small.build(tmp_path / "run", {(7, 3): small.HOT}, **settings)
    for step, outcome in {8: "left out: it is on the skip list", 9: "applied", 10: "applied"}.items():
        shown = replay_step(fresh, step)
        assert (shown.start, shown.outcome, shown.differing) == (5, outcome, [])
        assert shown.logged["skipped"] == 1
    assert digest(fresh.state) == digest(built.state)


def test_the_step_that_ended_a_run(tmp_path):
    """Never trained, never logged: the one that a researcher wants to see."""
    built = small.build(tmp_path / "run", {(6, 3): small.HOT})
    with pytest.raises(NonFiniteError):
        loop.train(built)
    shown = replay_step(small.build(tmp_path / "run", {(6, 3): small.HOT}), 7, eager=True)
    assert (shown.start, shown.logged) == (0, {})
    assert shown.outcome == "not taken: it is not finite, and train.on_nonfinite='stop'"
    assert shown.finding == "term 'cross_entropy' of the loss is not finite, and no layer's output is to blame"
    assert shown.scalars["loss"] == shown.eager["loss"] == math.inf
    with pytest.raises(UserError, match="--step=8 was not trained yet"):
        replay_step(built, 8)


def test_a_re_run_that_is_not_the_run_says_so(tmp_path):
    """A step that went well then and does not now, on the way to the one asked for."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 10, "loss": 1.0}\n')
    changed = small.build(tmp_path / "run", {(6, 3): small.HOT})
    with pytest.raises(UserError) as caught:
        replay_step(changed, 9)
    assert str(caught.value) == (
        "--step=9: the re-run from step 0 cannot pass step 7, which is not finite, although the run did: its config or"
        " experiment file is another one."
    )


def test_several_models(tmp_path):
    """Norms and gradients go by the names of the models."""

    def make_step(cfg, tools):
        def step(state, batch):
            terms = {}
            for name, model in state.model.items():

                def one_pass(part, model=model):
                    loss = tf.reduce_sum(tf.square(model(part["x"], training=True)))
                    return {"square": losses.Term(loss, tf.reduce_sum(part["weight"]))}, {}

                found = tools.gradients(one_pass, batch, of=name)
                tools.apply(found.gradients, to=name)
                terms |= {f"square_{name}": found.terms["square"]}
            return terms, {}

        return step

    def make_model(cfg):
        return {name: keras.Sequential([keras.layers.Dense(units)]) for name, units in (("left", 2), ("right", 3))}

    def make_loss(cfg):
        def loss(model, batch, training):
            outputs = [tf.reduce_sum(part(batch["x"], training=training)) for part in model.values()]
            return {"sum": losses.Term(tf.add_n(outputs), tf.reduce_sum(batch["weight"]))}, {}

        return loss

    functions = {"make_step": make_step, "make_model": make_model, "make_loss": make_loss}
    built = small.build(tmp_path / "run", functions=functions)
    loop.train(built)
    shown = replay_step(built, 4, eager=True)
    assert shown.differing == [] and "gradient_norm/left" in shown.logged
    assert list(shown.weight_norms) == list(shown.gradient_norms)

    for name in ("left", "right"):
        own = [norm for path, norm in shown.gradient_norms.items() if path.startswith(f"{name}/")]
        assert len(own) == 2
        expected = pytest.approx(shown.scalars[f"gradient_norm/{name}"], rel=1e-5)
        assert math.sqrt(sum(norm**2 for norm in own)) == expected
        assert shown.eager[f"gradient_norm/{name}"] == expected


def test_no_such_step(tmp_path):
    built = small.build(tmp_path / "run")
    for step, expected in {
        -3: f"--step=-3 is out of range: {tmp_path / 'run'} has steps 1 to 10.",
        0: f"--step=0 is out of range: {tmp_path / 'run'} has steps 1 to 10.",
        11: f"--step=11 is out of range: {tmp_path / 'run'} has steps 1 to 10.",
        1: f"--step=1 was not trained yet: {tmp_path / 'run'} has come to step 0. Train first: --mode=train.",
    }.items():
        with pytest.raises(UserError) as caught:
            replay_step(built, step)
        assert str(caught.value) == expected


def test_a_run_that_set_out_from_another_is_replayed_from_there(tmp_path):
    """Weights alone, and the whole state: before the first checkpoint of its own."""
    quiet = {"checkpoint.keep": 1, "checkpoint.every": "", "log.every": "1 step"}
    trained(tmp_path / "first", "graph", LINEAR, **quiet, **{"train.duration": "9 steps"})
    tuned = {**quiet, "train.duration": "14 steps", "seed": 3}
    trained(tmp_path / "weights", "graph", LINEAR, **tuned, init_from=str(tmp_path / "first"))
    shown = replay_step(again(tmp_path / "weights", LINEAR), 2)
    assert (shown.start, shown.differing) == (0, []) and shown.logged["loss"] == shown.scalars["loss"]
    trained(tmp_path / "whole", "graph", LINEAR, **tuned, resume_from=str(tmp_path / "first"))
    shown = replay_step(again(tmp_path / "whole", LINEAR), 11)
    assert (shown.start, shown.differing) == (9, []) and shown.logged["loss"] == shown.scalars["loss"]
    with pytest.raises(UserError) as error:
        replay_step(again(tmp_path / "whole", LINEAR), 3)
    assert str(error.value) == (
        f"--step=3 is of the run that this one went on from at step 9: {tmp_path}/first. Use the --workdir of that one."
    )


@pytest.mark.parametrize("mode", [pytest.param("xla", marks=pytest.mark.slow), "graph"])
def test_a_step_of_replicas_exactly_and_on_one_device_it_is_said_why_not(tmp_path, mode, capsys):
    mirrored = {"runtime.strategy": "mirrored", "runtime.virtual_devices": 2}
    trained(tmp_path / "run", mode, "tests/tiny.py", **mirrored, **{"log.every": "1 step", "log.histograms_every": ""})
    shown = replay_step(again(tmp_path / "run", "tests/tiny.py"), 10)
    assert shown.logged["loss"] == shown.scalars["loss"] and shown.differing == []
    alone = build.build("tests/tiny.py", {"runtime.strategy": "one_device", "runtime.virtual_devices": 0},
                      tmp_path / "run", from_workdir=True, restore=False)  # fmt: skip
    ends = []
    for step in (7, 8, 9, 10):  # a sum of two halves may be that of the whole by chance
        assert replay_mode.main(alone, (), step) == 0  # another config than the run's was asked for
        ends.append(capsys.readouterr().out.splitlines()[-1])
    why = ": it was of 2 replicas. Type --config.runtime.strategy=mirrored --config.runtime.virtual_devices=2."
    assert any(end.endswith(why) for end in ends), ends
