"""A WebSocket as it passes, and how it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.websockets import WebSocketDisconnect

from tron_audit_otel.errors import JournalError
from tron_audit_otel.event import ERROR_STATUS_MIN, Outcome, cause, error_type
from tron_audit_otel.exchange import CANCELLED, CLIENT_DISCONNECTED, NO_RESPONSE, Exchange
from tron_audit_otel.messages import bytes_announced, code_of, is_whole, kind_of, readable, status_of

if TYPE_CHECKING:
    from starlette.types import Message

SWITCHING_PROTOCOLS = 101
FORBIDDEN = 403

NORMAL_CLOSURE, GOING_AWAY, NO_CODE, CLOSED_ABNORMALLY = 1000, 1001, 1005, 1006
"""RFC 6455, 7.4.1."""

SERVER_STOPPED, TRY_AGAIN_LATER = 1012, 1013
"""IANA, WebSocket close codes. The first, "service restart", is what uvicorn tells both sides when it is stopped."""

CLOSED_NORMALLY = (NORMAL_CLOSURE, GOING_AWAY, NO_CODE)

BEGINNINGS = ("websocket.accept", "websocket.http.response.start")


class WebSocketExchange(Exchange):
    """A WebSocket from handshake to close, or a refused handshake. It ends when its handler ends."""

    _denial: Message | None = None
    """The start of a denial response, held as that of any other response."""
    _has_begun = _is_withdrawn = False

    async def receive(self) -> Message:
        """Passes a message to the application."""
        message = await self._receive()
        if kind_of(message) == "websocket.disconnect":
            self._disconnected = True
            self._closed(code_of(message) or NO_CODE)
        return message

    async def send(self, message: Message) -> None:
        """Passes a message to the server; under `commit: response` not the last one, at first."""
        if self._is_withdrawn:
            return
        if self._audit.commit is not None:
            if kind_of(message) == "websocket.http.response.start":
                message = readable(message)
                self._note(message)
                self._denial, self._bytes_left = message, bytes_announced("GET", message)
                return
            if self._ends(message):
                self._note(message)
                if self._waits():
                    self.returned()
                await self.settle()
                if self._is_withdrawn:
                    return
            await self._release_denial()
        await self._pass(message)

    async def _release_denial(self) -> None:
        if (denial := self._denial) is not None:
            self._denial = None
            await self._pass(denial)

    async def _pass(self, message: Message) -> None:
        self._has_begun |= kind_of(message) in BEGINNINGS
        try:
            await self._send(message)
        except OSError:
            self._closed(CLOSED_ABNORMALLY)  # as Starlette's own WebSocketDisconnect has it
            raise
        self._note(message)

    def _ends(self, message: Message) -> bool:
        kind = kind_of(message)
        if kind != "websocket.http.response.body":
            return kind == "websocket.close"
        return self._completes(message, is_last=is_whole(message))

    def _note(self, message: Message) -> None:
        kind = kind_of(message)
        if kind == "websocket.accept":
            self._status = SWITCHING_PROTOCOLS
        elif kind == "websocket.http.response.start":
            self._status = status_of(message)
        elif kind == "websocket.close" and self._status is None:
            self._status = FORBIDDEN  # ASGI: a close before the accept refuses the handshake so
        elif kind == "websocket.close" and self._status == SWITCHING_PROTOCOLS:
            self._closed(code_of(message) or NORMAL_CLOSURE)

    def _can_deny(self) -> bool:
        try:
            return "websocket.http.response" in (self._entered.get("extensions") or {})
        except Exception:  # noqa: BLE001 - a server may give anything
            return False

    async def refuse(self) -> None:
        """Refuses the handshake."""
        if not self._can_deny():
            await self._send({"type": "websocket.close", "code": TRY_AGAIN_LATER})
            return
        await self._send_refusal("websocket.http.response")

    async def settle(self) -> None:
        """Holds the end until its record is on disk.

        Raises:
            JournalError: It cannot be; the server closes the connection.
        """
        if self._is_withdrawn:
            return
        if await self.is_committed():
            await self._release_denial()
            return
        self._is_withdrawn = True
        if not self._has_begun:
            await self.refuse()
        elif self._status == SWITCHING_PROTOCOLS and not self._disconnected:
            await self._send({"type": "websocket.close", "code": TRY_AGAIN_LATER})
        else:
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
