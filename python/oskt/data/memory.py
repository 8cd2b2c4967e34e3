"""How much memory there is for images."""

from __future__ import annotations

import os
from pathlib import Path

_PROC, _CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def free_bytes() -> int:
    """Memory that this process may still take; page cache, which gives way, counts as free.

    On Linux what is left of the machine and, within it, of the control groups (version 2) that a
    container or a batch system sets; elsewhere the machine's unused pages, or 4 GiB if unknown.
    """
    try:
        free = 1024 * _counters(_PROC / "meminfo")["MemAvailable:"]
        group = _CGROUPS / (_PROC / "self/cgroup").read_text().partition("0::/")[2].strip()
    except (OSError, KeyError):
        return _unused_bytes()
    for folder in (group, *group.parents):
        try:
            limit, used = (int((folder / f"memory.{n}").read_text()) for n in ("max", "current"))
            cached = _counters(folder / "memory.stat")["inactive_file"]
        except (OSError, ValueError):  # no group, or "max" for no limit
            continue
        free = min(free, limit - used + cached)
    return free


def _counters(file: Path) -> dict[str, int]:
    """Name -> number, of a file in which the kernel writes one of them a line."""
    lines = map(str.split, file.read_text().splitlines())
    return {name: int(number) for name, number, *_ in lines}


def _unused_bytes() -> int:
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 4 << 30
