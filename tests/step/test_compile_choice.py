"""framework/step/compile_choice.py with made-up times: what is tried, for how long, and what is taken."""

import numpy as np
import pytest
import tensorflow as tf

from framework.distribute.replicas import Replicas
from framework.step import compile_choice as module
from framework.step.compile_choice import choose

ALL = {"graph": 1.0, "xla_update": 1.0, "xla_gradients": 1.0, "xla": 1.0}


class Fake:
    """Blocks of a training that takes `seconds` a step, on a clock of its own."""

    def __init__(self, seconds, compiling=1.0, call=0.004, noise=lambda now: 1.0, block_steps=100):
        self.seconds, self.compiling, self.call, self.noise = seconds, compiling, call, noise
        self.now, self.block_steps, self.calls = 0.0, block_steps, []
        self.state = tf.Module()
        self.state.step = tf.Variable(0, dtype=tf.int64)
        self.failing, self.recompiling, self.compiling_of = {}, set(), {}
        self.furthest = 0

    def compiled_by(self, mode):
        return FakeBlock(self, mode)

    def clock(self):
        return self.now

    def taken(self, mode):
        return sum(k for name, k in self.calls if name == mode)


class FakeBlock:
    def __init__(self, fake, mode):
        self.fake, self.mode, self.compiled = fake, mode, self
        self.compilations = 0
        self.is_halted = False

    def __call__(self, k):
        fake = self.fake
        if self.mode in fake.failing:
            raise fake.failing[self.mode]
        assert 1 <= k <= fake.block_steps
        is_new = not self.compilations or self.mode in fake.recompiling
        self.compilations += is_new
        compiling = fake.compiling * fake.compiling_of.get(self.mode, 1)
        fake.now += is_new * compiling + (fake.call + k * fake.seconds[self.mode]) * fake.noise(fake.now)
        fake.calls.append((self.mode, k))
        fake.state.step.assign_add(k)
        fake.furthest = max(fake.furthest, int(fake.state.step))
        self.rows = range(k)
        return self


def tuned(fake, modes=module.MODES, steps=10**6, replicas=None):
    block, choice = choose(fake, modes, replicas or Replicas(), steps, clock=fake.clock)
    assert int(fake.state.step) == 0
    assert block.mode == choice.mode
    return choice


@pytest.mark.parametrize("fastest", module.MODES)
@pytest.mark.parametrize("scale", [5e-4, 0.02, 0.3])
def test_the_fastest_is_taken_and_its_times_are_told(fastest, scale):
    seconds = {mode: scale * (1 if mode == fastest else 1.2) for mode in module.MODES}
    choice = tuned(Fake(seconds, call=0.0))
    assert (choice.mode, choice.reason) == (fastest, "the fastest")
    assert choice.milliseconds == pytest.approx({mode: 1e3 * s for mode, s in seconds.items()}, rel=1e-3)


def test_a_noisy_machine_is_no_reason_to_take_a_slow_one():
    draw, hits = np.random.default_rng(0), 0
    for _ in range(100):
        factors = dict(zip(module.MODES, draw.permutation([1.0, 1.02, 1.1, 1.4]), strict=True))
        bursts = draw.uniform(
            0, 20, 40
        )  # somebody else computes for half a second, and everything takes 1.8 times as long

        def noise(now, bursts=bursts):
            return draw.gamma(4, 0.02) + 1 + 0.8 * bool(np.any((bursts < now) & (now < bursts + 0.5)))

        fake = Fake({mode: 1e-3 * factor for mode, factor in factors.items()}, noise=noise)
        hits += factors[tuned(fake).mode] <= 1.03
    assert hits >= 97


@pytest.mark.parametrize("stalled", range(20))
def test_one_stall_decides_nothing(stalled):
    """Of 50 ms or more, in one call: its thread waited for a processor. The first run of `xla` is call 10."""
    fake = Fake({"graph": 1.5e-3, "xla_update": 1.2e-3, "xla_gradients": 1.3e-3, "xla": 0.45e-3})
    fake.noise = lambda now: 12.0 if len(fake.calls) == stalled else 1.0
    assert tuned(fake).mode == "xla"


def test_timing_takes_a_few_seconds_and_most_of_them_for_what_is_close():
    fake = Fake({"graph": 1e-3, "xla_update": 1.01e-3, "xla_gradients": 1.2e-3, "xla": 1.7e-3})
    tuned(fake)
    assert fake.now - 4 * fake.compiling < 6
    assert fake.taken("graph") > 2 * fake.taken("xla_gradients") > 2 * fake.taken("xla") > 0
    slow = Fake({"graph": 0.5, "xla_update": 0.5, "xla_gradients": 3.0, "xla": 3.0}, compiling=5.0)
    tuned(slow)
    assert slow.now - 4 * slow.compiling < 22
    assert slow.taken("xla_gradients") == slow.taken("xla") == 2


def test_the_whole_step_is_tried_where_its_gradients_alone_are_slow():
    """Tables of embeddings: XLA copies them for a program of the gradients, and not inside of one of the whole step."""
    fake = Fake({"graph": 5.7e-3, "xla_update": 2.7e-3, "xla_gradients": 20.8e-3, "xla": 0.8e-3})
    assert tuned(fake).mode == "xla"


