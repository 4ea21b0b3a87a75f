"""framework/step/examples_apart.py: transforms that use the rest of the batch are named, all others are not."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from framework import config, data, rng
from framework.config import UserError
from framework.data import augment
from framework.run import loop
from framework.step.examples_apart import check_apart
from tests import small
from tests.distribute.replicated import on

BATCH = 12
RNG = np.random.default_rng(0)
FIELDS = {
    "image": RNG.integers(0, 256, (40, 6, 6, 3)).astype(np.uint8),
    "x": RNG.normal(size=(40, 5)).astype(np.float32),
    "label": (np.arange(40) % 3).astype(np.int32),
    "name": np.array([f"example {number}" for number in range(40)]),
}


def found(transform, size=BATCH, sources=None, **settings):
    cfg = config.base_config()
    cfg.data.batch_size = size
    for key, value in settings.items():
        cfg.data[key] = value
    sources = data.Source(FIELDS, "noise") if sources is None else sources
    return check_apart(data.make_batches(sources, config.finalize(cfg), training=True, transform=transform))


def on_x(fn):
    return lambda batch: {**batch, "x": fn(batch["x"])}


@dataclasses.dataclass(frozen=True)
class ByIndex:
    needs = ("index", "epoch")

    def __call__(self, batch):
        return {**batch, "x": batch["x"] * tf.cast(batch["index"], tf.float32)[:, tf.newaxis]}


RIGHT = {
    "none": None,
    "of each example": on_x(lambda x: tf.math.softmax(x) - tf.reduce_mean(x, 1, keepdims=True)),
    "drawn": on_x(lambda x: x + rng.normal("noise", tf.shape(x)[0], 5)),
    "by index": ByIndex(),
    "half precision": on_x(lambda x: tf.cast(tf.exp(x), tf.bfloat16)),
    "a table": lambda batch: {**batch, "table": tf.reshape(tf.range(40.0), [8, 5])},
    "texts": lambda batch: {**batch, "name": tf.strings.upper(batch["name"])},
    "not a number": on_x(lambda x: tf.where(x > 1, np.nan, x)),
    "mixed": augment.Chain(
        augment.PadAndCrop(2), augment.OneOf(augment.MixUp(0.4), augment.CutMix()), augment.Normalise((0.5,), (0.2,))
    ),
    "colours": augment.Chain(augment.RandAugment(), augment.Affine(rotate=20)),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_transform_of_each_example_or_pair_is_right(name):
    assert found(RIGHT[name]) == []


WRONG = {
    "mean": ("x", on_x(lambda x: x - tf.reduce_mean(x, 0))),
    "deviation": ("x", on_x(lambda x: x / tf.math.reduce_std(x))),
    "largest": ("x", on_x(lambda x: x / tf.reduce_max(tf.abs(x)))),
    "half precision": ("x", on_x(lambda x: tf.cast(x - tf.reduce_mean(x, 0), tf.float16))),
    "whole numbers": ("label", lambda batch: {**batch, "label": batch["label"] * tf.shape(batch["label"])[0]}),
    "a partner from the other end": ("x", on_x(lambda x: 0.7 * x + 0.3 * tf.reverse(x, [0]))),
    "the neighbour on the left": ("x", on_x(lambda x: 0.7 * x + 0.3 * tf.roll(x, 1, 0))),
    "order": ("x", on_x(lambda x: tf.sort(x, 0))),
    "place in the part": ("x", on_x(lambda x: x + tf.range(tf.cast(tf.shape(x)[0], tf.float32))[:, tf.newaxis])),
    "size of the part": ("x", on_x(lambda x: x / tf.cast(tf.shape(x)[0], tf.float32))),
    "contrast": (
        "image",
        lambda batch: {**batch, "image": batch["image"] // 2 + tf.reduce_max(batch["image"] // 2, 0)},
    ),
    "a table of the batch": ("mean", lambda batch: {**batch, "mean": tf.reduce_mean(batch["x"], 0)}),
    "weights": ("weight", lambda batch: {**batch, "weight": batch["weight"] / tf.reduce_sum(batch["weight"])}),
    "texts": ("name", lambda batch: {**batch, "name": tf.strings.join([batch["name"], batch["name"][0]])}),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("placement", ["resident", "stream"])
def test_a_transform_that_uses_the_rest_of_the_batch_is_named(name, placement):
    field, transform = WRONG[name]
    (sentence,) = found(transform, placement=placement)
    assert sentence.startswith(
        f"the transform makes another '{field}' of 6 and 6 examples of a batch, as replicas have"
    )


def test_the_difference_is_that_of_the_means_of_the_parts():
    sources = data.Source({"x": np.arange(40, dtype=np.float64)[:, np.newaxis]}, "count")
    (sentence,) = found(on_x(lambda x: x - tf.reduce_mean(x)), size=10, sources=sources, shuffle=False)
    # The means are 1.5 of 0 … 3, 6.5 of 4 … 9, and 4.5 of all.
    assert sentence == (
        "the transform makes another 'x' of 4 and 6 examples of a batch, as replicas have them, than of all 10 (the"
        " largest difference is 3). A transform treats each example by itself: compute a mean or another statistic"
        " once, of all data, in make_data, and pair neighbours (places 0 and 1, 2 and 3) as augment.MixUp does."
    )


def test_a_pipeline_is_checked_and_read_on():
    def pipeline():
        arrays = {name: array for name, array in FIELDS.items() if name != "name"}
        return tf.data.Dataset.from_tensor_slices(arrays).batch(10)

    assert found(on_x(tf.exp), size=10, sources=pipeline()) == []
    assert len(found(on_x(lambda x: x - tf.reduce_mean(x, 0)), size=10, sources=pipeline())) == 1


def test_a_transform_for_one_size_is_not_judged(caplog):
    assert found(on_x(lambda x: x + tf.reshape(tf.range(60.0), [12, 5]))) is None
    assert "the transform cannot be given 6 of the 12 examples of a batch" in caplog.text


def test_replicas_refuse_it_before_a_step(tmp_path):
    def make_data(cfg, split):
        centred = on_x(lambda x: x - tf.reduce_mean(x, 0))
        return data.make_batches(small.examples({}), cfg, training=split == "train", transform=centred)

    built = small.build(tmp_path / "run", functions={"make_data": make_data}, **on(2), **{"train.duration": "4 steps"})
    with pytest.raises(UserError, match="the transform makes another 'x' of 8 and 8 examples of a batch"):
        loop.train(built)
    assert int(built.state.step) == 0
