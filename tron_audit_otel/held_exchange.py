"""A response that its client does not have whole before its record is on disk: `commit: response`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tron_audit_otel.errors import JournalError
from tron_audit_otel.http_exchange import HttpExchange
from tron_audit_otel.messages import BYTES, body_of, bytes_announced, ends_response, kind_of, readable

if TYPE_CHECKING:
    from starlette.types import Message


class HeldExchange(HttpExchange):
    """A request and its response, whose last part waits for the record."""

    _held: Message | None = None
    """The start of a response, held until its client could take it for a whole one."""
    _has_begun = False
    _is_withdrawn = False
    _ends_with_connection = False
    _kept_byte = b""
    """Of an answer that ends with its connection: without it, the client has not all of it."""

    async def send(self, message: Message) -> None:
        """Passes a message to the server, but at first not the one that completes the answer."""
        if self._is_withdrawn:
            return
        kind = kind_of(message)
        if kind == "http.response.start":
            message = readable(message)
            if await self._is_held(message):
                return
        is_last = ends_response(message)
        if not await self._may_pass(message, is_last=is_last):
            return
        await self._release_held()
        await self._pass(self._but_last_byte(message, is_last=is_last) if self._ends_with_connection else message)

    async def _pass(self, message: Message) -> None:
        self._has_begun |= kind_of(message) == "http.response.start"
        await super().send(message)

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
        await self._release_held()  # a second start is the server's to refuse
        self._note_start(start)
        self._bytes_left = bytes_announced(self._method, start)
        self._ends_with_connection = self._bytes_left is None and self._is_http_1_0(start)
        if not self._bytes_left:  # with 0 it is whole by itself
            return False
        self._held = start
        return True

    def _is_http_1_0(self, start: Message) -> bool:
        """Whether the client takes any end of the connection for the answer's; a stream of events has none to take."""
        try:
            return bool(self.scope.get("http_version") == "1.0") and not any(
                name.lower() == b"content-type" and value.lower().startswith(b"text/event-stream")
                for name, value in start.get("headers", ())
            )
        except Exception:  # noqa: BLE001 - no headers that a server could send
            return False

    def _but_last_byte(self, message: Message, *, is_last: bool) -> Message:
        """Gives the message with the byte that was held before, and holds its own last one."""
        if kind_of(message) != "http.response.body" or not isinstance(message.get("body", b""), BYTES):
            return message
        body = self._kept_byte + body_of(message)
        self._kept_byte = b"" if is_last else body[-1:]
        return {**message, "body": body if is_last else body[:-1]}

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

    async def settle(self) -> None:
        """Holds an exception, or the end without an answer, until its record is on disk."""
        if self._is_withdrawn:
            return
        if not await self.is_committed():
            await self.withdraw()
        await self._release_held()
        if self._kept_byte:
            body, self._kept_byte = self._kept_byte, b""
            await self._pass({"type": "http.response.body", "body": body, "more_body": True})

    def raised(self, error: BaseException) -> None:
        """The application raised; a response may have begun."""
        if self._held is not None:
            self._held = self._status = None  # the client has nothing of it, and never will
            self._has_started = False
        super().raised(error)
