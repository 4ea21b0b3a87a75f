"""Pruning against tensorflow_model_optimization, and its parts against NumPy."""

import math

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from ml_collections import ConfigDict

from framework import optim, paths, testing
from framework.config import UserError, base_config
from framework.optim.pruning import kth_largest, magnitude_mask, pattern_mask
from tests.compile_modes import FAST_MODES, MODES

ZERO = np.int64(0)


def settings(**values):
    """Returns the section `prune` of a resolved config."""
    return ConfigDict({**base_config().prune.to_dict(), "begin": 0, "end": 20, "every": 3, **values})


# The oracle


def mlp(dtype, wrap=lambda layer: layer):
    """Returns a network of the same weights each time, its layers wrapped."""
    hidden, last = keras.layers.Dense(16, "tanh", dtype=dtype), keras.layers.Dense(4, dtype=dtype)
    model = keras.Sequential([keras.Input([12], dtype=dtype), wrap(hidden), wrap(last)])
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(size=variable.shape) * (variable.shape.rank > 1))
    return model


def trainer(model, optimizer):
    """Returns a compiled step of the model: a squared error, its gradients, an update."""

    @tf.function(autograph=False)
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x, training=True) - y))
        optimizer.apply_gradients(
            zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables, strict=True)
        )

    optimizer.build(model.trainable_variables)
    return step


OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.1, momentum=0.9, jit_compile=False),
    "adam": lambda: keras.optimizers.Adam(0.01, jit_compile=False),
}


BOUNDS = {"float32": 1e-6, "float64": 1e-13}
POLYNOMIAL = (
    {"sparsity": 0.8, "initial": 0.25, "begin": 3, "end": 21, "every": 3},
    lambda schedules: schedules.PolynomialDecay(0.25, 0.8, begin_step=4, end_step=22, frequency=3),
)
CONSTANT = (
    {"sparsity": 0.7, "schedule": "constant", "begin": 4, "end": 24, "every": 5},
    lambda schedules: schedules.ConstantSparsity(0.7, begin_step=5, end_step=25, frequency=5),
)
PATTERN = (
    {"sparsity": 0.5, "schedule": "constant", "pattern": "2:4", "begin": 0, "end": 1, "every": 9},
    lambda schedules: schedules.ConstantSparsity(0.5, begin_step=0),  # such masks are made at step 1 alone
)


@pytest.mark.parametrize(
    ("optimizer", "dtype", "ours", "theirs"),
    [
        pytest.param("sgd", "float64", *POLYNOMIAL, marks=pytest.mark.slow),
        ("adam", "float64", *POLYNOMIAL),
        pytest.param("adam", "float64", *CONSTANT, marks=pytest.mark.slow),
        ("sgd", "float32", *PATTERN),  # which it has in float32 alone
    ],
    ids=["polynomial-sgd", "polynomial-adam", "constant-adam", "2:4-sgd"],
)
def test_masks_and_weights_are_those_of_the_wrapper_of_tfmot(optimizer, dtype, ours, theirs):
    """What is here after update t, the wrapper has in the forward pass of its step t + 1."""
    sparsity = pytest.importorskip("tensorflow_model_optimization").sparsity.keras
    options = {"pruning_schedule": theirs(sparsity), "dtype": dtype}
    if "pattern" in ours:
        options["sparsity_m_by_n"] = (2, 4)
    wrapped = mlp(dtype, lambda layer: sparsity.prune_low_magnitude(layer, **options))
    for layer in wrapped.layers:
        layer.pruning_step.assign(0)
    model = mlp(dtype)
    pruner = optim.Pruner(settings(**ours), optim.pruned_variables(settings(**ours), paths.trainable(model)))
    their_step, our_step = trainer(wrapped, OPTIMIZERS[optimizer]()), trainer(model, OPTIMIZERS[optimizer]())
    follow = tf.function(pruner.after_update, autograph=False)
    look = tf.function(lambda x: wrapped(x, training=True), autograph=False)
    rng = np.random.default_rng(1)
    for t in range(1, 31):
        x, y = (tf.constant(rng.normal(size=(8, width)), dtype) for width in (12, 4))
        their_step(x, y)
        our_step(x, y)
        follow(tf.constant(t, tf.int64), tf.constant(t - 1, tf.int64))
        if t in (1, 3, 4, 9, 10, 30):  # the masking of the next forward pass, which it does not do twice
            steps = [layer.pruning_step.numpy() for layer in wrapped.layers]
            look(x)
            for layer, step in zip(wrapped.layers, steps, strict=True):
                layer.pruning_step.assign(step)
        if t in (3, 4, 9, 30):
            for layer, plain in zip(wrapped.layers, model.layers, strict=True):
                (kernel, mask, _), *_ = layer.pruning_vars
                np.testing.assert_array_equal(pruner.masks[path_of(model, plain)].numpy(), mask.numpy() == 1)
                np.testing.assert_allclose(plain.kernel.numpy(), kernel.numpy(), rtol=0, atol=BOUNDS[dtype])
                np.testing.assert_allclose(plain.bias.numpy(), layer.layer.bias.numpy(), rtol=0, atol=BOUNDS[dtype])
    for path, share in pruner.sparsities().items():
        size = pruner.masks[path].shape.num_elements()
        assert share == pytest.approx(1 - round(size * (1 - ours["sparsity"])) / size, rel=1e-12)


