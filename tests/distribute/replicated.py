"""Runs on replicas, for tests that compare them with one device."""

import numpy as np
import tensorflow as tf
import tf_keras as keras

from framework import layers, losses, paths

DOUBLE = {"train.precision": "float64", "train.block_steps": 24, "train.duration": "24 steps"}


def on(replicas, **settings):
    return {"runtime.strategy": "mirrored", "runtime.virtual_devices": replicas, **settings}


def weights(built):
    return {path: variable.numpy().astype(np.float64) for path, variable in paths.trainable(built.model).items()}


def model_with(*norm):
    """Dropout and, between, what is given."""

    def make_model(cfg):
        return keras.Sequential(
            [
                keras.layers.Dense(8, activation="tanh", kernel_regularizer=keras.regularizers.L2(1e-3), name="first"),
                *(make() for make in norm),
                layers.Dropout(0.25, name="drop"),
                keras.layers.Dense(3, dtype=keras.backend.floatx(), name="last"),
            ]
        )

    return {"make_model": make_model}


def contrastive(cfg):
    """Each example's outputs under two maps against those of all others."""

    def loss(model, batch, training):
        features = model(batch["x"], training=training)  # [part, 3]
        queries, keys = features, tf.tanh(features)
        logits = tf.matmul(queries, losses.all_gather(keys), transpose_b=True)
        own = losses.gather_offset(keys) + tf.range(tf.shape(keys)[0])
        return {"contrast": losses.BatchDependent(*losses.sparse_cross_entropy(logits, own, batch["weight"]))}, {}

    loss.needs_collectives = True
    return loss
