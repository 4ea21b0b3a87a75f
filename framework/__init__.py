"""Custom training loops in TensorFlow: one experiment file, a step whose numbers can be trusted.

    import framework

    run = framework.build('experiments/mnist_mlp.py', {'train.duration': '1 epoch'})
    framework.train(run)
    framework.evaluate(run)
    framework.export_run(run)
    framework.replay_step(run, 120)

`launch.py` does the same from a command line; README.md of this folder describes the rooms.
"""

import importlib
import sys
from typing import Any

from framework.moved import Finder

# Loaded on first use: checking a command line must not wait for TensorFlow.
_PUBLIC = {
    "Hook": "framework.run.hooks",
    "Run": "framework.run.run",
    "UserError": "framework.errors",
    "base_config": "framework.config",
    "build": "framework.run.build",
    "decode": "framework.decoding",
    "evaluate": "framework.run.evaluation",
    "export_run": "framework.run.exporting",
    "replay_step": "framework.run.replay",
    "train": "framework.run.loop",
}

sys.meta_path.append(Finder())


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'framework' has no attribute '{name}'")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
