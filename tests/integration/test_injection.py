"""Ten thousand hostile requests, through the real Collector, to every SIEM: one record each, and each as it must be.

They are driven straight into the application, because HTTP servers refuse many of their bytes; some hundreds more go
over sockets to real servers, of which those count that a server lets through. The exporters of Splunk and
Elasticsearch cannot be built here: a `file` exporter stands in their place, and what it wrote is sent as they would.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import random
import socket
import threading
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import httpx
import pytest
import uvicorn

import tron_audit_otel as audit
from tests import golden, hostile, injection
from tests.garbage import uncollected
from tests.injection import PLAIN, Ask
from tests.injection_oracle import problems
from tests.integration.gateway import ANSWER_SECONDS_MAX, Gateway, eventually, plain, with_file_exporter
from tests.integration.test_collector_siems import leaves
from tests.integration.test_elasticsearch import bulks

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from starlette.types import ASGIApp, Receive, Scope, Send

    from collector import servers

SEED = 7
CASES = 10_000
OVER_SOCKETS = 600
"""To each server."""
TENANTS = {"datadog": 1, "elastic-otlp": 2, "splunk": 3, "elasticsearch": 4}
FILES = ("splunk", "elasticsearch")
AT_ONCE = 500


FIELDS = frozenset(
    ("timeUnixNano", "observedTimeUnixNano", "severityNumber", "severityText", "eventName", "body", "attributes")
)


class Record(NamedTuple):
    """A record in an archive."""

    event: str
    body: str
    attributes: dict[str, Any]
    severity: tuple[str, int]
    fields: frozenset[str]
    resource: str

    @property
    def id(self) -> str:
        return str(self.attributes["audit.record.id"])


def archive(data: Path) -> list[Record]:
    """Every record of an archive. A line is a request, and no reader of lines may see another one."""
    found = []
    for file in files_of(data):
        for line in file.read_text(encoding="utf-8").splitlines():
            for of_resource in json.loads(line)["resourceLogs"]:
                [of_scope] = of_resource["scopeLogs"]
                around = json.dumps([of_resource["resource"], of_scope["scope"]], sort_keys=True)
                for each in of_scope["logRecords"]:
                    pairs = [(pair["key"], plain(pair["value"])) for pair in each["attributes"]]
                    assert len(dict(pairs)) == len(pairs), "a name twice"
                    severity = (each["severityText"], each["severityNumber"])
                    fields = frozenset(each)
                    found.append(Record(each["eventName"], plain(each["body"]), dict(pairs), severity, fields, around))
    return found


def files_of(data: Path) -> list[Path]:
    return sorted((data / "archive").glob("audit*.jsonl"))


def archived(data: Path) -> int:
    """How many records are there: within a text the quotes would be escaped."""
    return sum(file.read_bytes().count(b'{"timeUnixNano":') for file in files_of(data))


class Asked(NamedTuple):
    """A request, whose it is, and where it is hostile."""

    ask: Ask
    client: str
    places: tuple[str, ...]


class Sent(NamedTuple):
    """What was asked for, in its order, with each one's client; and what came of it."""

    asked: list[Asked]
    passed: Counter[str]
    """How many requests each server let through."""
    stats: audit.Stats
    records: list[Record]
    at: dict[str, list[dict[str, str]]]
    """The rows in the log store, by SIEM."""
    beyond: list[Record]
    """The archive of the Collector that the `http` SIEM is."""


