"""framework/distribute/lifeline.py: no process outlives the one that started it, whatever that one dies of."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from framework.distribute import lifeline

ROOT = Path(__file__).resolve().parents[2]
# Says who it is, starts one that sleeps, and sleeps itself.
CHILD = """
import os, subprocess, sys, time
from framework.distribute import lifeline
lifeline.hold()
assert "FRAMEWORK_LIFELINE" not in os.environ
grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(os.getpid(), grandchild.pid, flush=True)
time.sleep(60)
"""
PARENT = f"""
import sys, time
from framework.distribute import lifeline
process = lifeline.Process([sys.executable, "-c", {CHILD!r}])
time.sleep(60)
"""


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def are_gone(pids, seconds=10.0):
    deadline = time.monotonic() + seconds
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not any(map(is_running, pids))


def test_a_killed_parent_takes_along_all_that_its_child_started():
    parent = subprocess.Popen([sys.executable, "-c", PARENT], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with parent:
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 2 and all(map(is_running, pids))
        parent.send_signal(signal.SIGKILL)
        assert are_gone(pids)


def test_a_child_that_starts_after_its_parent_died_ends_at_once():
    """The end of the pipe is there to be read whenever the child comes to it."""
    process = lifeline.Process([sys.executable, "-c", "import time; time.sleep(0.3)\n" + CHILD], cwd=ROOT)
    process.let_go()
    assert process.wait(20) == -signal.SIGKILL


def test_ending_a_child_ends_what_it_started_and_closes_the_pipe():
    before = set(os.listdir("/proc/self/fd"))
    process = lifeline.Process([sys.executable, "-c", CHILD], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    pids = [int(word) for word in process.stdout.readline().split()]
    process.end()
    process.stdout.close()
    assert process.returncode == -signal.SIGKILL and are_gone(pids)
    assert set(os.listdir("/proc/self/fd")) <= before


def test_a_process_that_was_started_otherwise_goes_on(monkeypatch):
    monkeypatch.delenv("FRAMEWORK_LIFELINE", raising=False)
    done = subprocess.run(
        [sys.executable, "-c", "from framework.distribute import lifeline; lifeline.hold()"], cwd=ROOT
    )
    assert done.returncode == 0
