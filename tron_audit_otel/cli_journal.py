"""``tron-audit journal list`` and ``dead-letters``: what lies in the journal, and what nobody takes."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError  # type: ignore[import-untyped] # protobuf ships no annotations
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from tron_audit_otel import transport
from tron_audit_otel.cli_text import EXIT_OK, EXIT_WORK, Answer, count, journal_root, nothing_yet, on_disk, size
from tron_audit_otel.dead_letter import DeadLetters
from tron_audit_otel.errors import ConfigError, JournalError
from tron_audit_otel.journal_dir import inspect
from tron_audit_otel.outbox import DEAD_LETTERS
from tron_audit_otel.transport import Fate

if TYPE_CHECKING:
    from tron_audit_otel.config import AuditConfig
    from tron_audit_otel.dead_letter import Letter


def listed(config: AuditConfig) -> Answer:
    """Lists the streams and their segments.

    Raises:
        ConfigError: There is no journal on disk.
        JournalError: It cannot be read.
    """
    root = journal_root(config)
    if (answer := nothing_yet(root)) is not None:
        return answer
    states = inspect(root)
    streams = [
        {
            "name": state.name,
            "alive": state.alive,
            "ended_by_itself": state.clean,
            "records": state.records,
            "bytes": state.bytes,
            "oldest_at": state.oldest,
            "segments": [
                {"name": name, "bytes": size_bytes, "records": records} for name, size_bytes, records in state.segments
            ],
        }
        for state in states
    ]
    lines = [f"Journal {root}: {count(len(states), 'stream')}"]
    for state in states:
        owner = "alive" if state.alive else "gone"
        lines += ["", f"{state.name}  owner {owner}  {on_disk(state.records, state.bytes, state.oldest)}"]
        lines += [f"  {name}  {size(size_bytes)}  {count(records)}" for name, size_bytes, records in state.segments]
    return Answer(EXIT_OK, {"ok": True, "journal_dir": str(root), "exists": True, "streams": streams}, lines)


def dead_letters(config: AuditConfig) -> Answer:
    """Lists the records that the receiver does not take.

    Raises:
        ConfigError: There is no journal on disk.
        JournalError: It cannot be read.
    """
    letters = _letters(config).letters()
    return _answer(letters, {}, [f"{count(len(letters), 'dead letter')}" + (":" if letters else ".")])


def show(config: AuditConfig, record_id: str) -> Answer:
    """Gives one of them, as OTLP/JSON: a receiver takes it as it is printed.

    Raises:
        ConfigError: There is none with that id, or no journal on disk.
        JournalError: It cannot be read.
    """
    try:
        request = _letters(config).read(record_id).request or b""
    except JournalError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise ConfigError(f"there is no dead letter {record_id!r}; `tron-audit journal dead-letters` lists them") from None
        raise
    try:
        message = ExportLogsServiceRequest.FromString(request)
    except DecodeError:
        raise JournalError(f"dead letter {record_id!r} holds no OTLP request", "disk_failed") from None
    data = MessageToDict(message, use_integers_for_enums=True)
    for record in _log_records(data):
        for name in ("traceId", "spanId"):  # in OTLP/JSON, unlike in protobuf's, these are hexadecimal
            if name in record:
                record[name] = base64.b64decode(record[name]).hex()
    return Answer(EXIT_OK, data, json.dumps(data, indent=2).splitlines())


def retry(config: AuditConfig) -> Answer:
    """Sends each again; removes what is delivered, and keeps the rest with the new reason.

    Raises:
        ConfigError: There is no journal on disk.
        JournalError: It cannot be read.
    """
    letters = _letters(config)
    delivered = 0
    stopped: str | None = None
    with closing(transport.make(config)) as receiver:
        for letter in letters.letters():
            try:
                answer = _sent_again(letters, letter, receiver)
            except JournalError as error:
                stopped = str(error)
