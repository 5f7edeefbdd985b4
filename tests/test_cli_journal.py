from __future__ import annotations

import base64
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration import faulty
from tests.integration.faulty import Call, Reply
from tests.journals import leave, owner, receiver, request, run
from tests.limits import small_files
from tron_audit_otel import cli, cli_ship, cli_text
from tron_audit_otel.dead_letter import DeadLetters
from tron_audit_otel.disk_journal import adopt
from tron_audit_otel.journal_dir import inspect
from tron_audit_otel.ledger import Stats
from tron_audit_otel.pipeline import Pipeline

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Told = tuple[int, str, str]
OURS = {f"r-{number}" for number in range(3)}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def journal(capsys: pytest.CaptureFixture[str], root: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Told]:
    # A busy machine may stop a thread for seconds, in the midst of taking over or of the end.
    monkeypatch.setattr(cli_ship, "OTHERS_SECONDS", 60)
    patient = {"AUDIT_LOG_SHUTDOWN_SECONDS_MAX": "60"}

    def told(*arguments: str, url: str | None = None, **environ: str) -> Told:
        if url is not None:
            environ["OTEL_EXPORTER_OTLP_LOGS_ENDPOINT"] = url
        return run(capsys, ["journal", *arguments], root, **{**patient, **environ})

    return told


