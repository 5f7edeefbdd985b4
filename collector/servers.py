"""Runs the real Collector and VictoriaLogs for the demo and the tests, and asks VictoriaLogs what has arrived.

    with victorialogs() as store, otelcol([config], environ, health=url) as collector:
        ...
        rows = store.wait('event_name:="tron.audit.request"', 3, tenant=2)

What is true of VictoriaLogs, found by running it and by reading its sources:

- **Tenants**: the HTTP headers `AccountID` and `ProjectID` (unsigned 32-bit numbers, default 0), on every protocol and
  on queries; a tenant comes into being with its first record. In an exporter: `headers: {AccountID: "2"}`.
- **OTLP**: `/insert/opentelemetry/v1/logs`, protobuf only, gzip allowed. OTLP/JSON is answered with 400, which the
  Collector's exporter drops for good.
- **JSON lines**: `/insert/jsonline` takes any JSON object a line, so also a whole OTLP/JSON request: it becomes one
  row, however many records are in it, with the JSON text in the field `resourceLogs`.
- **Splunk HEC**: `/services/collector/event`, not `/services/collector`. An event that is an object gives fields
  `event.…` and no message; what stands beside it (`source`, `sourcetype`, `index`, `fields.…`) keeps its name.
- **Datadog**: `/api/v2/logs`, also below `/insert/datadog`. A nested object gets the whole request refused with 400.
- **Elasticsearch**: `/insert/elasticsearch` is the server's address, `_bulk` is below it. Nested objects give fields
  with dots. The time of arrival is taken unless `?_time_field=@timestamp&_msg_field=message`, or the headers
  `VL-Time-Field` and `VL-Msg-Field`, say otherwise; document ids are not looked at. No protocol looks at tokens.
- **Fields** of an OTLP record: `_time` (its timestamp, or the observed one when that is 0; in UTC, to the nanosecond),
  `_msg` (the body), `severity_text`, `severity_number`, `trace_id` and `span_id` (hexadecimal), `event_name`,
  `scope.name`, `scope.version`; attributes of the record and of the resource under their own names. All values are
  strings, a list is its JSON, a map gives fields with dots. The observed timestamp and empty values are not kept.
- **Streams** (`_stream`): the resource's attributes and the event name; for Splunk host, source and sourcetype.
- **Searchable** within a second of the answer, at once after `flush`. SIGKILL loses about the last second of what it
  has acknowledged, which is our setting; SIGTERM loses nothing.
- A record of any content is taken, and nothing is deduplicated: two copies of a record are two rows.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import urlencode

import httpx

from collector import build, launch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

START_SECONDS_MAX = 30
STOP_SECONDS_MAX = 15
POLL_SECONDS = 0.05
LOG_TAIL_LINES = 40

TLS = ssl.create_default_context()
"""For httpx, which otherwise takes 20 ms to make its own for each request, for plain HTTP as well."""

# Runs a command under the pid it was started with, tied to the life of its parent: Linux sends it SIGKILL when the
# thread that started it ends, even when that was killed itself. Elsewhere only an orderly end of the parent stops it.
_TIED = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the parent has gone already")
os.execv(sys.argv[2], sys.argv[2:])
"""


class ServerError(Exception):
    """A server did not start, did not answer, or did not hold what was expected; the message has its log's tail."""


_found: set[int] = set()


def free_ports(count: int) -> list[int]:
    """Find ports on the loopback address that nobody listens on, and none twice: what is to listen may start later."""
    ports: list[int] = []
    with contextlib.ExitStack() as stack:
        while len(ports) < count:
            each = stack.enter_context(socket.socket())
            each.bind(("127.0.0.1", 0))
            if (port := each.getsockname()[1]) not in _found:
                _found.add(port)
                ports.append(port)
    return ports


