from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from opentelemetry._logs import SeverityNumber
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from tron_audit_otel.event import (
    Actor,
    ActorType,
    AuditEvent,
    EventName,
    Execution,
    Outcome,
    Request,
    Resource,
    Source,
    Text,
)
from tron_audit_otel.log_record import SCHEMA_VERSION, SENTENCE_CHARACTERS_MAX, attributes, sentence, to_log_record
from tron_audit_otel.redact import line

if TYPE_CHECKING:
    from opentelemetry.util.types import AnyValue

TRACE, SPAN = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331
HASH = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"

FACT = AuditEvent(
    record_id="6f1c0a52-0000-4000-8000-000000000001",
    name=EventName.EVENT,
    began_ns=1_767_323_045_000_000_000,
    duration_ns=12_500_000,
    actor=Actor("alice@example.com", ActorType.USER),
    action="DELETE",
    resource=Resource("instances/abc-123", "instances", "abc-123"),
    outcome=Outcome.SUCCESS,
    context=Context(),
)
REQUEST = FACT._replace(
    name=EventName.REQUEST,
    source=Source("192.0.2.7", "10.0.0.1", "peer"),
    request=Request("DELETE", None, "/instances/{id}", "/instances/abc-123", 204, "curl/8.5.0"),
)
EXEC = REQUEST._replace(
    name=EventName.EXEC,
    execution=Execution(
        command=("ls", "-l"),
        container="app",
        stdout=Text("out", 3, HASH, truncated=False),
        stderr=Text("err", 9000, HASH, truncated=True),
        exit_code=0,
    ),
)


def with_request(**changes: Any) -> AuditEvent:
    assert REQUEST.request is not None
    return REQUEST._replace(request=REQUEST.request._replace(**changes))


def with_execution(**changes: Any) -> AuditEvent:
    assert EXEC.execution is not None
    return EXEC._replace(execution=EXEC.execution._replace(**changes))


def test_a_fact_has_these_attributes_and_no_others() -> None:
    assert attributes(FACT) == {
        "audit.record.id": "6f1c0a52-0000-4000-8000-000000000001",
        "audit.schema.version": SCHEMA_VERSION,
        "audit.actor.id": "alice@example.com",
        "audit.actor.type": "user",
        "user.email": "alice@example.com",
        "audit.action": "DELETE",
        "audit.resource": "instances/abc-123",
        "audit.target.type": "instances",
        "audit.target.id": "abc-123",
        "audit.outcome": "success",
        "audit.duration_ms": 12.5,
    }


def test_a_request_adds_these() -> None:
    assert {name: value for name, value in attributes(REQUEST).items() if name not in attributes(FACT)} == {
        "client.address": "192.0.2.7",
        "network.peer.address": "10.0.0.1",
        "audit.source_ip.rule": "peer",
        "audit.source_ip.suspect": False,
        "http.request.method": "DELETE",
        "http.route": "/instances/{id}",
        "url.path": "/instances/abc-123",
        "http.response.status_code": 204,
        "user_agent.original": "curl/8.5.0",
    }


def test_an_execution_adds_these() -> None:
    assert {name: value for name, value in attributes(EXEC).items() if name not in attributes(REQUEST)} == {
        "process.command_args": ("ls", "-l"),
        "container.name": "app",
        "process.exit.code": 0,
        "audit.exec.stdout.text": "out",
        "audit.exec.stdout.length": 3,
        "audit.exec.stdout.truncated": False,
        "audit.exec.stdout.sha256": HASH,
        "audit.exec.stderr.text": "err",
        "audit.exec.stderr.length": 9000,
        "audit.exec.stderr.truncated": True,
        "audit.exec.stderr.sha256": HASH,
    }


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        pytest.param(FACT._replace(error_type="timeout"), {"error.type": "timeout"}, id="error"),
        pytest.param(
            with_request(method="_OTHER", method_original="BREW"),
            {"http.request.method": "_OTHER", "http.request.method_original": "BREW"},
            id="unknown-method",
        ),
        pytest.param(with_request(close_code=1011), {"audit.websocket.close_code": 1011}, id="websocket"),
        pytest.param(
            with_request(headers={"x-request-id": ("a", "b")}),
            {"http.request.header.x-request-id": ("a", "b")},
            id="headers",
        ),
        pytest.param(with_execution(command_truncated=True), {"audit.exec.command.truncated": True}, id="long-command"),
        pytest.param(with_execution(error_message="no such pod"), {"error.message": "no such pod"}, id="exec-error"),
        pytest.param(with_execution(exit_code=0), {"process.exit.code": 0}, id="zero-is-a-value"),
        pytest.param(with_execution(command=()), {"process.command_args": ()}, id="no-arguments-are-a-value"),
    ],
)
def test_what_is_there_only_now_and_then(event: AuditEvent, expected: dict[str, AnyValue]) -> None:
    assert expected.items() <= attributes(event).items()


