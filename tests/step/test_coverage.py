"""What steers a step and is in no checkpoint: refused by name, or hashed and compared when a run goes on."""

import re

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import framework
from framework import losses, paths
from framework.config import UserError
from framework.data.batches import make_batches
from framework.data.sources import Source
from framework.run import loop
from tests import small

WORDS = np.array(["ape", "bee", "cat", "dog"])


def data_with(transform, training=True, words=False):
    """make_data whose training (or evaluation) batches go through transform(batch)."""

    def make_data(cfg, split):
        source = small.examples({})
        if words:
            source = Source({**source.arrays, "word": WORDS[np.arange(small.EXAMPLES) % 4]}, "words")
        own = transform if (split == "train") is training else lambda batch: batch
        return make_batches(source, cfg, training=split == "train", transform=own)

    return make_data


def counted_by_a_variable():
    seen = tf.Variable(0.0, trainable=False, name="seen")

    def transform(batch):
        seen.assign_add(1.0)
        return {**batch, "x": batch["x"] * seen}

    return transform


def counted_by_a_table():
    table = tf.lookup.experimental.MutableHashTable(tf.int32, tf.float32, 0.0, name="counts")

    def transform(batch):
        table.insert(batch["label"], table.lookup(batch["label"]) + 1.0)
        counts = tf.ensure_shape(table.lookup(batch["label"]), batch["label"].shape)
        return {**batch, "x": batch["x"] * counts[:, tf.newaxis]}

    return transform


def read_from_a_mutable_table():
    table = tf.lookup.experimental.MutableHashTable(tf.int32, tf.float32, 0.0, name="counts")

    def transform(batch):
        counts = tf.ensure_shape(table.lookup(batch["label"]), batch["label"].shape)
        return {**batch, "x": batch["x"] + counts[:, tf.newaxis]}

    return transform


def counted_in_a_branch():
    seen = tf.Variable(0.0, trainable=False, name="seen")

    def transform(batch):
        tf.cond(batch["x"][0, 0] > 0, lambda: seen.assign_add(1.0), lambda: seen.read_value())
        return {**batch, "x": batch["x"] * seen}

    return transform


@pytest.mark.parametrize(
    ("placement", "training"),
    [
        ("resident", True),
        ("stream", False),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("resident", False), ("stream", True))),
    ],
)
@pytest.mark.parametrize(
    ("make_transform", "named"),
    [
        (counted_by_a_variable, "changes the variable 'seen:0'"),
        (counted_in_a_branch, "changes the variable 'seen:0'"),
        (counted_by_a_table, "uses the table 'counts'"),
        (read_from_a_mutable_table, "uses the table 'counts'"),
    ],
)
def test_a_transform_that_remembers_is_refused(make_transform, named, placement, training):
    functions = {"make_data": data_with(make_transform(), training)}
    with pytest.raises(UserError) as caught:
        small.build(functions=functions, **{"data.placement": placement})
    where = "the transform of the training data" if training else "evaluation of 'test'"
    assert str(caught.value).startswith(f"{where} {named}") and "\n" not in str(caught.value)
    assert "framework.rng" in str(caught.value)


def loss_with(factor_of):
    """small's loss of x times what factor_of() makes of it."""

    def make_loss(cfg):
        loss, factor = small.make_loss(cfg), factor_of()
        return lambda model, batch, training: loss(model, {**batch, "x": factor(batch["x"])}, training)

    return {"make_loss": make_loss}


def learned_factor():
    factor = tf.Variable(0.5, name="factor")
    return lambda x: factor * x


def learned_in_a_function():
    factor = tf.Variable(0.5, name="factor")
    return tf.function(lambda x: tf.function(lambda y: factor * y)(x))


def hidden_layer():
    layer = keras.layers.Dense(6, name="factor")
    layer.build([None, 6])
    return lambda x: layer(x)


