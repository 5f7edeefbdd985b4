"""A request and its response as they pass, and how they end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect

from tron_audit_otel import route
from tron_audit_otel.event import ERROR_STATUS_MIN, Outcome, cause, error_type
from tron_audit_otel.exchange import CANCELLED, CLIENT_DISCONNECTED, NO_RESPONSE, Exchange, lost
from tron_audit_otel.run import BODY_BYTES_MAX

if TYPE_CHECKING:
    from starlette.types import Message

FAILURE_STATUS_MIN = 400
REDIRECT_STATUSES = (307, 308)


class HttpExchange(Exchange):
    """A request and its response. It ends when the last byte of the response has been handed on."""

    _keeps_body: bool | None = None

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
        """Passes a message to the server."""
        if is_start := message["type"] == "http.response.start":
            message = self._noted(message)
        is_last = not is_start and completes(message)
        left_before = self._disconnected
        try:
            await self._send(message)
        except OSError as lost_connection:
            # ASGI, HTTP version 2.4: the server raises once the client has gone.
            self._disconnected, self._lost = True, lost_connection
            raise
        except asyncio.CancelledError:
            # A server tells that the exchange is over, and Starlette then cancels what still waits to have sent it.
            if is_last:
                self._responded(left_before=left_before)
            raise
        if is_last:
            self._responded(left_before=left_before)

    def _noted(self, start: Message) -> Message:
        """Notes how the answer begins; gives its start in a form that can be read again."""
        self._status = start["status"]
        if self._status in REDIRECT_STATUSES:
            start = readable(start)
            self.draft.closed = self.draft.closed or self._is_slash_redirect(start)
        return start

    async def refuse(self) -> None:
        """Answers in the application's place."""
        await self._send_refusal("http.response")

    async def settle(self) -> None:
        """Nothing of the answer is held back."""

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


def completes(message: Message) -> bool:
    """Whether the application sends nothing of its answer after this message."""
    kind = message["type"]
    return kind == "http.response.pathsend" or (
        kind in ("http.response.body", "http.response.zerocopysend") and not message.get("more_body", False)
    )


def readable(start: Message) -> Message:
    """Makes a list of the headers: any iterable may stand there by ASGI, and some can be read but once."""
    return {**start, "headers": list(start["headers"] or ())} if "headers" in start else start
