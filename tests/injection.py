"""Hostile requests, an application that hands on whatever they say, and what their records must then hold.

Requests are driven straight into the application, as ASGI has them: an HTTP server refuses many of these bytes, and
the application may still be served by one that does not.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, unquote

from fastapi import FastAPI, HTTPException, Request, WebSocket
from starlette.websockets import WebSocketDisconnect

import tron_audit_otel as audit
from tests import hostile
from tests.asgi import Peer, drive, http_scope, websocket_scope

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Mapping

    from starlette.types import ASGIApp, Message, Scope

TOLD = "tests.told"
"""In the scope: the request that the handler speaks for."""

POLICY = """
rules:
  - name: items
    match: {route: "/api/v1/items/{item}"}
    headers: [x-request-id, x-forwarded-for, referer, cookie]
  - name: login
    match: {method: POST, route: /auth/login}
    action: LOGIN
    resource: users/{actor}
"""
PATHS = {
    "item": "/api/v1/items/",
    "nowhere": "/",
    "exec": "/api/v1/pods/web-0/exec",
    "login": "/auth/login",
    "mounted": "/tenants/",
    "websocket": "/ws/",
}


@dataclass(frozen=True)
class Ask:
    """A request as a server hands it on, and what its handler then says; by default a plain one."""

    kind: str
    method: str = "POST"
    end: bytes = b""
    """The end of the path as it was sent; of a mounted application the tenant."""
    end_decoded: str | None = None
    """The same as text, from a server that does not say what was sent."""
    query: bytes = b""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    """Besides the user agent."""
    user_agent: bytes | None = b"curl/8.5.0"
    body: bytes = b""
    close_code: int = 1000
    close_reason: str = ""
    actor: Any = "alice@example.com"
    state_actor: Any = None
    """As the original has it, in place of `actor`."""
    claimed: Any = None
    action: Any = None
    resource: Any = None
    outcome: Any = None
    command: Any = None
    container: Any = None
    stdout: str | bytes = "total 0\n"
    stderr: str | bytes = ""
    error_type: Any = None
    error_message: Any = None
    is_original: bool = False
    """The command is told as the original has it."""

    @property
    def raw_path(self) -> bytes:
        return PATHS[self.kind].encode() + self.end + (b"/things/7" if self.kind == "mounted" else b"")

    @property
    def path(self) -> str:
        """As uvicorn decodes it, but from any bytes."""
        if self.end_decoded is None:
            return unquote(self.raw_path.decode("latin-1"))
        return PATHS[self.kind] + self.end_decoded

    def scope(self, client: str) -> Scope:
        fields: dict[str, Any] = {
            "path": self.path,
            "raw_path": None if self.end_decoded is not None else self.raw_path,
            "query_string": self.query,
            "headers": [(b"host", b"test"), (b"user-agent", self.user_agent or b""), *self.headers],
            "client": (client, 40_000),
            TOLD: self,
        }
        return {**(websocket_scope() if self.kind == "websocket" else http_scope(self.method)), **fields}

    def messages(self) -> list[Message]:
        if self.kind != "websocket":
            return [{"type": "http.request", "body": self.body}]
        bye = {"type": "websocket.disconnect", "code": self.close_code, "reason": self.close_reason}
        return [{"type": "websocket.connect"}, bye]


def application() -> FastAPI:
    """Answers each request, and says of it what the request wants to have said."""
    app = FastAPI()
    tenant = FastAPI()

    def identify(told: Ask, state: Any) -> None:
        if told.state_actor is not None:
            state.audit_actor = told.state_actor
        elif told.actor is not None:
            audit.set_actor(told.actor)

    @app.api_route(PATHS["item"] + "{item}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
    async def item(request: Request) -> None:
        told: Ask = request.scope.get(TOLD, PLAIN["item"])
        identify(told, request.state)
        audit.annotate(action=told.action, resource=told.resource, outcome=told.outcome)

    @app.api_route("/api/v1/pods/{pod}/exec", methods=["GET", "POST"])
    async def execute(request: Request) -> None:
        await request.body()
        told: Ask = request.scope.get(TOLD, PLAIN["exec"])
        identify(told, request.state)
        if told.is_original:
            answer = {"stdout": told.stdout, "stderr": told.stderr, "return_code": 0}
            asked = {"command": told.command, "container_name": told.container}
            error = {} if told.error_message is None else {"error": told.error_message}
            request.state.audit_exec_payload = {"request": asked, "response": answer | error}
        elif told.command is not None or told.error_message is not None:
            with audit.execution(command=told.command, container=told.container) as run:
                run.finish(stdout=told.stdout, stderr=told.stderr, return_code=0)
                if told.error_message is not None:
                    run.fail(told.error_type, told.error_message)

    @app.post(PATHS["login"])
    async def login(request: Request) -> None:
        audit.claim_actor(request.scope[TOLD].claimed)
        raise HTTPException(401)

    @app.websocket(PATHS["websocket"] + "{room}")
    async def room(websocket: WebSocket) -> None:
        identify(websocket.scope[TOLD], websocket.state)
        await websocket.accept()
        try:
            await websocket.receive_text()
        except WebSocketDisconnect:
            return

    @tenant.post("/things/{thing}")
    async def thing(thing: str, request: Request) -> None:
        identify(request.scope[TOLD], request.state)

    app.mount(PATHS["mounted"] + "{tenant}", tenant)
    return app


PLAIN = {
    "item": Ask("item", end=b"abc-123", headers=((b"x-request-id", b"7f3a"),)),
    "nowhere": Ask("nowhere", method="GET", end=b"nowhere/there"),
    "exec": Ask("exec", command=["ls", "-l"], container="app"),
    "exec-asked": Ask("exec", body=b'{"command": ["ls"], "container_name": "app"}', query=b"a=b"),
    "login": Ask("login", claimed="mallory@example.com"),
    "mounted": Ask("mounted", end=b"acme"),
    "websocket": Ask("websocket", end=b"lobby"),
    "fact": Ask("fact", resource="backups/42", actor="reaper"),
    "run": Ask("run", command=["ls"], container="app"),
}
"""One of each sort. `exec-asked` is a command that only the request itself tells; the last two are no requests."""


async def serve(app: ASGIApp, ask: Ask, client: str) -> BaseException | None:
    """Has the application do it, and gives the exception that the server would see."""
    if ask.kind == "fact":
        audit.record(action="DELETE", resource=ask.resource, actor=ask.actor)
    elif ask.kind == "run":
        with audit.execution(command=ask.command, container=ask.container) as run:
            run.finish(stdout=ask.stdout, stderr=ask.stderr, return_code=0)
    else:
        return await drive(app, ask.scope(client), Peer(ask.messages()))
    return None


class Place(NamedTuple):
    """A place where a client can write, or have something written."""

    sort: str
    put: Callable[[Ask, str, bytes], Ask]
    """Writes there a text, or bytes."""
    own: frozenset[str]
    """The attributes that it may change."""


_RESOURCE = ("audit.resource", "audit.target.type", "audit.target.id")
_ACTOR = ("audit.actor.id", "audit.actor.type", "user.id", "user.email")
_COMMAND = ("process.command_args", "audit.exec.command.truncated", "container.name")
_ERROR = ("error.message", "error.type", "audit.outcome")


def _output(name: str) -> list[str]:
    return [f"audit.exec.{name}.{part}" for part in ("text", "length", "truncated", "sha256")]


def segment(raw: bytes) -> bytes:
    """Makes of bytes what a server could hand on as a path's last segment, and a route can match."""
    raw = raw.replace(b"?", b"%3F").replace(b"#", b"%23").replace(b"/", b"").replace(b"%2F", b"").replace(b"%2f", b"")
    return b"-" if "/" in unquote(raw.decode("latin-1")) else raw or b"-"


