"""Everything that the demo runs beside itself: the log store, the Collector with its SIEMs, the API."""

from __future__ import annotations

import json
import os
import secrets
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML

from collector import build, launch, servers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from contextlib import ExitStack

ROOT = Path(__file__).resolve().parents[2]
POLICY = ROOT / "examples" / "platform_api" / "policy.yaml"
GATEWAY = Path(__file__).with_name("gateway.yaml")

TENANTS = {siem.name: number for number, siem in enumerate(launch.SIEMS, start=1)}
"""A tenant of VictoriaLogs for each SIEM. Tenant 0 is where a record would land that lost its header."""


@dataclass(frozen=True)
class Processes:
    """What of it can be killed, and where the API keeps the records that the Collector has not got yet."""

    api: servers.Server
    collector: servers.Server
    journal: Path
    siem_token: Path
    """Holds the token that the SIEM ``http`` takes."""
    tools: Mapping[str, str]
    """The environment of ``tron-audit`` beside the Collector."""


@dataclass(frozen=True)
class Stage:
    """What runs, and how to ask it."""

    api_url: str
    store: servers.VictoriaLogs
    siems: tuple[str, ...]
    absent: tuple[tuple[str, str], ...]
    """The SIEM files that this Collector cannot run, each with the reason."""
    archive: Callable[[], list[dict[str, Any]]]
    """Reads the OTLP requests that the Collector's archive has."""
    log: Callable[[str], str]
    """Reads the log of the ``api`` or the ``collector``, for when something went wrong."""
    processes: Processes | None = None
    """None where they are not this machine's own."""


def siem_settings(store_url: str, gateway_url: str, token: str) -> dict[str, dict[str, str]]:
    """Return what would stand in ``.env`` for each SIEM, if VictoriaLogs were all of them."""
    return {
        "elasticsearch": {"ELASTICSEARCH_URL": f"{store_url}/insert/elasticsearch", "ELASTICSEARCH_API_KEY": token},
        "elastic-otlp": {"ELASTIC_OTLP_URL": f"{store_url}/insert/opentelemetry", "ELASTIC_OTLP_API_KEY": token},
        "splunk": {"SPLUNK_HEC_URL": f"{store_url}/services/collector/event", "SPLUNK_HEC_TOKEN": token},
        "datadog": {"DD_OTLP_LOGS_URL": f"{store_url}/insert/opentelemetry/v1/logs", "DD_API_KEY": token},
        "http": {"AUDIT_SIEM_URL": f"{gateway_url}/v1/logs", "AUDIT_SIEM_TOKEN": token},
    }


def gateway_settings(endpoint: str, health: str, store_url: str, token: str) -> dict[str, str]:
    """Return the variables that ``gateway.yaml`` reads."""
    return {
        "DEMO_GATEWAY_ENDPOINT": endpoint,
        "DEMO_GATEWAY_HEALTH_ENDPOINT": health,
        "DEMO_GATEWAY_TENANT": str(TENANTS["http"]),
        "DEMO_GATEWAY_TOKEN": token,
        "DEMO_STORE_URL": store_url,
    }


def tenant_overlay(siems: Iterable[str]) -> str:
    """Return the one thing that the demo adds to the Collector's configuration: each SIEM's tenant, as a header."""
    yaml = YAML(typ="safe")
    exporters = {}
    for siem in launch.SIEMS:
        if siem.name in siems:
            (exporter,) = yaml.load(siem.file)["exporters"]
            exporters[exporter] = {"headers": {"AccountID": str(TENANTS[siem.name])}}
    return json.dumps({"exporters": exporters})  # the Collector reads YAML, and JSON is YAML


def read_archive(files: Iterable[str]) -> list[dict[str, Any]]:
    """Return the OTLP requests in the texts of archive files, one request a line; a last one may still be written."""
    return [json.loads(line) for text in files for line in text.split("\n")[:-1] if line]