def path_of(model, layer):
    return next(path for path, variable in paths.trainable(model).items() if variable is layer.kernel)


# Its parts


@pytest.mark.parametrize("mode", FAST_MODES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_kth_largest_is_exact(mode, dtype):
    rng = np.random.default_rng(0)
    values = np.abs(rng.normal(size=300)).astype(dtype)
    values[:20] = 0
    values[20:30] = values[30]  # ties
    values[40:42] = np.finfo(dtype).max, np.finfo(dtype).tiny
    found = MODES[mode](kth_largest)
    for k in (1, 2, 150, 279, 280, 281, 300):
        assert found(tf.constant(values), tf.constant(k)).numpy() == np.sort(values)[-k]


@pytest.mark.parametrize("mode", FAST_MODES)
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.3, 0.5, 0.9, 0.999])
def test_a_mask_keeps_the_largest_and_their_ties(mode, sparsity):
    weights = np.random.default_rng(0).normal(size=(5, 9)).astype(np.float32)
    weights[0, :4] = np.sort(np.abs(weights).ravel())[20]
    kept = max(1, math.floor(45 * (1 - sparsity) + 0.5 + 1e-9))
    wanted = np.abs(weights) >= np.sort(np.abs(weights).ravel())[-kept]
    mask = MODES[mode](magnitude_mask)(tf.constant(weights), tf.constant(sparsity, tf.float64))
    np.testing.assert_array_equal(mask, wanted)


@pytest.mark.parametrize("mode", FAST_MODES)
@pytest.mark.parametrize(("zeros", "size"), [(2, 4), (1, 2), (4, 8)])
@pytest.mark.parametrize("shape", [(8, 3), (10, 5), (3, 3, 7, 2)])
def test_a_pattern_has_its_zeros_along_the_inputs(mode, shape, zeros, size):
    weights = np.random.default_rng(0).integers(-3, 4, shape).astype(np.float32)  # with ties
    wanted = np.zeros(shape, bool)
    for place in np.ndindex(*shape[:-2], shape[-1]):
        column = np.abs(weights[(*place[:-1], slice(None), place[-1])])
        for first in range(0, len(column), size):
            group = [*column[first : first + size], *[0] * (size - len(column[first : first + size]))]
            best = sorted(range(size), key=lambda i, group=group: (-group[i], i))[: size - zeros]
            for i in best:
                if first + i < len(column):
                    wanted[(*place[:-1], first + i, place[-1])] = True
    mask = MODES[mode](lambda w: pattern_mask(w, zeros, size))(tf.constant(weights))
    np.testing.assert_array_equal(mask, wanted)


def variables():
    rng = np.random.default_rng(1)
    shapes = {"a/kernel": (6, 5), "a/bias": (5,), "b/kernel": (5, 4), "heads/bias": (2, 2), "norm/gamma": (2, 2)}
    return {path: tf.Variable(rng.normal(size=shape), dtype=tf.float32) for path, shape in shapes.items()}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("mode", FAST_MODES)
def test_masks_are_made_when_due_and_a_step_that_is_left_out_changes_nothing(mode, masked):
    weights = variables()
    average = {path: tf.Variable(tf.ones(v.shape)) for path, v in weights.items()}
    values = settings(sparsity=0.6, initial=0.2, begin=2, end=10, every=3)
    pruner = optim.Pruner(values, optim.pruned_variables(values, weights), [average])
    assert list(paths.variables(pruner)) == ["masks/a/kernel", "masks/b/kernel"]
    update = MODES[mode](pruner.after_update)
    rng = np.random.default_rng(2)
    made = {path: np.ones(weights[path].shape, bool) for path in pruner.masks}
    for t in range(1, 14):
        for variable in weights.values():
            variable.assign_add(rng.normal(size=variable.shape).astype(np.float32))
        dense = {path: weights[path].numpy() for path in made}
        if masked:
            before = testing.bits(pruner)
            update(tf.constant(t, tf.int64), ZERO, tf.constant(False))
            assert testing.bits(pruner) == before
            for path, values in dense.items():
                weights[path].assign(values)
        update(tf.constant(t, tf.int64), ZERO, *([tf.constant(True)] if masked else []))
        if t in (2, 5, 8, 10):
            share = 0.6 - 0.4 * (1 - (t - 2) / 8) ** 3
            for path, values in dense.items():
                kept = round(values.size * (1 - share))
                made[path] = np.abs(values) >= np.sort(np.abs(values).ravel())[-kept]
        for path, values in dense.items():
            np.testing.assert_array_equal(pruner.masks[path], made[path])
            np.testing.assert_array_equal(weights[path], np.where(made[path], values, 0))
            assert (average[path].numpy()[~made[path]] == 0).all()
    assert all((average[path].numpy() == 1).all() for path in weights if path not in made)


