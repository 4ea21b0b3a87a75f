"""Imports of what loads TensorFlow: without the notes of its start, and with little work for the garbage collector.

build = quiet_import.run_build().build
"""

import gc
import importlib
import os
import sys
from pathlib import Path
from types import ModuleType


def run_build() -> ModuleType:
    """Returns `framework.run.build`, which makes runs."""
    return module("framework.run.build")


def module(name: str) -> ModuleType:
    """Returns a module whose import loads TensorFlow.

    The objects that the import makes live until the end. The garbage collector finds nothing to free among them and
    would take 0.5 s of 2.4, and as much at a later collection, so it skips them for good.
    """
    if name in sys.modules or not gc.isenabled():
        return importlib.import_module(name)
    gc.disable()
    try:
        return _silently(name)
    finally:
        gc.freeze()
        gc.enable()


def _silently(name: str) -> ModuleType:
    """Returns a module without the C++ notes of TensorFlow's start, which no log level silences."""
    # With a GPU, or a log level that the user set, the notes may matter. Level 3 is what a parent process passes on.
    if any(Path("/dev").glob("nvidia[0-9]*")) or os.environ.get("TF_CPP_MIN_LOG_LEVEL", "3") != "3":
        return importlib.import_module(name)
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    stderr = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        return importlib.import_module(name)
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
