"""Pure ASGI: watches each request pass and has its record written. It never buffers, and holds nothing of a request."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio.to_thread

from tron_audit_otel import context
from tron_audit_otel.exchange import SCOPE_KEY, HttpExchange, WebSocketExchange, lost

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from tron_audit_otel.event import AuditEvent
    from tron_audit_otel.policy import Policy


class AuditMiddleware:
    """Writes one record for each request that the policy selects, however the request ends."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        rules: Policy,
        emit: Callable[[AuditEvent], None],
        flush: Callable[[], object],
    ) -> None:
        """Wraps an application.

        Args:
            app: The application.
            rules: Selects the requests, and says what they are.
            emit: Takes each event; it must neither raise nor wait.
            flush: Called in a thread when the application's lifespan ends.
        """
        self.app = app
        self.rules = rules
        self.emit = emit
        self.flush = flush

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves the application."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, self._flush_before_the_end_of(send))
        elif scope["type"] not in ("http", "websocket") or SCOPE_KEY in scope:
            await self.app(scope, receive, send)
        else:
            await self._observe(scope, receive, send)

    async def _observe(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = HttpExchange if scope["type"] == "http" else WebSocketExchange
        try:
            exchange = kind(scope, receive, send, self.rules, self.emit)
        except Exception as broken:  # noqa: BLE001 - a request is never broken by its audit
            lost(broken)
            await self.app(scope, receive, send)
            return
        token = context.enter(exchange.draft)
        try:
            await self.app(scope, exchange.receive, exchange.send)
        except BaseException as error:
            exchange.raised(error)
            raise
        else:
            exchange.returned()
        finally:
            context.leave(token)

    def _flush_before_the_end_of(self, send: Send) -> Send:
        async def flushing(message: Message) -> None:
            if message["type"] in ("lifespan.shutdown.complete", "lifespan.shutdown.failed"):
                # The process may be killed as soon as the server reads this message.
                await anyio.to_thread.run_sync(self.flush)
            await send(message)

        return flushing