def test_keep_leaves_the_zeros_of_the_start():
    weights = variables()
    zeros = np.random.default_rng(3).uniform(size=(6, 5)) < 0.5
    weights["a/kernel"].assign(np.where(zeros, 0, weights["a/kernel"].numpy()))
    values = settings(schedule="keep", exclude="b/.*")
    pruner = optim.Pruner(values, optim.pruned_variables(values, weights))
    for t in range(1, 4):
        weights["a/kernel"].assign_add(tf.ones((6, 5)))
        pruner.after_update(tf.constant(t, tf.int64), ZERO)
        np.testing.assert_array_equal(weights["a/kernel"].numpy() == 0, zeros)
    assert pruner.sparsities() == {"a/kernel": zeros.mean()}
    assert pruner.shares(100) == {"sparsity": zeros.mean(), "sparsity_overall": zeros.sum() / 100}


@pytest.mark.parametrize(
    ("values", "shape"),
    [
        *(({"sparsity": share}, shape) for share in (0.5, 0.8, 0.95) for shape in ((3, 1), (7, 5), (2, 2, 3, 4))),
        *(
            ({"sparsity": int(pattern[0]) / int(pattern[2]), "pattern": pattern}, shape)
            for pattern in ("1:2", "1:4", "2:4", "4:8")
            for shape in ((1, 3), (6, 8), (11, 2), (3, 3, 7, 2))
        ),
    ],
)
def test_the_sparsity_to_expect_is_that_of_the_last_masks(values, shape):
    weights = {"kernel": tf.Variable(np.random.default_rng(1).normal(size=shape).astype(np.float32))}
    pruner = optim.Pruner(settings(schedule="constant", begin=1, end=2, every=1, **values), weights)
    expected = pruner.last_sparsities()
    pruner.after_update(tf.constant(2, tf.int64), ZERO)
    assert pruner.sparsities() == expected


@pytest.mark.parametrize(
    ("zeros", "message"),
    [
        (
            {},
            "prune.schedule=keep: no weight of a/kernel, b/kernel is 0 at the start, so nothing would be pruned. Type"
            " --config.init_from=RUN of a pruned run, or --config.prune.schedule=polynomial"
            " --config.prune.sparsity=0.8.",
        ),
        (
            {"a/kernel": 1, "b/kernel": None},
            "prune.schedule=keep: all weights of b/kernel are 0 at the start, so they would never be trained. Leave"
            " these out by --config.prune.exclude.",
        ),
    ],
)
def test_zeros_that_keep_cannot_mean_are_refused(zeros, message):
    weights = variables()
    for path, rows in zeros.items():
        value = weights[path].numpy()
        value[:rows] = 0
        weights[path].assign(value)
    values = settings(schedule="keep")
    pruner = optim.Pruner(values, optim.pruned_variables(values, weights))
    with pytest.raises(UserError) as error:
        pruner.refuse_useless_start()
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"include": "c/.*"},
            "prune.include='c/.*' matches none of the parameters that can be pruned: a/kernel, b/kernel."
            " A regex must match a whole path.",
        ),
        (
            {"include": "a/.*", "exclude": "b/.*"},
            "prune.exclude='b/.*' matches none of the parameters that can be pruned: a/kernel."
            " A regex must match a whole path.",
        ),
        (
            {"exclude": ".*"},
            "prune.sparsity=0.5: no parameter is pruned. Those that can be are trained, of rank 2 or more and no bias:"
            " a/kernel, b/kernel.",
        ),
    ],
)
def test_a_regex_that_matches_nothing_is_refused(values, message):
    with pytest.raises(UserError) as error:
        optim.pruned_variables(settings(sparsity=0.5, **values), variables())
    assert str(error.value) == message


def test_biases_normalisations_and_slopes_are_never_pruned():
    names = ("kernel", "embeddings", "bias", "gamma", "beta", "alpha")
    weights = {f"layer/{name}": tf.Variable(tf.ones((2, 3))) for name in names}
    assert [*optim.pruned_variables(settings(sparsity=0.5), weights)] == ["layer/kernel", "layer/embeddings"]
    with pytest.raises(
        UserError, match=r"^prune\.schedule=keep: no parameter is pruned\. Those that can be are trained,"
    ):
        optim.pruned_variables(settings(schedule="keep", exclude=".*"), weights)


def test_a_pattern_of_other_kernels_is_refused():
    values = settings(sparsity=0.5, schedule="constant", pattern="2:4")
    with pytest.raises(UserError) as error:
        optim.pruned_variables(values, {"query/kernel": tf.Variable(tf.zeros((4, 2, 3)))})
    assert str(error.value) == (
        "prune.pattern='2:4' is one of kernels [inputs, outputs] and [height, width, inputs, outputs], not of"
        " query/kernel [4, 2, 3]. Leave these out by prune.exclude, or use --config.prune.pattern=any."
    )
