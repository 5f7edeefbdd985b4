from __future__ import annotations

import io
import json
import os
import signal
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self

import pytest
from google.protobuf.json_format import MessageToDict  # type: ignore[import-untyped] # has no annotations

from tests.archives import BEGIN_NS, SECOND, closed, line, lines, record, uuid, write
from tests.integration import faulty
from tests.integration.faulty import Reply
from tests.journals import receiver
from tron_audit_otel import cli, cli_queue, cli_replay, collector_metrics
from tron_audit_otel.cli_source import Source
from tron_audit_otel.siem_looks import Looks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.journals import Receiver

pytestmark = pytest.mark.usefixtures("archive")

SINCE = "2026-09-21"
CAPACITY = 1_000_000


class Metrics:
    """A fake of what a Collector shows of itself: no real queue can be held at a size. Each look gets the next one."""

    def __init__(self) -> None:
        self.sizes = [0]
        self.refused = [0]
        self.taken_a_look = 1_000
        self.starts = ["c-1"]
        self.looks = 0
        self.siems = ["otlp_http/datadog", "splunk_hec"]
        self.up = True

    def text(self) -> str:
        at = self.looks
        size, refused = (each[min(at, len(each) - 1)] for each in (self.sizes, self.refused))
        start = self.starts[min(at, len(self.starts) - 1)]
        self.looks += 1
        text = ["otelcol_process_uptime 60", f'target_info{{service_instance_id="{start}"}} 1']
        for siem in self.siems:
            text += [
                f'otelcol_exporter_queue_size{{exporter="{siem}"}} {size}',
                f'otelcol_exporter_queue_capacity{{exporter="{siem}"}} {CAPACITY}',
                f'otelcol_exporter_send_failed_log_records{{exporter="{siem}"}} {refused}',
                f'otelcol_exporter_enqueue_size_sum{{exporter="{siem}"}} {at * self.taken_a_look}',
            ]
        return "\n".join(text) + "\n"

    def __enter__(self) -> Self:
        metrics = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = metrics.text().encode()
                self.send_response(200 if metrics.up else 503)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Says nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/metrics"
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def metrics(monkeypatch: pytest.MonkeyPatch) -> Iterator[Metrics]:
    monkeypatch.setattr(cli_queue, "LOOK_SECONDS", 0.01)
    with Metrics() as running:
        yield running


@pytest.fixture
def taken() -> Iterator[Receiver]:
    with receiver() as running:
        yield running


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "tron-audit-otel"


Told = tuple[int, Any, str]


@pytest.fixture
def replay(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, state: Path, metrics: Metrics, taken: Receiver
) -> Callable[..., Told]:
    """Runs the command on the archive in `tmp_path`; gives its exit code, its answer, and what it said besides."""

    def run(*arguments: str, to: str = "datadog", plain: bool = False, **environ: str) -> Told:
        capsys.readouterr()
        code = cli.main(
            ["replay", "--to", to, *arguments, *([] if plain else ["--json"])],
            {
                "AUDIT_COLLECTOR_DATA": str(tmp_path),
                "AUDIT_COLLECTOR_METRICS_PORT": metrics.url.rsplit(":", 1)[1].partition("/")[0],
                "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": taken.url,
                "AUDIT_LOG_RETRY_SECONDS_MAX": "0.1",
                **environ,
            },
        )
        out, err = capsys.readouterr()
        return code, json.loads(out) if out and not plain else out, err

    return run


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return write(tmp_path / "archive", **{closed("2026-09-21T14-20-00.000"): lines(range(4))}, current=lines([4, 5]))


def uuids(*numbers: int) -> list[str]:
    return [uuid(number) for number in numbers]


