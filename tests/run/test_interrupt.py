"""framework/run/interrupt.py: signals that are requests once."""

import signal
import threading

import pytest

from framework.run import interrupt as module
from framework.run.interrupt import Interrupt

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@pytest.fixture
def handled():
    """Installs handlers that take note, as the surroundings of an Interrupt; puts back what was there."""
    seen = []
    before = {number: signal.signal(number, lambda n, _: seen.append(n)) for number in SIGNALS}
    yield seen
    for number, handler in before.items():
        signal.signal(number, handler)


def handlers():
    return [signal.getsignal(number) for number in SIGNALS]


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_the_first_signal_is_a_request_and_the_second_has_its_old_effect(number, handled, monkeypatch):
    warnings = []
    monkeypatch.setattr(module.logging, "warning", lambda message, *words: warnings.append(message % words))
    outer = handlers()
    with Interrupt() as interrupt:
        assert not interrupt.is_requested
        assert handlers() != outer
        signal.raise_signal(number)
        assert interrupt.is_requested
        assert handled == []
        assert handlers() == outer  # both are back before the work in hand is finished
        signal.raise_signal(number)
        assert handled == [number]
        assert interrupt.is_requested
    assert warnings == [f"{number.name}: finishing the block and saving; once more ends at once"]
    assert handlers() == outer


def test_after_a_request_the_other_signal_too_has_its_old_effect(handled):
    with Interrupt() as interrupt:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    assert interrupt.is_requested
    assert handled == [signal.SIGINT]


def test_the_second_ctrl_c_is_a_keyboard_interrupt():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), Interrupt():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_handlers_come_back_on_exit_also_after_an_exception(handled):
    outer = handlers()
    with Interrupt() as interrupt:
        pass
    assert handlers() == outer
    with pytest.raises(KeyError), Interrupt():
        raise KeyError
    assert handlers() == outer
    assert not interrupt.is_requested
    signal.raise_signal(signal.SIGTERM)
    assert handled == [signal.SIGTERM]
    assert not interrupt.is_requested


def test_interrupts_nest(handled):
    with Interrupt() as outer:
        with Interrupt() as inner:
            signal.raise_signal(signal.SIGTERM)
        assert (inner.is_requested, outer.is_requested) == (True, False)
        signal.raise_signal(signal.SIGTERM)
        assert outer.is_requested
    assert handled == []


def test_in_a_thread_signals_stay_as_they_are(handled):
    outer, seen = handlers(), {}

    def other():
        with Interrupt() as interrupt:
            seen["handlers"] = handlers()
        seen["requested"] = interrupt.is_requested

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert seen == {"handlers": outer, "requested": False}
    assert handlers() == outer
