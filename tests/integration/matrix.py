"""Three SIEMs behind one real Collector, each with a proxy before it that can fail, and records sent at a fixed rate.

    with staged(otelcol, tmp_path) as scene:
        with Sender(scene.gateway.url, records=500, rate=500) as sender:
            scene.siems["datadog"].proxy.begin(faulty.status(503))
        ...
        lost = sender.ids - set(scene.siems["datadog"].stored(sender.run))

The SIEMs are those that the Collector at hand can run. Behind `datadog` and `elastic-otlp` is VictoriaLogs, a tenant
each; it refuses the OTLP/JSON of `http`, so behind that is a second Collector, whose archive is read.
"""

from __future__ import annotations

import http.client
import io
import json
import re
import shlex
import subprocess
import threading
import time
import uuid
from collections import Counter
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

import httpx
import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from collector import servers
from tests.integration import faulty
from tests.integration.faulty import Faulty
from tests.integration.gateway import ANSWER_SECONDS_MAX, EXEC, SETTINGS, Gateway, hasten, record
from tron_audit_otel import cli, cli_queue, otlp_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

NAMES = ("datadog", "elastic-otlp", "http")
TENANTS = {"datadog": 1, "elastic-otlp": 2}
"""VictoriaLogs' own."""
MIB = 2**20

REQUESTS_PER_SECOND = 20
"""The library's own: a batch each 50 ms."""
RETRY_SECONDS = 0.1
GIVE_UP_SECONDS = 180
"""A Collector that takes nothing for so long fails the test."""

RECORD_ID = re.compile(rb'"audit\.record\.id","value":\{"stringValue":"([^"]+)"')

FAULTS: dict[str, Callable[[Faulty], None]] = {
    "refuses connections": Faulty.refuse,
    "accepts and hangs": lambda proxy: proxy.begin(faulty.hang),
    "503": lambda proxy: proxy.begin(faulty.status(503)),
    "429": lambda proxy: proxy.begin(faulty.status(429)),
    "401": lambda proxy: proxy.begin(faulty.status(401)),
    "500": lambda proxy: proxy.begin(faulty.status(500)),
    "resets mid-body": lambda proxy: proxy.begin(intake=faulty.half),
    "1 KB/s": lambda proxy: proxy.begin(intake=faulty.trickle(1024)),
}
DROPPED = frozenset({"401", "500"})
"""What makes the Collector drop a batch at once and for good; the rest it sends again."""


