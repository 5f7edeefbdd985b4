"""The demo's verdict: exit code 0 must mean that every record arrived exactly once everywhere, and nothing else did."""

from __future__ import annotations

import json
import threading
from collections import Counter
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from rich.console import Console
from ruamel.yaml import YAML

from collector import launch
from collector.servers import ServerError
from examples.demo import __main__ as demo
from examples.demo import compose, evidence, outage, refusal, stage, traffic
from tron_audit_otel import journal_dir
from tron_audit_otel.disk_journal import DiskJournal, adopt

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from examples.demo.evidence import Evidence

SIEM = "http"


def log_record(record_id: str, action: str = "DELETE", **attributes: str) -> dict[str, Any]:
    """Return a record as OTLP/JSON has it."""
    values = {
        "audit.record.id": record_id,
        "audit.actor.id": "alice@example.com",
        "audit.action": action,
        "audit.resource": "webapps/web-shop",
        "audit.outcome": "success",
        "client.address": "192.0.2.7",
    } | attributes
    listed = [{"key": name, "value": {"stringValue": value}} for name, value in values.items()]
    status = {"key": "http.response.status_code", "value": {"intValue": "204"}}
    return {"timeUnixNano": "1000000000", "attributes": [*listed, status]}


DELETED = traffic.Fact("alice@example.com", "DELETE", "webapps/web-shop", "204", "success")


@dataclass
class FakeStore:
    """A log store that has these rows, whatever it is asked."""

    rows: list[dict[str, str]] = field(default_factory=list)

    def query(self, _query: str, _tenant: int) -> list[dict[str, str]]:
        return self.rows

    def flush(self) -> None:
        pass


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "ARRIVAL_SECONDS_MAX", 0)
    monkeypatch.setattr(evidence, "SETTLE_SECONDS", 0)


def collect(archived: list[dict[str, Any]], rows: list[dict[str, str]], *expected: traffic.Fact) -> Evidence:
    request = {"resourceLogs": [{"scopeLogs": [{"logRecords": archived}]}]}
    running = SimpleNamespace(archive=lambda: [request], siems=(SIEM,), store=FakeStore(rows))
    return evidence.collect(cast("stage.Stage", running), expected)


def test_all_is_well_when_every_record_arrived_once() -> None:
    found = collect([log_record("id-1")], [{"some.other.name": "id-1"}], DELETED)
    assert found.problems() == []
    assert found.found == {"archive": Counter({"id-1": 1}), SIEM: Counter({"id-1": 1})}


@pytest.mark.parametrize(
    ("archived", "rows", "expected", "problem"),
    [
        pytest.param(["id-1"], [], 1, "http has 0 instead of 1 of: alice", id="a SIEM lacks it"),
        pytest.param(["id-1"], ["id-1", "id-1"], 1, "http has 2 instead of 1 of: alice", id="a SIEM has it twice"),
        pytest.param(
            ["id-1", "id-1"], ["id-1"], 1, "archive has 2 instead of 1 of: alice", id="the archive has it twice"
        ),
        pytest.param([], ["id-1"], 0, "http has a record that the archive lacks", id="the archive lacks it"),
        pytest.param([], [], 1, "no record says: alice@example.com DELETE", id="it was never recorded"),
        pytest.param(["id-1"], ["id-1"], 0, "nothing that was done explains: alice", id="nobody did it"),
        pytest.param(
            ["id-1", "id-2"], ["id-1", "id-2"], 1, "nothing that was done explains", id="recorded under two ids"
        ),
    ],
)
def test_a_problem_is_told(archived: list[str], rows: list[str], expected: int, problem: str) -> None:
    found = collect([log_record(each) for each in archived], [{"id": each} for each in rows], *[DELETED] * expected)
    (told,) = found.problems()
    assert problem in told


def shown(found: Evidence, width: int, but: tuple[evidence.Record, ...] = ()) -> list[list[str]]:
    console = Console(width=width, record=True, file=None, quiet=False)
    with console.capture() as captured:
        console.print(evidence.table(found, width, but=but))
    return [line.split() for line in captured.get().splitlines() if "alice@example.com" in line]


