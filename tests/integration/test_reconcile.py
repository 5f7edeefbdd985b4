"""What a SIEM lacks is found by its own search, and sent again: real Collector, VictoriaLogs and OpenSearch."""

from __future__ import annotations

import json
import threading
import time
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from collector import launch
from collector.opensearch import OpenSearch, opensearch
from tests.integration.faulty import Faulty, status
from tests.integration.gateway import EXEC, Gateway, eventually, hasten, hasty, record, settings_of
from tests.test_search import HOSTILE
from tron_audit_otel import cli, cli_queue, cli_replay, collector_metrics, reconcile
from tron_audit_otel.archive import Span
from tron_audit_otel.search_elasticsearch import Elasticsearch
from tron_audit_otel.search_http import Client
from tron_audit_otel.search_victorialogs import VictoriaLogs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from collector import servers
    from tests.integration.faulty import Call, Fault, Reply

BEGAN_NS = time.time_ns() - 3600 * 10**9
SPAN = Span(BEGAN_NS, BEGAN_NS + 3600 * 10**9)
TENANTS = {"datadog": 7, "elastic-otlp": 8}
FIELDS = {"datadog": "audit.record.id", "elastic-otlp": "event.id"}
MAPPINGS = launch.HERE / "siem" / "elasticsearch" / "mappings.json"


def to_tenant(tenant: int, taken: Callable[[], None]) -> Fault:
    """Passes on, as what a tenant of the store has sent; `taken` is called before the answer is given back."""

    def fault(call: Call) -> Reply:
        reply = call.upstream(call.path, {**call.headers, "AccountID": str(tenant)}, call.body)
        taken()
        return reply

    return fault


class Stage:
    """The Collector with two SIEMs, each a tenant of the store behind a proxy that can fail."""

    def __init__(self, gateway: Gateway, proxies: Mapping[str, Faulty], store: servers.VictoriaLogs) -> None:
        self.gateway = gateway
        self.proxies = proxies
        self.store = store

    def mend(self, siem: str, taken: Callable[[], None] | None = None) -> None:
        """By default its search then shows each record that the SIEM has acknowledged."""
        self.proxies[siem].fault = to_tenant(TENANTS[siem], taken or self.store.flush)

    def send(self, ids: Sequence[str]) -> None:
        answer = self.gateway.send(*(new(number, each) for number, each in enumerate(ids)))
        assert answer.status_code == 200

    def siem(self, name: str) -> collector_metrics.Siem:
        [found] = [siem for siem in collector_metrics.read(self.gateway.metrics).siems if siem.name == name]
        return found

    def stored(self, siem: str) -> list[str]:
        """The ids that the SIEM has, as often as it has them."""
        self.store.flush()
        return [row[FIELDS[siem]] for row in self.store.query("*", TENANTS[siem])]


def new(number: int, record_id: str) -> dict[str, Any]:
    made = record({**EXEC, "audit.record.id": record_id})
    return {**made, "timeUnixNano": str(BEGAN_NS + number), "observedTimeUnixNano": str(BEGAN_NS + number)}


def ids(count: int) -> list[str]:
    return [str(uuid4()) for _ in range(count)]


@pytest.fixture
def stage(otelcol: Path, tmp_path: Path, store: servers.VictoriaLogs) -> Iterator[Stage]:
    base = f"{store.url}/insert/opentelemetry"
    with Faulty(base) as datadog, Faulty(base) as elastic:
        settings = {
            **settings_of(["datadog", "elastic-otlp"]),
            "DD_OTLP_LOGS_URL": f"{datadog.url}/v1/logs",
            "ELASTIC_OTLP_URL": elastic.url,
        }
        with Gateway(otelcol, tmp_path / "collector", settings, hasty(tmp_path, *TENANTS)) as gateway:
            found = Stage(gateway, {"datadog": datadog, "elastic-otlp": elastic}, store)
            for siem in TENANTS:
                found.mend(siem)
            yield found