def local(stack: ExitStack, say: Callable[[str], None]) -> Stage:
    """Build what is not built yet, and start it all on this machine. The stack stops it.

    Raises:
        BuildError: Nothing could be built, for want of Go perhaps.
        ServerError: A server did not start; the message has the end of its log.
    """
    otelcol, victorialogs = build.otelcol(say), build.victorialogs(say)
    absent = tuple(launch.unavailable(otelcol))
    siems = tuple(siem.name for siem in launch.SIEMS if siem.name not in dict(absent))
    data = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tron-audit-demo-", ignore_cleanup_errors=True)))
    token = secrets.token_urlsafe(16)

    store = stack.enter_context(servers.victorialogs(victorialogs))
    say(f"log store   {store.url}")
    siem_token = data / "siem-token"
    siem_token.write_text(token, encoding="utf-8")
    gateway_url = _start_gateway(stack, otelcol, store.url, siem_token)
    settings = siem_settings(store.url, gateway_url, token)
    (metrics,) = servers.free_ports(1)
    beside = {"AUDIT_COLLECTOR_DATA": str(data), "AUDIT_COLLECTOR_METRICS_PORT": str(metrics)}
    collector_url, collector = _start_collector(stack, otelcol, beside, token, {name: settings[name] for name in siems})
    say(f"Collector   {collector_url} to {', '.join(('archive', *siems))}")
    journal = data / "journal"
    api_url, api = _start_api(stack, collector_url, token, journal)
    say(f"API         {api_url}/docs")

    def archive() -> list[dict[str, Any]]:
        return read_archive(file.read_text(encoding="utf-8") for file in sorted((data / "archive").glob("*.jsonl")))

    logs = {"api": api.log, "collector": collector.log}
    tools = {
        **clean_environment(),
        **beside,
        **sender_settings(collector_url, token),
        "AUDIT_LOG_JOURNAL_DIR": str(journal),
        "VICTORIALOGS_TENANT": f"{TENANTS['http']}:0",
        "VICTORIALOGS_URL": store.url,
        "XDG_STATE_HOME": str(data / "state"),
    }
    processes = Processes(api, collector, journal, siem_token, tools)
    return Stage(api_url, store, siems, absent, archive, lambda name: logs[name](), processes)


def clean_environment() -> dict[str, str]:
    """Return this shell's variables but those for another service's telemetry, which must reach nothing here."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("AUDIT_", "OTEL_"))}


def sender_settings(collector_url: str, token: str) -> dict[str, str]:
    """Return what a sender needs to reach the Collector."""
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector_url,
        "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer%20{token}",
    }


def _start_gateway(stack: ExitStack, otelcol: Path, store_url: str, token: Path) -> str:
    endpoint, health = (f"127.0.0.1:{port}" for port in servers.free_ports(2))
    environ = gateway_settings(endpoint, health, store_url, "") | {"DEMO_GATEWAY_TOKEN_FILE": str(token)}
    stack.enter_context(servers.Collector(otelcol, [GATEWAY], environ, f"http://{health}", "gateway"))
    return f"http://{endpoint}"


def _start_collector(
    stack: ExitStack, otelcol: Path, beside: Mapping[str, str], token: str, siems: Mapping[str, Mapping[str, str]]
) -> tuple[str, servers.Server]:
    overlay = Path(beside["AUDIT_COLLECTOR_DATA"]) / "tenants.yaml"
    overlay.write_text(tenant_overlay(siems), encoding="utf-8")
    otlp, grpc, health = servers.free_ports(3)
    environ = {
        **beside,
        "AUDIT_COLLECTOR_GRPC_ENDPOINT": f"127.0.0.1:{grpc}",
        "AUDIT_COLLECTOR_HEALTH_ENDPOINT": f"127.0.0.1:{health}",
        "AUDIT_COLLECTOR_HTTP_ENDPOINT": f"127.0.0.1:{otlp}",
        "AUDIT_COLLECTOR_TOKEN": token,
    }
    for settings in siems.values():
        environ |= settings
    files = launch.config_files(environ)
    server = servers.Collector(
        otelcol, [*files, overlay], launch.collector_environ(environ, files), f"http://127.0.0.1:{health}"
    )
    return f"http://127.0.0.1:{otlp}", stack.enter_context(server)


def _start_api(stack: ExitStack, collector_url: str, token: str, journal: Path) -> tuple[str, servers.Server]:
    """Start the API: one line of it is about auditing, and the rest is these variables."""
    (port,) = servers.free_ports(1)
    audit = {
        "AUDIT_LOG_ENABLED": "true",
        "AUDIT_LOG_JOURNAL_DIR": str(journal),
        "AUDIT_LOG_POLICY_FILE": str(POLICY),
        "OTEL_SERVICE_NAME": "platform-api",
        **sender_settings(collector_url, token),
    }
    # --no-proxy-headers: uvicorn would believe a forwarded address from 127.0.0.1, and here everybody is 127.0.0.1.
    command = [sys.executable, "-m", "uvicorn", "examples.platform_api.app:app", "--app-dir", str(ROOT)]
    command += ["--port", str(port), "--no-proxy-headers"]
    url = f"http://127.0.0.1:{port}"
    return url, stack.enter_context(servers.Server("api", command, clean_environment() | audit, f"{url}/health"))
