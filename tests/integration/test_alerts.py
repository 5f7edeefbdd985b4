"""Each alert of collector/alerts.yaml, provoked by its fault at a real Collector that a real Prometheus watches.

Only the rules' times are changed, all in the same way: a minute passes in a second, and longer times stay longer
(`hastened`). All faults stand at the same time, each at a Collector of its own, beside one that has none: so the whole
takes about as long as the slowest alert. One alert is not here: it needs the `elasticsearch` exporter (see
tests/test_alerts.py).
"""

from __future__ import annotations

import json
import re
import resource
import threading
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import httpx
import pytest
from opentelemetry import metrics as api
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from ruamel.yaml import YAML

from collector import launch
from collector.prometheus_server import Prometheus, prometheus
from tests.integration.faulty import Faulty, passing, status
from tests.integration.gateway import ANSWER_SECONDS_MAX, EXEC, SETTINGS, Gateway, encoded, record, request
from tron_audit_otel import metrics
from tron_audit_otel.answer import Fate
from tron_audit_otel.ledger import Counts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from collector.servers import VictoriaLogs

COLLECTOR: Final = Path(launch.__file__).parent
JOB: Final = "tron-audit-collector"
APPLICATION: Final = "platform-api"

SCRAPE_SECONDS: Final = 1
WAIT_SECONDS_MAX: Final = 120
RECORDS_A_REQUEST: Final = 10
REQUEST_SECONDS: Final = 0.25

DATADOG, ELASTIC, ARCHIVE = "otlp_http/datadog", "otlp_http/elastic-otlp", "file/archive"

# Alert, the Collector at which it fires, and the exporter it is about.
FIRES: Final = [
    ("TronAuditArchiveOld", "", ""),
    ("TronAuditSiemRefuses", "refused", DATADOG),
    ("TronAuditSiemDead", "refused", ELASTIC),
    ("TronAuditQueueFills", "full", DATADOG),
    ("TronAuditQueueFullSoon", "full", DATADOG),
    ("TronAuditQueueTurnsAway", "full", DATADOG),
    ("TronAuditSendersRefused", "full", ""),
    ("TronAuditQueueTurnsAway", "disk", DATADOG),
    ("TronAuditArchiveFails", "disk", ""),
    ("TronAuditMemory", "memory", ""),
    ("TronAuditSendersRefused", "memory", ""),
    ("TronAuditArchiveMissing", "unarchived", ""),
    ("TronAuditCollectorRestarts", "unstable", ""),
    ("TronAuditCollectorDown", "unstable", ""),
    ("TronAuditRecordsLost", APPLICATION, ""),
    ("TronAuditRequestsRefused", APPLICATION, ""),
    ("TronAuditJournalWaits", APPLICATION, ""),
    ("TronAuditDeadLetters", APPLICATION, ""),
]
# What is not mended here, and three restarts, which count for an hour.
STAYS: Final = {
    ("TronAuditArchiveMissing", "unarchived"),
    ("TronAuditCollectorRestarts", "unstable"),
    ("TronAuditMemory", "memory"),
    ("TronAuditSendersRefused", "memory"),
}

Firing = tuple[str, str, str]


def hastened(duration: str) -> str:
    """A duration, or an expression with some, in which a minute is a second; past ten, four minutes are."""

    def shorter(found: re.Match[str]) -> str:
        minutes = int(found[1]) * {"m": 1, "h": 60}[found[2]]
        return f"{min(minutes, 10) + max(0, minutes - 10) // 4}s"

    return re.sub(r"\b(\d+)([mh])\b", shorter, duration)


class App:
    """The library's own instruments, the SDK, OTLP to Prometheus; the test sets what they count."""

    def __init__(self, url: str) -> None:
        self.counts = Counts()
        exporter = OTLPMetricExporter(url)
        self._reader = PeriodicExportingMetricReader(exporter, export_interval_millis=SCRAPE_SECONDS * 1000)
        resource = Resource({"service.name": APPLICATION, "service.instance.id": APPLICATION})
        self._provider = MeterProvider([self._reader], resource, shutdown_on_exit=False)
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> Self:
        self._patch.setattr(api, "get_meter", self._provider.get_meter)
        self._patch.setattr(metrics, "_watched", [])
        metrics.duration.cache_clear()
        metrics.watch(self.seen)
        return self

    def __exit__(self, *_: object) -> None:
        self._provider.shutdown()
        metrics.duration.cache_clear()
        self._patch.undo()

    def seen(self) -> tuple[Counts, Counts]:
        metrics.sent(0.01, Fate.DELIVERED)
        return self.counts, Counts()


