from __future__ import annotations

import argparse
import json
import re
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from tests.metrics_fakes import says, server, shown
from tron_audit_otel import archive_tail, cli_siems
from tron_audit_otel.archive import Span
from tron_audit_otel.collector_metrics import read
from tron_audit_otel.config import STATE
from tron_audit_otel.siem_looks import FILE, Looks
from tron_audit_otel.tool_config import ToolConfig

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from http.server import BaseHTTPRequestHandler
    from pathlib import Path

    from tron_audit_otel.cli_siems import Told

SPLUNK = "splunk_hec"
HTTP = "otlp_http/http"


class Collector:
    """A Collector that shows what a test wants, looked at by `tron-audit status`."""

    def __init__(self, state: Path) -> None:
        self.url = ""
        self.text = ""
        self._looks = state / STATE / FILE

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        says(self.text.encode())(handler)

    def shows(self, *arguments: str, **more: Any) -> Told:
        self.text = shown(**{"siems": {}, **more})
        return look("--collector", self.url, *arguments)

    def later(self, seconds: float) -> None:
        """Lets time pass: what was noted becomes so much older."""
        content = json.loads(self._looks.read_text())
        for seen in content["collectors"].values():
            seen["read_at"] -= seconds
            seen["uptime_s"] -= seconds
            for siem in seen["siems"].values():
                for name in ("since", "refused_at", "stuck_since"):
                    siem[name] = siem[name] and siem[name] - seconds
        self._looks.write_text(json.dumps(content))


@pytest.fixture
def collector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    found = Collector(tmp_path)
    with server(found.answer) as found.url:
        yield found


def look(*arguments: str, environ: Mapping[str, str] | None = None) -> Told:
    parser = argparse.ArgumentParser()
    cli_siems.add(parser)
    return cli_siems.look(parser.parse_args(arguments), environ or {})


def kinds(told: Told) -> list[str]:
    return [kind for kind, _ in told.problems]


def siems(told: Told) -> Any:
    return told.data["siems"]


def archived(directory: Path, times: Mapping[str, list[float]], padding: int = 0) -> Path:
    """Archive files whose records were observed then."""
    directory.mkdir()
    for name, observed in times.items():
        lines = []
        for at in observed:
            clock = f'"timeUnixNano":"{int(at * 1e9)}","observedTimeUnixNano":"{int(at * 1e9)}"'
            lines.append(
                f'{{"resourceLogs":[{{"scopeLogs":[{{"logRecords":[{{{clock},"x":"{"x" * padding}"}}]}}]}}]}}\n'
            )
        (directory / name).write_text("".join(lines))
    return directory


