"""The cost of a request by the worker processes that share the load."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from benchmarks.growth.app import HEADERS, METHOD, PATH
from benchmarks.growth.processes import family, rss_bytes
from benchmarks.growth.sheet import MIB, Column, Sheet, median, per
from collector import servers
from tron_audit_otel import collector_metrics

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.growth.sheet import Say
    from benchmarks.growth.stage import Effort, Stage

COUNTS = (1, 2, 4)
RATE = 400
MORE = 2
"""Times the rounds of other parts: the system's accept() spreads requests unevenly."""
WARM_SECONDS = 1.0
IDLE_SECONDS = 2.0
SETTLE_SECONDS = 0.3
"""A batch delay, a commit and a delivery."""
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Row:
    """So many workers. CPU is summed over them and the process that watches them."""

    workers: Annotated[int, Column("workers")]
    us_per_request: Annotated[float, Column("audit, µs/request", ".1f")]
    bare_us_per_request: Annotated[float, Column("without audit, µs/request", ".1f")]
    idle_ms_per_s: Annotated[float, Column("audit while idle, CPU ms/s", ".2f")]
    busiest_share: Annotated[float, Column("busiest worker's share", ".0%")]
    rss_bytes: Annotated[int, Column("RSS of all, MiB", ",.0f", MIB)]
    bare_rss_bytes: Annotated[int, Column("RSS without audit, MiB", ",.0f", MIB)]


class Api(servers.Server):
    """The application under uvicorn."""

    def __init__(self, workers: int, environ: Mapping[str, str]) -> None:
        """Describe it; audit is on if the environment says so."""
        (port,) = servers.free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "uvicorn", "benchmarks.growth.app:app", "--app-dir", str(ROOT)]
        command += ["--port", str(port), "--workers", str(workers), "--no-proxy-headers", "--no-access-log"]
        known = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
        super().__init__("api", command, {**known, **environ}, f"{self.url}/health")

    def cpu(self) -> dict[int, float]:
        """Return the CPU seconds of each of its processes so far."""
        return family(self.pid)

    def rss_bytes(self) -> int:
        """Return the memory of all its processes."""
        return sum(map(rss_bytes, self.cpu()))


def load(vegeta: Path, url: str, seconds: float) -> int:
    """Send requests at the rate; return how many were answered, which must be all.

    Each has a connection of its own: what is kept open would tie the load to the workers that happened to accept first.

    Raises:
        ServerError: A request was not answered well.
    """
    target = "\n".join([f"{METHOD} {url}{PATH}", *(f"{name}: {value}" for name, value in HEADERS.items())])
    attack = ["attack", f"-rate={RATE}/1s", f"-duration={seconds}s", "-keepalive=false"]
    sent = _told([vegeta, *attack], target.encode())
    told = _told([vegeta, "report", "-type=json"], sent)
    report: dict[str, Any] = json.loads(told)
    if report["status_codes"].keys() != {"204"}:
        raise servers.ServerError(f"under load it answered {report['status_codes']}: {report['errors']}")
    return int(report["requests"])


def _told(command: list[str | Path], given: bytes) -> bytes:
    return subprocess.run(command, input=given, capture_output=True, check=True).stdout  # noqa: S603 - our own build


def spent(before: Mapping[int, float], after: Mapping[int, float]) -> dict[int, float]:
    """Return the CPU seconds between two looks, by process."""
    return {pid: used - before.get(pid, 0.0) for pid, used in after.items()}


def measure(stage: Stage, effort: Effort, say: Say) -> list[Sheet]:
    """Run all servers side by side, audited and not, and give each its turn in every round."""
    with ExitStack() as stack:
        gateway = stack.enter_context(stage.gateway())
        apis: dict[tuple[int, bool], Api] = {}
        for workers in COUNTS:
            for audited in (False, True):
                say(f"starting {workers} workers, {'audited' if audited else 'not audited'}")
                with stage.tools.cores.on_server():
                    api = Api(workers, stage.audited(gateway.url) if audited else {})
                    apis[workers, audited] = stack.enter_context(api)
                load(stage.tools.vegeta, api.url, WARM_SECONDS)
        idle = _idle(apis)
        taken: dict[tuple[int, bool], list[float]] = {key: [] for key in apis}
        shares: dict[tuple[int, bool], list[float]] = {key: [] for key in apis}
        sent = 0
        for number in range(MORE * effort.rounds):
            say(f"{RATE} requests a second to {', '.join(map(str, COUNTS))} workers: round {number + 1}")
            for key, api in apis.items():
                before = api.cpu()
                requests = load(stage.tools.vegeta, api.url, effort.seconds)
                time.sleep(SETTLE_SECONDS)
                used = spent(before, api.cpu())
                taken[key].append(per(sum(used.values()), requests))
                shares[key].append(max(used.values()) / sum(used.values()))
                sent += requests if key[1] else 0
        if (accepted := collector_metrics.read(gateway.metrics).accepted) < sent:
            raise servers.ServerError(f"{sent} audited requests, and {accepted} records at the Collector")
        rss = {key: api.rss_bytes() for key, api in apis.items()}
    rows = tuple(
        Row(
            workers,
            us_per_request=median(taken[workers, True]) - median(taken[workers, False]),
            bare_us_per_request=median(taken[workers, False]),
            idle_ms_per_s=(idle[workers, True] - idle[workers, False]) * 1000,
            busiest_share=median(shares[workers, True]),
            rss_bytes=rss[workers, True],
            bare_rss_bytes=rss[workers, False],
        )
        for workers in COUNTS
    )
    return [Sheet("workers", f"By uvicorn's workers, all on one core, at {RATE} requests/s in all", rows)]


def _idle(apis: Mapping[tuple[int, bool], Api]) -> dict[tuple[int, bool], float]:
    before = {key: api.cpu() for key, api in apis.items()}
    time.sleep(IDLE_SECONDS)
    return {key: sum(spent(before[key], api.cpu()).values()) / IDLE_SECONDS for key, api in apis.items()}
