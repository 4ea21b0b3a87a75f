"""Extensions of an experiment's own: an average like the EMA, to its bits, in every way to compute a step."""

import numpy as np
import pytest
import tensorflow as tf

from framework import optim, paths, rng, testing
from framework.config import UserError
from tests.interrupted import interrupted
from tests.small import HOT, build, differing, snapshot

TWO = {"runtime.strategy": "mirrored", "runtime.virtual_devices": 2}
SKIPPING = {"train.on_nonfinite": "skip", "ema.decay": 0.9}


class Bounded(optim.Extension):
    """Keeps the first kernel between -0.3 and 0.3, counts the updates that it changed, and sums the kernel up."""

    def __init__(self, model):
        super().__init__("bounded")
        self.kernel = paths.variables(model)["first/kernel"]
        self.changed = tf.Variable(0, trainable=False, dtype=tf.int64)
        self.total = tf.Variable(tf.zeros(self.kernel.shape), trainable=False)
        self.starts = 0

    def after_update(self, updates, step, applied):
        bounded = tf.clip_by_value(self.kernel, -0.3, 0.3)
        is_changed = applied & tf.reduce_any(tf.not_equal(bounded, self.kernel))
        self.changed.assign_add(tf.cast(is_changed, tf.int64))
        self.kernel.assign(tf.where(applied, bounded, self.kernel))
        self.total.assign(tf.where(applied, self.total + bounded, self.total))

    def restart(self):
        self.starts += 1


def run(*arguments, **more):
    functions = {"make_extensions": lambda cfg, model: {"bounded": Bounded(model)}}
    return build(*arguments, functions=functions, heat={(4, 3): HOT}, **SKIPPING, **more)


@pytest.mark.parametrize(
    "more",
    [{}, *(pytest.param(more, marks=pytest.mark.slow) for more in (TWO, {"train.compile": "xla"}))],
    ids=["graph", "replicas", "xla"],
)
def test_an_extension_changes_weights_before_the_average_and_not_after_a_skipped_step(more):
    built = run(**more)
    own = built.state.extensions["bounded"]
    total = np.zeros((6, 8))
    for step in range(10):
        before = snapshot(built)
        built.train_block(1)
        kernel = paths.variables(built.model)["first/kernel"].numpy()
        if step == 4:
            assert differing(before, snapshot(built)) == {"step", "skipped", "skipped_in_row"}
        else:
            total += kernel
            assert np.abs(kernel).max() == np.float32(0.3)
        average = built.state.ema.averages["first/kernel"].numpy()
        assert np.abs(average).max() <= np.float32(0.3) * (1 + 1e-6)
    assert int(own["changed"]) == 9
    np.testing.assert_allclose(own["total"].numpy(), total, rtol=1e-6)
    saved = [path for path in snapshot(built) if path.startswith("extensions/")]
    assert saved == ["extensions/bounded/changed", "extensions/bounded/total"]
    assert "model/first/kernel" in snapshot(built)


@pytest.mark.slow
def test_a_resumed_run_ends_in_the_same_bits(tmp_path):
    whole, resumed = interrupted(run, tmp_path, 3, 5)
    resumed.train_block(5)
    assert testing.bits(whole.state) == testing.bits(resumed.state)


def test_an_extension_is_told_when_weights_are_taken_from_another_run(tmp_path):
    source = run(tmp_path / "source", **{"train.duration": "1 step", "schedule.warmup": ""})
    source.open()
    source.train_block(1)
    source.checkpoints.save(source.state, {}, source.facts())
    source.checkpoints.close()
    made = []
    functions = {"make_extensions": lambda cfg, model: {"bounded": made.append(Bounded(model)) or made[0]}}
    build(tmp_path / "run", functions=functions, init_from=str(source.workdir)).open()
    assert [extension.starts for extension in made] == [1]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([], "a value of type list. It must return "),
        (
            {"a": tf.Module},
            "a value of type dict. 'a' is a value of type type, not an optim.Extension. It must",
        ),
    ],
)
def test_what_is_no_extension_is_refused(returned, message):
    with pytest.raises(UserError) as error:
        build(functions={"make_extensions": lambda cfg, model: returned})
    assert str(error.value).startswith(f"make_extensions returned {message}")


class Nothing(optim.Extension):
    """Has no after_update."""


class Short(optim.Extension):
    def after_update(self, updates, applied):
        pass


class Long(Bounded):
    def restart(self, updates):
        pass


class Careless(Bounded):
    """Counts a skipped step as well."""

    def after_update(self, updates, step, applied):
        self.changed.assign_add(1)


class Heavy(Bounded):
    """Changes a weight after a skipped step as well."""

    def after_update(self, updates, step, applied):
        self.kernel.assign(0.5 * self.kernel)


class Late(Bounded):
    def after_update(self, updates, step, applied):
        self.late = tf.Variable(0.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda model: Nothing(), "'a', of class Nothing, has no after_update. Write def after_update(self, updates, "),
        (lambda model: Short(), "'a', of class Short, has an after_update of other arguments. Write def after_update("),
        (Long, "'a', of class Long, has no restart without arguments. Make Long a class of optim.Extension, or write"),
        (Careless, "'a', of class Careless, changes its variable 'changed' though `applied` is False: a step compiled"),
        (Heavy, "'a', of class Heavy, changes the weight 'first/kernel' though `applied` is False: a step compiled by"),
        (Late, "after_update of 'a', of class Late, makes a variable, which no checkpoint has. Make it in __init__"),
    ],
    ids=["no method", "arguments", "restart", "counts", "weight", "late"],
)
def test_an_extension_that_a_step_cannot_call_or_skip_is_refused(make, message):
    with pytest.raises(UserError) as error:
        build(functions={"make_extensions": lambda cfg, model: {"a": make(model)}})
    assert str(error.value).startswith(f"make_extensions: {message}")


def test_one_extension_under_two_names_is_refused():
    def make_extensions(cfg, model):
        return dict.fromkeys(("a", "b"), Bounded(model))

    with pytest.raises(UserError, match="returned one extension as 'a' and as 'b', which would be called twice"):
        build(functions={"make_extensions": make_extensions})


def test_an_extension_may_draw_and_the_check_changes_no_bit():
    class Noisy(Bounded):
        def after_update(self, updates, step, applied):
            noise = rng.normal("noise", *self.kernel.shape)
            self.total.assign(tf.where(applied, self.total + noise, self.total))

    built = build(functions={"make_extensions": lambda cfg, model: {"noisy": Noisy(model)}})
    plain = build()
    assert {path: bits for path, bits in testing.bits(built.state).items() if "extensions" not in path} == testing.bits(
        plain.state
    )
    assert not built.state.extensions["noisy"]["total"].numpy().any()
    built.train_block(2)
    total = built.state.extensions["noisy"]["total"].numpy()
    assert 0.5 < total.std() / np.sqrt(2) < 2
