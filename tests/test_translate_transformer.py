"""experiments/translate_transformer.py: it learns a made-up language, and what it exports writes the same."""

import numpy as np
import pytest
import tensorflow as tf

from experiments import translate_transformer
from framework import metrics, testing
from framework.config import UserError
from framework.config.overrides import override
from framework.data import text
from framework.run import evaluation, exporting, loop

pytest.importorskip("tokenizers", reason="needs the extra 'text'")
pytest.importorskip("sacrebleu", reason="needs the extra 'text'")

WORDS = {"one": "eins", "two": "zwei", "red": "rot", "dog": "Hund", "cat": "Katze", "runs": "läuft", "sees": "sieht"}
COUNTS = {"train": 600, "val": 24, "test": 24}
SETTINGS = {
    "export.process": "own",
    "data.pieces": 64,
    "data.tokens": 256,
    "data.buckets": 2,
    "data.longest": 8,
    "model.layers": 1,
    "model.width": 32,
    "model.heads": 2,
    "model.feed_forward": 32,
    "model.dropout": 0.0,
    "model.beam": 2,
    "train.compile": "graph",
    "train.duration": "400 steps",
    "schedule.learning_rate": 5e-3,
    "schedule.warmup": "20 steps",
    "eval.splits": ("val", "test"),
    "eval.every": "",
    "checkpoint.every": "",
    "log.histograms_every": "",
    "export.examples": 16,
}


def sentences(split):
    """Made-up sentences, and their translations, word for word."""
    random = np.random.default_rng(len(split))
    english = [random.choice([*WORDS], random.integers(2, 5)) for _ in range(COUNTS[split])]
    return [f"{' '.join(line)}." for line in english], [f"{' '.join(WORDS[w] for w in line)}." for line in english]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A corpus as its files are: the pages of the experiment say where they lie."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "multi30k").mkdir()
    for split in COUNTS:
        for language, lines in zip(("en", "de"), sentences(split), strict=True):
            (folder / "multi30k" / f"{split}.{language}").write_text("".join(f"{line}\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """A run that has learned the language, and its evaluation."""
    run = testing.build(translate_transformer, {**SETTINGS, "data.dir": str(folder)}, tmp_path_factory.mktemp("run"))
    loop.train(run)
    return run, evaluation.report(run)


def test_it_translates_what_it_never_saw(trained):
    trained, report = trained
    assert report.scalars["test_text/bleu"] > 80
    # No label is smoothed in evaluation, and padding counts in neither.
    assert report.scalars["test/loss"] == pytest.approx(np.log(report.scalars["test/perplexity"]), rel=1e-5)
    english, german = sentences("test")
    cfg = trained.config
    words = translate_transformer.vocabulary(cfg)
    ids, _ = words.encode(english, end=True)
    ours = words.decode(translate_transformer.translated(trained.model, tf.constant(ids), cfg).numpy())
    assert report.scalars["test_text/bleu"] == pytest.approx(metrics.bleu(ours, german).value)  # lines in their order
    assert report.scalars["test_text/chrf"] == pytest.approx(metrics.chrf(ours, german).value)
    signature = metrics.bleu(ours, german, lower=True).signature
    assert f"bleu_lower: {signature}" in report.texts["test_text/signatures"]
    assert f"| {english[0]} | {german[0]} | {ours[0]} |" in report.texts["test_text/samples"]
    assert trained.train_block.compiled.traces == 2  # one a bucket


def test_a_token_has_a_weight_unless_it_or_its_example_is_padding():
    batch = {"target": tf.constant([[5, 3, 0], [4, 6, 3], [4, 6, 3]]), "weight": tf.constant([1.0, 2.0, 0.0])}
    found = translate_transformer.with_token_weights(batch)["token_weight"]
    np.testing.assert_array_equal(found, [[1, 1, 0], [2, 2, 2], [0, 0, 0]])


def test_attention_is_a_picture_of_each_head(trained):
    trained, report = trained
    picture = report.images["test_text/attention_0"][0]
    words = translate_transformer.vocabulary(trained.config)
    _, (columns,) = words.encode(sentences("test")[0][:1], end=True)
    assert picture.shape[1] == 2 * 8 * columns + 1  # two heads, cells of 8 pixels, a line between


def test_the_export_takes_text_and_writes_the_translation(trained):
    trained, _ = trained
    assert [report.failure for report in exporting.export_run(trained)] == ["", ""]
    served = tf.saved_model.load(str(trained.workdir / "exports/saved_model/1")).signatures["serving_default"]
    english, _ = sentences("test")
    words = translate_transformer.vocabulary(trained.config)
    ids, _ = words.encode(english, end=True)
    expected = words.decode(translate_transformer.translated(trained.model, tf.constant(ids), trained.config).numpy())
    found = [line.decode() for line in served(text=tf.constant(english))["translation"].numpy()]
    assert found == expected
    one = served(text=tf.constant(english[3:4]))["translation"].numpy()  # a sentence alone, as in its batch
    assert one[0].decode() == expected[3]
    assert text.load(trained.workdir / "files/vocabulary.json").sha256 == words.sha256


@pytest.mark.parametrize("length", [5, 8, 11])
def test_the_export_of_ids_is_compared_on_sentences_of_any_length(folder, length):
    """The experiment leaves longer ones out of training alone."""
    cfg = override(translate_transformer.get_config(""), {**SETTINGS, "data.dir": str(folder)})
    _, lite = translate_transformer.make_exports(cfg)
    source = np.arange(1, 2 * length + 1, dtype=np.int32).reshape(2, length)
    expected = np.zeros([2, 8], np.int32)
    expected[:, : min(length, 8)] = source[:, :8]
    np.testing.assert_array_equal(lite.from_batch({"source": source})["source"], expected)


def test_what_is_wrong_is_refused(folder, tmp_path):
    def refused(**values):
        cfg = override(translate_transformer.get_config(""), {**SETTINGS, "data.dir": str(folder), **values})
        with pytest.raises(UserError) as error:
            translate_transformer.check_config(cfg)
            translate_transformer.make_data(cfg, "train")
        return str(error.value)

    assert refused(**{"data.source": "cs"}) == (
        f"'{folder}' has no file train.cs. Type --data_dir=DIR, as the header says, and if other files have the"
        " sentences of evaluations, --config.eval.splits=\"('val',)\"."
    )
    assert refused(**{"model.width": 30, "model.heads": 4}) == "model.width=30 is not divisible by model.heads=4."
    assert "tokens=4 holds 0 examples of length" in refused(**{"data.tokens": 4})
