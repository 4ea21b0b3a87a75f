"""framework/step/step.py: each stage by itself, against the formula of a weighted least-squares step in float64."""

import numpy as np
import pytest
import tensorflow as tf

from framework import losses, rng
from framework.distribute.replicas import Replicas
from framework.errors import UserError
from framework.step.gradients import Objective
from framework.step.parts import StepResult, StepTrace
from framework.step.step import apply_update, batch_gradients, count_step
from tests.small import build, snapshot

EXAMPLES, FEATURES, ROWS = 8, 3, 5
DRAW = np.random.default_rng(5)
X, Y = DRAW.normal(size=(EXAMPLES, FEATURES)), DRAW.normal(size=EXAMPLES)
WEIGHT = np.array([1, 0.5, 0, 2, 1, 1, 0, 0])  # the last of four micro-batches has no weight at all
KERNEL = DRAW.normal(size=FEATURES)


def squares(kernel):
    """A forward pass: the weighted squares of a linear model."""

    def forward_pass(batch):
        error = tf.linalg.matvec(batch["x"], kernel) - batch["y"]
        return {"square": losses.Term(tf.reduce_sum(batch["weight"] * error**2), tf.reduce_sum(batch["weight"]))}, {}

    return forward_pass


def batch_of_squares():
    return {"x": tf.constant(X), "y": tf.constant(Y), "weight": tf.constant(WEIGHT)}


@pytest.mark.parametrize("scale", [None, 1024.0])
@pytest.mark.parametrize("micro_batches", [1, 2, 4])
def test_stages_0_to_3_are_the_gradient_of_the_weighted_mean(micro_batches, scale):
    kernel = tf.Variable(KERNEL)
    objective = Objective(
        squares(kernel), {"kernel": kernel}, {}, tf.float64, loss_scale=None if scale is None else tf.constant(scale)
    )
    with rng.scope(rng.key(0), 0):
        result = tf.function(lambda: batch_gradients(objective, batch_of_squares(), Replicas(), micro_batches))()
    error = X @ KERNEL - Y
    expected = 2 * X.T @ (WEIGHT * error) / WEIGHT.sum()
    np.testing.assert_allclose(result.gradients["kernel"], expected, rtol=1e-12)
    np.testing.assert_allclose(result.terms["square"].sum, np.sum(WEIGHT * error**2), rtol=1e-12)
    assert float(result.terms["square"].weight) == WEIGHT.sum()


def optimizer_of(**settings):
    """The SGD of a run, with its model's variables."""
    built = build(**{"train.precision": "float64", "optimizer.name": "sgd", "schedule.warmup": "", **settings})
    return built, built.state.optimizer


@pytest.mark.parametrize("threshold", [0.5, 1e6])
def test_stages_4_to_6_clip_by_the_norm_and_apply(threshold):
    built, optimizer = optimizer_of(**{"clip.name": "global_norm", "clip.threshold": threshold})
    before = {path: variable.numpy() for path, variable in optimizer.trained.items()}
    gradients = {path: DRAW.normal(size=variable.shape) for path, variable in optimizer.trained.items()}
    tensors = {path: tf.constant(gradient) for path, gradient in gradients.items()}
    is_finite, norm = apply_update(optimizer, tensors, tf.constant(True), built.resolved.clip, Replicas())
    length = np.sqrt(sum(np.sum(gradient**2) for gradient in gradients.values()))
    rate = float(built.schedules["model"](0)) * min(1, threshold / length)
    assert bool(is_finite)
    assert float(norm) == pytest.approx(length, rel=1e-12)
    for path, variable in optimizer.trained.items():
        np.testing.assert_allclose(variable, before[path] - rate * gradients[path], rtol=1e-12)


@pytest.mark.parametrize(("bad", "allowed"), [(np.nan, True), (np.inf, True), (0.0, False)])
def test_an_update_that_is_not_finite_or_not_allowed_changes_nothing(bad, allowed):
    built, optimizer = optimizer_of(**{"optimizer.name": "adam"})
    before = snapshot(built)
    gradients = {path: tf.ones(variable.shape, tf.float64) for path, variable in optimizer.trained.items()}
    last = list(gradients)[-1]
    gradients[last] += bad
    is_finite, _ = apply_update(optimizer, gradients, tf.constant(allowed), built.resolved.clip, Replicas())
    assert bool(is_finite) == np.isfinite(bad)
    assert snapshot(built) == before


