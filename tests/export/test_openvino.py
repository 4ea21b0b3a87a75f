"""Exports of the experiments in OpenVINO, a runtime that is not TensorFlow, from an environment of its own."""

import itertools
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from experiments import cifar_resnet, movielens_two_tower
from framework import data, decoding, export, layers, testing
from framework.data import text
from framework.export import difference, export_all, formats
from framework.run import exporting
from tests import tiny
from tests.export.fakes import Scale, X, make_batch
from tests.made_up import made_up
from tests.made_up_ratings import write_ratings

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-openvino/bin/python"
PROGRAM = Path(__file__).with_name("openvino_program.py")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not PYTHON.is_file(), reason="needs OpenVINO in .venv-openvino: type make openvino"),
]
SETTINGS = {
    "train.compile": "graph",
    "train.duration": "2 steps",
    "log.images": 0,
    "log.histograms_every": "",
    "eval.every": "",
    "checkpoint.every": "",
    "export.process": "own",
}
PICTURES = {"data.batch_size": 16, "eval.batch_size": 20, "train.precision": "float32", "schedule.warmup": ""}
NO_STEPS = {"schedule.name": "cosine", "schedule.boundaries": (), "schedule.factors": ()}
RATINGS = {"data.batch_size": 16, "data.history": 5, "schedule.warmup": ""}


def ask(path, inputs, folder):
    """Returns the finished process and the outputs by name, None if there are none."""
    answer = folder / "answer.npz"
    answer.unlink(missing_ok=True)
    np.savez(folder / "given.npz", **inputs)
    command = [PYTHON, "-I", PROGRAM, path, folder / "given.npz", answer]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    if not answer.is_file():
        return done, None
    with np.load(answer) as outputs:
        return done, dict(outputs)


def exported(functions, settings, workdir, names):
    """Trains a step and exports; returns the run, its export hooks by name and the held-out batches."""
    run = testing.build(functions, {**SETTINGS, **settings}, workdir)
    run.train_block(1)
    reports = exporting.export_run(run, names)
    assert [report.failure for report in reports] == [""] * len(reports)
    places = {report.hook: workdir / "exports" / report.path for report in reports}
    hooks = {hook.name: hook for hook in formats.select(run.exports, names)}
    return run, {name: (hook, places[name]) for name, hook in hooks.items()}


def answers(run, hook, path, folder, sizes=(1, 3, None)):
    """Yields (reference of the trained model, answer of OpenVINO) for some numbers of held-out examples."""
    signature = hook.signatures[export.SERVING]
    batch = next(exporting.held_out(run))
    with run.weights(run.resolved.export.weights):
        trained = signature.trace(run.model)
        for size in sizes:
            inputs = {name: array[:size] for name, array in signature.inputs_of(batch).items()}
            reference = {name: output.numpy() for name, output in trained(**inputs).items()}
            done, answer = ask(path, inputs, folder)
            assert answer, done.stderr
            yield reference, answer


def assert_same(reference, answer, bound=2e-6):
    assert answer.keys() == reference.keys()
    for name, expected in reference.items():
        assert len(expected) and answer[name].dtype == expected.dtype
        allowed = bound * max(1, np.abs(expected).max()) if expected.dtype.kind == "f" else 0
        np.testing.assert_allclose(answer[name], expected, rtol=0, atol=allowed, strict=True)


def test_mnist_in_all_formats(tmp_path):
    names = ["saved_model", "saved_model_xla", "lite", "lite_float16", "lite_dynamic", "lite_int8"]
    run, hooks = exported(tiny, {}, tmp_path / "run", names)
    for (name, (hook, path)), size in itertools.product(hooks.items(), (1, None)):
        [(reference, answer)] = answers(run, hook, path, tmp_path, [size])
        if not name.startswith("saved_model"):
            answer = dict(zip(reference, answer.values(), strict=True))
        found = difference.Difference(np.dtype(np.float32))
        found.add(reference["logits"], answer["logits"])
        assert found.failures(name, hook.bound, is_whole=size is None) == []
        if name in ("saved_model", "saved_model_xla", "lite"):
            assert_same(reference, answer)


@pytest.mark.parametrize("preset", ["small", "resnet20"])
def test_residual_networks(preset, tmp_path, monkeypatch):
    def load(name, split, folder):
        image, label = made_up(split, 64)
        return data.Source({"image": image, "label": label}, origin="made-up pictures")

    monkeypatch.setattr(cifar_resnet, "load", load)
    settings = {**cifar_resnet.PRESETS.get(preset, {}), **PICTURES, **NO_STEPS}
    run, hooks = exported(cifar_resnet, settings, tmp_path / "run", ["saved_model"])
    for reference, answer in answers(run, *hooks["saved_model"], tmp_path):
        assert_same(reference, answer, bound=1e-5)


def test_ratings(tmp_path):
    settings = {**movielens_two_tower.PRESETS["rating"], **RATINGS, "data.history": 0}
    settings["data.dir"] = str(write_ratings(tmp_path / "ratings"))
    run, hooks = exported(movielens_two_tower, settings, tmp_path / "run", ["saved_model"])
    for reference, answer in answers(run, *hooks["saved_model"], tmp_path):
        assert_same(reference, answer)


