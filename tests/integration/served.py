"""The application that the process tests serve."""

from __future__ import annotations

import asyncio
import os
import stat
import time
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from fastapi import FastAPI

import tron_audit_otel as audit

LAG_SAMPLE_SECONDS = 0.002
DISK_SECONDS = float(os.environ.get("TEST_DISK_SECONDS", "0"))

app = FastAPI()
ran: list[str] = []
lags: list[float] = []
delayed: list[str] = []


@app.get("/items/{item}")
@app.get("/kept/{item}")  # for a rule of its own in the policy
async def item(item: str) -> int:
    ran.append(item)
    audit.set_actor("alice@example.com")
    return os.getpid()


@app.get("/slow")
async def slow() -> int:
    await asyncio.sleep(0.5)
    return os.getpid()


@app.get("/ready")
async def ready() -> None: ...


@app.get("/harness/stats")
async def stats() -> Any:
    return plain(audit.stats())


@app.get("/harness/ran")
async def which_ran() -> list[str]:
    return ran


@app.get("/harness/lag/begin")
async def begin_lag() -> None:
    lags.clear()
    app.state.sampler = asyncio.create_task(sample_lag())


@app.get("/harness/lag/end")
async def end_lag() -> dict[str, Any]:
    """The event loop's lag since the beginning: how long after its time a timer ran, in seconds."""
    app.state.sampler.cancel()
    ordered = sorted(lags)
    return {
        "samples": len(ordered),
        "p50": ordered[len(ordered) // 2],
        "p99": ordered[len(ordered) * 99 // 100],
        "max": ordered[-1],
        "delayed": sorted(set(delayed)),
    }


async def sample_lag() -> None:
    while True:
        due = time.perf_counter() + LAG_SAMPLE_SECONDS
        await asyncio.sleep(LAG_SAMPLE_SECONDS)
        lags.append(time.perf_counter() - due)


def plain(value: Any) -> Any:
    """What JSON has for a frozen value."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


def slow_disk(seconds: float) -> None:
    """Makes each write and sync of a regular file take so long, without the interpreter's lock, as the real calls do.

    A fake, since no real disk is slow on demand without root: it stands where the system calls are made.
    """
    for name in ("fsync", "fdatasync", "write", "writev", "pwrite"):
        if real := getattr(os, name, None):
            setattr(os, name, delaying(name, real, seconds))


def delaying(name: str, real: Any, seconds: float) -> Any:
    def call(fd: int, *args: Any) -> Any:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            delayed.append(name)
            time.sleep(seconds)
        return real(fd, *args)

    return call


if DISK_SECONDS:
    slow_disk(DISK_SECONDS)
# Without it only `opentelemetry-instrument` audits this application.
if os.environ.get("TEST_INSTRUMENT", "true") == "true":
    audit.instrument(app)