@pytest.fixture
def is_over(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Fakes the time: it is over for `ship` once its progress says that, and not before, on a busy machine too."""

    def when(said: str) -> None:
        show, ahead_s = cli_text.Progress.show, 0

        def shown(self: cli_text.Progress, text: str) -> None:
            nonlocal ahead_s
            show(self, text)
            if said in text:
                ahead_s = 3600

        monkeypatch.setattr(cli_text.Progress, "show", shown)
        monkeypatch.setattr(cli_text, "PROGRESS_SECONDS", 0)
        monkeypatch.setattr(cli_ship, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + ahead_s))

    return when


@pytest.fixture
def letters(root: Path) -> DeadLetters:
    return DeadLetters(root / "dead-letter")


def refuse(record_id: str) -> Callable[[Call], Reply]:
    def answer(call: Call) -> Reply:
        found = {faulty.attribute(record, "audit.record.id") for record in faulty.records(call.message())}
        return Reply(400, {}, b"no \x1b[2Jthanks") if record_id in found else Reply(200, faulty.PROTOBUF)

    return answer


# --- list


def test_a_list_names_every_stream_and_segment(journal: Callable[..., Told], root: Path) -> None:
    killed = leave(root, ["r-1", "r-2"])
    with owner(root, ["r-3"]) as living:
        code, out, err = journal("list", "--json")
        text = journal("list")[1]
    answer = json.loads(out)
    assert (code, err, answer["ok"], answer["journal_dir"]) == (0, "", True, str(root))
    streams = {stream["name"]: stream for stream in answer["streams"]}
    assert {name: (stream["alive"], stream["records"]) for name, stream in streams.items()} == {
        killed: (False, 2),
        living: (True, 1),
    }
    for name, stream in streams.items():
        [segment] = stream["segments"]
        assert segment["records"] == stream["records"]
        assert segment["bytes"] == stream["bytes"] == (root / name / segment["name"]).stat().st_size
    assert text.startswith(f"Journal {root}: 2 streams\n")
    assert f"\n{killed}  owner gone  2 records waiting in " in text
    assert f"\n{living}  owner alive  1 record waiting in " in text
    assert text.count("\n  00000001.segment  ") == 2


@pytest.mark.parametrize("arguments", [("list",), ("ship",), ("dead-letters",), ("dead-letters", "--retry")])
def test_without_a_journal_there_is_nothing_to_do(
    arguments: tuple[str, ...], journal: Callable[..., Told], root: Path
) -> None:
    code, out, err = journal(*arguments)
    assert (code, err) == (0, "")
    assert out
    assert not root.exists()
    code, out, err = journal(*arguments, "--json")
    assert (code, json.loads(out)["ok"], err) == (0, True, "")


@pytest.mark.parametrize(
    "arguments",
    [("list",), ("ship",), ("dead-letters",), ("dead-letters", "--show", "x"), ("dead-letters", "--retry")],
)
def test_a_journal_in_memory_has_none_of_it(arguments: tuple[str, ...], journal: Callable[..., Told]) -> None:
    code, out, err = journal(*arguments, AUDIT_LOG_JOURNAL="memory")
    assert (code, out) == (2, "")
    assert "AUDIT_LOG_JOURNAL=memory" in err


# --- ship


def test_what_processes_have_left_is_delivered_once(journal: Callable[..., Told], root: Path) -> None:
    leave(root, ["r-0", "r-1"])
    leave(root, ["r-2"], end="close")
    with owner(root, ["theirs"]) as living, receiver() as collector:
        code, out, _ = journal("ship", url=collector.url)
        assert [(state.name, state.records) for state in inspect(root)] == [(living, 1)]
    assert code == 0, out
    assert out.startswith("Delivered: 3 of 3 records, in ")
    assert out.endswith("\nLeft alone: 1 record of processes that are alive.\n")
    assert [each for each in sorted(collector.ids) if each.startswith("r-")] == sorted(OURS)
    assert "theirs" not in collector.ids
    # START, two ADOPT, STOP: the command is on record, too.
    assert len(set(collector.ids)) == len(collector.ids) == 3 + 4


def test_what_processes_have_left_is_delivered_for_programs(journal: Callable[..., Told], root: Path) -> None:
    leave(root, OURS)
    with receiver() as collector:
        code, out, _ = journal("ship", "--json", url=collector.url)
    answer = json.loads(out)
    seconds = answer.pop("seconds")
    assert code == 0
    assert 0 < seconds < 60
    assert answer == {
        "ok": True,
        "found": 3,
        "delivered": 3,
        "dead_lettered": 0,
        "dropped": {},
        "left": 0,
        "left_own": 0,
        "taken_by_others": 0,
        "reason": None,
        "signal": None,
        "live": {"journals": 0, "records": 0},
    }


def test_a_journal_of_a_process_that_lives_is_left_alone(journal: Callable[..., Told], root: Path) -> None:
    with owner(root, ["theirs"]), receiver() as collector:
        before = inspect(root)
        code, out, err = journal("ship", url=collector.url)
        assert inspect(root) == before, "something was written"
    assert (code, err) == (0, "")
    assert out == (
        "Nothing to ship: no process that is gone has left a record.\n"
        "Left alone: 1 record of processes that are alive.\n"
    )
    assert collector.proxy.seen == []


def test_a_dead_collector_loses_nothing_and_the_next_time_takes_all(
    journal: Callable[..., Told], root: Path, is_over: Callable[[str], None]
) -> None:
    leave(root, OURS)
    is_over("0 of 3 records delivered; retrying: Connection refused")
    code, out, err = journal("ship", "--seconds", "60")
    assert code == 1
    assert out.startswith("Delivered: 0 of 3 records, in ")
    assert ", 3 of them about this command, because retrying: Connection refused. The next process" in out
    assert "0 of 3 records delivered; retrying: Connection refused\n" in err
    assert "tron-audit: audit records wait: Connection refused\n" in err
    assert sum(state.records for state in inspect(root)) == 3 + 3
    with receiver() as collector:
        assert journal("ship", url=collector.url)[0] == 0
    assert set(collector.ids) >= OURS
    assert len(collector.ids) == len(set(collector.ids)) == 3 + 3 + 4
    assert inspect(root) == []


def test_a_time_that_is_over_is_said(journal: Callable[..., Told], root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave(root, OURS)
    ending = threading.Event()
    shutdown = Pipeline.shutdown

    def end(self: Pipeline) -> bool:
        ending.set()
        return shutdown(self)

    def slow(_: Call) -> Reply:
        ending.wait(60)
        return Reply(503)

    monkeypatch.setattr(Pipeline, "shutdown", end)
    with receiver(slow) as collector:
        code, out, _ = journal("ship", "--seconds", "0.5", url=collector.url)
    assert code == 1
    assert "because the time was over. The next process goes on with them.\n" in out


def test_what_the_receiver_refuses_is_set_aside(journal: Callable[..., Told], root: Path, letters: DeadLetters) -> None:
    leave(root, OURS)
    with receiver(refuse("r-1")) as collector:
        code, out, _ = journal("ship", url=collector.url)
    assert code == 1
    assert "Delivered: 2 of 3 records, in " in out
    assert "\nSet aside: 1 record. See `tron-audit journal dead-letters`.\n" in out
    assert [letter.id for letter in letters.letters()] == ["r-1"]
    assert OURS - set(collector.ids) == {"r-1"}


def test_what_is_damaged_is_counted_as_lost(journal: Callable[..., Told], root: Path) -> None:
    name = leave(root, OURS)
    segment = root / name / "00000001.segment"
    data = bytearray(segment.read_bytes())
    at = data.index(b"alice deleted", data.index(b"alice deleted") + 1)  # in the second frame of three
    data[at] ^= 1
    segment.write_bytes(data)
    with receiver() as collector:
        code, out, _ = journal("ship", url=collector.url)
    assert code == 1
    assert "Delivered: 2 of 3 records, in " in out
    assert "\nLost: 1 record, damaged.\n" in out
    assert len(list((root / "damaged").iterdir())) == 1


def test_a_journal_that_was_moved_is_shipped_from_there(journal: Callable[..., Told], root: Path) -> None:
    leave(root.with_name("elsewhere"), OURS)
    shutil.copytree(root.with_name("elsewhere"), root)
    with receiver() as collector:
        assert journal("ship", url=collector.url)[0] == 0
    assert set(collector.ids) >= OURS


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_in_order(number: signal.Signals, journal: Callable[..., Told], root: Path) -> None:
    leave(root, OURS)

    def interrupt(call: Call) -> Reply:
        if not call.proxy.seen:  # once: nobody waits for a second one
            os.kill(os.getpid(), number)
        return Reply(503)

    before = signal.getsignal(number)
    with receiver(interrupt) as collector:
        code, out, _ = journal("ship", url=collector.url)
    assert code == 128 + number
    assert signal.getsignal(number) is before
    assert "Left: 6 records, 3 of them about this command, because " in out
    assert all(state.clean or state.name.split("-")[1] != str(os.getpid()) for state in inspect(root))


def test_ctrl_c_in_a_terminal_leaves_no_traceback_and_every_record(root: Path) -> None:
    leave(root, OURS)
    environ = {
        "AUDIT_LOG_JOURNAL_DIR": str(root),
        "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "http://127.0.0.1:1/v1/logs",
        "AUDIT_LOG_SHUTDOWN_SECONDS_MAX": "60",
        "PATH": os.environ["PATH"],
    }
    command = [sys.executable, "-m", "tron_audit_otel.cli", "journal", "ship"]
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in first + err
    assert "Left: " in out
    held = adopt(root)
    assert sum(journal.records for journal in held) >= 3
    for each in held:
        each.close()


def test_what_another_process_takes_over_first_is_left_to_it(
    journal: Callable[..., Told], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(root, OURS)
    held = []
    start = Pipeline.start

    def late(self: Pipeline) -> Any:
        held.extend(adopt(root))
        return start(self)

    monkeypatch.setattr(Pipeline, "start", late)
    monkeypatch.setattr(cli_ship, "OTHERS_SECONDS", 0.5)
    with receiver() as collector:
        code, out, _ = journal("ship", url=collector.url)
    assert code == 0
    assert out.startswith("Delivered: 0 of 0 records, in ")
    assert "\nTaken over by another process meanwhile: 3 records.\n" in out
    assert not OURS & set(collector.ids)
    for each in held:
        each.close()


def test_nothing_is_done_while_a_journal_is_not_taken_over_yet(root: Path) -> None:
    watch = cli_ship._Watch(root, {leave(root, OURS)})
    assert not watch.is_done(Stats())
    [held] = adopt(root)
    assert not watch.is_done(Stats()), "it may be us, and be counted in a moment"
    chunk = held.read(1 << 20)
    assert chunk is not None
    held.acknowledge(chunk)
    assert watch.is_done(Stats())
    held.close()


def test_a_full_disk_is_said_and_loses_nothing(
    journal: Callable[..., Told], root: Path, is_over: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(root, OURS)
    is_over("no record of this command can be written: disk_full")
    monkeypatch.setattr("tron_audit_otel.stream.LAST_SECONDS", 60)  # the deadline of the end is over by then
    with small_files(10):
        code, out, _ = journal("ship", "--seconds", "60", AUDIT_LOG_SHUTDOWN_SECONDS_MAX="0.5")
    assert code == 1
    assert "Left: 3 records because no record of this command can be written: disk_full. " in out
    assert sum(state.records for state in inspect(root)) == 3


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "soon"])
def test_a_time_that_is_none_is_refused(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["journal", "ship", f"--seconds={seconds}"], {})
    assert caught.value.code == 2
    assert f"invalid number of seconds value: '{seconds}'" in capsys.readouterr().err


# --- progress


def test_progress_stays_on_one_line_of_a_terminal() -> None:
    clear, done = f"\r{'':79}\r", "done \\x1b[2J".ljust(79)
    leader, follower = os.openpty()
    with os.fdopen(leader, "rb", buffering=0) as shown, os.fdopen(follower, "w") as terminal:
        progress = cli_text.Progress(terminal)
        progress.show("x" * 200)
        progress.show("done \x1b[2J")
        progress.say("a warning")
        progress.end()
        expected = f"\r{'x' * 78}…\r{done}{clear}a warning\r\n{clear}"
        out = b""
        while len(out) < len(expected.encode()):  # a terminal gives each write by itself
            out += shown.read(10_000)
    assert out.decode() == expected


def test_progress_elsewhere_is_a_line_once_in_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_text, "PROGRESS_SECONDS", 60)
    stream = io.StringIO()
    progress = cli_text.Progress(stream)
    for number in range(3):
        progress.show(f"{number}")
    progress.say("a warning")
    progress.end()
    assert stream.getvalue() == "0\na warning\n"


def test_a_terminal_of_unknown_width_has_eighty_columns() -> None:
    """Fakes a terminal that has no file: an editor's console is one."""
    stream = io.StringIO()
    stream.isatty = lambda: True  # type: ignore[method-assign] # the fake
    cli_text.Progress(stream).show("x")
    assert stream.getvalue() == f"\r{'x':79}"


# --- dead letters


def test_no_dead_letter_is_well(journal: Callable[..., Told], root: Path) -> None:
    root.mkdir(0o700)
    assert journal("dead-letters") == (0, "0 dead letters.\n", "")
    code, out, _ = journal("dead-letters", "--json")
    assert (code, json.loads(out)) == (0, {"ok": True, "dead_letters": []})


def test_dead_letters_are_listed_with_their_reasons(
    journal: Callable[..., Told], root: Path, letters: DeadLetters
) -> None:
    letters.put("r-1", request("r-1"), reason="HTTP 400 (\x1b[2Jno)", sentence="alice deleted backups/42")
    (root / "dead-letter" / "bad.json").write_text("{")
    code, out, err = journal("dead-letters")
    assert (code, err) == (1, "")
    at = {letter.id: letter.at for letter in letters.letters()}
    assert out.startswith("2 dead letters.\n\n")
    assert f"\nr-1  {at['r-1']}\n  HTTP 400 (\\x1b[2Jno)\n  alice deleted backups/42\n" in out
    assert f"\nbad  {at['bad']}\n  unreadable\n" in out
    code, out, err = journal("dead-letters", "--json")
    listed = {each["id"]: each for each in json.loads(out)["dead_letters"]}
    assert (code, err, {key: each["readable"] for key, each in listed.items()}) == (1, "", {"r-1": True, "bad": False})


@pytest.mark.parametrize("options", [(), ("--json",)], ids=["for-people", "json"])
def test_a_letter_is_shown_as_a_receiver_takes_it(
    options: tuple[str, ...], journal: Callable[..., Told], letters: DeadLetters
) -> None:
    letters.put("r-1", request("r-1", "alice \x1b[2J\u202e"), reason="HTTP 400", sentence="")
    code, out, err = journal("dead-letters", "--show", "r-1", *options)
    assert (code, err) == (0, "")
    assert out.isascii()
    assert "\x1b" not in out
    [of_resource] = json.loads(out)["resourceLogs"]
    [record] = of_resource["scopeLogs"][0]["logRecords"]
    assert record["traceId"] == bytes(range(16)).hex()
    assert record["severityNumber"] == 9
    assert record["body"] == {"stringValue": "alice \x1b[2J\u202e"}
    assert record["attributes"] == [{"key": "audit.record.id", "value": {"stringValue": "r-1"}}]


def test_a_letter_of_a_hostile_id_is_shown_by_what_the_list_shows(
    journal: Callable[..., Told], letters: DeadLetters
) -> None:
    letters.put("../\x1b[2J\n" + "x" * 5_000, request("x"), reason="HTTP 400", sentence="")
    shown = journal("dead-letters")[1].splitlines()[2].split("  ")[0]
    assert shown.isprintable()
    assert journal("dead-letters", "--show", shown)[0] == 0


def test_a_letter_that_is_not_there_or_cannot_be_read_is_said(
    journal: Callable[..., Told], root: Path, letters: DeadLetters
) -> None:
    letters.put("r-1", b"\xff", reason="HTTP 400", sentence="")
    (root / "dead-letter" / "bad.json").write_text("{")
    for record_id, why in (
        ("r-2", "there is no dead letter 'r-2'; `tron-audit journal dead-letters` lists what there is"),
        ("r-1", "dead letter 'r-1' holds no OTLP request"),
        ("bad", "dead letter bad cannot be read"),
    ):
        code, out, err = journal("dead-letters", "--show", record_id)
        assert (code, out) == (2, "")
        assert err.startswith(f"tron-audit: {why}")


def test_a_letter_that_is_taken_now_is_removed(journal: Callable[..., Told], letters: DeadLetters) -> None:
    letters.put("r-1", request("r-1"), reason="HTTP 400", sentence="")
    letters.put("r-2", request("r-2"), reason="HTTP 400", sentence="")
    with receiver() as collector:
        code, out, _ = journal("dead-letters", "--retry", url=collector.url)
    assert (code, out) == (0, "Delivered: 2. Refused again: 0.\n0 dead letters.\n")
    assert sorted(collector.ids) == ["r-1", "r-2"]
    assert letters.letters() == []


def test_a_letter_that_is_refused_again_stays_with_the_new_reason(
    journal: Callable[..., Told], root: Path, letters: DeadLetters
) -> None:
    letters.put("r-1", request("r-1"), reason="HTTP 413", sentence="alice deleted backups/42")
    letters.put("r-2", request("r-2"), reason="HTTP 413", sentence="")
    (root / "dead-letter" / "bad.json").write_text("{")
    with receiver(refuse("r-1")) as collector:
        code, out, _ = journal("dead-letters", "--retry", "--json", url=collector.url)
    answer = json.loads(out)
    left = {each["id"]: each["reason"] for each in answer["dead_letters"]}
    assert (code, answer["delivered"], answer["refused"], answer["stopped"]) == (1, 1, 1, None)
    assert set(left) == {"r-1", "bad"}
    assert left["r-1"].startswith("HTTP 400")
    kept = letters.read("r-1")
    assert (kept.request, kept.sentence) == (request("r-1"), "alice deleted backups/42")


def test_a_dead_collector_ends_the_retry_at_once(journal: Callable[..., Told], letters: DeadLetters) -> None:
    for number in range(3):
        letters.put(f"r-{number}", request(f"r-{number}"), reason="HTTP 400", sentence="")
    with receiver(faulty.status(503)) as collector:
        code, out, _ = journal("dead-letters", "--retry", url=collector.url)
    assert code == 1
    assert out.startswith("Delivered: 0. Refused again: 0.\nNot tried any further: ")
    assert f"{collector.url}: HTTP 503" in out
    assert collector.proxy.statuses() == [503]
    assert {letter.reason for letter in letters.letters()} == {"HTTP 400"}


def test_a_disk_that_takes_no_new_reason_keeps_the_letter(journal: Callable[..., Told], letters: DeadLetters) -> None:
    payload = base64.b64encode(b"")
    letters.put("r-1", payload, reason="HTTP 413", sentence="")
    with receiver(lambda _: Reply(400)) as collector, small_files(10):
        code, out, _ = journal("dead-letters", "--retry", url=collector.url)
    assert code == 1
    assert "Not tried any further: cannot keep a dead letter in " in out
    assert letters.read("r-1").reason == "HTTP 413"


# --- what all commands share


def test_a_reader_that_has_seen_enough_is_no_fault(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        assert cli.main(["journal", "list"], {"AUDIT_LOG_JOURNAL_DIR": str(root)}) == 0


def test_a_terminal_that_lacks_a_character_gets_an_escape(
    root: Path, letters: DeadLetters, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters.put("r-1", b"", reason="HTTP 400", sentence="bücher")
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    monkeypatch.setattr(sys, "stderr", io.StringIO())  # anything that can be written to will do
    assert cli.main(["journal", "dead-letters"], {"AUDIT_LOG_JOURNAL_DIR": str(root)}) == 1
    assert b"  b\\xfccher\n" in raw.getvalue()


def test_ctrl_c_while_a_letter_is_sent_leaves_it(journal: Callable[..., Told], letters: DeadLetters) -> None:
    letters.put("r-1", request("r-1"), reason="HTTP 400", sentence="")

    def interrupt(call: Call) -> Reply:
        os.kill(os.getpid(), signal.SIGINT)
        call.proxy.closed.wait(10)
        return Reply(503)

    with receiver(interrupt) as collector:
        assert journal("dead-letters", "--retry", url=collector.url) == (130, "", "")
    assert [letter.id for letter in letters.letters()] == ["r-1"]
