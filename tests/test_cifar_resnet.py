"""experiments/cifar_resnet.py: its networks, loss, evaluators, presets and fine-tuning, on made-up pictures."""

from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from experiments import cifar_resnet
from framework import data, evaluators, testing
from framework.config.overrides import override
from framework.errors import UserError
from framework.run import loop
from tests.made_up import made_up

QUICK = {
    "train.duration": "2 steps",
    "train.compile": "graph",
    "data.batch_size": 8,
    "eval.batch_size": 20,
    "schedule.name": "constant",
    "schedule.warmup": "",
    "schedule.boundaries": (),
    "schedule.factors": (),
    "eval.every": "",
    "checkpoint.every": "",
    "checkpoint.best_metric": "",
    "log.histograms_every": "",
}
COUNTS = {"train": 64, "test": 40}
BOUND = 0.1  # of the difference of the mean losses of 50 steps, as a share of that of float32


@pytest.fixture
def pictures(monkeypatch):
    """The experiment reads made-up pictures, of the shape of the data set that it asks for."""

    def load(name, split, folder):
        shape = (32, 32, 3) if name == "cifar10" else (28, 28)
        image, label = made_up(split, COUNTS[split], shape=shape)
        return data.Source({"image": image, "label": label}, origin=f"made-up {name}")

    monkeypatch.setattr(cifar_resnet, "load", load)


def settings(preset="", **overrides):
    return override(cifar_resnet.get_config(preset), overrides)


def build(tmp_path, preset="", **overrides):
    values = {**cifar_resnet.PRESETS.get(preset, {}), **QUICK, **overrides}
    return testing.build(cifar_resnet, values, tmp_path)


# ---- The parts of the experiment ----


def test_normalize():
    image = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    mean = np.array([0.4914, 0.4822, 0.4465])
    deviation = np.array([0.2470, 0.2435, 0.2616])
    np.testing.assert_allclose(cifar_resnet.normalize()(image), (image / 255 - mean) / deviation, rtol=0, atol=2e-6)


def test_framed():
    image = np.random.default_rng(0).integers(0, 256, (3, 28, 28), np.uint8)
    framed = cifar_resnet.framed({"image": tf.constant(image), "label": 7})
    expected = np.zeros([3, 32, 32, 3], np.uint8)
    expected[:, 2:30, 2:30] = image[..., np.newaxis]
    np.testing.assert_array_equal(framed["image"], expected)
    assert framed["label"] == 7


def test_small_is_the_network_of_the_tutorial():
    model = cifar_resnet.make_model(settings())
    stem = 9 * 3 * 32 + 2 * 32
    block = 9 * 32 * 64 + 2 * 64 + 9 * 64 * 64 + 2 * 64
    projection = 32 * 64 + 2 * 64
    head = 8 * 8 * 64 * 10 + 10
    assert sum(np.prod(weights.shape) for weights in model.trainable_weights) == stem + block + projection + head
    assert model.get_layer("block").output_shape == (None, 16, 16, 64)
    assert model.output_shape == (None, 10)


def test_weight_decay_is_half_the_sum_of_the_squares_of_kernels():
    cfg = settings(**{"model.weight_decay": 0.3})
    model = cifar_resnet.make_model(cfg)
    loss = cifar_resnet.make_loss(cfg)
    image, label = made_up("train", 4)
    batch = {"image": tf.constant(image), "label": tf.constant(label), "weight": tf.constant([1.0, 1, 0, 1])}
    terms, _ = loss(model, batch, True)
    kernels = [weights.numpy().astype(np.float64) for weights in model.trainable_weights if "kernel" in weights.name]
    assert len(kernels) == 5  # stem, block, projection, head
    expected = 0.3 / 2 * sum((kernel**2).sum() for kernel in kernels)
    assert float(terms["weight_decay"].sum / terms["weight_decay"].weight) == pytest.approx(expected, rel=1e-6)
    assert float(terms["weight_decay"].weight) == 3
    plain = cifar_resnet.make_loss(settings(**{"model.weight_decay": 0.0}))
    assert plain(model, batch, True)[0].keys() == {"cross_entropy"}


def test_cutout_turns_a_square_of_training_pictures_grey(pictures, tmp_path):
    run = build(tmp_path, **{"data.cutout": 8, "data.crop": 0, "data.flip": "none"})
    assert count_grey(run.data).min() >= 4 * 4  # a quarter of the square lies inside at least
    assert count_grey(run.data).max() <= 8 * 8
    assert not count_grey(run.eval_data["test"]).any()


