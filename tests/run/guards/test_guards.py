"""framework/run/guards/: what a guard says is told once, and a run that goes back is looked at anew."""

import logging
from types import SimpleNamespace

from framework.run import guards, loop
from tests import small


def noisy(words):
    """A kind of guard that says the next word at each block."""

    class Noisy:
        def __init__(self, run, progress):
            self.words = iter(words)

        def look(self, block):
            return next(self.words)

    return Noisy


def said(monkeypatch, caplog, blocks, is_chief=True):
    monkeypatch.setattr(guards, "_OF_EACH_WORKER", (noisy(["", "a", "b"]),))
    monkeypatch.setattr(guards, "_OF_THE_CHIEF", (noisy(["", "", "c 100 %", "d"]),))
    every = guards.Guards(SimpleNamespace(replicas=SimpleNamespace(is_chief=is_chief)), None)
    for segment in blocks:
        every.begin()
        for _ in range(segment):
            every.look(None)
    messages = list(caplog.messages)
    caplog.clear()
    return messages


def test_each_warning_is_told_once(monkeypatch, caplog):
    with caplog.at_level(logging.WARNING, "absl"):
        assert said(monkeypatch, caplog, [4]) == ["a", "c 100 %"]
        assert said(monkeypatch, caplog, [2, 2, 2]) == ["a"]  # each begins anew, and what was told stays told
        assert said(monkeypatch, caplog, [2, 3, 1]) == ["a", "c 100 %"]
        assert said(monkeypatch, caplog, [1, 1, 1]) == []
        assert said(monkeypatch, caplog, [4], is_chief=False) == ["a"]


def test_a_run_that_goes_back_is_looked_at_anew(tmp_path, monkeypatch):
    begins = []
    begin = guards.Guards.begin
    monkeypatch.setattr(guards.Guards, "begin", lambda self: begins.append(1) or begin(self))
    settings = {"train.on_nonfinite": "rewind", "checkpoint.every": "3 steps"}
    result = loop.train(small.build(tmp_path, {(5, 0): small.HOT}, **settings))
    assert (result["status"], len(begins)) == ("finished", 2)
    assert 2**20 < result["peak_memory_bytes"] < 2**40
