"""How much memory this process may have, has and could still get, as far as /proc tells; None elsewhere.

Memory of accelerators does not count.
"""

import contextlib
import os
import re
from pathlib import Path

_HOST = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup/memory.max")
_OWN = Path("/proc/self")


def host_memory() -> int | None:
    """Returns the bytes of memory of the host, or of this process's control group (cgroup v2) if that has less.

    The size is the same at each start on a machine, unlike the memory that is free.
    """
    size = _kilobytes(_HOST, "MemTotal")
    limit = _of_group("memory.max")
    return size if size is None or limit is None else min(size, limit)


def free_memory() -> int | None:
    """Returns the bytes that processes may still take before the host, or the control group, has none left.

    The page cache of files counts as free, because the system gives it up.
    """
    free = _kilobytes(_HOST, "MemAvailable")
    limit, used = _of_group("memory.max"), _of_group("memory.current")
    if free is None or limit is None or used is None:
        return free
    cached = _number(_GROUP.with_name("memory.stat"), r"^inactive_file (\d+)$") or 0
    return min(free, max(0, limit - used + cached))


def own_memory() -> int | None:
    """Returns the resident bytes of this process, without files that are mapped, in about 20 microseconds."""
    try:
        _, resident, shared, *_ = (_OWN / "statm").read_text().split()
    except (OSError, ValueError):
        return None
    return os.sysconf("SC_PAGE_SIZE") * (int(resident) - int(shared))  # statm counts pages


def peak_memory() -> int | None:
    """Returns the most bytes that this process had resident, files that are mapped included.

    Unlike `ru_maxrss` of `getrusage`, this does not count what the parent had before it started this process.
    """
    return _kilobytes(_OWN / "status", "VmHWM")


def forget_peak() -> None:
    """Makes `peak_memory` count from now on, for a process that trains one run after the other; see proc(5)."""
    with contextlib.suppress(OSError):
        (_OWN / "clear_refs").write_text("5")


def _of_group(file: str) -> int | None:
    """Returns the number in a file of the control group; None if there is no such group, or no limit ('max')."""
    return _number(_GROUP.with_name(file), r"^(\d+)$")


def _kilobytes(path: Path, name: str) -> int | None:
    kilobytes = _number(path, rf"^{name}:\s*(\d+) kB$")
    return None if kilobytes is None else 1024 * kilobytes


def _number(path: Path, pattern: str) -> int | None:
    try:
        match = re.search(pattern, path.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(match[1]) if match else None
