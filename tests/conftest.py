"""Every test starts from the same seeds and leaves nothing behind.

Python-only tests stay quick: nothing here imports TensorFlow, it only resets what a test has imported.
"""

import gc
import logging
import os
import random
import resource
import signal
import stat
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "tests" / "benchmarks"
SETTLE_SECONDS = 60.0  # for threads and files that are being closed when a test ends, on a disk that others use

# Set by pytest, or by importing TensorFlow, h5py or tensorflow_model_optimization, which whichever test is first does.
IMPORT_ENVIRONMENT = {
    "ENABLE_RUNTIME_UPTIME_TELEMETRY",
    "HDF5_PLUGIN_PATH",
    "PYTEST_CURRENT_TEST",
    "TF2_BEHAVIOR",
    "TF_USE_LEGACY_KERAS",
    "TPU_ML_PLATFORM",
    "TPU_ML_PLATFORM_VERSION",
}
# Source files are written by people, who may edit while tests run; folders with a dot are caches.
SOURCE_SUFFIXES = {".md", ".py", ".pyc", ".toml"}
SIGNALS = (signal.SIGINT, signal.SIGTERM)
VIRTUAL_DEVICES = 4
COSTLY_SECONDS = 5.0  # of processor time; see tests/README.md
_COSTS: dict[str, float] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--shard=1/4` takes every fourth test of those collected, from the second on: see tests/processes.py."""
    parser.addoption("--shard", default="0/1", help="take a share of the tests, I/N with I from 0")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks the tests of the benchmarks, and leaves the tests of other shards out."""
    for item in items:
        if BENCHMARKS in item.path.parents:
            item.add_marker("benchmarks")
    shard, shards = (int(number) for number in config.getoption("--shard").split("/"))
    config.hook.pytest_deselected(items=[item for place, item in enumerate(items) if place % shards != shard])
    items[:] = items[shard::shards]


def pytest_sessionstart() -> None:
    """Makes `runs`, or it would be what the test left that ends while one of another process tries a folder there."""
    (ROOT / "runs").mkdir(exist_ok=True)


def pytest_collection_finish() -> None:
    """Virtual CPU devices, which stand in for GPUs, can be made only before TensorFlow runs its first op."""
    if "tensorflow" in sys.modules:
        config = sys.modules["tensorflow"].config
        device = config.list_physical_devices("CPU")[0]
        config.set_logical_device_configuration(device, [config.LogicalDeviceConfiguration()] * VIRTUAL_DEVICES)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Measures the processor time of a test, with its fixtures and the processes that it starts and waits for."""
    before = _processor_seconds()
    result = yield
    _COSTS[item.nodeid] = _processor_seconds() - before
    return result


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Names the tests that cost most processor time: unlike their wall time it hardly depends on what else runs."""
    for name, seconds in _COSTS.items():
        if seconds >= COSTLY_SECONDS:
            terminalreporter.write_line(f"COSTLY {seconds:.1f} {name}")


def _processor_seconds() -> float:
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


@pytest.fixture(autouse=True)
def leak_guard() -> Iterator[None]:
    """Fails a test that leaves files, threads, environment, folder or signal handlers behind; puts back what it can."""
    before = {kind: look() for kind, look in PROCESS_STATE.items()}
    paths, threads, opened = repository_files(), running_threads(), open_files()
    yield
    leaks = []
    for kind, look in PROCESS_STATE.items():
        after = look()
        if after != before[kind]:
            leaks.append(f"{kind}: {_difference(before[kind], after)}")
    _restore(before)
    leaks += [f"thread still running: {thread.name}" for thread in _settled(lambda: running_threads() - threads)]
    leaks += [f"file left open: {path}" for path in _settled(lambda: open_files() - opened)]
    # Another worker's run may try at this moment whether its folder can be made.
    leaks += [f"new in the repository: {path}" for path in _settled(lambda: repository_files() - paths)]
    if leaks:
        pytest.fail("the test left behind:\n  " + "\n  ".join(sorted(leaks)), pytrace=False)


@pytest.fixture(autouse=True)
def fresh_state(leak_guard: None) -> Iterator[None]:
    """Seeds Python, NumPy and TensorFlow, resets absl's log level; afterwards resets Keras' dtypes and eager mode."""
    random.seed(0)
    # Whoever saves a SavedModel, a fixture too, leaves WARNING, and a test would miss what its run logs.
    logging.getLogger("absl").setLevel(logging.NOTSET)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "tensorflow" in sys.modules:
        sys.modules["tensorflow"].random.set_seed(0)
    yield
    if "tf_keras" in sys.modules:
        keras = sys.modules["tf_keras"]
        keras.backend.set_floatx("float32")
        keras.mixed_precision.set_global_policy("float32")
    if "tensorflow" in sys.modules and sys.modules["tensorflow"].config.functions_run_eagerly():
        sys.modules["tensorflow"].config.run_functions_eagerly(False)


def repository_files() -> set[str]:
    """Files and folders of the checkout, without sources, caches and what a run under way writes in its own folder."""
    found, folders = set(), ["."]
    while folders:
        folder = folders.pop()
        subfolders, files = _entries(folder)
        found |= subfolders | files
        if folder != "runs":
            folders += subfolders
    return found


_LISTED: dict[str, tuple[int, tuple[set[str], set[str]]]] = {}
_CLOCK_NANOSECONDS = 10**8  # a file system may not tell two changes apart that are closer


def _entries(folder: str) -> tuple[set[str], set[str]]:
    """Subfolders and files of a folder that count; it is listed again only if its time of change is another one."""
    try:
        place = f"{ROOT}/{folder}"  # by itself half the time of this function is that of a path
        changed = os.stat(place).st_mtime_ns
        known, entries = _LISTED.get(folder, (None, (set(), set())))
        if known != changed:
            with os.scandir(place) as scanned:
                listed = [entry for entry in scanned if not entry.name.startswith(".") and entry.name != "__pycache__"]
            subfolders = {entry.name for entry in listed if entry.is_dir(follow_symlinks=False)}
            files = {entry.name for entry in listed} - subfolders
            files = {name for name in files if os.path.splitext(name)[1] not in SOURCE_SUFFIXES}
            entries = _below(folder, subfolders), _below(folder, files)
            if time.time_ns() - changed > _CLOCK_NANOSECONDS:
                _LISTED[folder] = (changed, entries)
        return entries
    except FileNotFoundError:  # removed meanwhile
        return set(), set()


def _below(folder: str, names: set[str]) -> set[str]:
    return {os.path.normpath(f"{folder}/{name}") for name in names}


def running_threads() -> set[threading.Thread]:
    """Threads that would keep the process alive."""
    return {thread for thread in threading.enumerate() if not thread.daemon}


def open_files() -> Counter[str]:
    """Regular files this process has open, with how often; empty where the system does not tell."""
    found: Counter[str] = Counter()
    try:
        descriptors = os.listdir("/proc/self/fd")
    except OSError:
        return found
    for descriptor in descriptors:
        try:
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            is_file = stat.S_ISREG(os.stat(path).st_mode)
        except OSError:  # closed meanwhile, a socket, or a file already deleted
            continue
        if is_file and not path.startswith(("/dev/", "/proc/", "/sys/")):
            found[path] += 1
    return found


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in IMPORT_ENVIRONMENT}


def _working_folder() -> dict[str, str]:
    try:
        return {"cwd": os.getcwd()}
    except FileNotFoundError:
        return {"cwd": "a deleted folder"}


def _signal_handlers() -> dict[str, Any]:
    return {number.name: signal.getsignal(number) for number in SIGNALS}


PROCESS_STATE = {
    "environment changed": _environment,
    "working folder changed": _working_folder,
    "signal handler changed": _signal_handlers,
}


def _difference(before: dict[str, Any], after: dict[str, Any]) -> str:
    """NAME=new (was old), … for the entries that differ."""
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return ", ".join(f"{name}={after.get(name)!r} (was {before.get(name)!r})" for name in changed)


def _restore(before: dict[str, dict[str, Any]]) -> None:
    """One leak must not fail the tests that follow."""
    environment = before["environment changed"]
    for name in _environment().keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)
    folder = before["working folder changed"]
    if _working_folder() != folder:
        os.chdir(folder["cwd"])
    for name, handler in before["signal handler changed"].items():
        if signal.getsignal(signal.Signals[name]) is not handler:
            signal.signal(signal.Signals[name], handler)


def _settled(left: Callable[[], Collection[Any]]) -> list[Any]:
    """What `left()` finds once garbage is collected and closing threads and files had their time."""
    deadline = time.monotonic() + SETTLE_SECONDS
    found = list(left())
    while found and time.monotonic() < deadline:
        gc.collect()
        found = list(left())  # what this look finds counts: a later one may catch a file that is open for a moment
        if found:
            time.sleep(0.05)
    return found
