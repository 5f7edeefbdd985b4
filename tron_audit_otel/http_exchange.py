"""A request and its response as they pass, and how they end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect

from tron_audit_otel import route
from tron_audit_otel.errors import JournalError
from tron_audit_otel.event import ERROR_STATUS_MIN, Outcome, cause, error_type
from tron_audit_otel.exchange import (
    CANCELLED,
    CLIENT_DISCONNECTED,
    NO_RESPONSE,
    Exchange,
    bytes_announced,
    lost,
)
from tron_audit_otel.run import BODY_BYTES_MAX

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

    from tron_audit_otel.exchange import Audit

FAILURE_STATUS_MIN = 400
REDIRECT_STATUSES = (307, 308)


class HttpExchange(Exchange):
    """A request and its response. It ends when the last byte of the response has been handed on."""

    __slots__ = (
        "_ends_with_connection",
        "_has_begun",
        "_held",
        "_is_withdrawn",
        "_keeps_body",
        "_kept_byte",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send, audit: Audit) -> None:
        """Begins."""
        super().__init__(scope, receive, send, audit)
        self._keeps_body: bool | None = None
        self._held: Message | None = None
        """The start of a response, held until its client could take it for a whole one."""
        self._has_begun = False
        self._is_withdrawn = False
        self._ends_with_connection = False
        self._kept_byte = b""
        """Of an answer that ends with its connection: without it, the client has not all of it."""

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
            is_looked_at = self._audit.commit is not None or message["status"] in REDIRECT_STATUSES
            if is_looked_at and "headers" in message:  # any iterable, by ASGI: some can be read but once
                message = {**message, "headers": list(message["headers"] or ())}
            if await self._is_held(message):
                return
        is_last = kind == "http.response.pathsend" or (
            kind in ("http.response.body", "http.response.zerocopysend") and not message.get("more_body", False)
        )
        if self._audit.commit is not None and not await self._may_pass(message, is_last=is_last):
            return
        await self._release_held()
        if self._ends_with_connection:
            message = self._but_last_byte(message, is_last=is_last)
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

    async def _may_pass(self, message: Message, *, is_last: bool) -> bool:
        """Holds what completes the answer until its record is on disk; False: there is another answer instead."""
        if self._completes(message, is_last=is_last) and self._waits():
            self._responded(left_before=self._disconnected)  # once, whatever else is sent
            if not await self.is_committed():
                await self.withdraw()
                return False
        return True

    async def _is_held(self, start: Message) -> bool:
        """Notes how the answer begins; tells whether its beginning waits for more of it."""
        self._status = start["status"]
        self.draft.closed = self.draft.closed or self._is_slash_redirect(start)
        if self._audit.commit is None:
            return False
        await self._release_held()  # a second start is the server's to refuse
        self._bytes_left = bytes_announced(self.scope["method"], start)
        self._ends_with_connection = self._bytes_left is None and self._is_http_1_0(start)
        if not self._bytes_left:  # with 0 it is whole by itself
            return False
        self._held = start
        return True

    def _is_http_1_0(self, start: Message) -> bool:
        """Whether the client takes any end of the connection for the answer's; a stream of events has none to take."""
        return self.scope.get("http_version") == "1.0" and not any(
            name.lower() == b"content-type" and value.lower().startswith(b"text/event-stream")
            for name, value in start.get("headers", ())
        )

    def _but_last_byte(self, message: Message, *, is_last: bool) -> Message:
        """Gives the message with the byte that was held before, and holds its own last one."""
        if message["type"] != "http.response.body":
            return message
        body = self._kept_byte + bytes(message.get("body") or b"")
        self._kept_byte = b"" if is_last else body[-1:]
        return {**message, "body": body if is_last else body[:-1]}

    async def _pass(self, message: Message) -> None:
        self._has_begun |= message["type"] == "http.response.start"
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
        await self._send_refusal("http.response")

    async def settle(self) -> None:
        """Holds an exception, or the end without an answer, until its record is on disk."""
        if self._is_withdrawn:
            return
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
