"""A request and its response as they pass, and how they end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect

from tron_audit_otel import route
from tron_audit_otel.event import ERROR_STATUS_MIN, Outcome, cause, error_type
from tron_audit_otel.exchange import CANCELLED, CLIENT_DISCONNECTED, NO_RESPONSE, SCOPE_KEY, Exchange
from tron_audit_otel.messages import body_of, ends_response, status_of
from tron_audit_otel.run import BODY_BYTES_MAX

if TYPE_CHECKING:
    from starlette.types import Message

FAILURE_STATUS_MIN = 400
REDIRECT_STATUSES = (307, 308)


class HttpExchange(Exchange):
    """A request and its response. It ends when the last byte of the response has been handed on."""

    _keeps_body: bool | None = None
    _has_started = False

    async def receive(self) -> Message:
        """Passes a message to the application."""
        message = await self._receive()
        try:
            if message["type"] == "http.request":
                self._keep(message)
            elif message["type"] == "http.disconnect":
                self._disconnected = True
        except Exception:  # noqa: BLE001 - a server may give anything, and the application judges it
            return message
        return message

    def _keep(self, message: Message) -> None:
        """Keeps the head of a body in which the policy may have to look for a command."""
        if self.draft.closed:
            return
        if self._keeps_body is None:
            self._keeps_body = self._audit.rules.may_read_body(self._known_method, self._template())
        if self._keeps_body:
            self._body = bytearray() if self._body is None else self._body
            self._body += body_of(message)[: BODY_BYTES_MAX + 1 - len(self._body)]

    async def send(self, message: Message) -> None:
        """Passes a message to the server."""
        is_last = False
        try:
            if message["type"] == "http.response.start":
                self._note_start(message)
            else:
                is_last = ends_response(message)
        except Exception:  # noqa: BLE001 - an application may send anything, and the server judges it
            is_last = False
        left_before = self._disconnected
        try:
            await self._send(message)
        except OSError as error:
            # ASGI, HTTP version 2.4: the server raises once the client has gone.
            self._disconnected, self._send_error = True, error
            raise
        except asyncio.CancelledError:
            # A server tells that the exchange is over, and Starlette then cancels what still waits to have sent it.
            if is_last:
                self._responded(left_before=left_before)
            raise
        if is_last:
            self._responded(left_before=left_before)

    def _note_start(self, start: Message) -> None:
        """Notes how the answer begins; another start is the server's to refuse."""
        if self._has_started:
            return
        self._has_started = True
        self._status = status_of(start)
        if self._status in REDIRECT_STATUSES:
            self.draft.closed = self.draft.closed or self._is_slash_redirect(start)

    async def refuse(self) -> None:
        """Answers in the application's place."""
        await self._send_refusal("http.response")

    async def settle(self) -> None:
        """Nothing of the answer is held back."""

    def _is_slash_redirect(self, start: Message) -> bool:
        """Whether the client is about to ask again with a slash more or less, and that will be the request."""
        # An endpoint that redirects where the client says must not let the client choose whether it is recorded.
        try:
            if not isinstance(start["headers"], list):  # which may be read but once; Starlette's are a list
                return False
            if "router" not in self.scope or route.is_routed(self.scope):  # a middleware answers, or an endpoint
                return False
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
        is_handled, error = isinstance(error, Exception), cause(error)
        gone = error is self._send_error or (self._disconnected and isinstance(error, asyncio.CancelledError))
        if gone or isinstance(error, ClientDisconnect):
            self.finish(Outcome.UNKNOWN, CLIENT_DISCONNECTED)
        elif not isinstance(error, Exception):
            self.finish(Outcome.UNKNOWN, CANCELLED)
        elif self._has_started or not (is_handled and self._audit.has_error_handler and self._may_be_handled()):
            self.answered(ERROR_STATUS_MIN, error)

    def _may_be_handled(self) -> bool:
        """Whether its handler will find this exchange: the application may have emptied the scope."""
        scope = self._entered
        return bool(scope.get("type") == "http") and scope.get(SCOPE_KEY) is self

    def answered(self, status: int, error: Exception) -> None:
        """Starlette's outermost layer, which stands outside of us, answers for an unhandled exception."""
        self._status = self._status or status
        self.finish(Outcome.FAILURE, error_type(error))

    def returned(self) -> None:
        """The application returned; unless the response is complete, it never will be."""
        self.finish(Outcome.UNKNOWN, CLIENT_DISCONNECTED if self._disconnected else NO_RESPONSE)
