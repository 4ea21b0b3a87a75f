"""The header of a run: software, hardware and commit, which someone else needs to get the same numbers.

environment()              # {'command': …, 'python': …, 'packages': {…}, 'devices': […], 'git': {…}, …}
git_commit(folder)         # {'commit': '…', 'dirty': False}
"""

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import tensorflow as tf

_PACKAGES = ("tensorflow", "tf-keras", "numpy", "absl-py", "ml-collections", "tensorboard", "ai-edge-litert")


def environment() -> dict[str, Any]:
    """Returns the command, versions, hardware and commit of this process, as JSON."""
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


def git_commit(folder: Path | None = None) -> dict[str, Any]:
    """Returns {'commit': 40 hex digits, 'dirty': whether files differ from it} of a checkout.

    Args:
      folder: inside the checkout; the framework's own by default. Outside of a checkout the commit is ''.
    """
    root = folder or Path(__file__).parents[2]

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