@pytest.mark.parametrize("factor_of", [learned_factor, learned_in_a_function, hidden_layer])
def test_a_variable_that_is_neither_trained_nor_saved_is_refused(factor_of):
    with pytest.raises(UserError) as caught:
        small.build(functions=loss_with(factor_of))
    assert re.match(r"a step reads the variable '(factor|kernel):0', which is neither trained", str(caught.value))
    assert "make_state" in str(caught.value) and "trainable=False" in str(caught.value)


def model_with(layer):
    def make_model(cfg):
        return keras.Sequential([layer, keras.layers.Dense(3, name="last")])

    return {"make_model": make_model}


class Untracked:
    def __init__(self, layer):
        self.layer = layer


class Hiding(keras.layers.Layer):
    """It keeps a layer where Keras does not look."""

    def __init__(self):
        super().__init__()
        self.hidden = Untracked(keras.layers.Dense(4, name="hidden"))

    def call(self, x):
        return self.hidden.layer(x)


def test_a_layer_that_the_model_does_not_track_is_refused():
    with pytest.raises(UserError, match=r"a step reads the variable '.*hidden/kernel:0', which is neither trained"):
        small.build(functions=model_with(Hiding()))


@pytest.mark.parametrize("is_trained", (True, False))
def test_a_layer_that_is_set_as_an_attribute_of_a_sequential_is_refused_unless_it_is_frozen(is_trained):
    """tf_keras saves it, and does not train it."""

    def make_model(cfg):
        model = small.make_model(cfg)
        model.table = keras.layers.Embedding(3, 1, trainable=is_trained)
        return model

    def make_loss(cfg):
        def loss(model, batch, training):
            values = model(batch["x"], training=training)[:, 0] + model.table(batch["label"])[:, 0]
            return {"mean": losses.Term(tf.reduce_sum(values * batch["weight"]), tf.reduce_sum(batch["weight"]))}, {}

        return loss

    functions = {"make_model": make_model, "make_loss": make_loss}
    if is_trained:
        with pytest.raises(UserError, match="'table/embeddings', which would never be trained: a Sequential"):
            small.build(functions=functions)
    else:
        assert "table/embeddings" in paths.variables(small.build(functions=functions).model)


def test_a_schedule_that_counts_by_itself_is_refused():
    seen = tf.Variable(0.0, name="calls")

    def make_schedule(cfg, total_steps):
        return lambda update: 0.01 + 0.0 * seen.assign_add(1.0)  # the same rate each time

    built = small.build(functions={"make_schedule": make_schedule})
    with pytest.raises(UserError, match="a step changes the variable 'calls:0', which no checkpoint has"):
        built.train_block(1)


SHORT = {"train.duration": "8 steps", "train.compile": "eager"}  # what is compared is found when a run is built


def ended(workdir, functions, steps=2):
    """A run of so many steps that is saved at the end."""
    built = small.build(workdir, functions=functions, **SHORT)
    built.open()
    built.write_header([])
    built.train_block(steps)
    built.checkpoints.save(built.state, {}, built.facts())
    built.checkpoints.close()
    return built


def again(workdir, functions):
    built = small.build(workdir, functions=functions, **SHORT)
    built.open()
    return built


def class_weights(values, kind):
    """A loss of which each example is weighted by its class."""

    def make_loss(cfg):
        numbers = np.array(values, np.float32)
        held = {"tensor": tf.constant, "variable": lambda v: tf.Variable(v, trainable=False), "array": lambda v: v}
        weights = held[kind](numbers)

        def loss(model, batch, training):
            logits = model(batch["x"], training=training) * tf.gather(weights, batch["label"])[:, tf.newaxis]
            return {"cross_entropy": losses.sparse_cross_entropy(logits, batch["label"], batch["weight"])}, {}

        return loss

    return {"make_loss": make_loss}


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param("tensor", "constant float32[3] (loss in test_coverage.py) of the loss", marks=pytest.mark.slow),
        ("array", "constant float32[3] (loss in test_coverage.py) of the loss"),
        ("variable", "variable 'Variable:0' of the loss"),
    ],
)
def test_a_constant_that_was_rebuilt_otherwise_is_refused(tmp_path, kind, name):
    begun = ended(tmp_path, class_weights([1, 2, 3], kind))
    assert name in begun.constants
    assert int(again(tmp_path, class_weights([1, 2, 3], kind)).state.step) == 2
    with pytest.raises(UserError) as caught:
        again(tmp_path, class_weights([1, 2, 4], kind))
    assert name in str(caught.value) and "--config.resume_from=" in str(caught.value)


