"""The Collector's configuration in the real Collector: merged as meant, and guarded."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from ruamel.yaml import YAML

from collector import launch, servers
from tests.integration.gateway import (
    ANSWER_SECONDS_MAX,
    EXEC,
    LOGIN,
    SETTINGS,
    Gateway,
    record,
    settings_of,
    with_file_exporter,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

VALIDATE_SECONDS_MAX = 60
TOKEN = "t0ken-of-the-sender"  # noqa: S105 - made up


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
            metrics = httpx.get(gateway.metrics, timeout=ANSWER_SECONDS_MAX, trust_env=False).text
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
        answer = httpx.post(f"http://127.0.0.1:{otlp_http}/v1/logs", timeout=ANSWER_SECONDS_MAX, trust_env=False)
        assert answer.status_code == 401
        if sys.platform == "linux":
            assert TOKEN not in Path(f"/proc/{server.pid}/cmdline").read_text()
        # The process is the Collector itself: a signal reaches it without anything in between.
        assert server.stop(signal.SIGTERM) == 0
        assert "Shutdown complete." in server.log()
