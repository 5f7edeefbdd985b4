"""Pure ASGI: watches each request pass and has its record written. It never buffers, and holds nothing of a request."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
from starlette._utils import is_async_callable
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse
from starlette.websockets import WebSocketDisconnect

from tron_audit_otel import context, route
from tron_audit_otel.event import ERROR_STATUS_MIN, cause, error_type
from tron_audit_otel.exchange import NO_ROOM, SCOPE_KEY, UNAVAILABLE, Exchange, is_excluded, known_method, lost, unmark
from tron_audit_otel.held_exchange import HeldExchange
from tron_audit_otel.http_exchange import HttpExchange
from tron_audit_otel.messages import kind_of, status_of
from tron_audit_otel.policy import WEBSOCKET
from tron_audit_otel.websocket_exchange import WebSocketExchange

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from tron_audit_otel.exchange import Audit

_ErrorHandler = Callable[[Any, Exception], Any]
"""Starlette's type for an exception handler, synchronous or not."""


def reporting(handler: _ErrorHandler) -> _ErrorHandler:
    """Wraps the application's handler for unhandled exceptions: only it knows the status that the client will get."""

    async def report(request: Request, error: Exception) -> Response:
        try:
            answer = (
                handler(request, error) if is_async_callable(handler) else run_in_threadpool(handler, request, error)
            )
            response: Response = await answer
        except Exception:
            # The server answers for it, unless it must not.
            if (refused := await _reported(request, ERROR_STATUS_MIN, error)) is None:
                raise
            return refused
        except BaseException as ended:
            await _reported(request, ERROR_STATUS_MIN, error, waits=not isinstance(ended, GeneratorExit))
            raise
        return await _reported(request, _status(response), error) or response

    return report


def _status(response: object) -> int:
    """Gives a response's status; what is no response is the application's own error."""
    try:
        return status_of({"status": getattr(response, "status_code", None)}) or ERROR_STATUS_MIN
    except Exception:  # noqa: BLE001 - a handler may give anything
        return ERROR_STATUS_MIN


async def _reported(request: Request, status: int, error: Exception, *, waits: bool = True) -> Response | None:
    """Tells the exchange how the application answers; gives what to answer instead."""
    exchange = request.scope.get(SCOPE_KEY)
    if not isinstance(exchange, HttpExchange):
        return None
    exchange.answered(status, error)
    may_answer = not waits or await exchange.is_committed()  # who closes a coroutine cannot wait
    exchange.release()
    return None if may_answer else PlainTextResponse(NO_ROOM, UNAVAILABLE, {"retry-after": "1"})


class ErrorObserver:
    """Stands inside of all the application's own middleware, and notes the exception that is about to reach it.

    A middleware may turn the exception into a response, and BaseHTTPMiddleware completes a response that an exception
    cut short; from outside, either looks like an ordinary end.
    """

    def __init__(self, app: ASGIApp) -> None:
        """Wraps an application."""
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves the application."""
        exchange: Exchange | None = None
        try:
            exchange = scope.get(SCOPE_KEY)
            if exchange is not None:
                # A middleware may have handed on a copy, and this is the one that is routed.
                exchange.scope = exchange.draft.scope = scope
        except Exception:  # noqa: BLE001 - a server or a middleware may hand over anything
            exchange = None
        try:
            await self.app(scope, receive, send)
        except Exception as error:
            if exchange is not None:
                _note(error, exchange)
            raise


def _note(error: Exception, exchange: Exchange) -> None:
    try:
        if not isinstance(cause(error), ClientDisconnect | WebSocketDisconnect):
            exchange.draft.error_type = error_type(error)
    except Exception:  # noqa: BLE001 - neither of them may be what it should be
        return


class AuditMiddleware:
    """Writes one record for each request that the policy selects, however the request ends."""

    def __init__(self, app: ASGIApp, audit: Audit, start: Callable[[], object], end: Callable[[], object]) -> None:
        """Wraps an application.

        Args:
            app: The application.
            audit: What its requests are recorded with.
            start: Called in a thread when the application has started, so that its first request need not wait.
            end: Called in a thread when the application's lifespan ends.
        """
        self.app = app
        self.audit = audit
        self.start = start
        self.end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves the application."""
        kind = kind_of(scope)
        if kind not in ("http", "websocket") or SCOPE_KEY in scope:
            await self.app(scope, receive, self._with_the_lifespan(send) if kind == "lifespan" else send)
            return
        audit, exchange, draft = self.audit, None, None
        try:
            door = route.well_formed(scope)
            draft = context.Draft(audit.recorder, context.open_telemetry_context(), door)
            method = known_method(door)
            excluded = is_excluded(audit.rules, method, door)
            exchange = None if excluded else self._kind(method)(scope, door, method, receive, send, audit, draft)
            is_refused = exchange is not None and not exchange.is_admitted()
        except Exception as broken:  # noqa: BLE001 - a request is never broken by its audit
            unmark(scope)
            lost(broken, audit)
            draft = None
        if draft is None:
            await self.app(scope, receive, send)
            return
        if exchange is None:
            await self._pass_by(scope, receive, send, draft)
            return
        if is_refused:
            try:
                await exchange.refuse()
            finally:
                exchange.release()
            return
        token = context.enter(draft)
        try:
            await self.app(scope, exchange.receive, exchange.send)
        except BaseException as error:
            exchange.ended_by(error)
            # Also when cancelled: servers answer for a cancelled application with a 500 of their own. What comes in the
            # way here is not raised, since the application's own error says enough. And who closes a coroutine cannot
            # wait.
            if audit.commit is not None and not isinstance(error, GeneratorExit):
                with suppress(Exception), anyio.CancelScope(shield=True):
                    await exchange.settle()
            raise
        else:
            exchange.returned()
            if audit.commit is not None:
                await exchange.settle()
        finally:
            context.leave(draft, token)
            exchange.release()

    def _kind(self, method: str) -> type[Exchange]:
        if method == WEBSOCKET:
            return WebSocketExchange
        return HttpExchange if self.audit.commit is None else HeldExchange

    async def _pass_by(self, scope: Scope, receive: Receive, send: Send, draft: context.Draft) -> None:
        """Serves a request that has no record; what its handler records is on record all the same."""
        with suppress(Exception):  # a scope that cannot be marked
            scope[SCOPE_KEY] = None
        draft.scope, draft.closed = scope, True  # so that each execution has a record of its own
        token = context.enter(draft)
        try:
            await self.app(scope, receive, send)
        finally:
            context.leave(draft, token)
            unmark(scope)

    def _with_the_lifespan(self, send: Send) -> Send:
        async def sending(message: Message) -> None:
            kind = kind_of(message)
            try:
                if kind == "lifespan.startup.complete":
                    await _in_thread(self.start)
                elif kind in ("lifespan.shutdown.complete", "lifespan.shutdown.failed"):
                    # The process may be killed as soon as the server reads this message.
                    await _in_thread(self.end)
            except Exception as broken:  # noqa: BLE001 - the first event tries again, and says what it costs
                lost(broken)
            await send(message)

        return sending


async def _in_thread(call: Callable[[], object]) -> None:
    """Calls it in a thread of its own: the application's may all hang."""
    await anyio.to_thread.run_sync(call, limiter=anyio.CapacityLimiter(1))
