"""What the archive is for: a SIEM refuses a token, the Collector drops what it has for it, and that is mended."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from collector.servers import ServerError
from examples.demo import traffic

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from examples.demo.stage import Processes
    from examples.demo.traffic import Fact, Step

SIEM = "http"
"""It is a Collector, which looks at tokens; VictoriaLogs does not."""
RECONCILE = ("reconcile", "--siem", SIEM, "--search", "victorialogs", "--since", "1h", "--until", "0s", "--pause", "1")
"""Until now, where by default the newest minute is left out: what came is all of a minute old."""
WAIT_SECONDS_MAX = 30.0
POLL_SECONDS = 0.2
TOOL_SECONDS_MAX = 60


def play(processes: Processes, steps: tuple[Step, ...], say: Callable[[str], None]) -> tuple[Fact, ...]:
    """Let the token expire, play the steps, mend the token, and send again what is missing; return the facts.

    Raises:
        TrafficError: The API gave no answer.
        ServerError: The Collector did not drop what it should, or `tron-audit` did not mend it.
    """
    facts = traffic.facts(steps)
    token = processes.siem_token.read_text(encoding="utf-8")
    _tron_audit(processes, "status")  # it remembers that all was well until now
    _replace(processes.siem_token, "another")
    say(f"token       {SIEM} takes it no longer: 401, and the Collector drops what it has")
    for step in steps:
        step.play()
    _await_refusal(processes, len(facts))
    say(f"status      {SIEM} has refused {len(facts)} records for good")
    _replace(processes.siem_token, token)
    say(f"token       {SIEM} takes it again; now it is asked which records it lacks:")
    say(f"$ tron-audit {shlex.join(RECONCILE)}")
    for line in _tron_audit(processes, *RECONCILE).splitlines():
        say(f"            {line}")
    return facts


def _replace(file: Path, content: str) -> None:
    """As secrets are replaced: in one step, so that nobody reads half of one."""
    beside = file.with_suffix(".new")
    beside.write_text(content, encoding="utf-8")
    beside.replace(file)


def _await_refusal(processes: Processes, records: int) -> None:
    """Ask `tron-audit status` until it says that so many records were refused."""
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while True:
        status = json.loads(_tron_audit(processes, "status", "--json"))
        siem = next((each for each in status["siems"] if each["name"] == SIEM), {"owed": 0})
        if siem["owed"] >= records:
            return
        if time.monotonic() > deadline:
            raise ServerError(f"the Collector says that {SIEM} refused {siem['owed']} of {records} records")
        time.sleep(POLL_SECONDS)


def _tron_audit(processes: Processes, *arguments: str) -> str:
    command = [sys.executable, "-m", "tron_audit_otel.cli", *arguments]
    done = subprocess.run(  # noqa: S603 - our own tool
        command, env=dict(processes.tools), capture_output=True, text=True, timeout=TOOL_SECONDS_MAX, check=False
    )
    if done.returncode not in (0, 1):
        raise ServerError(f"tron-audit {shlex.join(arguments)} ended with exit code {done.returncode}: {done.stderr}")
    return done.stdout
