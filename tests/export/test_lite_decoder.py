import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from framework.errors import UserError
from framework.export import export_all
from framework.export.lite_runtime import greedy
from framework.metrics import Accuracy
from tests.export.translator import BEGIN, END, LENGTH, Translator, hook, make_batch, reference


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