@pytest.mark.parametrize("width", [80, 120, 160])
def test_every_record_is_shown_with_its_counts_in_a_terminal_of_any_width(width: int) -> None:
    records = [log_record("id-1"), log_record("id-2", "READ", **{"audit.resource": "pods/[red]x"})]
    found = collect(records, [{"id": "id-1"}, {"id": "id-2"}, {"id": "id-2"}])
    facts = ["00:00:01", "alice@example.com"]
    deleted = [*facts, "DELETE", "webapps/web-shop", "204", "success", "192.0.2.7", "1", "1"]
    read = [*facts, "READ", "pods/[red]x", "204", "success", "192.0.2.7", "1", "2"]
    assert shown(found, width) == [deleted, read]
    assert shown(found, width, found.records[:1]) == [read]


class Machine:
    """An API and a Collector with nothing but a journal, and the moments at which they were killed and started."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.happened: list[tuple[str, int]] = []
        self.journal = self.begin()
        self.adopted: list[DiskJournal] = []
        api, collector = (
            SimpleNamespace(pid=pid, kill=self.noting(f"{name} killed"), start=self.noting(f"{name} started", then))
            for pid, name, then in ((1, "api", self.succeed), (2, "collector", self.take))
        )
        self.processes = stage.Processes(cast("Any", api), cast("Any", collector), root, root / "token", {})

    def begin(self) -> DiskJournal:
        return DiskJournal.create(self.root, bytes_max=1 << 20, fsync=False)

    def noting(self, what: str, then: Callable[[], None] = lambda: None) -> Callable[[], None]:
        def act() -> None:
            self.happened.append((what, sum(state.records for state in journal_dir.inspect(self.root))))
            then()

        return act

    def step(self, seconds: float) -> traffic.Step:
        """An answer whose record reaches the disk that much later."""
        act = threading.Timer(seconds, self.journal.append, (b"a record", 1)).start
        return traffic.Step("alice deletes a webapp", act, (DELETED,))

    def succeed(self) -> None:
        self.journal.close()
        self.adopted = adopt(self.root)
        self.journal = self.begin()
        self.journal.append(b"START and ADOPT", 2)

    def take(self) -> None:
        for journal in (self.journal, *self.adopted):
            # Once: what comes after that, nobody is there to take.
            chunk = journal.read(1 << 20)
            assert chunk is not None
            journal.acknowledge(chunk)


def test_nothing_is_killed_before_its_records_are_safe(tmp_path: Path) -> None:
    machine, said = Machine(tmp_path / "journal"), list[str]()
    on_the_way = machine.journal
    on_the_way.append(b"of the story", 3)
    threading.Timer(0.1, machine.take).start()
    steps = (machine.step(0.12), machine.step(0.15))
    facts = outage.play(machine.processes, steps, said.append)
    assert machine.happened == [
        ("collector killed", 0),
        ("api killed", 2),
        ("api started", 2),
        ("collector started", 4),
    ]
    assert facts == (DELETED, DELETED, traffic.START, traffic.ADOPT)
    assert [line.split()[0] for line in said] == ["kill", "requests", "on", "kill", "started", "started"]
    assert all(len(line) <= 80 for line in said)


def test_a_record_that_never_reaches_the_disk_stops_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "WAIT_SECONDS_MAX", 0.1)
    machine = Machine(tmp_path / "journal")
    forgotten = traffic.Step("alice deletes a webapp", lambda: None, (DELETED,))
    at_once = traffic.Step("alice deletes a pod", lambda: machine.journal.append(b"a record", 1), (DELETED,))
    with pytest.raises(ServerError, match=r"^1 instead of 2 records wait on disk after 0\.1 s$"):
        outage.play(machine.processes, (at_once, forgotten), lambda _: None)
    assert [what for what, _ in machine.happened] == ["collector killed"]


class Tools:
    """`tron-audit`, of which each call is noted with the token that the SIEM took then; it owes what it is told to."""

    def __init__(self, token: Path, *owed: int) -> None:
        self.token = token
        self.owed = [*owed]
        self.calls: list[tuple[str, str]] = []

    def __call__(self, _: stage.Processes, *arguments: str) -> str:
        self.calls.append((arguments[0], self.token.read_text()))
        siems = [{"name": SIEM, "owed": self.owed.pop(0)}] if "--json" in arguments else []
        return json.dumps({"siems": siems}) if siems else "Nothing is missing any more."


def processes(root: Path) -> stage.Processes:
    token = root / "token"
    token.write_text("s3cret")
    return stage.Processes(cast("Any", None), cast("Any", None), root, token, {})


def test_the_token_is_mended_before_what_is_missing_is_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, said = processes(tmp_path), list[str]()
    tools = Tools(running.siem_token, 0, 1)
    monkeypatch.setattr(refusal, "_tron_audit", tools)
    monkeypatch.setattr(refusal, "POLL_SECONDS", 0)
    taken: list[str] = []
    step = traffic.Step("alice deletes a webapp", lambda: taken.append(running.siem_token.read_text()), (DELETED,))
    assert refusal.play(running, (step,), said.append) == (DELETED,)
    assert taken == ["another"]
    assert tools.calls == [("status", "s3cret"), *[("status", "another")] * 2, ("reconcile", "s3cret")]
    assert [line.split()[0] for line in said] == ["token", "status", "token", "$", "Nothing"]


def test_a_siem_that_refuses_nothing_stops_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running = processes(tmp_path)
    monkeypatch.setattr(refusal, "_tron_audit", Tools(running.siem_token, 0))
    monkeypatch.setattr(refusal, "WAIT_SECONDS_MAX", -1)
    with pytest.raises(ServerError, match="http refused 0 of 1 records"):
        refusal.play(running, (traffic.Step("nothing", lambda: None, (DELETED,)),), lambda _: None)


@pytest.mark.parametrize(
    ("in_compose", "arrived", "line"),
    [
        pytest.param(True, True, "left out with docker compose", id="in compose"),
        pytest.param(False, False, "not everything has arrived", id="when the story did not arrive"),
    ],
)
def test_the_outage_is_left_out_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, in_compose: bool, arrived: bool, line: str
) -> None:
    monkeypatch.setattr(traffic, "story", lambda _: ())
    attributes = {"audit.actor.id": "tron_audit_otel", "audit.resource": "audit/trail", "audit.outcome": "success"}
    start = log_record("id-1", "START", **attributes)
    start["attributes"].pop()  # it has no status
    machine, said = Machine(tmp_path / "journal"), list[str]()
    running = SimpleNamespace(
        api_url="",
        archive=lambda: [{"resourceLogs": [{"scopeLogs": [{"logRecords": [start]}]}]}],
        siems=(SIEM,),
        store=FakeStore([{"id": "id-1"}] if arrived else []),
        processes=None if in_compose else machine.processes,
    )
    proof = demo._tell(Console(quiet=True), cast("stage.Stage", running), said.append)
    assert len(said) == 2
    assert line in said[1]
    assert (proof.problems() == []) is arrived
    assert machine.happened == []


def test_each_siem_writes_into_a_tenant_of_its_own() -> None:
    overlay = json.loads(stage.tenant_overlay(stage.TENANTS))
    tenants = {name: exporter["headers"]["AccountID"] for name, exporter in overlay["exporters"].items()}
    assert len(tenants) == len(set(tenants.values())) == len(launch.SIEMS)
    assert "0" not in tenants.values()
    assert tenants["otlp_http/http"] == str(stage.TENANTS["http"])


def test_every_siem_has_settings_that_turn_it_on() -> None:
    settings = stage.siem_settings("http://store", "http://gateway", "token")
    for siem in launch.SIEMS:
        assert launch.config_files(settings[siem.name]) == [launch.BASE, siem.file]


def test_the_compose_file_still_has_what_the_demo_adds_to(tmp_path: Path) -> None:
    project = YAML(typ="safe").load(stage.ROOT / "docker-compose.yaml")
    collector = project["services"]["collector"]
    assert any(volume.endswith(compose.ARCHIVE.partition(":")[2]) for volume in collector["volumes"])
    api = project["services"]["api"]
    assert any(volume.endswith(f":{api['environment']['AUDIT_LOG_JOURNAL_DIR']}") for volume in api["volumes"])
    collector["command"] = collector["command"].split()  # as docker compose resolves it
    added = compose.with_additions(project, tmp_path, "token")["services"]
    assert added["collector"]["command"][-1] == "--config=/etc/tron-audit/tenants.yaml"
    assert set(added["gateway"]["networks"]) <= set(collector["networks"])
    for name, port, variable in (("api", 8000, "API"), ("victorialogs", 9428, "VICTORIALOGS")):
        assert added[name]["ports"] == [f"127.0.0.1:${{AUDIT_COMPOSE_{variable}_PORT:-{port}}}:{port}"]
