"""Ten thousand records, hostile ones among them, into a server that enforces the shipped templates: none is refused.

The `elasticsearch` exporter cannot be built here, so a `file` exporter stands in its place, and `bulk` sends what it
wrote as that one would. OpenSearch stands in for Elasticsearch: the mappings, the settings and the index template are
those shipped; in the place of `lifecycle.json`, whose settings only Elasticsearch has, stands an empty template.
"""

from __future__ import annotations

import ipaddress
import json
import random
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import pytest

from collector import launch, opensearch, servers
from tests import hostile, siem_records
from tests.garbage import uncollected
from tests.integration.gateway import BEGIN_NS, Gateway, encoded, records_of, with_file_exporter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

SHIPPED = launch.HERE / "siem" / "elasticsearch"
STREAM = "logs-tron.audit-production"
RECORDS = 10_000
AT_ONCE = 500
SECOND_NS = 1_000_000_000

ACTIONS = ["READ", "CREATE", "UPDATE", "DELETE", "EXEC", "LOGIN", "LOGOUT", "OTHER", "START"]
ACTORS = ["alice@example.com", "bob@example.com", "token:ci", "u-17"]
ADDRESSES = ["192.0.2.7", "192.0.2.200", "198.51.100.66", "2001:db8::7", "::ffff:192.0.2.9", "10.1.2.3"]
NO_ADDRESSES = [
    "",
    "testclient",
    "256.1.1.1",
    "fe80::1%eth0",
    "10.0.0.1, 10.0.0.2",
    "192.0.2.7/24",
    "[::1]:80",
    "::1\n",
]
TIMES = [0, 1, 999, SECOND_NS, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
TEXTS = [text for text in hostile.TEXTS.values() if len(text) < 1_000]
LONG_TEXTS = ["x" * 65_536, "\U0001f4a9" * 16_384, "\t" * 9_000, "a b" * 10_000]
NUMBERS = [0, -1, 2**31, 2**63 - 1, -(2**63)]
DEEP = 200


def deep(kind: str) -> dict[str, Any]:
    """A value within many others."""
    value: dict[str, Any] = {"stringValue": "at the bottom"}
    for _ in range(DEEP):
        value = {kind: {"values": [{"key": "k", "value": value} if kind == "kvlistValue" else value]}}
    return value


DEEP_VALUES = [deep("kvlistValue"), deep("arrayValue")]


def odd_value(chance: random.Random) -> dict[str, Any]:
    """A value of any type that OTLP has."""
    text = {"stringValue": chance.choice(TEXTS if chance.random() < 0.97 else LONG_TEXTS)}
    return chance.choice(
        [
            text,
            {"boolValue": True},
            {"intValue": str(chance.choice(NUMBERS))},
            {"doubleValue": chance.choice(["NaN", "Infinity", "-Infinity", 1.7e308, -0.0, 5e-324])},
            {"bytesValue": "AP/+"},
            {},
            {"arrayValue": {}},
            {"arrayValue": {"values": [text, {"intValue": "7"}, {}, {"arrayValue": {"values": [text]}}]}},
            {"arrayValue": {"values": [text, {"kvlistValue": {"values": [{"key": "a", "value": text}]}}]}},
            {"kvlistValue": {"values": [{"key": chance.choice(TEXTS), "value": text}, {"key": "", "value": text}]}},
            *DEEP_VALUES,
        ]
    )


def header_name(chance: random.Random) -> str:
    odd = ["", ".", "..", "a..b", ".a", "a.", "a b", "X-Upper", "\u202e", "\x00", "é", "n" * 5_000, "a." * 100, "_id"]
    return "http.request.header." + chance.choice(["x-request-id", "x_under", "content-type", *odd])


def ordinary(chance: random.Random, number: int) -> dict[str, Any]:
    """The attributes of a record as the library makes them."""
    action = chance.choice(ACTIONS)
    status = chance.choice([200, 201, 204, 401, 403, 404, 500])
    actor = chance.choice(ACTORS)
    failed_login = action == "LOGIN" and status >= 400
    found: dict[str, Any] = {
        "audit.record.id": f"{number:08}-0000-4000-8000-000000000000",
        "audit.schema.version": "1.0",
        "audit.sequence.number": number + 1,
        "audit.action": action,
        "audit.resource": f"instances/i-{chance.randrange(50)}",
        "audit.outcome": "success" if status < 400 else "failure",
        "audit.duration_ms": chance.choice([0.0, 12.5, 1_000, 86_400_000.0]),
        "http.request.method": "POST",
        "http.response.status_code": status,
        "url.path": f"/api/v1/instances/i-{number}",
        "client.address": chance.choice([*ADDRESSES, *NO_ADDRESSES]),
        "audit.source_ip.suspect": chance.random() < 0.1,
        "user_agent.original": "curl/8.5.0",
        "http.request.header.x-request-id": [f"q{number}"],
    }
    found |= {"audit.actor.claimed": actor} if failed_login else {"audit.actor.id": actor}
    if action == "EXEC":
        found |= {
            "process.command_args": ["tar", "-x", f"/srv/{number}.tar"],
            "process.exit.code": chance.choice([0, 1, 137]),
            "audit.exec.stdout.text": "total 0\n",
        }
        if masked := chance.randrange(3):
            found["audit.exec.stdout.masked"] = masked
    if action == "START":
        found["audit.system.trusted_proxies"] = chance.choice([["10.0.0.0/8", "unix"], ["10.1.0.0/16"]])
    return found


NAMES = sorted({pair["key"] for record in siem_records.RECORDS.values() for pair in record["attributes"]})


class Sent(NamedTuple):
    """A record, and the attributes that it was given on purpose, where they can be believed."""

    record: dict[str, Any]
    known: dict[str, Any]


def generated(chance: random.Random, number: int) -> Sent:
    """A record, every fourth a hostile one: some of its attributes, or all of its times, are of any kind."""
    known = ordinary(chance, number)
    pairs = encoded(known)
    record = {
        "timeUnixNano": str(BEGIN_NS + number * SECOND_NS),
        "observedTimeUnixNano": str(BEGIN_NS + number * SECOND_NS + 1),
        "severityText": "INFO",
        "eventName": "tron.audit.system" if known["audit.action"] == "START" else "tron.audit.request",
        "body": {"stringValue": f"{known.get('audit.actor.id', 'anonymous')} {known['audit.action']}"},
    }
    if number % 4 == 0:
        names = chance.sample(NAMES, chance.randrange(1, 8))
        pairs = [pair for pair in pairs if pair["key"] not in names]
        pairs += [{"key": name, "value": odd_value(chance)} for name in names if name != "audit.record.id"]
        # An id of its own all the same, or it would rightly be taken for another.
        if "audit.record.id" in names:
            odd = [{"intValue": str(number)}, {"stringValue": f"{number}" + chance.choice([*TEXTS, *LONG_TEXTS])}]
            pairs += [{"key": "audit.record.id", "value": chance.choice(odd)}]
        pairs += [{"key": header_name(chance), "value": odd_value(chance)} for _ in range(3)]
        pairs += [{"key": "elasticsearch.index", "value": {"stringValue": "another"}}]
        pairs += chance.sample(pairs, 2)  # names twice
        record |= {
            "timeUnixNano": str(chance.choice(TIMES)),
            "observedTimeUnixNano": str(chance.choice(TIMES)),
            "severityText": chance.choice(TEXTS),
            "eventName": chance.choice(TEXTS),
            "body": odd_value(chance),
        }
        known = {}
    return Sent({**record, "attributes": pairs}, known)


def request(records: Sequence[Sent], number: int) -> bytes:
    """One OTLP request; every other one from a sender who would rather choose the index himself."""
    evil = {"elasticsearch.index": "another", "data_stream.type": "metrics", "elastic.mapping.mode": "otel"}
    resource = {"service.name": "platform-api", "service.instance.id": "api-1"} | (evil if number % 2 else {})
    if number % 4 == 3:
        resource["host.name"] = ["a", "list"]  # type: ignore[assignment] # which is the point
    scope = {"name": "tron_audit_otel", "attributes": encoded(evil if number % 2 else {})}
    logs = {"scope": scope, "logRecords": [each.record for each in records]}
    return json.dumps({"resourceLogs": [{"resource": {"attributes": encoded(resource)}, "scopeLogs": [logs]}]}).encode()


def document(value: dict[str, Any]) -> Any:
    """A value as JSON. The transform is to leave nothing that JSON has not, and no name twice in one object."""
    [(kind, inner)] = value.items()
    match kind:
        case "kvlistValue":
            pairs = inner.get("values", [])
            assert len({pair["key"] for pair in pairs}) == len(pairs), [pair["key"] for pair in pairs]
            return {pair["key"]: document(pair["value"]) for pair in pairs}
        case "arrayValue":
            return [document(item) for item in inner.get("values", [])]
        case "intValue":
            return int(inner)
        case "stringValue" | "boolValue":
            return inner
        case _:
            raise AssertionError(f"{kind} in a document")


def bulk(record: dict[str, Any], attributes: dict[str, Any]) -> bytes:
    """The two lines that the exporter sends for a record in `bodymap` mode, with `logs_dynamic_id`."""
    index = f"logs-{attributes['data_stream.dataset']}-{attributes['data_stream.namespace']}"
    action = {"create": {"_index": index, "_id": attributes["elasticsearch.document_id"]}}
    return b"%b\n%b\n" % (json.dumps(action).encode(), json.dumps(document(record["body"])).encode())


def bulks(file: Path) -> Iterator[bytes]:
    """What the exporter would send for each record that the Collector wrote to this file."""
    for line in file.read_bytes().splitlines():
        written = json.loads(line)
        records = [
            each
            for of_resource in written["resourceLogs"]
            for of_scope in of_resource["scopeLogs"]
            for each in of_scope["logRecords"]
        ]
        for each, (around, decoded) in zip(records, records_of([written]), strict=True):
            assert around["scope"]["elastic.mapping.mode"] == "bodymap"
            steering = set(around["resource"]) | set(decoded["attributes"])
            assert not {"elasticsearch.index", "data_stream.type"} & steering
            yield bulk(each, decoded["attributes"])


def shipped(name: str) -> Any:
    return json.loads((SHIPPED / f"{name}.json").read_text(encoding="utf-8"))


def install(server: opensearch.OpenSearch) -> None:
    for name, body in {
        "mappings": shipped("mappings"),
        "settings": shipped("settings"),
        "lifecycle": {"template": {}},
    }.items():
        server.call("PUT", f"/_component_template/logs-tron.audit@{name}", body)
    server.call("PUT", "/_index_template/logs-tron.audit", shipped("index-template"))


@pytest.fixture(scope="module")
def server() -> Iterator[opensearch.OpenSearch]:
    with opensearch.opensearch() as running:
        install(running)
        yield running


class Indexed(NamedTuple):
    """What was sent, the lines that index it, and what became of them, first and second."""

    sent: list[Sent]
    lines: list[bytes]
    outcomes: list[dict[str, Any]]
    again: list[dict[str, Any]]


@pytest.fixture(scope="module")
def indexed(otelcol: Path, server: opensearch.OpenSearch, tmp_path_factory: pytest.TempPathFactory) -> Indexed:
    chance = random.Random(5)  # noqa: S311 - the same records in each run
    sent = [generated(chance, number) for number in range(RECORDS)]
    directory = tmp_path_factory.mktemp("elasticsearch")
    file = with_file_exporter("elasticsearch", directory, token="k")  # noqa: S106 - made up
    with Gateway(otelcol, directory / "data", {"AUDIT_COLLECTOR_NAMESPACE": "production"}, file) as gateway:
        for number, begin in enumerate(range(0, RECORDS, AT_ONCE)):
            answer = httpx.post(
                gateway.url,
                content=request(sent[begin : begin + AT_ONCE], number),
                headers={"Content-Type": "application/json"},
                timeout=30,
                trust_env=False,
            )
            assert answer.status_code == 200, answer.text
        # A statement that fails is passed over, and logged. It may only for NaN and infinity, which JSON has not.
        errors = [line for line in gateway.server.log().splitlines() if '"error"' in line]
        assert [line for line in errors if not re.search("unsupported type: float64|unsupported value: ", line)] == []
    with uncollected():
        lines = list(bulks(directory / "out.jsonl"))
    outcomes, again = (
        [each for begin in range(0, RECORDS, AT_ONCE) for each in server.bulk(b"".join(lines[begin : begin + AT_ONCE]))]
        for _ in range(2)
    )
    server.call("POST", f"/{STREAM}/_refresh")
    return Indexed(sent, lines, outcomes, again)


def count(server: opensearch.OpenSearch, query: dict[str, Any]) -> int:
    found = server.call("POST", f"/{STREAM}/_count", {"query": query})["count"]
    assert isinstance(found, int)
    return found


def test_none_of_ten_thousand_records_is_refused(indexed: Indexed) -> None:
    refused = [outcome["error"] for outcome in indexed.outcomes if outcome["status"] != 201]
    assert refused == []
    assert len(indexed.outcomes) == RECORDS


def test_sent_again_they_add_nothing(indexed: Indexed, server: opensearch.OpenSearch) -> None:
    assert {outcome["status"] for outcome in indexed.again} == {409}
    assert count(server, {"match_all": {}}) == RECORDS


def test_no_value_was_passed_over_for_its_kind(indexed: Indexed, server: opensearch.OpenSearch) -> None:
    # Numbers, times and addresses that are none the server would pass over; texts, those that are too long to search.
    names = leaves(shipped("mappings")["template"]["mappings"])
    strict = [
        name for name in names if type_of(shipped("mappings")["template"]["mappings"], name) in {"date", "ip", "long"}
    ]
    assert len(strict) > 10
    assert count(server, {"terms": {"_ignored": strict}}) == 0


def test_the_server_does_refuse_what_does_not_fit(server: opensearch.OpenSearch) -> None:
    wrong: list[dict[str, Any]] = [
        {"user": {"id": {"an": "object"}}},
        {"event": "no object"},
        {"@timestamp": "yesterday"},
    ]
    lines = [
        json.dumps(line)
        for fields in wrong
        for line in (
            {"create": {"_index": "logs-tron.audit-refused"}},
            {"@timestamp": "2026-01-01T00:00:00Z", **fields},
        )
    ]
    outcomes = server.bulk("".join(f"{line}\n" for line in lines).encode())
    assert [outcome["status"] for outcome in outcomes] == [400, 400, 400]


def test_a_record_sent_again_after_a_rollover_is_there_twice_under_one_id(
    indexed: Indexed, server: opensearch.OpenSearch
) -> None:
    # An id is unique in an index, and a data stream is many. Should this fail one day, docs have good news to tell.
    stream = "logs-tron.audit-rolled"
    line = indexed.lines[1].replace(STREAM.encode(), stream.encode())
    statuses = [server.bulk(line)[0]["status"]]
    server.call("POST", f"/{stream}/_rollover")
    statuses += [server.bulk(line)[0]["status"], server.bulk(line)[0]["status"]]
    assert statuses == [201, 201, 409]
    server.call("POST", f"/{stream}/_refresh")
    found = server.call("POST", f"/{stream}/_search", {"collapse": {"field": "event.id"}})["hits"]
    assert (found["total"]["value"], len(found["hits"])) == (2, 1)


def test_the_fields_have_the_types_that_were_meant(server: opensearch.OpenSearch, indexed: Indexed) -> None:
    expected = {
        "@timestamp": "date",
        "audit.exec.stdout.text": "match_only_text",
        "audit.source_ip.suspect": "boolean",
        "client.ip": "ip",
        "data_stream.dataset": "constant_keyword",
        "event.created": "date",
        "event.duration": "long",
        "event.id": "keyword",
        "http.response.status_code": "long",
        "message": "match_only_text",
        "process.args": "keyword",
        "url.path": "wildcard",
    }
    found = server.call("GET", f"/{STREAM}/_mapping")
    [index] = found.values()
    assert {name: type_of(index["mappings"], name) for name in expected} == expected


def test_nothing_that_was_sent_has_become_a_field(server: opensearch.OpenSearch, indexed: Indexed) -> None:
    [index] = server.call("GET", f"/{STREAM}/_mapping").values()
    assert leaves(index["mappings"]) == leaves(shipped("mappings")["template"]["mappings"])


def type_of(mappings: dict[str, Any], name: str) -> str:
    for part in name.split("."):
        mappings = mappings["properties"][part]
    return str(mappings["type"])


def leaves(mappings: dict[str, Any], above: str = "") -> set[str]:
    return {
        leaf
        for name, field in mappings["properties"].items()
        for leaf in (leaves(field, f"{above}{name}.") if "properties" in field else {f"{above}{name}"})
    }


def within(network: str) -> Callable[[dict[str, Any]], bool]:
    def check(known: dict[str, Any]) -> bool:
        try:
            address = ipaddress.ip_address(known["client.address"])
        except ValueError:
            return False
        mapped = getattr(address, "ipv4_mapped", None) or address
        return mapped in ipaddress.ip_network(network)

    return check


def failed_login(known: dict[str, Any]) -> bool:
    return (known["audit.action"], known["audit.outcome"]) == ("LOGIN", "failure")


# What an auditor would ask, in the language of the search field, and which of the records that is.
QUESTIONS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "user.id:alice@example.com AND audit.action:DELETE": lambda known: (
        (known.get("audit.actor.id"), known["audit.action"]) == ("alice@example.com", "DELETE")
    ),
    'client.ip:"192.0.2.0/24"': within("192.0.2.0/24"),
    'source.ip:"2001:db8::/32"': within("2001:db8::/32"),
    "process.args:tar AND NOT process.exit_code:0": lambda known: known.get("process.exit.code") in {1, 137},
    "event.duration:>=86400000000000": lambda known: known["audit.duration_ms"] == 86_400_000.0,
    "http.response.status_code:[500 TO 599]": lambda known: known["http.response.status_code"] == 500,
    "audit.exec.stdout.masked:>1": lambda known: known.get("audit.exec.stdout.masked", 0) > 1,
    'audit.action:START AND NOT audit.system.trusted_proxies:"10.0.0.0/8"': lambda known: (
        known.get("audit.system.trusted_proxies") == ["10.1.0.0/16"]
    ),
    'message:"alice example.com delete"': lambda known: (
        (known.get("audit.actor.id"), known["audit.action"]) == ("alice@example.com", "DELETE")
    ),
    "event.type:deletion AND event.category:api": lambda known: known["audit.action"] == "DELETE",
    "event.category:authentication AND user.name:u-17 AND event.outcome:failure": lambda known: (
        (failed_login(known) and known["audit.actor.claimed"] == "u-17")
        or (
            (known["audit.action"], known["audit.outcome"], known.get("audit.actor.id"))
            == ("LOGOUT", "failure", "u-17")
        )
    ),
    "@timestamp:[2026-09-21T14:30:00Z TO 2026-09-21T14:59:59Z]": lambda known: (
        1_000 <= known["audit.sequence.number"] - 1 <= 2_799
    ),
}
SAVED: dict[str, Callable[[dict[str, Any]], bool]] = {
    "tron-audit-failed-logins": failed_login,
    "tron-audit-refused": lambda known: known["http.response.status_code"] in {401, 403},
    "tron-audit-deletions": lambda known: (known["audit.action"], known["audit.outcome"]) == ("DELETE", "success"),
    "tron-audit-commands": lambda known: known["audit.action"] == "EXEC",
    "tron-audit-doubtful-sources": lambda known: known["audit.source_ip.suspect"],
    "tron-audit-the-trail-itself": lambda known: known["audit.action"] == "START",
}


