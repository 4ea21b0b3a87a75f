"""Runs of tests/tiny.py that are watched and interrupted, for tests of the loop."""

import json
import os
import signal

from framework import paths
from framework.run import build as run

TINY = "tests/tiny.py"


def build(workdir, mode="graph", **overrides):
    return run.build(TINY, {"train.compile": mode, **overrides}, workdir)


def snapshot(built):
    return {path: variable.numpy().tobytes() for path, variable in paths.variables(built.state).items()}


def rows(workdir, *without):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in without} for line in lines]


def before_blocks(built, action):
    """Calls action(first step, steps) before every block."""
    train_block = built.train_block

    class Watched:
        block_steps, compiled, inspect = train_block.block_steps, train_block.compiled, train_block.inspect
        layout = train_block.layout

        def __call__(self, k, sums=None):
            action(int(built.state.step), k)
            return train_block(k, sums)

        def compiled_by(self, mode):
            built.train_block = train_block.compiled_by(mode)
            before_blocks(built, action)
            return built.train_block

    built.train_block = Watched()


def interrupt_at(built, step):
    """Sends SIGTERM to ourselves from within the block that reaches `step`."""

    def interrupt(first, k):
        if first < step <= first + k:
            os.kill(os.getpid(), signal.SIGTERM)

    before_blocks(built, interrupt)
