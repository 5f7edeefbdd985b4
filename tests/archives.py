"""Archives as the Collector's `file` exporter writes them, for the tests of what reads them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.integration.gateway import encoded

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

BEGIN_NS = 1_790_000_000_000_000_000
"""2026-09-21T14:13:20Z."""
SECOND = 10**9


def uuid(number: int) -> str:
    return f"0198c5b2-0000-7000-8000-{number:012x}"


def record(record_id: str | None, time_ns: int = BEGIN_NS, **fields: Any) -> dict[str, Any]:
    """A log record as OTLP/JSON; `id` None is one without."""
    attributes = {} if record_id is None else {"audit.record.id": record_id}
    attributes |= {"audit.actor.id": "alice", "audit.action": "DELETE"}
    times = {"timeUnixNano": str(time_ns)} if time_ns else {}
    return {**times, "body": {"stringValue": f"alice deleted {record_id}"}, "attributes": encoded(attributes), **fields}


def line(*records: dict[str, Any], service: str = "api", end: bytes = b"\n") -> bytes:
    """A request as the exporter writes it."""
    resource = {"attributes": encoded({"service.name": service})}
    scopes = [{"scope": {"name": "tron_audit_otel"}, "logRecords": list(records)}]
    data = {"resourceLogs": [{"resource": resource, "scopeLogs": scopes}]}
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False).encode() + end


def lines(numbers: Iterable[int], time_ns: int = BEGIN_NS, step_ns: int = SECOND) -> bytes:
    """A request for each number, with one record, its id of it."""
    return b"".join(line(record(uuid(number), time_ns + number * step_ns)) for number in numbers)


def closed(at: str, reason: str = "-size") -> str:
    """The name of a file that was closed then."""
    return f"audit-{at}{reason}.jsonl"


def write(directory: Path, **files: bytes) -> Path:
    """Makes the archive; `current` is the file that is being written."""
    directory.mkdir(exist_ok=True)
    for name, content in files.items():
        (directory / ("audit.jsonl" if name == "current" else name)).write_bytes(content)
    return directory
