"""A record with every attribute at its longest, through the real Collector: no SIEM's bound is below ours.

OpenSearch stands in for Elasticsearch, as in `test_elasticsearch`; of Splunk and Datadog, which cannot be run here, the
documented bound is held against what would be sent.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import httpx
import pytest
from opentelemetry.sdk.resources import Resource as SdkResource

from collector import opensearch
from tests.integration.gateway import Gateway, with_file_exporter
from tests.integration.test_elasticsearch import bulks, install
from tests.test_log_record import EXEC
from tron_audit_otel.encoder import encode
from tron_audit_otel.event import Actor, ActorType, AuditEvent, Execution, Request, Resource, Source, Text
from tron_audit_otel.exporter import envelope
from tron_audit_otel.log_record import RECORD_BYTES_MAX, SCOPE_NAME

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CHARACTERS = ["x", "ü", "\u4e2d", "\U0001f4a9", "\\", '"']
"""Of one to four bytes, and two that JSON writes as two."""

SPLUNK_EVENT_BYTES_MAX = 5_242_880
"""``TRUNCATE`` in props.conf, and ``max_event_size`` of the exporter."""
DATADOG_LOG_BYTES_MAX = 1_000_000
"""Datadog's API reference, logs: a longer one is cut."""


def longest(character: str, number: int) -> AuditEvent:
    """All at once, and each as long as the library lets it be."""
    line, text = character * 1_024, Text(character * 4_096, 2**40, "0" * 64, truncated=True)
    return EXEC._replace(
        record_id=f"{number:08}-0000-4000-8000-000000000000",
        actor=Actor(line, ActorType.USER, line),
        action="A" * 64,
        resource=Resource(line, line, line),
        source=Source(line, line, "trusted_proxies", suspect=True),
        request=Request("_OTHER", line, line, line, 599, line, 4999, {f"x-{each}": (line,) * 8 for each in range(32)}),
        execution=Execution((character,) * 256, True, line, text, text, 2**31, line, line),  # noqa: FBT003 - a tuple's
        error_type=line,
    )


@pytest.fixture(scope="module")
def directories(otelcol: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What the Collector would send, by SIEM."""
    records = [encode(longest(character, number), number + 1) for number, character in enumerate(CHARACTERS)]
    # And with no headers, which are the first to give way: here the other attributes are at their longest.
    for number, character in enumerate(CHARACTERS, start=len(CHARACTERS)):
        event = longest(character, number)
        assert event.request is not None
        records.append(encode(event._replace(request=event.request._replace(headers={})), number + 1))
    assert max(map(len, records)) > RECORD_BYTES_MAX - 1_024
    around = envelope(SdkResource({"service.name": "platform-api"}), SCOPE_NAME, "1.0")
    found = {name: tmp_path_factory.mktemp(name) for name in ("elasticsearch", "splunk", "datadog")}
    for name, directory in found.items():
        file = with_file_exporter(name, directory, token="k")  # noqa: S106 - made up
        with Gateway(otelcol, directory / "data", {"AUDIT_COLLECTOR_NAMESPACE": "production"}, file) as gateway:
            answer = httpx.post(
                gateway.url,
                content=around.request(records),
                headers={"Content-Type": "application/x-protobuf"},
                timeout=30,
                trust_env=False,
            )
            assert answer.status_code == 200, answer.text
            assert '"error"' not in gateway.server.log()
    return found


@pytest.fixture(scope="module")
def server() -> Iterator[opensearch.OpenSearch]:
    with opensearch.opensearch() as running:
        install(running)
        yield running


def test_elasticsearch_refuses_none_of_them(directories: dict[str, Path], server: opensearch.OpenSearch) -> None:
    lines = list(bulks(directories["elasticsearch"] / "out.jsonl"))
    assert len(lines) == 2 * len(CHARACTERS)
    outcomes = server.bulk(b"".join(lines))
    assert [outcome.get("error") for outcome in outcomes if outcome["status"] != 201] == []


@pytest.mark.parametrize(
    ("name", "bytes_max"), [("splunk", SPLUNK_EVENT_BYTES_MAX), ("datadog", DATADOG_LOG_BYTES_MAX)]
)
def test_a_siem_that_cannot_be_run_here_takes_longer_ones(
    name: str, bytes_max: int, directories: dict[str, Path]
) -> None:
    records = [
        record
        for line in (directories[name] / "out.jsonl").read_bytes().splitlines()
        for of_resource in json.loads(line)["resourceLogs"]
        for of_scope in of_resource["scopeLogs"]
        for record in of_scope["logRecords"]
    ]
    assert len(records) == 2 * len(CHARACTERS)
    assert max(len(json.dumps(record).encode()) for record in records) < bytes_max
