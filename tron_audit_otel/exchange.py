"""One request as it passes: what goes in, what comes out, how it ends, and the event that it makes.

Message types and their fields are those of the ASGI specification.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect
from starlette.websockets import WebSocketDisconnect

from tron_audit_otel import context, policy, redact, resource, route
from tron_audit_otel.errors import JournalError
from tron_audit_otel.event import (
    ERROR_STATUS_MIN,
    Action,
    Actor,
    ActorType,
    AuditEvent,
    EventName,
    Execution,
    Outcome,
    Request,
    cause,
    error_type,
    record_id,
)
from tron_audit_otel.run import BODY_BYTES_MAX, of_original, of_request, worked
from tron_audit_otel.source_ip import source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from starlette.types import Message, Receive, Scope, Send

    from tron_audit_otel.commitment import Commitment
    from tron_audit_otel.event import Resource

SCOPE_KEY = "tron_audit_otel"
"""Marks a scope that is being recorded: an instrumented application that is mounted in one adds no second record."""

CLIENT_DISCONNECTED = "client_disconnected"
CANCELLED = "cancelled"
NO_RESPONSE = "no_response"
"""Values of ``error.type`` for what raises no exception of the application's."""

FAILURE_STATUS_MIN = 400
REDIRECT_STATUSES = (307, 308)
SWITCHING_PROTOCOLS = 101
FORBIDDEN = 403

CLOSED_NORMALLY = (1000, 1001, 1005)
"""RFC 6455, 7.4.1: normal closure, going away, no code given."""
CLOSED_ABNORMALLY = 1006
SERVER_STOPPED = 1012
"""Service restart (IANA, WebSocket close codes): what uvicorn tells both sides when it is stopped."""
TRY_AGAIN_LATER = 1013
"""IANA, WebSocket close codes."""

