import json
import logging
import os
import subprocess
import sys

import absl.logging
import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework.compile import jit
from framework.config import UserError
from framework.decoding import decode
from framework.export.base import Signature
from framework.export.lite import Lite
from framework.export.runner import export_all
from framework.export.saved_model import SavedModel
from tests.export import translator


class Shift(keras.layers.Layer):
    """A layer of this test alone: no other process knows its class."""

    def build(self, shape):
        self.shift = self.add_weight("shift", [shape[-1]], initializer=keras.initializers.Constant(0.25))

    def call(self, inputs):
        return inputs + self.shift


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(1)
    layers = keras.layers
    net = keras.Sequential(
        [layers.Flatten(), layers.Dense(16, "relu"), Shift(), layers.Dropout(0.5), layers.Dense(5)],
    )
    net.build((None, 6, 6))
    return net


def numpy_logits(model, pixels):
    """float64, from the weights alone."""
    kernel, bias, shift, last, offset = [variable.numpy().astype(np.float64) for variable in model.weights]
    hidden = np.maximum((pixels / 255.0).reshape(len(pixels), -1) @ kernel + bias, 0) + shift
    return hidden @ last + offset


def classify(model, inputs):
    logits = model(tf.cast(inputs["image"], tf.float32) / 255.0, training=False)
    return {"logits": logits, "label": tf.argmax(logits, -1, output_type=tf.int32)}


def weigh(model, inputs):
    logits = model(tf.cast(inputs["image"], tf.float32) / 255.0, training=False)
    return {"score": tf.reduce_sum(logits, -1) * inputs["scale"]}


IMAGE = tf.TensorSpec([None, 6, 6], tf.uint8)
HOOK = SavedModel(
    {
        "serving_default": Signature(classify, {"image": IMAGE}),
        "weigh": Signature(weigh, {"image": IMAGE, "scale": tf.TensorSpec([None], tf.float32)}),
    }
)


def make_batch(n, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (n, 6, 6), dtype=np.uint8),
        "scale": rng.random(n, dtype=np.float32),
        "weight": np.ones(n, np.float32),
    }


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports")
    [report] = export_all([HOOK], model, [make_batch(40), make_batch(3, 1)], {}, folder)
    return folder, report


def test_report(exported):
    folder, report = exported
    assert report.failure == ""
    assert report.passed
    assert report.examples == 43
    assert report.path == "saved_model/1"
    assert set(report.outputs) == {"serving_default/logits", "serving_default/label", "weigh/score"}
    files = [path for path in (folder / "saved_model/1").rglob("*") if path.is_file()]
    assert report.bytes == sum(path.stat().st_size for path in files)
    assert {"saved_model.pb", "variables.index"} <= {path.name for path in files}
    # Keras adds this file when its classes are saved.
    assert "keras_metadata.pb" not in {path.name for path in files}


def test_signatures_keep_names_dtypes_and_a_free_batch(exported):
    loaded = tf.saved_model.load(str(exported[0] / "saved_model/1"))
    assert set(loaded.signatures) == {"serving_default", "weigh"}
    serve, weigh = loaded.signatures["serving_default"], loaded.signatures["weigh"]
    assert serve.structured_input_signature == ((), {"image": tf.TensorSpec([None, 6, 6], tf.uint8, "image")})
    assert serve.structured_outputs == {
        "logits": tf.TensorSpec([None, 5], tf.float32, "logits"),
        "label": tf.TensorSpec([None], tf.int32, "label"),
    }
    assert weigh.structured_input_signature[1] == {
        "image": tf.TensorSpec([None, 6, 6], tf.uint8, "image"),
        "scale": tf.TensorSpec([None], tf.float32, "scale"),
    }


