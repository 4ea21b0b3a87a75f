"""A small sequence model with a key/value cache, as exports take it, and greedy decoding without `framework.decode`."""

import numpy as np
import tensorflow as tf

from framework.export import LiteDecoder

VOCABULARY, WIDTH, LENGTH = 13, 8, 7
BEGIN, END = 1, 2


class Translator(tf.Module):
    """Embeds and averages a source, and attends to its own tokens through a key/value cache."""

    def __init__(self, seed=0, width=WIDTH, masked=-1e9):
        super().__init__()
        draws = np.random.default_rng(seed)
        self.width, self.masked = width, masked
        self.embed = tf.Variable(draws.normal(size=[VOCABULARY, width]), dtype=tf.float32)
        self.mix = tf.Variable(draws.normal(size=[3, width, width]), dtype=tf.float32)
        self.out = tf.Variable(draws.normal(size=[width, VOCABULARY]), dtype=tf.float32)

    def start(self, inputs):
        memory = tf.reduce_mean(tf.gather(self.embed, inputs["source"]), axis=1)
        cache = tf.zeros([tf.shape(memory)[0], LENGTH, self.width])
        return {"keys": cache, "values": cache, "memory": memory}

    def step(self, tokens, state, position):
        x = tf.gather(self.embed, tokens) + state["memory"]
        here = tf.cast(tf.range(LENGTH) == position, tf.float32)[tf.newaxis, :, tf.newaxis]
        keys, values = (
            cache * (1 - here) + tf.matmul(x, mix)[:, tf.newaxis] * here
            for cache, mix in ((state["keys"], self.mix[0]), (state["values"], self.mix[1]))
        )
        scores = tf.reduce_sum(keys * tf.matmul(x, self.mix[2])[:, tf.newaxis], axis=-1)
        scores += tf.where(tf.range(LENGTH) <= position, 0.0, self.masked)
        mixed = tf.reduce_sum(tf.nn.softmax(scores)[..., tf.newaxis] * values, axis=1)
        return tf.matmul(mixed + x, self.out), {"keys": keys, "values": values, "memory": state["memory"]}


def hook(step=Translator.step, **settings):
    return LiteDecoder(
        start=lambda model, inputs: model.start(inputs),
        step=step,
        inputs={"source": tf.TensorSpec([None, 5], tf.int32)},
        begin=BEGIN,
        end=END,
        length=LENGTH,
        **settings,
    )


def make_batch(size=24, seed=1):
    source = np.random.default_rng(seed).integers(3, VOCABULARY, [size, 5]).astype(np.int32)
    return {"source": source, "weight": np.ones(size, np.float32)}


def reference(model, source):
    """Greedy ids of one sentence, by the step alone."""
    state, token, ids = model.start({"source": tf.constant(source[np.newaxis])}), BEGIN, []
    for position in range(LENGTH):
        logits, state = model.step(tf.constant([token]), state, tf.constant(position))
        token = int(logits.numpy().argmax())
        ids.append(token)
        if token == END:
            break
    return ids + [0] * (LENGTH - len(ids))
