"""The main job: requests at the example API, through the real Collector, found by asking every destination.

In between the Collector is killed, and then the API.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from examples.demo import evidence, outage, stage, traffic
from tests.integration.gateway import records_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from examples.demo.evidence import Evidence
    from examples.demo.stage import Stage

# The name under which each SIEM has the fact, for the SIEMs whose schema the records are found in.
FIELDS = {
    "http": {
        "id": "audit.record.id",
        "actor": "audit.actor.id",
        "resource": "audit.resource",
        "status": "http.response.status_code",
        "outcome": "audit.outcome",
        "source": "client.address",
        "agent": "user_agent.original",
    },
    "datadog": {
        "id": "audit.record.id",
        "actor": "usr.id",
        "resource": "audit.resource",
        "status": "http.status_code",
        "outcome": "evt.outcome",
        "source": "network.client.ip",
        "agent": "http.useragent",
    },
    "elastic-otlp": {
        "id": "event.id",
        "actor": "user.id",
        "resource": "audit.resource",
        "status": "http.response.status_code",
        "outcome": "event.outcome",
        "source": "client.ip",
        "agent": "user_agent.original",
    },
}


@pytest.fixture(scope="module")
def played() -> Iterator[tuple[Stage, Evidence]]:
    with ExitStack() as stack:
        running = stage.local(stack, lambda _: None)
        steps = traffic.story(running.api_url)
        for step in steps:
            step.play()
        facts = (traffic.START, *traffic.facts(steps))
        assert evidence.collect(running, facts).problems() == []
        assert running.processes is not None
        facts += outage.play(running.processes, traffic.outage(running.api_url), lambda _: None)
        yield running, evidence.collect(running, facts)


def archived(running: Stage, **facts: str) -> dict[str, Any]:
    """The one record in the archive with these attributes, dots written as underscores."""
    found = [
        {**record, **around}
        for around, record in records_of(running.archive())
        if all(record["attributes"].get(name.replace("_", ".")) == value for name, value in facts.items())
    ]
    assert len(found) == 1, facts
    return found[0]


def test_each_record_arrives_once_at_each_destination(played: tuple[Stage, Evidence]) -> None:
    running, proof = played
    assert proof.problems() == []
    assert len(proof.found) == 1 + len(running.siems) >= 4
    assert len(proof.records) > 26


def test_what_was_done_while_the_collector_was_dead_outlived_the_api(played: tuple[Stage, Evidence]) -> None:
    running, proof = played
    kept = archived(running, audit_resource=traffic.DELETED_IN_OUTAGE, audit_action="DELETE")
    adopted = archived(running, audit_action="ADOPT")
    assert adopted["attributes"]["audit.system.records"] == len(traffic.facts(traffic.outage("")))
    assert adopted["attributes"]["audit.system.clean_stop"] is False
    assert adopted["eventName"] == "tron.audit.system"
    assert adopted["resource"]["service.instance.id"] != kept["resource"]["service.instance.id"]
    collector = running.log("collector")
    assert collector.count("Everything is ready") == 2
    assert "Starting shutdown" not in collector
    assert all(counts[kept["attributes"]["audit.record.id"]] == 1 for counts in proof.found.values())


def test_each_process_numbered_its_records_without_a_gap(played: tuple[Stage, Evidence]) -> None:
    running, proof = played
    numbers: dict[str, list[int]] = {}
    for around, record in records_of(running.archive()):
        stream = numbers.setdefault(around["resource"]["service.instance.id"], [])
        stream.append(record["attributes"]["audit.sequence.number"])
    succession = len(outage.SUCCESSION)
    assert sorted(map(sorted, numbers.values()), key=len) == [
        [*range(1, succession + 1)],
        [*range(1, len(proof.records) - succession + 1)],
    ]


def test_alices_delete_in_the_archive(played: tuple[Stage, Evidence]) -> None:
    record = archived(played[0], audit_action="DELETE", audit_resource=traffic.DELETED)
    attributes = record["attributes"]
    assert attributes["audit.actor.id"] == traffic.ALICE
    assert (attributes["audit.target.type"], attributes["audit.target.id"]) == ("webapps", "web-shop")
    assert attributes["http.response.status_code"] == 204
    assert attributes["http.route"] == "/api/v1/webapps/{webapp_id}"
    assert attributes["client.address"] == "127.0.0.1"
    assert attributes["user.email"] == traffic.ALICE
    assert record["body"] == f"{traffic.ALICE} DELETE {traffic.DELETED} from 127.0.0.1: success (204)"
    assert record["eventName"] == "tron.audit.request"
    assert record["severityText"] == "INFO"
    assert int(record["observedTimeUnixNano"]) >= int(record["timeUnixNano"]) > 0
    assert record["resource"]["service.name"] == "platform-api"


def test_alices_delete_at_each_siem_in_its_own_words(played: tuple[Stage, Evidence]) -> None:
    running, _ = played
    record = archived(running, audit_action="DELETE", audit_resource=traffic.DELETED)["attributes"]
    expected = {
        "id": record["audit.record.id"],
        "actor": traffic.ALICE,
        "resource": traffic.DELETED,
        "status": "204",
        "outcome": "success",
        "source": "127.0.0.1",
        "agent": record["user_agent.original"],
    }
    checked = [name for name in running.siems if name in FIELDS]
    assert checked
    for name in checked:
        fields = FIELDS[name]
        (row,) = running.store.query(f'"{fields["id"]}":="{expected["id"]}"', stage.TENANTS[name])
        assert {fact: row.get(field) for fact, field in fields.items()} == expected, name


def test_an_executions_command_and_output(played: tuple[Stage, Evidence]) -> None:
    running, _ = played
    rows = running.store.query('"audit.action":="EXEC"', stage.TENANTS["http"])
    ran = [row for row in rows if row.get("process.exit.code") == "0"]
    refused = [row for row in rows if row.get("http.response.status_code") == "403"]
    timed_out = [row for row in rows if row.get("http.response.status_code") == "504"]
    assert ran
    assert refused
    assert timed_out
    assert all(row["container.name"] and json.loads(row["process.command_args"]) for row in (*refused, *timed_out))
    assert any(row.get("audit.exec.stdout.text") and row["audit.exec.stdout.length"] for row in ran)
    assert all("audit.exec.stdout.text" not in row for row in refused)


def test_nothing_secret_is_anywhere(played: tuple[Stage, Evidence]) -> None:
    running, _ = played
    everything = json.dumps(running.archive()) + running.log("api") + running.log("collector")
    for name in running.siems:
        everything += json.dumps(running.store.query("*", stage.TENANTS[name]))
    for secret in ("password", "access_token", "Bearer", "hunter2"):
        assert secret not in everything
