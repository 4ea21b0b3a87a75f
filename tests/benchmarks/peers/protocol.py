"""How `compare.py` talks to a process that trains: JSON lines over pipes, so that all peers take turns in one run.

    serve(prepare)          # at the end of every peer's script

`prepare(workload, precision)` builds, compiles and warms up, and returns a `Peer`. Nothing here imports a framework.
"""

import argparse
import ctypes
import dataclasses
import json
import operator
import os
import sys
import time
from collections.abc import Callable
from typing import Any

WORKLOADS = ("mlp", "cnn", "transformer", "two_tower")
BUCKETS = "buckets"  # the workload of `beside_buckets.py`, of batches of many shapes
PRECISIONS = ("float32", "bfloat16")


# {variant: seconds of its first call}, which `fastest` fills in.
compile_seconds: dict[str, float] = {}


@dataclasses.dataclass
class Peer:
    """What a process measures.

    Attributes:
      steps: called with n; makes n steps of training with all that belongs to them, and returns when they are done;
        how many, where it can only make about n.
      versions: {package: version}.
      variant: which of its ways of running the peer took, as its experts would; '' if there is one.
      variants: {variant: ms a step}, of those that were tried.
      loss: called after steps; the loss of the last one, to see that the peer trains.
    """

    steps: Callable[[int], Any]
    versions: dict[str, str]
    loss: Callable[[], float]
    variant: str = ""
    variants: dict[str, float] = dataclasses.field(default_factory=dict)


def serve(prepare: Callable[..., Peer]) -> None:
    """Reads `--workload`, `--precision` and `--option`, then commands 'run N' from stdin, until it is closed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workload", choices=(*WORKLOADS, BUCKETS), required=True)
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--option", default="", help="what a script with several peers in it is to be")
    options = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")  # what a framework prints does not come between
    os.dup2(2, 1)
    started = time.perf_counter()
    peer = prepare(options.workload, options.precision, options.option)
    prepare_seconds = time.perf_counter() - started  # the search among variants is in it
    ready = {"versions": peer.versions, "variant": peer.variant, "variants": peer.variants}
    _say(answers, {**ready, "compile_seconds": compile_seconds.get(peer.variant, prepare_seconds)})
    for line in sys.stdin:
        count = int(line.removeprefix("run "))
        started, computed = time.perf_counter(), time.process_time()
        made = _made(peer.steps, count)
        milliseconds = 1e3 * (time.perf_counter() - started) / made
        processor = 1e3 * (time.process_time() - computed) / made  # of all threads
        _say(answers, {"ms": milliseconds, "processor_ms": processor, "loss": peer.loss()})


def _say(to: Any, what: dict[str, Any]) -> None:
    to.write(json.dumps(what) + "\n")
    to.flush()


def keep_pages() -> None:
    """Lets glibc keep freed memory, as jemalloc and tcmalloc do, which the guides of CPU peers recommend.

    Else each step takes the pages of its large arrays from the kernel anew: `transformer` in JAX 52,000 pages, and some
    75 ms of a processor's time. TensorFlow keeps memory by itself.
    """
    libc = ctypes.CDLL(None)
    libc.mallopt(-4, 0)  # M_MMAP_MAX
    libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
    libc.mallopt(-8, 1)  # M_ARENA_MAX: further arenas, those of other threads, have no such settings


def fastest(
    variants: dict[str, Callable[[int], Any]], seconds: float = 2.0, first: int = 1
) -> tuple[str, dict[str, float]]:
    """The variant with the least time a step, and the ms of each; compilation is not counted.

    Args:
      variants: {name: function as `Peer.steps`}. One that raises is left out, as long as another does not.
      seconds: how long each is measured.
      first: steps that compile all programs; calls of as many are measured.
    """
    found = {}
    errors = []
    for name, steps in variants.items():
        try:
            started = time.perf_counter()
            steps(first)
            compile_seconds[name] = time.perf_counter() - started
            found[name], more = _milliseconds(steps, seconds, first)
            compile_seconds[name] += more
        except Exception as error:
            errors.append(error)
            print(f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}", file=sys.stderr)
    if not found:
        raise errors[0]
    return min(found, key=lambda name: found[name]), found


def _made(steps: Callable[[int], Any], count: int) -> int:
    """How many steps it made, asked for `count`. (A loss that it returned would pass for their number.)"""
    made = steps(count)
    return count if made is None else operator.index(made)


def _milliseconds(steps: Callable[[int], Any], seconds: float, count: int) -> tuple[float, float]:
    """Of a step, in calls of about half of `seconds`, `count` steps or more; and the seconds that they compiled."""

    def call() -> tuple[float, int]:
        started = time.perf_counter()
        made = _made(steps, count)
        return time.perf_counter() - started, made

    compiling, least = 0.0, count
    while True:
        # Who makes several steps at once may compile that only now.
        first = call()[0] if count > least else 0.0
        took, made = call()
        compiling += max(0.0, first - took)
        if took >= seconds / 4:
            break
        # What a call costs beside its steps must not decide.
        count = max(2 * count, min(10 * count, int(count * seconds / 2 / took)))
    best = took / made
    if took <= 2 * seconds:
        took, made = call()
        best = min(best, took / made)
    return 1e3 * best, compiling
