"""What a long outage of the Collector costs: while it lasts, when it ends, and at a restart in the midst of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from benchmarks.growth.sheet import MIB, Column, Micros, Rss, Sheet, median, per
from benchmarks.growth.stage import joined, write_frames

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.growth.emitter import Drained, Emitter, Window
    from benchmarks.growth.sheet import Say
    from benchmarks.growth.stage import Effort, Stage
    from tests.integration.gateway import Gateway

RATE = 1_000
WARM_SECONDS = 0.5
FRAME_RECORDS = 512
"""As many as a commit holds at most (AUDIT_LOG_BATCH_RECORDS_MAX)."""

Held = Annotated[int, Column("journal, MB", ",.0f", 10**6)]


@dataclass(frozen=True)
class Cost:
    """What a record costs beside a backlog, while the Collector is dead."""

    backlog_bytes: Held
    us_per_record: Micros
    rss_bytes: Rss


@dataclass(frozen=True)
class Drain:
    """The Collector is back."""

    whose: Annotated[str, Column("journal")]
    records: Annotated[int, Column("records", ",d")]
    bytes: Held
    seconds: Annotated[float, Column("s", ".1f")]
    records_per_s: Annotated[float, Column("records/s", ",.0f")]
    us_per_record: Micros
    rss_peak_bytes: Annotated[int, Column("RSS at its peak, MiB", ".1f", MIB)]


@dataclass(frozen=True)
class Start:
    """A process starts, and finds a dead one's journal."""

    backlog_bytes: Held
    first_s: Annotated[float, Column("until its first record is committed, s", ".2f")]
    adopted_s: Annotated[float | None, Column("until the journal is adopted, s", ".2f")]
    rss_bytes: Rss


def drain(whose: str, held: int, drained: Drained) -> Drain:
    """Make a row."""
    rate = drained.records / drained.seconds
    cost = per(drained.cpu_s, drained.records)
    return Drain(whose, drained.records, held, drained.seconds, rate, cost, drained.rss_peak_bytes)


def cost(held: int, audited: list[Window], bare: list[Window]) -> Cost:
    """Make a row."""
    with_us, without_us = (median(per(each.cpu_s, each.records) for each in windows) for windows in (audited, bare))
    return Cost(held, with_us - without_us, int(median(each.rss_bytes for each in audited)))


def typical(starts: list[Start]) -> Start:
    """Return the start that took neither the longest nor the shortest."""
    return sorted(starts, key=lambda each: each.first_s)[len(starts) // 2]


def measure(stage: Stage, effort: Effort, say: Say) -> list[Sheet]:
    """Fill a journal, look, let the Collector come; fill it again, kill its process, and let another one adopt it."""
    frames = write_frames(stage.directory / "frames.json", joined(stage.frames(4 * FRAME_RECORDS, 1.5), FRAME_RECORDS))
    gateway = stage.gateway()  # it is dead until it is entered
    journal = stage.fresh("journal")
    more = {
        "AUDIT_LOG_JOURNAL_MAX_BYTES": str(2 * effort.backlog_bytes),
        "AUDIT_LOG_RETRY_SECONDS_MAX": "0.5",
    }
    environ = stage.audited(gateway.url, journal, **more)
    with stage.emitter(environ) as full:
        costs, held = _while_it_lasts(stage, effort, say, frames, full)
        own = drain("its own", held, _drained(gateway, full, say))
        say("filling it again, and killing its process")
        held = full.fill(frames, effort.backlog_bytes).bytes
    starts = _starts(stage, effort, say, environ, held)
    with stage.emitter(environ) as another:
        another.first()
        another.adopted()
        adopted = drain("a dead process's", held, _drained(gateway, another, say))
    return [
        Sheet("costs", f"Beside a backlog, the Collector dead, at {RATE:,} requests/s", tuple(costs)),
        Sheet("drains", "The Collector is back", (own, adopted)),
        Sheet("starts", "A restart in the midst of it, the Collector dead", tuple(starts)),
    ]


def _while_it_lasts(stage: Stage, effort: Effort, say: Say, frames: Path, full: Emitter) -> tuple[list[Cost], int]:
    nobody = stage.audited("http://127.0.0.1:1/v1/logs", AUDIT_LOG_RETRY_SECONDS_MAX="0.5")
    with stage.emitter() as bare, stage.emitter(nobody) as empty:
        for each in (bare, empty, full):
            each.emit(RATE, WARM_SECONDS, delivered=False)
        say(f"filling a journal with {effort.backlog_bytes / 10**6:,.0f} MB")
        held = full.fill(frames, effort.backlog_bytes).bytes
        taken = []
        for number in range(effort.rounds):
            say(f"{RATE:,} requests a second, with and without a backlog: round {number + 1} of {effort.rounds}")
            taken.append([each.emit(RATE, effort.seconds, delivered=False) for each in (bare, empty, full)])
    without, little, much = (list(windows) for windows in zip(*taken, strict=True))
    return [cost(0, little, without), cost(held, much, without)], held


def _drained(gateway: Gateway, emitter: Emitter, say: Say) -> Drained:
    with gateway:
        say("the Collector is back")
        return emitter.drain()


def _starts(stage: Stage, effort: Effort, say: Say, environ: dict[str, str], held: int) -> list[Start]:
    empty, full = [], []
    for number in range(effort.rounds):
        say(f"starting a process where nothing waits, and one that finds the journal: round {number + 1}")
        fresh = {**environ, "AUDIT_LOG_JOURNAL_DIR": str(stage.fresh("journal"))}
        with stage.emitter(fresh) as emitter:
            rss = emitter.first()
            empty.append(Start(0, emitter.since_start_s(), None, rss))
        with stage.emitter(environ) as emitter:
            emitter.first()
            first_s = emitter.since_start_s()
            _, rss = emitter.adopted()
            full.append(Start(held, first_s, emitter.since_start_s(), rss))
    return [typical(empty), typical(full)]