@pytest.mark.parametrize("n", [1, 7, 32])
def test_loaded_outputs_are_those_numpy_finds(model, exported, n):
    batch = make_batch(n, seed=n)
    call = HOOK.load(exported[0] / "saved_model/1")
    outputs = call["serving_default"]({"image": batch["image"]})
    logits = numpy_logits(model, batch["image"])
    np.testing.assert_allclose(outputs["logits"], logits, rtol=0, atol=2e-6 * max(1, np.abs(logits).max()))
    np.testing.assert_array_equal(outputs["label"], logits.argmax(-1))
    score = call["weigh"]({"image": batch["image"], "scale": batch["scale"]})["score"]
    np.testing.assert_allclose(score, logits.sum(-1) * batch["scale"], rtol=0, atol=1e-5)


def test_a_process_with_tensorflow_alone_can_serve_it(model, exported, tmp_path):
    batch = make_batch(4, seed=9)
    np.save(tmp_path / "image.npy", batch["image"])
    script = (
        "import json, sys, numpy as np, tensorflow as tf\n"
        "loaded = tf.saved_model.load(sys.argv[1])\n"
        "outputs = loaded.signatures['serving_default'](image=tf.constant(np.load('image.npy')))\n"
        "assert not {'framework', 'tf_keras'} & set(sys.modules)\n"
        "print(json.dumps(outputs['logits'].numpy().tolist()))\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(exported[0] / "saved_model/1")],
        cwd=tmp_path,
        env=environment | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    logits = numpy_logits(model, batch["image"])
    np.testing.assert_allclose(json.loads(done.stdout), logits, rtol=0, atol=2e-6 * max(1, np.abs(logits).max()))


def test_tensorflow_adds_no_lines_of_its_own(model, tmp_path):
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger, verbosity = logging.getLogger("absl"), absl.logging.get_verbosity()
    absl.logging.set_verbosity(absl.logging.INFO)
    logger.addHandler(handler)
    try:
        export_all([HOOK], model, [make_batch(2)], {}, tmp_path)
    finally:
        logger.removeHandler(handler)
        absl.logging.set_verbosity(verbosity)
    assert [line.partition(",")[0] for line in lines] == ["export saved_model passed: saved_model/1"]


def test_versions_go_up_and_are_all_kept(model, tmp_path):
    hook = SavedModel({"serving_default": Signature(classify, {"image": IMAGE})})
    (tmp_path / "saved_model/7").mkdir(parents=True)
    (tmp_path / "saved_model/notes").mkdir()
    paths = [export_all([hook], model, [make_batch(2)], {}, tmp_path)[0].path for _ in range(2)]
    assert paths == ["saved_model/8", "saved_model/9"]
    assert sorted(path.name for path in (tmp_path / "saved_model").iterdir()) == [
        "7",
        "8",
        "9",
        "manifest.json",
        "notes",
    ]
    assert hook.target(tmp_path / "none") == tmp_path / "none/1"


def test_a_version_that_no_server_sees_is_not_counted_on(tmp_path):
    (tmp_path / str(2**63)).mkdir()
    (tmp_path / "٣").mkdir()
    (tmp_path / "4").touch()
    assert HOOK.target(tmp_path) == tmp_path / "5"
    (tmp_path / str(2**63 - 1)).mkdir()
    with pytest.raises(UserError) as error:
        HOOK.target(tmp_path)
    assert str(error.value) == (
        f"{tmp_path / str(2**63 - 1)} has the largest number of a version. Remove it, and export again."
    )


def test_a_failed_version_is_not_where_a_server_looks(model, tmp_path):
    changing = iter(range(100))

    def unstable(net, inputs):  # another constant in each graph
        return {"logits": classify(net, inputs)["logits"] + float(next(changing))}

    [report] = export_all(
        [SavedModel({"serving_default": Signature(unstable, {"image": IMAGE})})], model, [make_batch(2)], {}, tmp_path
    )
    assert report.failure.startswith("logits: max error 1 exceeds the bound ")
    assert report.path == "saved_model.failed/1"
    assert (tmp_path / "saved_model.failed/1/saved_model.pb").exists()
    assert not (tmp_path / "saved_model").exists()


def test_later_training_does_not_reach_the_artefact(tmp_path):
    net = tf.Module()
    net.w = tf.Variable(2.0)
    hook = SavedModel({"serving_default": Signature(lambda m, x: {"y": x["x"] * m.w}, {"x": tf.TensorSpec([None])})})
    batch = {"x": np.float32([1, 2]), "weight": np.float32([1, 1])}
    assert export_all([hook], net, [batch], {}, tmp_path)[0].passed
    net.w.assign(5.0)
    assert export_all([hook], net, [batch], {}, tmp_path)[0].passed
    for version, expected in (("1", [2, 4]), ("2", [5, 10])):
        call = hook.load(tmp_path / "saved_model" / version)["serving_default"]
        np.testing.assert_array_equal(call({"x": batch["x"]})["y"], expected)


def test_a_dict_of_models_and_a_lookup_table(tmp_path):
    words = tf.lookup.KeyValueTensorInitializer(tf.constant(["no", "yes"]), tf.constant([10, 20], tf.int64))
    scale = tf.Module()
    scale.w = tf.Variable(3, dtype=tf.int64)
    models = {"table": tf.lookup.StaticHashTable(words, -1), "scale": scale}
    signature = Signature(
        lambda m, inputs: {"id": m["table"].lookup(inputs["word"]) * m["scale"].w},
        {"word": tf.TensorSpec([None], tf.string)},
    )
    batch = {"word": np.array([b"yes", b"maybe"], object), "weight": np.ones(2, np.float32)}
    hook = SavedModel({"serving_default": signature})
    [report] = export_all([hook], models, [batch], {}, tmp_path)
    assert report.failure == ""
    outputs = hook.load(tmp_path / report.path)["serving_default"]({"word": np.array([b"no", b"yes", b"?"], object)})
    assert outputs["id"].dtype == np.int64
    assert outputs["id"].tolist() == [30, 60, -3]


def test_float64_stays_float64(tmp_path):
    net = tf.Module()
    net.w = tf.Variable(1 / 3, dtype=tf.float64)
    signature = Signature(lambda m, x: {"y": x["x"] * m.w}, {"x": tf.TensorSpec([None], tf.float64)})
    batch = {"x": np.array([1.0, 3.0]), "weight": np.ones(2, np.float32)}
    hook = SavedModel({"serving_default": signature}, bound=1e-15)
    [report] = export_all([hook], net, [batch], {}, tmp_path)
    assert report.passed
    outputs = hook.load(tmp_path / report.path)["serving_default"]({"x": batch["x"]})
    assert outputs["y"].dtype == np.float64
    assert outputs["y"].tolist() == [1 / 3, 1.0]


@pytest.mark.parametrize("name", ["", "__saved_model_init_op", "__mine", 1])
@pytest.mark.parametrize("kind", [SavedModel, Lite])
def test_a_signature_that_no_client_can_name_is_refused(kind, name):
    signature = Signature(classify, {"image": IMAGE})
    with pytest.raises(UserError) as error:
        kind({"serving_default": signature, name: signature})
    assert str(error.value) == (
        f"{kind.__name__} has a signature named {name!r}. Name it by a text, e.g. 'features'; names that begin with __"
        " are TensorFlow's own."
    )


def test_serving_default_is_required():
    with pytest.raises(UserError) as error:
        SavedModel({"predict": Signature(classify, {"image": IMAGE})})
    assert str(error.value) == (
        "SavedModel has the signatures predict, but no 'serving_default', which TensorFlow Serving calls by default."
        ' Use SavedModel({"serving_default": Signature(...)}).'
    )


def test_a_signature_that_changes_a_variable_is_refused():
    net = keras.Sequential([keras.layers.BatchNormalization(name="norm")])
    net.build((None, 6))
    spec = {"x": tf.TensorSpec([None, 6], tf.float32)}
    Signature(lambda model, inputs: {"y": model(inputs["x"], training=False)}, spec).trace(net)
    with pytest.raises(UserError, match=r"Signature.fn changes the variable 'norm/moving_mean:0', so an answer"):
        Signature(lambda model, inputs: {"y": model(inputs["x"], training=True)}, spec).trace(net)


def test_xla_is_refused_for_texts(tmp_path):
    shout = Signature(
        lambda model, inputs: {"loud": tf.strings.upper(inputs["text"])}, {"text": tf.TensorSpec([None], tf.string)}
    )
    hook = SavedModel({"serving_default": shout}, jit_compile=True, name="loud_xla")
    [report] = export_all([hook], tf.Module(), [{"text": np.array([b"a"]), "weight": np.ones(1)}], {}, tmp_path)
    assert report.failure == (
        "export 'loud_xla': 'text' of signature 'serving_default' is a text, which XLA cannot compute. Leave the format"
        " out, or give fn a part of numbers alone that framework.compile.jit compiles."
    )


def test_an_xla_program_refuses_ids_beyond_the_table(tmp_path):
    net = keras.Sequential([keras.layers.Embedding(10, 4)])
    net.build((None, 3))
    signature = Signature(
        lambda model, inputs: {"rows": model(inputs["ids"])}, {"ids": tf.TensorSpec([None, 3], tf.int32)}
    )
    batch = {"ids": np.array([[0, 1, 2], [7, 8, 9]], np.int32), "weight": np.ones(2, np.float32)}
    hook = SavedModel({"serving_default": signature}, jit_compile=True, name="rows_xla")
    [report] = export_all([hook], net, [batch], {}, tmp_path)
    assert report.passed
    call = hook.load(tmp_path / report.path)["serving_default"]
    assert np.array_equal(call({"ids": batch["ids"]})["rows"], net.weights[0].numpy()[batch["ids"]])
    message = r"\[ids:\] \[10 -1\] \[which is none of the rows 0 to 9\]"
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        call({"ids": np.array([[0, 10, 2], [-1, 8, 9]], np.int32)})


def test_xla_of_half_precision_is_compared_with_xla(tmp_path):
    """It rounds less between operations than a graph does, by more than the bound."""
    keras.utils.set_random_seed(5)
    net = keras.Sequential([keras.layers.Dense(32, "tanh", dtype="mixed_bfloat16") for _ in range(3)])
    net.build((None, 16))
    signature = Signature(
        lambda model, inputs: {"y": tf.cast(model(inputs["x"]), tf.float32)}, {"x": tf.TensorSpec([None, 16])}
    )
    x = np.random.default_rng(5).normal(size=(40, 16)).astype(np.float32)
    graph, compiled = (signature.trace(net, jit_compile)(x=tf.constant(x))["y"] for jit_compile in (False, True))
    assert np.abs(graph - compiled).max() > 1e-3
    hook = SavedModel({"serving_default": signature}, jit_compile=True)
    [report] = export_all([hook], net, [{"x": x, "weight": np.ones(40, np.float32)}], {}, tmp_path)
    assert report.failure == ""


class Rows(tf.Module):
    """A table of ten rows, the first of which is not used, and a switch."""

    def __init__(self):
        super().__init__()
        self.table = tf.Variable(np.arange(40, dtype=np.float32).reshape(10, 4))
        self.first = tf.Variable(1, trainable=False)
        self.doubles = tf.Variable(True, trainable=False)


def positions(model, ids):
    return tf.gather(model.table, tf.range(tf.shape(ids)[1])) + tf.cast(ids, tf.float32)[..., tf.newaxis]


# name: (what is looked up, ids that are fine, ids that are not)
LOOKUPS = {
    "after_a_variable": (lambda model, ids: tf.gather(model.table, ids + model.first), [[0, 8]], [[0, 9]]),
    "in_a_branch": (
        lambda model, ids: tf.cond(
            model.doubles, lambda: 2 * tf.gather(model.table, ids), lambda: tf.gather(model.table, ids)
        ),
        [[0, 9]],
        [[0, 10]],
    ),
    "in_a_part_of_the_table": (
        lambda model, ids: tf.gather(model.table[: 5 + 0 * tf.reduce_max(ids)], ids),
        [[0, 4]],
        [[0, 5]],
    ),
    "by_position": (positions, [[7] * 10], [[7] * 11]),
    "in_a_function": (
        lambda model, ids: tf.function(lambda at: tf.gather(model.table, at + model.first))(ids),
        [[0, 8]],
        [[0, 9]],
    ),
    "of_the_largest": (lambda model, ids: tf.gather(model.table, tf.math.top_k(ids, 1).values), [[0, 9]], [[10, 1]]),
    "of_one": (lambda model, ids: model.table[ids[0, 0]][tf.newaxis], [[9]], [[10]]),
}


@pytest.mark.parametrize("name", LOOKUPS)
def test_an_xla_program_answers_as_the_graph_or_refuses(name):
    fn, fine, bad = LOOKUPS[name]
    signature = Signature(
        lambda model, inputs: {"rows": fn(model, inputs["ids"])}, {"ids": tf.TensorSpec([None, None], tf.int32)}
    )
    model = Rows()
    graph, compiled = (signature.trace(model, jit_compile) for jit_compile in (False, True))
    assert np.array_equal(compiled(ids=tf.constant(fine))["rows"], graph(ids=tf.constant(fine))["rows"])
    for function in (graph, compiled):
        with pytest.raises(tf.errors.InvalidArgumentError):
            function(ids=tf.constant(bad))


def test_what_a_signature_compiles_itself_refuses_too():
    """As is advised for signatures with texts, which XLA does not have."""
    model = Rows()
    signature = Signature(
        lambda model, inputs: {"rows": jit(lambda ids: tf.gather(model.table, ids))(inputs["ids"])},
        {"ids": tf.TensorSpec([None], tf.int32)},
    )
    function = signature.trace(model)
    assert np.array_equal(function(ids=tf.constant([9, 0]))["rows"], model.table.numpy()[[9, 0]])
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"\[ids:\] \[10\] \[which is none of the rows 0 to 9\]"):
        function(ids=tf.constant([0, 10]))


