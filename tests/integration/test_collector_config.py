"""The Collector's configuration in the real Collector: merged as meant, and guarded."""

from __future__ import annotations

import itertools
import os
import signal
import ssl
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import httpx
import pytest
import trustme
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from ruamel.yaml import YAML

from collector import launch, servers
from tests.integration.gateway import (
    EXEC,
    LOGIN,
    SETTINGS,
    Gateway,
    eventually,
    record,
    settings_of,
    with_file_exporter,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

VALIDATE_SECONDS_MAX = 60
TOKEN = "t0ken-of-the-sender"  # noqa: S105 - made up


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def certificate(tmp_path: Path, authority: trustme.CA) -> dict[str, str]:
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    return {
        "AUDIT_COLLECTOR_TLS_CERT_FILE": str(tmp_path / "server.pem"),
        "AUDIT_COLLECTOR_TLS_KEY_FILE": str(tmp_path / "server.pem"),
    }


def run(otelcol: Path, command: str, settings: Mapping[str, str], *more: Path) -> subprocess.CompletedProcess[str]:
    """Give the Collector the files that these settings ask for, and `more`, and one command."""
    files = [*launch.config_files(settings), *more]
    return subprocess.run(
        [str(otelcol), command, *launch.flags(files)],
        env=launch.collector_environ(settings, files),
        capture_output=True,
        text=True,
        timeout=VALIDATE_SECONDS_MAX,
        check=False,
    )


def printed(otelcol: Path, settings: Mapping[str, str]) -> dict[str, Any]:
    """The configuration as the Collector has it after merging."""
    result = run(otelcol, "print-config", settings)
    assert result.returncode == 0, result.stderr
    config: dict[str, Any] = YAML(typ="safe").load(result.stdout)
    return config


def export_over(channel: grpc.Channel) -> Callable[..., Any]:
    """OTLP's one call, written out because the generated stub has no types."""
    return channel.unary_unary(
        "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
        request_serializer=ExportLogsServiceRequest.SerializeToString,
        response_deserializer=ExportLogsServiceResponse.FromString,
    )


class TestMerging:
    @pytest.mark.parametrize("token", [{}, {"AUDIT_COLLECTOR_TOKEN": TOKEN}], ids=["open", "token"])
    def test_every_combination_of_siems_is_valid(
        self, otelcol: Path, runnable: list[str], token: dict[str, str], certificate: dict[str, str]
    ) -> None:
        for size in range(len(runnable) + 1):
            for names in itertools.combinations(runnable, size):
                result = run(otelcol, "validate", {**settings_of(names), **token, **certificate})
                assert result.returncode == 0, (names, result.stderr)

    def test_every_part_keeps_its_extensions_pipelines_and_guards(
        self, otelcol: Path, runnable: list[str], certificate: dict[str, str]
    ) -> None:
        config = printed(otelcol, {**settings_of(runnable), "AUDIT_COLLECTOR_TOKEN": TOKEN, **certificate})
        started = set(config["service"]["extensions"])
        assert started == set(config["extensions"])
        assert started >= {"health_check", "bearertokenauth/otlp", *(f"file_storage/{name}" for name in runnable)}
        assert set(config["service"]["pipelines"]) == {"logs/archive", *(f"logs/{name}" for name in runnable)}
        for protocol in config["receivers"]["otlp"]["protocols"].values():
            assert protocol["auth"] == {"authenticator": "bearertokenauth/otlp"}
            assert protocol["tls"]["cert_file"] == certificate["AUDIT_COLLECTOR_TLS_CERT_FILE"]

    @pytest.mark.parametrize(("given", "duration"), [("", "5s"), ("5", "5s"), ("7s", "7s"), ("0.5", "500ms")])
    def test_the_timeout_is_a_number_of_seconds_with_or_without_its_unit(
        self, otelcol: Path, given: str, duration: str
    ) -> None:
        config = printed(otelcol, {**SETTINGS["http"], "AUDIT_SIEM_TIMEOUT": given})
        assert config["exporters"]["otlp_http/http"]["timeout"] == duration

    def test_a_token_of_digits_stays_a_text(self, otelcol: Path) -> None:
        result = run(otelcol, "validate", {**SETTINGS["http"], "AUDIT_SIEM_TOKEN": "0123456789"})
        assert result.returncode == 0, result.stderr

    @pytest.mark.parametrize("name", [name for name in SETTINGS if name != "splunk"])
    def test_without_a_token_the_collector_does_not_start_instead_of_losing_every_record(
        self, otelcol: Path, tmp_path: Path, name: str
    ) -> None:
        result = run(otelcol, "validate", {}, with_file_exporter(name, tmp_path))
        assert result.returncode == 1
        assert f"bearertokenauth/{name}: no bearer token provided" in result.stderr


class TestToken:
    @pytest.fixture
    def token_file(self, tmp_path: Path) -> Path:
        file = tmp_path / "tokens"
        file.write_text(f"{TOKEN}\n")
        return file

    def test_http_answers_401_without_it_and_takes_a_record_with_it(self, otelcol: Path, tmp_path: Path) -> None:
        with Gateway(otelcol, tmp_path, {"AUDIT_COLLECTOR_TOKEN": TOKEN}) as gateway:
            assert gateway.send(record(EXEC)).status_code == 401
            assert gateway.send(record(EXEC), token="wrong").status_code == 401  # noqa: S106 - wrong on purpose
            assert gateway.archived() == []
            assert gateway.send(record(EXEC), token=TOKEN).status_code == 200
            assert gateway.archived() == [EXEC]

    def test_grpc_refuses_without_it_and_takes_a_record_with_it(self, otelcol: Path, tmp_path: Path) -> None:
        with (
            Gateway(otelcol, tmp_path, {"AUDIT_COLLECTOR_TOKEN": TOKEN}) as gateway,
            grpc.insecure_channel(gateway.grpc) as channel,
        ):
            export = export_over(channel)
            message = ExportLogsServiceRequest()
            message.resource_logs.add().scope_logs.add().log_records.add().body.string_value = "by gRPC"
            with pytest.raises(grpc.RpcError) as caught:
                export(message, timeout=10)
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
            export(message, timeout=10, metadata=[("authorization", f"Bearer {TOKEN}")])
            assert gateway.archived() == [{}]

    def test_a_new_token_in_the_file_counts_without_a_restart(
        self, otelcol: Path, tmp_path: Path, token_file: Path
    ) -> None:
        with Gateway(otelcol, tmp_path, {"AUDIT_COLLECTOR_TOKEN_FILE": str(token_file)}) as gateway:
            assert gateway.send(record(EXEC), token=TOKEN).status_code == 200
            assert gateway.send(record(EXEC), token="next").status_code == 401  # noqa: S106 - not valid yet
            token_file.write_text(f"{TOKEN}\nnext\n")
            eventually(lambda: gateway.send(record(EXEC), token="next").status_code == 200, "the new token")  # noqa: S106
            assert gateway.send(record(EXEC), token=TOKEN).status_code == 200

    def test_no_secret_gets_into_the_log(self, otelcol: Path, runnable: list[str], tmp_path: Path) -> None:
        settings = {**settings_of(runnable), "AUDIT_COLLECTOR_TOKEN": TOKEN, "AUDIT_COLLECTOR_LOG_LEVEL": "debug"}
        with Gateway(otelcol, tmp_path, settings) as gateway:
            assert gateway.send(record(EXEC), token="wr0ng").status_code == 401  # noqa: S106 - wrong on purpose
            assert gateway.send(record(EXEC), token=TOKEN).status_code == 200
            eventually(lambda: gateway.server.log().count("retry") >= len(runnable), "each SIEM tried")
            log = gateway.server.log()
        assert [secret for secret in (TOKEN, "wr0ng", "s3cret") if secret in log] == []


class TestTls:
    def trusting(self, authority: trustme.CA) -> ssl.SSLContext:
        context = ssl.create_default_context()
        authority.configure_trust(context)
        return context

    def test_a_certificate_turns_plain_text_away(
        self, otelcol: Path, tmp_path: Path, authority: trustme.CA, certificate: dict[str, str]
    ) -> None:
        with Gateway(otelcol, tmp_path / "data", certificate) as gateway:
            assert gateway.send(record(EXEC), verify=self.trusting(authority)).status_code == 200
            with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
                gateway.send(record(EXEC))  # by who does not know the authority
            plain_text = httpx.get(gateway.url.replace("https", "http"), trust_env=False)
            assert plain_text.status_code == 400
            with grpc.insecure_channel(gateway.grpc) as channel, pytest.raises(grpc.RpcError) as caught:
                export_over(channel)(ExportLogsServiceRequest(), timeout=5)
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
            assert gateway.archived() == [EXEC]

    def test_a_client_authority_turns_clients_without_certificate_away(
        self, otelcol: Path, tmp_path: Path, authority: trustme.CA, certificate: dict[str, str]
    ) -> None:
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        settings = {**certificate, "AUDIT_COLLECTOR_TLS_CLIENT_CA_FILE": str(tmp_path / "ca.pem")}
        with Gateway(otelcol, tmp_path / "data", settings) as gateway:
            with pytest.raises(httpx.TransportError):
                gateway.send(record(EXEC), verify=self.trusting(authority))
            stranger = self.trusting(authority)
            trustme.CA().issue_cert("client").configure_cert(stranger)
            with pytest.raises(httpx.TransportError):
                gateway.send(record(EXEC), verify=stranger)
            known = self.trusting(authority)
            authority.issue_cert("client").configure_cert(known)
            assert gateway.send(record(EXEC), verify=known).status_code == 200
            assert gateway.archived() == [EXEC]


class TestArchive:
    def test_what_was_answered_is_there_after_a_kill(self, otelcol: Path, tmp_path: Path) -> None:
        with Gateway(otelcol, tmp_path, {}) as gateway:
            sent = [{"audit.record.id": str(number)} for number in range(50)]
            for attributes in sent:
                assert gateway.send(record(attributes)).status_code == 200
            gateway.server.kill()
            assert gateway.archived() == sent
            gateway.server.start()
            assert gateway.send(record(EXEC)).status_code == 200
            assert gateway.archived() == [*sent, EXEC]  # a restart goes on, it does not begin anew

    def test_nobody_else_can_read_it(self, otelcol: Path, tmp_path: Path) -> None:
        with Gateway(otelcol, tmp_path / "data", SETTINGS["http"]) as gateway:
            assert gateway.send(record(EXEC)).status_code == 200
        for directory in ("archive", "queue/http"):
            assert (tmp_path / "data" / directory).stat().st_mode & 0o077 == 0

    def test_its_own_metrics_count_what_came_in(self, otelcol: Path, tmp_path: Path) -> None:
        with Gateway(otelcol, tmp_path, {}) as gateway:
            assert gateway.send(record(EXEC), record(LOGIN)).status_code == 200
            metrics = httpx.get(gateway.metrics, trust_env=False).text
        [accepted] = [line for line in metrics.splitlines() if line.startswith("otelcol_receiver_accepted_log_records")]
        assert accepted.endswith(" 2")


def test_launch_becomes_the_collector(otelcol: Path, tmp_path: Path) -> None:
    otlp_http, otlp_grpc, health, metrics = servers.free_ports(4)
    environ = {
        **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
        "PYTHONPATH": str(launch.HERE.parent),
        "AUDIT_COLLECTOR_DATA": str(tmp_path),
        "AUDIT_COLLECTOR_HTTP_ENDPOINT": f"127.0.0.1:{otlp_http}",
        "AUDIT_COLLECTOR_GRPC_ENDPOINT": f"127.0.0.1:{otlp_grpc}",
        "AUDIT_COLLECTOR_HEALTH_ENDPOINT": f"127.0.0.1:{health}",
        "AUDIT_COLLECTOR_METRICS_PORT": str(metrics),
        "AUDIT_COLLECTOR_TOKEN": TOKEN,
        "AUDIT_COLLECTOR_QUEUE_BYTES": "",
    }
    command = [sys.executable, "-m", "collector.launch", "--binary", str(otelcol)]
    with servers.Server("launch", command, environ, f"http://127.0.0.1:{health}/") as server:
        assert httpx.post(f"http://127.0.0.1:{otlp_http}/v1/logs", trust_env=False).status_code == 401
        if sys.platform == "linux":
            assert TOKEN not in Path(f"/proc/{server.pid}/cmdline").read_text()
        # The process is the Collector itself: a signal reaches it without anything in between.
        assert server.stop(signal.SIGTERM) == 0
        assert "Shutdown complete." in server.log()