class Sender:
    """Sends records to the Collector at a fixed rate, in order, each request again until it is acknowledged.

    As the library's shipper does: what comes due while a request is refused waits behind it.
    """

    def __init__(self, url: str, records: int, rate: int, requests_per_second: int = REQUESTS_PER_SECOND) -> None:
        """Takes the Collector's OTLP/HTTP address, how many records, how many a second, and in how many requests."""
        self.run = uuid.uuid4().hex[:12]
        self.statuses: Counter[int] = Counter()
        """How often each status was answered; 0 is a broken connection."""
        self.due: dict[str, float] = {}
        """When each record was there to be sent (monotonic seconds). Delays count from here, so a refusal is one."""
        self.acknowledged: set[str] = set()
        self.error: BaseException | None = None
        self._address = urlsplit(url)
        self._records, self._rate = records, rate
        self._size = rate // requests_per_second
        self._cancelled = threading.Event()
        self._thread = threading.Thread(target=self._guarded, name="sender", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:  # the test has failed already
            self._cancelled.set()
        self._thread.join()
        if kind is None and self.error is not None:
            raise self.error

    @property
    def ids(self) -> set[str]:
        """The records that were due so far."""
        return set(self.due)

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def wait_for(self, acknowledged: int) -> None:
        """Waits until so many records are acknowledged, or all that there will be."""
        while self.running and len(self.acknowledged) < acknowledged:
            time.sleep(0.005)

    def _guarded(self) -> None:
        try:
            self._send_all()
        except BaseException as error:  # noqa: BLE001 - raised where the sender is waited for
            self.error = error

    def _send_all(self) -> None:
        began = time.monotonic()
        self._connection = http.client.HTTPConnection(self._address.netloc, timeout=ANSWER_SECONDS_MAX)
        for first in range(0, self._records, self._size):
            due = began + first / self._rate
            if self._cancelled.wait(max(0.0, due - time.monotonic())):
                return
            ids = [f"{self.run}-{number:06}" for number in range(first, min(first + self._size, self._records))]
            self.due.update(dict.fromkeys(ids, due))
            self._send(request(ids))
            self.acknowledged.update(ids)
        self._connection.close()

    def _send(self, body: bytes) -> None:
        deadline = time.monotonic() + GIVE_UP_SECONDS
        while (status := self._post(body)) != 200:
            # What the library's shipper would not send again must not happen here.
            assert status in {0, 429, 503}, f"the Collector answered {status}"
            assert time.monotonic() < deadline, f"refused for {GIVE_UP_SECONDS} s: {self.statuses}"
            if self._cancelled.wait(RETRY_SECONDS):
                return

    def _post(self, body: bytes) -> int:
        try:
            self._connection.request("POST", self._address.path, body, faulty.PROTOBUF)
            answer = self._connection.getresponse()
            answer.read()
            status = answer.status
        except (OSError, http.client.HTTPException):
            self._connection.close()
            status = 0
        self.statuses[status] += 1
        return status


TEMPLATE = otlp_json.message(record({name: EXEC[name] for name in EXEC if name != "audit.record.id"}), LogRecord)


def request(ids: Iterable[str]) -> bytes:
    """A record for each id, of now."""
    message = ExportLogsServiceRequest()
    of_resource = message.resource_logs.add()
    of_resource.resource.attributes.append(KeyValue(key="service.name", value=AnyValue(string_value="matrix")))
    of_scope = of_resource.scope_logs.add()
    for each in ids:
        made = of_scope.log_records.add()
        made.CopyFrom(TEMPLATE)
        made.time_unix_nano = made.observed_time_unix_nano = time.time_ns()
        made.attributes.append(KeyValue(key="audit.record.id", value=AnyValue(string_value=each)))
    body: bytes = message.SerializeToString()
    return body


class Siem:
    """A SIEM behind its proxy: what it has, and when it took it."""

    def __init__(self, name: str, upstream: str, stored: Callable[[str], list[str]]) -> None:
        """Takes its address, and what gives the ids of a run's records in it, as often as they are there."""
        self.name = name
        self.stored = stored
        self.proxy = Faulty(upstream)
        self._taken: list[tuple[float, faulty.Call]] = []
        self._decoded = 0
        self._arrived: dict[str, float] = {}
        self._lock = threading.Lock()
        self.proxy.on_answer = self._note

    def arrived(self) -> dict[str, float]:
        """When the SIEM took each record for the first time (monotonic seconds)."""
        with self._lock:  # decoded here, and not while the proxy answers: it must not be what is measured
            new = self._taken[self._decoded :]
            self._decoded += len(new)
            for when_s, call in new:
                for each in ids_in(call):
                    self._arrived.setdefault(each, when_s)
            return self._arrived

    def _note(self, call: faulty.Call, reply: faulty.Reply) -> None:
        if reply.status == 200:
            self._taken.append((time.monotonic(), call))


def ids_in(call: faulty.Call) -> list[str]:
    if call.headers.get("Content-Type") == "application/json":
        return [found.decode() for found in RECORD_ID.findall(call.body)]
    return [faulty.attribute(each, "audit.record.id") for each in faulty.records(call.message())]


@dataclass
class Scene:
    """The Collector and its SIEMs."""

    gateway: Gateway
    siems: dict[str, Siem]
    operator: dict[str, str]
    """What the operator's commands find in their environment."""

    def others(self, name: str) -> list[Siem]:
        return [siem for siem in self.siems.values() if siem.name != name]

    def metric(self, metric: str, siem: str) -> float:
        """The sum of a metric of one SIEM's exporter; 0 while there is none, as before the first record."""
        answer = httpx.get(self.gateway.metrics, timeout=ANSWER_SECONDS_MAX, verify=servers.TLS, trust_env=False)
        exporter = f'exporter="otlp_http/{siem}"'
        lines = answer.raise_for_status().text.splitlines()
        return sum(
            float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{metric}{{") and exporter in line
        )

    def queue(self, siem: str) -> float:
        """Bytes that wait for a SIEM."""
        return self.metric("otelcol_exporter_queue_size", siem)

    def dropped(self, siem: str) -> int:
        """Records that the Collector gave up for good, since it was started."""
        return int(self.metric("otelcol_exporter_send_failed_log_records", siem))

    def unaccounted(self, siem: str) -> int:
        """Records of a SIEM that has none waiting, neither delivered nor dropped nor refused to their sender."""
        taken, *fates = (
            int(self.metric(f"otelcol_exporter_{name}", siem))
            for name in (
                *("enqueue_size_sum", "enqueue_failed_log_records"),
                *("sent_log_records", "send_failed_log_records"),
            )
        )
        return taken - sum(fates)


@contextmanager
def staged(  # noqa: PLR0913 - all but two by name
    otelcol: Path,
    directory: Path,
    *,
    exporter: Mapping[str, Any] | None = None,
    storage: Mapping[str, Any] | None = None,
    settings: Mapping[str, str] | None = None,
    command: Path | None = None,
) -> Iterator[Scene]:
    """Everything runs: the stores, the proxies, the Collector.

    Args:
        otelcol: The Collector's binary.
        directory: For the data of both Collectors.
        exporter: What is set on every SIEM's exporter, over the shipped configuration.
        storage: What is set on every SIEM's queue on disk.
        settings: More of the operator's variables.
        command: What is run in place of the Collector's binary, and runs it.
    """
    with ExitStack() as stack:
        store = stack.enter_context(servers.victorialogs())
        second = stack.enter_context(Gateway(otelcol, directory / "siem", {"AUDIT_COLLECTOR_TOKEN": "s3cret-http"}))
        siems = {
            "datadog": Siem("datadog", f"{store.url}/insert/opentelemetry/v1/logs", _rows(store, TENANTS["datadog"])),
            "elastic-otlp": Siem(
                "elastic-otlp", f"{store.url}/insert/opentelemetry", _rows(store, TENANTS["elastic-otlp"])
            ),
            "http": Siem("http", second.url, lambda run: archived(second.data, run)),
        }
        for siem in siems.values():
            stack.enter_context(siem.proxy)
        exporters = {f"otlp_http/{name}": dict(exporter or {}) for name in siems}
        for name, tenant in TENANTS.items():
            exporters[f"otlp_http/{name}"]["headers"] = {"AccountID": str(tenant)}
        extensions = {f"file_storage/{name}": dict(storage or {}) for name in siems}
        overlay = directory / "overlay.yaml"
        overlay.write_text(json.dumps({"exporters": exporters, "extensions": extensions}))  # JSON is YAML
        variables = {
            **{key: value for name in NAMES for key, value in SETTINGS[name].items()},
            "DD_OTLP_LOGS_URL": siems["datadog"].proxy.url,
            "ELASTIC_OTLP_URL": siems["elastic-otlp"].proxy.url,
            "AUDIT_SIEM_URL": siems["http"].proxy.url,
            **(settings or {}),
        }
        gateway = stack.enter_context(Gateway(command or otelcol, directory / "data", variables, overlay))
        yield Scene(gateway, siems, {**operator(gateway, directory), "VICTORIALOGS_URL": store.url})


def _rows(store: servers.VictoriaLogs, tenant: int) -> Callable[[str], list[str]]:
    def stored(run: str) -> list[str]:
        store.flush()
        rows = store.query(f'"audit.record.id":="{run}"* | fields audit.record.id', tenant)
        return [row["audit.record.id"] for row in rows]

    return stored


def archived(data: Path, run: str) -> list[str]:
    """The ids of a run's records in a Collector's archive, as often as they are there."""
    ids = []
    for file in (data / "archive").glob("audit*.jsonl"):
        with file.open("rb") as lines:
            ids += [each.decode() for line in lines for each in RECORD_ID.findall(line)]
    return [each for each in ids if each.startswith(run)]


def operator(gateway: Gateway, directory: Path) -> dict[str, str]:
    """The environment of an operator beside the Collector. No process of ours has a journal here."""
    return {
        "XDG_STATE_HOME": str(directory / "state"),
        "AUDIT_LOG_JOURNAL_DIR": str(directory / "journal"),
        "AUDIT_COLLECTOR_DATA": str(gateway.data),
        "AUDIT_COLLECTOR_METRICS_PORT": str(urlsplit(gateway.metrics).port),
        "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": gateway.url,
        "OTEL_EXPORTER_OTLP_LOGS_PROTOCOL": "http/protobuf",
    }


@dataclass
class Watch:
    """Samples how much waits for a SIEM, in a thread of its own."""

    scene: Scene
    siem: str
    every_s: float
    samples: list[tuple[float, float]] = field(default_factory=list)
    """When (monotonic seconds), and how many bytes."""

    def __enter__(self) -> Self:
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="watch", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def peak(self) -> float:
        return max((size for _, size in self.samples), default=0)

    def _sample(self) -> None:
        while not self._ended.wait(self.every_s):
            self.samples.append((time.monotonic(), self.scene.queue(self.siem)))


def percentile(values: Sequence[float], percent: int) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def within(seconds: float, found: Callable[[], object]) -> bool:
    """Waits until `found` returns something true; tells whether it did."""
    deadline = time.monotonic() + seconds
    while not found():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def tron_audit(scene: Scene, *arguments: str) -> tuple[int, str, str]:
    """The operator's command: its exit code, and what it prints and says."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setenv("XDG_STATE_HOME", scene.operator["XDG_STATE_HOME"])
        hasten(patch, (cli_queue, "LOOK_SECONDS"))
        code = cli.main(list(arguments), scene.operator)
    return code, out.getvalue(), err.getvalue()


def status(scene: Scene) -> tuple[int, dict[str, Any]]:
    """What `tron-audit status` says: its exit code, and its JSON."""
    code, out, err = tron_audit(scene, "status", "--json", "--collector", scene.gateway.metrics)
    assert out, err
    return code, json.loads(out)


def mend(scene: Scene, name: str) -> None:
    """Does what an operator does: asks `tron-audit status`, and runs the command that it prints."""
    code, told = status(scene)
    [command] = [siem["replay"] for siem in told["siems"] if siem["name"] == name]
    assert code == 1, told
    assert command is not None, f"status names no replay: {told}"
    program, *arguments = command
    assert program == "tron-audit"
    code, out, err = tron_audit(scene, *arguments)
    assert code == 0, out + err


def reconcile(scene: Scene, name: str) -> int:
    """Has `tron-audit reconcile` send what the SIEM lacks of the archive; tells how many records that were."""
    scene.operator["VICTORIALOGS_TENANT"] = f"{TENANTS[name]}:0"
    scene.siems[name].stored("")  # so that its search shows all that it has, which may take it a second
    until = datetime.now(UTC) + timedelta(seconds=1)
    code, out, err = tron_audit(
        scene,
        *("reconcile", "--json", "--siem", name, "--search", "victorialogs", "--pause", "0.1"),
        *("--since", "15m", "--until", until.isoformat()),
    )
    assert code == 0, out + err
    return int(json.loads(out)["missing"])


class SmallDisk:
    """A file system of its own for a directory, in memory: a real ENOSPC, without root.

    It is mounted in the namespace of a process that does nothing else, so that it outlives the Collector.
    """

    def __init__(self, directory: Path, size: int) -> None:
        """Takes where it is mounted, and its size in bytes."""
        directory.mkdir(parents=True)
        self._directory = directory
        mount = 'mount -t tmpfs -o size="$1" tmpfs "$2" && echo mounted && exec sleep infinity'
        command = ["/usr/bin/unshare", "-Urm", "/bin/sh", "-c", mount, "sh", str(size), str(directory)]
        self._holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Self:
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "mounted\n"
        return self

    def __exit__(self, *_: object) -> None:
        self._holder.kill()
        self._holder.communicate()

    @property
    def seen(self) -> Path:
        """The directory as it is on that file system."""
        return Path(f"/proc/{self._holder.pid}/root{self._directory}")

    def program(self, binary: Path, file: Path) -> Path:
        """Writes a program that runs the binary where the file system is mounted."""
        file.write_text(f'#!/bin/sh\nexec {shlex.join([*self._inside(), str(binary)])} "$@"\n')
        file.chmod(0o755)
        return file

    def grow(self, size: int) -> None:
        subprocess.run([*self._inside(), "/bin/mount", "-o", f"remount,size={size}", self._directory], check=True)

    def _inside(self) -> list[str]:
        return ["/usr/bin/nsenter", "-t", str(self._holder.pid), "-U", "-m", "--preserve-credentials", "--"]
