"""What a request and a WebSocket have in common as they pass: how each is begun, ended, and put on record.

Message types and their fields are those of the ASGI specification.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from tron_audit_otel import context, headers, policy, redact, route
from tron_audit_otel.event import ANONYMOUS, NO_HEADERS, Action, Actor, Execution, Outcome, error_type, record_id
from tron_audit_otel.messages import body_of
from tron_audit_otel.redact import KEPT_MAX
from tron_audit_otel.run import of_original, of_request
from tron_audit_otel.seen import Seen

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from starlette.routing import Router
    from starlette.types import Message, Receive, Scope, Send

    from tron_audit_otel.commitment import Commitment
    from tron_audit_otel.event import Fact

SCOPE_KEY = "tron_audit_otel"
"""Marks a scope that is being recorded: an instrumented application that is mounted in one adds no second record."""

CLIENT_DISCONNECTED = "client_disconnected"
CANCELLED = "cancelled"
NO_RESPONSE = "no_response"
"""Values of ``error.type`` for what raises no exception of the application's."""

UNAVAILABLE = 503
NO_ROOM = b"The audit trail cannot be written; try again later.\n"

NO_PARAMS: Mapping[str, str] = MappingProxyType({})

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Audit:
    """What is the same for every request of an application."""

    rules: policy.Policy
    """Selects the requests, and says what they are."""
    recorder: context.Recorder
    """Takes what was seen of them."""
    router: Router | None = None
    """The application's, whatever its routes are by now."""
    has_error_handler: bool = False
    """The application answers for its unhandled exceptions, and :meth:`HttpExchange.answered` is told how."""
    admit: Callable[[], Callable[[], None] | None] | None = None
    """Keeps a place for a request's record, and gives what lets go of it; gives None for a request that must be
    refused, because no record can be written. Is None where none ever is."""
    commit: Callable[[Fact], Commitment | None] | None = None
    """Takes an event whose answer waits until it is on disk; None where no answer ever does."""
    commits_all: bool = False
    """Every answer waits for its record, and not only those that a rule names."""
    commit_seconds_max: float = 0.0
    """How long an answer waits."""
    fails_open: bool = False
    """An answer whose record cannot be written goes out all the same."""
    lose: Callable[[], None] | None = None
    """Counts a record that could not even be made."""


