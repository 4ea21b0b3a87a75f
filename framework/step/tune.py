"""train.compile=auto: each way to compile the training block is timed on the real batches, and the fastest is taken.

    modes = candidates(config, found, replicas)                # ('graph', 'xla_update', 'xla_gradients', 'xla')
    block, choice = tune(train_block, modes, replicas, steps)  # the state is bit for bit what it was
    choice.mode, choice.milliseconds                           # 'xla', {'graph': 1.36, 'xla_update': 1.55, …}

XLA makes small dense nets faster and convolutions on a CPU several times slower, so nobody should have to know. Which
way was taken decides the last bits of every number: it is kept with the run, and chosen once.
"""

import contextlib
import dataclasses
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging
from ml_collections import FrozenConfigDict

from framework import paths
from framework.distribute.replicas import Replicas
from framework.state import TrainState
from framework.step.block import TrainBlock
from framework.step.probe import Probe

# In the order in which they are compiled: what is cheap to compile first. How fast one is says nothing of the next:
# with tables of embeddings, a step takes 20 ms with its gradients by XLA, 6 in a graph, 0.8 with all of it by XLA.
MODES = ("graph", "xla_update", "xla_gradients", "xla")

# What tuning may take of the time that the first candidate needs for the run, all but the compilation of that one.
_SHARE = 0.08
# So many times what the first took to compile, the others take; the dearest may have most to gain. Measured on the six
# workloads of tests/benchmarks: 0.4 to 2.7, 1 to 3.1, and 3 to 7 on a busy machine.
_COMPILING = {"xla": 4.0, "xla_update": 2.0, "xla_gradients": 3.0, "graph": 1.0}
_SECONDS = 4.0  # of timing in turns, at most
_RUN_SECONDS = 0.1  # of one timed run
_TURNS = 25  # most of a candidate
# After so many turns, a candidate that is slower than the best by more than this factor is out.
_BEHIND = {1: 2.0, 3: 1.3, 6: 1.1, 12: 1.05}
_FAR = 2.0  # and so many times slower is out before
# For that, so many runs of a step, as one may have waited for a processor; of one longer than any stall, that one.
_TRIES, _STALL_SECONDS = 3, 0.5
_LAUNCH_SECONDS = 0.01  # at most what a call costs beside its steps
_LARGEST = 2**24 - 1  # what `all_workers` can tell


@dataclasses.dataclass(frozen=True)
class CompileChoice:
    """What was chosen, and why.

    Attributes:
      mode: a value of train.compile.
      milliseconds: {mode: of a step}, the best of its runs; None for one that cannot be had.
      reason: one line.
      compiling: seconds that the chosen took to compile, which a run without a choice spends too.
    """

    mode: str
    milliseconds: dict[str, float | None]
    reason: str
    compiling: float = 0.0

    @classmethod
    def of(cls, value: Any) -> "CompileChoice":
        """The choice that JSON tells of.

        Raises:
          ValueError, TypeError, LookupError: it tells of none.
        """
        times = {str(mode): None if spent is None else float(spent) for mode, spent in value["milliseconds"].items()}
        if value["mode"] not in MODES:
            raise ValueError(f"there is no mode '{value['mode']}'")
        return cls(value["mode"], times, str(value["reason"]), float(value.get("compiling", 0.0)))


def candidates(config: FrozenConfigDict, found: Probe, replicas: Replicas) -> tuple[str, ...]:
    """The ways to compile that can be tried; the first is the one to take untried."""
    if config.runtime.strategy == "parameter_server" or (found.has_collectives and replicas.count > 1):
        return ("graph",)
    modes: tuple[str, ...] = MODES if replicas.strategy is None else ("graph", "xla")
    slow = (*slow_convolutions(found.graph, replicas), *(("xla", "xla_gradients") if found.unread else ()))
    return tuple(mode for mode in modes if mode not in slow)


def slow_convolutions(graph: tf.Graph, replicas: Replicas) -> tuple[str, ...]:
    """The modes in which a step with the convolutions of this forward pass may take minutes.

    On a CPU those are the ones outside of XLA for float16, and XLA around the loop over steps for any: a step of
    ResNet-20 takes 0.16 s in a graph, 0.37 s with its gradients compiled by XLA, 16 s inside of a compiled loop.
    """
    if tf.config.list_physical_devices("GPU"):
        return ()
    definition = graph.as_graph_def()
    nodes = [*definition.node, *(node for function in definition.library.function for node in function.node_def)]
    dtypes = {node.attr["T"].type for node in nodes if re.match("Conv[23]D|DepthwiseConv", node.op)}
    whole = ("xla",) if dtypes and replicas.strategy is None else ()
    return (*whole, *(("graph", "xla_update", "eager") if tf.float16.as_datatype_enum in dtypes else ()))