class Traffic:
    """Sends each of these Collectors a request every so often; what it answers is its own affair."""

    def __init__(self, bodies: Mapping[Gateway, bytes]) -> None:
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._send, args=pair, daemon=True) for pair in bodies.items()]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _send(self, gateway: Gateway, body: bytes) -> None:
        headers = {"Content-Type": "application/json"}
        with httpx.Client(headers=headers, timeout=ANSWER_SECONDS_MAX, trust_env=False) as client:
            while not self._over.wait(REQUEST_SECONDS):
                client.post(gateway.url, content=body)


class Scene:
    """A Collector for each fault, one without any, an application, and Prometheus, which watches them all."""

    def __init__(self, otelcol: Path, directory: Path, store: VictoriaLogs) -> None:
        self._stack = ExitStack()
        self.told: dict[str, str] = {}
        self._seen: set[Firing] = set()
        self._mended = False
        self._began = time.time()
        good = f"{store.url}/insert/opentelemetry/v1/logs"
        self._refusing, self._dead = Faulty(good), Faulty(good)
        healthy, refused, dead = (_datadog(url) for url in (good, self._refusing.url, self._dead.url))
        elastic = {**SETTINGS["elastic-otlp"], "ELASTIC_OTLP_URL": self._dead.url.removesuffix("/v1/logs")}
        settings = {
            "healthy": healthy,
            "replayed": healthy,
            "refused": {**refused, **elastic},
            "full": {**dead, "AUDIT_COLLECTOR_QUEUE_BYTES": "300000"},
            "disk": healthy,
            "memory": {"AUDIT_COLLECTOR_MEMORY_MIB": "1"},
            "unstable": {},
        }
        # Made where they are started: until then, another one could be given their ports.
        self._making: dict[str, Callable[[], Gateway]] = {
            **{name: partial(Gateway, otelcol, directory / name, each) for name, each in settings.items()},
            "unarchived": partial(_without_archive, otelcol, directory),
        }
        self._directory = directory

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._gateways = {name: stack.enter_context(make()) for name, make in self._making.items()}
            self._names = {_address(gateway): name for name, gateway in self._gateways.items()}
            stack.enter_context(self._refusing)
            stack.enter_context(self._dead)
            config = _prometheus_config(self._directory, list(self._names))
            self.prometheus: Prometheus = stack.enter_context(prometheus(config))
            self._app = stack.enter_context(App(self.prometheus.otlp_url))
            self._fault(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _fault(self, stack: ExitStack) -> None:
        unstable = self._gateways["unstable"]
        self._await_rows("up == 1", len(self._gateways))
        self._app.counts = Counts(emitted=1, delivered=1)
        for lives in range(1, 4):
            seen = f'last_over_time(target_info{{instance="{_address(unstable)}"}}[1h])'
            self._await_rows(seen, lives)
            unstable.server.restart()
        self._app.counts = Counts(emitted=2, delivered=2)
        # Before any Collector gets a record: the application made some, and they must be elsewhere.
        self.await_firing("TronAuditArchiveOld", "", "")
        self._refusing.fault, self._dead.fault = status(401), status(503)
        self._limit_files(0)
        self._app.counts = Counts(9, 3, dead_lettered=1, dropped={"disk_full": 2}, pending=3, rejected=1)
        body = request(*[record(EXEC)] * RECORDS_A_REQUEST)
        bodies = {gateway: body for name, gateway in self._gateways.items() if name != "unstable"}
        bodies[self._gateways["replayed"]] = _marked(body, "datadog")
        stack.enter_context(Traffic(bodies))
        unstable.server.kill()

    def _await_rows(self, promql: str, rows: int) -> None:
        _until(lambda: len(self.prometheus.query(promql)) == rows, lambda: f"{promql}: not {rows} rows")

    def _limit_files(self, bytes_max: int) -> None:
        """No file of that Collector may grow past so many bytes: the system's own EFBIG, as on a full disk."""
        pid = self._gateways["disk"].server.pid
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (bytes_max, hard))

    def mend(self) -> None:
        """Waits for every alert, then ends every fault that can be ended here, and waits for the end of its alert."""
        if self._mended:
            return
        for alert in FIRES:
            self.await_firing(*alert)
        self._refusing.fault = self._dead.fault = passing
        self._limit_files(resource.RLIM_INFINITY)
        if not self._gateways["unstable"].server.running:
            self._gateways["unstable"].server.start()
        self._app.counts = Counts(9, 6, dead_lettered=1, dropped={"disk_full": 2}, rejected=1)
        for alert in FIRES:
            if alert[:2] not in STAYS:
                self.await_end(*alert)
        self._mended = True

    def firing(self) -> set[Firing]:
        """What fires at present: alert, Collector or application, exporter."""
        alerts = self.prometheus.alerts()
        self.told |= {alert["labels"]["alertname"]: " ".join(alert["annotations"].values()) for alert in alerts}
        found = [alert["labels"] for alert in alerts]
        wheres = [self._names.get(labels.get("instance", ""), labels.get("instance", "")) for labels in found]
        now = {
            (labels["alertname"], where, labels.get("exporter", ""))
            for labels, where in zip(found, wheres, strict=True)
        }
        self._seen |= now
        return now

    def seen(self) -> set[Firing]:
        """What has been firing at any moment at which somebody looked."""
        return self._seen | self.firing()

    def await_firing(self, *alert: str) -> None:
        _until(lambda: alert in self.seen(), lambda: f"{alert} did not fire; {self._seen} did")

    def await_end(self, *alert: str) -> None:
        _until(lambda: alert not in self.firing(), lambda: f"{alert} goes on")

    def fired(self, name: str) -> set[str]:
        """What has fired so far at a Collector, by Prometheus's own account."""
        [address] = [address for address, each in self._names.items() if each == name]
        query = f'last_over_time(ALERTS{{alertstate="firing", instance="{address}"}}[1h])'
        return {row["metric"]["alertname"] for row in self.prometheus.query(query)}

    def was_silent(self, name: str) -> bool:
        """Whether a Collector once kept Prometheus waiting for too long, as one may on a machine that is busy."""
        [address] = [address for address, each in self._names.items() if each == name]
        return bool(self.prometheus.query(f'min_over_time(up{{instance="{address}"}}[1h]) == 0'))

    def shows(self, promql: str) -> bool:
        """Whether the query gave anything at any moment so far."""
        return bool(self.prometheus.query_range(promql, self._began, time.time()))


