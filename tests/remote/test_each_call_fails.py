"""Each call of a file system fails once, for good, or kills the process: what is then there, and how a run goes on."""

import contextlib

import pytest

from framework.errors import RunError, UserError
from framework.folder import name_of
from framework.remote.address import Place, Unreachable
from framework.remote.holder import DEAD_SECONDS
from framework.remote.run_copy import RunCopy
from tests.remote.copies import ADDRESS, at_address, contents, elsewhere, save, trained

CALLS = ("listing", "get", "put", "read", "write", "delete")
HOW = ("once", "once, done", "for good", "for good, done", "killed", "killed, done")


class Network:
    """Fails at a call, counted from 0: before it has an effect, or after it ('done')."""

    def __init__(self, patch, at, how):
        self.count, self.at, self.how = 0, at, how
        for name in CALLS:
            patch.setattr(Place, name, self._failing(getattr(Place, name)))
        keep = RunCopy._keep

        def kept(copy, state):
            if "killed" in how and self.is_down:
                raise OSError("a dead process writes nothing")
            keep(copy, state)

        patch.setattr(RunCopy, "_keep", kept)

    @property
    def is_down(self):
        return self.count > self.at and "once" not in self.how

    def _failing(self, call):
        def failing(place, *arguments):
            was_down, now = self.is_down, self.count
            self.count += 1
            if now == self.at and "done" in self.how:
                call(place, *arguments)
            if was_down or now == self.at:
                raise Unreachable("down")
            return call(place, *arguments)

        return failing


def opened(later=0.0):
    return RunCopy(ADDRESS, clock=lambda: 1e9 + later, wait=lambda seconds: None)


def steps(names):
    """The steps of the checkpoints that have a manifest."""
    return [step for step in range(20) if f"checkpoints/{name_of(step)}/manifest.json" in names]


def to_step_3(at, how):
    """Trains from step 1 to 3 while a call fails; returns how many calls there were."""
    with pytest.MonkeyPatch.context() as patch:
        network = Network(patch, at, how)
        with contextlib.suppress(UserError, RunError, OSError):
            copy = opened()
            copy.fetch()
            with copy.holding():
                save(copy.folder, 2)
                with contextlib.suppress(Unreachable, OSError):
                    copy._copy()
                save(copy.folder, 3, keep=(2,))
        return network.count


def check_whole():
    """What has a manifest has its arrays."""
    there = at_address()
    for step in steps(there):
        assert there[f"checkpoints/{name_of(step)}/arrays.bin"] == f"arrays of {step}"
        assert f'"step": {step}' in there["metrics.jsonl"]


def goes_on(step):
    """The run goes on, four minutes later; returns its copy."""
    copy = opened(later=DEAD_SECONDS + 60)
    copy.fetch()
    with copy.holding():
        save(copy.folder, step, keep=(2, 3))
    assert at_address() == contents(copy.folder)
    assert not list(copy.folder.parent.glob("run-*")), "nothing was lost, so nothing is set aside"
    return copy


@pytest.mark.parametrize("how", HOW)
def test_the_same_machine_goes_on(tmp_path, monkeypatch, memory, how):
    at = 0
    while True:
        memory.store.clear()
        elsewhere(monkeypatch, tmp_path, f"{at}")
        trained(1)
        calls = to_step_3(at, how)
        check_whole()
        before = steps(contents(RunCopy(ADDRESS).folder))
        copy = goes_on(5)
        assert steps(contents(copy.folder)) == [step for step in (*before, 5) if step > 1], at
        if calls <= at:
            break
        at += 1
    assert at > 20


@pytest.mark.parametrize("how", HOW)
def test_another_machine_goes_on_from_what_is_there_and_the_first_one_follows(tmp_path, monkeypatch, memory, how):
    at = 0
    while True:
        memory.store.clear()
        elsewhere(monkeypatch, tmp_path, f"{at}")
        trained(1)
        elsewhere(monkeypatch, tmp_path, f"{at}-other")
        opened().fetch()
        elsewhere(monkeypatch, tmp_path, f"{at}")
        calls = to_step_3(at, how)
        there = steps(at_address())
        elsewhere(monkeypatch, tmp_path, f"{at}-other")
        copy = opened(later=DEAD_SECONDS + 60)
        copy.fetch()
        assert steps(contents(copy.folder)) == there, at
        goes_on(5)
        elsewhere(monkeypatch, tmp_path, f"{at}")
        copy = opened(later=2 * DEAD_SECONDS + 120)
        copy.fetch()
        assert contents(copy.folder) == at_address(), at
        if calls <= at:
            break
        at += 1
    assert at > 20
