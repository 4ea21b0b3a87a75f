"""Processes that end with the one that started them, also if that one is killed by `kill -9`.

    process = Process([sys.executable, 'launch.py', …])      # in the parent: a subprocess.Popen
    lifeline.hold()                                          # in the child, before anything else

The child holds one end of a pipe, and only the parent the other. The system closes it whatever the parent dies of, and
the child, which waits for that in a thread, kills its process group: itself and all that it has started.
"""

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from typing import Any

_NAME = "FRAMEWORK_LIFELINE"  # in the environment of a child: the file descriptor of its end


class Process(subprocess.Popen[Any]):
    """A process in a session of its own, so that Ctrl-C reaches the parent alone, that does not outlive the parent.

    Args:
      command: runs Python code that calls `hold`.
      environment: of the process; by default that of the parent.
      settings: further arguments of subprocess.Popen.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None, **settings: Any) -> None:
        end_of_child, self._end = os.pipe()
        environment = {**(os.environ if environment is None else environment), _NAME: str(end_of_child)}
        try:
            super().__init__(command, env=environment, pass_fds=(end_of_child,), start_new_session=True, **settings)
        except BaseException:
            self.let_go()
            raise
        finally:
            os.close(end_of_child)

    def end(self) -> None:
        """Kills it, if it runs, with what it has started and left behind; returns when it is gone."""
        with contextlib.suppress(ProcessLookupError, PermissionError):  # nothing of its group is left
            os.killpg(self.pid, signal.SIGKILL)
        self.wait()
        self.let_go()

    def let_go(self) -> None:
        """Closes the parent's end of the pipe, which ends a process that still runs."""
        if self._end >= 0:
            os.close(self._end)
            self._end = -1


def hold() -> None:
    """Makes this process end with the one that started it by `Process`; does nothing in any other."""
    descriptor = os.environ.pop(_NAME, None)  # what this process starts has another parent
    if descriptor is not None:
        threading.Thread(target=_end_with, args=(int(descriptor),), name="lifeline", daemon=True).start()


def _end_with(descriptor: int) -> None:
    with contextlib.suppress(OSError):
        os.read(descriptor, 1)  # returns when the last process that holds the other end is gone
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
