"""What the Collector takes for a record: for the archive alone, for each SIEM beside it, and for all of them."""

from __future__ import annotations

import itertools
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import httpx

from benchmarks.growth.processes import cpu_s, rss_bytes, size_bytes, written_bytes
from benchmarks.growth.sheet import MIB, Column, Micros, Sheet, median, per
from collector import launch, servers
from examples.demo.stage import GATEWAY, gateway_settings, siem_settings, tenant_overlay
from tests.integration.gateway import Gateway
from tron_audit_otel import collector_metrics

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from benchmarks.growth.sheet import Say
    from benchmarks.growth.stage import Effort, Stage
    from tron_audit_otel.journal import Frame

RATE = 2_000
FLUSH_SECONDS = 1.5
"""The last batch of a window waits for more, as long as the SIEMs' `flush_timeout` says, which is 1 s."""
SETTLE_SECONDS_MAX = 60
WARM_SECONDS = 1.0

PROTOBUF = {"Content-Type": "application/x-protobuf"}
PerRecord = Annotated[float, Column("bytes/record", ",.0f")]


@dataclass(frozen=True)
class Taken:
    """One window."""

    records: int
    cpu_s: float
    written_bytes: int | None
    archive_bytes: int
    queue_bytes: int
    """The queues' files, when nothing waits any more: they keep their size."""
    rss_bytes: int


@dataclass(frozen=True)
class Row:
    """One set of SIEMs."""

    siems: Annotated[str, Column("beside the archive")]
    us_per_record: Micros
    more_us: Annotated[float, Column("more than the archive, µs", "+.1f")]
    written_bytes: Annotated[float | None, Column("written, bytes/record", ",.0f")]
    archive_bytes: Annotated[float, Column("archive, bytes/record", ",.0f")]
    queue_bytes: Annotated[int, Column("queues' files, MiB", ",.1f", MIB)]
    rss_bytes: Annotated[int, Column("RSS, MiB", ",.0f", MIB)]


def row(name: str, windows: Sequence[Taken], archive: Sequence[Taken]) -> Row:
    """Make a row of a Collector's windows, and of those of the one that only archives."""
    us, base_us = (median(per(each.cpu_s, each.records) for each in some) for some in (windows, archive))
    written = [each.written_bytes / each.records for each in windows if each.written_bytes is not None]
    return Row(
        name,
        us,
        us - base_us,
        median(written) if written else None,
        median(each.archive_bytes / each.records for each in windows),
        max(each.queue_bytes for each in windows),
        max(each.rss_bytes for each in windows),
    )


def combinations(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return what is measured: none, each alone, all."""
    return {"nothing": (), **{name: (name,) for name in names}, "all of them": tuple(names)}


def measure(stage: Stage, effort: Effort, say: Say) -> list[Sheet]:
    """Run a Collector for each set of SIEMs side by side, and give each its turn in every round."""
    binary = stage.tools.otelcol
    frames = stage.frames(RATE, 1.0)
    lacking = dict(launch.unavailable(binary))
    names = [siem.name for siem in launch.SIEMS if siem.name not in lacking]
    for name, why in lacking.items():
        say(f"left out: {name}; this Collector {why}")
    settings = _sinks(stage, binary)
    collectors: dict[str, Gateway] = {}
    for title, wanted in combinations(names).items():
        overlay = stage.fresh("overlay") / "tenants.yaml"
        overlay.write_text(tenant_overlay(wanted), encoding="utf-8")
        variables = {key: value for name in wanted for key, value in settings[name].items()}
        with stage.tools.cores.on_server():
            gateway = Gateway(binary, stage.fresh("collector"), variables, overlay)
            collectors[title] = stage.stack.enter_context(gateway)
    taken: dict[str, list[Taken]] = {title: [] for title in collectors}
    for gateway in collectors.values():
        window(gateway, frames, WARM_SECONDS)
    for number in range(effort.rounds):
        say(f"{RATE:,} records a second to each Collector: round {number + 1} of {effort.rounds}")
        for title, gateway in collectors.items():
            taken[title].append(window(gateway, frames, effort.seconds))
    rows = tuple(row(title, windows, taken["nothing"]) for title, windows in taken.items())
    return [Sheet("siems", f"The Collector by SIEMs, at {RATE:,} records/s", rows)]


def _sinks(stage: Stage, binary: Path) -> dict[str, dict[str, str]]:
    """Start what stands for the SIEMs, and return the settings of each; as the demo has it."""
    token = secrets.token_urlsafe(16)
    store = stage.stack.enter_context(servers.victorialogs(stage.tools.victorialogs))
    endpoint, health = (f"127.0.0.1:{port}" for port in servers.free_ports(2))
    environ = gateway_settings(endpoint, health, store.url, token)
    stage.stack.enter_context(servers.Collector(binary, [GATEWAY], environ, f"http://{health}", "gateway"))
    return siem_settings(store.url, f"http://{endpoint}", token)


def window(gateway: Gateway, frames: Sequence[Frame], seconds: float) -> Taken:
    """Send at the rate, wait until every SIEM has all of it, and see what that took.

    Raises:
        ServerError: The Collector did not take a request, or a SIEM did not get a record.
    """
    pid, archive = gateway.server.pid, gateway.data / "archive"
    before = _arrived(gateway)
    cpu, written, archived = cpu_s(pid), written_bytes(pid), size_bytes(archive)
    records = _send(gateway.url, frames, seconds)
    time.sleep(FLUSH_SECONDS)
    used = cpu_s(pid) - cpu
    deadline = time.monotonic() + SETTLE_SECONDS_MAX
    while missing := [name for name, count in _arrived(gateway).items() if count - before[name] < records]:
        if time.monotonic() > deadline:
            raise servers.ServerError(f"not within {SETTLE_SECONDS_MAX} s: {', '.join(missing)}")
        time.sleep(FLUSH_SECONDS)
        used = cpu_s(pid) - cpu
    now = written_bytes(pid)
    return Taken(
        records,
        used,
        now - written if now is not None and written is not None else None,
        size_bytes(archive) - archived,
        size_bytes(gateway.data / "queue"),
        rss_bytes(pid),
    )


def _send(url: str, frames: Sequence[Frame], seconds: float) -> int:
    """Send the frames again and again at the rate, each as one request; return the records."""
    began, sent = time.monotonic(), 0
    with httpx.Client(headers=PROTOBUF, trust_env=False, timeout=30) as client:
        for frame in itertools.cycle(frames):
            due = began + sent / RATE
            if due >= began + seconds:
                break
            time.sleep(max(0.0, due - time.monotonic()))
            answer = client.post(url, content=frame.payload)
            if not answer.is_success:
                raise servers.ServerError(f"the Collector answered {answer.status_code}: {answer.text}")
            sent += frame.records
    return sent


def _arrived(gateway: Gateway) -> dict[str, int]:
    """Return how many records each SIEM has taken."""
    siems = collector_metrics.read(gateway.metrics).siems
    refused = [siem.name for siem in siems if siem.refused]
    if refused:
        raise servers.ServerError(f"refused records: {', '.join(refused)}")
    return {siem.name: siem.delivered for siem in siems}