@pytest.fixture
def reconciled(
    stage: Stage, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Any:
    """Runs the command; gives its exit code and what `--json` prints."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    hasten(monkeypatch, (cli_queue, "LOOK_SECONDS"), (cli_replay, "SETTLE_SECONDS"), (reconcile, "LOOK_SECONDS"))

    def run(siem: str, *options: str) -> tuple[int, dict[str, Any]]:
        environ = {
            "AUDIT_COLLECTOR_DATA": str(stage.gateway.data),
            "AUDIT_COLLECTOR_METRICS_PORT": stage.gateway.metrics.split(":")[2].partition("/")[0],
            "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": stage.gateway.url,
            "VICTORIALOGS_URL": stage.store.url,
            "VICTORIALOGS_TENANT": f"{TENANTS[siem]}:0",
        }
        typed = ["reconcile", "--siem", siem, "--since", "1d", "--search", "victorialogs", "--json", "--pause", "0.1"]
        code = cli.main([*typed, *options], environ)
        out, err = capsys.readouterr()
        assert "error" not in err
        return code, json.loads(out)

    return run


@pytest.mark.parametrize("siem", sorted(TENANTS))
def test_what_a_siem_refused_is_found_and_sent_again_to_it_alone(stage: Stage, reconciled: Any, siem: str) -> None:
    [other] = TENANTS.keys() - {siem}
    before = {name: stage.stored(name) for name in TENANTS}
    there = [*ids(30), *ids(30)]
    lost = [*ids(40), *(f"{each} {uuid4()}" for each in HOSTILE if reconcile.can_be_asked(each))]
    stage.send(there[:30])
    eventually(lambda: stage.siem(siem).delivered >= 30, "the first delivery")
    stage.proxies[siem].fault = status(401)
    stage.send(lost)
    eventually(lambda: stage.siem(siem).refused == len(lost), "the refusal")
    stage.mend(siem)
    stage.send(there[30:])
    eventually(lambda: stage.siem(siem).delivered >= 60, "the last delivery")
    eventually(lambda: stage.siem(other).delivered >= 60 + len(lost), "the other's delivery")

    code, found = reconciled(siem, "--dry-run")
    assert (code, found["missing"], found["replay"]) == (1, len(lost), None)
    assert found["archived"] == 60 + len(lost)
    assert found["missing_ids"] == sorted(lost)
    assert len(found["first"]) == 20
    assert found["first"][0] == {
        "id": min(lost),
        "time": found["first"][0]["time"],
        "actor": EXEC["audit.actor.id"],
        "action": "EXEC",
    }

    code, found = reconciled(siem, "--until", "2100-01-01")
    assert (code, found["missing"], found["still_missing"]) == (0, len(lost), 0)
    assert found["replay"]["sent"] == len(lost)
    assert found["mended"] == len(lost)

    code, found = reconciled(siem)
    assert (code, found["missing"], found["archived"], found["replay"]) == (0, 0, 60 + len(lost), None)
    assert sorted(stage.stored(siem)) == sorted([*before[siem], *there, *lost])
    assert sorted(stage.stored(other)) == sorted([*before[other], *there, *lost])
    assert len(stage.gateway.archived()) == 60 + len(lost)


def test_what_waits_at_the_collector_is_named_and_not_sent_twice(stage: Stage, reconciled: Any) -> None:
    before = stage.stored("datadog")
    waiting = ids(20)
    stage.proxies["datadog"].fault = status(503)
    stage.send(waiting)
    eventually(stage.proxies["datadog"].statuses, "an attempt")

    code, found = reconciled("datadog", "--wait", "1")
    assert (code, found["missing_ids"], found["replay"]) == (1, sorted(waiting), None)
    assert "records wait for datadog at the Collector" in found["obstacle"]

    stage.mend("datadog")
    code, found = reconciled("datadog", "--wait", "60")
    assert (code, found["archived"], found["missing"], found["replay"]) == (0, 20, 0, None)
    assert sorted(stage.stored("datadog")) == sorted([*before, *waiting])


def test_a_siem_that_takes_records_all_the_time_is_mended_meanwhile(stage: Stage, reconciled: Any) -> None:
    lost = ids(20)
    stage.proxies["datadog"].fault = status(401)
    stage.send(lost)
    eventually(lambda: stage.siem("datadog").refused == 20, "the refusal")
    over = threading.Event()

    def taken() -> None:
        over.wait(0.3)  # so that the queue is never empty
        stage.store.flush()

    stage.mend("datadog", taken)

    def send() -> None:
        while not over.wait(0.05):
            stage.gateway.send(*(record({**EXEC, "audit.record.id": each}) for each in ids(10)))

    thread = threading.Thread(target=send)
    thread.start()
    try:
        eventually(lambda: stage.siem("datadog").waiting_bytes, "records that wait")
        code, found = reconciled("datadog", "--wait", "60")
    finally:
        over.set()
        thread.join()
    assert (code, found["missing_ids"], found["replay"]["sent"]) == (0, sorted(lost), 20)


def test_a_siem_that_still_refuses_is_told(stage: Stage, reconciled: Any) -> None:
    lost = ids(5)
    stage.proxies["datadog"].fault = status(401)
    stage.send(lost)
    eventually(
        lambda: (found := stage.siem("datadog")).refused == 5 and not found.waiting_bytes,
        "the refusal, and an empty queue",
    )

    code, found = reconciled("datadog", "--wait", "1")
    assert (code, found["still_missing_ids"], found["replay"]["sent"]) == (1, sorted(lost), 5)


def test_no_id_confuses_the_store(store: servers.VictoriaLogs) -> None:
    strange = [*HOSTILE, *(chr(each) * 3 for each in range(1, 0x250)), *(f"{each}\u2028" for each in HOSTILE)]
    rows = [{"_time": str(BEGAN_NS), "_msg": "-", "audit.record.id": each} for each in strange[::2]]
    client = Client(store.url, {"AccountID": "9"})
    client.post("/insert/jsonline", data="\n".join(map(json.dumps, rows)).encode())
    store.flush()
    assert VictoriaLogs(client, "audit.record.id").ids(strange, SPAN) == set(strange[::2])
    assert VictoriaLogs(client, "audit.record.id").ids(strange, Span(0, 1)) == set(strange[::2])  # until now, always


@pytest.fixture(scope="module")
def elastic() -> Iterator[OpenSearch]:
    with opensearch() as server:
        properties = json.loads(MAPPINGS.read_text())["template"]["mappings"]["properties"]
        wanted = {"@timestamp": properties["@timestamp"], "event": properties["event"]}
        template = {"mappings": {"dynamic": False, "properties": wanted}}
        patterns = ["logs-tron.audit-*", "logs-tron.audit.otel-*"]
        server.call("PUT", "/_index_template/it", {"index_patterns": patterns, "data_stream": {}, "template": template})
        yield server


def store_in(server: OpenSearch, stream: str, each: Sequence[str]) -> None:
    create = json.dumps({"create": {"_index": stream}})
    documents = [{"@timestamp": "2026-01-01T00:00:00Z", "event": {"id": text}} for text in each]
    outcomes = server.bulk("".join(f"{create}\n{json.dumps(document)}\n" for document in documents).encode())
    assert {outcome["status"] for outcome in outcomes} == {201}
    server.call("POST", f"/{stream}/_refresh")


def test_opensearch_without_any_data_stream_has_nothing(elastic: OpenSearch) -> None:
    assert Elasticsearch(Client(elastic.url)).ids(["a"], SPAN) == set()


def test_opensearch_gives_each_id_once_however_often_it_is_stored(elastic: OpenSearch) -> None:
    there, lacking = [*ids(1_500), *HOSTILE], [*ids(1_500), *(f"{each}x" for each in HOSTILE)]
    store_in(elastic, "logs-tron.audit-default", there[:1_000] * 3)
    store_in(elastic, "logs-tron.audit.otel-default", there[500:])
    store_in(elastic, "logs-tron.audit-production", there[:10])
    assert Elasticsearch(Client(elastic.url)).ids([*there, *lacking], SPAN) == set(there)
