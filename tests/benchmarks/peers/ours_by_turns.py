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

from framework.run import built_in, hooks, outputs
from framework.writers import AsyncWriter, Writer
from tests.benchmarks.growth_hooks import is_on


class Turns:
    """Takes the places of the classes that a run makes its hooks and its asynchronous writer of.

    Attributes:
      is_on: whether hooks do anything; they are due at the same steps in either case.
    """

    def __init__(self) -> None:
        self.is_on = True
        self._writers: list[AsyncWriter] = []

    def hook(self, every: int, action: Callable[..., None], name: str, at_end: bool = True) -> hooks.Hook:
        """Returns the hook, which acts only while hooks are on."""
        return hooks.Hook(every, lambda context: action(context) if self.is_on else None, name, at_end)

    def asynchronous(self, writer: Writer) -> AsyncWriter:
        """Returns the writer in a thread of its own, for which `wait` waits."""
        self._writers.append(AsyncWriter(writer))
        return self._writers[-1]

    def wait(self) -> None:
        """Returns when no writer has anything left to do."""
        for writer in self._writers:
            writer._calls.join()


def prepare(workload: str, precision: str, option: str) -> Peer:
    """As `ours.prepare`."""
    turns, count = Turns(), itertools.count()
    built_in.Hook, outputs.AsyncWriter = turns.hook, turns.asynchronous
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
