"""Augmentation inside of batches: fields of the data order, replicas, micro-batches, tf.data and TensorBoard."""

from typing import ClassVar

import numpy as np
import pytest
import tensorflow as tf

import launch
from framework import losses, testing
from framework.config import base_config
from framework.data import augment
from framework.data.batches import make_batches
from framework.errors import UserError
from framework.run.preview import show_inputs
from framework.writers import Writer
from tests import pictures
from tests.pictures import source

EXAMPLES, BATCH = 10, 4
CHAIN = pictures.chain(few=True)


def config(**values):
    cfg = base_config()
    cfg.seed, cfg.data.batch_size, cfg.eval.batch_size = 5, BATCH, BATCH
    for key, value in values.items():
        cfg.data[key] = value
    return cfg


class Seen:
    """Copies the fields of the data order into fields of its own."""

    needs = ("index", "epoch")

    def __call__(self, batch):
        return {**batch, "seen_index": batch["index"], "seen_epoch": batch["epoch"]}


@pytest.mark.parametrize("placement", ["resident", "stream"])
def test_a_transform_that_needs_them_gets_index_and_epoch(placement):
    batches = make_batches(source(), config(placement=placement), training=True, transform=Seen())
    for step in (0, 2, 7):
        batch = batches.at(step)
        assert np.array_equal(batch["seen_index"], batches.indices(step)["index"])
        assert np.array_equal(batch["seen_epoch"], (step * BATCH + np.arange(BATCH)) // EXAMPLES)
        assert np.array_equal(batch["label"], batch["seen_index"].numpy() % 3)
        assert batch.keys() == {"image", "label", "weight", "seen_index", "seen_epoch"}


@pytest.mark.parametrize("placement", ["resident", "stream"])
def test_of_a_mixture_the_index_counts_all_examples_and_the_epoch_those_of_the_source(placement):
    mixture = [(source(), 0.75), (source(6, seed=1), 0.25)]
    batches = make_batches(mixture, config(placement=placement), training=True, transform=Seen())
    seen = [batches.at(step) for step in range(12)]
    index, epoch = (np.concatenate([batch[f"seen_{name}"] for batch in seen]) for name in Seen.needs)
    places = [batches.indices(step) for step in range(12)]
    numbers, within = (np.concatenate([place[name] for place in places]) for name in ("source", "index"))
    assert np.array_equal(index, within + 10 * numbers)
    for number, size in ((0, 10), (1, 6)):
        positions = np.sort(epoch[numbers == number])
        assert np.array_equal(positions, np.arange(len(positions)) // size)


@pytest.mark.parametrize(
    ("fields", "needs", "said"),
    [
        ({"epoch": np.zeros(EXAMPLES)}, ("epoch",), "the source has a field 'epoch', and the transform needs"),
        ({}, ("step",), r"transform.needs has 'step', but the data order has index and epoch alone\."),
    ],
)
def test_other_needs_are_refused(fields, needs, said):
    transform = Seen()
    transform.needs = needs
    with pytest.raises(UserError, match=said):
        make_batches(source(**fields), config(), training=True, transform=transform).at(0)


def test_shards_and_restarted_and_streamed_batches_have_the_bits_of_the_whole_batch():
    """The graph of tf.data and eager execution differ by rounding, in pixels that are computed."""
    whole = make_batches(source(), config(), training=True, transform=CHAIN)
    streamed = make_batches(source(), config(placement="stream"), training=True, transform=CHAIN)
    again = make_batches(source(), config(), training=True, transform=CHAIN)
    plan = streamed.plan(5, 2, 2)
    for step in (5, 6):
        batch = {name: value.numpy() for name, value in whole.at(step).items()}
        assert batch.keys() == {"image", "label", "label_2", "mix", "weight"}
        for name, value in batch.items():
            assert np.array_equal(again.at(step)[name], value)
            for batches in (whole, streamed):
                shards = [batches.shard(first, 2).at(step)[name] for first in (0, 2)]
                assert np.array_equal(np.concatenate(shards), value), name
            read = streamed.take(plan, tf.constant(step - 5))[name]
            np.testing.assert_allclose(read, value, rtol=0, atol=0.03 if name == "image" else 0)


def test_a_pipeline_is_augmented_too_but_has_no_index():
    pipeline = tf.data.Dataset.from_tensor_slices(dict(source().arrays)).batch(BATCH)
    chain = augment.Chain(augment.Flip(rate=1), augment.Normalise((0.3,), (0.5,)))
    batches = make_batches(pipeline, config(), training=True, transform=chain)
    shown = batches.to_pictures(batches.at(0))["image"]
    np.testing.assert_allclose(shown, source().arrays["image"][:BATCH, :, ::-1] / 255, atol=1e-6)
    with pytest.raises(UserError, match=r"needs the 'epoch' of each example, which a tf.data.Dataset does not tell"):
        make_batches(pipeline, config(), training=True, transform=CHAIN).at(0)


def make_run(tmp_path, **overrides):
    settings = {"data.few": True, "data.placement": "resident", **overrides}
    return testing.build(pictures, settings, tmp_path / "run")


def test_micro_batches_train_what_the_whole_batch_does(tmp_path):
    rows = [make_run(tmp_path, **{"train.micro_batches": count}).train_block(3) for count in (1, 2)]
    for step in range(3):
        np.testing.assert_allclose(rows[0].row(step)["loss"], rows[1].row(step)["loss"], rtol=1e-5)


def test_pictures_are_written_as_they_look_after_each_augmentation(tmp_path):
    class Pictures(Writer):
        pictures: ClassVar[dict] = {}

        def images(self, step, images):
            self.pictures |= images

    run = make_run(tmp_path, **{"log.images": 3})
    show_inputs(run, Pictures())
    names = ["source", "PadAndCrop", "AlternatingFlip", "MixUp"]
    assert list(Pictures.pictures) == ["inputs/image", *(f"inputs/image/{i}_{name}" for i, name in enumerate(names))]
    first = source().take(run.data.indices(0)["index"][:3])["image"]
    assert np.array_equal(Pictures.pictures["inputs/image/0_source"], first)
    mixed = Pictures.pictures["inputs/image/3_MixUp"]
    assert mixed.dtype == np.uint8 and not np.array_equal(mixed, first)
    np.testing.assert_allclose(Pictures.pictures["inputs/image"], mixed / 255, atol=1e-6)
    normalised = (mixed / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.3, 0.4]
    np.testing.assert_allclose(run.data.at(0)["image"][:3], normalised, atol=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("mode", ["graph", "xla"])
def test_a_killed_run_with_all_augmentations_ends_in_the_same_bits(tmp_path, mode):
    arguments = [f"--workdir={tmp_path}/run", f"--config.train.compile={mode}", "--mode=verify_resume", "--kills=3"]
    assert launch.main(["launch.py", "--config=tests/pictures.py", *arguments]) == 0


def plain_loss(cfg):
    def loss(model, batch, training):
        logits = model(batch["image"], training=training)
        return {"cross_entropy": losses.sparse_cross_entropy(logits, batch["label"], batch["weight"])}, {}

    return loss


def functions(**others):
    names = ("get_config", "make_data", "make_model", "make_loss")
    return {**{name: getattr(pictures, name) for name in names}, **others}


def test_a_loss_that_reads_one_of_two_mixed_labels_is_refused(tmp_path):
    settings = {"data.few": True}
    with pytest.raises(UserError, match=r"the loss does not read 'mix' of the batch, .* Write losses\.mixed\("):
        testing.build(functions(make_loss=plain_loss), settings, tmp_path / "a")
    testing.build(functions(), settings, tmp_path / "b")

    def make_step(cfg, tools):
        loss = plain_loss(cfg)

        def step(state, batch):
            result = tools.gradients(lambda batch: loss(state.model, batch, True), batch)
            tools.apply(result.gradients)
            return result.terms, {}

        return step

    with pytest.raises(UserError, match="the step does not read 'mix'"):
        testing.build(functions(make_step=make_step), settings, tmp_path / "c")


@pytest.mark.parametrize("transform", [None, pictures.NORMALISE], ids=["raw", "normalised"])
def test_pictures_of_another_type_than_in_training_are_warned_of(transform, tmp_path, caplog):
    def make_data(cfg, split):
        training = split == "train"
        chosen = pictures.NORMALISE if training else transform
        return make_batches(source(), cfg, training=training, transform=chosen)

    testing.build(functions(make_data=make_data, make_loss=plain_loss), {}, tmp_path / "run")
    said = [message for message in caplog.messages if "lacks a part of the transform" in message]
    assert len(said) == (transform is None)
    assert all(
        message.startswith("'image' is float32 in training, but uint8 in the evaluation split") for message in said
    )
