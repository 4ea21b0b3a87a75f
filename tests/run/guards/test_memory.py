"""framework/run/guards/memory.py: memory that grows steadily, and would be full before the end of the run."""

from types import SimpleNamespace

import numpy as np
import pytest

from framework.run.guards import memory
from framework.run.guards.memory import Growth, Leak
from framework.step.block import Block

GB = 10**9


def grown(sizes):
    """Growth that has seen one lap a step."""
    growth = Growth()
    for step, size in enumerate(sizes):
        if growth.is_due():
            growth.add(step, int(size))
    return growth


@pytest.mark.parametrize("laps", [32, 63, 64, 100, 1000, 5000])
def test_the_growth_of_a_leak_is_found(laps):
    steps = np.arange(laps)
    noise = np.random.default_rng(0).normal(size=laps) * 100
    start = np.where(steps < laps // 3, 0, GB)  # an evaluation in the first third, whose buffers stay
    assert grown(start + 1e9 + 5000.0 * steps + noise).slope() == pytest.approx(5000, rel=0.01)


@pytest.mark.parametrize(
    "sizes",
    [
        np.full(1000, GB),
        GB + 5000 * np.arange(31),  # too few
        GB + 1e6 * (np.arange(1000) > 800),  # one more buffer
        GB + 1e6 * np.arange(1000).clip(None, 600),  # a cache that has become full
        GB + 1e6 * (np.arange(1000) % 7),  # memory that comes and goes
        2 * GB - 5000 * np.arange(1000),
        GB + np.random.default_rng(1).normal(size=1000) * 1e6,
    ],
)
def test_what_is_not_steady_is_no_leak(sizes):
    assert grown(sizes).slope() == 0


def test_a_leak_is_told_if_it_would_fill_what_is_free(monkeypatch):
    own, free = {"bytes": GB}, {"bytes": 10 * GB}
    monkeypatch.setattr(memory, "own_memory", lambda: own["bytes"])
    monkeypatch.setattr(memory, "free_memory", lambda: free["bytes"])
    run = SimpleNamespace(resolved=SimpleNamespace(log=SimpleNamespace(every=10)), total_steps=100_000)
    for room in (10 * GB, 9 * GB):
        free["bytes"], own["bytes"] = room, GB
        guard, lines = Leak(run, None), []
        for step in range(0, 1000, 5):
            own["bytes"] += 500_000  # 0.1 MB a step: 10 GB in the whole run
            lines.append(guard.look(Block(step, np.zeros((5, 1)), None)))
        assert any(lines) == (room == 9 * GB)
    assert next(filter(None, lines)) == (
        "memory grows by 1 MB every 10 steps, and the 9.0 GB that are free would be full at step 90320 of 100000. Look"
        " for what hooks, evaluators, writers and the source of the data keep: lists that grow, tf.function made anew"
        " at each call, caches without a limit. Meanwhile, stop the run from time to time: the same command goes on"
        " where it was."
    )
    monkeypatch.setattr(memory, "own_memory", lambda: None)  # nothing can be seen
    guard = Leak(run, None)
    assert not any(guard.look(Block(step, np.zeros((5, 1)), None)) for step in range(0, 1000, 5))
