"""Extensions of an experiment's own: an average like the EMA, to its bits, in every way to compute a step."""

import numpy as np
import pytest
import tensorflow as tf

from framework import optim, paths, testing
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
