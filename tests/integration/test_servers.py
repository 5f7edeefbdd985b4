"""The servers of the demo and the tests themselves: started, asked, stopped, killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor
from opentelemetry.sdk.resources import Resource

from collector.servers import TLS, Collector, ServerError, VictoriaLogs, free_ports, otelcol, victorialogs
from tests.integration.gateway import ANSWER_SECONDS_MAX, WAIT_SECONDS_MAX, eventually

TENANT = 7
CONFIG = """
receivers:
  otlp:
    protocols:
      http:
        endpoint: 127.0.0.1:${env:TEST_OTLP_PORT}
exporters:
  otlp_http:
    logs_endpoint: ${env:TEST_STORE}/insert/opentelemetry/v1/logs
    headers:
      AccountID: "${env:TEST_TENANT}"
extensions:
  health_check:
    endpoint: 127.0.0.1:${env:TEST_HEALTH_PORT}
service:
  extensions: [health_check]
  pipelines:
    logs:
      receivers: [otlp]
      exporters: [otlp_http]
  telemetry:
    metrics:
      level: none
"""


@pytest.fixture(autouse=True)
def _scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs and data go where pytest tidies up, also those of servers that a test leaves behind on purpose."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return path


def send(port: int, body: str) -> None:
    """One record through the stock SDK, to the Collector on this port."""
    provider = LoggerProvider(Resource({"service.name": "test"}), shutdown_on_exit=False)
    exporter = OTLPLogExporter(f"http://127.0.0.1:{port}/v1/logs")
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    provider.get_logger("scope", "1").emit(body=body, event_name="test.event", attributes={"n": 1, "list": ["a", "b"]})
    provider.shutdown()


def test_a_record_goes_through_the_collector_into_its_tenant(config: Path, store: VictoriaLogs) -> None:
    otlp, health = free_ports(2)
    environ = {
        "TEST_OTLP_PORT": str(otlp),
        "TEST_HEALTH_PORT": str(health),
        "TEST_STORE": store.url,
        "TEST_TENANT": str(TENANT),
    }
    with otelcol([config], environ, health=f"http://127.0.0.1:{health}") as collector:
        send(otlp, "first")
        [row] = store.wait("first", 1, TENANT, WAIT_SECONDS_MAX)
        assert collector.stop() == 0
        collector.start()
        send(otlp, "second")
        collector.kill()
        assert not collector.running
        collector.restart()
        send(otlp, "third")
        store.wait("event_name:=test.event", 2, TENANT, WAIT_SECONDS_MAX)
        pid = collector.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    expected = {
        "_msg": "first",
        "event_name": "test.event",
        "service.name": "test",
        "scope.name": "scope",
        "n": "1",
        "list": '["a","b"]',
    }
    assert {name: row[name] for name in expected} == expected
    assert store.query("first") == []  # the tenant of those who name none


def test_a_collector_that_does_not_come_up_shows_the_end_of_its_log(config: Path) -> None:
    with (
        pytest.raises(ServerError, match=r"(?s)otelcol ended with exit code 1 while starting.*TEN"),
        otelcol([config], {"TEST_OTLP_PORT": "TEN"}, health="http://127.0.0.1:1"),
    ):
        pass


def test_a_server_that_is_never_healthy_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sleeper = tmp_path / "sleeper"
    sleeper.write_text("#!/bin/sh\necho I sleep\nexec sleep 60\n")
    sleeper.chmod(0o755)
    server = Collector(sleeper, [], dict(os.environ), f"http://127.0.0.1:{free_ports(1)[0]}")
    for seconds in (0.5, 5, 30):  # on a machine that is busy a program may have said nothing yet
        monkeypatch.setattr("collector.servers.START_SECONDS_MAX", seconds)
        with pytest.raises(ServerError, match=rf"was not healthy at .* within {seconds} s") as caught:
            server.start()
        assert not server.running
        if "I sleep" in server.log():
            break
    assert "I sleep" in str(caught.value)


def test_a_server_that_ignores_sigterm_is_killed(tmp_path: Path, store: VictoriaLogs) -> None:
    deaf = tmp_path / "deaf"
    deaf.write_text("#!/bin/sh\ntrap '' TERM\necho deaf\nwhile :; do sleep 0.1; done\n")
    deaf.chmod(0o755)
    server = Collector(deaf, [], dict(os.environ), f"{store.url}/health")
    server.start()
    eventually(lambda: "deaf" in server.log(), "the program")
    with pytest.raises(ServerError, match=r"had to be killed 0\.2 s after SIGTERM"):
        server.stop(seconds=0.2)
    assert not server.running


def metrics(store: VictoriaLogs) -> str:
    return httpx.get(f"{store.url}/metrics", timeout=ANSWER_SECONDS_MAX, verify=TLS, trust_env=False).text


def test_what_was_flushed_survives_a_kill_of_the_store() -> None:
    with victorialogs() as store:
        httpx.post(
            f"{store.url}/insert/jsonline",
            params={"_msg_field": "m"},
            content='{"m":"kept"}',
            timeout=ANSWER_SECONDS_MAX,
        ).raise_for_status()
        store.wait("kept", 1, seconds=WAIT_SECONDS_MAX)
        # It looks once a second for what has been in memory for a second.
        eventually(lambda: 'vl_storage_rows{type="storage/small"} 1\n' in metrics(store), "the record on its disk")
        store.kill()
        store.start()
        assert len(store.query("kept")) == 1


def test_a_query_that_is_wrong_is_an_error(store: VictoriaLogs) -> None:
    with pytest.raises(ServerError, match=r"answered 400 .*cannot parse"):
        store.query("a b (")


def test_a_record_that_does_not_come_is_an_error(store: VictoriaLogs) -> None:
    with pytest.raises(ServerError, match=r"never found 0 of 1 records in tenant 0"):
        store.wait("never", 1, seconds=0.1)


def test_the_search_page_is_served(store: VictoriaLogs) -> None:
    page, _, query = store.search_page("audit.action:=DELETE", TENANT).partition("#")
    assert "<title>" in httpx.get(page, timeout=ANSWER_SECONDS_MAX).text
    assert "query=audit.action%3A%3DDELETE" in query
    assert "accountID=7" in query


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ties a child to the life of its parent")
def test_servers_do_not_outlive_a_parent_that_was_killed(tmp_path: Path) -> None:
    code = """
from collector.servers import victorialogs
with victorialogs() as server:
    print(server.pid, flush=True)
    import time; time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        text=True,
    ) as parent:
        assert parent.stdout
        child = int(parent.stdout.readline())
        os.kill(child, 0)
        parent.send_signal(signal.SIGKILL)
    eventually(lambda: has_ended(child), "the end of the server")


def has_ended(pid: int) -> bool:
    """Whether nothing is left of it, or nothing but what its parent has not asked for."""
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
