"""One request, one record, one file under `golden/`: what an auditor gets to read. `golden.py` renews them."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import pytest
from fastapi import Depends, FastAPI, Header, HTTPException, Request, WebSocket
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, use_span
from starlette.responses import StreamingResponse

import tron_audit_otel as audit
from tests import golden
from tests.asgi import Peer, drive, http_scope, websocket_scope
from tron_audit_otel import context, exchange
from tron_audit_otel.testing import capture

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from opentelemetry._logs import LogRecord
    from starlette.types import Scope

POLICY = """
rules:
  - name: login
    match: {method: POST, route: /auth/login}
    action: LOGIN
    resource: "users/{actor}"
  - name: report
    match: {route: /reports}
    headers: [x-request-id, authorization]
"""


class Clock:
    """In place of the module `time`: begins in 2026, and everything takes 12.5 ms."""

    def __init__(self) -> None:
        self.perf_counter = 0

    def time_ns(self) -> int:
        return 1_767_323_045_006_007_008

    def perf_counter_ns(self) -> int:
        self.perf_counter += 12_500_000
        return self.perf_counter


@pytest.fixture(autouse=True)
def _same_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (context, exchange):
        monkeypatch.setattr(module, "time", Clock())
        monkeypatch.setattr(module, "record_id", lambda: "00000000-0000-4000-8000-000000000001")


async def authenticated(request: Request, authorization: Annotated[str | None, Header()] = None) -> None:
    """As the original pull request: the actor is set by the dependency that has checked the token."""
    if authorization is None:
        raise HTTPException(401)
    request.state.audit_actor = authorization.removeprefix("Bearer ")


def make_app() -> FastAPI:
    app = FastAPI()
    secured = [Depends(authenticated)]

    @app.post("/auth/login")
    async def login(body: dict[str, str]) -> None:
        if body["password"] != "right":  # noqa: S105 - a password of nobody
            audit.claim_actor(body["email"])
            raise HTTPException(401)
        audit.set_actor(body["email"])

    @app.get("/api/v1/instances/{instance_id}", dependencies=secured)
    async def read(instance_id: str) -> str:
        return instance_id

    @app.delete("/api/v1/instances/{instance_id}", status_code=204, dependencies=secured)
    async def delete(instance_id: str) -> None: ...

    @app.get("/api/v1/crash", dependencies=secured)
    async def crash() -> None:
        raise ZeroDivisionError("the value of a secret")

    @app.get("/reports")
    async def report() -> StreamingResponse:
        async def pieces() -> Any:
            yield b"a"
            yield b"b"

        return StreamingResponse(pieces())

    @app.post("/api/v1/pods/{name}/exec", dependencies=secured)
    def execute(name: str, body: dict[str, Any], request: Request) -> None:
        response: dict[str, Any] = {"stdout": "total 0\n\x1b[0m", "stderr": "ls: /srv: denied", "return_code": 2}
        request.state.audit_exec_payload = {"request": body, "response": response}

    @app.websocket("/ws/pods/{name}/logs")
    async def logs(websocket: WebSocket, name: str) -> None:
        await websocket.accept()
        await websocket.close(1011)

    return app


def request(
    method: str, path: str, actor: str | None = None, body: object = None, **headers: str
) -> tuple[Scope, Peer]:
    sent = {"user-agent": "curl/8.5.0"}
    if body is not None:
        sent["content-type"] = "application/json"
    if actor is not None:
        sent["authorization"] = f"Bearer {actor}"
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    scope = http_scope(method, path, headers=[(name.encode(), value.encode()) for name, value in sent.items()])
    return scope, Peer([{"type": "http.request", "body": b"" if body is None else json.dumps(body).encode()}])


EXEC_BODY = {"command": ["ls", "-l", "/srv\n"], "container_name": "app"}

REQUESTS: dict[str, Callable[[], tuple[Scope, Peer]]] = {
    "read": lambda: request("GET", "/api/v1/instances/abc-123", "u-17"),
    "delete-by-alice": lambda: request("DELETE", "/api/v1/instances/abc-123", "alice@example.com"),
    "delete-by-token": lambda: request("DELETE", "/api/v1/instances/abc-123", "token:ci"),
    "delete-refused": lambda: request("DELETE", "/api/v1/instances/abc-123"),
    "login": lambda: request("POST", "/auth/login", body={"email": "alice@example.com", "password": "right"}),
    "login-refused": lambda: request("POST", "/auth/login", body={"email": "alice@example.com", "password": "wrong"}),
    "exec": lambda: request("POST", "/api/v1/pods/web-0/exec", "alice@example.com", EXEC_BODY),
    "exec-refused": lambda: request("POST", "/api/v1/pods/web-0/exec", body=EXEC_BODY),
    "crash": lambda: request("GET", "/api/v1/crash", "alice@example.com"),
    "hostile-404": lambda: request("BREW", "/..%2f\n\u202e<script>", user_agent="evil\n\x1b[2J"),
    "headers-by-policy": lambda: request("GET", "/reports", x_request_id="7f3a", authorization="Bearer s3cret"),
    "websocket": lambda: (websocket_scope("/ws/pods/web-0/logs"), Peer([{"type": "websocket.connect"}])),
}


def shown(record: LogRecord) -> dict[str, Any]:
    """A record as people would want to read it."""
    assert record.severity_number is not None
    found = {
        "event_name": record.event_name,
        "body": record.body,
        "severity": f"{record.severity_number.name} {record.severity_number.value}",
        "timestamp": iso(record.timestamp),
        "observed_timestamp": iso(record.observed_timestamp),
        "trace_id": f"{record.trace_id or 0:032x}",
        "span_id": f"{record.span_id or 0:016x}",
        "attributes": dict(sorted((record.attributes or {}).items())),
    }
    plain: dict[str, Any] = json.loads(json.dumps(found))
    return plain


def iso(nanoseconds: int | None) -> str:
    seconds, rest = divmod(nanoseconds or 0, 10**9)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09}Z"


def asked(scope: Scope, peer: Peer) -> dict[str, Any]:
    """A request as it would be seen on the wire."""
    body = peer.messages[0].get("body")
    return {
        "line": f"{scope.get('method', 'GET')} {scope['path']}",
        "headers": {name.decode(): value.decode() for name, value in scope["headers"]},
    } | ({"body": json.loads(body)} if body else {})


@pytest.fixture
def captured(tmp_path: Path) -> Iterator[tuple[FastAPI, Any]]:
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY, encoding="utf-8")
    app = make_app()
    with capture(app, audit.AuditConfig(enabled=True, policy_file=path)) as records:
        yield app, records


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_has_this_record(name: str, captured: tuple[FastAPI, Any]) -> None:
    app, records = captured
    scope, peer = REQUESTS[name]()
    wire = asked(scope, peer)
    span = NonRecordingSpan(
        SpanContext(0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331, is_remote=True, trace_flags=TraceFlags(1))
    )
    with use_span(span):
        asyncio.run(drive(app, scope, peer))
    (record,) = records.log_records
    golden.check(name, {"request": wire, "record": shown(record)})


def test_a_fact_outside_any_request_has_this_record(captured: tuple[FastAPI, Any]) -> None:
    _, records = captured
    audit.record(action="DELETE", resource="backups/42")
    (record,) = records.log_records
    golden.check("fact", {"call": 'audit.record(action="DELETE", resource="backups/42")', "record": shown(record)})


def test_no_golden_file_is_left_over() -> None:
    assert golden.names() == {*REQUESTS, "fact"}
