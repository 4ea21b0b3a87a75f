"""A table of embeddings that is split by rows over parameter servers, beside one device; prints numbers as JSON.

    python -m tests.served_tables train FOLDER 2       # trains on two servers and on one device, and saves both
    python -m tests.served_tables restore FOLDER 3     # on three servers, what two saved

Each number of servers has a process. Seven variables hold the rows, some one more than others.
"""

import json
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf
import tf_keras as keras

from framework import layers, losses, paths
from framework.checkpoint.checkpoints import Checkpoints, read_arrays
from framework.data.batches import make_batches
from framework.data.sources import Source
from framework.folder import name_of
from tests.in_cluster import serve_here, told_of
from tests.served import SETTINGS, STEPS, distances, rows_of
from tests.small import build

ROWS, WIDTH, SHARDS, EXAMPLES = 40, 3, 7, 160
RULES = {
    "sgd": {"optimizer.name": "sgd", "schedule.learning_rate": 0.5},
    "lazy_adam": {"optimizer.name": "lazy_adam", "schedule.learning_rate": 0.05},
}


class Towers(keras.Model):
    def __init__(self, dtype):
        super().__init__()
        self.films = layers.EmbeddingTable(ROWS, WIDTH, keras.initializers.RandomNormal(seed=1), SHARDS, dtype=dtype)
        self.out = keras.layers.Dense(1, dtype=dtype)

    def call(self, batch, training=None):
        film = self.films(batch["film"])
        return self.out(film * self.films(batch["history"], pooling="mean"))[:, 0]


def films(bad=None):
    """Lists with padding, empty ones too, and a film twice in a batch; `bad` is the example of a row too high."""
    random = np.random.default_rng(8)
    history = random.integers(0, ROWS, size=(EXAMPLES, 4)).astype(np.int32)
    history[::9] = 0
    film = random.integers(1, ROWS, EXAMPLES).astype(np.int32)
    if bad is not None:
        film[bad] = ROWS
    return {"history": history, "film": film, "y": random.normal(size=EXAMPLES)}


def make_run(strategy, rule="sgd", bad=None, **settings):
    def make_data(cfg, split):
        is_training = split == "train"
        source = Source(films(bad if is_training else None), origin="made-up films")
        return make_batches(source, cfg, training=is_training)

    def make_loss(cfg):
        def loss(model, batch, training):
            predictions = model(batch, training=training)
            return {"error": losses.mean_squared_error(predictions, batch["y"], batch["weight"])}, {}

        return loss

    functions = {"make_data": make_data, "make_loss": make_loss}
    functions["make_model"] = lambda cfg: Towers(cfg.train.precision)
    common = {**SETTINGS, "optimizer.table_gradients": "rows", "clip.name": "global_norm", "clip.threshold": 0.3}
    return build(functions=functions, **{**common, **RULES[rule], **settings, "runtime.strategy": strategy})


def looked_up(run):
    """Vectors of rows of every shard, a row twice, and padding."""
    rows = tf.constant([[0, 39, 1, 39], [6, 5, 34, 0]])
    return run.model.films(rows).numpy().tolist()


def train(folder):
    report, runs = {}, {}
    for rule in RULES:
        served, alone = runs[rule] = made(rule)
        tables = paths.variables(served.model.films)
        report["shards"] = {path: [table.shape[0], table.device] for path, table in tables.items()}
        found = {"first": [looked_up(run) for run in (served, alone)]}
        found["rows"] = [rows_of(run.train_block(STEPS)) for run in (served, alone)]
        found["distances"] = distances(alone, served)
        found["looked_up"] = [looked_up(run) for run in (served, alone)]
        found["evaluations"] = [run.eval_blocks["test"]()["loss"] for run in (served, alone)]
        report[rule] = found
        for name, run in (("served", served), ("alone", alone)):
            with Checkpoints(Path(folder) / rule / name, 3) as checkpoints:
                checkpoints.save(run.state, {})
    report["whole"] = table_of(read_arrays(saved(folder, "sgd", "served"))).tolist()
    report["bad"] = told_of(make_run("parameter_server", bad=17), 17)
    return report | {"restored": {rule: restored(folder, rule, of_rule) for rule, of_rule in runs.items()}}


def made(rule):
    """A run on servers and one on a device."""
    return [make_run(strategy, rule) for strategy in ("parameter_server", "one_device")]


def saved(folder, rule, name):
    return Path(folder) / rule / name / name_of(STEPS)


def table_of(arrays):
    """The table of a checkpoint, its rows in order."""
    return np.concatenate([arrays[f"model/films/table_{shard}"] for shard in range(SHARDS)])


def restore(folder):
    return {rule: restored(folder, rule, made(rule)) for rule in RULES}


def restored(folder, rule, runs):
    """Which variables differ from those in the checkpoints of two servers and of one device, once runs restored them.

    Each run has trained or is new, so it held other numbers.
    """
    report = {}
    for name in ("served", "alone"):
        expected = read_arrays(saved(folder, rule, name))
        for run, kind in zip(runs, ("on servers", "on one device"), strict=True):
            with Checkpoints(Path(folder) / rule / name, 3) as checkpoints:
                checkpoints.restore(run.state)
            held = {path: variable.numpy() for path, variable in paths.variables(run.state).items()}
            assert held.keys() == expected.keys()
            differing = [path for path in held if held[path].tobytes() != expected[path].tobytes()]
            devices = sorted({table.device for table in run.model.films.table})
            report[f"{name}, {kind}"] = {"differing": differing, "devices": devices}
    return report


if __name__ == "__main__":
    servers = serve_here(1, int(sys.argv[3]))
    print(json.dumps({"train": train, "restore": restore}[sys.argv[1]](sys.argv[2])))
