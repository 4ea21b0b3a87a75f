"""Child processes that end with their parent, even if the parent is killed by `kill -9`.

    process = Process([sys.executable, 'launch.py', …])      # in the parent: a subprocess.Popen
    lifeline.hold()                                          # in the child, before anything else

The child holds one end of a pipe, the parent alone the other. However the parent dies, the system closes its end. A
thread of the child waits for that, and kills the child's process group: the child and all that it started.
"""

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import Any

_NAME = "FRAMEWORK_LIFELINE"  # environment variable of a child: the file descriptor of its end of the pipe


class Process(subprocess.Popen[Any]):
    """A child process that does not outlive its parent, in a session of its own: Ctrl-C reaches the parent alone.

    Args:
      command: runs Python code that calls `hold`.
      environment: of the child; by default that of the parent.
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
        """Kills the child and all that it started, and waits until the child is gone."""
        with contextlib.suppress(ProcessLookupError, PermissionError):  # no process of the group is left
            os.killpg(self.pid, signal.SIGKILL)
        self.wait()
        self.let_go()

    def let_go(self) -> None:
        """Closes the parent's end of the pipe, which ends a child that still runs."""
        if self._end >= 0:
            os.close(self._end)
            self._end = -1


def hold() -> None:
    """Makes a process that was started by `Process` end with its parent; does nothing in other processes."""
    descriptor = os.environ.pop(_NAME, None)  # children of this process have another parent
    if descriptor is not None:
        threading.Thread(target=_end_with, args=(int(descriptor),), name="lifeline", daemon=True).start()


def _end_with(descriptor: int) -> None:
    with contextlib.suppress(OSError):
        os.read(descriptor, 1)  # returns when the parent is gone
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Makes SIGTERM raise KeyboardInterrupt while the context lasts, so that a parent ends its children in order."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
