"""Where the records go, and how many of the requests' records are really there."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from benchmarks.cores import lower
from benchmarks.errors import BenchError
from benchmarks.facts import EVENT_NAME
from benchmarks.variants import Capture, Fault
from collector import launch, servers

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from benchmarks.variants import Variant

_ID = re.compile(rb'"audit\.record\.id"\s*,\s*"value"\s*:\s*\{\s*"stringValue"\s*:\s*"([^"\\]*)"')
_SYSTEM = b'"tron.audit.system"'


class Sink(Protocol):
    """A receiver of records."""

    url: str
    """Where they are sent."""

    def fail(self) -> None:
        """Begins the fault that the variant is measured with."""

    def check(self) -> None:
        """Tells whether it is as it should be while the load runs.

        Raises:
            BenchError: It ended.
        """

    def recover(self) -> None:
        """Ends the fault."""

    def delivered(self) -> int:
        """Counts the requests that have a record there, each once. It takes no more after this."""


class Nowhere:
    """For an application that sends nothing."""

    url = ""

    def fail(self) -> None:
        """Does nothing."""

    def check(self) -> None:
        """Does nothing."""

    def recover(self) -> None:
        """Does nothing."""

    def delivered(self) -> int:
        """There is nothing."""
        return 0


class Archive:
    """The project's own Collector, with its archive alone."""

    def __init__(self, binary: Path, data: Path, fault: Fault) -> None:
        """Describes it; `start` starts it."""
        # Held until it starts: the load opens connections by the hundred, and one of them could take a port.
        self._held = _bound(4)
        http, grpc, health, metrics = (each.getsockname()[1] for each in self._held)
        self.url = f"http://127.0.0.1:{http}/v1/logs"
        self._fault = fault
        self._archive = data / "archive"
        files = launch.config_files({})
        environ = {
            "AUDIT_COLLECTOR_DATA": str(data),
            "AUDIT_COLLECTOR_HTTP_ENDPOINT": f"127.0.0.1:{http}",
            "AUDIT_COLLECTOR_GRPC_ENDPOINT": f"127.0.0.1:{grpc}",
            "AUDIT_COLLECTOR_HEALTH_ENDPOINT": f"127.0.0.1:{health}",
            "AUDIT_COLLECTOR_METRICS_PORT": str(metrics),
        }
        healthy = f"http://127.0.0.1:{health}/"
        self._server = servers.Collector(binary, files, launch.collector_environ(environ, files), healthy)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Runs it, unless the fault is that it does not."""
        if self._fault is not Fault.DEAD:
            self._start()
        try:
            yield
        finally:
            self._let_ports_go()
            self._signal(signal.SIGCONT)  # a stopped process takes no other signal
            self._server.__exit__()

    def fail(self) -> None:
        """Hangs it, if that is the fault; a dead one was never started."""
        if self._fault is Fault.HUNG:
            self._signal(signal.SIGSTOP)

    def check(self) -> None:
        """As `Sink` says."""
        if self._server.running is (self._fault is Fault.DEAD):
            raise BenchError(f"the Collector was to be {self._fault}. The end of its log:\n{self._server.log_tail()}")

    def recover(self) -> None:
        """Starts it, or lets it go on."""
        if self._fault is Fault.DEAD:
            self._start()
        self._signal(signal.SIGCONT)

    def delivered(self) -> int:
        """Stops it, and reads the archive."""
        self._server.stop()
        return len(ids(line for file in sorted(self._archive.glob("audit*.jsonl")) for line in _lines(file)))

    def _let_ports_go(self) -> None:
        for each in self._held:
            each.close()

    def _start(self) -> None:
        self._let_ports_go()
        self._server.start()
        lower(self._server.pid)

    def _signal(self, number: signal.Signals) -> None:
        if self._server.running:
            os.kill(self._server.pid, number)


class Store:
    """A VictoriaLogs, which the original design posts to."""

    def __init__(self, server: servers.VictoriaLogs) -> None:
        """Takes one that runs."""
        self._server = server
        self.url = f"{server.url}/insert/jsonline"

    def fail(self) -> None:
        """There is no fault."""

    def check(self) -> None:
        """As `Sink` says."""
        if not self._server.running:
            raise BenchError(f"VictoriaLogs ended. The end of its log:\n{self._server.log_tail()}")

    def recover(self) -> None:
        """There is no fault."""

    def delivered(self) -> int:
        """Asks it."""
        self._server.flush()
        [row] = self._server.query(f'event_name:="{EVENT_NAME}" | stats count_uniq("audit.record.id") as found')
        return int(row["found"])


@contextmanager
def sink(variant: Variant, otelcol: Path, victorialogs: Path, data: Path) -> Iterator[Sink]:
    """Runs what the variant sends to, with nothing in it; the Collector's data are in `data`."""
    if variant.capture is Capture.NONE:
        yield Nowhere()
    elif variant.capture is Capture.POST:
        with servers.victorialogs(victorialogs) as server:
            lower(server.pid)
            yield Store(server)
    else:
        archive = Archive(otelcol, data, variant.fault)
        with archive.running():
            yield archive


def _bound(count: int) -> list[socket.socket]:
    """Sockets that have ports and do not listen: who connects to one is refused."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    return sockets


def ids(lines: Iterable[bytes]) -> set[bytes]:
    """The ids of the requests' records in an archive's lines. What the trail says of itself is not counted."""
    found: set[bytes] = set()
    for line in lines:
        # A batch has hundreds of records, and to parse them all as JSON would take as long as the load did.
        found.update(_ID.findall(line) if _SYSTEM not in line else _ids_of_requests(json.loads(line)))
    return found


def _ids_of_requests(request: dict[str, Any]) -> Iterator[bytes]:
    for of_resource in request["resourceLogs"]:
        for of_scope in of_resource["scopeLogs"]:
            for record in of_scope["logRecords"]:
                if record["eventName"] == EVENT_NAME:
                    [value] = [a["value"] for a in record["attributes"] if a["key"] == "audit.record.id"]
                    yield value["stringValue"].encode()


def _lines(file: Path) -> Iterator[bytes]:
    with file.open("rb") as lines:
        yield from lines
