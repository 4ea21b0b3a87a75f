"""How much memory this process may have, known before anything is allocated."""

from pathlib import Path

_HOST = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup/memory.max")


def host_memory() -> int | None:
    """Returns the bytes of memory of the host, or of this process's control group (cgroup v2) if that has less.

    The size is the same at each start on a machine, unlike the memory that is free. Memory of accelerators does not
    count. None without /proc.
    """
    try:
        lines = dict(line.split(":") for line in _HOST.read_text().splitlines())
        size = 1024 * int(lines["MemTotal"].split()[0])
    except (OSError, KeyError):
        return None
    try:
        return min(size, int(_GROUP.read_text()))
    except (OSError, ValueError):  # there is no such group, or its limit is 'max'
        return size