def test_recommended_films_with_their_titles(tmp_path):
    settings = {**RATINGS, "data.dir": str(write_ratings(tmp_path / "ratings"))}
    run, hooks = exported(movielens_two_tower, settings, tmp_path / "run", ["saved_model"])
    for reference, answer in answers(run, *hooks["saved_model"], tmp_path):
        titles = reference.pop("titles")
        assert np.char.encode(answer.pop("titles")).tolist() == titles.tolist()
        assert_same(reference, answer)


def test_of_several_signatures_the_default_one_is_read(tmp_path):
    spec = {"x": tf.TensorSpec([None, 3], tf.float32)}
    doubled = export.Signature(lambda model, inputs: {"doubled": 2 * inputs["x"] * model.factor}, spec)
    scaled = export.Signature(lambda model, inputs: {"scaled": inputs["x"] * model.factor}, spec)
    hook = export.SavedModel({"doubled": doubled, export.SERVING: scaled})
    [report] = export_all([hook], Scale(1.5), [make_batch(X)], {}, tmp_path)
    done, answer = ask(tmp_path / report.path, {"x": X}, tmp_path)
    assert answer, done.stderr
    assert_same({"scaled": X * np.float32(1.5)}, answer)
    page = (ROOT / "framework/export/README.md").read_text()
    assert re.findall(r"OpenVINO (\d[\d.]+\d)", page) == [done.stdout.strip()]


def test_float64_is_computed_in_float32(tmp_path):
    spec = {"x": tf.TensorSpec([None, 3], tf.float64)}
    squared = export.Signature(lambda model, inputs: {"squared": inputs["x"] * inputs["x"]}, spec)
    x = X.astype(np.float64) / 3
    batch = {"x": x, "weight": np.ones(len(x), np.float32)}
    [report] = export_all([export.SavedModel({export.SERVING: squared})], Scale(), [batch], {}, tmp_path)
    done, answer = ask(tmp_path / report.path, {"x": x}, tmp_path)
    assert answer, done.stderr
    assert_same({"squared": x * x}, answer)
    assert np.abs(answer["squared"] - x * x).max() > 1e-9


def test_texts_as_inputs_are_refused(tmp_path):
    words = tf.lookup.KeyValueTensorInitializer(tf.constant(["no", "yes"]), tf.constant([10, 20], tf.int64))
    signature = export.Signature(
        lambda table, inputs: {"id": table.lookup(inputs["word"])}, {"word": tf.TensorSpec([None], tf.string)}
    )
    batch = {"word": np.array([b"yes", b"maybe"], object), "weight": np.ones(2, np.float32)}
    table = tf.lookup.StaticHashTable(words, -1)
    [report] = export_all([export.SavedModel({export.SERVING: signature})], table, [batch], {}, tmp_path)
    done, answer = ask(tmp_path / report.path, {"word": np.array(["yes"])}, tmp_path)
    assert answer is None and done.returncode == 1
    assert "Conversion is failed for: HashTableV2, LookupTableFindV2" in done.stderr


@pytest.mark.parametrize("method", [decoding.Greedy(), decoding.Beam(3, length_penalty=0.6)])
def test_a_transformer_decodes_ids(method, tmp_path):
    model = layers.Transformer(12, 11, layers=2, width=16, heads=2, feed_forward=16, max_length=32)
    source = np.random.default_rng(0).integers(4, 12, [9, 8]).astype(np.int32)
    source[:4, 5:] = 0
    model((source, source % 11))
    for number, variable in enumerate(model.variables):
        variable.assign(0.3 * np.random.default_rng(number).normal(size=variable.shape))

    def decoded(model, inputs):
        best = decoding.decode(model.step, model.start(inputs["source"], 10), 2, 3, 10, method)
        return {"ids": best.ids[:, 0], "lengths": best.lengths[:, 0], "scores": best.scores[:, 0]}

    signature = export.Signature(decoded, {"source": tf.TensorSpec([None, None], tf.int32)}, has_metrics=False)
    batch = {"source": source, "weight": np.ones(9, np.float32)}
    [report] = export_all([export.SavedModel({export.SERVING: signature})], model, [batch], {}, tmp_path)
    for rows, length in ((9, 8), (2, 5)):
        inputs = {"source": source[:rows, :length]}
        done, answer = ask(tmp_path / report.path, inputs, tmp_path)
        assert answer, done.stderr
        expected = signature.trace(model)(source=tf.constant(inputs["source"]))
        assert_same({name: output.numpy() for name, output in expected.items()}, answer)


def test_texts_of_a_vocabulary_are_refused(tmp_path):
    letters = text.make_symbols(["abc"]).segments()
    signature = export.Signature(
        lambda model, inputs: {"ids": letters.encode(inputs["word"])},
        {"word": tf.TensorSpec([None], tf.string)},
        uses=[letters],
    )
    batch = {"word": np.array([b"ab"], object), "weight": np.ones(1, np.float32)}
    [report] = export_all([export.SavedModel({export.SERVING: signature})], tf.Module(), [batch], {}, tmp_path)
    done, answer = ask(tmp_path / report.path, {"word": np.array(["ab"])}, tmp_path)
    assert answer is None and done.returncode == 1
    assert "Conversion is failed for: HashTableV2, LookupTableFindV2" in done.stderr
