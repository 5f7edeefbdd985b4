"""The results as tables for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from benchmarks.run import HALF_LOAD
from benchmarks.variants import BARE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from benchmarks.summary import Summary

    Cell = Callable[[Summary], str]

_LARGE = 100


def shown(value: float) -> str:
    """A number with the digits that a reader can use."""
    return f"{value:,.0f}" if abs(value) >= _LARGE else f"{value:.3g}"


def _figure(name: str) -> Cell:
    return lambda summary: shown(summary.medians[name])


def _ranged(name: str) -> Cell:
    """The median, then the least and the most."""

    def cell(summary: Summary) -> str:
        least, most = map(shown, summary.spread[name])
        return f"[bold]{shown(summary.medians[name])}[/] [dim]{least} to {most}[/]"

    return cell


def _kept(summary: Summary) -> str:
    reached = shown(summary.medians[f"{HALF_LOAD}throughput_rps"])
    return reached if summary.kept_rate else f"[yellow]only {reached}[/]"


_SATURATION: dict[str, Cell] = {
    "requests/s": _figure("throughput_rps"),
    "x bare": _ranged("throughput_ratio"),
    "p50 ms": _figure("p50_ms"),
    "p99 ms": _figure("p99_ms"),
    "p99, x bare": _ranged("p99_ratio"),
    "p99.9 ms": _figure("p999_ms"),
    "loop lag p99 ms": _figure("loop_lag_p99_ms"),
    "lag, x bare": _ranged("loop_lag_p99_ratio"),
    "CPU µs": _figure("cpu_us"),
    "of it audit": _ranged("audit_cpu_us"),
}
_HALF: dict[str, Cell] = {
    "requests/s": _kept,
    "p50 ms": _figure(f"{HALF_LOAD}p50_ms"),
    "p99 ms": _figure(f"{HALF_LOAD}p99_ms"),
    "p99, x bare": _ranged(f"{HALF_LOAD}p99_ratio"),
    "p99.9 ms": _figure(f"{HALF_LOAD}p999_ms"),
    "loop lag p99 ms": _figure(f"{HALF_LOAD}loop_lag_p99_ms"),
    "lag, x bare": _ranged(f"{HALF_LOAD}loop_lag_p99_ratio"),
    "peak MiB": _figure("rss_mib"),
    "delivered": lambda summary: f"{summary.delivered:,}",
    "lost": lambda summary: f"[bold red]{summary.lost:,}[/]" if summary.lost else "0",
}
_RECORDS = ("delivered", "lost")


def tables(summaries: Mapping[str, Summary], half_rps: float) -> tuple[Table, Table]:
    """Shows every variant in both phases: medians over the rounds, and dimmed the least and the most."""
    return (
        _table("At saturation, 32 connections", _SATURATION, summaries),
        _table(f"At half of what bare can, {half_rps:,.0f} requests/s; and the records of both", _HALF, summaries),
    )


def _table(title: str, columns: Mapping[str, Cell], summaries: Mapping[str, Summary]) -> Table:
    made = Table(title=title, title_justify="left")
    made.add_column("variant", no_wrap=True)
    for column in columns:
        made.add_column(column, justify="right")
    for name, summary in summaries.items():
        cells = {column: cell(summary) for column, cell in columns.items()}
        if name == BARE:
            cells |= {column: "-" for column in _RECORDS if column in cells}
        made.add_row(name, *cells.values())
    return made
