"""The step against NumPy in float64: compiled or not, on replicas, in micro-batches or not, ragged and empty ones too.

The product {eager, graph, xla} x {1, 2, 4 micro-batches} x {full, ragged, empty tail} x {no clip, global norm} x {SGD,
Adam, AdamW}, in float32 and float64, the same with only the gradients or only the update compiled by XLA, and {graph,
xla} of it on {2, 4} replicas, each over 24 updates of a small network with two terms of different masks and L2. `make
test` runs `QUICK`, in which every pair of settings occurs, and `QUICK_PARTS` and `QUICK_REPLICAS`, in which what XLA
compiles, and each number of replicas, meet every other setting; `make test-slow` runs the rest. What replicas do beyond
that is in `tests/distribute/test_replicas.py`.
"""

import functools
import itertools
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework import config, losses, optim, paths
from framework.config.overrides import override
from framework.data.batches import make_batches
from framework.data.sources import Source
from framework.experiment import load
from framework.run import build as run

UPDATES, BATCH, FEATURES, HIDDEN, CLASSES = 24, 16, 12, 16, 4
L2, CLIP, AUXILIARY = 1e-3, 0.4, 0.5
RATES = {"sgd": 0.05, "adam": 5e-3, "adamw": 5e-3}
# Examples of an epoch of 4 batches: 64 fill all of them; the last batch holds 14, and of four micro-batches one is
# ragged; or 4, and three are empty.
EXAMPLES = {"full": 64, "ragged": 62, "empty tail": 52}
BOUNDS = {("float32", "sgd"): 2e-6, ("float32", "adam"): 1e-5, ("float32", "adamw"): 1e-5}

MODES, MICRO, TAILS, CLIPS = ("eager", "graph", "xla"), (1, 2, 4), tuple(EXAMPLES), ("none", "global_norm")
CASES = list(itertools.product(MODES, MICRO, TAILS, CLIPS, RATES, ("float32", "float64")))


def is_quick(case):
    """Every pair of two settings at least once, in few compilations."""
    mode, micro, tail, clip, optimizer, dtype = case
    numbers = (MODES.index(mode), MICRO.index(micro), TAILS.index(tail), tuple(RATES).index(optimizer))
    # Two orthogonal equations over Z3 leave 9 of 81; the two settings of two values alternate over them.
    latin = (numbers[0] + numbers[1] + numbers[2]) % 3 == 0 and (numbers[0] + 2 * numbers[1] + numbers[3]) % 3 == 0
    return latin and (CLIPS.index(clip), dtype == "float64") in ({(0, 0), (1, 1)} if micro != 2 else {(0, 1), (1, 0)})


QUICK = [case for case in CASES if is_quick(case)]
PARTS = ("xla_gradients", "xla_update")
PART_CASES = list(itertools.product(PARTS, MICRO, TAILS, CLIPS, RATES, ("float32", "float64")))
QUICK_PARTS = [
    ("xla_gradients", 1, "ragged", "none", "adamw", "float32"),
    ("xla_gradients", 2, "full", "none", "sgd", "float64"),
    ("xla_gradients", 4, "empty tail", "global_norm", "adam", "float64"),
    ("xla_update", 1, "empty tail", "none", "sgd", "float32"),
    ("xla_update", 2, "full", "global_norm", "adamw", "float64"),
    ("xla_update", 4, "ragged", "global_norm", "adam", "float64"),
]
REPLICAS = (2, 4)
REPLICA_CASES = list(itertools.product(REPLICAS, MODES[1:], MICRO, TAILS, CLIPS, RATES, ("float32", "float64")))
QUICK_REPLICAS = [
    (2, "graph", 1, "full", "none", "sgd", "float64"),
    (2, "graph", 4, "empty tail", "global_norm", "adamw", "float64"),
    (2, "xla", 2, "ragged", "global_norm", "adam", "float32"),
    (4, "graph", 2, "ragged", "none", "adam", "float32"),
    (4, "xla", 1, "empty tail", "global_norm", "adamw", "float64"),
    (4, "xla", 4, "full", "none", "sgd", "float64"),
]


def source(tail):
    draw = np.random.default_rng(5)
    examples = EXAMPLES[tail]
    x = draw.normal(size=(examples, FEATURES)).astype(np.float32)
    return Source(
        {
            "x": x,
            "label": draw.integers(0, CLASSES, examples).astype(np.int32),
            "target": np.tanh(x[:, 0] * x[:, 1]).astype(np.float32),
            # In runs, so that whole micro-batches lack the second term.
            "mask": (draw.uniform(size=examples) < 0.4).astype(np.float32),
        },
        origin="made up",
    )


def make_model(cfg):
    l2 = keras.regularizers.L2(L2)
    x = keras.Input([FEATURES])
    hidden = keras.layers.Dense(HIDDEN, activation="tanh", kernel_regularizer=l2, name="hidden")(x)
    logits = keras.layers.Dense(CLASSES, kernel_regularizer=l2, name="logits")(hidden)
    return keras.Model(x, [logits, keras.layers.Dense(1, kernel_regularizer=l2, name="auxiliary")(hidden)])


