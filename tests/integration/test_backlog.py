"""A large backlog is shipped in a moment, whole, and in a memory that does not grow with it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.integration.gateway import REFUSED, Gateway
from tests.integration.load import audited, some, until, waiting
from tests.integration.test_processes import ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping

MIB = 2**20
MEMORY_GROWTH_BYTES_MAX = 10 * MIB
"""What the allocator may keep more or less; the larger backlog has many times that."""

RECORD_ID = re.compile(rb'"audit\.record\.id","value":\{"stringValue":"([^"]+)"')

# As many records as it is told to, no faster than they reach the disk; then it ends without ceremony.
WRITER = """
import os, sys, time
from fastapi import FastAPI
import tron_audit_otel as audit

app = FastAPI()
audit.instrument(app)
total = int(sys.argv[1])
for number in range(total):
    if number % 1000 == 0:
        while audit.stats().queued > 8000:
            time.sleep(0.01)
    audit.record(action="DELETE", resource=f"backups/{number}", actor="alice@example.com")
while audit.stats().queued:
    time.sleep(0.01)
assert not audit.stats().dropped, audit.stats()
os._exit(0)
"""

# A service that starts, finds the backlog, and has nothing else to do.
SHIPPER = """
import signal
from fastapi import FastAPI
import tron_audit_otel as audit

app = FastAPI()
audit.instrument(app)
audit.record(action="UPDATE", resource="backups/last")
signal.sigwait([signal.SIGTERM])
"""


@dataclass(frozen=True)
class Shipped:
    """What it took."""

    records: int
    seconds: float
    cpu_seconds: float
    memory_bytes: int

    def __str__(self) -> str:
        rate = self.records / self.seconds
        return (
            f"{self.records:,} records in {self.seconds:.1f} s ({rate:,.0f} a second), "
            f"{self.cpu_seconds:.1f} s of CPU, {self.memory_bytes / MIB:.0f} MiB at the peak"
        )


def python(program: str, environ: Mapping[str, str], *args: str) -> list[str | Path]:
    """A command for it, with its variables."""
    variables = [f"{name}={value}" for name, value in environ.items()]
    return ["/usr/bin/env", "-i", *variables, sys.executable, "-c", program, *args]


def shipped(otelcol: Path, directory: Path, records: int) -> Shipped:
    """Leaves a backlog behind, as a service does whose Collector is dead, and has the next one ship it."""
    directory.mkdir()
    journal = directory / "journal"
    more = {"AUDIT_LOG_JOURNAL_MAX_BYTES": str(4096 * MIB)}
    nobody = f"{REFUSED}/v1/logs"
    subprocess.run(python(WRITER, audited(nobody, directory, **more), str(records)), cwd=ROOT, check=True)
    assert waiting(journal) >= records
    with Gateway(otelcol, directory, {}) as gateway:
        began = time.monotonic()
        with subprocess.Popen(python(SHIPPER, audited(gateway.url, directory, **more)), cwd=ROOT) as process:
            try:
                until(lambda: not waiting(journal), lambda: f"{waiting(journal)} of {records} wait", 600)
                seconds = time.monotonic() - began
                status = Path(f"/proc/{process.pid}/status").read_text()
                ticks = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            finally:
                process.send_signal(signal.SIGTERM)
    check_arrived(gateway.data, records)
    cpu_seconds = (int(ticks[11]) + int(ticks[12])) / os.sysconf("SC_CLK_TCK")
    peak = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert peak
    return Shipped(records, seconds, cpu_seconds, int(peak[1]) * 1024)


def check_arrived(data: Path, records: int) -> None:
    """Each record is in the archive; a regular expression, since a million of them take minutes to parse."""
    ids: set[bytes] = set()
    resources: set[bytes] = set()
    for file in (data / "archive").glob("*.jsonl"):
        with file.open("rb") as lines:
            for line in lines:
                ids.update(RECORD_ID.findall(line))
                resources.update(re.findall(rb'"backups/(\d+)"', line))
    lost = {number for number in range(records) if b"%d" % number not in resources}
    assert not lost, f"lost: {some(lost)} of {records}"
    assert len(ids) >= records, f"{len(ids)} ids, and {records} records"


@pytest.mark.parametrize(
    ("few", "many"),
    [pytest.param(3_000, 30_000, id="short"), pytest.param(20_000, 1_000_000, id="long", marks=pytest.mark.soak)],
)
def test_a_backlog_is_shipped_whole_and_in_the_same_memory(otelcol: Path, tmp_path: Path, few: int, many: int) -> None:
    little = shipped(otelcol, tmp_path / "few", few)
    much = shipped(otelcol, tmp_path / "many", many)
    print(little, much, sep="\n")  # noqa: T201 - the figures for the documentation
    growth = much.memory_bytes - little.memory_bytes
    assert growth < MEMORY_GROWTH_BYTES_MAX, f"{growth / MIB:.0f} MiB more for the larger backlog: {little}; {much}"
