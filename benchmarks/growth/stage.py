"""What runs beside the measured process: a Collector that only archives; and real records, as our journal has them."""

from __future__ import annotations

import json
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.growth.emitter import Emitter
from collector import servers
from tests.integration.gateway import Gateway
from tron_audit_otel.disk_journal import adopt

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from benchmarks.run import Tools
    from tron_audit_otel.journal import Frame

READ_BYTES = 1 << 20


@dataclass(frozen=True)
class Effort:
    """How long is measured: the medians of so many rounds, each of so many seconds."""

    rounds: int
    seconds: float
    backlog_bytes: int


FULL = Effort(rounds=3, seconds=3, backlog_bytes=10**9)
QUICK = Effort(rounds=1, seconds=1, backlog_bytes=64 * 10**6)


@dataclass
class Stage:
    """A directory that is removed at the end, and what is started in it, which is stopped at the end."""

    directory: Path
    stack: ExitStack
    tools: Tools
    _names: list[str] = field(default_factory=list)

    def fresh(self, name: str) -> Path:
        """Make a directory that nobody else has."""
        self._names.append(name)
        made = self.directory / f"{name}-{len(self._names)}"
        made.mkdir()
        return made

    def emitter(self, environ: Mapping[str, str] | None = None) -> Emitter:
        """Describe a process that emits; without an environment, one that does not audit."""
        return Emitter(environ or {}, self.tools.cores)

    def gateway(self) -> Gateway:
        """Describe a Collector that only archives; it runs while it is entered."""
        return Gateway(self.tools.otelcol, self.fresh("collector"), {})

    def audited(self, url: str, journal: Path | None = None, **more: str) -> dict[str, str]:
        """Return the environment of an audited process: our defaults, and a journal of its own."""
        return {
            "AUDIT_LOG_ENABLED": "true",
            "AUDIT_LOG_JOURNAL_DIR": str(journal or self.fresh("journal")),
            "OTEL_SERVICE_NAME": "growth",
            "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": url,
            **more,
        }

    def frames(self, rate: int, seconds: float) -> list[Frame]:
        """Return the frames of a real journal: what requests at this rate leave there while the Collector is dead."""
        journal = self.fresh("journal")
        with self.emitter(self.audited(nowhere(), journal)) as emitter:
            emitter.emit(rate, seconds, delivered=False)
        found: list[Frame] = []
        for left in adopt(journal):
            while (chunk := left.read(READ_BYTES)) is not None:
                found += chunk.frames
                left.acknowledge(chunk)
            left.close()
        if not found:
            raise servers.ServerError("no record has reached the journal")
        return found


def nowhere() -> str:
    """Return the address of a Collector that is dead."""
    return f"http://127.0.0.1:{servers.free_ports(1)[0]}/v1/logs"


def joined(frames: list[Frame], records_min: int) -> list[tuple[bytes, int]]:
    """Join frames until each has so many records: serialized requests one behind the other are one request."""
    made: list[tuple[bytes, int]] = []
    payload, records = b"", 0
    for frame in frames:
        payload, records = payload + frame.payload, records + frame.records
        if records >= records_min:
            made.append((payload, records))
            payload, records = b"", 0
    return made or [(payload, records)]


def write_frames(file: Path, frames: list[tuple[bytes, int]]) -> Path:
    """Write them for `driver.fill`."""
    file.write_text(json.dumps([(payload.hex(), records) for payload, records in frames]), encoding="utf-8")
    return file


@contextmanager
def staged(tools: Tools) -> Iterator[Stage]:
    """Give a stage, and clear it at the end."""
    with (
        tempfile.TemporaryDirectory(dir=tools.scratch, ignore_cleanup_errors=True) as directory,
        ExitStack() as stack,
    ):
        yield Stage(Path(directory), stack, tools)
