"""Processes that train by turns: while one is at work, all others are stopped and take no processor.

    with Process([python, "tests/benchmarks/peers/bare.py", "--workload=mlp"]) as process:
        process.ready()                   # {'versions': …, 'variant': 'xla block', 'compile_seconds': 9.0, …}
        process.run(4000)                 # milliseconds a step

A process speaks as `peers/protocol.py` does.
"""

import contextlib
import json
import math
import os
import select
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PREPARE_SECONDS = 1200
TURN_SECONDS = 300


class PeerError(Exception):
    """A process that ended, or did not answer in time."""


class Process:
    """Starts at once; stopped but for the time of a call.

    Args:
      command: of the process, which has a session of its own.
      root: the checkout in which it runs and from which it imports.

    Attributes:
      processor_ms: milliseconds of processor time of each step of the last `run`, of all threads of the process.
    """

    processor_ms = math.nan

    def __init__(self, command: Sequence[str], root: Path = ROOT) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 — closed by __exit__
        self._process = subprocess.Popen(
            command,
            cwd=root,
            env=os.environ | {"PYTHONPATH": str(root)},  # Python looks in a script's folder, not in the working one
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,
        )

    @property
    def id(self) -> int:
        """Of the process, and of its group."""
        return self._process.pid

    def ready(self) -> dict[str, Any]:
        """What it says when it has built and compiled."""
        return self._answer(PREPARE_SECONDS)

    def run(self, count: int) -> float:
        """Lets it make `count` steps; milliseconds of each.

        Raises:
          PeerError: it ended, is not done in time, or its loss is not finite.
        """
        self._signal(signal.SIGCONT)
        with contextlib.suppress(BrokenPipeError):  # it has ended, which the answer tells
            self._process.stdin.write(f"run {count}\n")
            self._process.stdin.flush()
        answer = self._answer(TURN_SECONDS)
        if not math.isfinite(answer["loss"]):
            raise PeerError(f"its loss is {answer['loss']}")
        self.processor_ms = answer.get("processor_ms", math.nan)  # a checkout of earlier has none
        return answer["ms"]

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._signal(signal.SIGCONT)
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        self._signal(signal.SIGKILL)  # and what it may have started
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def _answer(self, seconds: float) -> dict[str, Any]:
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            self._signal(signal.SIGKILL)
            raise PeerError(f"no answer after {seconds:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            raise PeerError(self._last_words())
        self._signal(signal.SIGSTOP)
        return json.loads(line)

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), f"status {self._process.returncode}")

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


def sequence(peers: Sequence[str], ours: str, repetition: int) -> list[tuple[str, int]]:
    """(whose turn, in which group): ours between each two peers, so that it is the neighbour of each; then reversed.

    `sequence(['a', 'b', 'c'], 'ours', 0)` is a, ours, b in group 0, then c, ours in group 1.
    """
    turns = []
    for group, first in enumerate(range(0, len(peers), 2)):
        pair = peers[first : first + 2]
        turns += [(name, group) for name in (pair[0], ours, *pair[1:])]
    return turns[::-1] if repetition % 2 else turns
