"""What the library is for: the Collector is killed, then the API, and every record arrives all the same."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from collector.servers import ServerError
from examples.demo import traffic
from tron_audit_otel import journal_dir

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from collector.servers import Server
    from examples.demo.stage import Processes
    from examples.demo.traffic import Fact, Step

WAIT_SECONDS_MAX = 40.0
"""Longer than the longest wait between two attempts to deliver, AUDIT_LOG_RETRY_SECONDS_MAX; all else is done within a
second."""
POLL_SECONDS = 0.01
SUCCESSION = (traffic.START, traffic.ADOPT)
"""What an API process leaves behind that starts where another one was killed."""


def play(processes: Processes, steps: tuple[Step, ...], say: Callable[[str], None]) -> tuple[Fact, ...]:
    """Kill the Collector, play the steps, kill the API, start both again; return the facts that this must leave.

    All that was done before must have arrived, or a record that is on the way may arrive twice.

    Raises:
        TrafficError: The API gave no answer.
        ServerError: A server did not start again, or the journal does not hold what it should.
    """
    api, collector, journal = processes.api, processes.collector, processes.journal
    facts = traffic.facts(steps)
    _await(journal, 0)  # the API knows, too, that all has arrived

    say(f"kill -9     the Collector, process {_kill(collector)}")
    slowest = max(_seconds(step.play) for step in steps)
    say(f"requests    {len(steps)} by alice, each answered as ever, the slowest in {slowest * 1000:.0f} ms")
    _await(journal, len(facts))
    say(f"on disk     {len(facts)} records, up to 50 ms after their answers: we waited for that")
    say(f"kill -9     the API, process {_kill(api)}: what it had in memory is gone")

    api.start()
    _await(journal, len(facts) + len(SUCCESSION))
    say(f"started     the API: a START of its own, and ADOPT: it took over the {len(facts)}")
    collector.start()
    _await(journal, 0)
    left = (*facts, *SUCCESSION)
    say(f"started     the Collector: it took the {len(left)} records that waited, and none waits now")
    return left


def _kill(server: Server) -> int:
    server.kill()
    return server.pid


def _seconds(act: Callable[[], None]) -> float:
    began = time.monotonic()
    act()
    return time.monotonic() - began


def _await(journal: Path, records: int) -> None:
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while (waiting := sum(state.records for state in journal_dir.inspect(journal))) != records:
        if time.monotonic() > deadline:
            raise ServerError(f"{waiting} instead of {records} records wait on disk after {WAIT_SECONDS_MAX:g} s")
        time.sleep(POLL_SECONDS)
