"""Drives the application without a server, as it is told: a JSON object a line on stdin, and one a line on stdout.

A process of its own, so that its CPU and its memory are those of the application, with or without its audit.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tron_audit_otel as audit
from benchmarks.growth.app import EXTRA, HEADERS, METHOD, PATH, app
from benchmarks.growth.emitter import Drained, Filled, Window
from benchmarks.growth.processes import rss_bytes
from tests.asgi import http_scope
from tron_audit_otel import pipeline

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from starlette.types import Message

TICK_SECONDS = 0.002
BURST = 64
"""Records between two looks at the clock, at most."""
POLL_SECONDS = 0.01
SETTLE_SECONDS_MAX = 600
QUEUE_FULL = "queue_full"
"""The one loss that a measurement may show: more than this process can take."""

_HEADERS = [(name.encode(), value.encode()) for name, value in {**HEADERS, **EXTRA}.items()]
_SCOPE = http_scope(METHOD, PATH)


async def _receive() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


async def _send(message: Message) -> None: ...


async def _request() -> None:
    await app({**_SCOPE, "headers": list(_HEADERS)}, _receive, _send)


async def _record() -> None:
    audit.record(action="DELETE", resource="backups/42", actor="alice@example.com")


async def _nothing() -> None: ...


SOURCES: dict[str, Callable[[], Awaitable[None]]] = {"request": _request, "record": _record, "nothing": _nothing}


def due(elapsed_s: float, rate: int, done: int) -> int:
    """Return how many more records should be there by now, a burst at most."""
    return max(0, min(int(elapsed_s * rate) - done, BURST))


async def _paced(source: Callable[[], Awaitable[None]], rate: int, seconds: float) -> int:
    """Emit at a rate for so long; what this process cannot reach is not made up for afterwards."""
    tick = max(TICK_SECONDS, 1 / rate) if rate else seconds
    began, done = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - began) < seconds:
        count = due(elapsed, rate, done)
        for _ in range(count):
            await source()
        done += count
        await asyncio.sleep(0 if count == BURST else tick)
    return done


def emit(source: str, rate: int, seconds: float, *, delivered: bool) -> Window:
    """Emit, and wait until all of it is committed, or delivered too: the CPU is that of the whole way."""
    before = audit.stats()
    cpu, began = time.process_time(), time.perf_counter()
    records = asyncio.run(_paced(SOURCES[source], rate, seconds))
    took, rss = time.perf_counter() - began, rss_bytes()
    waiting = audit.stats()
    for _ in _until(lambda: not (audit.stats().pending if delivered else audit.stats().queued)):
        pass
    cpu_s = time.process_time() - cpu
    after = audit.stats()
    dropped = after.dropped.get(QUEUE_FULL, 0) - before.dropped.get(QUEUE_FULL, 0)
    if pipeline.every() and (after.emitted - before.emitted < records or set(after.dropped) - {QUEUE_FULL}):
        raise RuntimeError(f"{records} records should have been written: {after}")
    return Window(took, records, dropped, cpu_s, rss, queued=waiting.queued, pending=waiting.pending)


def fill(frames: str, bytes_min: int) -> Filled:
    """Append so many bytes of encoded records to this process's own journal."""
    outbox = pipeline.every()[0].start().outbox
    if outbox is None:
        raise RuntimeError("there is no journal to fill")
    journal = outbox._opened()  # noqa: SLF001 - to fill it by requests would take minutes
    content = [(bytes.fromhex(payload), records) for payload, records in json.loads(Path(frames).read_text())]
    added, size = 0, 0
    while size < bytes_min:
        payload, records = content[0]
        content.append(content.pop(0))
        outbox.ledger.adopt(records)
        journal.append(payload, records)
        added, size = added + records, size + len(payload)
    return Filled(added, size)


def drain() -> Drained:
    """Wait until everything is delivered; the time counts from the first of it."""
    pending = before = _undelivered()
    cpu, began, rss_peak = time.process_time(), time.perf_counter(), rss_bytes()
    for _ in _until(lambda: not _undelivered()):
        if pending == before:
            cpu, began, pending = time.process_time(), time.perf_counter(), _undelivered()
        rss_peak = max(rss_peak, rss_bytes())
    return Drained(before, time.perf_counter() - began, time.process_time() - cpu, rss_peak)


def first() -> dict[str, int]:
    """Emit a record, and wait until it is committed."""
    asyncio.run(_request())
    for _ in _until(lambda: not audit.stats().queued):
        pass
    return {"rss_bytes": rss_bytes()}


def adopted() -> dict[str, int]:
    """Wait until the journal of a dead process is found."""
    for _ in _until(lambda: audit.stats().adopted.emitted):
        pass
    return {"records": audit.stats().adopted.emitted, "rss_bytes": rss_bytes()}


def _undelivered() -> int:
    stats = audit.stats()
    return stats.pending + stats.adopted.pending


def _until(found: Callable[[], object]) -> Iterator[None]:
    deadline = time.monotonic() + SETTLE_SECONDS_MAX
    while not found():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {SETTLE_SECONDS_MAX} s: {audit.stats()}")
        time.sleep(POLL_SECONDS)
        yield


ORDERS: dict[str, Callable[..., Any]] = {each.__name__: each for each in (emit, fill, drain, first, adopted)}


def main() -> None:
    """Do as told until stdin ends."""
    for line in sys.stdin:
        order = json.loads(line)
        found = ORDERS[order.pop("do")](**order)
        sys.stdout.write(json.dumps(found if isinstance(found, dict) else asdict(found)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
