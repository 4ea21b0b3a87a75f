"""Fresh processes in which artefacts are loaded by their own runtimes, and run.

    with Processes() as processes:
        artefact = processes.load(hook.runtime, path)
        artefact.calls["serving_default"]({"image": images})["logits"]

Each runtime has one process, started when it is first asked for, which loads one artefact after the other. If one makes
it crash, this artefact has failed, and the next gets a new process. Nothing of a process outlives the `with` block.
"""

import contextlib
import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from framework.errors import RunError
from framework.export import worker
from framework.export.base import Arrays, Call, Runtime

_LONGEST_SECONDS = 900.0  # of one answer: to load an artefact, or to run it on one batch
_LAST_WORDS = 200  # bytes of standard error that an error quotes


@dataclasses.dataclass(frozen=True)
class Artefact:
    """A loaded artefact.

    Attributes:
      calls: {signature: NumPy inputs -> NumPy outputs}.
      timed: (signature, inputs) -> `p50` and `p99` of the time of a call, in milliseconds.
    """

    calls: Mapping[str, Call]
    timed: Callable[[str, Arrays], dict[str, float]]


def load_here(calls: Mapping[str, Call]) -> Artefact:
    """Returns the artefact of calls that run in this process."""
    return Artefact(calls, lambda name, inputs: worker.timed(calls[name], inputs))


class Processes:
    """The fresh processes of one export, by the files of their runtimes."""

    def __init__(self) -> None:
        self._running: dict[Path, _Process] = {}

    def __enter__(self) -> "Processes":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for process in self._running.values():
            process.close()
        self._running.clear()

    def load(self, runtime: Runtime, path: Path) -> Artefact:
        """Loads an artefact in the process of its runtime; the one loaded there before is gone then.

        Raises:
          RunError: the runtime cannot load it, or the process crashed. The calls of the artefact raise the same.
        """
        process = self._running.get(runtime.file)
        if process is None or not process.is_alive():
            if process is not None:
                process.close()
            process = self._running[runtime.file] = _Process(runtime.file)
        answer = process.ask(do="load", path=str(path), function=runtime.function, settings=dict(runtime.settings))
        return Artefact({name: process.call(name) for name in answer["signatures"]}, process.timed)


class _Process:
    """One process that runs `worker.py`."""

    def __init__(self, runtime: Path) -> None:
        self._runtime = runtime
        self._folder = tempfile.TemporaryDirectory()
        self._stderr = open(self._file("stderr"), "w+b")  # noqa: SIM115 - `close` closes it
        # -P: the folder of worker.py must not hide packages. -u: the last words of a crash are not left in a buffer. A
        # session of its own: Ctrl-C is for the run alone.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-u", str(Path(worker.__file__)), str(runtime)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "TF_FORCE_GPU_ALLOW_GROWTH": "true"},
            start_new_session=True,
        )

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def call(self, name: str) -> Call:
        def run(inputs: Arrays) -> Arrays:
            given, outputs = self._file("inputs.npz"), self._file("outputs.npz")
            worker.write_arrays(given, inputs)
            self.ask(do="call", signature=name, inputs=str(given), outputs=str(outputs))
            return worker.read_arrays(outputs)

        return run

    def timed(self, name: str, inputs: Arrays) -> dict[str, float]:
        given = self._file("inputs.npz")
        worker.write_arrays(given, inputs)
        return self.ask(do="time", signature=name, inputs=str(given))

    def ask(self, **request: Any) -> dict[str, Any]:
        """Returns the answer to a request.

        Raises:
          RunError: the runtime raised, the process ended, or it does not answer.
        """
        assert self._process.stdin and self._process.stdout
        line = b""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            if not select.select([self._process.stdout], [], [], _LONGEST_SECONDS)[0]:
                self._process.kill()
                raise RunError(
                    f"the fresh process of {self._runtime.name} gave no answer for {_LONGEST_SECONDS:.0f} s"
                    f" ({request['do']})"
                )
            line = self._process.stdout.readline()
        if not line:
            raise RunError(self._ending(request["do"]))
        answer = json.loads(line)
        if "error" in answer:
            raise RunError(f"in the fresh process of {self._runtime.name}, {answer['error']}")
        return answer

    def _ending(self, doing: str) -> str:
        """Returns how the process ended, with the last that it wrote to standard error."""
        code = self._process.wait()
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with status {code}"
        self._stderr.seek(max(0, self._stderr.seek(0, os.SEEK_END) - _LAST_WORDS))
        words = " ".join(self._stderr.read().decode(errors="replace").split())
        last = f"; its last words: {words}" if words else ""
        return f"the fresh process of {self._runtime.name} ended {how} ({doing}){last}"

    def close(self) -> None:
        """Ends the process, and removes its files."""
        self._process.kill()
        self._process.communicate()
        self._stderr.close()
        self._folder.cleanup()

    def _file(self, name: str) -> Path:
        return Path(self._folder.name, name)