def saved_searches() -> dict[str, dict[str, Any]]:
    objects = [json.loads(line) for line in (SHIPPED / "kibana.ndjson").read_text(encoding="utf-8").splitlines()]
    return {each["id"]: each["attributes"] for each in objects if each["type"] == "search"}


def found_of(indexed: Indexed, server: opensearch.OpenSearch, query: dict[str, Any]) -> set[str]:
    """The ids that the query finds among the ordinary records: what the hostile ones say, nobody can tell."""
    known = [each.known["audit.record.id"] for each in indexed.sent if each.known]
    asked = {"query": {"bool": {"filter": [query, {"terms": {"_id": known}}]}}, "size": RECORDS, "_source": False}
    return {hit["_id"] for hit in server.call("POST", f"/{STREAM}/_search", asked)["hits"]["hits"]}


def meant(indexed: Indexed, check: Callable[[dict[str, Any]], bool]) -> set[str]:
    return {each.known["audit.record.id"] for each in indexed.sent if each.known and check(each.known)}


@pytest.mark.parametrize("lucene", QUESTIONS)
def test_an_auditor_finds_what_was_asked_for(indexed: Indexed, server: opensearch.OpenSearch, lucene: str) -> None:
    expected = meant(indexed, QUESTIONS[lucene])
    assert expected
    assert found_of(indexed, server, {"query_string": {"query": lucene}}) == expected


