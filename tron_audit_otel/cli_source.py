"""The archive's records that a command wants, with how far it is and what there is to say of them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tron_audit_otel import archive, cli_time
from tron_audit_otel.cli_text import count

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

    from tron_audit_otel.cli_stop import Stop
    from tron_audit_otel.cli_text import Progress

SHOW_SECONDS = 0.2
"""Between two changes of the line that tells how it stands."""

LISTED = 10
"""Of anything, in an answer for people."""


class StoppedError(Exception):
    """The signal came while nothing was sent."""


@dataclass
class Source:
    """The wanted records, and what is known of them so far."""

    directory: Path
    span: archive.Span
    wanted: set[str] | None
    progress: Progress
    stop: Stop
    doing: str = "found"
    records: int = 0
    """That were sent, or counted."""
    reading: archive.Reading = field(default_factory=archive.Reading)
    missing: set[str] = field(default_factory=set)
    """Of the ids that were asked for."""
    began_s: float = field(default_factory=time.monotonic)
    is_read: bool = False
    """To its end; before that nobody can say which ids are missing."""
    _percent: float = 0.0
    _due_s: float = 0.0

    def __post_init__(self) -> None:
        """Has found none of the ids yet."""
        self.missing = set(self.wanted or ())

    def requests(self) -> Iterator[ExportLogsServiceRequest]:
        """Gives them; ends early once every id is found."""
        for request in archive.read(self.directory, self.span, self.wanted, self._on_read, self.reading, late=True):
            if self.wanted is not None:
                self.missing -= {archive.record_id(record) for record in archive.log_records(request)}
            yield request
            if self.wanted is not None and not self.missing:
                break
        self.is_read = True

    def show(self, what: str = "") -> None:
        """Says how it stands."""
        elapsed_s = time.monotonic() - self.began_s
        rate = f", {self.records / elapsed_s:,.0f} a second" if self.records and elapsed_s else ""
        read = f"{self._percent:.0f} % of the archive read, {count(self.records)} {self.doing}{rate}"
        self.progress.show(f"{read}; {what}" if what else read)

    def _on_read(self, bytes_read: int, bytes_all: int) -> None:
        if self.stop.is_set():
            raise StoppedError
        self._percent = 100 * bytes_read / bytes_all if bytes_all else 100.0
        if time.monotonic() >= self._due_s:  # a line may take no longer to read than to say so
            self._due_s = time.monotonic() + SHOW_SECONDS
            self.show()

    def data(self) -> dict[str, object]:
        """For ``--json``."""
        reading = self.reading
        return {
            "archive": str(self.directory),
            "since": cli_time.text(self.span.since_ns) if self.span.since_ns else None,
            "until": cli_time.text(self.span.until_ns) if self.span.until_ns < archive.ALWAYS.until_ns else None,
            "files": {name: records for name, records in reading.files.items() if records},
            "files_read": len(reading.files),
            "files_before": reading.passed_over,
            "files_foreign": reading.foreign,
            "files_removed": reading.removed,
            "damaged": reading.damaged_in_all,
            "damaged_at": reading.damaged,
            "torn": reading.torn,
            "repeated": reading.repeated,
            "without_id": reading.without_id,
            "ids_missing": sorted(self.missing) if self.is_read else None,
        }

    def remarks(self) -> list[str]:
        """Says what an operator should know besides."""
        reading = self.reading
        lines = []
        if self.missing and self.is_read:
            lines.append(f"Not in the archive: {count(len(self.missing), 'id')}: {some(sorted(self.missing))}")
        if reading.damaged:
            lines.append(f"Damaged and not to be read: {reading.damaged_in_all:,} times, at {some(reading.damaged)}")
        if reading.removed:
            lines.append(f"Removed before they could be read: {some(reading.removed)}")
        if reading.foreign:
            lines.append(f"Not read, for the Collector gives no such name: {some(reading.foreign)}")
        if reading.torn:
            lines.append(f"Passed over: {count(reading.torn, 'request')} that the Collector did not write whole")
        if reading.without_id:
            lines.append(f"Without an id, so that nobody can tell them apart: {count(reading.without_id)}")
        return lines

    @property
    def is_whole(self) -> bool:
        """Whether all that was asked for could be read."""
        return not (self.missing or self.reading.damaged or self.reading.removed)


def some(names: list[str]) -> str:
    """Gives the first of them."""
    more = f" and {len(names) - LISTED:,} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
