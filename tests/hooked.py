"""tests/tiny.py with a hook that has a state, and one that kills the process: HOOKED_KILL='20 first' or '20 last'."""

import os
import signal

from framework import Hook, optim
from tests import tiny
from tests.tiny import make_data, make_loss, make_metrics, make_model  # noqa: F401


def get_config(arg):
    config = tiny.get_config(arg)
    config.train.compile = "graph"
    config.eval.every = "10 steps"
    config.checkpoint.every = ""
    return config


def make_schedule(cfg, total_steps):
    base = optim.make_schedule(cfg, total_steps)
    return optim.ReduceOnPlateau(base, "test/accuracy", factor=0.5, patience=1, min_delta=0.05)


class Seen:
    """Each step that it was called at, with the accuracy that it found."""

    def __init__(self):
        self.seen = []

    def __call__(self, context):
        self.seen.append([context.step, context.results["test/accuracy"]])

    def state(self):
        return self.seen

    def load(self, state):
        self.seen = state


def die(context):
    step = int((os.environ.get("HOOKED_KILL") or "0").split()[0])
    if context.step == step:
        os.kill(os.getpid(), signal.SIGKILL)


def make_hooks(cfg, run):
    dies = Hook("10 steps", die)
    seen = Hook("10 steps", Seen())
    return [dies, seen] if os.environ.get("HOOKED_KILL", "").endswith("first") else [seen, dies]
