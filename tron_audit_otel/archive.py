"""The Collector's archive files, read back: records by time or by id.

The Collector's ``file`` exporter, with its rotation (`timberjack`), writes one OTLP/JSON request a line into
``audit.jsonl``. A file that is full is closed by renaming it, ``audit-2026-11-24T14-05-06.123-size.jsonl``: the time
of closing in UTC, and why (older Collectors gave no reason). Found in its sources and by running it:

- A line and its line break are two writes. The file may be closed in between: it then ends without one, and the next
  begins with an empty line.
- A kill, or a disk that is full, leaves the beginning of a line, and the next request follows on the same line. It
  was not acknowledged, so its sender has sent it again. Without fsync a crash of the machine may leave zeros.
- `{"resourceLogs":` cannot stand inside a JSON text, whose quotation marks are escaped: each one begins a request.

What is read is what the archive held at the start. A file that is closed meanwhile is read on, whatever its name.
"""

from __future__ import annotations

import gc
import os
import re
import shlex
import stat
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import blake2b
from itertools import pairwise
from typing import TYPE_CHECKING, Any, BinaryIO

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from tron_audit_otel import disk, otlp_json
from tron_audit_otel.errors import ArchiveError
from tron_audit_otel.log_record import RECORD_ID

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator
    from pathlib import Path

CURRENT = "audit.jsonl"

CLOCKS_APART_SECONDS_MAX = 3600
"""A record's time is its sender's, the time in a file's name the Collector's. A file that was closed so long before
the span is not opened; a sender whose clock is ahead by more is not found without a span that begins earlier."""

LINE_BYTES_MAX = 256 * 2**20
"""A longer line is damage. The Collector takes 20 MiB, which JSON makes six times as long at worst."""

DAMAGE_LISTED_MAX = 100
"""A file that is nothing but damage may hold millions."""

_WRITABLE = 0o022
_TOO_LONG = b"too long\n"
_BUFFER_BYTES = 2**20
_NANOSECONDS = 10**9

_CLOSED = re.compile(r"audit-(\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d\.\d{3})(?:-\w+)?\.jsonl", re.ASCII)
_CLOSED_FORMAT = "%Y-%m-%dT%H-%M-%S.%f"
_START = re.compile(rb'\{\s*"resourceLogs"\s*:')
_TIME = re.compile(rb'imeUnixNano"\s*:\s*"?(\d{1,20})')
_ID = re.compile(rb'"audit\.record\.id"\s*,\s*"value"\s*:\s*\{\s*"stringValue"\s*:\s*"([^"\\]*)"')
_ID_NAME = RECORD_ID.encode()
_ID_CHARACTERS_KEPT = 128
"""A longer id, which may have megabytes, is kept as its hash."""
_UUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class Span:
    """From `since_ns` up to but not with `until_ns`, in nanoseconds since 1970."""

    since_ns: int
    until_ns: int

    def __contains__(self, time_ns: int) -> bool:
        """Tells whether it lies within."""
        return self.since_ns <= time_ns < self.until_ns


ALWAYS = Span(0, 2**64)
"""OTLP's timestamps have 64 bits."""


@dataclass(slots=True)
class Reading:
    """What was met while reading."""

    files: dict[str, int] = field(default_factory=dict)
    """Those that were read, and how many records were taken from each."""
    passed_over: int = 0
    """Files that were closed before the span."""
    foreign: list[str] = field(default_factory=list)
    """What else lies in the directory, unread: names that the exporter does not give."""
    removed: list[str] = field(default_factory=list)
    """Files that were removed, or renamed by a Collector that starts, before they could be read."""
    damaged: list[str] = field(default_factory=list)
    """Lines, and records within, that cannot be read, as `file, byte 123`; the first of them. Lines that show no time
    within the span are not looked at."""
    damaged_in_all: int = 0
    torn: int = 0
    """Requests that were not written whole: nobody was told that they were taken."""
    repeated: int = 0
    """Records left out because their id was there before: the sender had to send them again."""
    without_id: int = 0
    """Records without an id, which are taken each time they are met."""


