"""framework/layers/residual.py and cifar_resnet.py against NumPy in float64: values, gradients, shapes, refusals."""

import re

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework import config, data, layers, losses, paths, precision, rng, testing
from framework.layers.residual import BasicBlock, BottleneckBlock, SqueezeExcite
from tests.small import build
from tests.test_equivalence import assert_copies_agree, distance

KEY = rng.key(1)
STEP = 3


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def made(kind, channels, **arguments):
    """A block with random weights, scales, biases and moving averages included, its streams named."""
    block = kind(dtype="float64", **arguments)
    block(tf.zeros([1, 5, 4, channels], tf.float64))
    for number, (path, variable) in enumerate(paths.variables(block).items()):
        value = normal(*variable.shape, seed=10 + number) * 0.5
        variable.assign(abs(value) + 0.5 if path.endswith("moving_variance") else value)
    rng.name_streams(paths.objects(block))
    return block


class Reference:
    """The same blocks from their definition, in NumPy."""

    def __init__(self, block, weights=None):
        self.block = block
        self.settings = block.get_config()
        self.weights = weights or {path: variable.numpy() for path, variable in paths.variables(block).items()}

    def convolution(self, name, x, stride=1):
        """Windows centred on every `stride`-th pixel, zeros outside of the picture."""
        kernel = self.weights[f"{name}/kernel"]
        size, margin = len(kernel), len(kernel) // 2
        x = np.pad(x, [(0, 0), (margin, margin), (margin, margin), (0, 0)])
        height, width = x.shape[1] - size + 1, x.shape[2] - size + 1
        total = 0
        for i in range(size):
            for j in range(size):
                total = total + x[:, i : i + height : stride, j : j + width : stride] @ kernel[i, j]
        return total + self.weights.get(f"{name}/bias", 0)

    def norm(self, name, x, training):
        kind = self.settings["normalization"]
        if kind == "none":
            return x
        if kind in ("batch", "sync_batch") and not training:
            mean, variance = self.weights[f"{name}/moving_mean"], self.weights[f"{name}/moving_variance"]
            normalized = (x - mean) / np.sqrt(variance + 1e-5)
        else:
            groups = self.settings["groups"] or 1
            grouped = x.reshape(*x.shape[:3], groups, -1)
            axes = {"group": (1, 2, 4), "layer": (3, 4)}.get(kind, (0, 1, 2))
            mean, variance = grouped.mean(axes, keepdims=True), grouped.var(axes, keepdims=True)
            normalized = ((grouped - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape)
        return normalized * self.weights[f"{name}/gamma"] + self.weights[f"{name}/beta"]

    def shortcut(self, x, entry, training):
        stride, filters = self.settings["stride"], self.settings["filters"]
        if stride == 1 and x.shape[-1] == filters:
            return x
        if self.settings["shortcut"] == "padded":
            return np.pad(entry[:, ::stride, ::stride], [(0, 0)] * 3 + [(0, filters - x.shape[-1])])
        y = self.convolution("projection", entry, stride)
        return y if self.settings["pre_activation"] else self.norm("projection_norm", y, training)

    def excited(self, x):
        weights = {part: self.weights[f"squeeze_excite/{part}"] for part in ("squeeze/kernel", "excite/kernel")}
        biases = {part: self.weights[f"squeeze_excite/{part}"] for part in ("squeeze/bias", "excite/bias")}
        hidden = np.maximum(x.mean((1, 2)) @ weights["squeeze/kernel"] + biases["squeeze/bias"], 0)
        scale = 1 / (1 + np.exp(-(hidden @ weights["excite/kernel"] + biases["excite/bias"])))
        return x * scale[:, None, None]

    def kept(self, examples):
        """What the branch of each example is multiplied by at STEP, [examples, 1, 1, 1]."""
        threshold = rng.threshold(self.settings["stochastic_depth"])
        with rng.scope(KEY, STEP):
            halves = rng.random_bits16("depth_dropout", examples, 1).numpy()
        return ((halves >= threshold) / (1 - threshold / 2**16))[:, None, None]

    def __call__(self, x, training):
        stride = self.settings["stride"]
        strides = [stride, 1] if type(self.block) is BasicBlock else [1, stride, 1]
        relu = lambda x: np.maximum(x, 0)  # noqa: E731
        entry = y = x
        for number, stride in enumerate(strides, 1):
            if self.settings["pre_activation"]:
                y = relu(self.norm(f"norm_{number}", y, training))
                entry = y if number == 1 else entry
                y = self.convolution(f"conv_{number}", y, stride)
            else:
                y = self.norm(f"norm_{number}", self.convolution(f"conv_{number}", y, stride), training)
                y = y if number == len(strides) else relu(y)
        if self.settings["squeeze_ratio"]:
            y = self.excited(y)
        if training and self.settings["stochastic_depth"]:
            y = y * self.kept(len(x))
        total = self.shortcut(x, entry, training) + y
        return total if self.settings["pre_activation"] else relu(total)


GROUPS = {"normalization": "group", "groups": 2}
BLOCKS = [
    (BasicBlock, 4, {"filters": 4}),
    (BasicBlock, 2, {"filters": 4, "stride": 2, "squeeze_ratio": 2}),
    (BasicBlock, 2, {"filters": 4, "stride": 2, "shortcut": "padded", **GROUPS}),
    (BasicBlock, 6, {"filters": 4, "stochastic_depth": 0.5, "normalization": "layer"}),
    (BasicBlock, 2, {"filters": 4, "stride": 3, "pre_activation": True}),
    (BasicBlock, 2, {"filters": 4, "stride": 2, "pre_activation": True, "shortcut": "padded", "normalization": "none"}),
    (BottleneckBlock, 2, {"filters": 4, "expansion": 2, "stride": 2, "normalization": "sync_batch"}),
    (BottleneckBlock, 4, {"filters": 4, "expansion": 2, "pre_activation": True, "stochastic_depth": 0.5, **GROUPS}),
    (BottleneckBlock, 2, {"filters": 8, "stride": 2, "pre_activation": True, "shortcut": "padded", "squeeze_ratio": 4}),
]
each_block = pytest.mark.parametrize(("kind", "channels", "arguments"), BLOCKS)


@each_block
def test_values_in_training_and_inference_are_those_of_numpy(kind, channels, arguments):
    block, x = made(kind, channels, **arguments), normal(4, 5, 4, channels)
    reference = Reference(block)
    np.testing.assert_allclose(block(x), reference(x, training=False), rtol=0, atol=1e-12)
    with rng.scope(KEY, STEP):
        trained = block(x, training=True)
    np.testing.assert_allclose(trained, reference(x, training=True), rtol=0, atol=1e-12)
    stride = arguments.get("stride", 1)
    assert trained.shape == (4, -(-5 // stride), -(-4 // stride), arguments["filters"])


@each_block
def test_gradients_are_the_differences_of_numpy(kind, channels, arguments):
    """By the input and by each weight, along a random direction."""
    block, x = made(kind, channels, **arguments), tf.constant(normal(4, 5, 4, channels))
    weights = {path: variable.numpy() for path, variable in paths.variables(block).items()}
    trained = {path: variable for path, variable in paths.variables(block).items() if variable.trainable}
    with tf.GradientTape() as tape, rng.scope(KEY, STEP):
        tape.watch(x)
        y = block(x, training=True)
        total = tf.reduce_sum(y * normal(*y.shape, seed=2))
    gradients = tape.gradient(total, {"": x, **trained})
    for path, gradient in gradients.items():
        direction = normal(*gradient.shape, seed=3)

        def moved(by, path=path, direction=direction):
            if path:
                reference = Reference(block, {**weights, path: weights[path] + by * direction})
                return np.sum(reference(x.numpy(), training=True) * normal(*y.shape, seed=2))
            return np.sum(
                Reference(block, weights)(x.numpy() + by * direction, training=True) * normal(*y.shape, seed=2)
            )

        difference = (moved(1e-6) - moved(-1e-6)) / 2e-6
        assert np.sum(gradient.numpy() * direction) == pytest.approx(difference, rel=1e-6, abs=1e-6), path


def test_moving_averages_move_by_a_tenth():
    block, x = made(BasicBlock, 2, filters=4), normal(4, 5, 4, 2)
    before = {path: variable.numpy() for path, variable in paths.variables(block).items()}
    entering = Reference(block).convolution("conv_1", x)
    with rng.scope(KEY, STEP):
        block(x, training=True)
    mean = 0.9 * before["norm_1/moving_mean"] + 0.1 * entering.mean((0, 1, 2))
    variance = 0.9 * before["norm_1/moving_variance"] + 0.1 * entering.var((0, 1, 2))
    np.testing.assert_allclose(block.norm_1.moving_mean, mean, rtol=1e-6)  # tf_keras makes 1 - momentum in float32
    np.testing.assert_allclose(block.norm_1.moving_variance, variance, rtol=1e-6)


@pytest.mark.parametrize("kind", [BasicBlock, BottleneckBlock])
@pytest.mark.parametrize("pre_activation", [False, True])
@pytest.mark.parametrize("normalization", ["batch", "none"])
def test_a_branch_that_is_zero_at_first_leaves_the_shortcut(kind, pre_activation, normalization):
    x = normal(2, 4, 4, 8)
    arguments = {"pre_activation": pre_activation, "normalization": normalization, "dtype": "float64"}
    expected = x if pre_activation else np.maximum(x, 0)
    assert np.array_equal(kind(8, **arguments)(x), expected)
    assert not np.allclose(kind(8, zero_last=False, **arguments)(x), expected)


@pytest.mark.parametrize("normalization", layers.normalization.NORMALIZATIONS)
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_is_normalized_in_full(policy, normalization):
    """Numbers far from 0: sums of them in half precision would be wrong by more than their spread."""
    groups = 2 if normalization == "group" else None
    made = [layers.make_normalization(normalization, groups, dtype=dtype) for dtype in (policy, "float64")]
    if normalization == "none":
        assert made == [None, None]
        return
    step = {"mixed_bfloat16": 2**-8, "mixed_float16": 2**-11}[policy]
    x = tf.cast(normal(4, 8, 8, 4) + 16, policy.removeprefix("mixed_"))
    mode = {"training": True} if "batch" in normalization else {}
    half, full = (layer(tf.cast(x, layer.compute_dtype), **mode) for layer in made)
    np.testing.assert_allclose(tf.cast(half, tf.float64), full, rtol=2 * step, atol=2 * step)


def test_he_initialisers():
    """The variance of a kernel is 2 / fan-in."""
    block = BottleneckBlock(256, stride=2, zero_last=False, dtype="float64")
    block(tf.zeros([1, 2, 2, 128], tf.float64))
    for path, fan_in in {"conv_1": 128, "conv_2": 9 * 64, "conv_3": 64, "projection": 128}.items():
        kernel = getattr(block, path).kernel.numpy()
        assert kernel.var() * fan_in / 2 == pytest.approx(1, abs=5 * np.sqrt(2 / kernel.size)), path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BasicBlock(8, shortcut="none"), "BasicBlock: shortcut='none' is none of projection, padded"),
        (lambda: BasicBlock(0), "BasicBlock: filters=0 must be at least 1"),
        (lambda: BasicBlock(8, 0), "BasicBlock: stride=0 must be at least 1"),
        (lambda: BasicBlock(8, stochastic_depth=1.0), "rate=1.0 must be at least 0 and below 1"),
        (
            lambda: BasicBlock(8, normalization="instance"),
            "normalization='instance' is none of batch, sync_batch, group, layer, none",
        ),
        (
            lambda: BasicBlock(8, normalization="group"),
            "normalization='group' needs groups=N, a divisor of the channels",
        ),
        (lambda: BasicBlock(8, groups=2), "normalization='batch' takes no groups, but groups=2"),
        (lambda: BasicBlock(8, normalization="group", groups=0), "groups=0 must be at least 1"),
        (
            lambda: BasicBlock(8, normalization="group", groups=3)(tf.zeros([1, 4, 4, 8])),
            "BasicBlock: groups=3 is not a divisor of the 8 channels to normalise",
        ),
        (
            lambda: BottleneckBlock(8, pre_activation=True, normalization="group", groups=2)(tf.zeros([1, 4, 4, 3])),
            "BottleneckBlock: groups=2 is not a divisor of the 3 channels to normalise",
        ),
        (lambda: BottleneckBlock(10), "BottleneckBlock: expansion=4 is not a divisor of filters=10"),
        (
            lambda: BasicBlock(4, shortcut="padded")(tf.zeros([1, 4, 4, 8])),
            "BasicBlock: shortcut='padded' adds channels of zeros, and cannot make 4 channels of 8. Write"
            " shortcut='projection'",
        ),
        (
            lambda: BasicBlock(4)(tf.zeros([4, 8])),
            "BasicBlock takes [batch, height, width, channels] with static channels, but got (4, 8)",
        ),
        (lambda: SqueezeExcite(3)(tf.zeros([1, 4, 4, 8])), "SqueezeExcite: ratio=3 is not a divisor of the 8 channels"),
        (lambda: layers.cifar_resnet(21), "depth=21 is not 6 n + 2. Write depth=20 or 26"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def weights_of(depth, filters=16, classes=10, has_projections=False):
    """The number of trained weights by section 4.2 of He et al., with scales and shifts of BatchNorm."""
    n = (depth - 2) // 6
    count = 27 * filters + 2 * filters + 4 * filters * classes + classes
    for stage in range(3):
        width = filters * 2**stage
        entering = width if stage == 0 else width // 2
        count += 9 * entering * width + (2 * n - 1) * 9 * width**2 + 2 * n * 2 * width
        count += (entering * width + 2 * width) if has_projections and stage else 0
    return count


@pytest.mark.parametrize(("depth", "shortcut"), [(20, "padded"), (8, "projection")])
def test_the_resnet_has_the_number_of_weights_of_its_formula(depth, shortcut):
    model = layers.cifar_resnet(depth, shortcut=shortcut)
    count = sum(weight.shape.num_elements() for weight in model.trainable_weights)
    assert count == weights_of(depth, has_projections=shortcut == "projection")
    assert depth == 2 + sum("/conv_" in weight.name and "kernel" in weight.name for weight in model.trainable_weights)


def test_the_formula_is_that_of_the_paper():
    """Table 6 of He et al., in millions."""
    for depth, millions in {20: 0.27, 32: 0.46, 44: 0.66, 56: 0.85, 110: 1.7}.items():
        assert weights_of(depth) / 1e6 == pytest.approx(millions, abs=0.03 if depth == 110 else 0.006), depth


@pytest.mark.parametrize("pre_activation", [False, True])
def test_the_resnet_computes_what_its_layers_compute(pre_activation):
    with precision.scope("float64"):
        model = layers.cifar_resnet(
            8, 3, filters=2, shape=(8, 8, 3), pre_activation=pre_activation, stochastic_depth=0.3
        )
    model.set_weights([abs(normal(*w.shape, seed=i)) * 0.5 for i, w in enumerate(model.get_weights())])
    pixels = normal(2, 8, 8, 3)
    weights = {path: variable.numpy() for path, variable in paths.variables(model).items()}
    blocks = {name: Reference(model.get_layer(name)) for name in (f"stage_{i}_block_1" for i in (1, 2, 3))}
    outside = Reference(model.get_layer("stage_1_block_1"), weights)

    def activated(name, x):
        return np.maximum(outside.norm(name, x, training=False), 0)

    x = outside.convolution("stem", pixels)
    x = x if pre_activation else activated("stem_norm", x)
    for reference in blocks.values():
        x = reference(x, training=False)
    x = activated("last_norm", x) if pre_activation else x
    expected = x.mean((1, 2)) @ weights["head/kernel"] + weights["head/bias"]
    np.testing.assert_allclose(model(pixels), expected, rtol=1e-12)
    rates = [model.get_layer(name).get_config()["stochastic_depth"] for name in blocks]
    assert rates == pytest.approx([0.1, 0.2, 0.3])


def with_blocks(*blocks):
    """An experiment of pictures with some residual blocks."""

    def make_model(cfg):
        last = keras.layers.Dense(3, dtype=keras.backend.floatx(), name="last")
        return keras.Sequential(
            [keras.layers.Reshape([2, 3, 1]), *(make() for make in blocks), keras.layers.Flatten(), last]
        )

    return {"make_model": make_model}


DOUBLE = {"train.precision": "float64", "train.block_steps": 8, "train.duration": "8 steps"}
TWO = {**DOUBLE, "runtime.strategy": "mirrored", "runtime.virtual_devices": 2}


def trained(functions, **settings):
    """Returns all variables of the model after 8 steps."""
    run = build(functions=functions, **settings)
    run.train_block(8)
    assert_copies_agree(run)
    return {path: variable.numpy() for path, variable in paths.variables(run.model).items()}


@pytest.mark.slow  # fast: tests/distribute/test_replicas.py, of the layer alone
def test_synchronised_batch_normalisation_in_a_block_is_that_of_one_device():
    def block(normalization):
        return with_blocks(lambda: BasicBlock(2, 2, normalization=normalization, stochastic_depth=0.25))

    assert distance(trained(block("sync_batch"), **TWO), trained(block("batch"), **DOUBLE)) <= 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("normalization", ["batch", "sync_batch", pytest.param("group", marks=pytest.mark.slow)])
def test_replicas_train_what_one_device_trains_unless_each_has_its_own_statistics(normalization):
    def blocks(normalization):
        more = {"normalization": normalization, "groups": 2 if normalization == "group" else None}
        more["zero_last"] = False
        return with_blocks(
            lambda: keras.layers.Conv2D(2, 1),
            lambda: BasicBlock(2, **more),
            lambda: BottleneckBlock(4, pre_activation=True, expansion=2, stochastic_depth=0.25, **more),
        )

    one = trained(blocks(normalization.removeprefix("sync_")), **DOUBLE)
    difference = distance(trained(blocks(normalization), **TWO), one)
    assert difference > 1e-3 if normalization == "batch" else difference <= 1e-12


@pytest.mark.slow
def test_resnet_20_learns_32_pictures_by_heart():
    pictures = normal(32, 32, 32, 3).astype(np.float32)
    labels = np.arange(32, dtype=np.int32) % 10
    source = data.Source({"image": pictures, "label": labels}, "made up")

    def get_config(arg):
        cfg = config.base_config()
        cfg.data.batch_size = cfg.eval.batch_size = 32
        cfg.train.duration = "40 steps"
        cfg.train.compile = "graph"
        cfg.optimizer.name = "sgd"
        cfg.schedule.learning_rate = 0.05
        return cfg

    def make_data(cfg, split):
        return data.make_batches(source, cfg, training=split == "train")

    def make_loss(cfg):
        def loss(model, batch, training):
            logits = model(batch["image"], training=training)
            return {"cross_entropy": losses.sparse_cross_entropy(logits, batch["label"], batch["weight"])}, {}

        return loss

    functions = {"get_config": get_config, "make_data": make_data, "make_loss": make_loss}
    run = testing.build({**functions, "make_model": lambda cfg: layers.cifar_resnet()})
    rows = run.train_block(40)
    assert rows.row(0)["loss"] > 2 and rows.row(39)["loss"] < 0.2
