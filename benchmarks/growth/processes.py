"""What a process took, and what is on disk."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from pathlib import Path


def cpu_s(pid: int) -> float:
    """Return the CPU seconds that all threads of a process have taken."""
    if sys.platform == "linux":
        # clock_getcpuclockid(3), which Python has for threads alone: to the nanosecond, where /proc has 10 ms.
        return time.clock_gettime((~pid << 3) | 2)
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def family(pid: int) -> dict[int, float]:
    """Return the CPU seconds of a process and of each of its descendants, by their ids."""
    process = psutil.Process(pid)
    return {each.pid: cpu_s(each.pid) for each in (process, *process.children(recursive=True))}


def rss_bytes(pid: int | None = None) -> int:
    """Return the memory that a process has; by default this one."""
    return int(psutil.Process(pid).memory_info().rss)


def written_bytes(pid: int) -> int | None:
    """Return what a process has had written to disk; None where the system does not tell."""
    counters = getattr(psutil.Process(pid), "io_counters", None)
    return int(counters().write_bytes) if counters is not None else None


def size_bytes(directory: Path) -> int:
    """Return what the files below a directory hold."""
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())


def file_system(directory: Path) -> str:
    """Return the kind of file system that a directory is on; a disk in memory would make a journal cheap."""
    mounts = [each for each in psutil.disk_partitions(all=True) if directory.is_relative_to(each.mountpoint)]
    return str(max(mounts, key=lambda each: len(each.mountpoint)).fstype) if mounts else ""