def iso(epoch_s: float) -> str:
    return datetime.fromtimestamp(int(epoch_s), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def test_all_well_is_told_and_is_no_problem(collector: Collector) -> None:
    collector.shows(siems={SPLUNK: {}, HTTP: {}})
    told = collector.shows(siems={SPLUNK: {"delivered": 100}, HTTP: {"delivered": 100, "200": 4}})
    assert told.problems == []
    assert told.waiting == ""
    assert told.lines == [
        f"Collector {collector.url}: up for 60 min; counts are since its start",
        "  receiver: 100 records taken, 0 refused",
        "  archive: 100 records written, 0 failed",
        "http: 100 taken, 100 delivered, 0 refused",
        "  answers: 200 (4)",
        "splunk: 100 taken, 100 delivered, 0 refused",
    ]
    assert {siem["replay"] for siem in siems(told)} == {None}


def test_a_siem_that_refused_gets_the_command_that_mends_it(collector: Collector) -> None:
    began_at = time.time()
    collector.shows(siems={HTTP: {"delivered": 90}})
    clean_at = time.time()
    told = collector.shows(siems={HTTP: {"delivered": 90, "failed": 10, "401": 2, "503": 1}})
    assert kinds(told) == ["siem_refused"]
    [siem] = siems(told)
    command, since, until = siem["replay"][:4], siem["replay"][5], siem["replay"][7]
    assert command == ["tron-audit", "replay", "--to", "http"]
    assert siem["replay"][8:] == ["--collector", collector.url]
    assert iso(began_at - cli_siems.LATE_SECONDS) <= since <= iso(clean_at - cli_siems.LATE_SECONDS)
    assert iso(clean_at + cli_siems.AHEAD_SECONDS) <= until <= iso(time.time() + 1 + cli_siems.AHEAD_SECONDS)
    [(_, text)] = told.problems
    assert text.startswith("http has refused 10 records for good (it answered 401 (2)). Mend the cause first")
    span = f"--since {since} --until {until} --collector {collector.url}"
    assert text.endswith(f"send them again: tron-audit replay --to http {span}")
    assert (siem["owed"], siem["since_is_clean"]) == (10, True)


def test_that_command_mends_it(collector: Collector) -> None:
    told = collector.shows(siems={HTTP: {"failed": 10}})
    [siem] = siems(told)
    since, until = (int(datetime.fromisoformat(siem["replay"][place]).timestamp()) * 10**9 for place in (5, 7))
    looks = Looks(collector._looks)
    assert looks.mended("http", Span(since, until), read(collector.url)) == 10
    told = collector.shows(siems={HTTP: {"failed": 10, "delivered": 10}})
    assert told.problems == []
    assert "http: 20 taken, 10 delivered, 10 refused (not sent again: 0)" in told.lines


def test_without_an_earlier_look_reconcile_is_named_as_well(collector: Collector) -> None:
    began_at = time.time()
    told = collector.shows(siems={SPLUNK: {"failed": 10}}, uptime_s=1_000)
    [(_, text)] = told.problems
    assert began_at - 1 <= siems(told)[0]["since"] + 1_000 + cli_siems.LATE_SECONDS <= time.time()
    assert "No earlier look saw it without a fault" in text
    assert "`tron-audit reconcile --siem splunk --since …` finds" in text


def test_what_came_late_is_within_the_replay(collector: Collector, tmp_path: Path) -> None:
    now = time.time()
    archive = archived(tmp_path / "archive", {"audit.jsonl": [now - 90_000, *[now - 20_000] * 100]})
    told = collector.shows("--archive", str(archive), siems={SPLUNK: {"failed": 10}}, uptime_s=100)
    [siem] = siems(told)
    assert siem["replay"][5] == iso(now - 20_000)
    assert siem["replay"][8:] == ["--collector", collector.url, "--archive", str(archive)]


def test_one_record_with_a_wrong_clock_does_not_send_the_whole_archive_again(
    collector: Collector, tmp_path: Path
) -> None:
    now = time.time()
    archive = archived(tmp_path / "archive", {"audit.jsonl": [now, 1_000_000_000, *[now] * 98]})
    told = collector.shows("--archive", str(archive), siems={SPLUNK: {"failed": 10}}, uptime_s=100)
    assert now - 1 <= siems(told)[0]["since"] + 100 + cli_siems.LATE_SECONDS <= time.time()
    [(_, text)] = told.problems
    assert "an earlier time: `tron-audit reconcile --siem splunk --since 2001-09-09T01:46:40Z` finds it." in text


def test_a_siem_that_takes_nothing_is_a_problem_at_the_first_look(collector: Collector) -> None:
    told = collector.shows(siems={HTTP: {"waiting_bytes": 20_000, "503": 2, "none": 1}}, uptime_s=9)
    assert kinds(told) == ["siem_down"]
    assert "it has taken nothing, and about 20 records wait; its answers: 503 (2), none (1)." in told.problems[0][1]
    assert told.waiting == "about 20 records for http"
    assert "  waiting: about 20 records in 19.5 KiB, 2% of the queue; since when is not known" in told.lines


def test_what_waits_for_a_moment_is_no_problem(collector: Collector) -> None:
    collector.shows(siems={SPLUNK: {"delivered": 80}})
    collector.later(40_000)
    told = collector.shows(siems={SPLUNK: {"delivered": 80, "waiting_bytes": 20_000}}, uptime_s=43_600)
    assert told.problems == []
    told = collector.shows(siems={SPLUNK: {"delivered": 80, "waiting_bytes": 20_000}}, uptime_s=43_601)
    assert told.problems == []


def test_what_waits_while_nothing_is_delivered_is_a_problem_at_a_later_look(collector: Collector) -> None:
    collector.shows(siems={SPLUNK: {"delivered": 80, "waiting_bytes": 20_000}})
    collector.later(120)
    told = collector.shows(siems={SPLUNK: {"delivered": 80, "waiting_bytes": 20_000}})
    assert kinds(told) == ["siem_down"]
    assert "nothing was delivered for 2 min, and about 20 records wait." in told.problems[0][1]
    told = collector.shows(siems={SPLUNK: {"delivered": 81, "waiting_bytes": 20_000}})
    assert told.problems == []


def test_what_has_waited_long_is_a_problem_unless_the_siem_catches_up(collector: Collector, tmp_path: Path) -> None:
    now = time.time()
    archive = archived(tmp_path / "archive", {"audit.jsonl": [now - 9_000] * 80 + [now - 1_000] * 20})
    given = ("--archive", str(archive))
    told = collector.shows(*given, siems={SPLUNK: {"delivered": 80, "waiting_bytes": 20_000}})
    assert kinds(told) == ["siem_down"]
    assert siems(told)[0]["oldest_waiting_at"] == pytest.approx(now - 1_000, abs=1)
    assert "about 20 records wait, the oldest from about 17 min ago" in told.problems[0][1]
    told = collector.shows(*given, siems={SPLUNK: {"delivered": 81, "waiting_bytes": 19_000}})
    assert told.problems == []
    told = collector.shows(*given, siems={SPLUNK: {"delivered": 81, "waiting_bytes": 19_000}}, uptime_s=3)
    assert kinds(told) == ["siem_doubt"], "a Collector that has just begun has hardly tried"


@pytest.mark.parametrize(("waiting_bytes", "problems"), [(500_000, []), (510_000, ["siem_queue"])])
def test_a_queue_more_than_half_full_is_a_problem(
    waiting_bytes: int, problems: list[str], collector: Collector
) -> None:
    told = collector.shows(siems={SPLUNK: {"delivered": 80, "waiting_bytes": waiting_bytes}})
    assert kinds(told) == problems
    if problems:
        assert "its queue is 51% full" in told.problems[0][1]


def test_a_queue_that_turns_records_away_is_the_one_reason_that_is_told(collector: Collector) -> None:
    told = collector.shows(siems={SPLUNK: {"delivered": 80, "waiting_bytes": 999_000, "full": 7}}, refused=7)
    assert kinds(told) == ["siem_queue_full"]
    assert "its queue is full or cannot be written (100% of 976.6 KiB)" in told.problems[0][1]
    assert "  found no room in the queue: 7" in told.lines


def test_an_archive_that_cannot_be_written_is_a_problem(collector: Collector) -> None:
    told = collector.shows(archive_failed=3, refused=3)
    assert kinds(told) == ["archive_failed"]
    assert "  it has no SIEM: setting one's variables turns it on" in told.lines


def test_a_receiver_that_refuses_for_no_other_reason_is_a_problem(collector: Collector) -> None:
    told = collector.shows(refused=3)
    assert kinds(told) == ["collector_refused"]


def test_several_problems_are_all_told(collector: Collector) -> None:
    told = collector.shows(siems={HTTP: {"failed": 1, "waiting_bytes": 900_000, "500": 5}}, archive_failed=1)
    assert kinds(told) == ["archive_failed", "siem_refused", "siem_queue", "siem_down"]


def test_a_collector_that_has_started_anew_is_noted_and_its_debts_are_kept(collector: Collector) -> None:
    collector.shows(siems={HTTP: {"failed": 4}})
    told = collector.shows(siems={HTTP: {}}, uptime_s=60)
    assert kinds(told) == ["siem_refused"]
    assert "http: 0 taken, 0 delivered, 0 refused (not sent again: 4)" in told.lines
    assert "  Note: the Collector has started anew." in "\n".join(told.lines)


def test_the_first_look_says_that_it_is_the_first(collector: Collector) -> None:
    note = "this is the first look. What a SIEM refused before the Collector's start, 60 min ago, is counted nowhere."
    assert f"  Note: {note}" in collector.shows(siems={HTTP: {}}).lines
    assert f"  Note: {note}" not in collector.shows(siems={HTTP: {}}).lines


def test_what_the_collector_does_not_tell_is_noted(collector: Collector) -> None:
    lines = shown(siems={SPLUNK: {"delivered": 1}}).splitlines()
    answers = 'http_client_request_duration_count{http_response_status_code="403",server_address="x",server_port="9"} 7'
    collector.text = "".join(f"{line}\n" for line in [*lines, answers] if "enqueue_size" not in line)
    told = look("--collector", collector.url)
    assert "splunk: ? taken, 1 delivered, 0 refused" in told.lines
    notes = [line for line in told.lines if line.startswith("  Note: ")]
    assert "service.telemetry.metrics.level: detailed" in notes[1]
    assert notes[2] == "  Note: x:9 answered 403 (7); whose that is, the Collector does not tell."


def test_a_state_that_cannot_be_kept_is_noted(collector: Collector, tmp_path: Path) -> None:
    (tmp_path / STATE).write_text("")
    told = collector.shows(siems={HTTP: {"delivered": 1}})
    assert told.problems == []
    assert f"  Note: {tmp_path / STATE / FILE} cannot be kept" in "\n".join(told.lines)


@pytest.mark.parametrize(
    ("arguments", "environ"),
    [(("--collector", "http://127.0.0.1:1"), {}), ((), {"AUDIT_COLLECTOR_METRICS_PORT": "1"})],
    ids=["argument", "variable"],
)
def test_a_collector_that_is_named_and_silent_is_a_problem(arguments: tuple[str, ...], environ: dict[str, str]) -> None:
    told = look(*arguments, environ=environ)
    assert (told.answers, kinds(told)) == (False, ["collector_silent"])
    assert told.problems[0][1].startswith("http://127.0.0.1:1/metrics cannot be reached: ")
    assert told.lines == ["Collector http://127.0.0.1:1/metrics: no answer"]


def test_a_machine_without_a_collector_is_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    with server(says(b"<html>another program</html>")) as url:
        monkeypatch.setattr(ToolConfig, "metrics_url", url)
        told = look()
    assert (told.answers, told.problems, told.lines) == (False, [], [f"No Collector at {url}"])
    assert (told.data["siems"], told.data["collector"]["answers"]) == ([], False)  # type: ignore[index] # it is JSON


@pytest.mark.parametrize("url", ["collector:8888", "http://user:secret@collector", "ftp://collector", ""])
def test_a_url_that_is_none_is_said(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        look("--collector", url)
    assert "argument --collector: must " in capsys.readouterr().err


def test_the_rest_of_the_collectors_env_file_may_hold_what_is_not_here(collector: Collector) -> None:
    collector.shows()
    told = look("--collector", collector.url, environ={"SPLUNK_CA_FILE": "/in/the/container.pem"})
    assert told.answers


def test_a_collector_that_was_there_is_missed(collector: Collector) -> None:
    silent = {"url": "http://127.0.0.1:1/metrics"}
    assert look().problems == []
    collector.shows()
    url, collector.url = collector.url, silent["url"]
    content = collector._looks.read_text().replace(url, "http://127.0.0.1:8888/metrics")
    collector._looks.write_text(content)
    [(kind, text)] = look().problems
    assert kind == "collector_silent"
    assert "It was last seen" in text


# --- the archive's end


def test_the_time_is_found_across_files(tmp_path: Path) -> None:
    archive = archived(
        tmp_path / "archive",
        {
            "audit-2026-11-24T14-05-06.123-size.jsonl": [100.0, 101.0],
            "audit-2026-11-24T15-05-06.123.jsonl": [102.0],
            "audit.jsonl": [103.0, 104.0],
            "another.jsonl": [1.0],
        },
    )
    assert [archive_tail.observed_at(archive, records) for records in range(1, 6)] == [104, 103, 102, 101, 100]
    assert archive_tail.observed_at(archive, 60) == 100
    assert archive_tail.earliest(archive, 2) == 103


def test_the_time_of_a_record_far_back_is_about_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_tail, "TAIL_BYTES", 20_000)
    files = {f"audit-2026-11-24T14-05-0{number}.000-size.jsonl": number for number in range(5)}
    archive = archived(
        tmp_path / "archive",
        {name: [1_000.0 * number + each for each in range(1_000)] for name, number in files.items()},
        padding=300,
    )
    assert archive_tail.observed_at(archive, 3_000) == pytest.approx(2_000, abs=30)
    earliest = archive_tail.earliest(archive, 3_000)
    assert earliest is not None
    assert 1_900 < earliest <= 2_000


def test_a_record_longer_than_what_is_read_at_once_is_no_hindrance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_tail, "TAIL_BYTES", 1_000)
    archive = archived(tmp_path / "archive", {"audit.jsonl": [100.0, 200.0, 300.0]}, padding=9_000)
    assert archive_tail.observed_at(archive, 1) == 300
    assert archive_tail.observed_at(archive, 9) == 100