def read(  # noqa: PLR0913 - most may be left out
    directory: Path,
    span: Span,
    wanted: Container[str] | None = None,
    on_read: Callable[[int, int], None] | None = None,
    reading: Reading | None = None,
    *,
    late: bool = False,
) -> Iterator[ExportLogsServiceRequest]:
    """Gives the records, file after file, as one request for each line that has any.

    A record id comes once, however often it is in the archive. Records without an id always come, but for `wanted`.
    In memory are one line at a time (about ten times its size) and the ids that came: some 100 bytes for each that is
    a UUID, as ours are.

    Args:
        directory: Where ``audit.jsonl`` is.
        span: Which records, by their time, or the time they were observed where that is 0.
        wanted: Of these the records with these ids; by default all.
        on_read: Is told after each line how many bytes were read, and how many there are to read.
        reading: Is told what else was met.
        late: Also records from before the span that the archive has after one from within or later: they waited at
            their sender, and came to the Collector after the span had begun. A sender whose clock is ahead makes it
            more than that, by an hour and one file at most.

    Raises:
        ArchiveError: The directory or a file cannot be read, or is a symbolic link; the message names it.
    """
    reader = _Reader(span, wanted, reading or Reading(), late=late)
    with _directory(directory) as descriptor, ExitStack() as stack:
        # First of all: once it is open, its records are in no other file, and its name does not matter.
        current = _open(directory, CURRENT, descriptor)
        if current is not None:
            stack.enter_context(current)
        names = reader.choose(os.listdir(descriptor))  # noqa: PTH208 - of what was opened, whatever its name is now
        sizes = {name: _size(name, descriptor) for name in names}
        held = (CURRENT, current, os.fstat(current.fileno()).st_size) if current is not None else None
        bytes_all = sum(sizes.values()) + (held[2] if held else 0)
        bytes_read = 0
        for name, file, size in _files(directory, descriptor, sizes, held, reader.reading):
            reader.reading.files[name] = 0
            for at, line in _lines(directory / name, file, size):
                yield from reader.requests(name, at, line)
                bytes_read += len(line)
                if on_read is not None:
                    on_read(min(bytes_read, bytes_all), bytes_all)


def log_records(request: ExportLogsServiceRequest) -> Iterator[LogRecord]:
    """Gives its records."""
    for of_resource in request.resource_logs:
        for of_scope in of_resource.scope_logs:
            yield from of_scope.log_records


def record_id(record: LogRecord) -> str:
    """Gives its id, empty when it has none."""
    return next((pair.value.string_value for pair in record.attributes if pair.key == RECORD_ID), "")


def deed(record: LogRecord) -> tuple[str, str]:
    """Gives the actor's id and the action, each empty when there is none."""
    named = {pair.key: pair.value.string_value for pair in record.attributes}
    return named.get("audit.actor.id", ""), named.get("audit.action", "")


def record_time_ns(record: LogRecord) -> int:
    """Gives when it happened, or else when it was observed."""
    return int(record.time_unix_nano or record.observed_time_unix_nano)


@contextmanager
def _directory(path: Path) -> Iterator[int]:
    with ExitStack() as stack:
        try:
            descriptor = stack.enter_context(disk.opened_directory(path))
        except OSError as error:
            raise ArchiveError(f"archive {path} cannot be read: {error.strerror}") from error
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
        if mode & _WRITABLE:
            raise ArchiveError(
                f"archive {path} has mode {mode:04o}, so that others may have written what it holds: see whether they "
                f"have, then chmod 700 {shlex.quote(str(path))}"
            )
        yield descriptor


