"""`ours.py` whose hooks are at work in some turns and idle in the others, as `growth_hooks.is_on` says.

    python tests/benchmarks/peers/ours_by_turns.py --workload=mlp --option=settings:train.compile=xla

One process, because two differ by more than hooks cost: where the memory of each happens to lie makes a step of
`two_tower` 3 % slower or faster. A turn ends when what its hooks left to a thread is done.
"""

import itertools
import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import ours
from protocol import Peer, serve

from framework.run import hooks, loop
from framework.writers import base
from tests.benchmarks.growth_hooks import is_on


class Turns:
    """Takes the places of what the loop makes its hooks and its writer behind of.

    Attributes:
      is_on: whether hooks do anything; they are due at the same steps in either case.
    """

    def __init__(self) -> None:
        self.is_on = True
        self._behind: list[base.AsyncWriter] = []

    def hook(self, name: str, when: hooks.Every, action: Callable[..., None], start: int, total: int) -> hooks.Hook:
        """A Hook."""
        return hooks.Hook(name, when, lambda *args: action(*args) if self.is_on else None, start, total)

    def behind(self, writer: base.Writer) -> base.AsyncWriter:
        """A AsyncWriter."""
        self._behind.append(base.AsyncWriter(writer))
        return self._behind[-1]

    def wait(self) -> None:
        """Returns when no writer has anything left to do."""
        for behind in self._behind:
            behind._calls.join()


def prepare(workload: str, precision: str, option: str) -> Peer:
    """As `ours.prepare`."""
    turns, count = Turns(), itertools.count()
    loop.Hook, loop.AsyncWriter = turns.hook, turns.behind
    peer = ours.prepare(workload, precision, option)
    steps = peer.steps

    def turn(n: int) -> Any:
        turns.is_on = is_on(next(count))
        made = steps(n)
        turns.wait()
        return made

    turns.wait()
    peer.steps = turn
    return peer


if __name__ == "__main__":
    serve(prepare)
