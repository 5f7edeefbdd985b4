"""Drives an ASGI application message by message, for endings that no test client can bring about."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.types import ASGIApp, Message, Scope


def http_scope(method: str = "GET", path: str = "/", **changes: Any) -> Scope:
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"test")],
        "client": ("192.0.2.7", 40000),
        "server": ("test", 80),
    }
    return scope | changes


def websocket_scope(path: str = "/", **changes: Any) -> Scope:
    scope = http_scope(path=path, type="websocket", scheme="ws", subprotocols=[], **changes)
    del scope["method"]
    return scope


class Peer:
    """Both sides of the server's contract: gives the application its messages, keeps what it sends."""

    def __init__(self, messages: Iterable[Message] = ({"type": "http.request"},)) -> None:
        self.messages = list(messages)
        self.sent: list[Message] = []
        self.raise_on_send: int | None = None
        self.more = asyncio.Event()

    async def receive(self) -> Message:
        while not self.messages:
            self.more.clear()
            await self.more.wait()
        return self.messages.pop(0)

    async def send(self, message: Message) -> None:
        if self.raise_on_send is not None and len(self.sent) >= self.raise_on_send:
            raise OSError("the client is gone")
        self.sent.append(message)

    def leave(self) -> None:
        self.messages.append({"type": "http.disconnect"})
        self.more.set()


async def drive(app: ASGIApp, scope: Scope, peer: Peer) -> BaseException | None:
    """Serves one request, and gives the exception that the server would see."""
    try:
        await app(scope, peer.receive, peer.send)
    except BaseException as error:  # noqa: BLE001 - the server's own view
        return error
    return None
