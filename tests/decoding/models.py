"""Small autoregressive models with weights from a seed, as steps of TensorFlow and as references in NumPy."""

import dataclasses
import itertools

import numpy as np
import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Recurrent:
    """h' = tanh(h W + e[token]), logits = scale h' U: its logits depend on every token before."""

    vocabulary: int = 4
    width: int = 5
    seed: int = 0
    scale: float = 2.0

    def __post_init__(self):
        draws = np.random.default_rng(self.seed)
        mix, embed, out = (
            draws.normal(size=shape).astype(np.float32)
            for shape in ((self.width, self.width), (self.vocabulary, self.width), (self.width, self.vocabulary))
        )
        object.__setattr__(self, "weights", (mix, embed, out))

    def start(self, batch, first=0):
        """Returns the state of examples that begin apart: float32 [batch, width]."""
        draws = [np.random.default_rng([self.seed, first + place]) for place in range(batch)]
        return {"h": tf.constant(np.stack([draw.normal(size=self.width) for draw in draws]), tf.float32)}

    def step(self, tokens, state, position, dtype=tf.float32):
        mix, embed, out = self.weights
        h = tf.tanh(tf.matmul(state["h"], mix) + tf.gather(embed, tokens))
        return tf.cast(self.scale * tf.matmul(h, out), dtype), {"h": h}

    def log_probabilities(self, h, tokens):
        """Returns the log-probability of each next token after `tokens`, in float64."""
        mix, embed, out = (weight.astype(np.float64) for weight in self.weights)
        for token in tokens:
            h = np.tanh(h @ mix + embed[token])
        logits = self.scale * h @ out
        return logits - np.log(np.exp(logits).sum())

    def all_sequences(self, h, begin, end, length, penalty, prefix=()):
        """Returns [(score, log-probability, tokens)] of all sequences, the best first: those that end, or are long."""
        scored = []
        others = [token for token in range(self.vocabulary) if token != end]
        for size in range(length - len(prefix)):
            is_last = size == length - len(prefix) - 1
            for body in itertools.product(others, repeat=size):
                for last in range(self.vocabulary) if is_last else (end,):
                    tokens = (*prefix, *body, last)
                    total = sum(
                        self.log_probabilities(h, (begin, *tokens[:place]))[tokens[place]]
                        for place in range(len(prefix), len(tokens))
                    )
                    scored.append((total / ((5 + size + 1) / 6) ** penalty, total, tokens))
        return sorted(scored, reverse=True)


@dataclasses.dataclass(frozen=True)
class Attending:
    """One layer of causal attention over the tokens so far, with a key/value cache or computed anew each time."""

    vocabulary: int = 11
    width: int = 8
    length: int = 9
    seed: int = 0

    def __post_init__(self):
        draws = np.random.default_rng(self.seed)
        shapes = [(self.vocabulary, self.width), (self.length, self.width)] + [(self.width, self.width)] * 3
        weights = [draws.normal(size=shape).astype(np.float32) for shape in (*shapes, (self.width, self.vocabulary))]
        object.__setattr__(self, "weights", weights)

    def start(self, batch):
        memory = np.random.default_rng(self.seed + 1).normal(size=(batch, self.width))
        empty = tf.zeros([batch, self.length, self.width])
        return {"cache": (empty, empty), "memory": tf.constant(memory, tf.float32)}

    def cached(self, tokens, state, position):
        embed, places, query, key, value, out = self.weights
        x = tf.gather(embed, tokens) + tf.gather(places, position) + state["memory"]
        here = (tf.range(self.length) == position)[tf.newaxis, :, tf.newaxis]
        keys, values = (
            tf.where(here, tf.matmul(x, weight)[:, tf.newaxis], cache)
            for weight, cache in zip((key, value), state["cache"], strict=True)
        )
        scores = tf.einsum("rd,rld->rl", tf.matmul(x, query), keys)
        scores = tf.where(tf.range(self.length) <= position, scores, -np.inf)
        mixed = tf.einsum("rl,rld->rd", tf.nn.softmax(scores), values)
        return tf.matmul(mixed + x, out), {"cache": (keys, values), "memory": state["memory"]}

    def start_uncached(self, batch):
        return {"tokens": tf.zeros([batch, self.length], tf.int32), "memory": self.start(batch)["memory"]}

    def uncached(self, tokens, state, position):
        """Computes all positions from all tokens, and takes the logits of the last."""
        embed, places, query, key, value, out = self.weights
        ids = tf.where(tf.range(self.length) == position, tokens[:, tf.newaxis], state["tokens"])
        x = tf.gather(embed, ids) + places + state["memory"][:, tf.newaxis]
        scores = tf.matmul(x @ query, x @ key, transpose_b=True)
        causal = tf.linalg.band_part(tf.ones([self.length, self.length]), -1, 0) > 0
        mixed = tf.matmul(tf.nn.softmax(tf.where(causal, scores, -np.inf)), x @ value)
        logits = (mixed + x) @ out
        return tf.gather(logits, position, axis=1), {"tokens": ids, "memory": state["memory"]}
