"""The application that is served, in each of its variants: ``uvicorn --factory benchmarks.apps:create``.

Half of what it is asked reads, half creates. Beside it the event loop's lag is sampled, and written when it stops.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import os
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import FastAPI
from pydantic import BaseModel, Field

from benchmarks.facts import EVENT_NAME, HEALTH, gather
from benchmarks.variants import Capture

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from fastapi import Request, Response
    from starlette.middleware.base import RequestResponseEndpoint
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from benchmarks.facts import Facts

CAPTURE = "BENCH_CAPTURE"
FREEZE = "BENCH_FREEZE"
LAG_FILE = "BENCH_LAG_FILE"
STORE = "BENCH_STORE"
"""Where the original design posts to."""

LAG_SAMPLE_SECONDS = 0.005


class Instance(BaseModel):
    """What a client wants created."""

    name: str = Field(max_length=64)
    size: int = Field(ge=1)
    tags: list[str] = []


def create() -> FastAPI:
    """Makes the application that the environment names."""
    capture = Capture(os.environ[CAPTURE])
    app = FastAPI(lifespan=_lifespan)

    @app.get("/instances/{instance_id}")
    async def read(instance_id: str) -> dict[str, str]:
        return {"id": instance_id, "state": "running"}

    @app.post("/instances", status_code=201)
    async def add(instance: Instance) -> dict[str, str]:
        return {"id": "abc-123", "name": instance.name}

    @app.get(HEALTH)
    async def health() -> dict[str, str]:
        return {"status": "healthy"}

    if capture is Capture.OURS:
        import tron_audit_otel as audit  # noqa: PLC0415 - the other variants shall not pay for it

        audit.instrument(app)
    elif capture is Capture.STOCK:
        app.add_middleware(Observer, emit=_stock_emitter(app))
    elif capture is Capture.POST:
        _post_each(app, os.environ[STORE])
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    if FREEZE in os.environ:
        gc.collect()
        gc.freeze()
    lags: list[tuple[float, float]] = []
    sampler = asyncio.create_task(_sample_lag(lags))
    try:
        yield
    finally:
        sampler.cancel()
        for close in getattr(app.state, "closers", ()):
            await asyncio.to_thread(close)
        await asyncio.to_thread(Path(os.environ[LAG_FILE]).write_text, json.dumps(lags))


async def _sample_lag(lags: list[tuple[float, float]]) -> None:
    """Notes by how much later than asked for the loop woke it, and when, by a clock that all processes share."""
    while True:
        due = time.monotonic() + LAG_SAMPLE_SECONDS
        await asyncio.sleep(LAG_SAMPLE_SECONDS)
        now = time.monotonic()
        lags.append((now, max(now - due, 0.0)))


class Observer:
    """Pure ASGI: hands on what became of each request when its answer has been sent."""

    def __init__(self, app: ASGIApp, emit: Callable[[Facts], None]) -> None:
        """Wraps an application."""
        self.app = app
        self.emit = emit
        self.numbers = itertools.count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves the application."""
        if scope["type"] != "http" or scope["path"] == HEALTH:
            await self.app(scope, receive, send)
            return
        began_ns = time.time_ns()
        status = 0

        async def observe(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        await self.app(scope, receive, observe)
        self.emit(gather(scope, status, began_ns, next(self.numbers)))


def _stock_emitter(app: FastAPI) -> Callable[[Facts], None]:
    """What OpenTelemetry's documentation shows: everything with its default settings."""
    from opentelemetry._logs import LogRecord, SeverityNumber  # noqa: PLC0415 - as above
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter  # noqa: PLC0415
    from opentelemetry.sdk._logs import LoggerProvider  # noqa: PLC0415
    from opentelemetry.sdk._logs.export import BatchLogRecordProcessor  # noqa: PLC0415

    provider = LoggerProvider()
    provider.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter()))
    logger = provider.get_logger("stock")
    app.state.closers = [provider.shutdown]

    def emit(facts: Facts) -> None:
        logger.emit(
            LogRecord(
                timestamp=facts.began_ns,
                observed_timestamp=facts.ended_ns,
                severity_number=SeverityNumber.INFO,
                severity_text="INFO",
                body=facts.body,
                attributes=facts.attributes,
                event_name=EVENT_NAME,
            )
        )

    return emit


def _post_each(app: FastAPI, store: str) -> None:
    """The original design: each answer waits until its record has been posted, by a client made for it."""
    import httpx  # noqa: PLC0415 - as above

    numbers = itertools.count(1)
    headers = {"content-type": "application/stream+json"}

    @app.middleware("http")
    async def post(request: Request, call_next: RequestResponseEndpoint) -> Response:
        if request.scope["path"] == HEALTH:
            return await call_next(request)
        began_ns = time.time_ns()
        response = await call_next(request)
        facts = gather(request.scope, response.status_code, began_ns, next(numbers))
        record = {"_time": facts.ended_ns, "_msg": facts.body, "event_name": EVENT_NAME, **facts.attributes}
        try:
            async with httpx.AsyncClient() as client:
                answer = await client.post(store, content=json.dumps(record), headers=headers)
            answer.raise_for_status()
        except httpx.HTTPError:
            app.state.failed = getattr(app.state, "failed", 0) + 1  # the request goes on, and the record is lost
        return response
