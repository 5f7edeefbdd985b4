from __future__ import annotations

import gzip
import json
import os
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from tests.integration.gateway import record, request
from tests.search_fakes import FakeDatadog, Server, fault
from tron_audit_otel import archive, cli, collector_metrics, siem_looks
from tron_audit_otel.config import STATE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from tests.search_fakes import Reply

    Told = tuple[int, str, str]

METRICS = """\
# TYPE otelcol_process_uptime counter
otelcol_process_uptime 100
# TYPE otelcol_exporter_queue_size gauge
otelcol_exporter_queue_size{{exporter="otlp_http/datadog"}} {waiting}
# TYPE otelcol_exporter_queue_capacity gauge
otelcol_exporter_queue_capacity{{exporter="otlp_http/datadog"}} 1000000
# TYPE otelcol_exporter_send_failed_log_records counter
otelcol_exporter_send_failed_log_records{{exporter="otlp_http/datadog"}} {refused}
# TYPE otelcol_exporter_enqueue_size_sum counter
otelcol_exporter_enqueue_size_sum{{exporter="otlp_http/datadog"}} {taken}
"""


class FakeCollector(Server):
    """Takes OTLP, and hands on what is marked for Datadog; the real one is in tests/integration."""

    def __init__(self, datadog: FakeDatadog) -> None:
        super().__init__()
        self.waiting = 0
        self.refused = 0
        self.taken = 0
        self.loses = False
        self.on_taken: Callable[[], None] = lambda: None
        self._datadog = datadog

    def page(self) -> str:
        return METRICS.format(waiting=self.waiting, refused=self.refused, taken=self.taken)

    def answer(self, body: bytes, headers: Mapping[str, str]) -> Reply:
        is_packed = headers.get("Content-Encoding") == "gzip"
        message = ExportLogsServiceRequest.FromString(gzip.decompress(body) if is_packed else body)
        [mark] = {
            pair.value.string_value
            for of_resource in message.resource_logs
            for pair in of_resource.resource.attributes
            if pair.key == "audit.replay.to"
        }
        assert mark == "datadog"
        self.taken += sum(1 for _ in archive.log_records(message))
        if not self.loses:
            self._datadog.stored += tuple(map(archive.record_id, archive.log_records(message)))
        self.on_taken()
        return fault(200, Content_Type="application/x-protobuf")


@pytest.fixture
def datadog() -> Iterator[FakeDatadog]:
    with FakeDatadog() as server:
        yield server


@pytest.fixture
def collector(datadog: FakeDatadog) -> Iterator[FakeCollector]:
    with FakeCollector(datadog) as server:
        yield server


@pytest.fixture
def archived(tmp_path: Path) -> Callable[..., None]:
    """Writes records with these ids to the archive, by default an hour old."""

    def write(*ids: str, actor: str = "alice", hours: int = 1) -> None:
        directory = tmp_path / "data" / "archive"
        directory.mkdir(parents=True, exist_ok=True)
        at = str(time.time_ns() - hours * 3600 * 10**9)
        attributes = {"audit.actor.id": actor, "audit.action": "DELETE"}
        made = [{**record({**attributes, "audit.record.id": each}), "timeUnixNano": at} for each in ids]
        with (directory / "audit.jsonl").open("ab") as file:
            file.write(request(*made) + b"\n")

    return write


@pytest.fixture
def told(
    tmp_path: Path,
    datadog: FakeDatadog,
    collector: FakeCollector,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Told]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def run(*options: str, siem: str = "datadog", since: str = "2h", **environ: str) -> Told:
        settings = {
            "AUDIT_COLLECTOR_DATA": str(tmp_path / "data"),
            "AUDIT_COLLECTOR_METRICS_PORT": collector.url.rpartition(":")[2],
            "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": f"{collector.url}/v1/logs",
            "DD_API_KEY": "s3cret-api",
            "DD_APP_KEY": "s3cret-app",
            "DD_API_URL": datadog.url,
            **environ,
        }
        typed = ["reconcile", "--siem", siem, "--since", since, "--pause", "0", "--wait", "0", *options]
        code = cli.main(typed, settings)
        out, err = capsys.readouterr()
        assert "s3cret" not in out + err
        return code, out, err

    return run


Fixture = Any