def _marked(body: bytes, siem: str) -> bytes:
    """The request as a replay for that SIEM sends it."""
    message = json.loads(body)
    message["resourceLogs"][0]["resource"]["attributes"] += encoded({"audit.replay.to": siem})
    return json.dumps(message).encode()


def _datadog(url: str) -> dict[str, str]:
    return {**SETTINGS["datadog"], "DD_OTLP_LOGS_URL": url}


def _address(gateway: Gateway) -> str:
    return gateway.metrics.split("/")[2]


def _without_archive(otelcol: Path, directory: Path) -> Gateway:
    """A Collector whose operator has taken the archive out of its pipeline."""
    base = YAML(typ="safe").load(launch.BASE)
    base["exporters"] = {"nop": None}
    base["service"]["pipelines"]["logs/archive"]["exporters"] = ["nop"]
    file = directory / "base.yaml"
    file.write_text(json.dumps(base))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "BASE", file)
        return Gateway(otelcol, directory / "unarchived", {})


def _prometheus_config(directory: Path, targets: list[str]) -> Path:
    """The shipped configuration and rules, with these targets, and with time that passes faster."""
    rules = YAML(typ="safe").load(COLLECTOR / "alerts.yaml")
    for group in rules["groups"]:
        for rule in group["rules"]:
            rule["expr"] = hastened(rule["expr"])
            if "for" in rule:
                rule["for"] = hastened(rule["for"])
    (directory / "alerts.yaml").write_text(json.dumps(rules))
    config = YAML(typ="safe").load(COLLECTOR / "prometheus" / "prometheus.yaml")
    interval = f"{SCRAPE_SECONDS}s"
    config["global"] = {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval}
    config["rule_files"] = ["alerts.yaml"]
    [job] = config["scrape_configs"]
    job["static_configs"] = [{"targets": targets}]
    file = directory / "prometheus.yaml"
    file.write_text(json.dumps(config))
    return file