def count_grey(batches):
    """Returns how many pixels of each picture of the first batch are grey, int64 [batch]."""
    return (batches.at(0)["image"].numpy() == cifar_resnet.GREY).all(axis=-1).sum(axis=(1, 2))


def test_views_are_the_weighted_mean_of_six():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (5, 32, 32, 3), np.uint8)
    weights = rng.normal(size=(32, 32, 3, 10)) / 1000

    def model(view, training):
        assert not training
        return tf.einsum("nyxc,yxck->nk", tf.cast(view, tf.float64), weights)

    padded = np.pad(image, [(0, 0), (1, 1), (1, 1), (0, 0)], "reflect")
    expected = 0
    for shift, share in ((0, 0.25), (1, 0.5), (2, 0.25)):  # by -1, 0 and 1 pixel along both axes
        view = padded[:, shift : shift + 32, shift : shift + 32]
        for mirrored in (view, view[:, :, ::-1]):
            expected += share / 2 * np.tensordot(mirrored, weights, 3)
    np.testing.assert_allclose(cifar_resnet.Views.logits(model, tf.constant(image)), expected, rtol=1e-12)


def test_report_of_classes_names_the_worst_mistakes(monkeypatch):
    label = np.array([0, 1, 2, 3, 3, *range(4, 10)])
    logits = 4.0 * np.eye(10)[label]
    logits[1, 7] = 9.0  # an automobile taken for a horse, by 5
    logits[4, 5] = 6.0  # the second cat, for a dog, by 2
    image = np.arange(len(label), dtype=np.uint8)[:, None, None, None] * np.ones([1, 32, 32, 3], np.uint8)
    batches = [
        ({"image": image[rows], "label": label[rows]}, {"logits": logits[rows]})
        for rows in (slice(0, 4), slice(4, None))
    ]
    monkeypatch.setattr(evaluators, "predictions", lambda run: iter(batches))
    report = cifar_resnet.make_evaluators(settings())["classes"](None)
    expected = dict.fromkeys(cifar_resnet.CLASSES["cifar10"], 1.0) | {"automobile": 0.0, "cat": 0.5}
    assert report.scalars == expected
    assert report.texts["worst"][:2] == ["1: automobile, taken for horse", "4: cat, taken for dog"]
    np.testing.assert_array_equal(report.images["worst"][:2, 0, 0, 0], [1, 4])


def test_views_count_the_hits_of_all_batches(monkeypatch):
    image, label = made_up("test", 30)
    batches = [({"image": image[rows], "label": label[rows]}, {}) for rows in (slice(0, 20), slice(20, None))]
    monkeypatch.setattr(evaluators, "predictions", lambda run: iter(batches))
    run = SimpleNamespace(model=lambda view, training: tf.one_hot(tf.fill(tf.shape(view)[:1], 3), 10))
    report = cifar_resnet.make_evaluators(settings(**{"data.views": True}))["views"](run)
    assert report.scalars == {"accuracy": (label == 3).mean()}


def test_wrong_values_are_refused():
    for key, value in {"data.flip": "both", "model.net": "vgg", "data.name": "cifar100", "data.crop": 40}.items():
        with pytest.raises(UserError, match=key):
            cifar_resnet.check_config(settings(**{key: value}))
    with pytest.raises(UserError, match="init_from"):
        cifar_resnet.check_config(settings("fine_tune"))


# ---- Runs ----


SHORT = {
    "resnet20": {"model.depth": 8, "train.duration": "2 steps"},
    "fast": {"data.batch_size": 32, "train.duration": "4 epochs"},  # the bias of the first layer is trained for three
}


@pytest.mark.slow
@pytest.mark.parametrize("preset", SHORT)
def test_a_few_steps_of_a_preset(pictures, tmp_path, preset):
    run = build(tmp_path, preset, **SHORT[preset])
    before = testing.bits(run.model)
    result = loop.train(run)
    assert result["step"] == result["updates"] == {"resnet20": 2, "fast": 8}[preset]
    assert testing.differing(before, testing.bits(run.model)) == before.keys() - {"whiten/kernel"}
    assert 0 <= result["final"]["test/top5"] <= 1


PLAIN_SGD = {"optimizer.momentum": 0.0, "optimizer.nesterov": False, "model.weight_decay": 0.0}