def warn_of_convolutions(config: FrozenConfigDict, found: Probe, replicas: Replicas) -> None:
    """Says so where the config asks for one of these modes, or `auto` has to avoid the graph because of them."""
    slow = slow_convolutions(found.graph, replicas)
    if config.train.compile == "auto" and "graph" in slow:
        logging.warning(
            "train.compile=auto takes xla_gradients for %s convolutions on a CPU: otherwise a step may take minutes."
            " --config.train.precision=bfloat16 is faster.",
            config.train.precision,
        )
    if config.train.compile in slow:
        logging.warning(
            "train.compile='%s' with %s convolutions on a CPU: a step may take minutes. Use"
            " --config.train.compile=auto.",
            config.train.compile,
            config.train.precision,
        )


def tune(
    block: TrainBlock,
    modes: Sequence[str],
    replicas: Replicas,
    steps: int,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[TrainBlock, CompileChoice]:
    """Times `block` in each of `modes` and returns the fastest, compiled; nothing is left changed.

    The candidates take turns in short runs, those far behind drop out, and the best run of each counts: what else the
    machine does slows all of them, and none below its best. All workers take the same decisions.

    Args:
      modes: to be tried, in this order.
      steps: that the run has before it. Once the first candidate is timed, tuning has a share of what the run will
        take: candidates that would cost more are not looked at.
      clock: seconds.
    """
    if len(modes) == 1:
        return block.compiled_by(modes[0]), CompileChoice(modes[0], {}, "nothing else can be had")
    tuner = _Tuner(block, replicas, steps, clock)
    with tuner.untouched():
        tuner.first(modes[0])
        tried = tuner.affordable(modes[1:])
        reason = "the fastest"
        if not tried:
            reason = f"not tuned: that would cost more than {steps} steps of {1e3 * tuner.best():.3g} ms can gain"
        for mode in tried:
            if tuner.left() >= tuner.cost(mode):  # those before it may have cost more than was expected
                tuner.add(mode)
        tuner.race()
    chosen = tuner.fastest()
    return tuner.blocks[chosen], CompileChoice(chosen, tuner.table(), reason, round(tuner.compiling[chosen], 3))


class _Tuner:
    """The candidates of one tuning, and what is known of them.

    Attributes:
      blocks: {mode: its block}; without those that cannot be had.
      compiling: {mode: seconds that its first call took}.
    """

    def __init__(self, block: TrainBlock, replicas: Replicas, steps: int, clock: Callable[[], float]) -> None:
        self.blocks: dict[str, TrainBlock] = {}
        self._block, self._clock, self._everywhere = block, clock, replicas.all_workers
        self._longest = replicas.all_workers(min(block.block_steps, steps), most=False)
        self._last = int(block.state.step) + steps
        self._runs: dict[str, list[float]] = {}  # seconds of a step, of each timed run
        self._failed: dict[str, str] = {}
        self._steps, self._first = steps, ""
        self.compiling: dict[str, float] = {}
        self._spent, self._put_back = 0.0, saved(block.state)

    @contextlib.contextmanager
    def untouched(self) -> Iterator[None]:
        """The state is afterwards what it was."""
        try:
            yield
        finally:
            self._put_back()

    def best(self) -> float:
        """Seconds of a step of the fastest so far that can be taken."""
        return min(min(self._runs[mode]) for mode in self._candidates() if self._runs.get(mode))

    def first(self, mode: str) -> None:
        """Compiles a candidate and times it."""
        self._first = self._first or mode
        self.blocks[mode] = self._block.compiled_by(mode)
        self.compiling[mode], _ = self._measured(mode, 1, tick=1e-3)
        self._spent += self.compiling[mode]
        for _ in range(_TRIES):
            self._timed(mode, 1)
            if not self._is_far(mode) or self._runs[mode][-1] > _STALL_SECONDS:
                break
        if not self._is_far(mode):
            self._timed(mode)

    def left(self) -> float:
        """Seconds that tuning may still take; what the first candidate took to compile is none of it."""
        return _SHARE * self._steps * min(self._runs[self._first]) - (self._spent - self.compiling[self._first])

    def cost(self, mode: str) -> float:
        """Seconds that a further candidate is expected to take: to be compiled, with a step, and two runs."""
        step, factor = min(self._runs[self._first]), _COMPILING[mode] / _COMPILING[self._first]
        return factor * max(0.0, self.compiling[self._first] - step) + step + 2 * max(_RUN_SECONDS, self.best())

    def affordable(self, modes: Sequence[str]) -> list[str]:
        """Those of `modes` that fit into what is left, in their order; the ones that may gain most are chosen first."""
        left, chosen = self.left(), []
        for mode in sorted(modes, key=list(_COMPILING).index):
            if self.cost(mode) <= left:
                left -= self.cost(mode)
                chosen.append(mode)
        return [mode for mode in modes if mode in chosen]

    def add(self, mode: str) -> None:
        """The same for a further one, unless it cannot be had."""
        try:
            self.first(mode)
        except tf.errors.OpError as error:  # XLA cannot compile everything
            self._failed[mode] = error.message.split("\n")[0]
            del self.blocks[mode]
            self._put_back()

    def race(self) -> None:
        """Runs the candidates in turns until one is left, or time is up."""
        running = [mode for mode in self._candidates() if not self._is_far(mode)]
        end, factor = self._spent + min(_SECONDS, self.left()), _FAR
        for turn in range(1, _TURNS + 1):
            if len(running) <= 1 or (turn > 2 and self._spent > end):
                break
            for mode in running[:: 1 if turn % 2 else -1]:
                self._timed(mode)
            factor = _BEHIND.get(turn, factor)
            best = min(min(self._runs[mode]) for mode in running)
            running = [mode for mode in running if min(self._runs[mode]) <= factor * best]

    def fastest(self) -> str:
        """The mode to take; the others are let go of."""
        chosen = min(self._candidates(), key=lambda mode: min(self._runs[mode]))
        self.blocks = {chosen: self.blocks[chosen]}
        return chosen

    def table(self) -> dict[str, float | None]:
        """{mode: milliseconds of a step}."""
        for mode, why in self._failed.items():
            logging.info("train.compile=auto: %s: %s", mode, why)
        timed = {mode: round(1e3 * min(runs), 4) for mode, runs in self._runs.items() if runs}
        return {**timed, **dict.fromkeys(self._failed)}

    def _candidates(self) -> list[str]:
        """Candidates that can be taken: not those that keep being compiled, unless all do."""
        return [mode for mode in self.blocks if not self._recompiles(mode)] or list(self.blocks)

    def _is_far(self, mode: str) -> bool:
        """Whether a candidate is so slow that even runs of one step tell."""
        return min(self._runs.get(mode, [0.0])) > _FAR * self.best() + _LAUNCH_SECONDS

    def _recompiles(self, mode: str) -> bool:
        """Whether XLA compiled it again for every run; slow as that is, it would grow without end."""
        return (self.blocks[mode].compiled.compilations or 0) > 2

    def _timed(self, mode: str, k: int = 0) -> None:
        """One run, of about _RUN_SECONDS unless `k` says how many steps; kept as seconds of a step."""
        k = k or max(1, min(self._longest, int(_RUN_SECONDS / min(self._runs[mode]))))
        seconds, steps = self._measured(mode, k)
        self._runs.setdefault(mode, []).append(seconds / steps)
        self._spent += seconds

    def _measured(self, mode: str, k: int, tick: float = 1e-6) -> tuple[float, int]:
        """Seconds, in whole ticks, of `k` steps, or of fewer if one is not finite, and how many that were."""
        if int(self._block.state.step) + k > self._last:
            self._put_back()
        start = self._clock()
        block = self.blocks[mode](k)
        ticks = min(_LARGEST, max(1, round((self._clock() - start) / tick)))
        if block.is_halted:
            self._put_back()
        return self._everywhere(ticks, most=True) * tick, len(block.rows)


def saved(state: TrainState) -> Callable[[], None]:
    """A function that puts all variables of a state back to what they are now."""
    copies = [copy for variable in paths.variables(state).values() for copy in paths.copies(variable)]
    before = [np.array(copy.numpy()) for copy in copies]

    def put_back() -> None:
        for copy, value in zip(copies, before, strict=True):
            copy.assign(value, read_value=False)

    return put_back