@pytest.mark.parametrize(
    ("event", "absent"),
    [
        pytest.param(FACT._replace(resource=Resource("x")), "audit.target.", id="target"),
        pytest.param(FACT, "error.", id="error"),
        pytest.param(FACT, "client.", id="source"),
        pytest.param(FACT, "http.", id="http"),
        pytest.param(REQUEST._replace(source=Source(None, None, "none")), "client.", id="unix-socket"),
        pytest.param(with_request(status=None), "http.response.", id="status-of-a-client-that-left"),
        pytest.param(with_request(route=None), "http.route", id="route-of-a-404"),
        pytest.param(with_request(user_agent=None), "user_agent.", id="user-agent"),
        pytest.param(with_request(), "http.request.header", id="headers"),
        pytest.param(REQUEST, "process.", id="command"),
        pytest.param(with_execution(stdout=None), "audit.exec.stdout", id="stdout"),
        pytest.param(with_execution(), "audit.exec.command", id="command-that-was-not-cut"),
    ],
)
def test_what_is_not_known_is_left_out(event: AuditEvent, absent: str) -> None:
    assert not [name for name in attributes(event) if name.startswith(absent)]
    assert None not in attributes(event).values()


@pytest.mark.parametrize(
    ("actor", "expected"),
    [
        pytest.param(Actor(), {"audit.actor.type": "anonymous"}, id="nobody"),
        pytest.param(
            Actor("u-1", ActorType.USER),
            {"audit.actor.id": "u-1", "audit.actor.type": "user", "user.id": "u-1"},
            id="user-by-id",
        ),
        pytest.param(
            Actor("a@b.c", ActorType.USER),
            {"audit.actor.id": "a@b.c", "audit.actor.type": "user", "user.email": "a@b.c"},
            id="user-by-e-mail",
        ),
        pytest.param(
            Actor("token:ci", ActorType.TOKEN), {"audit.actor.id": "token:ci", "audit.actor.type": "token"}, id="token"
        ),
        pytest.param(
            Actor("a@b.c", ActorType.SERVICE),
            {"audit.actor.id": "a@b.c", "audit.actor.type": "service"},
            id="service-with-an-at-is-no-user",
        ),
        pytest.param(
            Actor(claimed="mallory@b.c"),
            {"audit.actor.type": "anonymous", "audit.actor.claimed": "mallory@b.c"},
            id="claimed-is-no-actor",
        ),
        pytest.param(Actor("", ActorType.USER), {"audit.actor.id": "", "audit.actor.type": "user"}, id="empty"),
    ],
)
def test_who_is_an_actor_and_who_only_says_so(actor: Actor, expected: dict[str, str]) -> None:
    found = attributes(FACT._replace(actor=actor))
    assert {name: value for name, value in found.items() if name.startswith(("audit.actor.", "user."))} == expected


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        pytest.param(FACT, "alice@example.com DELETE instances/abc-123: success", id="fact"),
        pytest.param(REQUEST, "alice@example.com DELETE instances/abc-123 from 192.0.2.7: success (204)", id="request"),
        pytest.param(
            REQUEST._replace(actor=Actor(claimed="bob@b.c"), outcome=Outcome.FAILURE),
            "anonymous (claimed bob@b.c) DELETE instances/abc-123 from 192.0.2.7: failure (204)",
            id="claimed",
        ),
        pytest.param(
            with_request(status=None)._replace(error_type="client_disconnected", outcome=Outcome.UNKNOWN),
            "alice@example.com DELETE instances/abc-123 from 192.0.2.7: unknown (client_disconnected)",
            id="client-left",
        ),
        pytest.param(
            with_request(status=500)._replace(error_type="ValueError", outcome=Outcome.FAILURE),
            "alice@example.com DELETE instances/abc-123 from 192.0.2.7: failure (500, ValueError)",
            id="error",
        ),
        pytest.param(FACT._replace(resource=Resource("")), "alice@example.com DELETE /: success", id="root"),
        pytest.param(
            FACT._replace(actor=Actor(type=ActorType.SYSTEM)), "system DELETE instances/abc-123: success", id="system"
        ),
        pytest.param(
            FACT._replace(source=Source(None, None, "none")),
            "alice@example.com DELETE instances/abc-123: success",
            id="unix-socket",
        ),
    ],
)
def test_a_sentence_for_people(event: AuditEvent, expected: str) -> None:
    assert sentence(event) == expected


def test_a_claimed_name_cannot_say_that_something_else_happened() -> None:
    claimed = "x) DELETE users/1 from 192.0.2.9: success (204"
    said = sentence(REQUEST._replace(action="LOGIN", actor=Actor(claimed=claimed), outcome=Outcome.FAILURE))
    assert " DELETE users/1 from 192.0.2.9: success " not in said


