"""What a SIEM has refused is sent to it again from the archive, and to no other: real Collector, real store."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from hypothesis import given, settings

from collector import servers
from tests.archives import line
from tests.archives import record as short_record
from tests.integration import faulty
from tests.integration.faulty import Faulty
from tests.integration.gateway import ANSWER_SECONDS_MAX, EXEC, Gateway, eventually, hasty, record, settings_of
from tests.integration.test_processes import ROOT
from tests.test_otlp_json import requests
from tron_audit_otel import archive

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

DATADOG, ELASTIC = 1, 2
"""Their tenants in the store."""
SINCE = "2026-09-21"
"""Before the records' time."""

REPLAYED_SECONDS_MAX = 120
RSS_MIB_MAX = 250
LARGE = 50_000


@dataclass
class Scene:
    """A Collector that sends to two SIEMs, each a tenant of the store; before Datadog's is a proxy that fails."""

    gateway: Gateway
    datadog: Faulty
    store: servers.VictoriaLogs
    environ: dict[str, str]

    def send(self, *ids: str) -> None:
        for each in ids:
            assert self.gateway.send(record({**EXEC, "audit.record.id": each}), token=TOKEN).status_code == 200

    def stored(self, tenant: int) -> list[str]:
        self.store.flush()
        return sorted(row["audit.record.id"] for row in self.store.query("*", tenant))

    def refused(self) -> int:
        text = httpx.get(self.gateway.metrics, timeout=ANSWER_SECONDS_MAX, verify=servers.TLS, trust_env=False).text
        found = re.findall(
            r"^otelcol_exporter_send_failed_log_records\{[^}]*otlp_http/datadog[^}]*\} (\d+)", text, re.MULTILINE
        )
        return sum(map(int, found))

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "tron_audit_otel.cli", "replay", "--to", "datadog", "--json", *arguments]

    def replay(self, *arguments: str, code: int = 0, stdin: str = "", where: Mapping[str, str] | None = None) -> Any:
        done = subprocess.run(
            self.command(*arguments),
            env={**self.environ, **(where or {})},
            cwd=ROOT,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=REPLAYED_SECONDS_MAX,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return json.loads(done.stdout or done.stderr.splitlines()[-1])

    @contextmanager
    def replaying(self, *arguments: str, **where: str) -> Iterator[subprocess.Popen[str]]:
        """A replay of everything that goes on meanwhile, and does not outlive the test."""
        command, environ = self.command("--since", SINCE, *arguments), {**self.environ, **where}
        with subprocess.Popen(command, env=environ, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            try:
                yield process
            finally:
                process.kill()

    def archived(self) -> bytes:
        return (self.gateway.data / "archive" / "audit.jsonl").read_bytes()


TOKEN = "s3cret-intake-token"  # noqa: S105 - made up


@contextmanager
def staged(
    otelcol: Path, directory: Path, prepared: bytes = b"", more: Mapping[str, str] | None = None
) -> Iterator[Scene]:
    with servers.victorialogs() as store, Faulty(f"{store.url}/insert/opentelemetry/v1/logs") as datadog:
        tenants = directory / "tenants.yaml"
        names = {"otlp_http/datadog": DATADOG, "otlp_http/elastic-otlp": ELASTIC}
        exporters = {name: {"headers": {"AccountID": str(tenant)}} for name, tenant in names.items()}
        tenants.write_text(json.dumps({"exporters": exporters}))
        environ = {
            **settings_of(["datadog", "elastic-otlp"]),
            "DD_OTLP_LOGS_URL": datadog.url,
            "ELASTIC_OTLP_URL": f"{store.url}/insert/opentelemetry",
            "AUDIT_COLLECTOR_TOKEN": TOKEN,
            **(more or {}),
        }
        data = directory / "data"
        if prepared:
            (data / "archive").mkdir(parents=True)
            (data / "archive" / "audit.jsonl").write_bytes(prepared)
        with Gateway(otelcol, data, environ, tenants, hasty(directory, "datadog", "elastic-otlp")) as gateway:
            port = gateway.metrics.rsplit(":", 1)[1].partition("/")[0]
            tool = {
                "AUDIT_COLLECTOR_DATA": str(data),
                "AUDIT_COLLECTOR_METRICS_PORT": port,
                "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": gateway.url,
                "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer {TOKEN}",
                "XDG_STATE_HOME": str(directory / "state"),
                "AUDIT_LOG_RETRY_SECONDS_MAX": "0.5",
            }
            yield Scene(gateway, datadog, store, tool)


@pytest.fixture
def scene(otelcol: Path, tmp_path: Path) -> Iterator[Scene]:
    with staged(otelcol, tmp_path) as made:
        yield made


def fresh(count: int) -> list[str]:
    return sorted(str(uuid.uuid4()) for _ in range(count))


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_what_an_expired_token_cost_is_delivered_to_that_siem_alone(scene: Scene, protocol: str) -> None:
    before, dropped = fresh(20), fresh(30)
    scene.send(*before)
    eventually(lambda: len(scene.stored(DATADOG)) == 20, "records at Datadog")
    [was] = [row for row in scene.store.query("*", DATADOG) if row["audit.record.id"] == before[0]]

    scene.datadog.fault = faulty.status(401)
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    for each in dropped:
        sent = {**record({**EXEC, "audit.record.id": each}), "timeUnixNano": str(time.time_ns())}
        assert scene.gateway.send(sent, token=TOKEN).status_code == 200
    eventually(lambda: scene.refused() == 30, "records that the Collector drops")
    eventually(lambda: len(scene.stored(ELASTIC)) == 50, "records at the healthy SIEM")
    assert scene.stored(DATADOG) == before
    archived = scene.archived()

    scene.datadog.fault = faulty.passing
    endpoint = f"http://{scene.gateway.grpc}" if protocol == "grpc" else scene.gateway.url
    where = {"OTEL_EXPORTER_OTLP_PROTOCOL": protocol, "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": endpoint}
    assert scene.replay("--since", since, "--dry-run", where=where)["records"] == 30
    assert scene.stored(DATADOG) == before, "a dry run"
    answer = scene.replay("--since", since, where=where)
    assert (answer["sent"], answer["ids_missing"], answer["damaged"]) == (30, [], 0)
    eventually(lambda: len(scene.stored(DATADOG)) == 50, "what was dropped, at Datadog")
    assert scene.stored(DATADOG) == sorted(before + dropped)
    assert scene.stored(ELASTIC) == sorted(before + dropped), "the other SIEM got something again"
    assert scene.archived() == archived, "it was archived again"

    # What is stored is what would have been stored the first time, the mark not in it.
    for row in scene.store.query("*", DATADOG):
        changing = {"audit.record.id", "_time"}
        assert {**row, **dict.fromkeys(changing)} == {**was, **dict.fromkeys(changing)}


def test_only_the_ids_that_are_asked_for(scene: Scene) -> None:
    scene.datadog.fault = faulty.status(401)
    ids = fresh(10)
    scene.send(*ids)
    eventually(lambda: scene.refused() == 10, "records that the Collector drops")
    scene.datadog.fault = faulty.passing
    answer = scene.replay("--ids", "-", stdin="\n".join([*ids[:3], "absent"]), code=1)
    assert (answer["sent"], answer["ids_missing"]) == (3, ["absent"])
    eventually(lambda: scene.stored(DATADOG) == ids[:3], "three records at Datadog")


def test_a_siem_that_is_off_and_a_token_that_is_wrong(scene: Scene) -> None:
    scene.send(*fresh(1))
    assert "those it has: datadog, elastic-otlp" in scene.replay("--since", SINCE, "--to", "splunk", code=2)["error"]
    token = {"OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer wr0ng-token"}
    wrong = scene.replay("--since", SINCE, code=1, where=token)
    assert wrong["sent"] == 0
    assert "HTTP 401" in wrong["error"]
    assert "wr0ng" not in str(wrong)


def test_a_collector_that_is_killed_in_the_midst_gets_the_rest_when_it_lives(otelcol: Path, tmp_path: Path) -> None:
    ids = fresh(300)
    with staged(otelcol, tmp_path, b"".join(line(short_record(each)) for each in ids)) as scene:
        with (
            Faulty(scene.gateway.url) as between,
            scene.replaying("--rate", "100", OTEL_EXPORTER_OTLP_LOGS_ENDPOINT=between.url) as process,
        ):
            # However long it takes to see the first ones, the rest comes after the kill.
            between.fault = lambda call: call.forward() if 200 not in between.statuses() else faulty.reset(call)
            eventually(lambda: len(scene.stored(DATADOG)) >= 100, "the first records at Datadog")
            scene.gateway.server.kill()
            between.mend()
            time.sleep(1)  # its attempts fail meanwhile
            assert process.poll() is None
            scene.gateway.server.start()
            out, _ = process.communicate(timeout=REPLAYED_SECONDS_MAX)
        assert process.returncode == 0, out
        assert json.loads(out)["sent"] == 300
        eventually(lambda: set(scene.stored(DATADOG)) == set(ids), "every record at Datadog")
        assert scene.stored(ELASTIC) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_stops_when_it_is_asked_to_and_says_how_far_it_came(
    otelcol: Path, tmp_path: Path, number: signal.Signals
) -> None:
    with staged(otelcol, tmp_path, b"".join(line(short_record(each)) for each in fresh(5_000))) as scene:
        with scene.replaying("--rate", "50") as process:
            eventually(lambda: scene.stored(DATADOG), "the first records at Datadog")
            process.send_signal(number)
            out, _ = process.communicate(timeout=REPLAYED_SECONDS_MAX)
        answer = json.loads(out)
        assert (process.returncode, answer["ok"], answer["signal"]) == (128 + number, False, number)
        assert 0 < answer["sent"] < 5_000
        eventually(lambda: len(scene.stored(DATADOG)) == answer["sent"], "as many records as it says")


def test_a_siem_that_is_down_does_not_get_its_queue_filled_for_all(otelcol: Path, tmp_path: Path) -> None:
    large = [line(short_record(each, body={"stringValue": each + 9_000 * "x"})) for each in fresh(70)]
    capacity = 400_000  # all of it has 0.6 MB
    with staged(otelcol, tmp_path, b"".join(large), {"AUDIT_COLLECTOR_QUEUE_BYTES": str(capacity)}) as scene:
        scene.datadog.fault = faulty.status(503)
        with scene.replaying() as process:
            eventually(lambda: scene.datadog.seen, "an attempt")
            time.sleep(3)  # three looks
            assert process.poll() is None
            scene.send(*fresh(5))  # others are taken meanwhile
            eventually(lambda: len(scene.stored(ELASTIC)) == 5, "records at the healthy SIEM")
            text = httpx.get(scene.gateway.metrics, timeout=ANSWER_SECONDS_MAX, trust_env=False).text
            assert not re.search(r"enqueue_failed_log_records\{.*\} [1-9]", text), "a sender was refused"
            scene.datadog.fault = faulty.passing
            out, _ = process.communicate(timeout=REPLAYED_SECONDS_MAX)
        assert process.returncode == 0, out
        eventually(lambda: len(scene.stored(DATADOG)) == 75, "every record at Datadog")


def resident_peak_kib(pid: int) -> int:
    """The process's own; what `wait4` tells is never less than what this process had when it forked."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(found[1]) if found else 0  # it has none left when it ends


def test_many_records_in_little_memory(otelcol: Path, tmp_path: Path) -> None:
    ids = (str(uuid.uuid4()) for _ in range(LARGE))
    prepared = b"".join(line(*(short_record(next(ids)) for _ in range(100))) for _ in range(LARGE // 100))
    out = tmp_path / "out"
    with staged(otelcol, tmp_path, prepared) as scene:
        with out.open("wb") as file:
            process = subprocess.Popen(scene.command("--since", SINCE), env=scene.environ, cwd=ROOT, stdout=file)
            peak_kib = 0
            while process.poll() is None:
                peak_kib = max(peak_kib, resident_peak_kib(process.pid))
                time.sleep(0.05)
        assert (process.returncode, json.loads(out.read_text())["sent"]) == (0, LARGE)
        assert 0 < peak_kib / 1024 < RSS_MIB_MAX
        count = "* | stats count_uniq(audit.record.id) as records"

        def arrived() -> bool:
            scene.store.flush()
            return scene.store.query(count, DATADOG) == [{"records": str(LARGE)}]

        eventually(arrived, "every record at Datadog")


@pytest.fixture(scope="module")
def gateway(otelcol: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with Gateway(otelcol, tmp_path_factory.mktemp("round-trip"), {}) as made:
        yield made


def test_what_the_collector_has_closed_is_read_with_the_rest(otelcol: Path, tmp_path: Path) -> None:
    ids = fresh(40)
    with Gateway(otelcol, tmp_path, {"AUDIT_COLLECTOR_ARCHIVE_FILE_MB": "1"}) as gateway:
        for each in ids:
            sent = record({"audit.record.id": each, "padding": 100_000 * "x"})
            assert gateway.send(sent).status_code == 200
        reading = archive.Reading()
        found = [
            archive.record_id(each)
            for request in archive.read(tmp_path / "archive", archive.ALWAYS, reading=reading)
            for each in archive.log_records(request)
        ]
    assert found == ids, "each once, and in the order in which they came"
    assert len(reading.files) == len(list((tmp_path / "archive").iterdir())) >= 4
    assert (reading.foreign, reading.damaged, reading.torn) == ([], [], 0)


@given(request=requests)
@settings(max_examples=100)
def test_what_the_collector_archived_is_what_it_was_sent(gateway: Gateway, request: ExportLogsServiceRequest) -> None:
    file = gateway.data / "archive" / "audit.jsonl"
    before = file.stat().st_size if file.exists() else 0
    content = request.SerializeToString()
    answer = httpx.post(
        gateway.url,
        content=content,
        headers=faulty.PROTOBUF,
        timeout=ANSWER_SECONDS_MAX,
        verify=servers.TLS,
        trust_env=False,
    )
    assert answer.status_code == 200
    # Alone in a directory, for an archive gives an id once.
    alone = gateway.data / "alone"
    alone.mkdir(exist_ok=True)
    (alone / "audit.jsonl").write_bytes(file.read_bytes()[before:])
    assert list(archive.read(alone, archive.ALWAYS)) == [request]
