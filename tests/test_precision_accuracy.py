"""Half precision learns MNIST as well as float32: the whole experiment, three seeds each, in minutes."""

import statistics
import time

import pytest

from framework import config
from framework.config.overrides import override
from framework.experiment import load
from framework.run import build

SEEDS = (0, 1, 2)
WITHIN = 0.003  # of float32's mean accuracy: 0.3 points


def accuracy(precision, seed):
    """On the test split, after all of `experiments/mnist_mlp.py` in XLA."""
    loaded = load.load("experiments/mnist_mlp.py")
    values = {"train.precision": precision, "seed": seed, "train.compile": "xla"}  # auto would be a graph here
    final = config.finalize(override(loaded.get_config(), values))
    built = build.build_run(loaded, final, None, time.monotonic())
    left = built.resolved.train.duration
    while left:
        left -= len(built.train_block(min(left, built.train_block.block_steps)).rows)
    assert int(built.state.step) == built.resolved.train.duration
    # The scale starts high enough to be found in a few skipped steps; a run of them would be another training.
    assert int(built.state.skipped) <= 10
    return built.eval_blocks["test"]()["accuracy"]


def mean_accuracy(precision):
    """Over all seeds."""
    values = [accuracy(precision, seed) for seed in SEEDS]
    print(f"{precision}: mean {statistics.mean(values):.4f}, sd {statistics.stdev(values):.4f}, {values}")
    return statistics.mean(values)


@pytest.fixture(scope="module")
def of_float32():
    """The mean accuracy of float32, trained once for all tests of this file."""
    return mean_accuracy("float32")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_reaches_the_accuracy_of_float32(precision, of_float32):
    assert of_float32 > 0.977
    assert mean_accuracy(precision) == pytest.approx(of_float32, abs=WITHIN)
