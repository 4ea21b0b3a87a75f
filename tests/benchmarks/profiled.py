"""What a stretch of training spends its time on, by kind of op, from TensorFlow's profiler.

    rows = profiled(lambda: peer.steps(200))
    rows[0]                    # Row(kind='MatMul', count=1200, milliseconds=48.0)

A kind is the type of an op of the graph ('MatMul'), or the name of a kernel of an XLA program without its number
('gather_bitcast_fusion'). The time is an op's own, without that of other ops inside of it, in the thread that ran it:
what it hands to a pool counts while its own thread works or waits with it. Two threads at once count twice.
"""

import re
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow as tf
from tensorflow.tsl.profiler.protobuf import xplane_pb2

# Of the executors of graphs and of XLA programs: finding out what is next, and handing it to a thread.
_DISPATCH = {"ExecutorState::Process", "ThunkExecutor::Execute"}
DISPATCH = "(dispatch)"


class Row(NamedTuple):
    """All ops of a kind: how many, and how long."""

    kind: str
    count: int
    milliseconds: float


class Event(NamedTuple):
    """Something a thread did: its kind, '' if it is no op; picoseconds of its start and end."""

    kind: str
    start: int
    end: int


def profiled(run: Callable[[], Any]) -> list[Row]:
    """Kinds of op by time, the longest first, of what `run` makes this process do."""
    with tempfile.TemporaryDirectory() as folder:
        tf.profiler.experimental.start(folder)
        run()
        tf.profiler.experimental.stop()
        spaces = []
        for path in Path(folder).rglob("*.xplane.pb"):
            spaces.append(xplane_pb2.XSpace.FromString(path.read_bytes()))
    return rows(spaces)


def rows(spaces: Iterable[xplane_pb2.XSpace]) -> list[Row]:
    """The same of what the profiler wrote."""
    counts: dict[str, int] = {}
    times: dict[str, int] = {}
    for space in spaces:
        for plane in space.planes:
            for line in plane.lines:
                for kind, count, picoseconds in own_times(_events(plane, line)):
                    counts[kind] = counts.get(kind, 0) + count
                    times[kind] = times.get(kind, 0) + picoseconds
    found = [Row(kind, counts[kind], 1e-9 * times[kind]) for kind in times]
    return sorted(found, key=lambda row: -row.milliseconds)


def own_times(events: Iterable[Event]) -> list[tuple[str, int, int]]:
    """(kind, 1 or 0, picoseconds) of the ops of a thread: an op's own time, and that of what is no op inside of it.

    Args:
      events: of a thread; one is inside another or after it.
    """
    found: list[tuple[str, int, int]] = []
    open_events: list[Event] = []
    now = 0

    def pass_to(time: int) -> None:
        nonlocal now
        kind = next((event.kind for event in reversed(open_events) if event.kind), "")
        if kind and time > now:
            found.append((kind, 0, time - now))
        now = max(now, time)

    for event in sorted(events, key=lambda event: (event.start, -event.end)):
        while open_events and open_events[-1].end <= event.start:
            pass_to(open_events[-1].end)
            open_events.pop()
        pass_to(event.start)
        open_events.append(event)
        if event.kind:
            found.append((event.kind, 1, 0))
    while open_events:
        pass_to(open_events[-1].end)
        open_events.pop()
    return found


def _events(plane: Any, line: Any) -> list[Event]:
    found = []
    for event in line.events:
        name = plane.event_metadata[event.metadata_id].name
        is_kernel = any(plane.stat_metadata[stat.metadata_id].name == "hlo_op" for stat in event.stats)
        found.append(Event(kind_of(name, is_kernel), event.offset_ps, event.offset_ps + event.duration_ps))
    return found


def kind_of(name: str, is_kernel: bool = False) -> str:
    """'MatMul' of 'model/dense/MatMul:MatMul'; 'add_fusion' of a kernel 'add_fusion.12'; '' of what is no op.

    Args:
      is_kernel: the event is one of an XLA program.
    """
    if name in _DISPATCH:
        return DISPATCH
    if is_kernel:
        return re.sub(r"[._]?\d+", "", name)
    match = re.fullmatch(r"[^: ]+:(_?[A-Z]\w*)", name)
    return match[1] if match else ""
