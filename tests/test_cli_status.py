from __future__ import annotations

import json
import logging
import os
import re
import shutil
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.journals import COUNTS, leave, note, owner, run
from tests.metrics_fakes import says, server, shown
from tron_audit_otel import cli_processes, cli_text
from tron_audit_otel.config import AuditConfig
from tron_audit_otel.context import open_telemetry_context
from tron_audit_otel.dead_letter import DeadLetters
from tron_audit_otel.disk_journal import DiskJournal, adopt
from tron_audit_otel.event import Action, Actor, ActorType, AuditEvent, EventName, Outcome
from tron_audit_otel.pipeline import Pipeline
from tron_audit_otel.resource import named

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

Told = tuple[int, str, str]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def status(capsys: pytest.CaptureFixture[str], root: Path) -> Callable[..., Told]:
    return lambda *options, **environ: run(capsys, ["status", *options], root, **environ)


@pytest.fixture
def found(status: Callable[..., Told]) -> Callable[[], tuple[int, Any]]:
    """The exit code and the object of `--json`."""

    def read() -> tuple[int, Any]:
        code, out, err = status("--json")
        assert err == ""
        assert out.count("\n") == 1
        return code, json.loads(out)

    return read


@pytest.fixture
def live(root: Path) -> Iterator[DiskJournal]:
    """A journal that this very process holds, which lives."""
    journal = DiskJournal.create(root, bytes_max=1 << 20, fsync=False)
    yield journal
    journal.close()


def kinds(answer: Any) -> list[str]:
    return [problem["kind"] for problem in answer["problems"]]


def test_a_journal_that_nobody_has_begun_is_no_fault(status: Callable[..., Told], root: Path) -> None:
    code, out, err = status()
    assert (code, err) == (0, "")
    assert out.startswith(f"No process has written a record yet: {root} does not exist.\n")
    assert not root.exists()
    code, out, _ = status("--json")
    told = json.loads(out)
    assert (code, told["ok"], told["journal_dir"], told["exists"]) == (0, True, str(root), False)
    assert "processes" not in told


def test_a_journal_in_memory_is_known_to_its_process_alone(status: Callable[..., Told]) -> None:
    code, out, err = status(AUDIT_LOG_JOURNAL="memory")
    assert (code, out) == (2, "")
    assert err.startswith("tron-audit: AUDIT_LOG_JOURNAL=memory: nothing is on disk, and only the process itself knows")
    assert "tron_audit_otel.stats()" in err


