"""experiments/cifar_resnet.py: its networks, loss and evaluators, on made-up pictures."""

from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from experiments import cifar_resnet
from framework import evaluators
from framework.config.overrides import override
from framework.errors import UserError
from tests.made_up import made_up


def settings(preset="", **overrides):
    return override(cifar_resnet.get_config(preset), overrides)


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
    run = SimpleNamespace(model=lambda view, training: tf.one_hot(tf.fill([len(view)], 3), 10))
    report = cifar_resnet.make_evaluators(settings(**{"data.views": True}))["views"](run)
    assert report.scalars == {"accuracy": (label == 3).mean()}


def test_wrong_values_are_refused():
    for key, value in {"data.flip": "both", "model.net": "vgg", "data.name": "cifar100", "data.crop": 40}.items():
        with pytest.raises(UserError, match=key):
            cifar_resnet.check_config(settings(**{key: value}))
    with pytest.raises(UserError, match="init_from"):
        cifar_resnet.check_config(settings("fine_tune"))
