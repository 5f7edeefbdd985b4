"""Runs the demo: ``python -m examples.demo``, or ``make demo``.

Two variables change it: ``ONCE=1`` stops it by itself, with exit code 0 only if every record arrived once at every
destination; ``DOCKER=1`` takes the servers from docker compose instead of building them.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, NoReturn

from rich.console import Console
from rich.markup import escape

from collector.build import BuildError
from collector.launch import LaunchError
from collector.servers import ServerError
from examples.demo import compose, evidence, outage, refusal, stage, traffic

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from examples.demo.evidence import Evidence
    from examples.demo.stage import Stage
    from examples.demo.traffic import Fact, Step

EXIT_INCOMPLETE = 1
EXIT_NOT_STARTED = 2
LOG_LINES = 15
COMPLAINT = re.compile(r"\t(?:warn|error)\t|failed")
"""In the Collector's log. That it sends something again is only information to it."""
SEARCHED = "http"
"""The SIEM whose tenant the ready query asks: it keeps OpenTelemetry's own names, which the documentation uses."""


def main(environ: Mapping[str, str] = os.environ) -> int:
    """Run the demo, and return its exit code."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else evidence.WIDE)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)  # an exception, so that everything is stopped on the way out
    try:
        with ExitStack() as stack:
            return _run(console, stack, environ)
    except (BuildError, LaunchError, ServerError, compose.ComposeError) as error:
        console.print(f"[bold red]The demo stopped:[/] {escape(str(error))}", soft_wrap=True)
        return EXIT_NOT_STARTED
    except KeyboardInterrupt:
        console.print("Interrupted; everything is stopped.")
        return 128 + signal.SIGINT


def _is_on(environ: Mapping[str, str], name: str) -> bool:
    return environ.get(name, "") not in ("", "0")


def _leave(number: int, _frame: object) -> NoReturn:
    sys.exit(128 + number)


def _run(console: Console, stack: ExitStack, environ: Mapping[str, str]) -> int:
    def say(line: str) -> None:
        console.print(line, style="dim", markup=False, soft_wrap=True)

    began = time.monotonic()
    start = compose.docker if _is_on(environ, "DOCKER") else stage.local
    running = start(stack, say)
    try:
        proof = _tell(console, running, say)
    except traffic.TrafficError as error:
        log = _last(running.log("api").splitlines())
        raise ServerError(f"{error}. The end of its log:\n{log}") from error
    problems = proof.problems()
    _conclude(console, running, proof, problems)
    console.print(f"{time.monotonic() - began:.0f} s in all.", style="dim")
    if not _is_on(environ, "ONCE"):
        _offer_a_search(console, running)
        _wait(console)
    return EXIT_INCOMPLETE if problems else 0


def _tell(console: Console, running: Stage, say: Callable[[str], None]) -> Evidence:
    """Play the story, the outage and the refusal; show the records of each, and return what the destinations have."""
    steps = traffic.story(running.api_url)
    _play(console, steps)
    expected = (traffic.START, *traffic.facts(steps))
    say(f"requests    {len(steps)} steps; {len(expected)} records expected, the API's START is one of them")
    proof = _collect(console, running, expected)
    console.print(evidence.table(proof, console.width))
    if running.processes is None:
        say("kill -9     left out with docker compose; `make demo` without DOCKER=1 has it, and what comes after it")
        return proof
    chapters = (
        ("now the Collector dies, and then the API", outage.play, traffic.outage),
        ("now a SIEM refuses what it is sent", refusal.play, traffic.refusal),
    )
    for title, play, happening in chapters:
        if proof.problems():
            say("the rest    left out: not everything has arrived")
            return proof
        say(f"arrived     all {len(expected)}; {title}")
        expected += play(running.processes, happening(running.api_url), say)
        before, proof = proof, _collect(console, running, expected)
        console.print(evidence.table(proof, console.width, but=before.records))
    return proof


def _collect(console: Console, running: Stage, expected: tuple[Fact, ...]) -> Evidence:
    with console.status("asking the destinations"):
        return evidence.collect(running, expected)


def _play(console: Console, steps: tuple[Step, ...]) -> None:
    with console.status("") as status:
        for step in steps:
            status.update(step.title)
            step.play()


def _conclude(console: Console, running: Stage, proof: Evidence, problems: list[str]) -> None:
    for name, reason in running.absent:
        console.print(f"Not run: {name}. This Collector {reason}.", style="yellow", markup=False, soft_wrap=True)
    if problems:
        console.print(f"[bold red]{len(problems)} problems[/]")
        for problem in problems:
            console.print(f"  {problem}", style="red", markup=False, soft_wrap=True)
        complaints = _last([line for line in running.log("collector").splitlines() if COMPLAINT.search(line)])
        console.print(f"What the Collector complains of:\n{complaints or 'nothing'}", markup=False, soft_wrap=True)
    else:
        counts = f"{len(proof.records)} records arrived exactly once at {len(proof.found)} destinations"
        console.print(f"[bold green]Each of {counts}.[/]")


def _offer_a_search(console: Console, running: Stage) -> None:
    """Ask the question that an auditor asks, show what came back, and how to ask it again."""
    query = f'"audit.action":="DELETE" "audit.actor.id":="{traffic.ALICE}"'
    tenant = stage.TENANTS[SEARCHED]
    console.print(f"\nWhat did alice delete? The tenant of {SEARCHED} says:")
    answers = sorted(f"{row['_time']}  {row['_msg']}" for row in running.store.query(query, tenant))
    for answer in answers or ["nothing"]:
        console.print(f"  {answer}", style="bold", markup=False, soft_wrap=True)
    # soft_wrap: a line break inside an address would make it useless, in a terminal and in a log.
    console.print("Ask again on the search page, or in a shell:")
    console.print(f"  {running.store.search_page(query, tenant)}", style="cyan", markup=False, soft_wrap=True)
    shell = f"curl {running.store.url}/select/logsql/query -H 'AccountID: {tenant}' --data-urlencode 'query={query}'"
    console.print(f"  {shell}", style="cyan", markup=False, soft_wrap=True)


def _last(lines: list[str]) -> str:
    return "\n".join(lines[-LOG_LINES:])


def _wait(console: Console) -> None:
    console.print("\nEverything stays up until [bold]Ctrl-C[/].")
    try:
        while True:
            signal.pause()
    except KeyboardInterrupt:
        console.print("Stopping.")


if __name__ == "__main__":
    sys.exit(main())
