"""tests/benchmarks: profiles of profiled.py, the roof of work.py, growth as long_run.py sees it; numbers by hand."""

import pytest
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from tests.benchmarks import long_run, profiled
from tests.benchmarks.long_run import Look
from tests.benchmarks.profiled import Event, Row
from tests.benchmarks.work import Machine, Work


def test_the_time_of_an_op_is_without_that_of_ops_inside_it():
    """What is no op counts as the op around it; outside of all, as nothing."""
    events = [Event("", 0, 100), Event("While", 10, 90), Event("MatMul", 20, 50), Event("", 25, 40)]
    events += [Event("Add", 50, 60), Event("MatMul", 95, 99)]
    times: dict[str, list[int]] = {}
    for kind, count, picoseconds in profiled.own_times(events):
        entry = times.setdefault(kind, [0, 0])
        entry[0], entry[1] = entry[0] + count, entry[1] + picoseconds
    assert times == {"While": [1, 40], "MatMul": [2, 34], "Add": [1, 10]}


@pytest.mark.parametrize(
    ("name", "is_kernel", "kind"),
    [
        ("model/dense/MatMul:_MklMatMul", False, "_MklMatMul"),
        ("GatherV2_4:GatherV2", False, "GatherV2"),
        ("add_select_fusion.12", True, "add_select_fusion"),
        ("MatMul_1.1", True, "MatMul"),
        ("while.174", True, "while"),
        ("ExecutorState::Process", False, profiled.DISPATCH),
        ("__inference_traced_2888:__inference_traced_2888", False, ""),
        ("EagerLocalExecute: ReadVariableOp", False, ""),
        ("ThreadpoolListener::Record", False, ""),
    ],
)
def test_kinds(name, is_kernel, kind):
    assert profiled.kind_of(name, is_kernel) == kind


def test_rows_add_up_threads_and_read_what_a_kernel_is():
    space = xplane_pb2.XSpace()
    plane = space.planes.add()
    plane.event_metadata[1].name, plane.event_metadata[2].name = "a/MatMul:MatMul", "add_fusion.3"
    plane.stat_metadata[7].name = "hlo_op"
    for _ in range(2):
        line = plane.lines.add()
        line.events.add(metadata_id=1, offset_ps=0, duration_ps=2_000_000_000)
        line.events.add(metadata_id=2, offset_ps=0, duration_ps=500_000_000).stats.add(metadata_id=7)
    assert profiled.rows([space, space]) == [Row("MatMul", 4, 6.0), Row("add_fusion", 4, 2.0)]


def test_the_roof_takes_the_smallest_memory_that_holds_what_is_kept():
    machine = Machine({"float32": 100.0, "bfloat16": 400.0}, [(10, 50.0), (1000, 20.0), (float("inf"), 5.0)])
    assert machine.roof(Work(200, 100, 10), "float32") == (2.0, 2.0)
    assert machine.roof(Work(200, 100, 11), "bfloat16") == (0.5, 5.0)
    assert machine.roof(Work(200, 100, 1001), "bfloat16") == (0.5, 20.0)


def test_of_two_measurements_each_number_is_the_better():
    first = Machine({"float32": 100.0}, [(10, 50.0), (20, 30.0)])
    second = Machine({"float32": 90.0}, [(10, 60.0), (20, 20.0)])
    assert first.better(second) == Machine({"float32": 100.0}, [(10, 60.0), (20, 30.0)])


def looks(*resident, threads=(25, 25, 25)):
    """Three looks at each 10,000 steps: as often before, at and after a peak."""
    return [
        Look(
            10_000 * part + 3_000 * i,
            {"resident kB": kilobytes + 9_000 * (i == 1), "maps": 7, "threads": t, "files": 3},
        )
        for part, (kilobytes, t) in enumerate(zip(resident, threads, strict=True))
        for i in range(3)
    ]


def test_a_part_is_known_by_its_median():
    found = long_run.parts([*looks(1_000, 500_000, 500_100), Look(30_000, {})], 30_000)
    assert list(found) == [10_000, 20_000]
    assert found[20_000]["resident kB"] == (500_100, 500_100, 509_100)


@pytest.mark.parametrize(
    ("seen", "lines"),
    [
        (looks(1_000, 500_000, 505_000), []),  # a peak, the start, and 1 %
        (looks(1_000, 500_000, 505_001), ["resident kB grows from 500,000 to 505,001"]),
        (looks(1_000, 50_000, 55_000), []),  # 5 MB
        (looks(1_000, 50_000, 40_000, threads=(20, 25, 26)), ["threads grows from 25 to 26"]),
        (looks(1_000, 50_000, 40_000)[:6], ["only 1 parts of 10,000 steps were seen: nothing can be said"]),
    ],
)
def test_growth_beyond_what_is_allowed_is_told(seen, lines):
    assert long_run.grown(long_run.parts(seen, 30_000)) == lines


def test_a_run_that_compiles_twice_or_does_not_end_is_told():
    good = {"status": "finished", "traces": 1, "compilations": 0}
    assert long_run.faults(good) == []
    assert long_run.faults(good | {"compilations": 2}) == ["compilations: 2 instead of at most 1"]
    assert long_run.faults(good | {"compilations": None}) == ["compilations: None instead of at most 1"]
    assert long_run.faults(good | {"status": "interrupted"}) == ["the run did not finish"]
    assert long_run.faults(None) == ["the run did not finish"]
