"""Gradients that are the rows of a table that a step looked up: the updates of dense gradients, where the rule allows.

Two lists of rows a step, so that rows come several times, from two look-ups of one table; some rows never come.
"""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework import config, data, layers, losses, paths
from framework.config.overrides import override
from tests.small import BATCH, build

ROWS, WIDTH, STEPS, EXAMPLES = 40, 3, 5, 48


class Towers(keras.Model):
    def __init__(self, dtype, shards):
        super().__init__()
        self.films = layers.EmbeddingTable(ROWS, WIDTH, shards=shards, dtype=dtype)
        self.out = keras.layers.Dense(1, dtype=dtype)

    def call(self, batch, training=None):
        film = self.films(batch["film"])
        return self.out(film * self.films(batch["history"], pooling="mean"))[:, 0]


def made_up():
    random = np.random.default_rng(8)
    history = random.integers(0, ROWS // 2, size=(EXAMPLES, 4)).astype(np.int32)
    return {"history": history, "film": history[:, 0] + 3, "y": random.normal(size=EXAMPLES).astype(np.float32)}


def make_data(cfg, split):
    return data.make_batches(data.Source(made_up(), origin="made up"), cfg, training=split == "train")


def make_loss(cfg):
    def loss(model, batch, training):
        predictions = model(batch, training=training)
        return {"error": losses.mean_squared_error(predictions, batch["y"], batch["weight"])}, {}

    return loss


def trained(gradients, dtype="float64", shards=1, **settings):
    """{path: values} of the weights and slots before and after some steps, and the run."""
    functions = {"make_data": make_data, "make_loss": make_loss}
    functions["make_model"] = lambda cfg: Towers(cfg.train.precision, shards)
    settings = {
        "train.precision": dtype,
        "schedule.learning_rate": 0.5,
        "schedule.warmup": "",
        "data.shuffle": False,
        **settings,
    }
    run = build(functions=functions, **{"optimizer.table_gradients": gradients, "train.compile": "eager", **settings})
    before = {path: variable.numpy() for path, variable in paths.variables(run.model).items()}
    run.train_block(STEPS)
    variables = {**paths.variables(run.model), **paths.variables(run.state.optimizer)}
    return before, {path: variable.numpy() for path, variable in variables.items()}, run


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer.name": "sgd"},
        {"optimizer.name": "sgd", "optimizer.weight_decay": 0.1, "train.compile": "graph"},
        {"optimizer.name": "sgd", "optimizer.momentum": 0.9, "optimizer.nesterov": True},
        {"optimizer.name": "adagrad", "train.compile": "graph"},
        {"optimizer.name": "adam", "clip.name": "global_norm", "clip.threshold": 0.1},
        {"optimizer.name": "adamw", "optimizer.weight_decay": 0.1},
        {"optimizer.name": "adam", "optimizer.groups": ("films/.*: name=adagrad",)},
    ],
    ids=["sgd", "decay", "momentum", "adagrad", "adam, clipped", "adamw", "group"],
)
def test_updates_are_those_of_dense_gradients(settings):
    _, dense, _ = trained("dense", **settings)
    before, rows, _ = trained("rows", **settings)
    if settings["optimizer.name"] == "sgd" and not settings.get("optimizer.momentum"):
        dense = {path: dense[path] for path in rows}  # without the slots, of which nothing is read
        assert not any("_variables/" in path for path in rows)
    assert rows.keys() == dense.keys()
    for path, values in dense.items():
        np.testing.assert_allclose(rows[path], values, rtol=1e-11, atol=1e-14, err_msg=path)
    assert np.abs(rows["films/table"] - before["films/table"]).max() > 1e-3


@pytest.mark.parametrize(
    ("name", "is_wide"), [("sgd", False), ("adagrad", False), ("lazy_adam", False), ("adam", True)]
)
def test_an_update_of_rows_makes_nothing_as_large_as_the_table(name, is_wide):
    _, _, run = trained("rows", **{"optimizer.name": name})
    optimizer, table = run.state.optimizer, run.model.films.table

    def update(values, rows):
        gradients = {path: tf.zeros_like(variable) for path, variable in optimizer.trained.items()}
        optimizer.apply({**gradients, "films/table": tf.IndexedSlices(values, rows, table.shape)})

    specs = tf.TensorSpec([None, WIDTH], tf.float64), tf.TensorSpec([None], tf.int32)
    graph = tf.function(update, autograph=False).get_concrete_function(*specs).graph
    wide = [op for op in graph.get_operations() for output in op.outputs if output.shape.as_list() == [ROWS, WIDTH]]
    assert bool({op.type for op in wide} - {"ReadVariableOp", "ZerosLike", "Const"}) == is_wide


