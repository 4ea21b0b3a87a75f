"""Retrieval on MovieLens as TensorFlow Recommenders has it: softmax in the batch, logQ, no accidental hits.

A workload of `tests/benchmarks/recommender_beside_tfrs.py`, which writes the file of `data.dir`.
"""

import numpy as np
import tensorflow as tf
import tf_keras as keras
from ml_collections import ConfigDict

from framework import config, data, evaluators, losses, retrieval
from tests.benchmarks.workloads import recommender_towers as towers


def get_config(arg: str) -> ConfigDict:
    """Adam at a constant rate; everything else as it is by default."""
    cfg = config.base_config()
    cfg.data.batch_size = cfg.eval.batch_size = towers.BATCH
    cfg.model.features = "id"  # or history
    cfg.train.duration = f"{towers.EPOCHS} epochs"
    cfg.train.compile = "graph"  # as in experiments/movielens_two_tower.py
    cfg.optimizer.name = "adam"
    cfg.schedule.learning_rate = towers.LEARNING_RATE
    return cfg


def make_data(cfg: ConfigDict, split: str):
    """All ratings but the last of each user, or the last ones."""
    source = data.Source(towers.load(cfg.data.dir, split, cfg.model.features), origin="MovieLens-100k")
    return data.make_batches(source, cfg, training=split == "train")


def make_model(cfg: ConfigDict) -> keras.Model:
    """The towers that TensorFlow Recommenders trains too."""
    users = len(towers.constant(cfg.data.dir, "seen")) + 1
    return towers.Towers(cfg.model.features, users, len(towers.constant(cfg.data.dir, "share")))


def make_loss(cfg: ConfigDict):
    """The cross-entropy of the film among those of the batch."""
    log_shares = np.log(towers.constant(cfg.data.dir, "share"))

    def loss(model, batch, training):
        inputs = {name: value for name, value in batch.items() if name != "weight"}
        users, items = model(inputs, training=training)
        log_q = tf.gather(log_shares, batch["film"])
        term = losses.in_batch_softmax(users, items, batch["film"], batch["weight"], log_q)
        return {"next": term}, {"users": users}

    return loss


def make_evaluators(cfg: ConfigDict):
    """Recall, NDCG and MRR of the film of each user among all films that the user has not rated."""
    seen = retrieval.Seen(towers.constant(cfg.data.dir, "seen"))

    def ranking(run):
        places = retrieval.ranks_of_all(*vectors(run), seen)
        scalars = {f"recall@{k}": float(np.mean(places <= k)) for k in towers.KS}
        gains = np.where(places <= 10, 1 / np.log2(1 + places), 0)
        return evaluators.Report(scalars | {"ndcg@10": float(gains.mean()), "mrr": float(np.mean(1 / places))})

    return {"ranking": ranking}


def vectors(run) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the vectors of the users of 'test', those of all films, and the film of each user."""
    batches, outputs = zip(*evaluators.predictions(run), strict=True)
    items = run.model.items(tf.range(run.model.film_table.input_dim)).numpy()
    users = np.concatenate([output["users"] for output in outputs])
    return users, items, np.concatenate([batch["film"] for batch in batches])