class TestWhatIsSent:
    def test_all_of_the_span(self, replay: Callable[..., Told], taken: Receiver) -> None:
        code, answer, _ = replay("--since", "2026-09-21T14:13:21Z", "--until", "2026-09-21T14:13:25Z")
        assert (code, answer["ok"], answer["sent"]) == (0, True, 4)
        assert taken.ids == uuids(1, 2, 3, 4)
        assert (answer["files_read"], answer["files_before"]) == (2, 0)

    def test_what_came_late(self, replay: Callable[..., Told], archive: Path, taken: Receiver) -> None:
        write(archive, current=lines([5, 2]))
        assert replay("--since", "2026-09-21T14:13:25Z")[0] == 0
        assert taken.ids == uuids(5, 2)

    def test_the_ids_of_a_file(self, replay: Callable[..., Told], taken: Receiver, tmp_path: Path) -> None:
        (tmp_path / "ids").write_text(f"\ufeff{uuid(4)}\n\n  {uuid(1)} \r\n")
        assert replay("--ids", str(tmp_path / "ids"))[1]["sent"] == 2
        assert taken.ids == uuids(1, 4)

    def test_ids_that_are_not_there(self, replay: Callable[..., Told], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sys.stdin", io.StringIO(f"{uuid(1)}\nabsent\n"))
        code, answer, _ = replay("--ids", "-")
        assert (code, answer["ok"], answer["sent"], answer["ids_missing"]) == (1, False, 1, ["absent"])
        monkeypatch.setattr("sys.stdin", io.StringIO("absent"))
        assert "Not in the archive: 1 id: absent" in replay("--ids", "-", plain=True)[1]

    def test_a_dry_run_sends_nothing(self, replay: Callable[..., Told], taken: Receiver) -> None:
        code, answer, _ = replay("--since", SINCE, "--dry-run")
        assert (code, answer["records"]) == (0, 6)
        assert answer["first"], answer["last"] == ("2026-09-21T14:13:20.000Z", "2026-09-21T14:13:25.000Z")
        assert answer["files"] == {closed("2026-09-21T14-20-00.000"): 4, "audit.jsonl": 2}
        assert answer["deeds"] == [{"actor": "alice", "action": "DELETE", "records": 6}]
        told = replay("--since", SINCE, "--dry-run", plain=True)[1]
        assert "Would be sent to datadog: 6 records, from 2026-09-21T14:13:20.000Z" in told
        assert "alice DELETE  6 records" in told
        assert taken.proxy.seen == []

    def test_it_is_marked_and_the_archive_is_left_alone(
        self, replay: Callable[..., Told], archive: Path, taken: Receiver
    ) -> None:
        bodies: list[Any] = []
        before = {file: file.read_bytes() for file in archive.iterdir()}

        def keep(call: faulty.Call) -> Reply:
            bodies.append(MessageToDict(call.message()))
            return Reply(200, faulty.PROTOBUF)

        taken.proxy.fault = keep
        assert replay("--since", SINCE, to="splunk")[0] == 0
        attributes = bodies[0]["resourceLogs"][0]["resource"]["attributes"]
        assert {"key": "audit.replay.to", "value": {"stringValue": "splunk"}} in attributes
        assert {file: file.read_bytes() for file in archive.iterdir()} == before

    def test_nothing_to_send(self, replay: Callable[..., Told], taken: Receiver) -> None:
        code, answer, _ = replay("--since", "1h")
        assert (code, answer["sent"], taken.proxy.seen) == (0, 0, [])
        assert "The archive holds nothing of that span." in replay("--since", "1h", plain=True)[1]


class TestWhatMustBeMended:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "--since or --ids must be given"),
            (["--since", "soon"], "--since must be a time"),
            (["--since", "2999-01-01"], "--since 2999-01-01 has not come yet"),
            (["--since", "1h", "--until", "2h"], "--until 2h must be after --since 1h"),
            (["--ids", "/nowhere/ids"], "--ids /nowhere/ids cannot be read: No such file or directory"),
            (["--ids", "/dev/null"], "--ids /dev/null holds no id"),
            (["--since", "1h", "--archive", "/nowhere"], "archive /nowhere cannot be read: No such file or directory"),
        ],
    )
    def test_arguments(self, replay: Callable[..., Told], arguments: list[str], message: str) -> None:
        code, _, said = replay(*arguments)
        assert code == 2
        assert message in json.loads(said.splitlines()[-1])["error"]

    @pytest.mark.parametrize("rate", ["-1", "inf", "nan", "fast", "1e-300"])
    def test_a_rate_that_is_none(self, replay: Callable[..., Told], capsys: Any, rate: str) -> None:
        with pytest.raises(SystemExit, match="2"):
            replay("--since", SINCE, f"--rate={rate}")
        assert f"argument --rate: invalid number of records a second value: '{rate}'" in capsys.readouterr().err

    def test_an_address_of_metrics_that_is_none(self, replay: Callable[..., Told], capsys: Any) -> None:
        with pytest.raises(SystemExit, match="2"):
            replay("--since", SINCE, "--collector", "collector:8888")
        assert "argument --collector: must be a URL such as" in capsys.readouterr().err

    def test_a_siem_that_the_collector_does_not_have(self, replay: Callable[..., Told], taken: Receiver) -> None:
        code, _, said = replay("--since", SINCE, to="elastic")
        assert code == 2
        assert "--to elastic: the Collector at http://127.0.0.1:" in said
        assert "those it has: datadog, splunk" in said
        assert taken.proxy.seen == []

    def test_a_collector_that_does_not_say_which_it_has(
        self, replay: Callable[..., Told], taken: Receiver, metrics: Metrics
    ) -> None:
        metrics.up = False
        code, _, said = replay("--since", SINCE)
        assert code == 2
        assert f"{metrics.url} answers with HTTP 503" in said
        assert "--force does without" in said
        assert taken.proxy.seen == []
        code, answer, _ = replay("--since", SINCE, "--force")
        assert (code, answer["sent"], answer["mended"]) == (0, 6, None)

    def test_where_its_metrics_are_can_be_said(self, replay: Callable[..., Told], metrics: Metrics) -> None:
        elsewhere = metrics.url.removesuffix("/metrics")
        assert replay("--since", SINCE, "--collector", elsewhere, AUDIT_COLLECTOR_METRICS_PORT="1")[0] == 0

    def test_the_collector_refuses_the_records(self, replay: Callable[..., Told], taken: Receiver) -> None:
        taken.proxy.fault = faulty.status(401)
        code, answer, _ = replay("--since", SINCE)
        assert (code, answer["ok"], answer["sent"]) == (1, False, 0)
        assert "the Collector does not take the records: HTTP 401" in answer["error"]

    def test_a_record_that_it_never_takes_keeps_no_other_back(
        self, replay: Callable[..., Told], taken: Receiver, state: Path, metrics: Metrics
    ) -> None:
        metrics.refused = [6]
        Looks(state / "siems.json").note(collector_metrics.read(metrics.url))
        usual = taken.proxy.fault

        def picky(call: faulty.Call) -> Reply:
            ids = [faulty.attribute(each, "audit.record.id") for each in faulty.records(call.message())]
            return Reply(400) if uuid(2) in ids else usual(call)

        taken.proxy.fault = picky
        code, answer, _ = replay("--since", SINCE)
        assert (code, answer["sent"], taken.ids) == (1, 5, uuids(0, 1, 3, 4, 5))
        assert answer["not_taken"] == [f"{uuid(2)}: HTTP 400"]
        assert answer["absent"] == 1

    def test_a_path_in_the_collectors_container(self, replay: Callable[..., Told]) -> None:
        assert replay("--since", SINCE, DD_API_KEY_FILE="/run/secrets/datadog")[0] == 0

    def test_no_secret_is_told(self, replay: Callable[..., Told], taken: Receiver) -> None:
        taken.proxy.fault = lambda call: Reply(
            401, {"Content-Type": "text/plain"}, call.headers["authorization"].encode()
        )
        told = replay("--since", SINCE, OTEL_EXPORTER_OTLP_HEADERS="authorization=Bearer s3cret-token")
        assert "s3cret" not in str(told)


