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
    final = config.finalize(override(loaded.get_config(), {"train.precision": precision, "seed": seed}))
    built = build.build_run(loaded, final, None, time.monotonic())
    left = built.resolved.train.duration
    while left:
        left -= len(built.train_block(min(left, built.train_block.block_steps)).rows)
    assert int(built.state.step) == built.resolved.train.duration
    # The scale starts high enough to be found in a few skipped steps; a run of them would be another training.
    assert int(built.state.skipped) <= 10
    return built.eval_blocks["test"]()["accuracy"]


@pytest.mark.slow
def test_half_precision_reaches_the_accuracy_of_float32():
    found = {name: [accuracy(name, seed) for seed in SEEDS] for name in ("float32", "bfloat16", "float16")}
    for name, values in found.items():
        print(f"{name}: mean {statistics.mean(values):.4f}, sd {statistics.stdev(values):.4f}, {values}")
    means = {name: statistics.mean(values) for name, values in found.items()}
    assert means["float32"] > 0.977
    for name in ("bfloat16", "float16"):
        assert means[name] == pytest.approx(means["float32"], abs=WITHIN), name