@pytest.mark.slow
def test_fine_tuning_freezes_a_stage_and_slows_down_others(pictures, tmp_path):
    """One update of plain SGD: each stage moves by its factor of what it moves where only the frozen ones are named."""
    trained = build(tmp_path / "trained", "resnet20", **{"model.depth": 8})
    loop.train(trained)
    values = PLAIN_SGD | {
        "model.depth": 8,
        "init_from": str(tmp_path / "trained"),
        "init_map": (".*/head/.* -> ",),
    }
    groups = cifar_resnet.PRESETS["fine_tune"]["optimizer.groups"]
    changes = {}
    for name, chosen in (("all groups", groups), ("frozen alone", groups[:1])):
        run = build(tmp_path / name, "fine_tune", **values, **{"optimizer.groups": chosen})
        run.open()
        before = testing.bits(run.model)
        fresh = {"resnet_8/head/kernel", "resnet_8/head/bias"}
        assert testing.differing(before, testing.bits(trained.model)) == fresh
        run.train_block(1)
        after = testing.bits(run.model)
        numbers = [{path: np.frombuffer(raw, np.float32) for path, raw in bits.items()} for bits in (before, after)]
        changes[name] = {path: numbers[1][path] - numbers[0][path] for path in before if "moving_" not in path}
    factors = {
        "stem": 0,
        "stem_norm": 0,
        "stage_1_block_1": 0,
        "stage_2_block_1": 0.1,
        "stage_3_block_1": 0.3,
        "head": 1,
    }
    for path, change in changes["all groups"].items():
        factor = factors[path.split("/")[1]]
        np.testing.assert_allclose(change, factor * changes["frozen alone"][path], rtol=1e-3, atol=1e-7, err_msg=path)
        assert change.any() == (factor > 0), path


CURVES = {
    "float32": {},
    "two replicas": {"runtime.strategy": "mirrored", "runtime.virtual_devices": 2, "data.views": True},
    "two replicas, synchronised": {
        "runtime.strategy": "mirrored",
        "runtime.virtual_devices": 2,
        "model.normalization": "sync_batch",
    },
    "bfloat16": {"train.precision": "bfloat16"},
    "float16": {"train.precision": "float16", "train.compile": "xla_gradients"},
}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_loss_curves_of_precisions_and_replicas(monkeypatch, tmp_path):
    """500 steps beside those of float32 on one device: the mean loss of each 50 steps differs by at most a tenth.

    A fifth of the labels is drawn at random, so that the loss does not reach 0, where all curves would be equal.
    """

    def load(name, split, folder):
        image, label = made_up(split, 4096 if split == "train" else 100)
        rng = np.random.default_rng(5)
        label = np.where(rng.uniform(size=len(label)) < 0.2, rng.integers(0, 10, len(label)), label).astype(np.int32)
        return data.Source({"image": image, "label": label}, origin="made-up pictures")

    monkeypatch.setattr(cifar_resnet, "load", load)
    length = {"train.duration": "500 steps", "log.every": "50 steps", "data.batch_size": 32}
    curves = {}
    for name, values in CURVES.items():
        run = build(
            tmp_path / name, **{**length, "schedule.learning_rate": 0.05, "schedule.warmup": "100 steps", **values}
        )
        loop.train(run)
        curves[name] = np.array([row["mean/loss"] for row in testing.rows(run) if "mean/loss" in row])
        print(name, curves[name].round(4))
    for name, curve in curves.items():
        assert len(curve) == 10
        assert np.abs(curve / curves["float32"] - 1).max() <= BOUND, name


@pytest.mark.slow
def test_synchronised_replicas_are_one_device(pictures, tmp_path):
    """In float64, where rounding is small: the weights after three steps, with statistics over both replicas."""
    weights = []
    for devices in (1, 2):
        values = {"runtime.strategy": "mirrored", "runtime.virtual_devices": 2, "runtime.devices": devices}
        run = build(
            tmp_path / str(devices),
            **{"train.precision": "float64", "train.duration": "3 steps", "model.normalization": "sync_batch"},
            **(values if devices == 2 else {}),
        )
        run.train_block(3)
        weights.append({path: np.frombuffer(raw, np.float64) for path, raw in testing.bits(run.model).items()})
    for path, values in weights[0].items():
        np.testing.assert_allclose(weights[1][path], values, rtol=1e-6, atol=1e-9, err_msg=path)