UNAVAILABLE = 503
NO_ROOM = b"The audit trail cannot be written; try again later.\n"
BODILESS_STATUSES = (204, 304)
"""RFC 9110, 6.4.1: their responses end with their headers."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Audit:
    """What is the same for every request of an application."""

    rules: policy.Policy
    """Selects the requests, and says what they are."""
    emit: Callable[[AuditEvent], None]
    """Takes each event; it neither raises nor waits."""
    has_error_handler: bool = False
    """The application answers for its unhandled exceptions, and :meth:`HttpExchange.answered` is told how."""
    refuses: Callable[[], bool] | None = None
    """Whether a request must be refused, because no record can be written; None where none ever is."""
    commit: Callable[[AuditEvent], Commitment | None] | None = None
    """Takes an event whose answer waits until it is on disk; None where no answer ever does."""
    commits_all: bool = False
    """Every answer waits for its record, and not only those that a rule names."""
    commit_seconds_max: float = 0.0
    """How long an answer waits."""
    fails_open: bool = False
    """An answer whose record cannot be written goes out all the same."""


class Exchange:
    """What a request and a WebSocket have in common."""

    __slots__ = (
        "_audit",
        "_began",
        "_began_ns",
        "_body",
        "_close_code",
        "_commitment",
        "_disconnected",
        "_entered",
        "_lost",
        "_path",
        "_raw_path",
        "_receive",
        "_root_path",
        "_send",
        "_status",
        "draft",
        "scope",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send, audit: Audit) -> None:
        """Begins: the clock runs from here."""
        self._began_ns = time.time_ns()
        self._began = time.perf_counter_ns()
        self.scope = self._entered = scope
        self._receive = receive
        self._send = send
        self._audit = audit
        self._status: int | None = None
        self._close_code: int | None = None
        self._commitment: Commitment | None = None
        self._body: bytearray | None = None
        self._disconnected = False
        self._lost: OSError | None = None
        # A mount changes both on its way in; the route template and the policy want the application's own.
        self._root_path: str = scope.get("root_path", "")
        self._path: str = scope["path"]
        self._raw_path: bytes | None = scope.get("raw_path")
        self.draft = context.Draft(audit.emit, context.open_telemetry_context(), source(scope))
        scope[SCOPE_KEY] = self
        # A middleware may hand on a copy of the scope; the copies share this dictionary.
        scope.setdefault("state", {})

    def release(self) -> None:
        """Lets go of a scope whose record is written: the two hold each other, and would wait for the collector."""
        if self.draft.closed:
            self._entered.pop(SCOPE_KEY, None)
            self.scope.pop(SCOPE_KEY, None)

    def finish(self, outcome: Outcome, error: str | None = None) -> None:
        """Emits the event, once, if the policy wants it."""
        if self.draft.error_type is not None and outcome is not Outcome.UNKNOWN:
            outcome, error = Outcome.FAILURE, self.draft.error_type
        if self.draft.closed:
            return
        self.draft.closed = True
        try:
            event = self._event(outcome, error)
        except Exception as broken:  # noqa: BLE001 - a request is never broken by its audit
            lost(broken)
            return
        if event is None:
            return
        if self._audit.commit is not None and self._waits():
            self._commitment = self._audit.commit(event)
        else:
            self.draft.emit(event)

    def _waits(self) -> bool:
        """Whether this answer waits for its record, as far as that is known by now."""
        audit = self._audit
        if audit.commit is None or audit.commits_all:
            return audit.commits_all
        try:
            return audit.rules.rule(self._facts(self._actor())).commit == "response"
        except Exception:  # noqa: BLE001 - whatever it is, it meets the record too, and is logged there
            return False

    async def is_committed(self) -> bool:
        """Waits for the record, if its answer must; tells whether the answer may go out."""
        commitment, self._commitment = self._commitment, None
        if commitment is None:
            return True
        return await commitment.wait(self._audit.commit_seconds_max) or self._audit.fails_open

    def is_refused(self) -> bool:
        """Whether this request must not reach its handler, because its record could not be written."""
        refuses = self._audit.refuses
        if refuses is None or self._audit.rules.excludes(self._facts(Actor())) or not refuses():
            return False
        self.draft.closed = True
        return True

    def _facts(self, actor: Actor) -> policy.Facts:
        headers = self._entered["headers"]
        method = self.scope.get("method", "GET")  # a WebSocket's handshake is a GET
        return policy.Facts(
            method=method if method in policy.HTTP_METHODS else "_OTHER",
            route=route.template(self.scope, self._root_path),
            path=route.within(self._path, self._root_path) or "/",
            status=self._status,
            actor_type=actor.type,
            cors_preflight=method == "OPTIONS"
            and bool(_values(headers, "origin") and _values(headers, "access-control-request-method")),
        )

    def _event(self, outcome: Outcome, error: str | None) -> AuditEvent | None:
        duration_ns = time.perf_counter_ns() - self._began
        scope, draft, headers = self.scope, self.draft, self._entered["headers"]
        method = scope.get("method", "GET")
        actor = self._actor()
        facts = self._facts(actor)
        rule = self._audit.rules.rule(facts)
        if rule.level == "none":
            return None
        execution = self._execution(rule)
        told = worked(execution) if execution else None
        by_default = Action.EXEC if execution else policy.default_action(facts.method)
        return AuditEvent(
            record_id=record_id(),
            name=EventName.EXEC if execution else EventName.REQUEST,
            began_ns=self._began_ns,
            duration_ns=duration_ns,
            actor=actor,
            action=draft.action or rule.action or by_default,
            resource=draft.resource or self._resource(rule, facts.route, actor),
            outcome=draft.outcome or (outcome if outcome is Outcome.FAILURE or told is None else told),
            context=draft.context,
            source=draft.source,
            request=Request(
                method=facts.method,
                method_original=redact.line(method) if facts.method != method else None,
                route=facts.route,
                path=route.url_path(self._raw_path, self._path),
                status=self._status,
                user_agent=next((redact.line(value) for value in _values(headers, "user-agent")), None),
                close_code=self._close_code,
                headers={
                    name: redact.header(name, values) for name in rule.headers if (values := _values(headers, name))
                },
            ),
            execution=execution,
            error_type=error or (execution.error_type if execution else None),
        )

    def _actor(self) -> Actor:
        actor = self.draft.actor
        # Where the original pull request's authentication puts it.
        if actor is None and (name := self._state("audit_actor")) is not None and redact.text(name):
            actor = context.make_actor(name)
        actor = actor or Actor(type=ActorType.ANONYMOUS)
        return actor if self.draft.claimed is None else Actor(actor.id, actor.type, self.draft.claimed)

    def _state(self, name: str) -> object:
        """Gives what an application has set on ``request.state``; a middleware may have put any object there."""
        state = self.scope.get("state")
        return state.get(name) if isinstance(state, dict) else getattr(state, name, None)

    def _resource(self, rule: policy.Rule, template: str | None, actor: Actor) -> Resource:
        params: dict[str, Any] = self.scope.get("path_params") or {}
        if rule.resource is not None:
            return resource.expand(rule.resource, {"actor": actor.id or actor.claimed, **params})
        if template is not None:
            return resource.by_route(template, params)
        return resource.by_path(route.url_path(self._raw_path, self._path, self._root_path))

    def _execution(self, rule: policy.Rule) -> Execution | None:
        if self.draft.run is not None:
            told = self.draft.run.execution
        elif (payload := self._state("audit_exec_payload")) is not None:
            told = of_original(payload)
        elif Action.EXEC in (rule.action, self.draft.action):
            told = Execution()
        else:
            return None
        return of_request(told, self.scope, self._body, rule.command, rule.container)


class HttpExchange(Exchange):
    """A request and its response. It ends when the last byte of the response has been handed on."""

    __slots__ = ("_bytes_left", "_has_begun", "_held", "_is_withdrawn", "_keeps_body")

    def __init__(self, scope: Scope, receive: Receive, send: Send, audit: Audit) -> None:
        """Begins."""
        super().__init__(scope, receive, send, audit)
        self._keeps_body: bool | None = None
        self._held: Message | None = None
        """The start of a response, held until its client could take it for a whole one."""
        self._bytes_left: int | None = None
        """What the client still waits for, by the response's own word; None: until the stream ends."""
        self._has_begun = False
        self._is_withdrawn = False

    async def receive(self) -> Message:
        """Passes a message to the application."""
        message = await self._receive()
        if message["type"] == "http.request":
            self._keep(message.get("body", b""))
        elif message["type"] == "http.disconnect":
            self._disconnected = True
        return message

    def _keep(self, chunk: bytes) -> None:
        """Keeps the head of a body in which the policy may have to look for a command."""
        try:
            if self._keeps_body is None:
                template = route.template(self.scope, self._root_path)
                self._keeps_body = self._audit.rules.may_read_body(self.scope["method"], template)
            if self._keeps_body:
                self._body = bytearray() if self._body is None else self._body
                self._body += chunk[: BODY_BYTES_MAX + 1 - len(self._body)]
        except Exception as broken:  # noqa: BLE001 - a request is never broken by its audit
            self._keeps_body = False
            lost(broken)

    async def send(self, message: Message) -> None:
        """Passes a message to the server; under `commit: response` not the one that completes the answer, at first."""
        if self._is_withdrawn:
            return
        kind = message["type"]
        if kind == "http.response.start":
            self._status = message["status"]
            self.draft.closed = self.draft.closed or self._is_slash_redirect(message)
            if self._audit.commit is not None:
                self._bytes_left = _bytes_announced(self.scope["method"], message)
                if self._bytes_left is not None:
                    self._held = message
                    return
        is_last = kind == "http.response.pathsend" or (
            kind == "http.response.body" and not message.get("more_body", False)
        )
        if self._audit.commit is not None and self._completes(message, is_last=is_last) and self._waits():
            self._responded(left_before=self._disconnected)  # once, whatever else is sent
            if not await self.is_committed():
                await self.withdraw()
                return
        await self._release_held()
        left_before = self._disconnected
        try:
            await self._pass(message)
        except asyncio.CancelledError:
            # A server tells that the exchange is over, and Starlette then cancels what still waits to have sent it.
            if is_last:
                self._responded(left_before=left_before)
            raise
        if is_last:
            self._responded(left_before=left_before)

    async def _pass(self, message: Message) -> None:
        self._has_begun = True
        try:
            await self._send(message)
        except OSError as lost_connection:
            # ASGI, HTTP version 2.4: the server raises once the client has gone.
            self._disconnected, self._lost = True, lost_connection
            raise

    async def _release_held(self) -> None:
        if (held := self._held) is not None:
            self._held = None
            await self._pass(held)

    def _completes(self, message: Message, *, is_last: bool) -> bool:
        """Whether the client would have the whole answer with this message, whatever the application still sends."""
        if self._bytes_left is not None:
            self._bytes_left -= len(message.get("body", b""))
        return is_last or (self._bytes_left is not None and self._bytes_left <= 0)

    async def withdraw(self) -> None:
        """Puts a 503 in the answer's place or, where the client has a part of it already, cuts it short.

        Raises:
            JournalError: The answer has begun; the server closes the connection.
        """
        self._is_withdrawn = True
        if self._has_begun:
            raise JournalError("the audit record of this answer cannot be written", "disk_failed")
        self._held = None
        await self.refuse()

    async def refuse(self) -> None:
        """Answers in the application's place."""
        headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(NO_ROOM))]
        headers.append((b"retry-after", b"1"))
        await self._send({"type": "http.response.start", "status": UNAVAILABLE, "headers": headers})
        await self._send({"type": "http.response.body", "body": NO_ROOM})

    async def settle(self) -> None:
        """Holds an exception, or the end without an answer, until its record is on disk."""
        if not await self.is_committed():
            await self.withdraw()
        await self._release_held()

    def _is_slash_redirect(self, start: Message) -> bool:
        """Whether the client is about to ask again with a slash more or less, and that will be the request."""
        # An endpoint that redirects where the client says must not let the client choose whether it is recorded.
        if start["status"] not in REDIRECT_STATUSES or route.is_routed(self.scope):
            return False
        try:
            location = next(value for name, value in start["headers"] if name.lower() == b"location")
            return route.is_slash_redirect(self._root_path, self._path, location)
        except Exception:  # noqa: BLE001 - not a redirect that Starlette's router made
            return False

    def _responded(self, *, left_before: bool) -> None:
        status = self._status or ERROR_STATUS_MIN
        if status >= ERROR_STATUS_MIN:
            self.finish(Outcome.FAILURE, str(status))
        elif status >= FAILURE_STATUS_MIN:
            self.finish(Outcome.FAILURE)
        elif left_before:
            self.finish(Outcome.UNKNOWN, CLIENT_DISCONNECTED)  # BaseHTTPMiddleware ends a cut stream as if whole
        else:
            self.finish(Outcome.SUCCESS)

    def raised(self, error: BaseException) -> None:
        """The application raised; a response may have begun."""
        if self._held is not None:
            self._held = self._status = None  # the client has nothing of it, and never will
        error = cause(error)
        gone = error is self._lost or (self._disconnected and isinstance(error, asyncio.CancelledError))
        if gone or isinstance(error, ClientDisconnect):
            self.finish(Outcome.UNKNOWN, CLIENT_DISCONNECTED)
        elif not isinstance(error, Exception):
            self.finish(Outcome.UNKNOWN, CANCELLED)
        elif self._status is not None or not self._audit.has_error_handler:
            self.answered(ERROR_STATUS_MIN, error)

    def answered(self, status: int, error: Exception) -> None:
        """Starlette's outermost layer, which stands outside of us, answers for an unhandled exception."""
        self._status = self._status or status
        self.finish(Outcome.FAILURE, error_type(error))

    def returned(self) -> None:
        """The application returned; unless the response is complete, it never will be."""
        self.finish(Outcome.UNKNOWN, CLIENT_DISCONNECTED if self._disconnected else NO_RESPONSE)


