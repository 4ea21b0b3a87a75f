"""A training loop that knows no pause, n steps at a time: it runs in a thread and waits here between turns.

gate = Gate(loop)              # loop(gate) asks gate.allowed() how far it may go, and tells gate.made(count)
gate.steps(100)                # returns when the loop has made them and asks again
"""

import threading
from collections.abc import Callable


class Gate:
    """Steps that were allowed and not made yet.

    Args:
      loop: runs in a thread of its own from the first call of `steps` on, until `allowed` returns 0.

    Attributes:
      left: steps that are allowed and not made; at 0 the next call of `allowed` ends the turn.
    """

    def __init__(self, loop: Callable[["Gate"], None]) -> None:
        self._changed = threading.Condition()
        self.left, self._is_waiting, self._is_closed = 0, False, False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(loop,), daemon=True)

    def steps(self, count: int) -> None:
        """Lets the loop make `count` more steps, and returns when it has made them and all that follows from them."""
        with self._changed:
            self.left += count
            if self._thread.ident is None:
                self._thread.start()
            self._is_waiting = False
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._is_waiting or not self._thread.is_alive())
        if not self._thread.is_alive() or self._error:
            raise RuntimeError("the loop ended") from self._error

    def close(self) -> None:
        """Ends the loop at its next question, if it has begun."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join()

    def allowed(self) -> int:
        """Called by the loop: how many steps it may make now, at least 1; waits for them. 0 to end."""
        with self._changed:
            if not self.left:
                self._is_waiting = True
                self._changed.notify_all()
                self._changed.wait_for(lambda: self.left or self._is_closed)
            return 0 if self._is_closed else self.left

    def made(self, count: int) -> None:
        """Called by the loop: `count` of the allowed steps are made."""
        with self._changed:
            if count > self.left:
                raise RuntimeError(f"the loop made {count} steps, but {self.left} were allowed")
            self.left -= count

    def _run(self, loop: Callable[["Gate"], None]) -> None:
        try:
            loop(self)
        except BaseException as error:
            self._error = error
        with self._changed:
            self._is_waiting = True
            self._changed.notify_all()