def _header(name: bytes) -> Callable[[Ask, str, bytes], Ask]:
    def put(ask: Ask, _: str, raw: bytes) -> Ask:
        return replace(ask, headers=(*(pair for pair in ask.headers if pair[0] != name), (name, raw)))

    return put


def _field(name: str, **others: Any) -> Callable[[Ask, str, bytes], Ask]:
    def put(ask: Ask, text: str, _: bytes) -> Ask:
        changes: dict[str, Any] = {name: text, **others}
        return replace(ask, **changes)

    return put


def _raw(name: str) -> Callable[[Ask, str, bytes], Ask]:
    def put(ask: Ask, _: str, raw: bytes) -> Ask:
        changes: dict[str, Any] = {name: raw}
        return replace(ask, **changes)

    return put


def _encoded(raw: bytes) -> bytes:
    return quote(raw, safe="").encode()


def _json(ask: Ask, text: str, _: bytes) -> Ask:
    return replace(ask, body=json.dumps({"command": ["sh", "-c", text], "container_name": text}).encode())


def _ends(sort: str, *own: str) -> dict[str, Place]:
    """The ways to write into the end of a path."""
    before = b"nowhere/" if sort == "nowhere" else b""

    def raw_end(ask: Ask, _: str, raw: bytes) -> Ask:
        # Where nothing is, anything may follow; a route matches a segment.
        return replace(ask, end=before + (raw.replace(b"?", b"%3f") if before else segment(raw)))

    ways: dict[str, Callable[[Ask, str, bytes], Ask]] = {
        "raw": raw_end,
        "encoded": lambda ask, _, raw: replace(ask, end=before + segment(_encoded(raw))),
        "encoded-twice": lambda ask, _, raw: replace(ask, end=before + segment(_encoded(_encoded(raw)))),
        "decoded": lambda ask, text, _: replace(ask, end_decoded=before.decode() + (text.replace("/", "") or "-")),
    }
    if sort == "mounted":
        del ways["decoded"]  # what follows is the mounted application's
    return {f"{sort}-path-{way}": Place(sort, put, frozenset({"url.path", *own})) for way, put in ways.items()}


def _place(sort: str, put: Callable[[Ask, str, bytes], Ask], *own: str) -> Place:
    return Place(sort, put, frozenset(own))


