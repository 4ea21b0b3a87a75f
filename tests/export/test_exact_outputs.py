"""Exports of tokens and texts: each value must be the trained model's."""

import dataclasses

import numpy as np
import tensorflow as tf

from framework.export import LiteDecoder, SavedModel, Signature, export_all
from framework.metrics import Accuracy
from tests.export.translator import VOCABULARY, Translator, hook, make_batch, reference


@dataclasses.dataclass(frozen=True)
class OtherToken(LiteDecoder):
    """Loads an artefact that gives another token at one position of each batch."""

    def load(self, path):
        call = super().load(path)["serving_default"]

        def wrong(inputs):
            ids = call(inputs)["ids"]
            ids[0, 1] += 1
            return {"ids": ids}

        return {"serving_default": wrong}


def test_another_token_fails_the_export(tmp_path):
    wrong = OtherToken(**{field.name: getattr(hook(), field.name) for field in dataclasses.fields(LiteDecoder)})
    [report] = export_all([wrong], Translator(), [make_batch()], {}, tmp_path)
    assert report.failure == "ids: 1 of 168 values differ"
    assert report.path == "lite_decoder.failed/model.tflite"


class Words(tf.Module):
    """Text to ids and back by lookup tables, as a tokenizer has them."""

    def __init__(self):
        super().__init__()
        words = [f"w{number}" for number in range(VOCABULARY)]
        ids = tf.range(VOCABULARY, dtype=tf.int64)
        self.to_id = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(words, ids), -1)
        self.to_word = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(ids, words), "")

    def encode(self, texts):
        return self.to_id.lookup(tf.strings.split(texts).to_tensor("w3", shape=[None, 5]))

    def decode(self, ids):
        return tf.strings.reduce_join(self.to_word.lookup(tf.cast(ids, tf.int64)), axis=-1, separator=" ")


def text_signature(words, **settings):
    """Takes sentences, and returns sentences and their ids."""
    model_words = [f"w{number}" for number in range(VOCABULARY)]

    def translate(model, inputs):
        decoder = hook()
        ids = decoder._decoded(model, {"source": words.encode(inputs["text"])})["ids"]
        return {"ids": ids, "text": words.decode(ids)}

    def sentences(batch):
        return {"text": np.array([" ".join(model_words[token] for token in row) for row in batch["source"]], object)}

    return Signature(
        translate, {"text": tf.TensorSpec([None], tf.string)}, sentences, has_metrics=False, uses=[words], **settings
    )


def test_a_saved_model_of_text_to_text_is_compared_exactly(tmp_path):
    words = Words()
    saved = SavedModel({"serving_default": text_signature(words)})
    [report] = export_all([saved], Translator(), [make_batch()], {"accuracy": Accuracy()}, tmp_path)
    assert report.failure == ""
    assert report.outputs["text"]["max_error"] == report.outputs["ids"]["max_error"] == 0
    loaded = tf.saved_model.load(str(tmp_path / "saved_model/1"))
    served = loaded.signatures["serving_default"](text=tf.constant(["w3 w4 w5 w6 w7", "w9"]))
    sources = np.array([[3, 4, 5, 6, 7], [9, 3, 3, 3, 3]])
    expected = [reference(Translator(), row) for row in sources]
    assert served["ids"].numpy().tolist() == expected
    assert [text.decode() for text in served["text"].numpy()] == [
        " ".join(f"w{token}" for token in row) for row in expected
    ]


@dataclasses.dataclass(frozen=True)
class OtherText(SavedModel):
    """Loads an artefact that gives another text for one example of each batch."""

    def load(self, path):
        call = super().load(path)["serving_default"]

        def wrong(inputs):
            outputs = call(inputs)
            text = outputs["text"].copy()
            text[0] += b"!"
            return {**outputs, "text": text}

        return {"serving_default": wrong}


def test_another_text_fails_the_export(tmp_path):
    hooks = [OtherText({"serving_default": text_signature(Words())})]
    [report] = export_all(hooks, Translator(), [make_batch()], {}, tmp_path)
    assert report.failure == "text: 1 of 24 values differ"


def test_inputs_that_nothing_makes_are_named(tmp_path):
    signature = Signature(lambda model, inputs: {"y": inputs["text"]}, {"text": tf.TensorSpec([None], tf.string)})
    [report] = export_all([SavedModel({"serving_default": signature})], Translator(), [make_batch()], {}, tmp_path)
    assert report.failure == (
        "signature 'serving_default' takes 'text', which is not in the held-out batches: source, weight."
        " Take inputs that the batches have, or make them by Signature(from_batch=…)."
    )