def test_nothing_missing_is_said_in_three_lines(told: Fixture, archived: Fixture, datadog: FakeDatadog) -> None:
    archived("a", "b")
    datadog.stored = ("a", "b", "c")
    code, out, err = told()
    assert code == 0
    assert out.splitlines()[1:] == [
        "  2 records in the archive, 2 of them at the SIEM, 0 missing",
        "Nothing is missing.",
    ]
    assert "100 % of the archive read" in err


def test_what_is_missing_is_named_and_sent_again(told: Fixture, archived: Fixture, datadog: FakeDatadog) -> None:
    archived(*(f"id-{number:02}" for number in range(30)))
    datadog.stored = ("id-00",)
    code, out, _ = told()
    lines = out.splitlines()
    assert code == 0
    assert lines[1] == "  30 records in the archive, 1 of them at the SIEM, 29 missing"
    assert lines[2].startswith("  id-01  2")
    assert lines[2].endswith("Z  alice DELETE")
    assert lines[22] == "  and 9 more; --missing-to FILE has all"
    assert "Sent to the Collector for datadog: 29 records" in lines[23]
    assert lines[-1] == "Found since: all 29. Nothing is missing any more."
    assert sorted(datadog.stored) == [f"id-{number:02}" for number in range(30)]


def test_a_dry_run_only_names_it(
    told: Fixture, archived: Fixture, collector: FakeCollector, datadog: FakeDatadog
) -> None:
    archived("a", "b")
    datadog.stored = ("a",)
    code, out, _ = told("--dry-run", "--json")
    found = json.loads(out)
    assert (code, found["ok"], found["missing_ids"], found["replay"], found["dry_run"]) == (1, False, ["b"], None, True)
    assert not collector.asked


def test_what_was_sent_and_does_not_arrive_is_still_missing(
    told: Fixture, archived: Fixture, collector: FakeCollector
) -> None:
    archived("a", "b")
    collector.loses = True
    code, out, _ = told()
    assert code == 1
    assert "not found 0 s later: 2" in out
    assert "It has none at all. If that cannot be so" in out


def test_all_missing_ids_go_to_a_file_that_replay_reads(
    told: Fixture, archived: Fixture, collector: FakeCollector, tmp_path: Path
) -> None:
    archived(*(f"id-{number:02} {number}" for number in range(30)))
    file = tmp_path / "missing"
    assert told("--dry-run", "--missing-to", str(file))[0] == 1
    assert file.read_text().splitlines() == [f"id-{number:02} {number}" for number in range(30)]
    environ = {
        "AUDIT_COLLECTOR_DATA": str(tmp_path / "data"),
        "AUDIT_COLLECTOR_METRICS_PORT": collector.url.rpartition(":")[2],
        "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": f"{collector.url}/v1/logs",
    }
    assert cli.main(["replay", "--to", "datadog", "--ids", str(file)], environ) == 0
    assert told("--missing-to", str(file))[0] == 0
    assert file.read_text() == ""


def test_what_happened_before_the_span_and_came_within_is_not_overlooked(
    told: Fixture, archived: Fixture, datadog: FakeDatadog
) -> None:
    archived("a")
    archived("late", hours=50)
    datadog.stored = ("a",)
    code, out, _ = told("--json")
    assert (code, json.loads(out)["missing_ids"]) == (0, ["late"])
    assert set(datadog.stored) == {"a", "late"}
    asked_from = min(int(json.loads(body)["filter"]["from"]) for _, _, body in datadog.asked)
    assert asked_from <= time.time_ns() // 10**6 - 50 * 3600 * 1000, "the SIEM has it at the time at which it happened"


