"""Times each way to compile the training block on the real batches and takes the fastest: train.compile=auto.

    modes = candidates(config, probe, replicas)                # ('graph', 'xla_update', 'xla_gradients', 'xla')
    block, choice = choose(train_block, modes, replicas, steps)  # the state is bit for bit what it was
    choice.mode, choice.milliseconds                           # 'xla', {'graph': 1.36, 'xla_update': 1.55, …}

XLA makes small dense nets faster and convolutions on a CPU several times slower, and nobody should have to know. The
choice decides the last bits of every number, so it is made once and kept with the run.
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

# In the order in which they are compiled, the cheapest first. The speed of one does not predict that of the next: with
# tables of embeddings, a step takes 20 ms with its gradients by XLA, 6 in a graph, 0.8 with all of it by XLA.
MODES = ("graph", "xla_update", "xla_gradients", "xla")

# The share that tuning may take of the time that the first candidate needs for the run; its own compilation is free.
_SHARE = 0.08
# Compilation times relative to the first candidate, in the order in which they are tried: the dearest may gain most.
# Measured on the six workloads of tests/benchmarks: 0.4 to 2.7, 1 to 3.1, and 3 to 7 on a busy machine.
_COMPILING = {"xla": 4.0, "xla_update": 2.0, "xla_gradients": 3.0, "graph": 1.0}
_SECONDS = 4.0  # of timing in turns, at most
_RUN_SECONDS = 0.1  # of one timed run
_TURNS = 25  # most of a candidate
# After so many turns, a candidate that is slower than the best by more than this factor is out.
_BEHIND = {1: 2.0, 3: 1.3, 6: 1.1, 12: 1.05}
_FAR = 2.0  # a candidate slower by this factor is out before the first turn
# That is decided by the best of a few runs of one step, as one may have waited for a processor, or by a single run that
# is longer than any stall.
_TRIES, _STALL_SECONDS = 3, 0.5
_LAUNCH_SECONDS = 0.01  # the most that a call costs beside its steps
_LARGEST = 2**24 - 1  # the largest number that `all_workers` exchanges


@dataclasses.dataclass(frozen=True)
class CompileChoice:
    """How a training block is compiled, and why.

    Attributes:
      mode: a value of train.compile.
      milliseconds: {mode: milliseconds of a step}, the best of its runs; None if XLA cannot compile it.
      reason: one line.
      compiling: seconds that the chosen mode took to compile, which a run without a choice spends too.
    """

    mode: str
    milliseconds: dict[str, float | None]
    reason: str
    compiling: float = 0.0

    @classmethod
    def of(cls, value: Any) -> "CompileChoice":
        """Returns the choice that was kept as JSON.

        Raises:
          ValueError, TypeError, LookupError: `value` is no choice.
        """
        times = {str(mode): None if spent is None else float(spent) for mode, spent in value["milliseconds"].items()}
        if value["mode"] not in MODES:
            raise ValueError(f"there is no mode '{value['mode']}'")
        return cls(value["mode"], times, str(value["reason"]), float(value.get("compiling", 0.0)))


def candidates(config: FrozenConfigDict, probe: Probe, replicas: Replicas) -> tuple[str, ...]:
    """Returns the modes that can be tried; the first is the one to take if none is."""
    if config.runtime.strategy == "parameter_server" or (probe.has_collectives and replicas.count > 1):
        return ("graph",)
    if config.optimizer.table_gradients == "rows":  # whose number XLA would have to know
        return ("graph",)
    modes: tuple[str, ...] = MODES if replicas.strategy is None else ("graph", "xla")
    slow = (*slow_convolutions(probe.graph, replicas), *(("xla", "xla_gradients") if probe.unread else ()))
    return tuple(mode for mode in modes if mode not in slow)


def slow_convolutions(graph: tf.Graph, replicas: Replicas) -> tuple[str, ...]:
    """Returns the modes in which a step with the convolutions of a forward pass may take minutes.

    On a CPU these are the modes without XLA for float16, and XLA around the loop over steps for any dtype: a step of
    ResNet-20 takes 0.16 s in a graph, 0.37 s with its gradients compiled by XLA, 16 s inside of a compiled loop.
    """
    if tf.config.list_physical_devices("GPU"):
        return ()
    definition = graph.as_graph_def()
    nodes = [*definition.node, *(node for function in definition.library.function for node in function.node_def)]
    dtypes = {node.attr["T"].type for node in nodes if re.match("Conv[23]D|DepthwiseConv", node.op)}
    whole = ("xla",) if dtypes and replicas.strategy is None else ()
    return (*whole, *(("graph", "xla_update", "eager") if tf.float16.as_datatype_enum in dtypes else ()))


def warn_of_convolutions(config: FrozenConfigDict, probe: Probe, replicas: Replicas) -> None:
    """Logs a warning if the config asks for a mode of `slow_convolutions`, or `auto` avoids the graph for them."""
    slow = slow_convolutions(probe.graph, replicas)
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


def choose(
    block: TrainBlock,
    modes: Sequence[str],
    replicas: Replicas,
    steps: int,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[TrainBlock, CompileChoice]:
    """Times `block` in each of `modes` and returns the fastest, compiled; the state is what it was.

    The candidates take turns in short runs. Candidates far behind drop out, and the best run of each counts: other work
    of the machine slows all of them, and makes none faster. All workers take the same decisions.

    Args:
      modes: the candidates, in the order in which they are tried.
      steps: number of steps that the run still has to take. Once the first candidate is timed, tuning has a share of
        the time of the run: candidates that would cost more are not tried.
      clock: returns seconds.
    """
    if len(modes) == 1:
        return block.compiled_by(modes[0]), CompileChoice(modes[0], {}, "nothing else can be had")
    trials = _Candidates(block, replicas, steps, clock)
    with trials.untouched():
        trials.first(modes[0])
        tried = trials.affordable(modes[1:])
        reason = "the fastest"
        if not tried:
            reason = f"not tuned: that would cost more than {steps} steps of {1e3 * trials.best():.3g} ms can gain"
        for mode in tried:
            if trials.left() >= trials.cost(mode):  # earlier candidates may have cost more than expected
                trials.add(mode)
        trials.race()
    chosen = trials.fastest()
    return trials.blocks[chosen], CompileChoice(chosen, trials.table(), reason, round(trials.compiling[chosen], 3))


class _Candidates:
    """The candidates of one choice, and what is known of them.

    Attributes:
      blocks: {mode: its block}; without modes that XLA cannot compile.
      compiling: {mode: seconds that its first call took}.
    """

    def __init__(self, block: TrainBlock, replicas: Replicas, steps: int, clock: Callable[[], float]) -> None:
        self.blocks: dict[str, TrainBlock] = {}
        self._block = block
        self._clock = clock
        self._all_workers = replicas.all_workers
        self._longest = replicas.all_workers(min(block.block_steps, steps), most=False)
        self._last = int(block.state.step) + steps
        self._runs: dict[str, list[float]] = {}  # seconds of a step, of each timed run
        self._failed: dict[str, str] = {}
        self._steps = steps
        self._first = ""
        self.compiling: dict[str, float] = {}
        self._spent = 0.0
        self._put_back = saved(block.state)

    @contextlib.contextmanager
    def untouched(self) -> Iterator[None]:
        """Puts the state back at the end."""
        try:
            yield
        finally:
            self._put_back()

    def best(self) -> float:
        """Returns the seconds of a step of the fastest candidate so far."""
        return min(min(self._runs[mode]) for mode in self._usable() if self._runs.get(mode))

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
        """Returns the seconds that tuning may still take; the compilation of the first candidate does not count."""
        return _SHARE * self._steps * min(self._runs[self._first]) - (self._spent - self.compiling[self._first])

    def cost(self, mode: str) -> float:
        """Returns the seconds that a further candidate is expected to take: its compilation, a step, and two runs."""
        step, factor = min(self._runs[self._first]), _COMPILING[mode] / _COMPILING[self._first]
        return factor * max(0.0, self.compiling[self._first] - step) + step + 2 * max(_RUN_SECONDS, self.best())

    def affordable(self, modes: Sequence[str]) -> list[str]:
        """Returns the `modes` for which there is time, in their order; those that may gain most are chosen first."""
        left, chosen = self.left(), []
        for mode in sorted(modes, key=list(_COMPILING).index):
            if self.cost(mode) <= left:
                left -= self.cost(mode)
                chosen.append(mode)
        return [mode for mode in modes if mode in chosen]

    def add(self, mode: str) -> None:
        """Does the same for a further candidate, unless XLA cannot compile it."""
        try:
            self.first(mode)
        except tf.errors.OpError as error:  # XLA cannot compile everything
            self._failed[mode] = error.message.split("\n")[0]
            del self.blocks[mode]
            self._put_back()

    def race(self) -> None:
        """Runs the candidates in turns until one is left, or time is up."""
        running = [mode for mode in self._usable() if not self._is_far(mode)]
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
        """Returns the fastest mode; lets go of the others."""
        chosen = min(self._usable(), key=lambda mode: min(self._runs[mode]))
        self.blocks = {chosen: self.blocks[chosen]}
        return chosen

    def table(self) -> dict[str, float | None]:
        """Returns {mode: milliseconds of a step in its fastest run}; None for one that XLA cannot compile: logs why."""
        for mode, why in self._failed.items():
            logging.info("train.compile=auto: %s: %s", mode, why)
        timed = {mode: round(1e3 * min(runs), 4) for mode, runs in self._runs.items() if runs}
        return {**timed, **dict.fromkeys(self._failed)}

    def _usable(self) -> list[str]:
        """Returns the candidates, without those that XLA keeps compiling, unless it does so with all."""
        return [mode for mode in self.blocks if not self._recompiles(mode)] or list(self.blocks)

    def _is_far(self, mode: str) -> bool:
        """Returns whether one-step runs already show that a mode is more than _FAR times as slow as the fastest one."""
        return min(self._runs.get(mode, [0.0])) > _FAR * self.best() + _LAUNCH_SECONDS

    def _recompiles(self, mode: str) -> bool:
        """Returns whether XLA compiles a candidate again for every run: it is slow, and takes more memory each time."""
        return (self.blocks[mode].compiled.compilations or 0) > 2

    def _timed(self, mode: str, k: int = 0) -> None:
        """Times one run, of `k` steps or of about _RUN_SECONDS, and keeps the seconds of a step."""
        k = k or max(1, min(self._longest, int(_RUN_SECONDS / min(self._runs[mode]))))
        seconds, steps = self._measured(mode, k)
        self._runs.setdefault(mode, []).append(seconds / steps)
        self._spent += seconds

    def _measured(self, mode: str, k: int, tick: float = 1e-6) -> tuple[float, int]:
        """Returns the seconds of `k` steps, in whole ticks, and their number: fewer if one is not finite."""
        if int(self._block.state.step) + k > self._last:
            self._put_back()
        start = self._clock()
        block = self.blocks[mode](k)
        ticks = min(_LARGEST, max(1, round((self._clock() - start) / tick)))
        if block.is_halted:
            self._put_back()
        return self._all_workers(ticks, most=True) * tick, len(block.rows)


def saved(state: TrainState) -> Callable[[], None]:
    """Returns a function that puts all variables of a state back to their present values."""
    copies = [copy for variable in paths.variables(state).values() for copy in paths.copies(variable)]
    before = [np.array(copy.numpy()) for copy in copies]

    def put_back() -> None:
        for copy, value in zip(copies, before, strict=True):
            copy.assign(value, read_value=False)

    return put_back