def make_loss(cfg):
    def loss(model, batch, training):
        logits, auxiliary = model(batch["x"], training=training)
        weight = tf.cast(batch["weight"] * batch["mask"], auxiliary.dtype)
        squares = AUXILIARY * tf.square(auxiliary[:, 0] - tf.cast(batch["target"], auxiliary.dtype))
        return {
            "cross_entropy": losses.sparse_cross_entropy(logits, batch["label"], batch["weight"]),
            "auxiliary": losses.Term(tf.reduce_sum(squares * weight), tf.reduce_sum(weight)),
        }, {"logits": logits}

    return loss


def build(mode, micro, tail, clip, optimizer, dtype, replicas=1, settings=(), **functions):
    functions = {
        "get_config": lambda arg: config.base_config(),
        "make_data": functools.partial(make_data, tail),
        "make_model": make_model,
        "make_loss": make_loss,
        "make_schedule": optim.make_schedule,
        **functions,
    }
    final = finalized(mode, micro, clip, optimizer, dtype, replicas, settings)
    built = run.build_run(load.Experiment(Path("made_up.py"), "", functions), final, None, time.monotonic())
    for path, variable in paths.trainable(built.model).items():
        variable.assign(tf.cast(initial()[path], variable.dtype))
    return built


def make_data(tail, cfg, split):
    cast = lambda batch: {**batch, "x": tf.cast(batch["x"], cfg.train.precision)}  # noqa: E731
    return make_batches(source(tail), cfg, training=split == "train", transform=cast)


def finalized(mode, micro, clip, optimizer, dtype, replicas=1, settings=()):
    """Returns the config of a case."""
    settings = {
        **dict(settings),
        **({"runtime.strategy": "mirrored", "runtime.virtual_devices": replicas} if replicas > 1 else {}),
        "data.batch_size": BATCH,
        "data.remainder": "pad",
        "eval.batch_size": BATCH,
        "train.duration": f"{UPDATES} steps",
        "train.block_steps": UPDATES,
        "train.compile": mode,
        "train.micro_batches": micro,
        "train.precision": dtype,
        "optimizer.name": optimizer,
        "schedule.name": "cosine",
        "schedule.learning_rate": RATES[optimizer],
        "clip.name": clip,
        **({"clip.threshold": CLIP} if clip != "none" else {}),
        **({"optimizer.momentum": 0.9} if optimizer == "sgd" else {}),
        **({"optimizer.weight_decay": 0.1} if optimizer == "adamw" else {}),
    }
    return config.finalize(override(config.base_config(), settings))


@functools.cache
def initial():
    draw = np.random.default_rng(11)
    shapes = {"hidden": (FEATURES, HIDDEN), "logits": (HIDDEN, CLASSES), "auxiliary": (HIDDEN, 1)}
    weights = {f"{name}/kernel": draw.normal(0, 0.4, shape) for name, shape in shapes.items()}
    weights |= {f"{name}/bias": draw.normal(0, 0.1, shape[1:]) for name, shape in shapes.items()}
    return {path: value.astype(np.float32).astype(np.float64) for path, value in weights.items()}


@functools.cache
def batches(tail):
    """What the loop sees, as NumPy; the only thing that the reference takes from the framework."""
    data = make_data(tail, finalized("graph", 1, "none", "sgd", "float64"), "train")
    return [{name: tensor.numpy() for name, tensor in data.at(step).items()} for step in range(UPDATES)]


@functools.cache
def trained(*case, replicas=1):
    built = build(*case, replicas=replicas)
    block = built.train_block(UPDATES)
    assert int(built.state.updates) == int(built.state.step) == UPDATES
    assert_copies_agree(built)
    return {path: variable.numpy().astype(np.float64) for path, variable in paths.trainable(built.model).items()}, block


def gradients(w, batch):
    """Of the mean cross-entropy, the masked mean square and L2; and the loss."""
    x, weight = batch["x"].astype(np.float64), batch["weight"].astype(np.float64)
    masked = weight * batch["mask"]
    hidden = np.tanh(x @ w["hidden/kernel"] + w["hidden/bias"])
    logits = hidden @ w["logits/kernel"] + w["logits/bias"]
    error = (hidden @ w["auxiliary/kernel"] + w["auxiliary/bias"])[:, 0] - batch["target"]
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_share = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    rows = np.arange(len(x))
    d_logits = np.exp(log_share)
    d_logits[rows, batch["label"]] -= 1
    d_logits *= (weight / weight.sum())[:, None]
    d_auxiliary = (2 * AUXILIARY * error * masked / max(masked.sum(), 1))[:, None]
    back = (d_logits @ w["logits/kernel"].T + d_auxiliary @ w["auxiliary/kernel"].T) * (1 - hidden**2)
    loss = -(log_share[rows, batch["label"]] * weight).sum() / weight.sum()
    loss += (AUXILIARY * error**2 * masked).sum() / max(masked.sum(), 1)
    found = {}
    for name, inputs, outputs in (
        ("hidden", x, back),
        ("logits", hidden, d_logits),
        ("auxiliary", hidden, d_auxiliary),
    ):
        kernel = w[f"{name}/kernel"]
        found |= {f"{name}/kernel": inputs.T @ outputs + 2 * L2 * kernel, f"{name}/bias": outputs.sum(axis=0)}
        loss += L2 * (kernel**2).sum()
    return found, loss


