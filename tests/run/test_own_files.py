"""framework/run/own_files.py: a vocabulary is in the run folder and in the exports; with another one, a run ends."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework import data, export, losses, testing
from framework.data import text
from framework.errors import UserError
from framework.run import loop
from framework.run.exporting import export_run

LINES = ["a dog.", "two dogs", "(a b)", "b"] * 10
WORDS = text.WordPieces(("<pad>", "<unk>", "<s>", "</s>", *"▁abdgostw.()", "▁a", "▁dog", "▁two", "▁never"))
OTHER = text.WordPieces((*WORDS.pieces[:-1], "▁other"))  # the same ids for all lines
SETTINGS = {
    "train.duration": "2 steps",
    "export.process": "own",
    "train.compile": "graph",
    "data.batch_size": 8,
    "eval.batch_size": 8,
    "eval.every": "",
    "log.images": 0,
    "log.histograms_every": "",
    "export.examples": 8,
}


class Speller(keras.Model):
    """A model that says which id stands at each place; texts become ids inside of it."""

    def __init__(self, words):
        super().__init__()
        self.segments = words.segments()
        self.embedding = keras.layers.Embedding(len(words), 8)
        self.dense = keras.layers.Dense(len(words))

    def call(self, ids, training=None):
        return self.dense(self.embedding(ids))


def spell(model, inputs):
    ids = model.segments.encode(inputs["text"], end=True)
    shown = tf.argmax(tf.one_hot(ids, model.dense.units) + 0 * model(ids, training=False), -1)
    return {"spelled": model.segments.decode(shown)}


def build(words, workdir):
    def make_data(cfg, split):
        ids, _ = words.encode(LINES, end=True)
        source = data.Source({"ids": ids, "text": np.array(LINES)}, origin="made up")
        return data.make_batches(source, cfg, training=split == "train")

    def make_loss(cfg):
        def loss(model, batch, training):
            logits = model(batch["ids"], training=training)
            values = tf.nn.sparse_softmax_cross_entropy_with_logits(batch["ids"], logits)
            weighted = tf.reduce_mean(values, 1) * batch["weight"]
            return {"spelling": losses.Term(tf.reduce_sum(weighted), tf.reduce_sum(batch["weight"]))}, {}

        return loss

    signature = export.Signature(spell, {"text": tf.TensorSpec([None], tf.string)})
    functions = {
        "make_data": make_data,
        "make_loss": make_loss,
        "make_model": lambda cfg: Speller(words),
        "make_exports": lambda cfg: [export.SavedModel({export.SERVING: signature})],
        "make_files": lambda cfg: {"vocabulary.json": words.to_json()},
    }
    return testing.build(functions, SETTINGS, workdir)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = build(WORDS, tmp_path_factory.mktemp("run"))
    loop.train(run)
    return run


def test_the_vocabulary_is_in_the_run_folder_and_in_the_export(trained):
    assert text.load(trained.workdir / "files/vocabulary.json") == WORDS
    [report] = export_run(trained)
    assert report.passed, report.failure
    assert text.load(trained.workdir / "exports/files/vocabulary.json") == WORDS
    folder = trained.workdir / "exports" / report.path
    assert (folder / "assets/vocabulary.txt").read_text().split("\n")[:-1] == [*WORDS.pieces]
    served = tf.saved_model.load(str(folder)).signatures["serving_default"]
    spelled = served(text=tf.constant(["Two  dogs\n(b)", "a b"]))["spelled"].numpy()
    assert [line.decode() for line in spelled] == ["\ufffdwo dogs (b)", "a b"]


def test_a_run_continues_with_the_same_vocabulary_only(trained):
    assert build(WORDS, trained.workdir).open() == 2
    told = f"vocabulary.json of make_files: changed since {trained.workdir} was begun, so its checkpoints do not fit."
    other = build(OTHER, trained.workdir)
    with pytest.raises(UserError) as caught:
        other.open()
    assert str(caught.value).startswith(told)
    with pytest.raises(UserError, match=r"vocabulary\.json of make_files: changed"):
        other.restore()
