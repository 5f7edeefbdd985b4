"""EXEC: the command and the container are known however it ended; the output, where there was any."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import Depends, FastAPI, HTTPException, Request, WebSocket
from fastapi.testclient import TestClient
from pydantic import BaseModel
from starlette.middleware.base import BaseHTTPMiddleware

import tron_audit_otel as audit
from tests.asgi import Peer, drive, http_scope, websocket_scope
from tests.test_endings import CONNECT, gone, pass_on
from tron_audit_otel.config import AuditConfig
from tron_audit_otel.testing import capture

if TYPE_CHECKING:
    from pathlib import Path

COMMAND = ["ls", "-l", "/"]
BODY = {"command": COMMAND, "container_name": "app"}


class ExecRequest(BaseModel):
    command: list[str]
    container_name: str


def deny() -> None:
    raise HTTPException(403)


def make_app() -> FastAPI:
    app = FastAPI()

    @app.post("/pods/{pod}/exec")
    async def run(pod: str, body: ExecRequest) -> dict[str, Any]:
        with audit.execution(command=body.command, container=body.container_name) as execution:
            execution.finish(stdout="out", stderr="err", return_code=0)
        return {}

    @app.post("/failing/{pod}/exec")
    async def failing(pod: str, body: ExecRequest) -> dict[str, Any]:
        with audit.execution(command=body.command, container=body.container_name) as execution:
            execution.finish(stdout="", stderr="no such file", return_code=1)
        return {}

    @app.post("/slow/{pod}/exec")
    async def slow(pod: str, body: ExecRequest) -> dict[str, Any]:
        with audit.execution(command=body.command, container=body.container_name):
            await asyncio.wait_for(asyncio.sleep(60), 0.01)
        return {}

    @app.post("/denied/{pod}/exec", dependencies=[Depends(deny)])
    async def denied(pod: str, body: ExecRequest) -> None: ...

    @app.post("/original/{pod}/exec")
    async def original(pod: str, body: ExecRequest, request: Request) -> None:
        request.state.audit_exec_payload = {
            "request": {"command": body.command, "container_name": body.container_name},
            "response": {"stdout": "out", "stderr": "err", "return_code": 7},
        }

    @app.post("/original-error/{pod}/exec")
    async def original_error(pod: str, body: ExecRequest, request: Request) -> None:
        request.state.audit_exec_payload = {"response": {"error": "pod not found"}}
        raise HTTPException(500)

    @app.websocket("/pods/{pod}/exec")
    async def attach(websocket: WebSocket, pod: str) -> None:
        await websocket.accept()
        with audit.execution(command=websocket.query_params.getlist("command"), container="app") as execution:
            await websocket.receive()
            execution.finish(return_code=0)

    @app.delete("/pods/{pod}")
    @app.get("/pods/{pod}/logs")
    async def pod(pod: str) -> None: ...

    return app


def exec_record(path: str, **options: Any) -> dict[str, Any]:
    app = make_app()
    with capture(app) as seen:
        TestClient(app, raise_server_exceptions=False).post(path, **({"json": BODY} | options))
    assert len(seen.records) == 1
    record = seen.last
    assert record["audit.action"] == "EXEC"
    assert seen.log_records[0].event_name == "tron.audit.exec"
    return record


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/pods/p/exec", {"audit.outcome": "success", "process.exit.code": 0, "audit.exec.stderr.text": "err"}),
        ("/failing/p/exec", {"audit.outcome": "failure", "process.exit.code": 1, "http.response.status_code": 200}),
        ("/slow/p/exec", {"audit.outcome": "failure", "error.type": "TimeoutError", "process.exit.code": None}),
        ("/denied/p/exec", {"audit.outcome": "failure", "http.response.status_code": 403}),
        ("/original/p/exec", {"audit.outcome": "failure", "process.exit.code": 7, "audit.exec.stdout.text": "out"}),
        ("/original-error/p/exec", {"audit.outcome": "failure", "error.message": "pod not found"}),
    ],
)
def test_the_command_is_recorded_however_the_execution_ends(path: str, expected: dict[str, Any]) -> None:
    record = exec_record(path)
    assert record["process.command_args"] == tuple(COMMAND)
    assert record["container.name"] == "app"
    assert record["audit.target.id"] == "p"
    assert {name: record.get(name) for name in expected} == expected


def test_the_command_of_a_body_that_is_not_valid() -> None:
    record = exec_record("/pods/p/exec", json={"command": COMMAND})
    assert record["http.response.status_code"] == 422
    assert record["process.command_args"] == tuple(COMMAND)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[" * 60_000, b"\xff", b"5", b'{"command": null}', b'{"command": "x", "p": "' + b"p" * 70_000 + b'"}'],
    ids=["empty", "cut", "deep", "not UTF-8", "number", "null", "over the limit"],
)
def test_a_hostile_body_breaks_nothing(body: bytes) -> None:
    record = exec_record("/denied/p/exec", json=None, content=body, headers={"content-type": "application/json"})
    assert "process.command_args" not in record


def test_the_command_is_found_although_a_middleware_stands_before_the_router() -> None:
    app = make_app()
    app.add_middleware(BaseHTTPMiddleware, dispatch=pass_on)
    with capture(app) as seen:
        TestClient(app).post("/denied/p/exec", json=BODY)
    assert seen.last["process.command_args"] == tuple(COMMAND)


def test_a_body_in_many_pieces() -> None:
    app = make_app()
    pieces = [b'{"command": ["a', b'b"], "container', b'_name": "c"}']
    messages = [{"type": "http.request", "body": piece, "more_body": piece is not pieces[-1]} for piece in pieces]
    headers = [(b"content-type", b"application/json")]
    with capture(app) as seen:
        asyncio.run(drive(app, http_scope("POST", "/denied/p/exec", headers=headers), Peer(messages)))
    assert seen.last["process.command_args"] == ("ab",)


def test_the_output_is_cut_visibly() -> None:
    whole = "é" * 10_000

    app = FastAPI()

    @app.post("/x/exec")
    async def run() -> None:
        with audit.execution(command=["cat"]) as execution:
            execution.finish(stdout=whole, stderr=whole.encode(), return_code=0)

    with capture(app) as seen:
        TestClient(app).post("/x/exec")
    for stream in ("stdout", "stderr"):
        assert seen.last[f"audit.exec.{stream}.text"] == whole[:4096]
        assert seen.last[f"audit.exec.{stream}.length"] == 10_000
        assert seen.last[f"audit.exec.{stream}.truncated"] is True
        assert seen.last[f"audit.exec.{stream}.sha256"] == hashlib.sha256(whole.encode()).hexdigest()


def test_a_pod_whose_name_looks_like_exec_is_no_execution() -> None:
    app = make_app()
    with capture(app) as seen:
        TestClient(app).delete("/pods/exec")
        TestClient(app).get("/pods/executor-0/logs")
    assert [record["audit.action"] for record in seen.records] == ["DELETE", "READ"]


@pytest.mark.parametrize("query", [b"command=ls&command=-l", b""])
def test_an_execution_over_a_websocket(query: bytes) -> None:
    app = make_app()
    with capture(app) as seen:
        scope = websocket_scope("/pods/p/exec", query_string=query)
        asyncio.run(drive(app, scope, Peer([CONNECT, gone(1000)])))
    assert len(seen.records) == 1
    assert seen.last["audit.action"] == "EXEC"
    assert seen.last["process.command_args"] == (("ls", "-l") if query else ())
    assert seen.last["audit.outcome"] == "success"


def test_a_body_is_not_kept_where_no_rule_asks_for_it() -> None:
    app = FastAPI()

    @app.post("/secrets")
    async def secrets(request: Request) -> None:
        await request.body()
        assert request.scope["tron_audit_otel"]._body is None

    with capture(app) as seen:
        assert TestClient(app).post("/secrets", content="hunter2").status_code == 200
    assert "hunter2" not in str(seen.records)


def test_places_of_a_policy_rule(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(
        """
rules:
  - name: run
    match: {method: POST, route: "/jobs/{job}/run"}
    action: EXEC
    command: [body.spec.argv, query.argv]
    container: path.job
"""
    )
    app = FastAPI()
    app.post("/jobs/{job}/run", dependencies=[Depends(deny)])(deny)
    with capture(app, AuditConfig(enabled=True, policy_file=file)) as seen:
        client = TestClient(app)
        client.post("/jobs/j/run?argv=q", json={"spec": {"argv": "whole line"}})
        client.post("/jobs/j/run?argv=q")
    # FastAPI reads a body only where the endpoint has one, so the first body was never there to be seen.
    assert [record["process.command_args"] for record in seen.records] == [("q",), ("q",)]
    assert {record["container.name"] for record in seen.records} == {"j"}