@pytest.fixture
def collector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """One whose SIEM has refused records, and has taken others."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with server(says(shown(siems={"otlp_http/http": {"failed": 3, "delivered": 97}}).encode())) as url:
        yield url


def test_a_journal_in_memory_does_not_hide_the_collector(status: Callable[..., Told], collector: str) -> None:
    code, out, err = status("--collector", collector, AUDIT_LOG_JOURNAL="memory")
    assert (code, err) == (1, "")
    assert out.startswith("AUDIT_LOG_JOURNAL=memory: nothing is on disk")
    assert "\nhttp: 100 taken, 97 delivered, 3 refused\n" in out
    assert "\nTo do: http has refused 3 records for good." in out


def test_no_journal_here_does_not_hide_the_collector(status: Callable[..., Told], collector: str, root: Path) -> None:
    code, out, _ = status("--collector", collector, "--json")
    told = json.loads(out)
    assert (code, told["ok"], told["exists"], kinds(told)) == (1, False, False, ["siem_refused"])
    assert [siem["name"] for siem in told["siems"]] == ["http"]
    assert told["collector"]["archived"] == 100


def test_a_journal_that_cannot_be_read_hides_neither_the_collector_nor_itself(
    status: Callable[..., Told], collector: str, root: Path
) -> None:
    root.write_text("a file where the directory should be")
    code, out, err = status("--collector", collector)
    assert (code, err) == (2, "")
    assert out.startswith(f"AUDIT_LOG_JOURNAL_DIR: {root} cannot be read: ")
    assert "\nTo do: http has refused 3 records for good." in out
    code, out, err = status("--collector", "http://127.0.0.1:1")
    assert (code, err) == (2, "")
    assert "\nTo do: http://127.0.0.1:1/metrics cannot be reached: " in out


def test_a_journal_that_cannot_be_read_is_not_all_well_because_the_siems_are(
    status: Callable[..., Told], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    root.write_text("a file where the directory should be")
    with server(says(shown(siems={}).encode())) as url:
        code, out, _ = status("--collector", url)
    assert code == 2
    assert out.endswith("\nTo do: Mend what keeps the journal from being read.\n")


def test_what_the_journal_and_what_a_siem_wants_are_told_together(
    status: Callable[..., Told], collector: str, root: Path
) -> None:
    leave(root, ["r-1"])
    code, out, _ = status("--json", "--collector", collector)
    assert (code, kinds(json.loads(out))) == (1, ["left", "siem_refused"])
    lines = status("--collector", collector)[1].splitlines()
    assert [line.split(":")[0] for line in lines[-2:]] == ["To do", "To do"]


def test_a_collector_that_is_silent_is_a_problem_beside_a_journal_that_is_well(
    status: Callable[..., Told], live: DiskJournal
) -> None:
    live.note(note())
    code, out, _ = status("--collector", "http://127.0.0.1:1")
    assert code == 1
    assert "\nTo do: http://127.0.0.1:1/metrics cannot be reached: " in out


def test_what_is_on_its_way_to_a_siem_is_told_when_all_is_well(
    status: Callable[..., Told], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    siem = {"taken": 100, "delivered": 80, "waiting_bytes": 20_000}
    with server(says(shown(siems={"splunk_hec": siem}).encode())) as url:
        code, out, _ = status("--collector", url)
    assert code == 0
    assert out.endswith("\nAll is well so far: on the way are about 20 records for splunk.\n")


def test_what_waits_here_and_what_waits_at_the_collector_are_both_told(
    status: Callable[..., Told], live: DiskJournal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    live.append(b"x", 1)
    live.note(note(emitted=1, pending=1, shipping="retrying", reason="HTTP 503"))
    with server(says(shown(siems={"splunk_hec": {"waiting_bytes": 20_000}}).encode())) as url:
        code, out, _ = status("--collector", url)
    assert code == 0
    assert out.splitlines()[-2:] == [
        "All is well so far: what waits is tried again by itself (HTTP 503).",
        "At the Collector are about 20 records for splunk.",
    ]


def test_a_setting_that_is_wrong_is_named(status: Callable[..., Told]) -> None:
    code, out, err = status("--json", AUDIT_LOG_FSYNC="perhaps")
    assert (code, out) == (2, "")
    assert json.loads(err) == {"ok": False, "error": "AUDIT_LOG_FSYNC must be true or false, not 'perhaps'"}


@pytest.fixture
def stranger() -> Iterator[Callable[[Path], None]]:
    """Takes a directory away from this process, and for root, whom nothing is denied, makes somebody else of it."""
    changed: list[Path] = []

    def deny(path: Path) -> None:
        path.chmod(0)
        changed.append(path)
        if os.geteuid() == 0:
            os.seteuid(65534)

    before = os.geteuid()
    yield deny
    if os.geteuid() != before:
        os.seteuid(before)
    for path in changed:
        path.chmod(0o700)


@pytest.mark.parametrize("inner", [".", "..", "dead-letter", "damaged"])
def test_a_directory_that_may_not_be_read_is_said(
    inner: str, status: Callable[..., Told], root: Path, stranger: Callable[[Path], None]
) -> None:
    (root / "dead-letter").mkdir(parents=True)
    (root / "damaged").mkdir()
    root.chmod(0o755)
    for parent in root.parents[:3]:  # pytest's own
        parent.chmod(0o755)
    stranger(root / inner)
    code, out, err = status()
    assert (code, out) == (2, "")
    assert err.startswith("tron-audit: ")
    assert str(root) in err
    assert err.endswith("Permission denied\n")


def test_a_journal_without_processes_is_all_well(status: Callable[..., Told], root: Path) -> None:
    root.mkdir(0o700)
    code, out, _ = status()
    assert (code, out.splitlines()[-1]) == (0, "All is well: nothing waits.")


def event() -> AuditEvent:
    return AuditEvent(
        record_id="r-1",
        name=EventName.EVENT,
        began_ns=time.time_ns(),
        duration_ns=0,
        actor=Actor("alice@example.com", ActorType.USER),
        action=Action.DELETE,
        resource=named("backups/42"),
        outcome=Outcome.SUCCESS,
        context=open_telemetry_context(),
    )


ENDPOINT = "http://127.0.0.1:1/v1/logs"


@pytest.fixture
def pipeline(root: Path) -> Iterator[Pipeline]:
    """A real one, whose Collector is dead."""
    # The command runs in the same process here, and would show its log as its own.
    logging.disable(logging.WARNING)
    config = AuditConfig(
        enabled=True, journal_dir=root, otlp_endpoint=ENDPOINT, service_name="api", shutdown_seconds_max=60
    )
    pipeline = Pipeline(config)
    yield pipeline
    pipeline.shutdown()
    logging.disable(logging.NOTSET)


def until(found: Callable[[], tuple[int, Any]], is_so: Callable[[list[Any]], bool]) -> tuple[int, Any]:
    """Asks until the processes' notes say so; they come once a second."""
    deadline = time.monotonic() + 60
    while not is_so((answer := found())[1].get("processes", [])):
        assert time.monotonic() < deadline, answer
        time.sleep(0.1)
    return answer


