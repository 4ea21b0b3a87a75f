"""framework/remote/holder.py: one process trains at an address."""

import json
import os

import pytest

from framework.errors import RunError, UserError
from framework.remote import holder
from framework.remote.address import Place
from framework.remote.holder import HOLDER, Holder, told

NOON = 1_795_953_600.0  # 2026-11-29 12:00:00 UTC


class Clock:
    now = NOON

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_a_second_process_is_refused_until_the_first_releases(clock):
    place = Place("memory://run")
    first, second = Holder(place, clock), Holder(place, clock)
    first.take(None)
    clock.now += 60
    with pytest.raises(UserError) as error:
        second.take(None)
    who = f"process {os.getpid()} on {os.uname().nodename}, which trains there since 2026-11-29 12:00:00 UTC"
    assert str(error.value) == (
        f"--workdir=memory://run is in use by {who}. Wait for it, stop it, or use another folder. If it has died, the"
        " same command works in 120 s."
    )
    assert first.is_held and not second.is_held
    first.release()
    assert HOLDER not in place.listing()
    second.take(None)
    second.release()


@pytest.mark.parametrize(("age", "is_refused"), [(179, True), (181, False)])
def test_a_process_that_has_not_renewed_for_three_minutes_is_dead(clock, age, is_refused):
    place = Place("memory://run")
    left = {"process": "1 on host", "started": "then", "token": "x", "renewed": NOON - age}
    place.write(HOLDER, json.dumps(left).encode())
    waits = []
    own = Holder(place, clock, waits.append)
    if is_refused:
        with pytest.raises(UserError, match="in use by process 1 on host"):
            own.take("another token")
        own.take("x")  # that of the last process of this machine
    else:
        own.take(None)
    assert waits == ([] if is_refused else [60.0])
    assert json.loads(place.read(HOLDER))["process"] == f"{os.getpid()} on {os.uname().nodename}"
    own.release()


@pytest.mark.parametrize("ahead", [-300, 300])
def test_a_living_process_whose_clock_differs_is_not_followed(clock, ahead):
    place, other_clock = Place("memory://run"), Clock()
    other_clock.now += ahead
    other = Holder(place, other_clock)
    other.take(None)

    def renewed(seconds):
        other_clock.now += seconds
        other._write(other._now)

    own = Holder(place, clock, renewed)
    with pytest.raises(UserError) as error:
        own.take(None)
    assert str(error.value).endswith(f" Its file, {-ahead} s old by this clock, was renewed just now.")
    assert not own.is_held
    other.check()
    other.release()


def test_a_process_whose_address_was_taken_stops_and_leaves_it(clock):
    place = Place("memory://run")
    first = Holder(place, clock)
    first.take(None)
    first.check()
    place.write(HOLDER, json.dumps({"process": "1 on host", "started": "then", "token": "x"}).encode())
    with pytest.raises(RunError) as error:
        first.check()
    assert str(error.value) == (
        "memory://run was taken by process 1 on host, which trains there since then, so this run stops. Type the same"
        " command again when that one has ended."
    )
    with pytest.raises(RunError):
        first.refuse_taken()
    first.release()
    assert json.loads(place.read(HOLDER))["token"] == "x"


def test_the_file_is_renewed_while_held(clock, monkeypatch):
    monkeypatch.setattr(holder, "RENEWAL_SECONDS", 0.01)
    place = Place("memory://run")
    own = Holder(place, clock)
    own.take(None)
    clock.now += 1000
    while json.loads(place.read(HOLDER) or b"{}").get("renewed") != NOON + 1000:
        pass
    own.release()


@pytest.mark.parametrize("content", [b"", b'{"tok', b"[1]"])
def test_half_a_file_holds_nothing(content):
    place = Place("memory://run")
    place.write(HOLDER, content)
    own = Holder(place)
    own.take(None)
    own.release()


def test_a_copy_tells_who_trains_there(tmp_path, monkeypatch):
    assert told(tmp_path) == ""
    (tmp_path / HOLDER).write_text(json.dumps({"process": "1 on host", "renewed": NOON}))
    for now, expected in ((NOON + 179, "1 on host"), (NOON + 181, "")):
        monkeypatch.setattr("time.time", lambda now=now: now)
        assert told(tmp_path) == expected
    (tmp_path / HOLDER).write_text("[")
    assert told(tmp_path) == ""