class TestTheQueue:
    def test_it_pauses_while_the_queue_is_more_than_half_full(
        self, replay: Callable[..., Told], metrics: Metrics, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("tron_audit_otel.cli_text.PROGRESS_SECONDS", 0)
        # The first look is the command's own, before it begins.
        metrics.sizes = [0, CAPACITY, CAPACITY // 2 + 1, CAPACITY // 3, 0]
        code, answer, said = replay("--since", SINCE)
        assert (code, answer["sent"]) == (0, 6)
        assert metrics.looks == 5, "three before it is sent, and one after"
        assert said.count("paused: datadog's queue holds") == 2

    def test_no_request_is_larger_than_the_queue_takes(
        self, replay: Callable[..., Told], archive: Path, taken: Receiver
    ) -> None:
        large = b"".join(line(record(uuid(n), body={"stringValue": 50_000 * "x"})) for n in range(20))
        write(archive, current=large)
        sizes: list[int] = []

        def keep(call: faulty.Call) -> Reply:
            sizes.append(call.message().ByteSize())
            return Reply(200, faulty.PROTOBUF)

        taken.proxy.fault = keep
        assert replay("--since", SINCE)[1]["sent"] == 20
        assert max(sizes) <= CAPACITY // cli_queue.REQUESTS_MIN

    def test_it_looks_again_before_it_has_filled_half_the_queue(
        self, replay: Callable[..., Told], archive: Path, metrics: Metrics
    ) -> None:
        write(
            archive, current=b"".join(line(record(uuid(n), body={"stringValue": 50_000 * "x"})) for n in range(10, 30))
        )
        assert replay("--since", SINCE)[0] == 0
        # 1,000,000 bytes and a little go into a queue that seems empty, 500,000 between two looks.
        assert metrics.looks >= 1 + 3 + 1

    def test_a_collector_that_says_nothing_more_is_sent_to(
        self, replay: Callable[..., Told], metrics: Metrics, taken: Receiver
    ) -> None:
        def answer(call: faulty.Call) -> Reply:
            metrics.up = False
            return Reply(200, faulty.PROTOBUF)

        taken.proxy.fault = answer
        assert replay("--since", SINCE, "--rate", "1000")[0] == 0

    def test_what_it_was_sent_is_given_time_to_arrive(self, replay: Callable[..., Told], metrics: Metrics) -> None:
        metrics.sizes = [0, 0, 4_000, 3_000, 0]
        metrics.refused = [0, 0, 0, 0, 5]  # as an expired token shows: a second after the last was sent
        code, answer, _ = replay("--since", SINCE)
        assert (code, answer["refused_meanwhile"], answer["waiting_bytes"]) == (1, 5, 0)

    def test_what_still_waits_is_told(
        self, replay: Callable[..., Told], metrics: Metrics, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(cli_replay, "SETTLE_SECONDS", 0.1)
        metrics.sizes = [0, 0, 4_096]
        assert "In datadog's queue at the Collector: 4.0 KiB." in replay("--since", SINCE, plain=True)[1]

    def test_what_the_siem_refuses_meanwhile_is_told(self, replay: Callable[..., Told], metrics: Metrics) -> None:
        metrics.refused = [7, 7, 12]
        code, answer, _ = replay("--since", SINCE)
        assert (code, answer["ok"], answer["sent"], answer["refused_meanwhile"]) == (1, False, 6, 5)
        metrics.looks = 0
        assert "Meanwhile datadog refused 5 records for good" in replay("--since", SINCE, plain=True)[1]


class TestWhereItGoes:
    @pytest.fixture(autouse=True)
    def owed(self, state: Path, metrics: Metrics) -> Callable[[], int]:
        def look() -> int:
            return Looks(state / "siems.json").note(collector_metrics.read(metrics.url)).debts["datadog"].owed

        metrics.refused = [6]
        assert look() == 6
        return look

    def test_nothing_of_it_is_in_the_siems_queue(
        self, replay: Callable[..., Told], metrics: Metrics, taken: Receiver, owed: Callable[[], int]
    ) -> None:
        metrics.taken_a_look = 0
        code, answer, _ = replay("--since", SINCE)
        assert (code, answer["ok"], answer["sent"], answer["mended"]) == (1, False, 6, None)
        assert "only 0 of 6 records came to datadog's queue. Either the OTLP endpoint" in answer["error"]
        assert taken.url in answer["error"]
        assert owed() == 6

    def test_the_collector_has_the_siem_no_longer(
        self, replay: Callable[..., Told], metrics: Metrics, taken: Receiver, owed: Callable[[], int]
    ) -> None:
        def answer(call: faulty.Call) -> Reply:
            metrics.siems.remove("otlp_http/datadog")
            return Reply(200, faulty.PROTOBUF)

        taken.proxy.fault = answer
        code, found, _ = replay("--since", SINCE)
        assert (code, found["mended"]) == (1, None)
        assert "only 0 of 6 records came to datadog's queue" in found["error"]
        metrics.siems.append("otlp_http/datadog")
        assert owed() == 6

    def test_it_stops_once_the_collector_has_the_siem_no_longer(
        self, replay: Callable[..., Told], metrics: Metrics, taken: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def answer(call: faulty.Call) -> Reply:
            metrics.siems.remove("otlp_http/datadog")
            return Reply(200, faulty.PROTOBUF)

        monkeypatch.setattr(cli_queue, "LOOK_SECONDS_MAX", 0)
        taken.proxy.fault = answer
        code, found, _ = replay("--since", SINCE, "--rate", "1")
        assert (code, found["sent"]) == (1, 1)
        assert found["error"].endswith("sends to datadog no longer")

    def test_a_collector_that_has_started_anew_has_refused_what_it_counts(
        self, replay: Callable[..., Told], metrics: Metrics
    ) -> None:
        metrics.looks = 0
        metrics.starts = ["c-1", "c-1", "c-2"]
        metrics.refused = [6, 6, 4]
        code, answer, _ = replay("--since", SINCE)
        assert (code, answer["refused_meanwhile"], answer["collector_restarted"]) == (1, 4, True)
        metrics.looks = 0
        assert "The Collector has started anew meanwhile" in replay("--since", SINCE, plain=True)[1]

    def test_the_archive_has_less_than_was_refused(
        self, replay: Callable[..., Told], archive: Path, owed: Callable[[], int]
    ) -> None:
        write(archive, **{closed("2026-09-21T14-20-00.000"): b""}, current=lines([4, 5]))
        code, told, _ = replay("--since", SINCE, plain=True)
        assert code == 1
        assert "held 4 records more against datadog than the archive has of that span" in told
        assert owed() == 0


class TestWhatStatusKnows:
    def owed(self, state: Path, metrics: Metrics) -> int:
        return Looks(state / "siems.json").note(collector_metrics.read(metrics.url)).debts["datadog"].owed

    def test_a_whole_replay_mends_what_was_refused(
        self, replay: Callable[..., Told], state: Path, metrics: Metrics
    ) -> None:
        metrics.refused = [6]
        assert self.owed(state, metrics) == 6
        assert replay("--since", SINCE)[1]["mended"] == 6
        assert self.owed(state, metrics) == 0

    def test_what_was_refused_meanwhile_stays_owed(
        self, replay: Callable[..., Told], state: Path, metrics: Metrics
    ) -> None:
        metrics.refused = [6, 6, 9]
        assert self.owed(state, metrics) == 6
        assert replay("--since", SINCE)[1]["mended"] == 6
        assert self.owed(state, metrics) == 3

    @pytest.mark.parametrize("arguments", [["--dry-run"], ["--ids"], ["--until", "2026-09-21T14:13:24Z"], []])
    def test_less_than_that_mends_nothing(  # noqa: PLR0913, PLR0917 - fixtures
        self,
        replay: Callable[..., Told],
        state: Path,
        metrics: Metrics,
        taken: Receiver,
        tmp_path: Path,
        arguments: list[str],
    ) -> None:
        metrics.refused = [6]
        assert self.owed(state, metrics) == 6
        (tmp_path / "ids").write_text(uuid(1))
        if not arguments:
            taken.proxy.fault = faulty.status(401)
        replay("--since", SINCE, *arguments, *([str(tmp_path / "ids")] if arguments == ["--ids"] else []))
        assert self.owed(state, metrics) == 6

    def test_an_archive_with_nothing_of_it_mends_nothing(
        self, replay: Callable[..., Told], state: Path, metrics: Metrics, tmp_path: Path
    ) -> None:
        write(tmp_path / "archive", **{closed("2026-09-21T14-20-00.000"): b""}, current=b"")
        metrics.refused = [6]
        assert replay("--since", SINCE)[1]["mended"] is None
        assert self.owed(state, metrics) == 6


class TestTheEnd:
    def test_an_archive_that_breaks_in_the_midst(
        self, replay: Callable[..., Told], archive: Path, taken: Receiver
    ) -> None:
        second = write(archive, **{closed("2026-09-21T14-21-00.000"): lines([9])}) / closed("2026-09-21T14-21-00.000")

        def spoil(call: faulty.Call) -> Reply:
            second.unlink(missing_ok=True)
            second.symlink_to("/nowhere")
            return Reply(200, faulty.PROTOBUF)

        taken.proxy.fault = spoil
        code, answer, _ = replay("--since", SINCE, "--rate", "2")
        assert (code, answer["ok"], answer["sent"], answer["mended"]) == (2, False, 2, None)
        assert f"{second.name} cannot be read: it is a symbolic link" in answer["error"]

    def test_a_file_that_is_removed_meanwhile_is_told(
        self, replay: Callable[..., Told], archive: Path, taken: Receiver
    ) -> None:
        second = write(archive, **{closed("2026-09-21T14-21-00.000"): lines([9])}) / closed("2026-09-21T14-21-00.000")

        def remove(call: faulty.Call) -> Reply:
            second.unlink(missing_ok=True)
            return Reply(200, faulty.PROTOBUF)

        taken.proxy.fault = remove
        code, told, _ = replay("--since", SINCE, "--rate", "2", plain=True)
        assert code == 1
        assert f"Removed before they could be read: {second.name}" in told

    @pytest.mark.parametrize("arguments", [[], ["--dry-run"]])
    def test_ctrl_c_while_it_reads(
        self, replay: Callable[..., Told], monkeypatch: pytest.MonkeyPatch, taken: Receiver, arguments: list[str]
    ) -> None:
        monkeypatch.setattr(Source, "show", lambda *_: os.kill(os.getpid(), signal.SIGINT))
        code, answer, _ = replay("--since", SINCE, *arguments)
        assert (code, answer["ok"], answer["ids_missing"]) == (130, False, None)
        assert taken.ids == []

    def test_ctrl_c_while_it_waits_for_the_collector(self, replay: Callable[..., Told], taken: Receiver) -> None:
        def interrupt(call: faulty.Call) -> Reply:
            os.kill(os.getpid(), signal.SIGINT)
            return Reply(503)

        taken.proxy.fault = interrupt
        code, told, _ = replay("--since", SINCE, plain=True)
        assert code == 130
        first, *others = told.splitlines()
        assert first.startswith("Sent to the Collector for datadog: 0 records, in ")
        assert others == [
            "Interrupted before all was sent.",
            "The same command sends all of it again, under the same ids.",
        ]

    def test_a_refusal_is_told_to_people_as_well(self, replay: Callable[..., Told], taken: Receiver) -> None:
        taken.proxy.fault = faulty.status(400)
        code, told, _ = replay("--since", SINCE, plain=True)
        assert code == 1
        assert f"The Collector will never take 6 records: {uuid(0)}: HTTP 400, {uuid(1)}: HTTP 400" in told
        taken.proxy.fault = faulty.status(401)
        told = replay("--since", SINCE, plain=True)[1]
        assert "Not all was sent: the Collector does not take the records: HTTP 401" in told


def test_what_cannot_be_read_is_told_and_the_rest_is_sent(
    replay: Callable[..., Told], archive: Path, taken: Receiver
) -> None:
    torn, nameless = lines([9])[:-30], line(record(None, BEGIN_NS + SECOND))
    write(archive, **{"audit.jsonl.1": b""}, current=lines([4]) + b"rubbish\n" + torn + nameless + lines([5, 5]))
    code, answer, _ = replay("--since", SINCE)
    assert (code, answer["sent"], answer["damaged"]) == (1, 7, 1)
    assert (answer["torn"], answer["without_id"], answer["repeated"]) == (1, 1, 1)
    told = replay("--since", SINCE, plain=True)[1]
    assert "Damaged and not to be read: 1 times, at audit.jsonl, byte" in told
    assert "Not read, for the Collector gives no such name: audit.jsonl.1" in told
    assert "Passed over: 1 request that the Collector did not write whole" in told
    assert "Without an id, so that nobody can tell them apart: 1 record" in told


def test_progress_says_how_far_it_is(
    replay: Callable[..., Told], archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tron_audit_otel.cli_text.PROGRESS_SECONDS", 0)
    said = replay("--since", SINCE)[2]
    assert "100 % of the archive read, 6 records sent, " in said
