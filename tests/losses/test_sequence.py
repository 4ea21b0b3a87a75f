"""The CTC loss against the sum over all paths."""

import numpy as np
import pytest
import tensorflow as tf

from framework import losses
from framework.errors import UserError
from tests import small
from tests.compile_modes import MODES
from tests.losses import references as ref

FRAMES, CLASSES = 5, 3


def drawn(blank):
    """Logits, labels, weight and lengths of five examples, of which the last has no weight and is nonsense."""
    rng = np.random.default_rng(2)
    a, b = (c for c in range(CLASSES) if c != blank)
    labels = np.array([[a, b, a], [a, a, 99], [b, -5, -5], [7, 7, 7], [blank, 50, -1]])
    logits = rng.normal(size=(5, FRAMES, CLASSES))
    logits[-1] = np.nan
    weight = np.array([1.0, 2.0, 0.5, 1.0, 0.0])
    return logits, labels, weight, np.array([3, 2, 1, 0, 9]), np.array([5, 4, 3, 2, 77])


@pytest.mark.parametrize(("mode", "blank"), [("eager", 0), ("graph", 2), ("xla", 0)])
def test_the_loss_is_that_of_all_paths(mode, blank):
    logits, labels, weight, label_lengths, logit_lengths = drawn(blank)

    def value_and_gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            term = losses.ctc(x, labels, weight, label_lengths, logit_lengths, blank=blank)
        return (*term, tape.gradient(term.sum, x))

    total, weights, gradient = MODES[mode](value_and_gradient)(tf.constant(logits, tf.float32))
    expected = sum(
        weight[i] * ref.ctc(logits[i, : logit_lengths[i]], labels[i, : label_lengths[i]], blank) for i in range(4)
    )
    assert float(total) == pytest.approx(expected, rel=1e-5)
    assert float(weights) == weight.sum()
    assert np.isfinite(gradient).all() and not gradient.numpy()[-1].any()
    assert not gradient.numpy()[1, 4:].any()  # beyond the frames that count


def test_gradients_are_the_differences_of_all_paths():
    logits, labels, _, label_lengths, logit_lengths = (array[:3] for array in drawn(0))
    x = tf.constant(logits, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(x)
        term = losses.ctc(x, labels, [1.0, 1.0, 1.0], label_lengths, logit_lengths)
    gradient, step = tape.gradient(term.sum, x).numpy(), 1e-5
    for i, frame, c in np.ndindex(*logits.shape):
        above, below = logits[i].copy(), logits[i].copy()
        above[frame, c] += step
        below[frame, c] -= step
        ends = [ref.ctc(z[: logit_lengths[i]], labels[i, : label_lengths[i]], 0) for z in (above, below)]
        assert gradient[i, frame, c] == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["graph", "xla"])
def test_a_run_trains_with_it_and_names_what_is_out_of_range(tmp_path, mode):
    def make_loss(cfg):
        def loss(model, batch, training):
            logits = tf.reshape(model(batch["x"], training=training), [-1, 1, 3])
            frames = tf.repeat(logits, 4, axis=1)
            labels = batch["label"][:, tf.newaxis]
            ones = tf.ones_like(batch["label"])
            return {"ctc": losses.ctc(frames, labels, batch["weight"], ones, 4 * ones, blank=2)}, {}

        return loss

    run = small.build(tmp_path / "run", functions={"make_loss": make_loss}, **{"train.compile": mode})
    with pytest.raises(
        UserError, match="it comes from 'label' and 'weight' of the batch"
    ):  # some labels are 2, the blank
        run.train_block(1)


@pytest.mark.parametrize("mode", ["graph", pytest.param("xla", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("labels", "lengths", "frames"),
    [
        ([3, 1, 1], 1, 5),  # no class
        ([-1, 1, 1], 1, 5),
        ([1, 0, 1], 2, 5),  # the blank
        ([1, 1, 1], 4, 5),
        ([1, 1, 1], 1, 6),
        ([1, 1, 1], 3, 4),  # needs two blanks between
        ([1, 2, 1], 3, 2),
    ],
)
def test_a_sequence_that_cannot_be_makes_the_loss_nan(mode, labels, lengths, frames):
    call = MODES[mode](lambda x: losses.ctc(x, [labels], [1.0], [lengths], [frames]))
    assert np.isnan(call(tf.zeros([1, FRAMES, CLASSES])).sum)


def test_half_precision_is_computed_in_float32():
    logits, *rest = (array[:4] for array in drawn(0))
    term = losses.ctc(tf.cast(logits, tf.bfloat16), *rest)
    rounded = tf.cast(tf.cast(logits, tf.bfloat16), tf.float32)
    assert term.sum.dtype == tf.float32 and float(term.sum) == float(losses.ctc(rounded, *rest).sum)


def test_shapes_and_the_blank_are_looked_at():
    with pytest.raises(UserError, match=r"^ctc: shapes are logits \(2, 5, 3\), labels \(4,\), weight"):
        losses.ctc(np.zeros([2, 5, 3]), np.zeros(4, int), np.ones(2), np.ones(2, int), np.ones(2, int))
    with pytest.raises(UserError, match=r"^ctc: blank=3 is none of the classes 0 to 2\."):
        losses.ctc(np.zeros([2, 5, 3]), np.zeros([2, 4], int), np.ones(2), np.ones(2, int), np.ones(2, int), blank=3)