def test_an_archive_that_is_not_here_tells_nothing(tmp_path: Path) -> None:
    assert archive_tail.observed_at(tmp_path / "none", 3) is None
    (tmp_path / "audit.jsonl").write_text("")
    assert archive_tail.observed_at(tmp_path, 3) is None
    (tmp_path / "audit.jsonl").write_bytes(b"\0" * 5_000)
    assert archive_tail.observed_at(tmp_path, 3) is None
    assert archive_tail.earliest(tmp_path, 3) is None


def test_a_link_in_the_archive_is_not_followed(tmp_path: Path) -> None:
    other = archived(tmp_path / "other", {"audit.jsonl": [100.0]})
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive" / "audit.jsonl").symlink_to(other / "audit.jsonl")
    assert archive_tail.observed_at(tmp_path / "archive", 1) is None


def test_what_may_be_lost_is_a_problem_that_names_both_ways_to_settle_it(collector: Collector) -> None:
    collector.shows(siems={SPLUNK: {"delivered": 80, "waiting_bytes": 20_000}})
    told = collector.shows(siems={SPLUNK: {"delivered": 0}}, uptime_s=3)
    assert kinds(told) == ["siem_doubt"]
    [(_, text)] = told.problems
    assert "records waited for it when the Collector was started anew" in text
    assert re.search(r"`tron-audit reconcile --siem splunk --since \d{4}-[\dT:-]+Z --collector \S+` finds them", text)
    assert "`tron-audit replay --to splunk --since " in text
    assert siems(told)[0]["doubtful_since"] is not None


def test_what_is_missing_at_two_questions_is_a_problem_and_what_is_only_late_is_none(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    late: list[float] = []

    def settle(seconds: float) -> None:
        late.append(seconds)
        if len(late) == 1:
            collector.text = shown(siems={SPLUNK: {"taken": 100, "delivered": 100}})

    monkeypatch.setattr(time, "sleep", settle)
    assert kinds(collector.shows(siems={SPLUNK: {"taken": 100, "delivered": 90}})) == []
    told = collector.shows(siems={SPLUNK: {"taken": 100, "delivered": 90}})
    assert kinds(told) == ["siem_lacks"]
    assert "splunk: the Collector cannot account for 10 records" in told.problems[0][1]
    assert late == [cli_siems.SETTLE_SECONDS] * 2