def test_an_auditor_finds_a_path_by_its_end(indexed: Indexed, server: opensearch.OpenSearch) -> None:
    expected = meant(indexed, lambda known: known["url.path"].endswith("i-77"))
    assert len(expected) == 1
    assert found_of(indexed, server, {"wildcard": {"url.path": "*i-77"}}) == expected


@pytest.mark.parametrize("name", saved_searches())
def test_a_saved_search_finds_what_its_title_says(indexed: Indexed, server: opensearch.OpenSearch, name: str) -> None:
    source = json.loads(saved_searches()[name]["kibanaSavedObjectMeta"]["searchSourceJSON"])
    assert source["query"]["language"] == "lucene"
    found = found_of(indexed, server, {"query_string": {"query": source["query"]["query"]}})
    assert found == meant(indexed, SAVED[name])


def test_a_document_is_what_was_sent_to_the_nanosecond(indexed: Indexed, server: opensearch.OpenSearch) -> None:
    first = next(each.known for each in indexed.sent if each.known)
    found = server.call("GET", f"/{STREAM}/_search", {"query": {"ids": {"values": [first["audit.record.id"]]}}})
    [hit] = found["hits"]["hits"]
    assert hit["_source"]["@timestamp"] == "2026-09-21T14:13:21.123456789Z"
    assert hit["_source"]["event"]["sequence"] == first["audit.sequence.number"]


def test_a_server_that_refuses_a_request_is_quoted(server: opensearch.OpenSearch) -> None:
    with pytest.raises(servers.ServerError, match=r"answered 404 to GET /nothing.*index_not_found"):
        server.call("GET", "/nothing/_search")
