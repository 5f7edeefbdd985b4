"""The long form of the ASGI fuzz: through real pipelines, whose Collector is dead and whose journals are full."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import statistics
import threading
import time
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING

import psutil
import pytest

import tron_audit_otel as audit
from tests.asgi_fuzz import conversation_of, converse
from tests.integration.gateway import REFUSED
from tests.test_asgi_fuzz import WHOLES, Whole, check_held, differing, is_recorded, may_have_none, said
from tron_audit_otel import pipeline
from tron_audit_otel.config import AuditConfig

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECONDS = 310
"""For each journal; both take more than ten minutes."""

SHUTDOWN_SECONDS_MAX = 30
TOLD_SECONDS = 30
SAMPLED_SECONDS = 2

GROWTH_MAX = 1.05
"""Of the memory, from the second quarter of the time to the last: it has its full size by then."""

COMMITS = {"memory": ["batch"], "disk": ["batch", "response"]}
"""Nothing in memory is committed."""

JOURNAL_BYTES_MAX = 4 * 2**20
WHOLE_NAMES = [name for name in WHOLES if name != "debugged"]
"""A debugged application's page shows the call stack, which is not the bare one's."""


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """What is logged of millions of wrong arguments."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def seed() -> int:
    """Of the conversations; ``TEST_ASGI_SEED`` brings those of another run again."""
    return int(os.environ.get("TEST_ASGI_SEED") or time.time_ns())


@pytest.mark.soak
@pytest.mark.parametrize("journal", COMMITS)
def test_hostile_conversations_for_minutes(tmp_path: Path, journal: str) -> None:
    """As without audit; each with its record, and all of them accounted for; no task, thread or memory is left."""
    begun_with = seed()
    print(f"\n{journal} journal, TEST_ASGI_SEED={begun_with}", flush=True)  # noqa: T201 - to bring them again
    before = audit.stats()
    assert before.emitted == before.delivered + before.pending + before.dead_lettered + sum(before.dropped.values())
    threads = set(threading.enumerate())
    configs = {commit: config(tmp_path / commit, journal, commit) for commit in COMMITS[journal]}
    pairs = {
        (name, commit): (Whole(**WHOLES[name]), Whole(**WHOLES[name])) for name in WHOLE_NAMES for commit in configs
    }
    for (_, commit), (_, audited) in pairs.items():
        audit.instrument(audited.app, config=configs[commit])
    pipelines = pipeline.every()  # as long as it exists, its counts are known
    try:
        requests, sizes = asyncio.run(talk(pairs, Random(begun_with)))  # noqa: S311 - as said
    finally:
        for _, audited in pairs.values():
            audit.uninstrument(audited.app)
    stats = audit.stats()
    assert pipelines
    assert stats.emitted == stats.delivered + stats.pending + stats.dead_lettered + sum(stats.dropped.values()), stats
    assert stats.emitted - before.emitted >= requests
    assert stats.dropped.get("unencodable", 0) == stats.dropped.get("failed", 0) == 0
    for thread in set(threading.enumerate()) - threads:
        if thread.name.startswith("tron"):
            thread.join(SHUTDOWN_SECONDS_MAX)
            assert not thread.is_alive(), thread.name
    quarter = len(sizes) // 4
    early, late = statistics.median(sizes[2 * quarter : 3 * quarter]), statistics.median(sizes[-quarter:])
    assert late <= GROWTH_MAX * early, sizes


def config(directory: Path, journal: str, commit: str) -> AuditConfig:
    directory.mkdir(mode=0o700)
    return AuditConfig.from_env(
        {
            "AUDIT_LOG_ENABLED": "true",
            "AUDIT_LOG_JOURNAL": journal,
            "AUDIT_LOG_JOURNAL_DIR": str(directory),
            "AUDIT_LOG_JOURNAL_MAX_BYTES": str(JOURNAL_BYTES_MAX),
            "AUDIT_LOG_COMMIT": commit,
            "AUDIT_LOG_ON_FULL": "drop",
            "AUDIT_LOG_RETRY_SECONDS_MAX": "1",
            "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": f"{REFUSED}/v1/logs",
        }
    )


async def talk(pairs: dict[tuple[str, str], tuple[Whole, Whole]], random: Random) -> tuple[int, list[int]]:
    """Gives how many requests must be on record, and the memory now and then."""
    process, requests, conversations, sizes = psutil.Process(), 0, 0, [0]
    began = told = sampled = time.monotonic()
    while (now := time.monotonic()) < began + SECONDS:
        (_, commit), (plain, audited) = random.choice(list(pairs.items()))
        conversation = replace(conversation_of(random), copies=None)
        expected, seen = await converse(conversation, plain.wrap), await converse(conversation, audited.wrap)
        with said(conversation):
            assert seen.left == 0
            if commit == "response":
                check_held(conversation, expected, seen)
            else:
                assert seen == expected, differing(expected, seen)
        conversations += 1
        requests += is_recorded(conversation) and not may_have_none(conversation)
        if now > sampled + SAMPLED_SECONDS:
            gc.collect()
            sizes.append(process.memory_info().rss)
            sampled = now
        if now > told + TOLD_SECONDS:
            told = now
            line = f"{now - began:4.0f} s: {conversations} conversations, {audit.stats().emitted} records"
            print(f"{line}, {sizes[-1] / 2**20:.0f} MiB", flush=True)  # noqa: T201 - so that somebody can watch it
    return requests, sizes[1:]
