"""A running Collector for tests, configured as an operator would, and OTLP/JSON to speak with it."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, Self

import httpx
from ruamel.yaml import YAML

from collector import launch, servers

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path
    from types import ModuleType

    import pytest
    import trustme

WAIT_SECONDS_MAX = 60
ANSWER_SECONDS_MAX = 60
"""So long may a machine that is busy with other things keep an answer back."""
REFUSED = "http://127.0.0.1:1"

SETTINGS = {
    "elasticsearch": {"ELASTICSEARCH_URL": REFUSED, "ELASTICSEARCH_API_KEY": "s3cret-elasticsearch"},
    "elastic-otlp": {"ELASTIC_OTLP_URL": REFUSED, "ELASTIC_OTLP_API_KEY": "s3cret-elastic-otlp"},
    "splunk": {"SPLUNK_HEC_URL": REFUSED, "SPLUNK_HEC_TOKEN": "s3cret-splunk"},
    "datadog": {"DD_API_KEY": "s3cret-datadog", "DD_OTLP_LOGS_URL": f"{REFUSED}/v1/logs"},
    "http": {"AUDIT_SIEM_URL": f"{REFUSED}/ingest", "AUDIT_SIEM_TOKEN": "s3cret-http"},
}

# Attempts and batches within a tenth of a second, where the shipped configuration takes a second, and more each time.
# A SIEM that is held up for some seconds is waited for all the same: nothing arrives twice for that.
HASTE: dict[str, Any] = {
    "timeout": f"{ANSWER_SECONDS_MAX}s",
    "retry_on_failure": {"initial_interval": "100ms", "max_interval": "400ms"},
    "sending_queue": {"batch": {"flush_timeout": "100ms"}},
}

BEGIN_NS = 1_790_000_000_123_456_789
# The record of a command that ran, with every attribute that the transforms know.
EXEC: dict[str, Any] = {
    "audit.record.id": "0198c5b2-0000-7000-8000-000000000001",
    "audit.schema.version": "1.0",
    "audit.sequence.number": 7,
    "audit.actor.id": "alice@example.com",
    "audit.actor.type": "user",
    "user.email": "alice@example.com",
    "audit.action": "EXEC",
    "http.request.method": "POST",
    "audit.resource": "instances/abc-123",
    "audit.target.type": "instances",
    "audit.target.id": "abc-123",
    "http.route": "/instances/{id}/exec",
    "url.path": "/instances/abc-123/exec",
    "audit.outcome": "success",
    "http.response.status_code": 200,
    "audit.duration_ms": 12.5,
    "client.address": "192.0.2.7",
    "network.peer.address": "10.0.0.1",
    "audit.source_ip.rule": "forwarded",
    "audit.source_ip.suspect": False,
    "user_agent.original": "curl/8.0",
    "process.command_args": ["ls", "-l"],
    "container.name": "app",
    "process.exit.code": 0,
    "audit.exec.stdout.text": "total 0\n",
    "audit.exec.stdout.length": 8,
    "audit.exec.stdout.truncated": False,
    "audit.exec.stdout.sha256": "ab12",
    "audit.exec.stderr.text": "",
    "audit.exec.stderr.length": 0,
    "http.request.header.x-request-id": ["q1"],
}
# A login that failed, from a client whose address is none.
LOGIN: dict[str, Any] = {
    "audit.record.id": "0198c5b2-0000-7000-8000-000000000002",
    "audit.actor.type": "anonymous",
    "audit.actor.claimed": "mallory@example.com",
    "audit.action": "LOGIN",
    "audit.outcome": "failure",
    "http.response.status_code": 401,
    "error.type": "401",
    "client.address": "testclient",
}


class Gateway:
    """A running Collector: its configuration from `settings`, as an operator would set them, and `more` files."""

    def __init__(self, binary: Path, data: Path, settings: Mapping[str, str], *more: Path) -> None:
        otlp_http, otlp_grpc, health, metrics = servers.free_ports(4)
        scheme = "https" if "AUDIT_COLLECTOR_TLS_CERT_FILE" in settings else "http"
        self.url = f"{scheme}://127.0.0.1:{otlp_http}/v1/logs"
        self.grpc = f"127.0.0.1:{otlp_grpc}"
        self.metrics = f"http://127.0.0.1:{metrics}/metrics"
        self.data = data
        environ = {
            "AUDIT_COLLECTOR_DATA": str(data),
            "AUDIT_COLLECTOR_HTTP_ENDPOINT": f"127.0.0.1:{otlp_http}",
            "AUDIT_COLLECTOR_GRPC_ENDPOINT": self.grpc,
            "AUDIT_COLLECTOR_HEALTH_ENDPOINT": f"127.0.0.1:{health}",
            "AUDIT_COLLECTOR_METRICS_PORT": str(metrics),
            **settings,
        }
        files = [*launch.config_files(settings), *more]
        self.server = servers.Collector(
            binary, files, launch.collector_environ(environ, files), f"http://127.0.0.1:{health}/"
        )

    def __enter__(self) -> Self:
        self.server.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.__exit__()

    def send(self, *records: dict[str, Any], token: str = "", verify: ssl.SSLContext | None = None) -> httpx.Response:
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
        return httpx.post(
            self.url,
            content=request(*records),
            headers=headers,
            timeout=ANSWER_SECONDS_MAX,
            verify=verify or servers.TLS,
            trust_env=False,
        )

    def archived(self) -> list[dict[str, Any]]:
        """The attributes of every record in the archive."""
        file = self.data / "archive" / "audit.jsonl"
        return [record["attributes"] for _, record in records_in(file)] if file.exists() else []


def server_certificate(authority: trustme.CA, directory: Path) -> dict[str, str]:
    """What an operator sets for TLS."""
    file = directory / "server.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(file)
    return {"AUDIT_COLLECTOR_TLS_CERT_FILE": str(file), "AUDIT_COLLECTOR_TLS_KEY_FILE": str(file)}


def request(*records: dict[str, Any]) -> bytes:
    resource = {"service.name": "platform-api", "service.instance.id": "api-1", "com.splunk.index": "elsewhere"}
    return json.dumps(
        {
            "resourceLogs": [
                {
                    "resource": {"attributes": encoded(resource)},
                    "scopeLogs": [{"scope": {"name": "tron_audit_otel"}, "logRecords": list(records)}],
                }
            ]
        }
    ).encode()


def record(attributes: dict[str, Any], event: str = "tron.audit.exec", body: str = "alice ran ls") -> dict[str, Any]:
    return {
        "timeUnixNano": str(BEGIN_NS),
        "observedTimeUnixNano": str(BEGIN_NS + 12_500_000),
        "severityNumber": 9,
        "severityText": "INFO",
        "eventName": event,
        "body": {"stringValue": body},
        "attributes": encoded(attributes),
        "traceId": "5b8efff798038103d269b633813fc60c",
        "spanId": "eee19b7ec3c1b174",
    }


def encoded(attributes: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": any_value(value)} for key, value in attributes.items()]


def any_value(value: Any) -> dict[str, Any]:
    match value:
        case bool():
            return {"boolValue": value}
        case int():
            return {"intValue": str(value)}
        case float():
            return {"doubleValue": value}
        case list():
            return {"arrayValue": {"values": [any_value(item) for item in value]}}
        case _:
            return {"stringValue": value}


def plain(value: dict[str, Any]) -> Any:
    [(kind, inner)] = value.items()
    match kind:
        case "kvlistValue":
            return decoded(inner.get("values", []))
        case "arrayValue":
            return [plain(item) for item in inner.get("values", [])]
        case "intValue":
            return int(inner)
        case _:
            return inner


def decoded(pairs: list[dict[str, Any]]) -> dict[str, Any]:
    return {pair["key"]: plain(pair["value"]) for pair in pairs}


def records_in(file: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each record in a file of OTLP/JSON lines, as `records_of` has it; a line that is being written does not count."""
    whole, _, _ = file.read_bytes().rpartition(b"\n")
    return records_of(json.loads(line) for line in whole.splitlines())


