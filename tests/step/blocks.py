"""Runs of tests/tiny.py, and bits of their states, for tests of blocks."""

import dataclasses
import time

import tf_keras as keras

from framework import config, paths
from framework.config.overrides import override
from framework.experiment import load
from framework.run import build as run


def build(mode="graph", functions=None, **overrides):
    loaded = load.load("tests/tiny.py")
    loaded = dataclasses.replace(loaded, functions={**loaded.functions, **(functions or {})})
    overrides = {"train.compile": mode, "train.block_steps": 10, **overrides}
    final = config.finalize(override(loaded.get_config(), overrides))
    return run.build_run(loaded, final, None, time.monotonic())


def snapshot(built):
    return {path: variable.numpy() for path, variable in paths.variables(built.state).items()}


def put_back(built, values):
    """Gives a run the state that a snapshot holds, so that what is compiled trains from there once more."""
    for path, variable in paths.variables(built.state).items():
        paths.assign(variable, values[path])


def assert_same_bits(left, right):
    assert left.keys() == right.keys()
    for path in left:
        assert left[path].tobytes() == right[path].tobytes(), path


def with_model(make_layers):
    return {
        "make_model": lambda cfg: keras.Sequential([keras.layers.Flatten(), *make_layers(), keras.layers.Dense(10)])
    }