class Exchange:
    """What a request and a WebSocket have in common."""

    _status: int | None = None
    _close_code: int | None = None
    _commitment: Commitment | None = None
    _is_lost = False
    """There will be no record, though the answer must wait for it."""
    _leave: Callable[[], None] | None = None
    """Lets go of the place that is kept for the record."""
    _bytes_left: int | None = None
    """What the client still waits for, by the response's own word; None: until the stream ends."""
    _body: bytearray | None = None
    _disconnected = False
    _send_error: OSError | None = None
    """With which the server told that the client has gone."""

    def __init__(  # noqa: PLR0913, PLR0917 - what a request is made of
        self, scope: Scope, door: Scope, method: str, receive: Receive, send: Send, audit: Audit, draft: context.Draft
    ) -> None:
        """Begins: the clock runs from here.

        ``door`` is what of the scope is :func:`route.well_formed`, ``method`` its :func:`known_method`.
        """
        self._began_ns = time.time_ns()
        self._began = time.perf_counter_ns()
        self.scope = self._entered = scope
        self._receive = receive
        self._send = send
        self._audit = audit
        self.draft = draft
        draft.scope = scope
        # A mount changes both on its way in; the route template and the policy want the application's own.
        self._method: str = door.get("method", "GET")  # a WebSocket's handshake is a GET
        self._known_method = method
        self._headers = door.get("headers", ())
        self._root_path: str = door.get("root_path", "")
        self._path: str = door["path"]
        self._raw_path: bytes | None = door.get("raw_path")
        # A middleware may hand on a copy of the scope; the copies share this dictionary.
        scope.setdefault("state", {})
        scope[SCOPE_KEY] = self

    async def receive(self) -> Message:
        """Passes a message to the application."""
        raise NotImplementedError

    async def send(self, message: Message) -> None:
        """Passes a message to the server."""
        raise NotImplementedError

    async def refuse(self) -> None:
        """Answers in the application's place."""
        raise NotImplementedError

    async def settle(self) -> None:
        """Ends what was held back until the record is on disk."""
        raise NotImplementedError

    def raised(self, error: BaseException) -> None:
        """The application raised."""
        raise NotImplementedError

    def returned(self) -> None:
        """The application returned."""
        raise NotImplementedError

    def ended_by(self, error: BaseException) -> None:
        """The application raised anything at all."""
        try:
            self.raised(error)
        except Exception:  # noqa: BLE001 - an exception of the application's may be of any form
            self.finish(Outcome.FAILURE if isinstance(error, Exception) else Outcome.UNKNOWN, error_type(error))

    def release(self) -> None:
        """Lets go of a scope whose record is written: the two hold each other, and would wait for the collector.

        Not only the marks: whoever keeps `send`, as a task's traceback does in Python 3.11, keeps this exchange.
        """
        self._send_error = None
        if self.draft.closed:
            self.draft.scope = None
            self.leave()
            unmark(self._entered)
            unmark(self.scope)
            self.scope = self._entered = {}
            self._headers, self._body = (), None

    def finish(self, outcome: Outcome, error: str | None = None) -> None:
        """Hands on what was seen, once, if the policy wants it."""
        draft, audit = self.draft, self._audit
        if draft.closed:
            return
        if draft.error_type is not None and outcome is not Outcome.UNKNOWN:
            outcome, error = Outcome.FAILURE, draft.error_type
        draft.closed = True
        try:
            seen = self._seen(outcome, error)
        except Exception as broken:  # noqa: BLE001 - a request is never broken by its audit
            lost(broken, audit)
            self._is_lost = audit.commits_all
            seen = None
        if seen is not None:
            if audit.commit is not None and self._waits():
                self._commit(audit.commit, seen)
            else:
                draft.recorder.emit(seen)
        self.leave()

    def _commit(self, commit: Callable[[Fact], Commitment | None], seen: Seen) -> None:
        try:
            self._commitment = commit(seen)
        except Exception as broken:  # noqa: BLE001 - a request is never broken by its audit
            lost(broken, self._audit)
            self._is_lost = True

    def _waits(self) -> bool:
        """Whether this answer waits for its record, as far as that is known by now."""
        audit = self._audit
        if audit.commit is None or audit.commits_all:
            return audit.commits_all
        try:
            return self._rule(self._template(), self._actor()).commit == "response"
        except Exception:  # noqa: BLE001 - whatever it is, it meets the record too, and is logged there
            return False

    async def is_committed(self) -> bool:
        """Waits for the record, if its answer must; tells whether the answer may go out."""
        if self._commitment is None:  # it stays: whoever was cancelled in here may have something else to say
            return not self._is_lost or self._audit.fails_open
        return await self._commitment.wait(self._audit.commit_seconds_max) or self._audit.fails_open

    def _completes(self, message: Message, *, is_last: bool) -> bool:
        """Whether the client would have the whole answer with this message, whatever the application still sends."""
        if self._bytes_left is not None:
            self._bytes_left -= len(body_of(message))
        return is_last or (self._bytes_left is not None and self._bytes_left <= 0)

    async def _send_refusal(self, response: str) -> None:
        """Sends a 503; ``response`` is how ASGI begins the names of the messages of a response."""
        await self._send({"type": f"{response}.start", "status": UNAVAILABLE, "headers": refusal_headers()})
        await self._send({"type": f"{response}.body", "body": NO_ROOM})

    def is_admitted(self) -> bool:
        """Whether this request may reach its handler: where it must not, when its record could not be written."""
        if self._audit.admit is None:
            return True
        try:
            self._leave = self._audit.admit()
        except Exception as broken:  # noqa: BLE001 - no stream can be begun: nothing would be on record
            lost(broken)
            self._leave = None
        if self._leave is None:
            self.draft.closed = True
        return self._leave is not None

    def leave(self) -> None:
        """Lets go of the place that was kept for its record: it has taken it, or there is none."""
        if self._leave is not None:
            self._leave()
            self._leave = None

    def _template(self) -> str | None:
        return route.template(self.scope, self._root_path, self._audit.router)

    def _rule(self, template: str | None, actor: Actor) -> policy.Rule:
        rules, method = self._audit.rules, self._known_method
        return rules.certain_rule(method, template) or rules.rule(
            policy.Facts(
                method,
                template,
                route.within(self._path, self._root_path) or "/",
                self._status,
                actor.type,
                headers.is_preflight(self._method, self._headers),
            )
        )

    def _seen(self, outcome: Outcome, error: str | None) -> Seen | None:
        duration_ns = time.perf_counter_ns() - self._began
        scope, draft = self.scope, self.draft
        actor, template = self._actor(), self._template()
        rule = self._rule(template, actor)
        if rule.level == "none":
            return None
        try:
            user_agent = next((value for name, value in self._headers if name == b"user-agent"), None)
        except Exception:  # noqa: BLE001 - a server, or a middleware, may put anything there
            user_agent = None
        return Seen(
            record_id(),
            self._began_ns,
            duration_ns,
            draft.context,
            draft.client,
            draft.recorder,
            draft.claim,
            user_agent[:KEPT_MAX] if type(user_agent) is bytes else None,
            self._method[:KEPT_MAX],
            template,
            self._path[:KEPT_MAX],
            self._raw_path and self._raw_path[:KEPT_MAX],
            self._root_path[:KEPT_MAX],
            _params(scope),
            self._status,
            self._close_code,
            rule,
            headers.kept(self._headers, rule.headers) if rule.headers else NO_HEADERS,
            actor,
            draft.action,
            draft.resource,
            draft.outcome,
            outcome,
            error,
            self._execution(rule),
        )

    def _actor(self) -> Actor:
        self.draft.scope = self.scope  # the one that is routed
        actor = self.draft.who() or ANONYMOUS
        return actor if self.draft.claimed is None else actor._replace(claimed=self.draft.claimed)

    def _execution(self, rule: policy.Rule) -> Execution | None:
        redactor, told = self.draft.recorder.redactor, Execution()
        try:
            if self.draft.run is not None:
                told = self.draft.run.execution
            elif (payload := context.stated(self.scope, "audit_exec_payload")) is not None:
                told = of_original(payload, redactor)
            elif Action.EXEC not in (rule.action, self.draft.action):
                return None
            return of_request(told, self.scope, self._body, rule.command, rule.container, redactor)
        except Exception:  # noqa: BLE001 - an application may have put any object there; that it was one is on record
            return told


