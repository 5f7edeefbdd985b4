"""The cost of a record by the rate: what the process takes beyond what the same application takes without audit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from benchmarks.growth.sheet import Column, Micros, Rss, Sheet, median, per

if TYPE_CHECKING:
    from benchmarks.growth.emitter import Window
    from benchmarks.growth.sheet import Say
    from benchmarks.growth.stage import Effort, Stage

RATES = (100, 1_000, 5_000, 10_000, 20_000)
WARM_SECONDS = 0.5


@dataclass(frozen=True)
class Row:
    """One rate. CPU is that of all threads, beyond the same without audit."""

    source: Annotated[str, Column("source")]
    rate: Annotated[int, Column("asked for, records/s", ",d")]
    reached: Annotated[float, Column("reached", ",.0f")]
    """What one core can keep up: no more than was emitted, nor than its CPU is enough for until all is delivered."""
    us_per_record: Micros
    cpu_ms_per_s: Annotated[float, Column("audit, CPU ms/s", ",.1f")]
    bare_us: Annotated[float | None, Column("without audit, pacing and all, µs", ".1f")]
    rss_bytes: Rss
    bare_rss_bytes: Annotated[int, Column("RSS without audit, MiB", ".1f", 2**20)]
    dropped: Annotated[int, Column("dropped", ",d")]


def row(source: str, rate: int, audited: list[Window], bare: list[Window]) -> Row:
    """Make a row of the windows with audit and of those without, which were taken in turn."""
    without_us = median(per(each.cpu_s, each.records) for each in bare)
    idle_s = median(each.cpu_s / each.seconds for each in bare)
    whole_us = median(per(each.cpu_s, each.records) for each in audited)
    emitted = median(each.records / each.seconds for each in audited)
    reached = min(emitted, 1e6 / whole_us) if whole_us else emitted
    cost_us = whole_us - without_us
    whole_s = median(each.cpu_s / each.seconds for each in audited)
    return Row(
        source,
        rate,
        reached,
        us_per_record=cost_us,
        cpu_ms_per_s=cost_us * reached / 1000 if rate else (whole_s - idle_s) * 1000,
        bare_us=without_us if rate else None,
        rss_bytes=int(median(each.rss_bytes for each in audited)),
        bare_rss_bytes=int(median(each.rss_bytes for each in bare)),
        dropped=sum(each.dropped for each in audited),
    )


def measure(stage: Stage, effort: Effort, say: Say) -> list[Sheet]:
    """Take each rate, once with requests through the middleware and once with `audit.record`."""
    rows = []
    with stage.gateway() as gateway, stage.emitter() as bare:
        bare.emit(1_000, WARM_SECONDS)
        for source, rates in (("request", (0, *RATES)), ("record", RATES)):
            for rate in rates:
                say(f"{rate:,} a second, each by {source}")
                # A process for each rate: memory that a higher one has taken is not given back.
                with stage.emitter(stage.audited(gateway.url)) as audited:
                    audited.emit(1_000, WARM_SECONDS, source=source)
                    taken = [
                        (
                            audited.emit(rate, effort.seconds, source=source),
                            bare.emit(rate, effort.seconds, source="request" if source == "request" else "nothing"),
                        )
                        for _ in range(effort.rounds)
                    ]
                rows.append(row(source, rate, [each for each, _ in taken], [each for _, each in taken]))
    title = "By rate, on one core: requests through the middleware, without a server; and audit.record()"
    return [Sheet("rates", title, tuple(rows))]