def test_what_a_process_notes_is_what_is_read(
    pipeline: Pipeline, status: Callable[..., Told], found: Callable[[], tuple[int, Any]]
) -> None:
    pipeline.emit(event())
    code, answer = until(
        found,
        lambda processes: any(
            each["note"] and each["note"]["reason"] and each["records"] == each["note"]["emitted"] > 1
            for each in processes
        ),
    )
    [process] = answer["processes"]
    assert (code, answer["ok"], process["standing"], process["pid"]) == (0, True, "alive", os.getpid())
    assert process["records"] == process["note"]["emitted"] == process["note"]["pending"] == 2, "START, and ours"
    assert answer["totals"]["counts"]["emitted"] == 2
    text = status()[1]
    assert f"api, process {os.getpid()}: alive, retrying\n" in text
    assert "emitted 2 = 0 delivered + 2 waiting + 0 dead letters + 0 lost\n" in text
    assert f"retrying, to {ENDPOINT}: " in text
    assert text.splitlines()[-1].startswith("All is well so far: what waits is tried again by itself (")
    pipeline.shutdown()
    code, answer = found()
    assert (code, kinds(answer), answer["processes"][0]["standing"]) == (1, ["left"], "gone")
    assert f"api, process {os.getpid()}: gone, ended by itself\n" in status()[1]


def test_a_process_that_takes_over_says_what(
    pipeline: Pipeline, found: Callable[[], tuple[int, Any]], root: Path
) -> None:
    killed = leave(root, ["r-1"], noted=note(pid=7))
    pipeline.emit(event())
    code, answer = until(found, lambda processes: any(each["note"] and each["note"]["held"] for each in processes))
    assert {each["name"]: each["standing"] for each in answer["processes"]}[killed] == "taken over"
    assert (code, answer["totals"]["alive"], answer["totals"]["gone"]) == (0, 1, 1)


def test_records_that_nobody_ships_wait_for_an_operator(
    status: Callable[..., Told], found: Callable[[], tuple[int, Any]], root: Path
) -> None:
    name = leave(root, ["r-1", "r-2"], noted=note(pid=7))
    code, out, _ = status()
    assert code == 1
    assert f"platform-api, process 7: gone, killed\n  journal {name}: 2 records waiting in " in out
    assert out.splitlines()[-1] == (
        "To do: 2 records of processes that are gone, and none is alive to ship them. "
        "Start the application, or run `tron-audit journal ship`."
    )
    with owner(root, noted=note()):  # it will take them over
        code, answer = found()
        assert (code, kinds(answer)) == (0, [])
        assert (answer["totals"]["alive"], answer["totals"]["gone"], answer["totals"]["records"]) == (1, 1, 2)
        assert status()[1].splitlines()[-1] == "All is well: 2 records on the way."


