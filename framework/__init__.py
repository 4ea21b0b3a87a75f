"""Custom training loops in TensorFlow: one experiment file, a step whose numbers can be trusted.

    import framework

    run = framework.build('experiments/mnist_mlp.py', {'train.duration': '1 epoch'})
    framework.train(run)
    framework.evaluate(run)
    framework.export_run(run)
    framework.replay_step(run, 120)

`launch.py` does the same from a command line; README.md of this folder is the way through the house.
"""

import importlib
from typing import Any

# Loaded on first use: checking a command line must not wait for TensorFlow.
_PUBLIC = {
    "Run": "framework.run",
    "UserError": "framework.config",
    "base_config": "framework.config",
    "build": "framework.run",
    "evaluate": "framework.loop",
    "export_run": "framework.loop",
    "replay_step": "framework.replay",
    "train": "framework.loop",
}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'framework' has no attribute '{name}'")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
