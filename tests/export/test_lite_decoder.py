import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from framework import layers
from framework.errors import UserError
from framework.export import Bounds, export_all, formats
from framework.export.lite_formats import FORMATS
from framework.export.lite_runtime import greedy
from framework.metrics import Accuracy
from tests.export.translator import BEGIN, END, LENGTH, VOCABULARY, Translator, hook, make_batch, reference


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports")
    return folder, export_all([hook()], Translator(), [make_batch()], {"accuracy": Accuracy()}, folder)[0]


def test_a_host_decodes_with_the_file_as_the_model_does(exported):
    folder, report = exported
    assert report.failure == ""
    assert report.outputs["ids"]["max_error"] == 0
    assert report.metrics == {}  # the logits that metrics read are not there
    interpreter = Interpreter(model_path=str(folder / "lite_decoder/model.tflite"))
    names = ["state_0", "state_1", "state_2"]
    signatures = interpreter.get_signature_list().items()
    assert {name: {kind: sorted(of_kind) for kind, of_kind in both.items()} for name, both in signatures} == {
        "start": {"inputs": ["source"], "outputs": names},
        "step": {"inputs": ["position", *names, "tokens"], "outputs": ["logits", *names]},
    }
    source = make_batch()["source"]
    start, step = map(interpreter.get_signature_runner, ("start", "step"))
    ids = greedy(start, step, {"source": source}, BEGIN, END, LENGTH)
    assert ids.tolist() == [reference(Translator(), row) for row in source]
    assert len({(row == 0).sum() for row in ids}) > 2  # sequences ended at several positions
    assert report.path == "lite_decoder/model.tflite"
    assert [path.name for path in (folder / "lite_decoder").iterdir()] == ["model.tflite"]


def test_a_state_with_none_and_float64_are_refused(tmp_path):
    def doubled(model, tokens, state, position):
        logits, state = model.step(tokens, state, position)
        return tf.cast(tf.cast(logits, tf.float64) * 2, tf.float32), state

    [report] = export_all([hook(doubled)], Translator(), [make_batch()], {}, tmp_path)
    assert "is float64, which LiteRT cannot run" in report.failure
    with pytest.raises(UserError, match=r"LiteDecoder: a leaf of the state is None. Leave it out of the state"):
        hook(lambda model, tokens, state, position: (tf.zeros([1, 3]), None))._functions(Translator())


def step_logits(path, source):
    """The logits of the first two steps for 24 sentences."""
    interpreter = Interpreter(model_path=str(path))
    start, step = map(interpreter.get_signature_runner, ("start", "step"))
    state = start(source=source)
    logits = []
    for position in range(2):
        tokens = np.full(24, BEGIN + position, np.int32)
        state = step(tokens=tokens, position=np.array(position, np.int32), **state)
        logits.append(state.pop("logits"))
    return np.stack(logits)


def test_formats_of_a_decoder(tmp_path):
    """Ids agree as far as the bound says, and the logits of a step are those of the model but for the rounding."""
    hooks = [hook(format=kind) for kind in ("float32", "float16", "dynamic")]
    hooks.append(hook(format="int8", bound=Bounds(1, 1, agreement=0.9, metric=0)))  # random weights have near ties
    # A mask of -1e9 would take the whole range of int8. The converter leaves weights of fewer than 1,024 numbers alone.
    wide = Translator(width=64, masked=-20.0)

    def training(examples):
        yield make_batch(examples, seed=7)

    reports = export_all(hooks, wide, [make_batch()], {}, tmp_path, training=training)
    assert [(report.hook, report.failure) for report in reports] == [
        ("lite_decoder", ""),
        ("lite_decoder_float16", ""),
        ("lite_decoder_dynamic", ""),
        ("lite_decoder_int8", ""),
    ]
    exact, *others = [step_logits(tmp_path / report.path, make_batch()["source"]) for report in reports]
    errors = [float(np.abs(logits - exact).max() / np.ptp(exact)) for logits in others]
    assert 0 < errors[0] < 1e-3 < errors[1] < 0.03 and 1e-3 < errors[2] < 0.1
    assert reports[2].bytes < 0.5 * reports[0].bytes > reports[3].bytes
    made = formats.available([hook()])
    assert [*made] == ["lite_decoder", *(f"lite_decoder_{kind}" for kind in ("float16", "sparse", "dynamic", "int8"))]


def test_attention_is_exported_in_int8_without_the_mask_value_of_training(tmp_path):
    model = layers.Transformer(VOCABULARY, layers=1, width=32, heads=2, feed_forward=32, begin=BEGIN, max_length=LENGTH)
    sources = make_batch()["source"]
    model((sources, sources))
    for number, variable in enumerate(model.variables):
        variable.assign(0.5 * np.random.default_rng(number).normal(size=variable.shape))

    def padded(examples, seed):
        batch, length = make_batch(examples, seed), 2 + np.arange(examples)[:, np.newaxis] % 4
        return batch | {"source": np.where(np.arange(5) < length, batch["source"], 0)}

    made = dataclasses.replace(
        hook(format="int8"),
        start=lambda model, inputs: model.start(inputs["source"], LENGTH),
        step=lambda model, tokens, state, position: model.step(tokens, state, position),
    )
    made.write(model, tmp_path / "model.tflite", [padded(8, seed=7)])
    source = padded(24, seed=1)["source"]
    before = np.repeat([[BEGIN + 1, BEGIN + 2]], 24, axis=0)  # the second is no input of the first two steps
    exact = np.moveaxis(model((source, before)), 1, 0)
    assert np.abs(step_logits(tmp_path / "model.tflite", source) - exact).mean() < 0.02 * np.ptp(exact)
    assert model.encoder.layers[0].attention.mask_value is model.decoder.layers[0].attention.mask_value is None


def test_what_formats_of_a_decoder_refuse(tmp_path):
    strict = hook(format="int8", bound=Bounds(1, 1, agreement=1, metric=0))
    assert strict.bound.agreement == 1 and hook(format="int8").bound == FORMATS["int8"].bound
    with pytest.raises(UserError, match="LiteDecoder: states pass from step to step, whose int8 would have other"):
        hook(format="int8_io")
    with pytest.raises(UserError, match="LiteDecoder: there is no format 'int4'"):
        hook(format="int4")
    [report] = export_all([hook(format="int8")], Translator(), [make_batch()], {}, tmp_path, training=lambda n: [])
    assert report.failure.startswith("export 'lite_decoder_int8': there is no training example")


def test_a_sparse_table_that_embeds_and_makes_logits_is_refused(tmp_path):
    class Tied(tf.Module):
        def __init__(self):
            super().__init__()
            self.embed = layers.TiedEmbedding(64, 32)
            self.embed(tf.zeros([1], tf.int32))
            self.embed.table.assign(self.embed.table * (np.arange(32) % 4 == 0))

        def step(self, tokens, state, position):
            x = self.embed(tokens)
            return self.embed.logits(x + state["sum"]), {"sum": x}

    made = dataclasses.replace(
        hook(lambda model, tokens, state, position: model.step(tokens, state, position), format="sparse"),
        start=lambda model, inputs: {"sum": tf.reduce_sum(model.embed(inputs["source"]), 1)},
    )
    [report] = export_all([made], Tied(), [make_batch()], {}, tmp_path)
    assert report.failure == (
        "export 'lite_decoder_sparse': the converter cannot leave the zeros out of a weight that several operations"
        " read, such as a table that embeds tokens and makes logits. Train with e.g. --config.prune.exclude='.*table',"
        " or leave the format out."
    )