def vocabulary(kind, path):
    """A transform that looks words up and shifts x by what it finds."""
    if kind == "file":
        file = tf.lookup.TextFileInitializer(
            str(path), tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER
        )
        look = tf.lookup.StaticHashTable(file, -1, name="words").lookup
    else:
        words = path.read_text().split()
        look = keras.layers.StringLookup() if kind == "lookup" else keras.layers.TextVectorization()
        look.adapt(words)

    def transform(batch):
        ids = tf.reshape(look(batch.pop("word")), [-1, 1])
        return {**batch, "x": batch["x"] + tf.cast(ids, tf.float32)}

    return {"make_data": data_with(transform, words=True), "make_loss": small.make_loss}


@pytest.mark.parametrize("kind", ["file", "lookup", pytest.param("text", marks=pytest.mark.slow)])
def test_a_vocabulary_that_changed_is_refused(tmp_path, kind):
    path, changed = tmp_path / "words.txt", tmp_path / "changed" / "words.txt"  # one process has one table for a path
    changed.parent.mkdir()
    path.write_text("ape\nbee\ncat\ndog\n")
    changed.write_text("bee\nape\ncat\ndog\nfox\n")
    begun = ended(tmp_path / "run", vocabulary(kind, path))
    (name,) = (name for name in begun.constants if name.startswith("table"))
    assert "words.txt" in name or kind != "file"
    assert int(again(tmp_path / "run", vocabulary(kind, path)).state.step) == 2
    other = small.build(tmp_path / "run", functions=vocabulary(kind, changed), **SHORT)
    for enter in (other.open, other.restore):
        with pytest.raises(UserError, match=re.escape(name)):
            enter()


def test_a_checkpoint_without_the_fact_goes_on(tmp_path):
    begun = small.build(tmp_path, functions=class_weights([1, 2, 3], "array"), **SHORT)
    begun.open()
    begun.write_header([])
    begun.train_block(2)
    begun.checkpoints.save(begun.state, {}, {"data": begun.facts()["data"]})
    begun.checkpoints.close()
    assert int(again(tmp_path, class_weights([1, 2, 4], "array")).state.step) == 2


def fills(cfg):
    """A loss that makes constants of shapes alone, beside one of values."""

    def loss(model, batch, training):
        logits = model(batch["x"], training=training)
        logits = (
            logits * tf.ones_like(logits)
            + tf.zeros(logits.shape)
            + tf.constant([0.0, 0.0, 0.0], name="zeros_of_a_file")
        )
        weight = batch["weight"] * tf.ones(batch["weight"].shape)
        return {"cross_entropy": losses.sparse_cross_entropy(logits, batch["label"], weight)}, {}

    return loss


def test_what_is_made_of_a_shape_is_no_constant_of_the_run():
    begun = small.build(functions={"make_loss": fills})
    place = "constant float32[3] (loss in test_coverage.py)"
    assert list(begun.constants) == [f"{place} of the loss", f"{place} of evaluation of 'test'"]


@pytest.mark.parametrize("replicas", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_run_on_replicas_goes_on_on_one_device_and_the_other_way_round(tmp_path, replicas):
    # On replicas BatchNormalization traces zeros for batches without examples.
    devices = {1: {}, 2: {"runtime.strategy": "mirrored", "runtime.virtual_devices": 2}}
    begun = small.build(tmp_path, **{"train.duration": "4 steps"}, **devices[replicas])
    loop.train(begun)
    longer = small.build(tmp_path, **{"train.duration": "6 steps"}, **devices[3 - replicas])
    assert loop.train(longer)["step"] == 6


def test_what_the_framework_computes_with_is_no_constant_of_the_run():
    assert small.build().constants == {}
    assert framework.build("tests/tiny.py").constants == {}