def test_rows_of_a_table_are_kept_each_once_and_add_up_to_the_dense_gradient():
    table = tf.Variable(DRAW.normal(size=(ROWS, FEATURES)))
    index = np.array([3, 0, 3, 3])
    upstream = DRAW.normal(size=(4, FEATURES))

    def forward_pass(batch):
        return {"sum": losses.Term(tf.reduce_sum(tf.gather(table, batch["index"]) * upstream), tf.constant(2.0))}, {}

    objective = Objective(forward_pass, {"table": table}, {}, tf.float64, keeps_rows=True)
    with rng.scope(rng.key(0), 0):
        gradient = batch_gradients(objective, {"index": tf.constant(index)}, Replicas()).gradients["table"]
    assert isinstance(gradient, tf.IndexedSlices)
    assert sorted(gradient.indices.numpy()) == [0, 3]
    expected = np.zeros([ROWS, FEATURES])
    np.add.at(expected, index, upstream / 2)
    np.testing.assert_allclose(tf.convert_to_tensor(gradient), expected, rtol=1e-12)


# (policy, is finite, is allowed, violations) -> (steps, skipped steps, skipped in a row, whether the block halts)
COUNTS = [
    ("stop", True, True, 0, (1, 0, 0, False)),
    ("stop", False, True, 0, (0, 0, 0, True)),
    ("stop", True, True, 2, (0, 0, 0, True)),
    ("skip", True, True, 0, (1, 0, 0, False)),
    ("skip", False, True, 0, (1, 1, 1, False)),
    ("skip", False, True, 2, (0, 0, 0, True)),
    ("rewind", False, True, 0, (0, 0, 0, True)),
    ("rewind", True, False, 0, (1, 1, 1, False)),
    ("rewind", False, False, 0, (1, 1, 1, False)),
]


@pytest.mark.parametrize(("policy", "finite", "allowed", "violations", "expected"), COUNTS)
def test_stage_7_counts_a_step_or_halts_before_it(policy, finite, allowed, violations, expected):
    built = build(**{"train.on_nonfinite": policy})
    assert counted(built, finite, allowed, violations) == expected


def counted(built, finite, allowed=True, violations=0):
    """What `count_step` makes of a step: counters, and whether the block halts."""
    trace = StepTrace(built.train_block._tools.parts, tf.constant(allowed))
    good, allowed = tf.constant(finite and not violations), tf.constant(allowed)
    result = StepResult({}, {}, good, good & allowed, tf.constant(violations), tf.constant(0, tf.int64))
    halts = count_step(trace, result)
    state = built.state
    return int(state.step), int(state.skipped), int(state.skipped_in_row), bool(halts)


def test_too_many_skipped_steps_in_a_row_halt_the_block_and_a_good_one_starts_again():
    built = build(**{"train.on_nonfinite": "skip", "train.nonfinite_limit": 2})
    assert [counted(built, finite) for finite in (False, True, False, False)] == [
        (1, 1, 1, False),
        (2, 1, 0, False),
        (3, 2, 1, False),
        (4, 3, 2, True),
    ]


def test_a_dynamic_loss_scale_skips_what_is_not_finite_and_halves():
    built = build(**{"train.precision": "float16", "loss_scale.initial": 256.0})
    assert counted(built, False) == (1, 1, 1, False)
    assert float(built.state.loss_scale.scale) == 128.0
    assert counted(built, True) == (2, 1, 0, False)
    assert float(built.state.loss_scale.scale) == 128.0


def test_a_violation_leaves_the_skipped_steps_in_a_row_as_they_are():
    built = build(**{"train.on_nonfinite": "skip", "train.nonfinite_limit": 9})
    steps = [counted(built, finite, violations=found) for finite, found in ((False, 0), (True, 1), (False, 0))]
    assert steps == [(1, 1, 1, False), (1, 1, 1, True), (2, 2, 2, False)]


def test_a_violation_leaves_a_dynamic_loss_scale_as_it_is():
    built = build(**{"train.precision": "float16", "loss_scale.initial": 256.0, "loss_scale.growth_interval": 3})
    assert [counted(built, finite, violations=found) for finite, found in ((True, 0), (True, 1), (False, 1))] == [
        (1, 0, 0, False),
        (1, 0, 0, True),
        (1, 0, 0, True),
    ]
    scale = built.state.loss_scale
    assert (float(scale.scale), int(scale.good), int(scale.stuck)) == (256.0, 1, 0)


@pytest.fixture(scope="module")
def tools():
    return build().train_block._tools


@pytest.mark.parametrize("name", ["gradients", "apply", "each", "gather", "all_reduce", "is_finite"])
def test_tools_are_refused_outside_of_a_step(tools, name):
    arguments = {"gradients": (None, {}), "apply": ({},), "each": (None, {}), "is_finite": ()}.get(name, ({},))
    with pytest.raises(UserError) as caught:
        getattr(tools, name)(*arguments)
    assert str(caught.value) == (
        f"tools.{name} is called outside of a step. Call it in the function that make_step returns."
    )
