"""Runs on parameter servers beside runs on one device, in a process of their own; prints what came out as JSON.

    python -m tests.served one FOLDER      # one worker: what a single device trains
    python -m tests.served two FOLDER      # two workers: each batch once

The cluster is that of tests/in_cluster.py.
"""

import json
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf
import tf_keras as keras

from framework import layers, losses, optim, paths, precision
from framework.checkpoint.checkpoints import Checkpoints
from framework.data.batches import make_batches
from framework.data.sources import Source
from framework.run import build as runs
from tests.in_cluster import serve_here, told_of
from tests.small import build

STEPS = 24
SETTINGS = {
    "train.precision": "float64",
    "train.compile": "graph",
    "train.duration": f"{STEPS} steps",
    "train.block_steps": STEPS,
}
HOT = 1000.0  # exp of it overflows float64
WORDS, WIDTH = 11, 4


def make_model(cfg):
    return keras.Sequential(
        [
            keras.layers.Dense(8, activation="tanh", kernel_regularizer=keras.regularizers.L2(1e-3), name="first"),
            layers.Dropout(0.25, name="drop"),
            keras.layers.Dense(3, dtype=keras.backend.floatx(), name="last"),
        ]
    )


class Seen:
    """Which examples a step had: a metric of as many numbers as the batch."""

    mode = "max"

    def empty(self):
        return np.zeros(16)

    def update(self, outputs, batch):
        return tf.cast(outputs["number"], tf.float32)

    def merge(self, left, right):
        return left + right

    def result(self, state):
        return float(np.sum(state))


class Total(Seen):
    """The numbers of the examples of all steps, which the step adds up."""

    logged = "interval"


def words(bad_label=None):
    """Three words of eleven an example, so that a batch has each of them several times; a table and a linear layer.

    `bad_label` is the example whose label is no class.
    """

    def make_data(cfg, split):
        rng = np.random.default_rng(5)
        arrays = {
            "word": rng.integers(0, WORDS, (160, 3)).astype(np.int32),
            "number": np.arange(160, dtype=np.int32),
        }
        arrays["label"] = (arrays["word"].sum(1) % 3).astype(np.int32)
        if bad_label is not None:
            arrays["label"][bad_label] = 3
        return make_batches(Source(arrays, origin="made-up words"), cfg, training=split == "train")

    def make_table(cfg):
        dtype = precision.full(cfg.train.precision)
        return keras.Sequential(
            [
                keras.layers.Embedding(WORDS, WIDTH, input_length=3, name="table", dtype=dtype),
                keras.layers.Flatten(),
                keras.layers.Dense(3, name="last", dtype=dtype),
            ]
        )

    def make_loss(cfg):
        def loss(model, batch, training):
            logits = model(batch["word"], training=training)
            term = losses.sparse_cross_entropy(logits, batch["label"], batch["weight"])
            return {"cross_entropy": term}, {"number": batch["number"]}

        return loss

    functions = {"make_data": make_data, "make_model": make_table, "make_loss": make_loss}
    return {**functions, "make_metrics": lambda cfg: {"seen": Seen(), "total": Total()}}


def on_servers(functions, heat=None, **settings):
    return build(heat=heat, functions=functions, **SETTINGS, **settings, **{"runtime.strategy": "parameter_server"})


def on_one_device(functions, heat=None, **settings):
    return build(heat=heat, functions=functions, **SETTINGS, **settings)


def distances(left, right):
    """{path: largest difference, over the largest number} of the whole state."""
    found = {}
    for path, variable in paths.variables(left.state).items():
        a, b = (np.nan_to_num(v.numpy().astype(np.float64)) for v in (variable, paths.variables(right.state)[path]))
        found[path] = float(np.max(np.abs(a - b), initial=0) / max(np.max(np.abs(a), initial=0), 1e-3))
    return found


def rows_of(block):
    return [block.row(index) for index in range(len(block.rows))]


def compared(functions, **settings):
    """A run on servers and one on a device: rows of both, and how far apart the states are."""
    served, alone = on_servers(functions, **settings), on_one_device(functions, **settings)
    rows, expected = rows_of(served.train_block(STEPS)), rows_of(alone.train_block(STEPS))
    report = {"rows": rows, "expected": expected, "distances": distances(alone, served)}
    report["evaluations"] = [run.eval_blocks["test"]() for run in (served, alone)]
    report["inspected"] = [
        {path: gradient.tolist() for path, gradient in run.train_block.inspect().items()} for run in (served, alone)
    ]
    report["traces"] = served.train_block.compiled.traces
    return report, served, alone


