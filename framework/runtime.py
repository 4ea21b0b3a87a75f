"""What the process runs on: TensorFlow's global settings and the run header.

    runtime.setup(config)                 # before the first op: threads, determinism, memory growth
    header = runtime.environment()        # versions, devices, CPU, git commit, command

These settings belong to the process, not to a run: TensorFlow has one of each. `setup` may be called again with the
same values, which is what a second `framework.build` of a notebook does.
"""

import importlib.metadata
import os
import platform
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import tensorflow as tf
from absl import logging
from ml_collections import ConfigDict

from framework.config import UserError

_PACKAGES = ("tensorflow", "tf-keras", "numpy", "absl-py", "ml-collections", "tensorboard", "ai-edge-litert")


def setup(config: ConfigDict) -> None:
    """Applies `config.runtime`.

    Raises:
      UserError: a setting differs from what an earlier `setup` of this process fixed for good.
    """
    threads = config.runtime.threads
    if tf.config.threading.get_intra_op_parallelism_threads() != threads:
        try:
            tf.config.threading.set_intra_op_parallelism_threads(threads)
        except RuntimeError as error:
            raise UserError(
                f"runtime.threads={threads} cannot be set: TensorFlow already runs in this process with"
                f" {tf.config.threading.get_intra_op_parallelism_threads()}. Start a new process."
            ) from error
    if config.runtime.deterministic:
        tf.config.experimental.enable_op_determinism()
    elif _is_deterministic():
        raise UserError(
            "runtime.deterministic=False, but an earlier run of this process turned determinism on for good."
            " Start a new process or use --config.runtime.deterministic=True."
        )
    for device in tf.config.list_physical_devices("GPU"):
        if not tf.config.experimental.get_memory_growth(device):
            tf.config.experimental.set_memory_growth(device, True)


class Interrupt:
    """While open, SIGTERM and SIGINT are requests; the second one is the usual end.

    In a thread other than the main one, where Python allows no handler, signals stay as they are.
    """

    def __init__(self) -> None:
        self.is_requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.is_requested = True
        logging.warning("%s: finishing the block and saving; once more ends at once", signal.Signals(number).name)
        self._restore()


def _is_deterministic() -> bool:
    # The question has no public name, only the setting has.
    from tensorflow.python.framework import config as tf_config

    return tf_config.is_op_determinism_enabled()


def environment() -> dict[str, Any]:
    """The run header: what someone needs to know to get the same numbers again."""
    return {
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "devices": [f"{device.device_type}: {device.name}" for device in tf.config.list_physical_devices()],
        "git": git_commit(),
    }


def git_commit() -> dict[str, Any]:
    """{'commit': 40 hex digits, 'dirty': bool} of this checkout; the commit is '' outside one."""
    root = Path(__file__).parent.parent

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return {"commit": "", "dirty": False}


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
