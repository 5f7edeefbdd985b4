"""Real servers, one process and many, stopped as they are stopped in production: every record reaches the Collector."""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import pytest

from collector import servers
from tests.integration.gateway import ANSWER_SECONDS_MAX, REFUSED, Gateway, eventually, records_in
from tron_audit_otel import journal_dir

if TYPE_CHECKING:
    from collections.abc import Iterator

REQUESTS = 200
STOP_SECONDS_MAX = 25
RELOADED_SECONDS_MAX = 120
COLLECTOR_SECONDS_MAX = 60
ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
APP = "tests.integration.served:app"

UVICORN: list[str | Path] = [BIN / "uvicorn", APP, "--port", "{port}", "--log-level", "warning"]
GUNICORN: list[str | Path] = [BIN / "gunicorn", APP, "-b", "127.0.0.1:{port}", "-w", "2"]
GUNICORN += ["-k", "uvicorn_worker.UvicornWorker"]
SERVERS: dict[str, list[str | Path]] = {
    "uvicorn": UVICORN,
    "uvicorn, two workers": [*UVICORN, "--workers", "2"],
    "gunicorn": GUNICORN,
    "gunicorn, preloaded": [*GUNICORN, "--preload"],
    "zero-code": [BIN / "opentelemetry-instrument", *UVICORN],
}
PROCESSES = {"uvicorn, two workers": 2, "gunicorn": 2, "gunicorn, preloaded": 2}
# Not gunicorn's SIGINT: with uvicorn's worker it takes 30 s and then kills the workers, audited or not.
STOPS = [(name, signal.SIGTERM) for name in SERVERS] + [("uvicorn", signal.SIGINT), ("zero-code", signal.SIGINT)]


PATIENT = {"AUDIT_LOG_SHUTDOWN_SECONDS_MAX": "10"}
"""For a stop that must have sent everything, to a Collector that may be slow."""

_JOURNALS = tempfile.TemporaryDirectory(prefix="tron-audit-journals-")


def settings(url: str, **more: str) -> dict[str, str]:
    """What an operator would set. Each call has a journal of its own: nobody adopts another test's records."""
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "AUDIT_LOG_ENABLED": "true",
        "OTEL_SERVICE_NAME": "served",
        "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": url,
        # The distribution behind `opentelemetry-instrument` makes gRPC the default.
        "OTEL_EXPORTER_OTLP_LOGS_PROTOCOL": "http/protobuf",
        # `opentelemetry-instrument` would send the application's own telemetry there, too.
        "OTEL_TRACES_EXPORTER": "none",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
        "AUDIT_LOG_JOURNAL_DIR": tempfile.mkdtemp(dir=_JOURNALS.name),
        **more,
    }


class Api(servers.Server):
    """The application under a real server."""

    def __init__(self, command: list[str | Path], environ: dict[str, str]) -> None:
        (port,) = servers.free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        super().__init__("api", [str(part).format(port=port) for part in command], environ, f"{self.url}/ready")


def client_of(api: Api, limits: httpx.Limits = httpx.Limits()) -> httpx.Client:  # noqa: B008 - a constant
    return httpx.Client(base_url=api.url, trust_env=False, timeout=ANSWER_SECONDS_MAX, limits=limits)


