"""framework/distribute/memory.py: the memory of the machine, or of the control group, and of this process."""

import resource
import sys

import numpy as np
import pytest

from framework.distribute import memory


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """One with 8,000 kB of memory; returns the folder in which its control group has no file yet."""
    (tmp_path / "meminfo").write_text("MemTotal:       8000 kB\nMemFree:   1000 kB\nMemAvailable:   3000 kB\n")
    monkeypatch.setattr(memory, "_HOST", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_GROUP", tmp_path / "memory.max")
    return tmp_path


def test_memory_is_that_of_the_machine(machine):
    assert memory.host_memory() == 8000 * 1024
    (machine / "memory.max").write_text("max\n")
    assert memory.host_memory() == 8000 * 1024


@pytest.mark.parametrize(("most", "size"), [(2**20, 2**20), (2**30, 8000 * 1024)])
def test_memory_is_that_of_the_control_group_if_it_has_less(machine, most, size):
    (machine / "memory.max").write_text(f"{most}\n")
    assert memory.host_memory() == size


def test_memory_where_nothing_tells(machine):
    (machine / "meminfo").unlink()
    assert memory.host_memory() is None
    assert memory.free_memory() is None


def test_free_memory_is_that_of_the_machine_or_of_its_group(machine):
    assert memory.free_memory() == 3000 * 1024
    (machine / "memory.max").write_text("max\n")
    (machine / "memory.current").write_text("500000\n")
    assert memory.free_memory() == 3000 * 1024
    (machine / "memory.max").write_text("2000000\n")
    assert memory.free_memory() == 1500000
    (machine / "memory.stat").write_text("anon 100\ninactive_file 200000\nactive_file 7\n")
    assert memory.free_memory() == 1700000  # the system gives up the cache of files
    (machine / "memory.max").write_text("400000\n")
    (machine / "memory.stat").write_text("anon 100\n")
    assert memory.free_memory() == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_memory_of_this_process(tmp_path):
    size = 64 * 2**20
    before, peak = memory.own_memory(), memory.peak_memory()
    held = np.ones(size, np.uint8)
    assert 0.9 * size < memory.own_memory() - before < 1.2 * size
    assert memory.peak_memory() >= max(peak, before + 0.9 * size)
    assert memory.peak_memory() <= 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1.01
    del held
    assert memory.own_memory() - before < 0.2 * size
    assert memory.peak_memory() >= before + 0.9 * size
    (tmp_path / "file").write_bytes(b"x" * size)
    mapped = np.memmap(tmp_path / "file", np.uint8, "r")
    assert mapped.sum() == size * ord("x")
    assert memory.own_memory() - before < 0.2 * size  # files are not held
