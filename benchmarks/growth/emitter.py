"""A process that emits as it is told (see `driver`), and what it answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from collector.servers import ServerError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.cores import Cores

ROOT = Path(__file__).resolve().parents[2]
STOP_SECONDS_MAX = 10


@dataclass(frozen=True)
class Window:
    """Records were emitted for a while, and what became of them."""

    seconds: float
    records: int
    dropped: int
    cpu_s: float
    """Of all threads, until the last of the records was committed or delivered."""
    rss_bytes: int
    queued: int
    """In memory when the while ended."""
    pending: int
    """Of the same moment; what waits in the journal is among them."""


@dataclass(frozen=True)
class Filled:
    """A journal was filled."""

    records: int
    bytes: int


@dataclass(frozen=True)
class Drained:
    """Everything that waited was delivered."""

    records: int
    seconds: float
    cpu_s: float
    rss_peak_bytes: int


class Emitter:
    """The process. As a context manager it runs on the measured core until it is killed at the end."""

    def __init__(self, environ: Mapping[str, str], cores: Cores) -> None:
        """Take its whole environment but for the search path: nothing of the caller's turns audit on."""
        self._cores = cores
        self._environ = {"PATH": os.environ["PATH"], **environ}
        self.began_s = 0.0

    def __enter__(self) -> Self:
        """Start it."""
        self._log = tempfile.TemporaryFile()
        self.began_s = time.monotonic()
        with self._cores.on_server():
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.growth.driver"],
                cwd=ROOT,
                env=self._environ,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                text=True,
            )
        return self

    def __exit__(self, *_: object) -> None:
        """End it as a crash would; its journal is removed with its directory, or adopted."""
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def emit(self, rate: int, seconds: float, *, source: str = "request", delivered: bool = True) -> Window:
        """Emit at a rate for so many seconds."""
        return Window(**self._ask(do="emit", source=source, rate=rate, seconds=seconds, delivered=delivered))

    def fill(self, frames: Path, bytes_min: int) -> Filled:
        """Append so much to its journal."""
        return Filled(**self._ask(do="fill", frames=str(frames), bytes_min=bytes_min))

    def drain(self) -> Drained:
        """Wait until it has delivered everything."""
        return Drained(**self._ask(do="drain"))

    def first(self) -> int:
        """Have a first record committed; return the memory."""
        return int(self._ask(do="first")["rss_bytes"])

    def adopted(self) -> tuple[int, int]:
        """Wait until it has found what a dead process left; return the records and the memory."""
        found = self._ask(do="adopted")
        return int(found["records"]), int(found["rss_bytes"])

    def since_start_s(self) -> float:
        """Return the seconds since it was started."""
        return time.monotonic() - self.began_s

    def _ask(self, **order: object) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise ServerError("the emitter has no pipes")
        try:
            stdin.write(json.dumps(order) + "\n")
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._log.seek(0)
            tail = self._log.read().decode(errors="replace")[-2000:]
            raise ServerError(f"the emitter ended while it was asked to {order['do']}. The end of its log:\n{tail}")
        answer: dict[str, Any] = json.loads(line)
        return answer
