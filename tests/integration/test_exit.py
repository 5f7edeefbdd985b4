"""A program without a lifespan: what it recorded is sent when it ends, within the deadline."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.integration.gateway import REFUSED, Gateway
from tests.integration.test_processes import ROOT, settings

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = """
import multiprocessing, os, time
from fastapi import FastAPI
import tron_audit_otel as audit

audit.instrument(FastAPI())
if __name__ == "__main__":
    audit.record(action="DELETE", resource="backups/1")

def work():
    audit.record(action="DELETE", resource="backups/2")

if __name__ == "__main__" and (method := os.environ.get("TEST_PROCESS")):
    child = multiprocessing.get_context(method).Process(target=work)
    child.start()
    child.join()
if os.environ.get("TEST_FORK"):
    if (child := os.fork()) == 0:
        audit.record(action="DELETE", resource="backups/2")
        raise SystemExit
    os.waitpid(child, 0)
if __name__ == "__main__":
    print(time.monotonic())
"""

SECONDS_MAX = 120
"""A machine that is busy takes ten seconds to start a process, and some of these programs are three."""
PATIENT = {"AUDIT_LOG_SHUTDOWN_SECONDS_MAX": "30"}
"""For a Collector that is only slow."""
END_SECONDS_MAX = 15
"""The end's own bound is two seconds; without it the end would wait for the Collector for ever."""


def run(directory: Path, url: str, **more: str) -> subprocess.CompletedProcess[str]:
    program = directory / "program.py"  # a file: processes that are spawned read it again
    program.write_text(PROGRAM)
    command = [sys.executable, "-W", "ignore:This process", str(program)]
    return subprocess.run(
        command, env=settings(url, **more), cwd=ROOT, capture_output=True, text=True, timeout=SECONDS_MAX, check=True
    )


@pytest.mark.parametrize(
    "fork",
    [{}, {"TEST_FORK": "yes"}, {"TEST_PROCESS": "fork"}, {"TEST_PROCESS": "spawn"}, {"TEST_PROCESS": "forkserver"}],
    ids=["one process", "os.fork", "multiprocessing, fork", "multiprocessing, spawn", "multiprocessing, forkserver"],
)
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_program_that_ends_has_sent_its_records(
    otelcol: Path, tmp_path: Path, fork: dict[str, str], protocol: str
) -> None:
    with Gateway(otelcol, tmp_path / "collector", {}) as gateway:
        url = f"http://{gateway.grpc}" if protocol == "grpc" else gateway.url
        run(tmp_path, url, OTEL_EXPORTER_OTLP_LOGS_PROTOCOL=protocol, **PATIENT, **fork)
        archived = gateway.archived()
    # A forked process has a stream of its own, from START to STOP; what its parent had queued stays its parent's.
    facts = [record for record in archived if record.get("audit.actor.id") != "tron_audit_otel"]
    assert sorted((record["audit.resource"], record["audit.sequence.number"]) for record in facts) == [
        ("backups/1", 2),
        *([("backups/2", 2)] if fork else []),
    ]
    about = [record["audit.action"] for record in archived if record.get("audit.actor.id") == "tron_audit_otel"]
    assert sorted(about) == ["START"] * (len(about) // 2) + ["STOP"] * (len(about) // 2)
    assert len(about) == len(facts) * 2


def test_a_dead_collector_does_not_hold_the_end_up(tmp_path: Path) -> None:
    result = run(tmp_path, f"{REFUSED}/v1/logs")
    assert time.monotonic() - float(result.stdout) < END_SECONDS_MAX  # one clock for all processes
    assert "lost" not in result.stderr
    assert "Traceback" not in result.stderr