@pytest.mark.parametrize(
    ("fields", "kind", "text"),
    [
        pytest.param(
            {"shipping": "parked", "reason": "HTTP 401"},
            "parked",
            "Process 4211 can deliver nothing to http://collector:4318/v1/logs: HTTP 401. Mend it there, ",
            id="parked",
        ),
        pytest.param({"blocked": "disk_full"}, "blocked", "can write no record: disk_full. Make room", id="disk-full"),
        pytest.param({"blocked": "journal_full"}, "blocked", "AUDIT_LOG_JOURNAL_MAX_BYTES", id="journal-full"),
        pytest.param({"blocked": "disk_failed"}, "blocked", "Look after its disk", id="disk-failed"),
        pytest.param({"blocked": "another"}, "blocked", "another. Look after its disk", id="blocked-otherwise"),
        pytest.param(
            {"noted_at": time.time() - 5 * 86_400}, "silent", "has not renewed its note for 5 days. Look", id="old-note"
        ),
        pytest.param(
            {"emitted": 3, "dropped": {"queue_full": 3}}, "lost", "3 records lost for good: queue_full 3.", id="lost"
        ),
        pytest.param(
            {"adopted": {**COUNTS, "emitted": 1, "dropped": {"damaged": 1}}},
            "lost",
            "1 record lost for good: damaged 1.",
            id="lost-of-another",
        ),
    ],
)
def test_what_a_process_cannot_mend_by_itself_waits_for_an_operator(
    fields: dict[str, Any], kind: str, text: str, live: DiskJournal, found: Callable[[], tuple[int, Any]]
) -> None:
    live.note(note(**fields))
    code, answer = found()
    assert (code, answer["ok"], kinds(answer)) == (1, False, [kind])
    assert text in answer["problems"][0]["text"]


def test_all_that_a_process_says_is_told(live: DiskJournal, status: Callable[..., Told]) -> None:
    adopted = {**COUNTS, "emitted": 1_300, "delivered": 1_299, "pending": 1}
    counts = {"emitted": 12_348, "delivered": 12_300, "pending": 45, "queued": 3, "dead_lettered": 2}
    dropped = {"dropped": {"disk_full": 1}, "rejected": 9, "blocked": "disk_full"}
    live.note(note(**counts, **dropped, adopted=adopted, noted_at=time.time() - 30, service=None))
    out = status()[1]
    assert "\nprocess 4211: alive, idle\n" in out
    assert re.search(
        r"  [345]\d s ago: emitted 12,348 = 12,300 delivered \+ 45 waiting \(3 in memory\) \+ 2 dead letters \+ 1 lost "
        r"\(disk_full 1\)\n",
        out,
    )
    assert "  of processes that are gone: 1,300 = 1,299 delivered + 1 waiting + 0 dead letters + 0 lost\n" in out
    assert "503, since their records could not have been written: 9 requests\n" in out
    assert "  blocked: disk_full\n" in out