class TestWhatStatusHoldsAgainstIt:
    @pytest.fixture
    def owed(self, collector: FakeCollector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
        collector.refused = 3

        def look() -> int:
            looks = siem_looks.Looks(tmp_path / "state" / STATE / siem_looks.FILE)
            return looks.note(collector_metrics.read(f"{collector.url}/metrics")).debts["datadog"].owed

        assert look() == 3
        return look

    def test_it_has_everything(
        self, told: Fixture, archived: Fixture, datadog: FakeDatadog, owed: Callable[[], int]
    ) -> None:
        archived("a", "b")
        datadog.stored = ("a", "b")
        assert json.loads(told("--json", "--until", "2099-01-01")[1])["mended"] == 3
        assert owed() == 0

    def test_an_archive_with_nothing_of_it_tells_nothing(
        self, told: Fixture, archived: Fixture, owed: Callable[[], int]
    ) -> None:
        archived("a", hours=50)
        assert json.loads(told("--json", "--until", "2099-01-01")[1])["mended"] == 0
        assert owed() == 3

    def test_a_record_that_cannot_be_asked_for_may_be_missing(
        self, told: Fixture, archived: Fixture, datadog: FakeDatadog, owed: Callable[[], int]
    ) -> None:
        archived("a", "b\n")
        datadog.stored = ("a",)
        assert json.loads(told("--json", "--until", "2099-01-01")[1])["mended"] == 0
        assert owed() == 3


def test_a_setting_that_keeps_it_from_sending_does_not_hide_what_is_missing(told: Fixture, archived: Fixture) -> None:
    archived("a")
    code, out, _ = told(OTEL_EXPORTER_OTLP_PROTOCOL="smoke")
    assert code == 1
    assert "1 missing" in out
    assert "Nothing was sent: OTEL_EXPORTER_OTLP_PROTOCOL must be" in out


def test_what_may_wait_at_the_collector_is_sent_only_by_force(
    told: Fixture, archived: Fixture, collector: FakeCollector, datadog: FakeDatadog
) -> None:
    def worked_off() -> None:
        collector.waiting = 0

    archived("a")
    collector.waiting = 500
    collector.on_taken = worked_off
    code, out, _ = told()
    assert code == 1
    assert "Nothing was sent: records wait for datadog at the Collector, and these may be among them." in out
    assert not datadog.stored
    assert "Mind that records wait" in told("--dry-run")[1]
    assert told("--force")[0] == 0
    assert datadog.stored == ("a",)


def test_without_the_collectors_metrics_nobody_knows_what_waits(
    told: Fixture, archived: Fixture, datadog: FakeDatadog
) -> None:
    archived("a")
    silent = {"AUDIT_COLLECTOR_METRICS_PORT": "1"}
    code, out, _ = told(**silent)
    assert code == 1
    assert "Nothing was sent: whether they still wait at the Collector nobody can tell: http://127.0.0.1:1" in out
    assert told("--force", **silent)[0] == 0
    assert datadog.stored == ("a",)


def test_a_siem_that_is_mended_is_not_missed_without_the_collectors_metrics(
    told: Fixture, archived: Fixture, datadog: FakeDatadog
) -> None:
    archived("a")
    datadog.stored = ("a",)
    assert told(AUDIT_COLLECTOR_METRICS_PORT="1")[0] == 0


def test_a_siem_that_the_collector_does_not_have_is_named(told: Fixture, archived: Fixture) -> None:
    archived("a")
    code, _, err = told(siem="splunk", SPLUNK_SEARCH_URL="http://127.0.0.1:1", SPLUNK_SEARCH_TOKEN="s3cret")  # noqa: S106 - there is no such one
    assert code == 2
    assert "--siem splunk: the Collector at" in err
    assert "sends to no such SIEM; those it has: datadog" in err


def test_a_search_that_does_not_answer_is_no_missing_record(
    told: Fixture, archived: Fixture, collector: FakeCollector, datadog: FakeDatadog
) -> None:
    archived("a")
    datadog.faults = [fault(403, "Forbidden for s3cret-app")]
    code, out, err = told()
    assert (code, out) == (2, "")
    assert f"{datadog.url}/api/v2/logs/events/search answers HTTP 403 (Forbidden for [masked])" in err
    assert not collector.asked


def test_a_search_that_falls_silent_after_the_sending_does_not_hide_it(
    told: Fixture, archived: Fixture, datadog: FakeDatadog
) -> None:
    archived("a")
    empty = fault(200, '{"data": [], "meta": {"status": "done"}}')
    datadog.faults = [empty, empty, fault(500)]
    code, out, _ = told()
    assert code == 1
    assert "Sent to the Collector for datadog: 1 record" in out
    assert "Asked for again: whether they have arrived nobody can tell" in out


def test_ctrl_c_while_it_sends_ends_it_with_what_was_done(
    told: Fixture, archived: Fixture, collector: FakeCollector, datadog: FakeDatadog
) -> None:
    archived("a")
    collector.on_taken = lambda: os.kill(os.getpid(), signal.SIGINT)
    code, out, _ = told()
    assert code == 130
    assert "Interrupted before all was sent." in out
    assert "Found since" not in out
    assert len(datadog.asked) == 2, "it asks on after the signal"


def test_ctrl_c_while_it_compares_ends_it(told: Fixture, archived: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    archived("a")
    monkeypatch.setattr("time.sleep", interrupted)
    assert told()[:2] == (130, "")


def test_a_search_that_asks_for_patience_is_told(told: Fixture, archived: Fixture, datadog: FakeDatadog) -> None:
    archived("a")
    datadog.stored = ("a",)
    datadog.faults = [fault(429, X_RateLimit_Reset="60")]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("time.sleep", lambda _: None)
        code, _, err = told()
    assert code == 0
    assert "tron-audit: the search answers HTTP 429: asked again in 60 s, as it wishes" in err


def test_what_a_hostile_sender_wrote_cannot_steer_the_terminal(told: Fixture, archived: Fixture) -> None:
    archived("a\x1b[2J", "b", actor="\x1b]0;owned\x07\n")
    code, out, _ = told("--dry-run")
    assert code == 1
    assert "\x1b" not in out
    assert "Not compared, for want of an id that can be asked for: 1 record" in out


def test_damage_in_the_archive_is_told(told: Fixture, archived: Fixture, datadog: FakeDatadog, tmp_path: Path) -> None:
    archived("a")
    with (tmp_path / "data" / "archive" / "audit.jsonl").open("ab") as file:
        file.write(b'{"resourceLogs":[{"scopeLogs":7}]}\n')
    datadog.stored = ("a",)
    code, out, _ = told()
    assert code == 1
    assert "Cannot be read in the archive: 1 line" in out


@pytest.mark.parametrize(
    ("options", "environ", "expected"),
    [
        ({"siem": "http"}, {}, "--search must say how http is searched: victorialogs, elasticsearch, splunk, datadog"),
        ({}, {"DD_APP_KEY": ""}, "DD_APP_KEY or DD_APP_KEY_FILE must be set"),
        ({"since": "30s"}, {}, "--since 30s is less than 60 seconds ago"),
        ({"since": "soon"}, {}, "--since must be a time"),
        ({}, {"AUDIT_COLLECTOR_DATA": "/nowhere"}, "archive /nowhere/archive cannot be read"),
    ],
)
def test_what_must_be_mended_is_named(
    told: Fixture, archived: Fixture, options: dict[str, str], environ: dict[str, str], expected: str
) -> None:
    archived("a")
    code, out, err = told(**options, **environ)
    assert (code, out) == (2, "")
    assert expected in err


@pytest.mark.parametrize("wrong", [["--pause", "-1"], ["--wait", "nan"], ["--rate", "x"], ["--collector", "x"]])
def test_an_argument_that_cannot_be_is_refused_before_anything_is_done(
    told: Fixture, archived: Fixture, datadog: FakeDatadog, wrong: list[str]
) -> None:
    archived("a")
    with pytest.raises(SystemExit) as caught:
        told(*wrong)
    assert caught.value.code == 2
    assert not datadog.asked


def test_a_file_that_cannot_be_written_is_named(told: Fixture, archived: Fixture) -> None:
    archived("a")
    code, _, err = told("--missing-to", "/nowhere/missing")
    assert code == 2
    assert "--missing-to /nowhere/missing cannot be written: No such file or directory" in err


def test_another_collectors_metrics_can_be_named(
    told: Fixture, archived: Fixture, collector: FakeCollector, datadog: FakeDatadog
) -> None:
    archived("a")
    assert told("--collector", collector.url, AUDIT_COLLECTOR_METRICS_PORT="1")[0] == 0
    assert datadog.stored == ("a",)


def test_other_kinds_of_search_serve_any_siem(told: Fixture, archived: Fixture, datadog: FakeDatadog) -> None:
    archived("a")
    datadog.stored = ("a",)
    code, out, _ = told("--search", "datadog", "--json")
    assert (code, json.loads(out)["search"]) == (0, "datadog")