def _until(found: Callable[[], bool], what: Callable[[], str]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while not found():
        assert time.monotonic() < deadline, f"{what()}, within {WAIT_SECONDS_MAX} s"
        time.sleep(0.25)


@pytest.fixture(scope="module")
def scene(otelcol: Path, tmp_path_factory: pytest.TempPathFactory, store: VictoriaLogs) -> Iterator[Scene]:
    with Scene(otelcol, tmp_path_factory.mktemp("alerts"), store) as made:
        yield made


@pytest.mark.parametrize(("alert", "where", "exporter"), FIRES)
def test_a_fault_makes_its_alert_fire(scene: Scene, alert: str, where: str, exporter: str) -> None:
    scene.await_firing(alert, where, exporter)


def test_what_was_mended_ends_its_alert(scene: Scene) -> None:
    scene.mend()


def test_what_an_alert_tells_is_filled_in(scene: Scene) -> None:
    scene.mend()
    assert scene.told.keys() >= {alert for alert, *_ in FIRES}
    # Prometheus puts its own errors into the text, and nothing in the place of a label that is not there.
    assert [text for text in scene.told.values() if "<error" in text or "<no value>" in text or "  " in text] == []


def test_another_siem_of_the_same_collector_is_not_accused(scene: Scene) -> None:
    scene.mend()
    assert not scene.seen() & {
        ("TronAuditSiemDead", "refused", DATADOG),
        ("TronAuditSiemRefuses", "refused", ELASTIC),
        ("TronAuditSiemRefuses", "full", DATADOG),
    }


def test_every_rule_is_provoked() -> None:
    rules = YAML(typ="safe").load(COLLECTOR / "alerts.yaml")
    names = [rule["alert"] for group in rules["groups"] for rule in group["rules"]]
    # The one wants an exporter that is not here, the other a loss that happens by chance; promtool plays both.
    unprovoked = {"TronAuditElasticsearchRefuses", "TronAuditSiemLacks"}
    assert set(names) == {alert for alert, *_ in FIRES} | unprovoked
    assert len(set(names)) == len(names)


# The one gets nothing but what is sent again for its SIEM, which is not to be archived.
@pytest.mark.parametrize("name", ["healthy", "replayed"])
def test_a_collector_without_a_fault_has_no_alert(scene: Scene, name: str) -> None:
    scene.mend()
    assert scene.fired("full")
    # What is true is no false alarm.
    assert scene.fired(name) <= ({"TronAuditCollectorDown"} if scene.was_silent(name) else set())


def _expressions() -> Iterator[Any]:
    dashboard = json.loads((COLLECTOR / "grafana-dashboard.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield pytest.param(target["expr"], id=f"{panel['title']}, {target['legendFormat']}")
    for annotation in dashboard["annotations"]["list"]:
        yield pytest.param(annotation["expr"], id=annotation["name"])
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield pytest.param(variable["query"]["query"], id=variable["name"])


@pytest.mark.parametrize("expression", list(_expressions()))
def test_every_panel_shows_something(scene: Scene, expression: str) -> None:
    scene.mend()  # so each failure has been counted, and a queue has drained
    for name, value in {"$instance": ".*", "$__rate_interval": "5s", "$__range": "1h"}.items():
        expression = expression.replace(name, value)
    expression = re.sub(r"label_values\((.+), (\w+)\)", r"count by (\2) (\1)", hastened(expression))  # as Grafana asks
    assert scene.shows(expression), f"nothing at any moment: {expression}"


def test_the_scrape_is_as_the_panels_names_are(scene: Scene) -> None:
    url = f"{scene.prometheus.url}/api/v1/label/__name__/values"
    names = httpx.get(url, timeout=ANSWER_SECONDS_MAX, trust_env=False).json()["data"]
    assert "http_client_request_duration_count" in names
    assert not [name for name in names if "." in name]