def _open(directory: Path, name: str, descriptor: int) -> BinaryIO | None:
    try:
        return os.fdopen(disk.open_file(name, os.O_RDONLY, descriptor), "rb", buffering=_BUFFER_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ArchiveError(f"archive file {directory / name} cannot be read: {error.strerror}") from error


def _size(name: str, descriptor: int) -> int:
    try:
        return os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_size
    except OSError:  # it is gone already, and opening it will tell
        return 0


def _files(
    directory: Path,
    descriptor: int,
    sizes: dict[str, int],
    held: tuple[str, BinaryIO, int] | None,
    reading: Reading,
) -> Iterator[tuple[str, BinaryIO, int]]:
    for name, size in sizes.items():
        file = _open(directory, name, descriptor)
        if file is None:
            reading.removed.append(name)
            continue
        with file:
            # The current file itself, if it was closed just now.
            if held is None or not os.path.samestat(os.fstat(file.fileno()), os.fstat(held[1].fileno())):
                yield name, file, size
    if held is not None:
        yield held


def _lines(path: Path, file: BinaryIO, size: int) -> Iterator[tuple[int, bytes]]:
    """Gives the lines that begin within the size, each with where it begins."""
    at = 0
    try:
        while at < size and (line := file.readline(LINE_BYTES_MAX)):
            began, at = at, at + len(line)
            if len(line) == LINE_BYTES_MAX:
                while not line.endswith(b"\n") and (line := file.readline(LINE_BYTES_MAX)):
                    at += len(line)
                line = _TOO_LONG
            yield began, line
    except OSError as error:
        raise ArchiveError(f"archive file {path} cannot be read at byte {at:,}: {error.strerror}") from error


class _Reader:
    """Knows which records are wanted, and which came already."""

    def __init__(self, span: Span, wanted: Container[str] | None, reading: Reading, *, late: bool) -> None:
        self.reading = reading
        self._span = span
        self._late = late
        self._wanted = wanted
        self._seen: set[int | str] = set()

    def choose(self, names: list[str]) -> list[str]:
        """Gives the closed files that may hold records of the span, the oldest first.

        Those closed after the span may all do: a record may come weeks after it happened.
        """
        closed: list[tuple[datetime, str]] = []
        for name in names:
            at = _closed_at(name)
            if at is None:
                self.reading.foreign += [name] if name != CURRENT else []
            elif (at.timestamp() + CLOCKS_APART_SECONDS_MAX) * _NANOSECONDS < self._span.since_ns:
                self.reading.passed_over += 1
            else:
                closed.append((at, name))
        self.reading.foreign.sort()
        return [name for _, name in sorted(closed)]

    def requests(self, name: str, at: int, line: bytes) -> list[ExportLogsServiceRequest]:
        """Gives a line's requests with the wanted records: mostly one or none, more where one was torn."""
        if not self._may_hold(line):
            return []
        pieces = _pieces(line)
        found = []
        for number, piece in enumerate(pieces, 1):
            if not piece.strip(b" \t\r\n\0"):
                continue
            try:
                with _without_garbage():
                    request = self._request(name, at, otlp_json.loads(piece))
            except otlp_json.UNREADABLE:
                if number < len(pieces) or not line.endswith(b"\n"):
                    self.reading.torn += 1
                else:
                    self._damaged(name, at, 1)
                continue
            found += [request] if request is not None else []
        return found

    def _may_hold(self, line: bytes) -> bool:
        """Tells by the text alone, at some GB a second; when in doubt, yes."""
        times = list(map(int, _TIME.findall(line)))
        if self._late and any(time >= self._span.since_ns for time in times):
            self._span, self._late = Span(1, self._span.until_ns), False
        # A record without either time counts as of 1970.
        if times and self._span.since_ns > 0 and not any(time in self._span for time in times):
            return False
        if self._wanted is None:
            return True
        ids = _ID.findall(line)
        is_told = len(ids) == line.count(_ID_NAME)
        return not is_told or any(each.decode("utf-8", "replace") in self._wanted for each in ids)

    def _request(self, name: str, at: int, data: Any) -> ExportLogsServiceRequest | None:  # noqa: ANN401 - JSON
        fresh: set[int | str] = set()
        counts = Reading()
        of_resources: list[Any] = []
        for of_resource in data.get("resourceLogs") or ():
            of_scopes: list[Any] = []
            for of_scope in of_resource.get("scopeLogs") or ():
                taken = [self._taken(each, fresh, counts) for each in of_scope.get("logRecords") or ()]
                records = [each for each in taken if each is not None]
                if records:
                    scope = otlp_json.keywords(of_scope.get("scope") or {}, InstrumentationScope)
                    url = of_scope.get("schemaUrl") or ""
                    of_scopes.append({"scope": scope, "log_records": records, "schema_url": url})
            if of_scopes:
                resource = otlp_json.keywords(of_resource.get("resource") or {}, Resource)
                url = of_resource.get("schemaUrl") or ""
                of_resources.append({"resource": resource, "scope_logs": of_scopes, "schema_url": url})
        request = ExportLogsServiceRequest(resource_logs=of_resources)
        self._seen |= fresh
        self.reading.repeated += counts.repeated
        self.reading.without_id += counts.without_id
        self._damaged(name, at, counts.damaged_in_all)
        self.reading.files[name] += sum(1 for _ in log_records(request))
        return request if of_resources else None

    def _taken(self, record: Any, fresh: set[int | str], counts: Reading) -> dict[str, Any] | None:  # noqa: ANN401 - JSON
        """Gives what makes the record, if it is wanted."""
        try:
            time_ns = int(record.get("timeUnixNano") or 0) or int(record.get("observedTimeUnixNano") or 0)
            if time_ns not in self._span:
                return None
            found = _json_id(record)
            if self._wanted is not None and found not in self._wanted:
                return None
            key = _compact(found)
            if key in self._seen or key in fresh:
                counts.repeated += 1
                return None
            made = otlp_json.keywords(record, LogRecord)
        except otlp_json.UNREADABLE:
            counts.damaged_in_all += 1
            return None
        if found:
            fresh.add(key)
        else:
            counts.without_id += 1
        return made

    def _damaged(self, name: str, at: int, count: int) -> None:
        self.reading.damaged_in_all += count
        if count and len(self.reading.damaged) < DAMAGE_LISTED_MAX:
            self.reading.damaged.append(f"{name}, byte {at:,}")


@contextmanager
def _without_garbage() -> Iterator[None]:
    """Keeps Python from looking for cycles: there are none in JSON, and looking takes as long as reading it."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _closed_at(name: str) -> datetime | None:
    match = _CLOSED.fullmatch(name)
    try:
        return datetime.strptime(match[1], _CLOSED_FORMAT).replace(tzinfo=UTC) if match else None
    except ValueError:  # a thirteenth month
        return None


def _pieces(line: bytes) -> list[bytes]:
    starts = [match.start() for match in _START.finditer(line)]
    return [line[begin:end] for begin, end in pairwise(sorted({0, *starts, len(line)}))]


def _json_id(record: Any) -> str:  # noqa: ANN401 - JSON
    for pair in record.get("attributes") or ():
        if pair.get("key") == RECORD_ID:
            found = (pair.get("value") or {}).get("stringValue")
            return found if isinstance(found, str) else ""
    return ""


def _compact(text: str) -> int | str:
    if _UUID.fullmatch(text):
        return int(text.replace("-", ""), 16)
    return text if len(text) <= _ID_CHARACTERS_KEPT else blake2b(text.encode("utf-8", "surrogatepass")).hexdigest()