class Door:
    """Stands before the application, and notes what a server hands on."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.scopes: list[Scope] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(dict(scope))
        await self.app(scope, receive, send)


@contextmanager
def served(app: ASGIApp, http: str) -> Iterator[int]:
    """A real server, at a port."""
    config = uvicorn.Config(
        app, port=0, http=http, ws="none", loop="asyncio", lifespan="off", proxy_headers=False, log_config=None
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        eventually(lambda: server.started, "the server")
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


def wire(chance: random.Random) -> bytes:
    """A request in bytes, hostile in one place, or in all of them."""
    places = {
        "method": b"GET",
        "path": b"there",
        "query": b"a=b",
        "agent": b"curl/8.5.0",
        "name": b"x-a",
        "value": b"1",
    }
    for name in [chance.choice(list(places))] if chance.random() < 0.8 else list(places):
        raw = hostile.mixed_bytes(chance)
        if name in ("path", "query") and chance.random() < 0.5:
            raw = quote(raw).encode()
        elif name in ("method", "path", "query") and chance.random() < 0.8:
            raw = b"".join(raw.split())  # or it would be another request line
        places[name] = raw
    return (
        b"%(method)b /nowhere/%(path)b?%(query)b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
        b"User-Agent: %(agent)b\r\n%(name)b: %(value)b\r\n\r\n"
    ) % {key.encode(): value for key, value in places.items()}


def ask_over_sockets(app: ASGIApp, http: str) -> list[Ask]:
    """Sends requests one after another, and gives those that the server let through, as it handed them on."""
    door, chance = Door(app), random.Random(SEED)  # noqa: S311 - the same in each run
    with served(door, http) as port:
        for _ in range(OVER_SOCKETS):
            with socket.create_connection(("127.0.0.1", port), ANSWER_SECONDS_MAX) as connection, suppress(OSError):
                connection.sendall(wire(chance))
                while connection.recv(65_536):
                    pass
    return [of_scope(scope) for scope in door.scopes]


def of_scope(scope: Scope) -> Ask:
    headers = list(scope["headers"])
    agent = next((value for name, value in headers if name == b"user-agent"), None)
    rest = tuple(pair for pair in headers if pair[0] != b"user-agent")
    assert scope["raw_path"].startswith(b"/")
    return replace(PLAIN["nowhere"], method=scope["method"], end=scope["raw_path"][1:], headers=rest, user_agent=agent)


@pytest.fixture(scope="module")
def sent(otelcol: Path, store: servers.VictoriaLogs, tmp_path_factory: pytest.TempPathFactory) -> Sent:
    directory = tmp_path_factory.mktemp("injection")
    files = []
    for name in FILES:
        (directory / name).mkdir()
        file = with_file_exporter(name, directory / name, token="k")  # noqa: S106 - made up
        file.write_text(file.read_text().replace('"file/out"', f'"file/{name}"'))
        files.append(file)
    tenants = {name: {"headers": {"AccountID": str(TENANTS[name])}} for name in ("datadog", "elastic-otlp")}
    overlay = directory / "tenants.yaml"
    overlay.write_text(json.dumps({"exporters": {f"otlp_http/{name}": each for name, each in tenants.items()}}))
    with Gateway(otelcol, directory / "siem", {"AUDIT_COLLECTOR_TOKEN": "made-up"}) as siem:
        settings = {
            "DD_API_KEY": "made-up",
            "DD_OTLP_LOGS_URL": f"{store.url}/insert/opentelemetry/v1/logs",
            "ELASTIC_OTLP_API_KEY": "made-up",
            "ELASTIC_OTLP_URL": f"{store.url}/insert/opentelemetry",
            "AUDIT_SIEM_TOKEN": "made-up",
            "AUDIT_SIEM_URL": siem.url,
            "AUDIT_SIEM_TIMEOUT": str(ANSWER_SECONDS_MAX),
            "AUDIT_COLLECTOR_NAMESPACE": "production",
        }
        with Gateway(otelcol, directory / "data", settings, overlay, *files) as gateway:
            asked, passed, stats = ask_everything(directory, gateway.url)
            count = len(asked) + 2  # and START and STOP
            eventually(lambda: archived(gateway.data) >= count, "every record in the archive")
            for name in tenants:
                store.wait('* | fields "audit.record.id"', count, TENANTS[name], 60)
            eventually(lambda: archived(siem.data) >= count, "every record at the other Collector")
            assert '"error"' not in gateway.server.log()
    with uncollected():
        send_as_splunk(store, directory / "splunk" / "out.jsonl")
        send_as_elasticsearch(store, directory / "elasticsearch" / "out.jsonl")
        store.flush()
        rows = {name: store.query("*", tenant) for name, tenant in TENANTS.items()}
        return Sent(asked, passed, stats, archive(gateway.data), rows, archive(siem.data))


def ask_everything(directory: Path, url: str) -> tuple[list[Asked], Counter[str], audit.Stats]:
    policy = directory / "policy.yaml"
    policy.write_text(injection.POLICY)
    config = audit.AuditConfig.from_env(
        {
            "AUDIT_LOG_ENABLED": "true",
            "AUDIT_LOG_JOURNAL_DIR": str(directory / "journal"),
            "AUDIT_LOG_POLICY_FILE": str(policy),
            "AUDIT_LOG_SHUTDOWN_SECONDS_MAX": "60",
            "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": url,
        }
    )
    app = injection.application()
    cases = injection.cases(random.Random(SEED), CASES)  # noqa: S311 - the same in each run
    asked = [Asked(case.ask, f"2001:db8::{number + 1:x}", case.places) for number, case in enumerate(cases)]

    async def ask_all() -> None:
        for ask, client, places in asked:
            assert await injection.serve(app, ask, client) is None, places

    passed: Counter[str] = Counter()
    gc.collect()  # `audit.stats` has the pipelines of all applications that live
    audit.instrument(app, config=config)
    logging.disable(logging.ERROR)  # an action that is none is told of each time, and so is a request that is none
    try:
        asyncio.run(ask_all())
        for http in ("h11", "httptools"):
            let_through = ask_over_sockets(app, http)
            passed[http] = len(let_through)
            asked += [Asked(ask, "127.0.0.1", (http,)) for ask in let_through]
        eventually(lambda: not audit.stats().pending, "the delivery of every record")
        stats = audit.stats()
    finally:
        audit.uninstrument(app)
        logging.disable(logging.NOTSET)
    return asked, passed, stats


def send_as_splunk(store: servers.VictoriaLogs, file: Path) -> None:
    """Sends what the exporter would, to the HTTP Event Collector."""
    events = []
    for line in file.read_bytes().splitlines():
        for of_resource in json.loads(line)["resourceLogs"]:
            for of_scope in of_resource["scopeLogs"]:
                for each in of_scope["logRecords"]:
                    seconds = int(each["timeUnixNano"]) / 1e9
                    events.append({"time": seconds, "sourcetype": "tron:audit", "event": plain(each["body"])})
    send(store, "splunk", "/services/collector/event", [json.dumps(event).encode() for event in events])


def send_as_elasticsearch(store: servers.VictoriaLogs, file: Path) -> None:
    """Sends what the exporter would, to the bulk API."""
    times = {"VL-Time-Field": "@timestamp", "VL-Msg-Field": "message"}
    send(store, "elasticsearch", "/insert/elasticsearch/_bulk", list(bulks(file)), times)


def send(
    store: servers.VictoriaLogs, name: str, path: str, records: list[bytes], headers: dict[str, str] | None = None
) -> None:
    for begin in range(0, len(records), AT_ONCE):
        answer = httpx.post(
            store.url + path,
            content=b"\n".join(records[begin : begin + AT_ONCE]),
            headers={"AccountID": str(TENANTS[name]), **(headers or {})},
            timeout=30,
            trust_env=False,
        )
        assert answer.status_code == 200, answer.text


def some(found: Iterable[str]) -> str:
    """The first few problems, and how many there are."""
    every = list(found)
    return "\n".join([f"{len(every)} problems", *every[:10]]) if every else ""


def test_each_request_has_one_record_and_nothing_else_has_any(sent: Sent) -> None:
    assert len(sent.asked) >= CASES
    start, *records, stop = sent.records
    assert (start.event, start.attributes["audit.action"]) == ("tron.audit.system", "START")
    assert (stop.event, stop.attributes["audit.action"]) == ("tron.audit.system", "STOP")
    assert len(records) == len(sent.asked)
    assert [each.attributes["audit.sequence.number"] for each in sent.records] == [*range(1, len(sent.records) + 1)]
    assert len({each.id for each in sent.records}) == len(sent.records)
    assert len({each.resource for each in sent.records}) == 1


def test_the_ledger_is_exact(sent: Sent) -> None:
    counts = sent.stats
    assert (counts.emitted, counts.delivered) == (len(sent.asked) + 1,) * 2
    assert (counts.pending, counts.dead_lettered, sum(counts.dropped.values())) == (0, 0, 0)


def test_each_record_is_what_its_request_makes_it(sent: Sent) -> None:
    def every() -> Iterator[str]:
        for (ask, client, places), record in zip(sent.asked, sent.records[1:-1], strict=True):
            for problem in problems(ask, client, record.event, record.body, record.attributes):
                yield f"{', '.join(places)}: {problem}"
            severity = ("INFO", 9) if record.attributes["audit.outcome"] == "success" else ("WARN", 13)
            if record.severity != severity or record.fields != FIELDS:
                yield f"{', '.join(places)}: {record.severity}, {sorted(record.fields)}"

    assert not some(every())


def test_servers_let_enough_through_for_it_to_count(sent: Sent) -> None:
    assert all(count >= OVER_SOCKETS // 6 for count in sent.passed.values()), sent.passed


class Names(NamedTuple):
    """How a SIEM names what a search begins with."""

    id: str
    actor: str
    claimed: str
    action: str
    outcome: str
    resource: str
    path: str
    status: str
    address: str
    agent: str


RECORDED = Names(
    "audit.record.id",
    "audit.actor.id",
    "audit.actor.claimed",
    "audit.action",
    "audit.outcome",
    "audit.resource",
    "url.path",
    "http.response.status_code",
    "client.address",
    "user_agent.original",
)
AT: dict[str, Names] = {
    "datadog": RECORDED._replace(
        actor="usr.id",
        outcome="evt.outcome",
        path="http.url_details.path",
        status="http.status_code",
        address="network.client.ip",
        agent="http.useragent",
    ),
    "elastic-otlp": RECORDED._replace(id="event.id", actor="user.id", outcome="event.outcome", address="client.ip"),
    "splunk": Names(
        *("event.record_id", "event.user", "event.user_claimed", "event.audit_action", "event.outcome"),
        *("event.object", "event.uri_path", "event.http_status", "event.src", "event.user_agent"),
    ),
    "elasticsearch": RECORDED._replace(id="event.id", actor="user.id", outcome="event.outcome", address="client.ip"),
}


@pytest.mark.parametrize("name", TENANTS)
def test_each_siem_has_each_record_once_and_nothing_else(sent: Sent, name: str) -> None:
    assert Counter(row.get(AT[name].id) for row in sent.at[name]) == Counter(each.id for each in sent.records)


@pytest.mark.parametrize("name", TENANTS)
def test_each_siem_shows_of_each_record_all_that_is_in_it_and_nothing_else(sent: Sent, name: str) -> None:
    rows = {row[AT[name].id]: row for row in sent.at[name]}

    def every() -> Iterator[str]:
        derived: dict[tuple[Any, ...], str] = {}
        for record in sent.records:
            row, told = rows[record.id], texts_of(record)
            shown = {text for value in row.values() for text in (value, json_of(loaded(value)))}
            lacking = {text for text in map(json_of, told_by(record).values()) if text not in shown}
            if lacking - {""}:  # what is empty the store leaves out
                yield f"{record.id} lacks {lacking}"
            for field, recorded in zip(AT[name], RECORDED, strict=True):
                if row.get(field, "") != json_of(expected_at(name, record, recorded)):
                    yield f"{record.id}: {field} is {row.get(field)!r}"
            for field, value in row.items():
                if field in MEASURED or is_of(value, told):
                    continue
                # What a transform adds may depend on the kind of the record, and on nothing that a client writes.
                kind = (field, record.event, record.attributes["audit.action"], record.attributes["audit.outcome"])
                if derived.setdefault(kind, value) != value:
                    yield f"{kind}: {value!r} is not of the record"

    assert not some(every())


@pytest.mark.parametrize("name", TENANTS)
def test_no_siem_has_a_field_that_is_not_documented(sent: Sent, name: str) -> None:
    shown = json.loads((golden.DIRECTORY / "siem" / f"{name}.json").read_text())
    known = {path for each in shown["records"].values() for path, _ in leaves(each)}
    known |= {path.partition(".")[2] for path in known if name != "splunk"}
    found = {field for row in sent.at[name] for field in row if "headers." not in field and ".header." not in field}
    assert found - known <= {*shown["resource"], *shown["scope"], *OF_THE_STORE}


MEASURED = ("_time", "event.created", "duration", "event.duration", "event.duration_ms", "audit.duration_ms")
OF_THE_STORE = (
    *("_msg", "_time", "_stream", "_stream_id", "event_name", "severity_number", "severity_text", "sourcetype"),
    *("scope.name", "scope.version", "telemetry.sdk.language", "telemetry.sdk.name", "telemetry.sdk.version"),
)


def told_by(record: Record) -> dict[str, Any]:
    """What a record tells, but for its duration, which some SIEMs have in nanoseconds."""
    told = {**record.attributes, "body": record.body}
    del told["audit.duration_ms"]
    return told


def texts_of(record: Record) -> set[str]:
    """All that a SIEM may show of it: values, parts of lists, and what Splunk makes of a command."""
    told = told_by(record)
    texts = {json_of(value) for value in told.values()}
    texts |= {part for value in told.values() if isinstance(value, list) for part in value}
    if command := told.get("process.command_args"):
        texts |= {" ".join(command), command[0].rpartition("/")[2]}
    return texts


def expected_at(name: str, record: Record, attribute: str) -> Any:
    if attribute == "audit.actor.id" and name in ("datadog", "splunk") and record.attributes["audit.action"] == "LOGIN":
        attribute = "audit.actor.claimed"  # of a login that failed
    return record.attributes.get(attribute, "")


def is_of(value: str, told: set[str]) -> bool:
    parts = loaded(value)
    return value in told or json_of(parts) in told or (isinstance(parts, list) and told.issuperset(parts))


def json_of(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def loaded(value: str) -> Any:
    """A list is its JSON."""
    with suppress(ValueError):
        return json.loads(value) if value.startswith("[") else value
    return value


def test_a_siem_that_takes_records_as_they_are_has_the_same(sent: Sent) -> None:
    assert {each.id: each for each in sent.beyond} == {each.id: each for each in sent.records}
    assert len(sent.beyond) == len(sent.records)