def test_a_lookup_in_a_loop_is_no_xla_program():
    signature = Signature(
        lambda model, inputs: {
            "rows": tf.map_fn(
                lambda row: tf.gather(model.table, row), inputs["ids"], fn_output_signature=model.table.dtype
            )
        },
        {"ids": tf.TensorSpec([None, 3], tf.int32)},
    )
    with pytest.raises(UserError) as caught:
        signature.trace(Rows(), jit_compile=True)
    assert str(caught.value) == (
        "'map/while/Gather' is in a loop or function of its own, where XLA would ignore an index out of range, or an"
        " assertion that does not hold, without a word. Leave the format of XLA programs out."
    )


def test_decoding_is_an_xla_program():
    """Its loop looks up tokens of its own, which begin as a row of the batch's size."""

    def ids_of(model, inputs):
        state = model.start(inputs)
        return {"ids": decode(model.step, state, translator.BEGIN, translator.END, translator.LENGTH).ids[:, 0]}

    signature = Signature(ids_of, {"source": tf.TensorSpec([None, 3], tf.int32)})
    graph, compiled = (signature.trace(translator.Translator(), jit_compile) for jit_compile in (False, True))
    source = tf.constant([[3, 4, 5], [6, 7, 12]])
    assert np.array_equal(compiled(source=source)["ids"], graph(source=source)["ids"])
    with pytest.raises(
        tf.errors.InvalidArgumentError, match=r"\[source:\] \[13\] \[which is none of the rows 0 to 12\]"
    ):
        compiled(source=source + 1)
