"""CPU time and memory of a process and all it started, from ``/proc``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """CPU seconds, user and system, of the whole tree. Exact to 10 ms for each process."""
    ticks = 0
    for member in tree(pid):
        fields = _stat(member)
        if fields:
            # utime, stime, and those of children that have ended.
            ticks += sum(map(int, fields[11:15]))
    return ticks / TICKS_PER_S


def peak_rss_mb(pid: int) -> list[float]:
    """The peak of each process of the tree, the largest first."""
    peaks: list[float] = []
    for member in tree(pid):
        try:
            status = Path(f"/proc/{member}/status").read_text()
        except OSError:
            continue
        peaks += [int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM")]
    return sorted(peaks, reverse=True)


def rss_mb(pid: int) -> float:
    """What the process itself holds in memory now."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def tree(pid: int) -> Iterator[int]:
    """The process, its children and theirs."""
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*"):
        try:
            children = (task / "children").read_text().split()
        except OSError:
            continue
        for child in children:
            yield from tree(int(child))


def _stat(pid: int) -> list[str]:
    """The fields behind the name, which may itself contain spaces."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
