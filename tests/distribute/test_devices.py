"""framework/distribute/devices.py: the run header, and signals that are requests once."""

import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import threading

import pytest
import tensorflow as tf

from framework.config import UserError, base_config
from framework.distribute import devices
from framework.distribute.devices import Interrupt

SIGNALS = (signal.SIGTERM, signal.SIGINT)


def test_environment_has_what_someone_needs(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["launch.py", "--config=experiments/a b.py", "--seed=3"])
    header = devices.environment()
    assert list(header) == ["command", "python", "packages", "platform", "cpu", "cores", "devices", "git"]
    program, *arguments = shlex.split(header["command"])
    assert program.startswith("python")
    assert arguments == ["launch.py", "--config=experiments/a b.py", "--seed=3"]
    assert header["python"] == platform.python_version()
    assert header["packages"]["tensorflow"] == tf.__version__
    assert set(header["packages"]) >= {"tf-keras", "numpy", "ml-collections", "ai-edge-litert"}
    assert 1 <= header["cores"] <= os.cpu_count()
    assert any(device.startswith("CPU: ") for device in header["devices"])
    assert header["cpu"]
    assert header["git"].keys() == {"commit", "dirty"}


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """One with 8,000 kB of memory; returns the folder in which its control group has no file yet."""
    (tmp_path / "meminfo").write_text("MemTotal:       8000 kB\nMemFree:   1000 kB\nMemAvailable:   3000 kB\n")
    monkeypatch.setattr(devices, "_MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(devices, "_GROUP", tmp_path / "memory.max")
    return tmp_path


def test_memory_is_that_of_the_machine(machine):
    assert devices.memory() == 8000 * 1024
    (machine / "memory.max").write_text("max\n")
    assert devices.memory() == 8000 * 1024


@pytest.mark.parametrize(("most", "size"), [(2**20, 2**20), (2**30, 8000 * 1024)])
def test_memory_is_that_of_the_control_group_if_it_has_less(machine, most, size):
    (machine / "memory.max").write_text(f"{most}\n")
    assert devices.memory() == size


def test_memory_where_nothing_tells(machine):
    (machine / "meminfo").unlink()
    assert devices.memory() is None


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository of one commit in which the framework seems to lie; returns a function that runs git in it."""
    (tmp_path / "framework" / "distribute").mkdir(parents=True)
    file = tmp_path / "framework" / "distribute" / "devices.py"
    file.write_text("")
    monkeypatch.setattr(devices, "__file__", str(file))
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))

    def git(*arguments):
        who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        return subprocess.check_output(["git", "-C", str(tmp_path), *who, *arguments], text=True).strip()

    return git


def test_git_commit_outside_a_checkout(checkout):
    assert devices.git_commit() == {"commit": "", "dirty": False}


def test_git_commit_of_a_checkout_and_whether_it_is_dirty(checkout, tmp_path):
    checkout("init", "-q")
    checkout("add", ".")
    checkout("commit", "-q", "-m", "one")
    found = devices.git_commit()
    assert re.fullmatch("[0-9a-f]{40}", found["commit"])
    assert found == {"commit": checkout("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "framework" / "runtime.py").write_text("# changed\n")
    assert devices.git_commit() == {**found, "dirty": True}


@pytest.mark.parametrize("failure", [FileNotFoundError("git"), subprocess.TimeoutExpired("git", 10)])
def test_git_commit_where_git_does_not_answer(monkeypatch, failure):
    def run(*_, **__):
        raise failure

    monkeypatch.setattr(devices.subprocess, "run", run)
    assert devices.git_commit() == {"commit": "", "dirty": False}


# ---- setup


def make_config(**values):
    config = base_config()
    for key, value in values.items():
        config.runtime[key] = value
    return config


def in_a_new_process(code):
    """Output of Python code in a process of its own: TensorFlow's settings cannot be taken back."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=os.getcwd())
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()


def test_setup_fixes_threads_and_determinism_for_the_process():
    code = f"""
import sys
sys.path.insert(0, {str(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(devices.__file__)))))!r})
import tensorflow as tf
from framework import compat
from framework.distribute import devices
from framework.config import UserError, base_config
config = base_config()
config.runtime.threads = 1
config.runtime.deterministic = False
devices.setup(config)
print(tf.config.threading.get_intra_op_parallelism_threads(), compat.is_deterministic())
config.runtime.deterministic = True
tf.constant(1) + 1
devices.setup(config)
devices.setup(config)
print(tf.config.threading.get_intra_op_parallelism_threads(), compat.is_deterministic())
for key, value in (('deterministic', False), ('threads', 2)):
    other = base_config()
    other.runtime.threads = 1
    other.runtime[key] = value
    try:
        devices.setup(other)
    except UserError as error:
        print(error)
"""
    assert in_a_new_process(code) == [
        "1 False",
        "1 True",
        "runtime.deterministic=False, but an earlier run of this process turned determinism on for good."
        " Start a new process or use --config.runtime.deterministic=True.",
        "runtime.threads=2 cannot be set: TensorFlow already runs in this process with 1. Start a new process.",
    ]


def test_threads_that_come_too_late_say_so():
    tf.constant(1) + 1
    running = tf.config.threading.get_intra_op_parallelism_threads()
    with pytest.raises(UserError) as error:
        devices.setup(make_config(threads=running + 3))
    assert str(error.value) == (
        f"runtime.threads={running + 3} cannot be set: TensorFlow already runs in this process with {running}."
        " Start a new process."
    )


# ---- Interrupt


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
    monkeypatch.setattr(devices.logging, "warning", lambda message, *words: warnings.append(message % words))
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