@functools.cache
def reference(tail, clip, optimizer):
    """Weights after all updates, and (loss, gradient norm) of each."""
    w = dict(initial())
    m, v = ({path: np.zeros_like(value) for path, value in w.items()} for _ in range(2))
    rows = []
    for step, batch in enumerate(batches(tail)):
        g, loss = gradients(w, batch)
        norm = np.sqrt(sum((value**2).sum() for value in g.values()))
        rows.append((loss, norm))
        factor = min(1, CLIP / norm) if clip == "global_norm" else 1
        rate = RATES[optimizer] * 0.5 * (1 + np.cos(np.pi * step / UPDATES))
        for path in w:
            gradient = g[path] * factor
            if optimizer == "sgd":
                m[path] = 0.9 * m[path] - rate * gradient
                w[path] = w[path] + m[path]
                continue
            if optimizer == "adamw":
                w[path] = w[path] * (1 - 0.1 * rate)
            m[path] = 0.9 * m[path] + 0.1 * gradient
            v[path] = 0.999 * v[path] + 0.001 * gradient**2
            corrected = rate * np.sqrt(1 - 0.999 ** (step + 1)) / (1 - 0.9 ** (step + 1))
            w[path] = w[path] - corrected * m[path] / (np.sqrt(v[path]) + 1e-7)
    return w, np.array(rows)


def distance(left, right):
    """Largest relative L2 over the variables."""
    return max(np.linalg.norm(left[path] - right[path]) / np.linalg.norm(right[path]) for path in right)


def assert_copies_agree(built):
    """Every replica has the same bits."""
    for path, variable in paths.variables(built.state).items():
        assert len({copy.numpy().tobytes() for copy in paths.copies(variable)}) == 1, path


def check(case, replicas=1, beside_one_micro_batch=False):
    mode, micro, tail, clip, optimizer, dtype = case
    bound = BOUNDS.get((dtype, optimizer), 1e-12)
    weights, block = trained(*case, replicas=replicas)
    wanted, rows = reference(tail, clip, optimizer)
    assert distance(weights, wanted) <= bound
    if micro > 1 and beside_one_micro_batch:
        assert distance(weights, trained(mode, 1, tail, clip, optimizer, dtype)[0]) <= bound
    for step, (loss, norm) in enumerate(rows):
        row = block.row(step)
        assert row["loss"] == pytest.approx(loss, rel=20 * bound)
        assert row["gradient_norm"] == pytest.approx(norm, rel=20 * bound)
        assert row["loss/penalty"] > 0


@pytest.mark.parametrize("case", [*QUICK, *QUICK_PARTS], ids=lambda case: "-".join(map(str, case)))
def test_the_step_is_that_of_numpy(case):
    check(case)


@pytest.mark.parametrize("case", QUICK_REPLICAS, ids=lambda case: "-".join(map(str, case)))
def test_replicas_take_the_step_of_numpy(case):
    check(case[1:], replicas=case[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [case for case in REPLICA_CASES if case not in QUICK_REPLICAS], ids=lambda case: "-".join(map(str, case))
)
def test_the_rest_of_the_product_on_replicas(case):
    check(case[1:], replicas=case[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [case for case in [*CASES, *PART_CASES] if case not in [*QUICK, *QUICK_PARTS]],
    ids=lambda c: "-".join(map(str, c)),
)
def test_the_rest_of_the_product(case):
    check(case, beside_one_micro_batch=True)


def test_the_quick_part_has_every_pair_of_settings():
    """Of the parts that XLA compiles, and of replicas in each mode, every pair with another setting."""
    for every, quick, own in (
        (CASES, QUICK, range(len(CASES[0]))),
        (PART_CASES, QUICK_PARTS, (0,)),
        (REPLICA_CASES, QUICK_REPLICAS, (0, 1)),
    ):
        for left, right in itertools.combinations(range(len(every[0])), 2):
            if left in own:
                pairs = {(case[left], case[right]) for case in every}
                assert {(case[left], case[right]) for case in quick} == pairs


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("optimizer", RATES)
def test_the_cases_are_what_they_are_called(tail, optimizer):
    last = batches(tail)[3]
    parts = last["weight"].reshape(4, 4).sum(axis=1).tolist()
    assert parts == {"full": [4, 4, 4, 4], "ragged": [4, 4, 4, 2], "empty tail": [4, 0, 0, 0]}[tail]
    masked = np.array([(b["weight"] * b["mask"]).reshape(4, 4).sum(axis=1) for b in batches(tail)])
    assert (masked == 0).any() and (masked.sum(axis=1) > 0).all()
    weights, rows = reference(tail, "global_norm", optimizer)
    assert (rows[:, 1] > CLIP).mean() > 0.5
    assert all(
        np.linalg.norm(weights[path] - start) > 0.01 * np.linalg.norm(start) for path, start in initial().items()
    )
    assert distance(reference(tail, "none", optimizer)[0], weights) > 1e-3
