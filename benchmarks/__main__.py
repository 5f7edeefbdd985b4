"""What does audit cost? Serves one FastAPI application with and without it, under load, and compares them.

One run for all: the variants in turn, shuffled anew in each round, the bare application again after every three. Each
is served by uvicorn on a core of its own; vegeta, the Collector and VictoriaLogs have the others. Each run has two
phases: as fast as it goes, and at half of what the bare application can. Then every record is counted at its sink.

With its defaults it takes about 12 minutes, and writes benchmarks/results.json and docs/bench.svg; a shorter or
partial run writes only where --output says. Keep the machine quiet meanwhile.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from benchmarks.cores import Cores
from benchmarks.errors import BenchError
from benchmarks.machine import machine, versions
from benchmarks.order import order
from benchmarks.plot import plot
from benchmarks.run import HALF, PAUSE_SECONDS, ROOT, WARM_UP_SECONDS, Tools, run
from benchmarks.stop import leave_on_signals
from benchmarks.summary import as_json, results, summed_up
from benchmarks.table import shown, tables
from benchmarks.variants import BARE, VARIANTS
from collector import build
from collector.launch import LaunchError
from collector.servers import ServerError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.run import Run

ROUNDS = 3
SECONDS = 6.0
RESULTS = ROOT / "benchmarks" / "results.json"
PLOT = ROOT / "docs" / "bench.svg"
WIDE = 200
"""Columns, where the output is no terminal."""

_STARTS_AND_COUNTS_SECONDS = 3.0
BUSY = 0.9
"""The part of a core's time above which it counts as fully used."""


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for."""

    rounds: int
    seconds: float
    only: list[str]
    seed: int
    output: Path | None
    names_only: bool

    @property
    def names(self) -> list[str]:
        """The variants to compare with the bare application."""
        return [name for name in VARIANTS if name != BARE and (not self.only or name in self.only)]

    def files(self) -> tuple[Path, Path] | None:
        """Where the results and the plot go; None where nobody asked for those of a lesser run."""
        if self.output is not None:
            return self.output, self.output.with_suffix(".svg")
        whole = not self.only and self.rounds >= ROUNDS and self.seconds >= SECONDS
        return (RESULTS, PLOT) if whole else None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs it, and returns the exit code."""
    options = _parsed(argv)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDE)
    if options.names_only:
        for name, variant in VARIANTS.items():
            console.print(f"{name:22}{variant.about}")
        return 0
    leave_on_signals()
    try:
        _bench(console, options)
    except (BenchError, ServerError, LaunchError, build.BuildError) as error:
        console.print(f"[bold red]The benchmark stopped:[/] {escape(str(error))}", soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("Interrupted; everything is stopped, and nothing was written.")
        return 128 + signal.SIGINT
    return 0


def _parsed(argv: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"how often each variant is run (default {ROUNDS})")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"of each phase (default {SECONDS:g})")
    parser.add_argument(
        "--only", nargs="+", default=[], choices=VARIANTS, metavar="VARIANT", help="these, and bare beside them"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the order of the variants (default 1)")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="the results as JSON; the plot beside them, as .svg"
    )
    parser.add_argument("--list", dest="names_only", action="store_true", help="name the variants, and run nothing")
    options = Options(**vars(parser.parse_args(argv)))
    if options.rounds < 1 or options.seconds < 1:
        parser.error("there must be one round of one second at least")
    return options


def _bench(console: Console, options: Options) -> None:
    cores = Cores.choose()
    scratch = build.cache_dir(os.environ) / "bench"
    scratch.mkdir(parents=True, exist_ok=True)
    tools = Tools(build.otelcol(), build.victorialogs(), build.vegeta(), cores, scratch)
    cores.use_load()
    if not cores.server:
        console.print(
            "[yellow]This system pins no process to a core: load and server may take time from each other.[/]"
        )
    runs = _run_all(console, options, tools)
    half_rps = HALF * runs[0].figures["throughput_rps"]
    summaries = summed_up(runs, half_rps)
    for table in tables(summaries, half_rps):
        console.print(table)
    _warn(console, runs)
    if files := options.files():
        measured = {"rounds": options.rounds, "seconds": options.seconds, "half_load_rps": round(half_rps)}
        about = {**machine(), "pinned": bool(cores.server), **measured}
        files[0].write_text(as_json(results(summaries, about, versions(tools))))
        plot(summaries, files[1])
        console.print(f"Written: {files[0]}, {files[1]}")
    else:
        console.print("Nothing was written; --output FILE keeps the results of a partial run.")


def _run_all(console: Console, options: Options, tools: Tools) -> list[Run]:
    steps = order(options.names, options.rounds, options.seed)
    expected = 2 * options.seconds + WARM_UP_SECONDS + PAUSE_SECONDS + _STARTS_AND_COUNTS_SECONDS
    runs: list[Run] = []
    began = time.monotonic()
    for index, (number, name) in enumerate(steps):
        each = (time.monotonic() - began) / index if index else expected
        left = f"about {max(each * (len(steps) - index) / 60, 1):.0f} min left"
        with console.status("") as status:

            def say(step: str, about: str = f"{index + 1}/{len(steps)}  {name}", left: str = left) -> None:
                status.update(f"{about}: {step}; {left}")

            half_rps = HALF * runs[0].figures["throughput_rps"] if runs else None
            done = run(VARIANTS[name], tools, options.seconds, half_rps, say)
        runs.append(done)
        console.print(f"{index + 1:3}/{len(steps)}  round {number}  {_line(done)}   [dim]{left}[/]")
    return runs


def _line(done: Run) -> str:
    figures = done.figures
    lost = "" if done.variant == BARE or done.delivered == done.requests else f", {done.requests - done.delivered} lost"
    return (
        f"{done.variant:20} {figures['throughput_rps']:8,.0f}/s  p99 {shown(figures['p99_ms']):>6} ms  "
        f"{figures['cpu_us']:7,.0f} µs{lost}"
    )


def _warn(console: Console, runs: Sequence[Run]) -> None:
    """Says where something else than the server may have been what was measured."""
    if full := sorted({run.variant for run in runs if run.figures["load_busy"] > BUSY}):
        console.print(f"[yellow]The load generator's cores were busy throughout, under {', '.join(full)}.[/]")
    idle = [run.figures["server_busy"] for run in runs if run.variant == BARE and run.figures["server_busy"] < BUSY]
    if idle:
        console.print(
            f"[yellow]In {len(idle)} runs of the bare application its core was not its own, or not busy: it got "
            f"{min(idle):.0%} of it at worst. Is anything else running on this machine?[/]"
        )


if __name__ == "__main__":
    sys.exit(main())
