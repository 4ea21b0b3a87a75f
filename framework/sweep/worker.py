"""Trains trials one after the other in a process of its own, which loads TensorFlow once.

    worker = Worker()
    worker.begin(Task("experiments/mnist_mlp.py", ["--config.schedule.learning_rate=0.02"], "runs/sweep/trial-0007"))
    worker.answer()               # None while the trial trains; then {"status": "finished", "best": {…}}
    worker.end()

Each trial is built anew from the experiment's file, as a start of `launch.py` builds it, and ends in the same bits. Its
output goes to <run folder>.log. A process that was told to stop, or whose trial failed, takes no further trial.
"""

import contextlib
import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from absl import logging

from framework import files
from framework.distribute import lifeline
from framework.errors import MachineError, RunError, UserError

_ROOT = Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class Task:
    """What a worker trains.

    Attributes:
      config: the experiment, as --config names it.
      overrides: of the config, as typed.
      workdir: the run folder.
      is_trained: False for a run that is built alone, which finds what is wrong with it.
    """

    config: str
    overrides: Sequence[str]
    workdir: str
    is_trained: bool = True


class Worker:
    """A process that trains trials, seen from the process of the sweep, with which it ends.

    Attributes:
      is_usable: whether the process takes a further trial.
      trials: how many it was given.
    """

    def __init__(self) -> None:
        paths = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
        # -P: no module of the working folder comes before one of Python, as with `python launch.py`.
        command = [sys.executable, "-P", "-m", "framework.sweep.worker"]
        environment = {**os.environ, "PYTHONPATH": paths}
        self._process = lifeline.Process(command, environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin is not None and self._process.stdout is not None  # because they are pipes
        self._input: IO[bytes] = self._process.stdin
        self._output: IO[bytes] = self._process.stdout
        self._text, self._log = b"", ""
        self.is_usable = True
        self.trials = 0

    def begin(self, task: Task) -> None:
        """Makes the process train a trial; that the process is gone is what `answer` says."""
        self.trials += 1
        self._log = _log_of(task)
        with contextlib.suppress(BrokenPipeError):
            self._input.write(json.dumps(dataclasses.asdict(task)).encode() + b"\n")
            self._input.flush()

    def answer(self) -> dict[str, Any] | None:
        """Returns what the process says next: what `_train` says and returns; None while it says nothing.

        A process that ended without a word has failed: {"error": …}.
        """
        while b"\n" not in self._text and select.select([self._output], [], [], 0)[0]:
            read = os.read(self._output.fileno(), 65536)
            if not read:
                self.is_usable = False
                status = self._process.wait()
                return {"error": f"its process ended with status {status}; its output is in {self._log}"}
            self._text += read
        line, newline, rest = self._text.partition(b"\n")
        if not newline:
            return None
        self._text = rest
        answer: dict[str, Any] = json.loads(line)
        self.is_usable = self.is_usable and "error" not in answer
        return answer

    def stop(self) -> None:
        """Asks the process to save the trial and to end."""
        self.is_usable = False
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def end(self) -> None:
        """Ends the process at once."""
        self._process.end()
        for pipe in (self._input, self._output):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def _log_of(task: Task) -> str:
    return f"{task.workdir}.log"


def main() -> None:
    """Trains what the lines of the standard input say, and answers each on the standard output."""
    lifeline.hold()
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    with os.fdopen(os.dup(1), "w", buffering=1) as answers:

        def say(answer: Mapping[str, Any]) -> None:
            answers.write(json.dumps(answer) + "\n")

        for line in sys.stdin:
            task = Task(**json.loads(line))
            with open(_log_of(task), "ab") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            say(_train(task, say))


def _train(task: Task, say: Any) -> dict[str, Any]:
    """Trains a run to its end; says its metrics once it is built, and returns how it ended, or why it failed."""
    from framework.distribute import memory
    from framework.experiment import user_code
    from framework.run.build import build
    from framework.run.loop import train

    memory.forget_peak()  # of the trials before
    try:
        with user_code.explained():
            run = build(task.config, task.overrides, task.workdir)
            say({"modes": run.modes})
            if not task.is_trained:
                run.close()
                return {"status": "built"}
            result = train(run, task.overrides)
    except (UserError, RunError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        kinds = {"is_bad_input": isinstance(error, UserError), "is_of_machine": _is_of_machine(error)}
        return {"error": user_code.one_line(str(error)), **kinds}
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {user_code.one_line(str(error))}"}
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return {name: result[name] for name in ("status", "step", "best", "final")}


def _is_of_machine(error: Exception) -> bool:
    """Returns whether a disk or a network failed: other trials would fail as well, and this one may go on."""
    cause = error.__cause__
    return isinstance(error, MachineError) or (isinstance(cause, OSError) and files.is_full_disk(cause))


if __name__ == "__main__":
    main()
