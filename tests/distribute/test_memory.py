"""framework/distribute/memory.py: the memory of the machine, or of the control group."""

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