def test_a_process_that_has_just_begun_is_not_taken_for_one_that_hangs(
    live: DiskJournal, status: Callable[..., Told], found: Callable[[], tuple[int, Any]], root: Path
) -> None:
    code, answer = found()
    assert (code, answer["processes"][0]["standing"], answer["processes"][0]["pid"]) == (0, "alive", os.getpid())
    assert "no note yet" in status()[1]
    for name in ("20200101T000000-7-0123abcd", "99999999T999999-7-0123abcd"):
        (root / live.name).rename(root / name)
        live.name = name
        code, answer = found()
        assert (code, kinds(answer), answer["processes"][0]["pid"]) == (1, ["silent"], 7)
        assert "has not renewed its note since its start" in status()[1]


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\x00", b"[]", b"{}", note(pid="\x1b[2J"), note(noted_at=float("nan")), note(adopted=None), b"[" * 9999],
    ids=["empty", "binary", "a-list", "no-fields", "another-type", "no-time", "no-counts", "too-deep"],
)
def test_a_note_that_cannot_be_read_hides_nothing(
    content: bytes, found: Callable[[], tuple[int, Any]], status: Callable[..., Told], root: Path
) -> None:
    name = leave(root, ["r-1"])
    (root / name / "status.json").write_bytes(content)
    code, answer = found()
    assert (code, kinds(answer), answer["processes"][0]["note"]) == (1, ["left"], None)
    assert answer["processes"][0]["records"] == 1
    assert "  no note\n" in status()[1]


def test_a_journal_that_was_taken_over_is_not_taken_for_its_owner(
    live: DiskJournal, status: Callable[..., Told], found: Callable[[], tuple[int, Any]], root: Path
) -> None:
    killed = leave(root, ["r-1"], noted=note(pid=7))
    closed = leave(root, ["r-2"], noted=note(pid=8), end="close")
    adopted = adopt(root)
    assert len(adopted) == 2
    live.note(note(held=[killed], adopted={**COUNTS, "emitted": 2, "pending": 2}))
    code, answer = found()
    standing = {process["name"]: process["standing"] for process in answer["processes"]}
    assert (code, standing) == (0, {live.name: "alive", killed: "taken over", closed: "taken over"})
    assert "process 7: gone, taken over by another process\n" in status()[1]
    for journal in adopted:
        journal.close()


def test_dead_letters_and_damage_wait_for_an_operator(
    status: Callable[..., Told], found: Callable[[], tuple[int, Any]], root: Path
) -> None:
    letters = DeadLetters(root / "dead-letter")
    letters.put("r-1", b"", reason="HTTP 400 (old)", sentence="")
    time.sleep(0.002)  # their times have milliseconds
    letters.put("r-2", b"", reason="HTTP 413 (new)", sentence="")
    (root / "damaged").mkdir(0o700)
    (root / "damaged" / "a-directory").mkdir()
    (root / "damaged" / "x-00000001.segment").write_bytes(b"x" * 3_400_000)
    code, answer = found()
    assert (code, kinds(answer)) == (1, ["dead_letters", "damaged"])
    assert answer["dead_letters"] == {"count": 2, "newest_reason": "HTTP 413 (new)"}
    assert answer["damaged"] == {"segments": 1, "bytes": 3_400_000}
    out = status()[1]
    assert "Dead letters: 2, the newest: HTTP 413 (new)\n" in out
    assert "Damaged segments: 1, 3.2 MiB\n" in out
    assert [line.split(":")[0] for line in out.splitlines()[-2:]] == ["To do", "To do"]


def test_a_full_disk_is_said_although_no_process_can_say_so(
    found: Callable[[], tuple[int, Any]], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fakes the free space: no disk here is full when asked to be."""
    root.mkdir(0o700)
    full = shutil.disk_usage(root)._replace(free=4096)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    code, answer = found()
    assert (code, kinds(answer)) == (1, ["disk_full"])
    assert "full: 4.0 KiB free" in answer["problems"][0]["text"]


HOSTILE = "\x1b[2J\x07\r\n\u202eevil\x9b1m"


def test_nothing_that_others_chose_steers_a_terminal(
    live: DiskJournal, status: Callable[..., Told], root: Path
) -> None:
    fields = dict.fromkeys(("service", "endpoint", "reason", "blocked"), HOSTILE)
    live.note(note(**fields, shipping="parked", dropped={HOSTILE: 1}))
    DeadLetters(root / "dead-letter").put("r-1", b"", reason=HOSTILE, sentence="")
    code, out, _ = status()
    assert code == 1
    assert out.count("evil") >= 6
    assert all(line.isprintable() for line in out.splitlines())
    assert status("--json")[1].strip().isprintable()


def test_reading_holds_up_no_process_that_writes(
    live: DiskJournal, found: Callable[[], tuple[int, Any]], root: Path
) -> None:
    ended = threading.Event()
    errors: list[Exception] = []

    def write() -> None:
        try:
            while not ended.is_set():
                live.append(b"x" * 2_000, 1)
                chunk = live.read(100_000)
                assert chunk is not None
                live.acknowledge(chunk)
                live.note(note(emitted=1))
        except Exception as error:  # noqa: BLE001 - shown by the test
            errors.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(50):
            code, answer = found()
            assert code == 0, answer
    finally:
        ended.set()
        writer.join()
    assert errors == []
    assert adopt(root) == [], "its lock was lost"


def test_looking_again_and_again_keeps_nobody_from_taking_over(root: Path) -> None:
    name = leave(root, ["r-1"])
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            cli_processes.look(root)

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        deadline = time.monotonic() + 20
        while not (adopted := adopt(root)):
            assert time.monotonic() < deadline
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert [journal.name for journal in adopted] == [name]
    adopted[0].close()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0 s"), (59, "59 s"), (125, "2 min"), (3 * 3600, "3 h"), (5 * 86_400, "5 days"), (1e300, None)],
)
def test_a_time_is_told_for_people(seconds: float, text: str | None) -> None:
    told = cli_text.duration(seconds)
    assert told == text if text is not None else re.fullmatch(r"[\d,]+ days", told)
