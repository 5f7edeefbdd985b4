"""The application that the process tests serve."""

from __future__ import annotations

import asyncio
import os

from fastapi import FastAPI

import tron_audit_otel as audit

app = FastAPI()


@app.get("/items/{item}")
async def item(item: str) -> int:
    audit.set_actor("alice@example.com")
    return os.getpid()


@app.get("/slow")
async def slow() -> int:
    await asyncio.sleep(0.5)
    return os.getpid()


@app.get("/ready")
async def ready() -> None: ...


# Without it only `opentelemetry-instrument` audits this application.
if os.environ.get("TEST_INSTRUMENT", "true") == "true":
    audit.instrument(app)