PLACES: Mapping[str, Place] = {
    **_ends("item", "audit.resource", "audit.target.id"),
    **_ends("nowhere", "audit.resource"),
    **_ends("mounted", "audit.resource"),
    **_ends("websocket", "audit.resource", "audit.target.id"),
    "query": _place("item", _raw("query")),
    "body": _place("item", _raw("body")),
    "method": _place(
        "nowhere",
        lambda ask, text, _: replace(ask, method=text or "-"),
        *("http.request.method", "http.request.method_original", "audit.action"),
    ),
    "user-agent": _place("item", _raw("user_agent"), "user_agent.original"),
    "user-agent-nowhere": _place("nowhere", _raw("user_agent"), "user_agent.original"),
    "named-header": _place("item", _header(b"x-request-id"), "http.request.header.x-request-id"),
    "referer": _place("item", _header(b"referer"), "http.request.header.referer"),
    "cookie": _place("item", _header(b"cookie"), "http.request.header.cookie"),
    "forwarded-for": _place(
        "item", _header(b"x-forwarded-for"), "http.request.header.x-forwarded-for", "audit.source_ip.suspect"
    ),
    "forwarded": _place("websocket", _header(b"forwarded"), "audit.source_ip.suspect"),
    "host": _place("item", _header(b"host")),
    "header-name": _place("item", lambda ask, _, raw: replace(ask, headers=(*ask.headers, (b"x-" + raw, raw)))),
    "header-flood": _place("item", lambda ask, _, raw: replace(ask, headers=(*ask.headers, *((b"x-a", raw),) * 3_000))),
    "protocol": _place("websocket", _header(b"sec-websocket-protocol")),
    "close-reason": _place("websocket", _field("close_reason")),
    "actor": _place("item", _field("actor"), *_ACTOR),
    "actor-bytes": _place("item", _raw("actor"), *_ACTOR),
    "state-actor": _place("item", _field("state_actor"), *_ACTOR),
    "websocket-actor": _place("websocket", _field("actor"), *_ACTOR),
    "claimed": _place("login", _field("claimed"), "audit.actor.claimed", "audit.resource", "audit.target.id"),
    "resource": _place("item", _field("resource"), *_RESOURCE),
    "action": _place("item", _field("action"), "audit.action"),
    "outcome": _place("item", _field("outcome")),
    "fact-actor": _place("fact", _field("actor"), *_ACTOR),
    "fact-resource": _place("fact", _field("resource"), *_RESOURCE),
    "command-line": _place("exec", _field("command"), *_COMMAND),
    "command": _place("exec", lambda ask, text, raw: replace(ask, command=["sh", "-c", text, raw]), *_COMMAND),
    "command-original": _place("exec", _field("command", is_original=True), *_COMMAND),
    "command-body": _place("exec-asked", _json, *_COMMAND),
    "command-no-json": _place("exec-asked", _raw("body"), *_COMMAND),
    "command-query": _place(
        "exec-asked",
        lambda ask, _, raw: replace(ask, body=b"", query=b"command=ls&command=" + _encoded(raw)),
        *_COMMAND,
    ),
    "query-raw": _place("exec-asked", lambda ask, _, raw: replace(ask, body=b"", query=b"command=" + raw), *_COMMAND),
    "container": _place("exec", _field("container"), "container.name"),
    "stdout": _place("exec", _field("stdout"), *_output("stdout")),
    "stdout-bytes": _place("exec", _raw("stdout"), *_output("stdout")),
    "stderr": _place("exec", _field("stderr", is_original=True), *_output("stderr")),
    "stderr-bytes": _place("exec", _raw("stderr"), *_output("stderr")),
    "error-message": _place("exec", _field("error_message", error_type="timeout"), *_ERROR),
    "error-type": _place("exec", _field("error_type", error_message="x"), *_ERROR),
    "error-original": _place("exec", _field("error_message", is_original=True), *_ERROR),
    "run-container": _place("run", _field("container"), "container.name", *_RESOURCE),
    "run-stdout": _place("run", _raw("stdout"), *_output("stdout")),
}


class Case(NamedTuple):
    """A request, and the places in it that are hostile."""

    ask: Ask
    places: tuple[str, ...]


def cases(chance: random.Random, count: int) -> list[Case]:
    """Makes so many, each hostile in one to three places, each place in its turn."""
    names = list(PLACES)
    made = []
    for number in range(count):
        first = names[number % len(names)]
        sort, _, own = PLACES[first]
        beside = [
            name for name, place in PLACES.items() if name != first and place.sort == sort and place.own.isdisjoint(own)
        ]
        ask = PLAIN[sort]
        if sort == "item" and chance.random() < 0.5:
            ask = replace(ask, method=chance.choice(("GET", "PUT", "PATCH", "DELETE")))
        chosen = (first, *chance.sample(beside, min(len(beside), chance.randint(0, 2))))
        for name in chosen:
            ask = PLACES[name].put(ask, hostile.mixed(chance), hostile.mixed_bytes(chance))
        made.append(Case(ask, chosen))
    return made
