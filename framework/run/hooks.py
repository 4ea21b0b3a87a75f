"""*When* something happens; what happens is a plain function.

    hook = Hook('log', Every(100), log, start=0, total=2344)
    hook.next_step                # 100: no block may run past it
    hook(100, block)              # calls log(100, block)

The loop lets no block run past a hook's next step, so a hook sees every step that it is due at.
"""

from collections.abc import Callable
from typing import Any


class Every:
    """Due at each multiple of `period` steps and at the end of the run; a period of 0 is the end alone.

    With `at_end=False`, a period of 0 is never.
    """

    def __init__(self, period: int, at_end: bool = True) -> None:
        self.period, self.at_end = period, at_end

    def next_step(self, step: int, total: int) -> int:
        """The first step after `step` at which it is due; past `total` if there is none."""
        last = total if self.at_end and step < total else total + 1
        return min(last, (step // self.period + 1) * self.period) if self.period else last


class Hook:
    """An action with its condition.

    Args:
      name: for the message of a missed step.
      when: has `next_step(step, total)`.
      action: called as `action(step, block)`.
      start: the step from which the run goes on.
      total: its last step.
    """

    def __init__(self, name: str, when: Every, action: Callable[[int, Any], None], start: int, total: int) -> None:
        self.name, self.next_step = name, when.next_step(start, total)
        self._when, self._action, self._total = when, action, total

    def __call__(self, step: int, block: Any) -> None:
        """Acts if due.

        Raises:
          RuntimeError: a due step was passed over, which would lose a log row or an evaluation in silence.
        """
        if step > self.next_step:
            raise RuntimeError(
                f"hook '{self.name}' was due at step {self.next_step}, but the loop came by at step {step}"
            )
        if step == self.next_step:
            self._action(step, block)
            self.next_step = self._when.next_step(step, self._total)