def test_a_short_run_is_not_tuned():
    fake = Fake(dict(ALL, graph=1e-3), compiling=0.5)
    choice = tuned(fake, steps=2000)
    assert (choice.mode, set(choice.milliseconds)) == ("graph", {"graph"})
    assert choice.reason.startswith("not tuned: that would cost more than 2000 steps of 1.2 ms")
    assert fake.now < 0.5 + 0.2
    # Nor one that lasts longer, but compiles for long as well.
    assert set(tuned(Fake(dict(ALL, graph=1e-3), compiling=3.0), steps=40_000).milliseconds) == {"graph"}
    assert len(tuned(Fake(dict(ALL, graph=1e-3), compiling=1.0), steps=200_000).milliseconds) == 4


@pytest.mark.parametrize("run_seconds", [5, 20, 40, 100, 400, 2000])
@pytest.mark.parametrize(("step", "compiling"), [(1e-3, 0.5), (0.02, 1.0), (0.2, 4.0), (0.5, 12.0)])
def test_tuning_takes_a_tenth_of_the_run_at_most(step, compiling, run_seconds):
    """Beside the compilation of the graph, which a run that is not tuned has too; what is slow costs as much."""
    for factor in (0.4, 1.0, 5.0):
        seconds = {mode: step * (1 if mode == "graph" else factor) for mode in module.MODES}
        fake = Fake(seconds, compiling=compiling)
        fake.compiling_of = {"xla_update": 2, "xla_gradients": 3, "xla": 4}
        choice = tuned(fake, steps=round(run_seconds / step))
        # Three single steps are what the estimate itself takes.
        assert fake.now - compiling <= 0.1 * run_seconds * (1 + 0.004 / step) + 3 * step + 0.15
        if len(choice.milliseconds) > 1:
            assert (choice.mode == "graph") == (factor >= 1)
        assert choice.compiling == pytest.approx(
            compiling * fake.compiling_of.get(choice.mode, 1) + step * (1 if choice.mode == "graph" else factor),
            abs=0.01,
        )


def test_what_may_gain_most_is_tried_first_where_not_all_can_be():
    fake = Fake({"graph": 1.3e-3, "xla_update": 1.0e-3, "xla_gradients": 1.1e-3, "xla": 0.45e-3}, compiling=0.6)
    fake.compiling_of = {"xla_update": 2, "xla_gradients": 3, "xla": 4}
    choice = tuned(fake, steps=31_000)  # 40 s
    assert choice.mode == "xla"
    assert set(choice.milliseconds) == {"graph", "xla"}


def test_a_candidate_that_compiles_longer_than_expected_leaves_no_time_for_the_next():
    fake = Fake(dict.fromkeys(module.MODES, 0.001), compiling=0.5)
    fake.compiling_of = {"xla_update": 20}
    assert set(tuned(fake, steps=70_000).milliseconds) == {"graph", "xla_update"}
    fake = Fake(dict.fromkeys(module.MODES, 0.001), compiling=0.5)
    assert set(tuned(fake, steps=70_000).milliseconds) == set(module.MODES)


def test_no_step_past_the_end_of_the_run_is_taken(monkeypatch):
    monkeypatch.setattr(module, "_SHARE", 1e9)
    fake = Fake(dict(ALL, graph=0.5, xla=0.001), compiling=0.0)
    assert tuned(fake, steps=60).mode == "xla"
    assert fake.furthest <= 60


def test_what_xla_cannot_compile_and_what_compiles_without_end_are_out(caplog):
    fake = Fake({"graph": 0.01, "xla_update": 0.02, "xla_gradients": 1e-4, "xla": 1e-4})
    fake.failing = {"xla": tf.errors.InvalidArgumentError(None, None, "Detected unsupported operations\nmore")}
    fake.recompiling = {"xla_gradients"}
    fake.compiling = 0.003
    choice = tuned(fake)
    assert choice.mode == "graph"
    assert choice.milliseconds["xla"] is None
    with pytest.raises(tf.errors.InvalidArgumentError):
        broken = Fake(ALL)
        broken.failing = {"graph": tf.errors.InvalidArgumentError(None, None, "wrong shapes")}
        tuned(broken)


@pytest.mark.parametrize("modes", [("graph", "xla"), ("xla", "graph")])
def test_one_that_keeps_being_compiled_decides_nothing_however_fast_its_steps(modes):
    fake = Fake({"graph": 3.0, "xla": 0.2}, compiling=0.5, block_steps=10)
    fake.recompiling = {"xla"}
    assert tuned(fake, modes).mode == "graph"


def test_one_that_fails_late_decides_nothing():
    fake, calls = Fake({"graph": 1.0, "xla": 0.01}), []

    class Late(FakeBlock):
        def __call__(self, k):
            calls.append(k)
            if len(calls) == 3:
                raise tf.errors.ResourceExhaustedError(None, None, "out of memory")
            return super().__call__(k)

    fake.compiled_by = lambda mode: (Late if mode == "xla" else FakeBlock)(fake, mode)
    assert tuned(fake, ("graph", "xla")).mode == "graph"
    assert len(calls) == 3


def test_workers_decide_by_the_slowest_of_them():
    class Others(Replicas):
        """On another worker `xla` is slow."""

        def all_workers(self, value, most):
            if not most:  # how long a run may be
                return value
            return value * (1 if fake.calls[-1][0] == "graph" else 5)

    fake = Fake({"graph": 0.01, "xla": 0.005})
    assert tuned(fake, ("graph", "xla"), replicas=Others()).mode == "graph"
    assert tuned(Fake(fake.seconds), ("graph", "xla")).mode == "xla"


def test_a_single_way_is_not_timed():
    fake = Fake(ALL)
    assert tuned(fake, ("graph",)).milliseconds == {}
    assert not fake.calls