class Server:
    """A process that answers at a health address, with its log in a file. Use it as a context manager.

    Start it from a thread that outlives it: on Linux it is killed when that thread ends (see `_TIED`).
    """

    def __init__(self, name: str, command: Sequence[str | Path], environ: Mapping[str, str], health: str) -> None:
        """Describe the server; `start` or `with` starts it."""
        self.name = name
        self.health = health
        self._command = [str(part) for part in command]
        self._environ = dict(environ)
        self._process: subprocess.Popen[bytes] | None = None
        self._log: Path | None = None

    def __enter__(self) -> Self:
        """Start it."""
        try:
            self.start()
        except BaseException:
            self._remove_log()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it, and remove its log."""
        try:
            self.stop()
        finally:
            self._remove_log()

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process id of the latest start."""
        if self._process is None:
            raise ServerError(f"{self.name} was not started")
        return self._process.pid

    def start(self) -> None:
        """Start the process and wait until it is healthy.

        Raises:
            ServerError: it ended, or was not healthy within START_SECONDS_MAX.
        """
        if self.running:
            raise ServerError(f"{self.name} runs already")
        tied = [sys.executable, "-I", "-S", "-c", _TIED, str(os.getpid()), *self._command]
        if self._log is None:
            handle, name = tempfile.mkstemp(prefix=f"{self.name}-", suffix=".log")
            os.close(handle)
            self._log = Path(name)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                tied, env=self._environ, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        try:
            self._await_health()
        except BaseException:
            self.kill()
            raise

    def stop(self, sig: signal.Signals = signal.SIGTERM, seconds: float = STOP_SECONDS_MAX) -> int | None:
        """Send the signal and wait; what still lives after that is killed. Returns the exit code, None if not started.

        Raises:
            ServerError: it had to be killed. The process is gone all the same.
        """
        if self._process is None:
            return None
        if self.running:
            self._process.send_signal(sig)
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise ServerError(self._with_tail(f"had to be killed {seconds:g} s after {sig.name}")) from None

    def kill(self) -> None:
        """End it with SIGKILL, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def restart(self, sig: signal.Signals = signal.SIGTERM) -> None:
        """Stop it if it runs, and start it again: same addresses, same data, the log goes on."""
        self.stop(sig)
        self.start()

    def log(self) -> str:
        """Return everything it has written since the first start."""
        return self._log.read_text(errors="replace") if self._log else ""

    def log_tail(self, lines: int = LOG_TAIL_LINES) -> str:
        """Return the last lines it has written."""
        return "\n".join(self.log().splitlines()[-lines:])

    def _remove_log(self) -> None:
        if self._log is not None:
            self._log.unlink(missing_ok=True)
            self._log = None

    def _await_health(self) -> None:
        deadline = time.monotonic() + START_SECONDS_MAX
        while time.monotonic() < deadline:
            if not self.running:
                code = self._process.returncode if self._process else None
                raise ServerError(self._with_tail(f"ended with exit code {code} while starting"))
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(self.health, timeout=2, verify=TLS, trust_env=False).is_success:
                    return
            time.sleep(POLL_SECONDS)
        raise ServerError(self._with_tail(f"was not healthy at {self.health} within {START_SECONDS_MAX} s"))

    def _with_tail(self, what: str) -> str:
        return f"{self.name} {what}. The end of its log:\n{self.log_tail()}"


class VictoriaLogs(Server):
    """A running VictoriaLogs; `url` is its address."""

    def __init__(self, binary: Path, data: Path, port: int) -> None:
        """Describe it: its data below `data`, on `port` of the loopback address."""
        self.url = f"http://127.0.0.1:{port}"
        flags = {
            "storageDataPath": data,
            "httpListenAddr": f"127.0.0.1:{port}",
            "inmemoryDataFlushInterval": "1s",  # the lowest that it takes
            # A record older or newer than these is dropped without an error, and tests send records of any age.
            "retentionPeriod": "100y",
            "futureRetention": "100y",
            "insert.maxLineSizeBytes": "2MiB",  # the highest that it takes; a longer record is dropped, too
            "memory.allowedBytes": "256MiB",  # the default is 60 % of the machine
        }
        command = [str(binary), *(f"-{name}={value}" for name, value in flags.items())]
        super().__init__("victorialogs", command, {}, f"{self.url}/health")

    def query(self, logsql: str, tenant: int = 0) -> list[dict[str, str]]:
        """Run a LogsQL query over one tenant (its AccountID) and return the rows, each a record's fields.

        Raises:
            ServerError: it refused the query, or did not answer.
        """
        answer = self._post("/select/logsql/query", {"query": logsql}, {"AccountID": str(tenant)})
        return [json.loads(line) for line in answer.splitlines()]

    def wait(self, logsql: str, count: int, tenant: int = 0, seconds: float = 10) -> list[dict[str, str]]:
        """Return the query's rows as soon as there are `count` of them or more.

        Raises:
            ServerError: there were fewer after `seconds`.
        """
        deadline = time.monotonic() + seconds
        while True:
            self.flush()
            rows = self.query(logsql, tenant)
            if len(rows) >= count:
                return rows
            if time.monotonic() > deadline:
                raise ServerError(
                    f"{logsql} found {len(rows)} of {count} records in tenant {tenant} after {seconds:g} s"
                )
            time.sleep(POLL_SECONDS)

    def flush(self) -> None:
        """Make what was accepted so far searchable; otherwise that takes up to a second."""
        self._post("/internal/force_flush", {}, {})

    def search_page(self, logsql: str = "*", tenant: int = 0) -> str:
        """Return the address of its search page, with the query, the tenant and the last 24 hours filled in."""
        shown = {"query": logsql, "g0.relative_time": "last_24_hours", "accountID": tenant}
        return f"{self.url}/select/vmui/#/?{urlencode(shown)}"

    def _post(self, path: str, form: dict[str, str], headers: dict[str, str]) -> str:
        try:
            answer = httpx.post(self.url + path, data=form, headers=headers, timeout=30, verify=TLS, trust_env=False)
        except httpx.TransportError as error:
            raise ServerError(self._with_tail(f"did not answer {path}: {error}")) from error
        if not answer.is_success:
            raise ServerError(f"{self.name} answered {answer.status_code} to {path} with {form}: {answer.text.strip()}")
        return answer.text


class Collector(Server):
    """A running OpenTelemetry Collector."""

    def __init__(
        self, binary: Path, configs: Sequence[Path], environ: Mapping[str, str], health: str, name: str = "otelcol"
    ) -> None:
        """Describe it: the configuration files, later ones over earlier ones, and the variables that they read."""
        super().__init__(name, [str(binary), *launch.flags(configs)], environ, health)


@contextlib.contextmanager
def victorialogs(binary: Path | None = None) -> Iterator[VictoriaLogs]:
    """Run VictoriaLogs, built if need be, on a free port and with an empty directory that is removed at the end."""
    binary = binary or build.victorialogs()
    with (
        tempfile.TemporaryDirectory(prefix="victorialogs-", ignore_cleanup_errors=True) as data,
        VictoriaLogs(binary, Path(data), *free_ports(1)) as server,
    ):
        yield server


@contextlib.contextmanager
def otelcol(
    configs: Sequence[Path], environ: Mapping[str, str], *, health: str, binary: Path | None = None
) -> Iterator[Collector]:
    """Run a Collector, built if need be, and wait until `health` (its health check's address) answers.

    `environ` is its whole environment, so that nothing of the caller's can turn an exporter on.

    Raises:
        ServerError: it did not come up; the message has the end of its log.
    """
    with Collector(binary or build.otelcol(), configs, environ, health) as server:
        yield server
