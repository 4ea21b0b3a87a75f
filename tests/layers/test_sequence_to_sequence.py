"""framework/layers/sequence_to_sequence.py: the model by its parts, the shift of the target, decoding by its step."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import framework
from framework import decoding, export, layers, paths
from framework.errors import UserError

STACK = {"layers": 2, "width": 8, "heads": 2, "feed_forward": 12, "max_length": 9}
BEGIN, END = 2, 3
SOURCE = np.array([[5, 4, 3, 0], [6, 8, 7, 3], [3, 0, 0, 0]], np.int32)
TARGET = np.array([[4, 6, 5, 3, 0], [9, 3, 0, 0, 0], [4, 8, 9, 7, 3]], np.int32)


def made(target_vocabulary=None, dtype="float64", **options):
    keras.utils.set_random_seed(3)
    model = layers.Transformer(10, target_vocabulary, dtype=dtype, **{**STACK, **options})
    model((SOURCE, TARGET))
    return model


@pytest.mark.parametrize("target_vocabulary", [None, 11])
def test_logits_are_those_of_the_parts(target_vocabulary):
    model = made(target_vocabulary)
    is_token = SOURCE != 0
    memory = model.encoder(model.embedding(SOURCE), is_token)
    before = np.concatenate([np.full([3, 1], BEGIN, np.int32), TARGET[:, :-1]], axis=1)
    y = model.decoder(model.target_embedding(before), memory, is_token).numpy()
    logits = y @ model.target_embedding.table.numpy().T
    np.testing.assert_allclose(model((SOURCE, TARGET)), logits, rtol=1e-12, atol=1e-12)
    tables = [path for path in paths.variables(model) if path.endswith("table")]
    assert len(tables) == (1 if target_vocabulary is None else 2)


def test_a_target_token_changes_the_logits_after_its_place_alone():
    model = made()
    other = TARGET.copy()
    other[:, 2] = 7
    difference = np.abs(model((SOURCE, other)) - model((SOURCE, TARGET))).max(axis=(0, 2))
    assert difference[:3].max() == 0 and difference[3:].min() > 1e-3


def test_source_attention_is_that_of_the_last_layer_after_those_before():
    model = made()
    is_token = SOURCE != 0
    memory = model.encoder(model.embedding(SOURCE), is_token)
    y = model.embedding(np.concatenate([np.full([3, 1], BEGIN), TARGET[:, :-1]], axis=1))
    y = model.decoder.positions(y)
    y = model.decoder.layers[0](y, memory, is_token)
    expected = model.decoder.layers[1].source_attention(y, memory, is_token).numpy()
    found = model.source_attention(tf.constant(SOURCE), tf.constant(TARGET)).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)
    assert (found * ~is_token[:, np.newaxis, np.newaxis]).max() == 0
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-13)


@pytest.mark.parametrize("begin", [BEGIN, 1])
def test_decoding_writes_the_most_probable_token_after_those_before(begin):
    model = made(begin=begin)
    state = model.start(tf.constant(SOURCE), 6)
    result = framework.decode(model.step, state, begin, END, 6, decoding.Greedy())
    ids = result.ids[:, 0].numpy()
    logits = model((SOURCE, ids)).numpy()  # of each place, given the decoded tokens before it
    for row, length in zip(range(3), result.lengths[:, 0].numpy(), strict=True):
        np.testing.assert_array_equal(logits[row, :length].argmax(-1), ids[row, :length])


@pytest.mark.parametrize("method", [decoding.Greedy(), decoding.Beam(2)])
def test_a_state_with_less_room_than_the_decoded_length_is_refused(method):
    model = made()
    state = {"model": model.start(tf.constant(SOURCE), 6)}

    def step(tokens, state, position):
        logits, after = model.step(tokens, state["model"], position)
        return logits, {"model": after}

    with pytest.raises(UserError) as error:
        framework.decode(step, state, BEGIN, END, 7, method)
    assert str(error.value) == (
        "decode(length=7) has more positions than the state of the model, which was made by start(…, length=6). Type"
        " the same length."
    )
    assert framework.decode(step, state, BEGIN, END, 5, method).ids.shape == [3, 1, 5]


def test_lite_decodes_the_same_tokens(tmp_path):
    model = made(dtype="float32")
    hook = export.LiteDecoder(
        start=lambda model, inputs: model.start(inputs["source"], 6),
        step=lambda model, tokens, state, position: model.step(tokens, state, position),
        inputs={"source": tf.TensorSpec([None, SOURCE.shape[1]], tf.int32)},
        begin=BEGIN,
        end=END,
        length=6,
    )
    hook.write(model, tmp_path / "model.tflite")
    exported = hook.load(tmp_path / "model.tflite")[export.SERVING]({"source": SOURCE})
    expected = framework.decode(model.step, model.start(tf.constant(SOURCE), 6), BEGIN, END, 6).ids[:, 0]
    np.testing.assert_array_equal(exported["ids"], expected)


def test_a_keras_fit_trains_it():
    model = made(dtype="float32", layers=1)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = model.evaluate((SOURCE, TARGET), TARGET, verbose=0)
    model.fit((SOURCE, TARGET), TARGET, epochs=20, verbose=0)
    assert model.evaluate((SOURCE, TARGET), TARGET, verbose=0) < before - 0.5


def test_config_round_trip():
    model = made(11, norm="post")
    again = layers.Transformer.from_config(model.get_config())
    assert again.get_config() == model.get_config() and again.encoder.get_config()["norm"] == "post"
    assert again.dtype_policy.name == "float64"


def test_sizes_that_are_missing_are_named():
    with pytest.raises(TypeError, match=r"^Transformer lacks the arguments width, feed_forward$"):
        layers.Transformer(10, layers=1, heads=2)
