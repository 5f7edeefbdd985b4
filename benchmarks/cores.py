"""Which core serves, which ones make the load: what shares a core with the server would be measured with it."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

from benchmarks.errors import BenchError

if TYPE_CHECKING:
    from collections.abc import Iterator

NICE_LOWEST = 19
_CORES_MIN = 2


@dataclass(frozen=True, slots=True)
class Cores:
    """The server's core, and those of the load generator and the sinks; both empty where no process can be pinned."""

    server: frozenset[int] = frozenset()
    load: frozenset[int] = frozenset()

    @classmethod
    def choose(cls) -> Cores:
        """Takes the first core for the server.

        Raises:
            BenchError: There is only one.
        """
        pinning = hasattr(os, "sched_getaffinity")
        usable = sorted(os.sched_getaffinity(0)) if pinning else list(range(os.cpu_count() or 1))
        if len(usable) < _CORES_MIN:
            raise BenchError(
                "There is only one core for this process. The load generator would take from the server what is to be "
                "measured; at least two cores are needed."
            )
        return cls(frozenset(usable[:1]), frozenset(usable[1:])) if pinning else cls()

    @property
    def load_count(self) -> int:
        """How many cores the load generator and the sinks share."""
        return len(self.load) or os.cpu_count() or 1

    def use_load(self) -> None:
        """Moves this process to the load's cores; what it starts from now on stays there."""
        if self.load:
            os.sched_setaffinity(0, self.load)

    @contextmanager
    def on_server(self) -> Iterator[None]:
        """What is started in this block stays on the server's core, with all its threads."""
        if self.server:
            os.sched_setaffinity(0, self.server)
        try:
            yield
        finally:
            self.use_load()


def lower(pid: int) -> None:
    """Lets a process run only when nobody else wants its cores: a sink must not stand in the load generator's way."""
    for thread in psutil.Process(pid).threads() if psutil.LINUX else ():
        os.setpriority(os.PRIO_PROCESS, thread.id, NICE_LOWEST)  # on Linux each thread has its own
    if not psutil.LINUX:
        psutil.Process(pid).nice(NICE_LOWEST)
