"""An audit event as an OpenTelemetry log record: the only table of attribute names.

Names follow OpenTelemetry's semantic conventions; ``audit.*`` follows the draft Audit Logging signal (OTEP 0267) for
what those lack. ``docs/record.md`` tells what each means and who can write it.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

from opentelemetry._logs import LogRecord, SeverityNumber

from tron_audit_otel.bounds import fit
from tron_audit_otel.event import ERROR_STATUS_MIN, ActorType, EventName, Outcome
from tron_audit_otel.redact import clipped
from tron_audit_otel.resource import encode

if TYPE_CHECKING:
    from opentelemetry.util.types import AnyValue

    from tron_audit_otel.event import Actor, AuditEvent, Execution, Source, System, Text

SCHEMA_VERSION = "1.0"
"""Of the names and meanings below. The first number changes when a search that worked would no longer work."""

SCOPE_NAME = "tron_audit_otel"

RECORD_ID = "audit.record.id"
DURATION = "audit.duration_ms"
RESOURCE = "audit.resource"
TARGET_ID = "audit.target.id"
PATH = "url.path"

SEQUENCE_NUMBER = "audit.sequence.number"
"""Given by the exporter, in the order of export: the one place that sees a stream whole."""

TRUNCATED = "audit.truncated"
"""The attributes that were cut, in a record that would have been longer than RECORD_BYTES_MAX."""

RECORD_BYTES_MAX = 65_536
"""Of a record as OTLP encodes it: what every SIEM takes, and a journal in thousands. Usual ones have 500 bytes."""

NEVER_CUT = frozenset(
    {
        RECORD_ID,
        SEQUENCE_NUMBER,
        "audit.schema.version",
        "audit.actor.id",
        "audit.actor.type",
        "user.email",
        "user.id",
        "audit.action",
        "audit.outcome",
        "http.response.status_code",
        "client.address",
        "network.peer.address",
        "audit.source_ip.rule",
        "audit.source_ip.suspect",
    }
)
"""Who did what, from where, and did it work: each is short by itself, and no record says less for a long command."""

_FLAGS = {
    "process.command_args": "audit.exec.command.truncated",
    "audit.exec.stdout.text": "audit.exec.stdout.truncated",
    "audit.exec.stderr.text": "audit.exec.stderr.truncated",
}
"""What says of an attribute by itself whether it is the whole."""

SENTENCE_CHARACTERS_MAX = 2048
PART_CHARACTERS_MAX = 256
"""Of each part of a sentence that would be longer than that: how it ended stands last."""

_BLANK = re.compile("[ \u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0\U00013441\U00013442\U0001d159]")
"""Printable, as Unicode has it, and nothing to be seen."""

ENDS_CACHED_MAX = 1024
_TIME_NS_MAX = 2**64 - 1
"""The year 2554: OTLP's times have no sign and 64 bits."""

_SEVERITY = {
    Outcome.SUCCESS: SeverityNumber.INFO,
    Outcome.FAILURE: SeverityNumber.WARN,
    Outcome.UNKNOWN: SeverityNumber.WARN,
}


class Kind(NamedTuple):
    """What many records have in common."""

    name: EventName
    action: str
    outcome: Outcome
    target_type: str | None
    error_type: str | None
    method: str | None = None
    route: str | None = None
    status: int | None = None

    @classmethod
    def of(cls, event: AuditEvent) -> Kind:
        """Gives that of an event."""
        name, action, outcome, error_type = event.name, event.action, event.outcome, event.error_type
        if (request := event.request) is None:
            return cls(name, action, outcome, event.resource.type, error_type)
        return cls(
            name, action, outcome, event.resource.type, error_type, request.method, request.route, request.status
        )

    @property
    def severity(self) -> SeverityNumber:
        """Gives the record's severity."""
        if self.status is not None and self.status >= ERROR_STATUS_MIN:
            return SeverityNumber.ERROR
        return _SEVERITY[self.outcome]


def to_log_record(event: AuditEvent, bytes_max: int = RECORD_BYTES_MAX) -> LogRecord:
    """Makes the log record; every value in it is of a type that OTLP can carry, and all of them fit."""
    severity, body = Kind.of(event).severity, sentence(event)
    values, cut = fit(attributes(event), body, bytes_max, NEVER_CUT)
    if cut:
        values[TRUNCATED] = cut
        values |= {flag: True for name, flag in _FLAGS.items() if name in cut}
    return LogRecord(
        timestamp=_time_ns(event.began_ns),
        observed_timestamp=_time_ns(event.began_ns + event.duration_ns),
        context=event.context,
        severity_number=severity,
        severity_text=severity.name,
        body=body,
        attributes=values,
        event_name=str(event.name),
    )


def _time_ns(wall_ns: int) -> int:
    """Gives the nearest time that OTLP has: a clock can say anything."""
    return min(max(wall_ns, 0), _TIME_NS_MAX)


def sentence(event: AuditEvent, *, is_brief: bool = False) -> str:
    """Says it in one line for people: ``alice DELETE instances/abc-123 from 192.0.2.7: success (204)``.

    Who, what and whence are a word each: with spaces in one, it could say a sentence of its own.
    """
    who, source, request, execution = event.actor, event.source, event.request, event.execution
    actor: str = _word(who.id or who.type)
    if who.claimed:
        actor = f"{actor} (claimed {encode(who.claimed)})"
    whence = f" from {_word(source.address)}" if source is not None and source.address else ""
    end = _end(event.outcome, request and request.status, execution and execution.exit_code)
    if (error := event.error_type) is not None:
        end = f"{end[:-1]}, {error})" if end.endswith(")") else f"{end} ({error})"
    said = f"{actor} {event.action} {_word(event.resource.name) or '/'}{whence}: {end}"
    return said if is_brief or len(said) <= SENTENCE_CHARACTERS_MAX else sentence(_brief(event), is_brief=True)