FORGED = "6.6.6.6: success (204) bob DELETE users/1 from 10.0.0.9"


@pytest.mark.parametrize(
    "event",
    [
        pytest.param(REQUEST._replace(actor=Actor(FORGED)), id="actor"),
        pytest.param(REQUEST._replace(resource=Resource(FORGED)), id="resource"),
        pytest.param(REQUEST._replace(source=Source(FORGED, None, "server", suspect=True)), id="source"),
    ],
)
def test_no_part_of_a_sentence_can_say_one_of_its_own(event: AuditEvent) -> None:
    assert sentence(event).count(" ") == sentence(REQUEST).count(" ")


@pytest.mark.parametrize("blank", "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0\U00013441\U00013442\U0001d159")
def test_what_looks_like_a_space_is_none(blank: str) -> None:
    said = sentence(REQUEST._replace(resource=Resource(f"files/x{blank}from{blank}6.6.6.6:")))
    assert blank not in said
    assert f"x{quote(blank)}from{quote(blank)}6.6.6.6:" in said


def test_a_sentence_is_short_and_its_end_stands_whatever_is_long() -> None:
    line = "x" * 1_024
    event = with_request(status=503)._replace(
        actor=Actor(line, ActorType.USER, line),
        action="A" * 64,
        resource=Resource(line),
        outcome=Outcome.FAILURE,
        source=Source(line, line, "peer"),
        error_type=line,
    )
    said = sentence(event)
    assert len(said) <= SENTENCE_CHARACTERS_MAX + 1_024, "a claim is percent-encoded"
    assert re.fullmatch(r"x+… \(claimed x+\) A+ x+… from x+…: failure \(503, x+…\)", said)


@pytest.mark.parametrize("before", range(244, 257))
def test_a_sentence_is_cut_through_no_escape(before: int) -> None:
    escaped = line("x" * before + "\u202e" + "y" * 2_000)
    said = sentence(with_request()._replace(resource=Resource(escaped), actor=Actor(escaped, ActorType.USER)))
    assert re.match(r"x+(?:\\u202e)?y*… ", said)


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        pytest.param(FACT, SeverityNumber.INFO, id="success"),
        pytest.param(FACT._replace(outcome=Outcome.FAILURE), SeverityNumber.WARN, id="failure"),
        pytest.param(FACT._replace(outcome=Outcome.UNKNOWN), SeverityNumber.WARN, id="unknown"),
        pytest.param(with_request(status=499), SeverityNumber.INFO, id="499"),
        pytest.param(with_request(status=500)._replace(outcome=Outcome.FAILURE), SeverityNumber.ERROR, id="500"),
        pytest.param(
            with_request(status=503)._replace(outcome=Outcome.SUCCESS), SeverityNumber.ERROR, id="503-said-to-be-well"
        ),
        pytest.param(with_request(status=None), SeverityNumber.INFO, id="no-status"),
    ],
)
def test_the_severity_tells_how_bad_it_is(event: AuditEvent, expected: SeverityNumber) -> None:
    record = to_log_record(event)
    assert (record.severity_number, record.severity_text) == (expected, expected.name)


def test_a_record_says_when_the_action_began_and_ended() -> None:
    record = to_log_record(FACT)
    assert record.timestamp == FACT.began_ns
    assert record.observed_timestamp == FACT.began_ns + FACT.duration_ns


def test_a_record_belongs_to_the_trace_of_its_own_request() -> None:
    span = NonRecordingSpan(SpanContext(TRACE, SPAN, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED)))
    record = to_log_record(FACT._replace(context=set_span_in_context(span, Context())))
    assert (record.trace_id, record.span_id, record.trace_flags) == (TRACE, SPAN, TraceFlags.SAMPLED)


@pytest.mark.parametrize(
    ("event", "name"),
    [(FACT, "tron.audit.event"), (REQUEST, "tron.audit.request"), (EXEC, "tron.audit.exec")],
    ids=["fact", "request", "exec"],
)
def test_a_record_has_the_name_by_which_it_is_searched(event: AuditEvent, name: str) -> None:
    record = to_log_record(event)
    assert record.event_name == name
    assert record.body == sentence(event)
    assert record.attributes == attributes(event)


def test_every_value_is_of_a_type_that_otlp_can_carry() -> None:
    whole = with_request(headers={"x": ("a",)}, close_code=1000)._replace(execution=EXEC.execution, error_type="x")
    for name, value in attributes(whole).items():
        parts = value if isinstance(value, tuple) else (value,)
        assert {type(part) for part in parts} <= {str, int, float, bool}, name
