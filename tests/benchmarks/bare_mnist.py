"""What somebody would write who wants `experiments/mnist_mlp.py` trained and nothing else; `first_step.py` starts it.

    python tests/benchmarks/bare_mnist.py --folder=~/.cache/tf-research-framework/mnist

The same pictures, model, dropout, schedule and update; blocks of at most 100 steps as one XLA program, on examples that
lie on the device. No check of the data, no evaluation, no norms, no finite check, no log, no checkpoint. It prints a
line when its first step is made, and goes on to the end of an epoch.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
import tf_keras as keras

BATCH, BLOCK, EPOCHS = 128, 100, 5
RATE, WARMUP = 5e-3, 0.05
FIRST_STEP = "first step"


def make_block(images: np.ndarray, labels: np.ndarray):
    """(first step, k) -> the loss of the last of k steps."""
    image, label = tf.constant(images), tf.constant(labels)
    model = keras.Sequential(
        [
            keras.layers.Flatten(),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dense(10),
        ]
    )
    model.build([None, 28, 28])
    per_epoch = len(images) // BATCH
    total = EPOCHS * per_epoch
    optimizer = keras.optimizers.Adam(0.0)
    optimizer.build(model.trainable_variables)
    flatten, hidden, output = model.layers
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    order = tf.Variable(np.random.default_rng(0).permutation(len(images)).astype(np.int32))

    def step(number: tf.Tensor) -> tf.Tensor:
        first = tf.math.floormod(number, per_epoch) * BATCH
        index = tf.gather(order, first + tf.range(BATCH))
        part = tf.cast(number, tf.float32) / total
        rate = RATE * tf.minimum(part / WARMUP, 0.5 + 0.5 * tf.cos(np.pi * (part - WARMUP) / (1 - WARMUP)))
        optimizer.learning_rate.assign(rate)
        with tf.GradientTape() as tape:
            x = hidden(flatten(tf.cast(tf.gather(image, index), tf.float32) / 255))
            x = tf.nn.experimental.stateless_dropout(x, 0.2, [0, number], rng_alg="philox")
            loss = cross_entropy(tf.gather(label, index), output(x))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    @tf.function(jit_compile=True, autograph=False)
    def block(first: tf.Tensor, k: tf.Tensor) -> tf.Tensor:
        def body(i: tf.Tensor, loss: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return i + 1, step(first + i)

        return tf.while_loop(lambda i, loss: i < k, body, (0, 0.0), parallel_iterations=1)[1]

    return block


def main() -> None:
    """Trains for an epoch."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True, help="with the two IDX files of the training examples")
    folder = parser.parse_args().folder.expanduser()
    images = np.frombuffer((folder / "train-images-idx3-ubyte").read_bytes(), np.uint8, offset=16).reshape(-1, 28, 28)
    labels = np.frombuffer((folder / "train-labels-idx1-ubyte").read_bytes(), np.uint8, offset=8).astype(np.int32)
    block = make_block(images, labels)
    loss = float(block(tf.constant(0), tf.constant(1)))
    print(FIRST_STEP, loss, flush=True)
    for first in range(1, len(images) // BATCH, BLOCK):
        loss = float(block(tf.constant(first), tf.constant(BLOCK)))
    print("last step", loss, flush=True)


if __name__ == "__main__":
    main()