def _word(text: str) -> str:
    return text.replace(" ", "%20") if text.isascii() else _BLANK.sub(lambda found: quote(found[0]), text)


def _brief(event: AuditEvent) -> AuditEvent:
    """Gives an event of which a sentence can be made: its parts stand whole in the attributes."""
    actor, resource, source = event.actor, event.resource, event.source
    return event._replace(
        actor=actor._replace(id=actor.id and clipped(actor.id, PART_CHARACTERS_MAX)),
        action=clipped(event.action, PART_CHARACTERS_MAX),
        resource=resource._replace(name=clipped(resource.name, PART_CHARACTERS_MAX)),
        source=source and source._replace(address=source.address and clipped(source.address, PART_CHARACTERS_MAX)),
        error_type=event.error_type and clipped(event.error_type, PART_CHARACTERS_MAX),
    )


@lru_cache(ENDS_CACHED_MAX)
def _end(outcome: Outcome, status: int | None, exit_code: int | None) -> str:
    exited = f"exit {exit_code}" if exit_code else None
    detail = ", ".join(str(part) for part in (status, exited) if part is not None)
    return f"{outcome} ({detail})" if detail else str(outcome)


def attributes(event: AuditEvent) -> dict[str, AnyValue]:
    """Gives the attributes; what is not known is left out."""
    found = {
        **of_itself(event),
        **of_kind(Kind.of(event)),
        **of_actor(event.actor),
        **of_source(event.source, event.request.user_agent if event.request else None),
        **of_rest(event),
    }
    return {name: value for name, value in found.items() if value is not None}


# Each attribute stands in one of these: what is the same in many records is encoded once.


def of_itself(event: AuditEvent) -> dict[str, AnyValue]:
    """Gives what is different in each record."""
    return {
        RECORD_ID: event.record_id,
        DURATION: event.duration_ns / 1e6,
        RESOURCE: event.resource.name,
        TARGET_ID: event.resource.id,
        PATH: event.request.path if event.request else None,
    }


def of_kind(kind: Kind) -> dict[str, AnyValue]:
    """Gives what a kind of records has in common."""
    return {
        "audit.schema.version": SCHEMA_VERSION,
        "audit.action": str(kind.action),
        "audit.target.type": kind.target_type,
        "audit.outcome": str(kind.outcome),
        "error.type": kind.error_type,
        "http.request.method": kind.method,
        "http.route": kind.route,
        "http.response.status_code": kind.status,
    }


def of_actor(actor: Actor) -> dict[str, AnyValue]:
    """Says who acted."""
    found: dict[str, AnyValue] = {
        "audit.actor.id": actor.id,
        "audit.actor.type": str(actor.type),
        "audit.actor.claimed": actor.claimed,
    }
    if actor.type is ActorType.USER and actor.id:
        found["user.email" if "@" in actor.id else "user.id"] = actor.id
    return found


def of_source(source: Source | None, user_agent: str | None) -> dict[str, AnyValue]:
    """Says where it came from."""
    found: dict[str, AnyValue] = {"user_agent.original": user_agent}
    if source is not None:
        found["client.address"] = source.address
        found["network.peer.address"] = source.peer
        found["audit.source_ip.rule"] = source.rule
        found["audit.source_ip.suspect"] = source.suspect
    return found


def of_rest(event: AuditEvent) -> dict[str, AnyValue]:
    """Gives what few records have."""
    found: dict[str, AnyValue] = {}
    if (request := event.request) is not None:
        if request.method_original is not None:
            found["http.request.method_original"] = request.method_original
        if request.close_code is not None:
            found["audit.websocket.close_code"] = request.close_code
        for name, values in request.headers.items():
            found[f"http.request.header.{name}"] = values
    if event.execution is not None:
        _add_execution(found, event.execution)
    if event.system is not None:
        _add_system(found, event.system)
    return found


def _add_execution(found: dict[str, AnyValue], execution: Execution) -> None:
    found["process.command_args"] = execution.command
    if execution.command_truncated:
        found["audit.exec.command.truncated"] = True
    if execution.command_masked:
        found["audit.exec.command.masked"] = execution.command_masked
    found["container.name"] = execution.container
    found["process.exit.code"] = execution.exit_code
    found["error.message"] = execution.error_message
    _add_text(found, "audit.exec.stdout", execution.stdout)
    _add_text(found, "audit.exec.stderr", execution.stderr)


def _add_system(found: dict[str, AnyValue], system: System) -> None:
    found["audit.system.journal"] = system.journal
    found["audit.system.records"] = system.records
    found["audit.system.reason"] = system.reason
    found["audit.system.clean_stop"] = system.clean_stop
    found["audit.system.commit"] = system.commit
    found["audit.system.on_full"] = system.on_full
    found["audit.system.trusted_proxies"] = system.trusted_proxies
    found["audit.system.proxy_hops"] = system.proxy_hops
    found["audit.system.proxy_header"] = system.proxy_header
    found["audit.policy.sha256"] = system.policy_sha256
    found["audit.policy.previous_sha256"] = system.policy_previous_sha256


def _add_text(found: dict[str, AnyValue], name: str, text: Text | None) -> None:
    if text is None:
        return
    found[f"{name}.text"] = text.head  # not `name` itself, which is a parent: stores of nested fields refuse both
    found[f"{name}.length"] = text.length
    found[f"{name}.truncated"] = text.truncated
    found[f"{name}.sha256"] = text.sha256
    found[f"{name}.hmac_sha256"] = text.hmac_sha256
    if text.masked:
        found[f"{name}.masked"] = text.masked