def records_of(requests: Iterable[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each record in OTLP/JSON requests with its resource's and scope's attributes, in Python's own types."""
    for each_request in requests:
        for of_resource in each_request["resourceLogs"]:
            for of_scope in of_resource["scopeLogs"]:
                around = {
                    "resource": decoded(of_resource["resource"].get("attributes", [])),
                    "scope": decoded(of_scope["scope"].get("attributes", [])),
                }
                for each in of_scope["logRecords"]:
                    yield (
                        around,
                        {**each, "body": plain(each["body"]), "attributes": decoded(each.get("attributes", []))},
                    )


def settings_of(names: Sequence[str]) -> dict[str, str]:
    return {key: value for name in names for key, value in SETTINGS[name].items()}


def hasty(directory: Path, *names: str) -> Path:
    """Writes a configuration file with which these SIEMs' exporters wait for nothing for long."""
    file = directory / "hasty.yaml"
    file.write_text(json.dumps({"exporters": {f"otlp_http/{name}": HASTE for name in names}}))  # JSON is YAML
    return file


def hasten(patch: pytest.MonkeyPatch, *seconds: tuple[ModuleType, str]) -> None:
    """Has our commands wait a tenth as long as they do, as hasty as such a Collector is."""
    for module, name in seconds:
        patch.setattr(module, name, getattr(module, name) / 10)


def eventually(found: Callable[[], object], what: str) -> None:
    """Wait until `found` returns something true."""
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while not found():
        assert time.monotonic() < deadline, f"{what}: not within {WAIT_SECONDS_MAX} s"
        time.sleep(0.05)


def with_file_exporter(name: str, directory: Path, token: str = "") -> Path:
    """The SIEM's file with a `file` exporter in place of its own, writing out.jsonl; with its token in it, if given."""
    [siem] = [siem for siem in launch.SIEMS if siem.name == name]
    config = YAML(typ="safe").load(siem.file)
    config["exporters"] = {"file/out": {"path": str(directory / "out.jsonl"), "rotation": {}}}
    config["service"]["pipelines"][f"logs/{name}"]["exporters"] = ["file/out"]
    if token and f"bearertokenauth/{name}" in config["extensions"]:
        config["extensions"][f"bearertokenauth/{name}"] = {"token": token}
    file = directory / f"{name}.yaml"
    file.write_text(json.dumps(config))  # JSON is YAML
    return file