@pytest.fixture(scope="module")
def gateway(otelcol: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with Gateway(otelcol, tmp_path_factory.mktemp("collector"), {}) as running:
        yield running


def processes(journal: Path) -> list[str]:
    """Those that have begun, by the names of their journals."""
    return [directory.name for directory in journal.glob("2*")]


def streams(gateway: Gateway, service: str) -> dict[str, list[dict[str, Any]]]:
    """The archived records of a service by stream, in the order in which they arrived."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for around, record in records_in(gateway.data / "archive" / "audit.jsonl"):
        if around["resource"]["service.name"] == service:
            found[around["resource"]["service.instance.id"]].append(record["attributes"])
    return dict(found)


@pytest.mark.parametrize(("server", "sig"), STOPS, ids=[f"{server}, {sig.name}" for server, sig in STOPS])
def test_a_stopped_server_has_sent_every_record(gateway: Gateway, server: str, sig: signal.Signals) -> None:
    service = f"{server} {sig.name}"
    more = {"OTEL_SERVICE_NAME": service, "TEST_INSTRUMENT": str(server != "zero-code").lower()}
    environ = settings(gateway.url, **more, **PATIENT)
    with Api(SERVERS[server], environ) as api:
        journal = Path(environ["AUDIT_LOG_JOURNAL_DIR"])
        eventually(lambda: len(processes(journal)) >= PROCESSES.get(server, 1), "every worker")
        # A connection for each request, so that every worker gets some.
        one_each = httpx.Limits(max_keepalive_connections=0)
        with client_of(api, limits=one_each) as client:
            pids = {client.get(f"/items/{number}").json() for number in range(REQUESTS)}
        api.stop(sig, STOP_SECONDS_MAX)
    found = streams(gateway, service)
    items = [record for stream in found.values() for record in stream if record.get("http.route") == "/items/{item}"]
    assert sorted(int(record["audit.target.id"]) for record in items) == list(range(REQUESTS))
    assert len({record["audit.record.id"] for record in items}) == REQUESTS
    assert {record["audit.actor.id"] for record in items} == {"alice@example.com"}
    assert len(found) >= len(pids) >= PROCESSES.get(server, 1)
    for stream in found.values():
        assert [record["audit.sequence.number"] for record in stream] == list(range(1, len(stream) + 1))
        assert [stream[0]["audit.action"], stream[-1]["audit.action"]] == ["START", "STOP"]
    assert not processes(journal), "a journal that holds nothing is removed"


def test_without_a_lifespan_nothing_is_lost_that_is_older_than_a_batch(gateway: Gateway) -> None:
    """SIGTERM ends uvicorn without a word to anybody, then: the next process delivers what this one has committed."""
    server = [*SERVERS["uvicorn"], "--lifespan", "off"]
    environ = settings(gateway.url, OTEL_SERVICE_NAME="lifespan off", AUDIT_LOG_RETRY_SECONDS_MAX="0.2")
    for begin in (0, 10):
        with Api(server, environ) as api, client_of(api) as client:
            for number in range(begin, begin + 10):
                client.get(f"/items/{number}")
            emitted, _ = emitted_and_committed(client)
            eventually(lambda: emitted_and_committed(client)[1] >= emitted, "the commit")  # noqa: B023 - at once
            api.stop()

    def arrived() -> list[int]:
        records = [record for stream in streams(gateway, "lifespan off").values() for record in stream]
        return sorted({int(r["audit.target.id"]) for r in records if r.get("http.route") == "/items/{item}"})

    eventually(lambda: arrived() == list(range(20)), "the records of both")


def emitted_and_committed(client: httpx.Client) -> tuple[int, int]:
    """How many records there were so far, and how many of them are no longer in memory alone."""
    stats = client.get("/harness/stats").json()
    return stats["emitted"], stats["emitted"] - stats["queued"]


def test_a_reload_loses_nothing(gateway: Gateway, tmp_path: Path) -> None:
    module = tmp_path / "reloaded.py"
    module.write_text("from tests.integration.served import app\n")
    server: list[str | Path] = [BIN / "uvicorn", "reloaded:app", "--port", "{port}"]
    server += ["--reload", "--reload-dir", tmp_path]
    environ = settings(gateway.url, OTEL_SERVICE_NAME="reloaded")
    with Api([*server, "--app-dir", tmp_path], environ) as api:
        pids: set[int] = set()
        deadline = time.monotonic() + RELOADED_SECONDS_MAX
        sent = 0
        while len(pids) < 3 and time.monotonic() < deadline:
            try:
                pids.add(httpx.get(f"{api.url}/items/{sent}", trust_env=False, timeout=5).json())
            except httpx.HTTPError:  # between two processes; this request reached neither
                time.sleep(0.05)
                continue
            sent += 1
            if sent % 20 == 0:
                module.touch()
                time.sleep(0.5)
        assert len(pids) == 3

        def arrived() -> list[int]:
            records = [record for stream in streams(gateway, "reloaded").values() for record in stream]
            return sorted({int(r["audit.target.id"]) for r in records if r.get("http.route") == "/items/{item}"})

        # While it lives: what an earlier one has left may still be on its way through the last one.
        eventually(lambda: arrived() == list(range(sent)), "every answered request's record")


@pytest.fixture
def black_hole() -> Iterator[str]:
    """A Collector that accepts and never answers: a fake, since no real one does so on demand."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1/logs"


@pytest.mark.parametrize("collector", ["hung", "dead"])
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_collector_that_is_not_there_delays_neither_requests_nor_the_end(
    collector: str, protocol: str, black_hole: str, tmp_path: Path
) -> None:
    url = black_hole if collector == "hung" else f"{REFUSED}/v1/logs"
    policy = tmp_path / "policy.yaml"  # how often it is asked whether it is ready depends on the machine
    policy.write_text("rules: [{name: ready, match: {path: /ready}, level: none}]")
    more = {"AUDIT_LOG_POLICY_FILE": str(policy), "OTEL_EXPORTER_OTLP_TIMEOUT": str(COLLECTOR_SECONDS_MAX)}
    environ = settings(url, OTEL_EXPORTER_OTLP_LOGS_PROTOCOL=protocol, **more)
    with Api(SERVERS["uvicorn"], environ) as api:
        with client_of(api) as client:
            slowest = 0.0
            for number in range(REQUESTS):
                began = time.perf_counter()
                assert client.get(f"/items/{number}").status_code == 200
                slowest = max(slowest, time.perf_counter() - began)
        assert slowest < COLLECTOR_SECONDS_MAX / 3  # which a wait for the Collector would take
        # AUDIT_LOG_SHUTDOWN_SECONDS_MAX is 2; the SDK alone takes 30 s.
        api.stop(seconds=STOP_SECONDS_MAX)
        assert "lost" not in api.log()
    [stream] = journal_dir.inspect(Path(environ["AUDIT_LOG_JOURNAL_DIR"]))
    assert stream.clean
    assert stream.records == REQUESTS + 2  # and START and STOP


def slow_ones(gateway: Gateway) -> list[dict[str, Any]]:
    return [r for stream in streams(gateway, "leaves").values() for r in stream if r.get("url.path") == "/slow"]


def test_a_client_that_leaves_is_on_record(gateway: Gateway) -> None:
    with Api(SERVERS["uvicorn"], settings(gateway.url, OTEL_SERVICE_NAME="leaves")) as api:
        with socket.create_connection(("127.0.0.1", urlsplit(api.url).port or 0), ANSWER_SECONDS_MAX) as connection:
            connection.sendall(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
            time.sleep(0.1)
        eventually(lambda: slow_ones(gateway), "the record")
    (record,) = slow_ones(gateway)
    # uvicorn does not tell a handler that never asks; the handler did its work, and that is what is on record.
    assert record["audit.outcome"] == "success"


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_each_protocol_with_a_token(otelcol: Path, tmp_path: Path, protocol: str, compression: str) -> None:
    with Gateway(otelcol, tmp_path, {"AUDIT_COLLECTOR_TOKEN": "s3cret"}) as gateway:
        endpoint = f"http://{gateway.grpc}" if protocol == "grpc" else gateway.url
        environ = settings(
            endpoint,
            OTEL_EXPORTER_OTLP_LOGS_PROTOCOL=protocol,
            OTEL_EXPORTER_OTLP_HEADERS="authorization=Bearer%20s3cret",
            OTEL_EXPORTER_OTLP_COMPRESSION=compression,
            **PATIENT,
        )
        with Api(SERVERS["uvicorn"], environ) as api:
            httpx.get(f"{api.url}/items/7", timeout=ANSWER_SECONDS_MAX, trust_env=False)
            api.stop(seconds=STOP_SECONDS_MAX)
        assert [path for record in gateway.archived() if (path := record.get("url.path")) not in ("/ready", None)] == [
            "/items/7"
        ]


def test_a_wrong_setting_stops_the_server_with_its_name() -> None:
    api = Api(SERVERS["uvicorn"], settings("http://127.0.0.1:1/v1/logs", AUDIT_LOG_BATCH_DELAY_MS="soon"))
    with (
        pytest.raises(servers.ServerError, match=r"AUDIT_LOG_BATCH_DELAY_MS must be an integer, in ms, not 'soon'"),
        api,
    ):
        pass
