"""tests/benchmarks/serving_load.py: an open loop on servers whose times are known."""

import threading
import time

import numpy as np
import pytest

from tests.benchmarks.serving_load import arrivals, open_loop

pytestmark = pytest.mark.benchmarks


def test_moments_have_the_rate_and_exponential_pauses():
    due = arrivals(100.0, 50.0)
    assert len(due) == 5000 and due[-1] == pytest.approx(50.0) and np.all(np.diff(due) > 0)
    pauses = np.diff(due)
    # Of an exponential distribution the standard deviation is the mean, and the median ln 2 times it.
    assert pauses.std() == pytest.approx(0.01, rel=0.05) and np.median(pauses) == pytest.approx(
        0.01 * np.log(2), rel=0.05
    )


def test_each_answer_of_a_server_that_keeps_up_takes_its_time():
    def send(done):
        threading.Timer(0.1, done, [True]).start()

    load = open_loop(send, np.arange(1, 41) / 40)
    assert load.failed == 0 and len(load.seconds) == 40 and load.answered == pytest.approx(40.0)
    assert 0.1 <= np.median(load.seconds) < 0.15


def test_the_queue_of_a_server_that_is_too_slow_is_in_the_times():
    """One answer each 50 ms, a request each 25 ms: the nth waits for n * 25 ms, which a closed loop would not see."""
    waiting, free = threading.Semaphore(0), []

    def serve():
        while waiting.acquire(timeout=2):
            time.sleep(0.05)
            free.pop(0)(True)

    def send(done):
        free.append(done)
        waiting.release()

    server = threading.Thread(target=serve)
    server.start()
    load = open_loop(send, np.arange(1, 41) * 0.025)
    server.join()
    np.testing.assert_allclose(load.seconds, 0.05 + np.arange(40) * 0.025, atol=0.15)
    assert load.seconds[-1] > 0.95


def test_failures_are_counted_and_have_no_time():
    succeeds = iter([True, False, False, True])
    load = open_loop(lambda done: done(next(succeeds)), np.arange(1, 5) / 100)
    assert load.failed == 2 and len(load.seconds) == 2
