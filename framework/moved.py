"""Former names of what experiments import: a run folder keeps its experiment, which goes on importing them."""

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from absl import logging

MODULES = {
    "framework.data.mnist": "framework.data.sets.mnist",
    "framework.data.replay": "framework.data.replay_buffer",
    "framework.failure": "framework.run.nonfinite",
    "framework.loop": "framework.run.loop",
    "framework.overrides": "framework.config.overrides",
    "framework.replay": "framework.run.replay",
    "framework.replicas": "framework.distribute.replicas",
    "framework.runtime": "framework.distribute.devices",
    "framework.tensorboard": "framework.writers.tensorboard",
    "framework.transfer": "framework.checkpoint.warm_start",
}
# {module: {former name: name now}}; a name now may stand in another module.
NAMES = {
    "framework.distribute.devices": {
        "Interrupt": "framework.run.interrupt.Interrupt",
        "environment": "framework.run.environment.environment",
        "git_commit": "framework.run.environment.git_commit",
        "make_strategy": "framework.distribute.strategies.make_strategy",
        "memory": "framework.distribute.memory.host_memory",
    },
    "framework.data.replay_buffer": {"Replay": "ReplayBuffer"},
    "framework.losses": {
        "Coupled": "BatchDependent",
        "first_gathered": "gather_offset",
        "gathered": "all_gather",
    },
    "framework.rng": {
        "halves": "random_bits16",
        "kept": "keep_mask",
        "position": "save_counters",
        "rewound": "replay_from",
        "words": "random_bits",
    },
}


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a module by its former name."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Returns a spec with this loader for the keys of MODULES, None for every other name."""
        return importlib.machinery.ModuleSpec(fullname, self) if fullname in MODULES else None

    def exec_module(self, module: ModuleType) -> None:
        """Replaces the empty module that Python made for the former name by the module itself."""
        former = module.__name__
        logging.warning("%s is %s now; the former name still works", former, MODULES[former])
        sys.modules[former] = importlib.import_module(MODULES[former])


def former_names(module: str) -> Callable[[str], Any]:
    """Returns the `__getattr__` of `module`, which finds what NAMES lists for it under its former name."""

    def find(name: str) -> Any:
        if name not in NAMES[module]:
            raise AttributeError(f"module '{module}' has no attribute '{name}'")
        now = NAMES[module][name]
        home, _, attribute = (now if "." in now else f"{module}.{now}").rpartition(".")
        logging.warning("%s.%s is %s.%s now; the former name still works", module, name, home, attribute)
        return getattr(importlib.import_module(home), attribute)

    return find
