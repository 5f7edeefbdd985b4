"""An audit event as an OpenTelemetry log record: the only table of attribute names.

Names follow OpenTelemetry's semantic conventions; ``audit.*`` follows the draft Audit Logging signal (OTEP 0267) for
what those lack. ``docs/record.md`` tells what each means and who can write it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry._logs import LogRecord, SeverityNumber

from tron_audit_otel.event import ERROR_STATUS_MIN, ActorType, Outcome
from tron_audit_otel.resource import encode

if TYPE_CHECKING:
    from opentelemetry.util.types import AnyValue

    from tron_audit_otel.event import Actor, AuditEvent, Execution, Request, System, Text

SCHEMA_VERSION = "1.0"
"""Of the names and meanings below. The first number changes when a search that worked would no longer work."""

SCOPE_NAME = "tron_audit_otel"

RECORD_ID = "audit.record.id"

SEQUENCE_NUMBER = "audit.sequence.number"
"""Given by the exporter, in the order of export: the one place that sees a stream whole."""

TRUNCATED = "audit.truncated"
"""Given by the encoder to a record that is longer than a request may be."""

_SEVERITY = {
    Outcome.SUCCESS: SeverityNumber.INFO,
    Outcome.FAILURE: SeverityNumber.WARN,
    Outcome.UNKNOWN: SeverityNumber.WARN,
}


def to_log_record(event: AuditEvent) -> LogRecord:
    """Makes the log record; every value in it is of a type that OTLP can carry."""
    severity = _severity(event)
    return LogRecord(
        timestamp=event.began_ns,
        observed_timestamp=event.began_ns + event.duration_ns,
        context=event.context,
        severity_number=severity,
        severity_text=severity.name,
        body=sentence(event),
        attributes=attributes(event),
        event_name=str(event.name),
    )


def _severity(event: AuditEvent) -> SeverityNumber:
    status = event.request.status if event.request else None
    if status is not None and status >= ERROR_STATUS_MIN:
        return SeverityNumber.ERROR
    return _SEVERITY[event.outcome]


def sentence(event: AuditEvent) -> str:
    """Says it in one line for people: ``alice DELETE instances/abc-123 from 192.0.2.7: success (204)``."""
    actor = event.actor.id or event.actor.type
    if event.actor.claimed:
        # Encoded: with spaces in it, a client could write a second sentence into this one.
        actor = f"{actor} (claimed {encode(event.actor.claimed)})"
    source = f" from {event.source.address}" if event.source and event.source.address else ""
    status = event.request.status if event.request else None
    exit_code = event.execution.exit_code if event.execution else None
    exited = f"exit {exit_code}" if exit_code else None
    detail = ", ".join(str(part) for part in (status, exited, event.error_type) if part is not None)
    end = f"{event.outcome} ({detail})" if detail else str(event.outcome)
    return f"{actor} {event.action} {event.resource.name or '/'}{source}: {end}"


def attributes(event: AuditEvent) -> dict[str, AnyValue]:
    """Gives the attributes; what is not known is left out."""
    found: dict[str, AnyValue] = {
        RECORD_ID: event.record_id,
        "audit.schema.version": SCHEMA_VERSION,
        "audit.action": str(event.action),
        "audit.resource": event.resource.name,
        "audit.target.type": event.resource.type,
        "audit.target.id": event.resource.id,
        "audit.outcome": str(event.outcome),
        "audit.duration_ms": event.duration_ns / 1e6,
        "error.type": event.error_type,
    }
    _add_actor(found, event.actor)
    if event.source is not None:
        found["client.address"] = event.source.address
        found["network.peer.address"] = event.source.peer
        found["audit.source_ip.rule"] = event.source.rule
        found["audit.source_ip.suspect"] = event.source.suspect
    if event.request is not None:
        _add_request(found, event.request)
    if event.execution is not None:
        _add_execution(found, event.execution)
    if event.system is not None:
        _add_system(found, event.system)
    return {name: value for name, value in found.items() if value is not None}


def _add_actor(found: dict[str, AnyValue], actor: Actor) -> None:
    found["audit.actor.id"] = actor.id
    found["audit.actor.type"] = str(actor.type)
    found["audit.actor.claimed"] = actor.claimed
    if actor.type is ActorType.USER and actor.id:
        found["user.email" if "@" in actor.id else "user.id"] = actor.id


def _add_request(found: dict[str, AnyValue], request: Request) -> None:
    found["http.request.method"] = request.method
    found["http.request.method_original"] = request.method_original
    found["http.route"] = request.route
    found["url.path"] = request.path
    found["http.response.status_code"] = request.status
    found["user_agent.original"] = request.user_agent
    found["audit.websocket.close_code"] = request.close_code
    for name, values in request.headers.items():
        found[f"http.request.header.{name}"] = values


def _add_execution(found: dict[str, AnyValue], execution: Execution) -> None:
    found["process.command_args"] = execution.command
    if execution.command_truncated:
        found["audit.exec.command.truncated"] = True
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
    found["audit.policy.sha256"] = system.policy_sha256
    found["audit.policy.previous_sha256"] = system.policy_previous_sha256


def _add_text(found: dict[str, AnyValue], name: str, text: Text | None) -> None:
    if text is None:
        return
    found[f"{name}.text"] = text.head  # not `name` itself, which is a parent: stores of nested fields refuse both
    found[f"{name}.length"] = text.length
    found[f"{name}.truncated"] = text.truncated
    found[f"{name}.sha256"] = text.sha256
