"""Modules that experiments import by former names: a run folder keeps its experiment, which goes on importing them."""

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

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


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a module by the name that it had."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """A spec of this loader for the keys of MODULES, None for everything else."""
        return importlib.machinery.ModuleSpec(fullname, self) if fullname in MODULES else None

    def exec_module(self, module: ModuleType) -> None:
        """Puts the module of today in the place of the empty one that Python made for the old name."""
        old = module.__name__
        logging.warning("%s is %s now; the old name still works", old, MODULES[old])
        sys.modules[old] = importlib.import_module(MODULES[old])