def one(folder):
    """With one worker."""
    dense, report = {"make_model": make_model}, {}
    clipped = {"clip.name": "global_norm", "clip.threshold": 0.3}
    sgd = {"optimizer.name": "sgd", "schedule.learning_rate": 0.1}
    skip = {"train.on_nonfinite": "skip", "train.nonfinite_limit": 3}
    report["adam"], served, _ = compared(dense, **clipped, **{"train.micro_batches": 2})
    report["skipped"], _ = compared(dense, heat={(4, 15): HOT}, **sgd, **skip)[:2]
    streamed = {"data.placement": "stream", "data.prefetch_batches": STEPS}
    report["table_sgd"], _ = compared(words(), **clipped, **sgd, **streamed)[:2]
    # Without momentum a dense update writes its step into the slot of the table, rows do not; nothing reads it.
    del report["table_sgd"]["distances"]["optimizer/groups/0/_variables/1"]
    report["table_adam"], table, _ = compared(words(), **clipped, **{"schedule.learning_rate": 0.1})
    report["table_in_a_step"] = tables_in_a_step(table.train_block)
    stopped = on_servers(dense, heat={(4, 15): HOT})
    block = stopped.train_block(8)
    report["stopped"] = {"rows": len(block.rows), "halted": block.is_halted, "step": int(stopped.state.step)}
    report["bad_label"] = told_of(on_servers(words(bad_label=17)), 17)
    report["elastic"] = elastic(dense, folder)
    report["plateau"] = plateau(dense)
    run = runs.on_one_device(served)
    report["alone"] = max(distances(run, served).values())
    return report


def plateau(functions):
    """A rate halved by two of three evaluations: the rates, and how far apart the states are."""

    def make_schedule(cfg, total_steps):
        return optim.ReduceOnPlateau(optim.make_schedule(cfg, total_steps), "test/loss", factor=0.5, patience=1)

    functions = functions | {"make_schedule": make_schedule}
    constant = {"schedule.name": "constant", "schedule.warmup": ""}
    both, rates = [make(functions, **constant) for make in (on_servers, on_one_device)], []
    for run in both:
        rows = rows_of(run.train_block(STEPS // 2))
        for _ in range(3):
            optim.observe(run.state.schedule, {"test/loss": 1.0})
        rows += rows_of(run.train_block(STEPS // 2))
        rates.append([row["learning_rate"] for row in rows])
    return {"rates": rates, "distance": max(distances(*both).values())}


def tables_in_a_step(block):
    """What a worker's step makes of the size of the table before it updates, and where rows of it are added to."""
    function = block.compiled.function.get_concrete_function(tf.constant(0, tf.int64), {}, block._examples)
    operations = function.graph.get_operations()
    dense = [op.name for op in operations for tensor in op.outputs if tensor.shape == [WORDS, WIDTH]]
    nodes = [node for inner in function.graph.as_graph_def().library.function for node in inner.node_def]
    return {"dense": dense, "added": [node.device for node in nodes if node.op == "ResourceScatterAdd"]}


def elastic(functions, folder):
    """How far from an uninterrupted run of one device those are that change over to, and from, servers half-way."""
    whole = on_one_device(functions)
    whole.train_block(STEPS)
    found = {}
    for name, (first, second) in {
        "to_one": (on_servers, on_one_device),
        "to_servers": (on_one_device, on_servers),
    }.items():
        checkpoints = Checkpoints(Path(folder) / name, 3)
        begun, ended = first(functions), second(functions)
        begun.train_block(STEPS // 2)
        checkpoints.save(begun.state, {})
        checkpoints.restore(ended.state)
        ended.train_block(STEPS - STEPS // 2)
        found[name] = max(distances(whole, ended).values())
    return found


def two(folder):
    """With two workers."""
    settings = {"train.duration": "150 steps", "train.block_steps": 50, "schedule.learning_rate": 0.03}
    settings |= {"train.precision": "float32"}
    runs = {
        name: build(functions=words(), **SETTINGS | settings | {"runtime.strategy": strategy})
        for name, strategy in (("served", "parameter_server"), ("alone", "one_device"))
    }
    blocks = {name: [] for name in runs}
    for name, run in runs.items():
        for _ in range(3):
            blocks[name].append(run.train_block(50, blocks[name][-1].sums if blocks[name] else None))
    served = runs["served"]
    seen = [
        served.train_block.layout.unpack(row)["seen"].astype(int).tolist()
        for block in blocks["served"]
        for row in block.rows
    ]
    return {
        "seen": seen,
        "totals": {name: found[-1].sums["total"].tolist() for name, found in blocks.items()},
        "planned": [served.data.indices(step)["index"].tolist() for step in range(150)],
        "losses": {name: [row["loss"] for b in found for row in rows_of(b)] for name, found in blocks.items()},
        "evaluations": {name: run.eval_blocks["test"]()["loss"] for name, run in runs.items()},
        "updates": int(served.state.updates),
        "step": int(served.state.step),
    }


if __name__ == "__main__":
    servers = serve_here({"one": 1, "two": 2}[sys.argv[1]], 1)
    print(json.dumps({"one": one, "two": two}[sys.argv[1]](sys.argv[2])))
