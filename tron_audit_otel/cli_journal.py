"""``tron-audit journal list`` and ``dead-letters``: what lies in the journal, and what nobody takes."""

from __future__ import annotations

import base64
import json
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING, Any

from google.protobuf.json_format import MessageToDict  # type: ignore[import-untyped] # protobuf ships no annotations
from google.protobuf.message import DecodeError  # type: ignore[import-untyped] # as above
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from tron_audit_otel import transport
from tron_audit_otel.answer import Fate
from tron_audit_otel.cli_text import (
    EXIT_OK,
    EXIT_WORK,
    Answer,
    count,
    journal_root,
    nothing_yet,
    on_disk,
    printable,
    size,
)
from tron_audit_otel.dead_letter import DeadLetters
from tron_audit_otel.errors import ConfigError, JournalError
from tron_audit_otel.journal_dir import DEAD_LETTERS, inspect

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tron_audit_otel.answer import Answer as Received
    from tron_audit_otel.answer import Transport
    from tron_audit_otel.config import AuditConfig
    from tron_audit_otel.dead_letter import Letter

ID_CHARACTERS_MAX = 200
"""As many are shown of an id; ours have 36."""


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
    if not letters and (answer := nothing_yet(config.journal_path)) is not None:
        return answer
    return _answer(letters, {}, [])


def show(config: AuditConfig, record_id: str) -> Answer:
    """Gives one of them as OTLP/JSON, as a receiver takes it.

    Raises:
        ConfigError: There is none with that id, or no journal on disk.
        JournalError: It cannot be read.
    """
    letters = _letters(config)
    # An id may hold anything; what the list shows of it is what can be typed.
    found = next((letter.id for letter in letters.letters() if record_id in (letter.id, _shown(letter.id))), None)
    if found is None:
        raise ConfigError(
            f"there is no dead letter {record_id!r}; `tron-audit journal dead-letters` lists what there is"
        )
    try:
        message = ExportLogsServiceRequest.FromString(letters.read(found).request or b"")
    except DecodeError:
        raise JournalError(f"dead letter {record_id!r} holds no OTLP request", "disk_failed") from None
    data = MessageToDict(message, use_integers_for_enums=True)
    for record in _log_records(data):
        for name in {"traceId", "spanId"} & set(record):
            record[name] = base64.b64decode(record[name]).hex()  # so says OTLP/JSON, unlike protobuf's
    return Answer(EXIT_OK, data, json.dumps(data, indent=2).splitlines())


def _log_records(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for of_resource in request.get("resourceLogs", []):
        for of_scope in of_resource.get("scopeLogs", []):
            yield from of_scope.get("logRecords", [])


def retry(config: AuditConfig) -> Answer:
    """Sends each of them again; removes what is delivered, keeps what is refused still, with the new reason.

    Raises:
        ConfigError: There is no journal on disk.
        JournalError: It cannot be read.
    """
    letters = _letters(config)
    waiting = [letter for letter in letters.letters() if letter.is_readable]
    fates: Counter[Fate] = Counter()
    stopped: str | None = None
    with closing(transport.make(config)) as receiver:
        for letter in waiting:
            try:
                answer = _sent_again(letters, letter, receiver)
            except JournalError as error:
                stopped = str(error)
                break
            fates[answer.fate] += 1
            if answer.fate not in (Fate.DELIVERED, Fate.POISON):
                stopped = f"{config.endpoint}: {answer.reason}"
                break
    delivered, refused = fates[Fate.DELIVERED], fates[Fate.POISON]
    lines = [f"Delivered: {delivered:,}. Refused again: {refused:,}."]
    if stopped is not None:
        lines.append(f"Not tried any further: {stopped}")
    return _answer(letters.letters(), {"delivered": delivered, "refused": refused, "stopped": stopped}, lines)


def _sent_again(letters: DeadLetters, letter: Letter, receiver: Transport) -> Received:
    request = letters.read(letter.id).request or b""
    answer = receiver.send(request)
    if answer.fate is Fate.DELIVERED:
        letters.remove(letter.id)
    elif answer.fate is Fate.POISON:
        letters.put(letter.id, request, reason=answer.reason, sentence=letter.sentence)
    return answer


def _letters(config: AuditConfig) -> DeadLetters:
    return DeadLetters(journal_root(config) / DEAD_LETTERS)


def _shown(record_id: str) -> str:
    return printable(record_id, ID_CHARACTERS_MAX)


def _answer(letters: Sequence[Letter], data: dict[str, object], lines: list[str]) -> Answer:
    listed = [
        {
            "id": letter.id,
            "at": letter.at,
            "reason": letter.reason,
            "sentence": letter.sentence,
            "readable": letter.is_readable,
        }
        for letter in letters
    ]
    lines = [*lines, f"{count(len(letters), 'dead letter')}."]
    for letter in letters:
        lines += ["", f"{_shown(letter.id)}  {letter.at}", f"  {letter.reason}", f"  {letter.sentence}"]
    return Answer(EXIT_WORK if letters else EXIT_OK, {"ok": not letters, **data, "dead_letters": listed}, lines)