def _bytes_announced(method: str, start: Message) -> int | None:
    """Gives the length of a response's body by the response's own word; None where it does not say."""
    if method == "HEAD" or start["status"] in BODILESS_STATUSES:
        return 0
    lengths = [value for name, value in start.get("headers", ()) if name.lower() == b"content-length"]
    return int(lengths[0]) if lengths and lengths[0].isdigit() else None


class WebSocketExchange(Exchange):
    """A WebSocket from handshake to close, or a refused handshake. It ends when its handler ends."""

    __slots__ = ()

    async def receive(self) -> Message:
        """Passes a message to the application."""
        message = await self._receive()
        if message["type"] == "websocket.disconnect":
            self._disconnected = True
            self._closed(message.get("code") or CLOSED_NORMALLY[-1])
        return message

    async def send(self, message: Message) -> None:
        """Passes a message to the server; under `commit: response` not the last one, at first."""
        if self._audit.commit is not None and self._ends(message):
            self._note(message)
            if self._waits():
                self.returned()
            await self.settle()
        try:
            await self._send(message)
        except OSError:
            self._closed(CLOSED_ABNORMALLY)  # as Starlette's own WebSocketDisconnect has it
            raise
        self._note(message)

    def _ends(self, message: Message) -> bool:
        kind = message["type"]
        return kind == "websocket.close" or (
            kind == "websocket.http.response.body" and not message.get("more_body", False)
        )

    def _note(self, message: Message) -> None:
        kind = message["type"]
        if kind == "websocket.accept":
            self._status = SWITCHING_PROTOCOLS
        elif kind == "websocket.http.response.start":
            self._status = message["status"]
        elif kind == "websocket.close" and self._status is None:
            self._status = FORBIDDEN  # ASGI: a close before the accept refuses the handshake so
        elif kind == "websocket.close" and self._status == SWITCHING_PROTOCOLS:
            self._closed(message.get("code") or CLOSED_NORMALLY[0])

    async def refuse(self) -> None:
        """Refuses the handshake."""
        await self._send({"type": "websocket.close", "code": TRY_AGAIN_LATER})

    async def settle(self) -> None:
        """Holds the end until its record is on disk.

        Raises:
            JournalError: It cannot be; the server closes the connection.
        """
        if not await self.is_committed():
            raise JournalError("the audit record of this WebSocket cannot be written", "disk_failed")

    def _closed(self, code: int) -> None:
        """The side that closes first says why; the other's frame is an echo."""
        self._close_code = self._close_code or code

    def raised(self, error: BaseException) -> None:
        """The handler raised."""
        error = cause(error)
        if isinstance(error, WebSocketDisconnect):
            self.returned()
        elif not isinstance(error, Exception):
            self.finish(Outcome.UNKNOWN, CANCELLED)
        else:
            self._status = self._status or ERROR_STATUS_MIN
            self.finish(Outcome.FAILURE, error_type(error))

    def returned(self) -> None:
        """The handler returned."""
        if self._status is None:
            self.finish(Outcome.UNKNOWN, CLIENT_DISCONNECTED if self._disconnected else NO_RESPONSE)
        elif self._status != SWITCHING_PROTOCOLS:
            self.finish(Outcome.FAILURE)
        elif self._close_code is None or self._close_code in CLOSED_NORMALLY:
            self.finish(Outcome.SUCCESS)
        elif self._close_code == CLOSED_ABNORMALLY:
            self.finish(Outcome.UNKNOWN, CLIENT_DISCONNECTED)
        elif self._close_code == SERVER_STOPPED:
            self.finish(Outcome.UNKNOWN, CANCELLED)
        else:
            self.finish(Outcome.FAILURE)


def lost(error: Exception) -> None:
    """Logs that there will be no record, without what it would have said: that belongs to no operational log."""
    _logger.error("an audit record could not be made: %s", error_type(error))


def _values(headers: Iterable[tuple[bytes, bytes]], name: str) -> list[str]:
    key = name.encode("ascii")
    return [value.decode("latin-1") for header, value in headers if header == key]
