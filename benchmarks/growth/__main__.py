"""Measures how the cost grows: ``python -m benchmarks.growth``, or ``make growth``."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from benchmarks.cores import Cores
from benchmarks.errors import BenchError
from benchmarks.growth import attributes, backlog, rate, siems, workers
from benchmarks.growth.processes import file_system
from benchmarks.growth.stage import FULL, QUICK, Effort, Stage, staged
from benchmarks.machine import machine, versions
from benchmarks.run import Tools
from benchmarks.stop import leave_on_signals
from collector import build
from collector.build import BuildError
from collector.servers import ServerError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.growth.sheet import Say, Sheet

RESULTS = Path(__file__).resolve().parents[1] / "growth.json"
WIDE = 160

PARTS: dict[str, Callable[[Stage, Effort, Say], list[Sheet]]] = {
    "rate": rate.measure,
    "attributes": attributes.measure,
    "backlog": backlog.measure,
    "workers": workers.measure,
    "collector": siems.measure,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line, and return its exit code."""
    arguments = _parser().parse_args(argv)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDE)
    leave_on_signals()
    try:
        scratch = build.cache_dir(os.environ) / "growth"
        scratch.mkdir(parents=True, exist_ok=True)
        tools = Tools(build.otelcol(), build.victorialogs(), build.vegeta(), Cores.choose(), scratch)
        effort = QUICK if arguments.quick else FULL
        output = arguments.output or (None if arguments.quick else RESULTS)
        _run(tools, console, arguments.only or list(PARTS), effort, output)
    except (BenchError, BuildError, ServerError) as error:
        console.print(f"[bold red]Stopped:[/] {escape(str(error))}", soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("Interrupted; everything is stopped.")
        return 128 + signal.SIGINT
    return 0


def _run(tools: Tools, console: Console, names: Sequence[str], effort: Effort, output: Path | None) -> None:
    """Measure the parts, show each as it is there, and keep what is measured so far if a later one fails."""
    tools.cores.use_load()
    began = time.monotonic()

    def say(line: str) -> None:
        console.print(f"{time.monotonic() - began:5.0f} s  {name:<11} {line}", style="dim", markup=False)

    for name in names:
        with staged(tools) as stage:
            sheets = PARTS[name](stage, effort, say)
            here = {**machine(), "file_system": file_system(stage.directory)}
        for sheet in sheets:
            console.print(sheet.table())
        if output is not None:
            figures = {sheet.key: sheet.plain() for sheet in sheets}
            write(output, name, figures | {"quick": effort is QUICK}, {"machine": here, "versions": versions(tools)})
    where = (
        f"{output} has the figures" if output is not None else "nothing was written; --output FILE keeps the figures"
    )
    console.print(f"{where}; {time.monotonic() - began:.0f} s in all.", style="dim", soft_wrap=True)


def write(file: Path, name: str, part: dict[str, Any], around: dict[str, Any]) -> None:
    """Put a part into the file; others stay if they were measured on the same machine with the same versions."""
    before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    is_same = all(before.get(key) == value for key, value in around.items())
    parts = {**(before["parts"] if is_same else {}), name: part}
    file.write_text(json.dumps({"parts": parts, **around}, indent=2) + "\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description="Measure how the cost grows.")
    parser.add_argument("--only", action="append", choices=PARTS, metavar="PART", help=f"one of {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="about 2 minutes in place of 10, and rough")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="default: benchmarks/growth.json; with --quick, nothing"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