@pytest.mark.parametrize("shards", [1, 5])  # of 5, one begins with row 16, which one step does not look up
def test_lazy_adam_changes_the_rows_of_a_step_and_no_others(shards):
    """Against Adam in NumPy on the rows that each step looks up; the rows that none looks up keep every bit."""
    settings = {"optimizer.name": "lazy_adam", "optimizer.beta_2": 0.9, "optimizer.epsilon": 1e-3}
    before, after, run = trained("rows", shards=shards, **settings)
    for values in (before, after) if shards > 1 else ():
        values["films/table"] = np.concatenate([values[f"films/table_{shard}"] for shard in range(shards)])
    table, kernel, bias = before["films/table"].copy(), before["out/kernel"].copy(), before["out/bias"].copy()
    slots = {name: (np.zeros_like(x), np.zeros_like(x)) for name, x in (("t", table), ("k", kernel), ("b", bias))}
    touched = set()

    def update(x, name, gradient, step, at=slice(None)):
        mean, square = slots[name]
        mean[at] = 0.9 * mean[at] + 0.1 * gradient[at]
        square[at] = 0.9 * square[at] + 0.1 * gradient[at] ** 2
        rate = float(run.schedules["model"](step)) * np.sqrt(1 - 0.9 ** (step + 1)) / (1 - 0.9 ** (step + 1))
        x[at] -= rate * mean[at] / (np.sqrt(square[at]) + 1e-3)

    for step in range(STEPS):
        here = slice(step * BATCH % EXAMPLES, step * BATCH % EXAMPLES + BATCH)
        film, history, y = (made_up()[name][here] for name in ("film", "history", "y"))
        count = np.maximum((history > 0).sum(1, keepdims=True), 1)
        masked = np.where((history > 0)[..., np.newaxis], table[history], 0)
        left, right = np.where((film > 0)[:, np.newaxis], table[film], 0), masked.sum(1) / count
        error = 2 * ((left * right) @ kernel[:, 0] + bias - y) / len(y)
        of_product = error[:, np.newaxis] * kernel[:, 0]
        gradient = np.zeros_like(table)
        np.add.at(gradient, film, of_product * right)
        for place in range(4):
            np.add.at(gradient, history[:, place], of_product * left / count * (history[:, [place]] > 0))
        looked_up = np.union1d(film, history)
        touched |= set(looked_up.tolist())
        update(kernel, "k", ((left * right).T @ error)[:, np.newaxis], step)
        update(bias, "b", error.sum(keepdims=True), step)
        update(table, "t", gradient, step, looked_up)
    np.testing.assert_allclose(after["films/table"], table, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(after["out/kernel"], kernel, rtol=1e-8)
    others = sorted(set(range(ROWS)) - touched)
    assert others and np.array_equal(after["films/table"][others], before["films/table"][others])


@pytest.mark.parametrize(
    ("key", "value", "why", "use"),
    [
        ("train.compile", "xla", "XLA would have to know how many rows there are", "graph"),
        ("train.micro_batches", 2, "micro-batches look up other rows each", "1"),
        ("runtime.strategy", "mirrored", "replicas look up other rows each", "one_device"),
    ],
)
def test_what_rows_do_not_work_with_is_refused(key, value, why, use):
    with pytest.raises(config.UserError) as error:
        config.finalize(override(config.base_config(), {"optimizer.table_gradients": "rows", key: value}))
    assert str(error.value) == (
        f"{key}={value!r} does not work with optimizer.table_gradients='rows': {why}. Use --config.{key}={use}, or"
        " --config.optimizer.table_gradients=dense."
    )


def test_lazy_adam_without_rows_is_refused():
    with pytest.raises(config.UserError) as error:
        config.finalize(override(config.base_config(), {"optimizer.name": "lazy_adam"}))
    assert str(error.value) == (
        "optimizer.name='lazy_adam' changes the rows of tables that a step looked up, but"
        " optimizer.table_gradients='dense' does not say which. Use --config.optimizer.table_gradients=rows."
    )


def test_auto_takes_the_graph():
    _, _, run = trained("rows", **{"train.compile": "auto", "optimizer.name": "sgd"})
    assert run.train_block.compiled.mode == "graph"


def test_a_group_of_lazy_adam_needs_gradients_that_are_rows():
    groups = ("films/.*: lr=0.5 name=lazy_adam",)
    with pytest.raises(config.UserError) as error:
        config.finalize(override(config.base_config(), {"optimizer.groups": groups}))
    assert str(error.value) == (
        "optimizer.groups: 'films/.*: lr=0.5 name=lazy_adam' changes the rows of tables that a step looked up, but"
        " optimizer.table_gradients='dense' does not say which. Use --config.optimizer.table_gradients=rows."
    )
