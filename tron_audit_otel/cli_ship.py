"""``tron-audit journal ship``: delivers by hand what processes that are gone have left."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tron_audit_otel.cli_stop import EXIT_SIGNAL, stopped
from tron_audit_otel.cli_text import (
    EXIT_OK,
    EXIT_WORK,
    Answer,
    count,
    duration,
    journal_root,
    logged,
    nothing_yet,
)
from tron_audit_otel.journal_dir import inspect
from tron_audit_otel.pipeline import Pipeline

if TYPE_CHECKING:
    import threading
    from collections.abc import Sequence
    from pathlib import Path

    from tron_audit_otel.cli_text import Progress
    from tron_audit_otel.config import AuditConfig
    from tron_audit_otel.journal_dir import State
    from tron_audit_otel.ledger import Stats

POLL_SECONDS = 0.2
OTHERS_SECONDS = 3
"""A journal that is held for so long while we hold none: another process took it over before we came to it."""


def ship(config: AuditConfig, progress: Progress, seconds_max: float | None = None) -> Answer:
    """Takes over what processes that are gone have left, and delivers it.

    It ends when all of it is delivered or set aside, when the time is over, or by Ctrl-C; what is left then stays
    where the next process finds it.

    Args:
        config: The configuration, with the endpoint.
        progress: Is told how it stands.
        seconds_max: How long it may take; by default as long as it takes.

    Raises:
        ConfigError: There is no journal on disk.
        JournalError: It cannot be read.
    """
    root = journal_root(config)
    if (answer := nothing_yet(root)) is not None:
        return answer
    before = inspect(root)
    orphans = {state.name for state in before if state.records and not state.alive}
    # Without any, no record of a start and an end is written either.
    outcome = _run(config, root, orphans, progress, seconds_max) if orphans else None
    return _answer(orphans, before, inspect(root), outcome)


@dataclass(frozen=True, slots=True)
class _Outcome:
    stats: Stats
    obstacle: str | None
    """That there was when the waiting ended; what comes of the end itself is none."""
    signal: int
    """That ended it; 0: none."""
    seconds: float


def _run(config: AuditConfig, root: Path, orphans: set[str], progress: Progress, seconds_max: float | None) -> _Outcome:
    pipeline = Pipeline(config)
    began_s = time.monotonic()
    try:
        with logged(progress, logging.getLogger("tron_audit_otel")), stopped() as stop:
            try:
                pipeline.start()
                _wait(pipeline, _Watch(root, orphans), stop, progress, seconds_max)
                obstacle = _obstacle(pipeline.stats())
            finally:
                pipeline.shutdown()
    finally:
        progress.end()
    return _Outcome(pipeline.stats(), obstacle, stop.signal, time.monotonic() - began_s)


def _wait(
    pipeline: Pipeline, watch: _Watch, stop: threading.Event, progress: Progress, seconds_max: float | None
) -> None:
    began_s = time.monotonic()
    while not stop.wait(POLL_SECONDS):
        stats, elapsed_s = pipeline.stats(), time.monotonic() - began_s
        if watch.is_done(stats) or (seconds_max is not None and elapsed_s >= seconds_max):
            return
        progress.show(_progress(stats, elapsed_s))


class _Watch:
    """Knows when nothing is left to do."""

    def __init__(self, root: Path, orphans: set[str]) -> None:
        self._root = root
        self._orphans = orphans
        self._others_since_s: float | None = None

    def is_done(self, stats: Stats) -> bool:
        """Tells whether all of it is delivered, set aside, or in the hands of another process."""
        if stats.pending or stats.adopted.pending:
            self._others_since_s = None
            return False
        left = [state for state in inspect(self._root) if state.records]
        if any(not state.alive for state in left):
            return False
        if all(state.name not in self._orphans for state in left):
            return True
        # Somebody has taken it over; should that be us, the counts will say so in a moment.
        self._others_since_s = self._others_since_s or time.monotonic()
        return time.monotonic() - self._others_since_s > OTHERS_SECONDS


def _progress(stats: Stats, elapsed_s: float) -> str:
    adopted = stats.adopted
    rate = f", {adopted.delivered / elapsed_s:,.0f} a second" if adopted.delivered else ""
    return f"{adopted.delivered:,} of {count(adopted.emitted)} delivered{rate}; {_obstacle(stats) or stats.shipping}"


def _obstacle(stats: Stats) -> str | None:
    if stats.blocked is not None:
        return f"no record of this command can be written: {stats.blocked}"
    return f"{stats.shipping}: {stats.reason}" if stats.reason is not None else None


def _answer(orphans: set[str], before: Sequence[State], after: Sequence[State], outcome: _Outcome | None) -> Answer:
    live = [state for state in before if state.alive]
    data: dict[str, object] = {"live": {"journals": len(live), "records": sum(state.records for state in live)}}
    lines = []
    if live:
        lines.append(f"Left alone: {count(sum(state.records for state in live))} of processes that are alive.")
    if outcome is None:
        data = {"ok": True, "found": 0, "delivered": 0, "dead_lettered": 0, "dropped": {}, "left": 0, **data}
        return Answer(EXIT_OK, data, ["Nothing to ship: no process that is gone has left a record.", *lines])
    stats, adopted = outcome.stats, outcome.stats.adopted
    left = [state for state in after if state.records and not state.alive]
    records_left = sum(state.records for state in left)
    own_left = sum(state.records for state in left if state.name == stats.journal)
    taken = sum(state.records for state in after if state.alive and state.name in orphans)
    dead_lettered = stats.dead_lettered + adopted.dead_lettered
    is_all = not (records_left or dead_lettered or adopted.dropped)
    code = EXIT_SIGNAL + outcome.signal if outcome.signal else EXIT_OK if is_all else EXIT_WORK
    data = {
        "ok": code == EXIT_OK,
        "found": adopted.emitted,
        "delivered": adopted.delivered,
        "dead_lettered": dead_lettered,
        "dropped": adopted.dropped,
        "left": records_left,
        "left_own": own_left,
        "taken_by_others": taken,
        "reason": outcome.obstacle,
        "signal": outcome.signal or None,
        "seconds": round(outcome.seconds, 3),
        **data,
    }
    told = [f"Delivered: {adopted.delivered:,} of {count(adopted.emitted)}, in {duration(outcome.seconds)}."]
    if dead_lettered:
        told.append(f"Set aside: {count(dead_lettered)}. See `tron-audit journal dead-letters`.")
    told += [f"Lost: {count(records)}, {reason}." for reason, records in adopted.dropped.items()]
    if records_left:
        own = f", {own_left:,} of them about this command," if own_left else ""
        why = outcome.obstacle or ("it was interrupted" if outcome.signal else "the time was over")
        told.append(f"Left: {count(records_left)}{own} because {why}. The next process goes on with them.")
    if taken:
        told.append(f"Taken over by another process meanwhile: {count(taken)}.")
    return Answer(code, data, [*told, *lines])