def lost(error: Exception, audit: Audit | None = None) -> None:
    """Logs that there will be no record, without what it would have said: that belongs to no operational log."""
    _logger.error("an audit record could not be made: %s", error_type(error))
    if audit is not None and audit.lose is not None:
        audit.lose()


def unmark(scope: Scope) -> None:
    """Undoes what marks a scope; an application may have put another object in its place, which cannot be changed."""
    try:
        scope.pop(SCOPE_KEY, None)
    except Exception:  # noqa: BLE001 - as said
        return


def known_method(door: Scope) -> str:
    """Gives the method as the policy knows it, of what in a scope is :func:`route.well_formed`."""
    return policy.WEBSOCKET if door["type"] == "websocket" else policy.known_method(door.get("method", "GET"))


def is_excluded(rules: policy.Policy, method: str, door: Scope) -> bool:
    """Whether a request that is not routed yet will have no record, whatever becomes of it."""
    if not rules.may_exclude(method):
        return False
    path = route.within(door["path"], door.get("root_path", "")) or "/"
    return rules.excludes(method, path, cors_preflight=headers.is_preflight(method, door.get("headers", ())))


def _params(scope: Scope) -> Mapping[str, str]:
    try:
        params: Mapping[str, object] | None = scope.get("path_params")
        if not params:
            return NO_PARAMS
        return {
            name: (value if type(value) is str else redact.text(value))[:KEPT_MAX]
            for name, value in params.items()
            if value is not None and type(name) is str
        }
    except Exception:  # noqa: BLE001 - an application may put any object there
        return NO_PARAMS


def refusal_headers() -> list[tuple[bytes, bytes]]:
    """Gives the headers of a 503 for want of a record."""
    length = b"%d" % len(NO_ROOM)
    return [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", length), (b"retry-after", b"1")]
