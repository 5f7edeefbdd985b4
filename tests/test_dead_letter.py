from __future__ import annotations

import base64
import errno
import json
import os
import stat
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest

from tests.limits import small_files
from tron_audit_otel.dead_letter import FILE_BYTES_MAX, TEMPORARY_SECONDS_MAX, DeadLetters, Letter
from tron_audit_otel.errors import JournalError

if TYPE_CHECKING:
    from pathlib import Path

REQUEST = b"\x0a\x00\xff one record"

HOSTILE_IDS = [
    "../../x",
    "/etc/passwd",
    ".",
    "..",
    "",
    " ",
    "x" * 65,
    "x" * 10_000,
    "a\0b",
    "a\nb",
    "a.json",
    "-rf",
    "ID",
    "\u0131d",
    "٣",
    "id\n",
    "\udc80",
    "\U0001f600",
    f"hashed-{'0' * 64}",
    ".x.0000000000000000.tmp",
]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "journal" / "dead-letter"


def put(directory: Path, record_id: str = "r-1", request: bytes = REQUEST, reason: str = "HTTP 400") -> DeadLetters:
    letters = DeadLetters(directory)
    letters.put(record_id, request, reason=reason, sentence="alice deleted backups/42")
    return letters


def only(letters: DeadLetters) -> Letter:
    (letter,) = letters.letters()
    return letter


def ids(directory: Path) -> set[str]:
    return {letter.id for letter in DeadLetters(directory).letters()}


def test_a_letter_is_kept_whole(directory: Path) -> None:
    letters = put(directory)
    read = letters.read("r-1")
    assert (read.id, read.reason, read.sentence) == ("r-1", "HTTP 400", "alice deleted backups/42")
    assert read.request == REQUEST
    assert read.is_readable
    assert datetime.fromisoformat(read.at).utcoffset() is not None
    listed = only(letters)
    assert (listed.id, listed.at, listed.request) == ("r-1", read.at, None)


def test_a_file_is_for_peoples_tools(directory: Path) -> None:
    put(directory)
    fields = json.loads((directory / "r-1.json").read_text(encoding="utf-8"))
    assert set(fields) == {"id", "at", "reason", "sentence", "request"}
    assert base64.b64decode(fields["request"]) == REQUEST


def test_nobody_else_can_read_it_whatever_the_umask(directory: Path) -> None:
    before = os.umask(0o777)
    try:
        directory.parent.mkdir()
        directory.parent.chmod(0o700)
        put(directory)
    finally:
        os.umask(before)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE((directory / "r-1.json").stat().st_mode) == 0o600


def test_the_same_record_again_takes_the_same_file(directory: Path) -> None:
    put(directory)
    letters = put(directory, request=b"later")
    assert only(letters).id == "r-1"
    assert letters.read("r-1").request == b"later"
    letters.put("r-1", b"last", reason="", sentence="")
    assert letters.read("r-1").request == b"last"


@pytest.mark.parametrize("hostile", HOSTILE_IDS, ids=lambda hostile: ascii(hostile)[:24])
def test_an_id_never_leads_out_of_the_directory(hostile: str, directory: Path, tmp_path: Path) -> None:
    letters = put(directory, hostile)
    put(directory, hostile)
    files = [path for path in tmp_path.rglob("*") if not path.is_dir()]
    assert [path.parent for path in files] == [directory]
    assert len(files[0].name) <= 100
    assert files[0].name.isascii()
    assert only(letters).id == hostile
    assert letters.read(hostile).request == REQUEST
    letters.remove(hostile)
    assert letters.letters() == []


def test_no_two_ids_share_a_file(directory: Path) -> None:
    every = {*HOSTILE_IDS, "id", "x" * 64, "a", "b"}
    for record_id in every:
        put(directory, record_id)
    assert ids(directory) == every
    assert len({path.name.casefold() for path in directory.iterdir()}) == len(every), "a file system may ignore case"


def test_what_a_receiver_says_breaks_no_terminal(directory: Path) -> None:
    letters = put(directory, reason="HTTP 400 (\x1b[2Jno\n)" + "x" * 10_000)
    assert letters.read("r-1").reason.isprintable()
    assert len(letters.read("r-1").reason) < 2000


def test_the_oldest_comes_first(directory: Path) -> None:
    for record_id in ("b", "a", "c"):
        put(directory, record_id)
        path = directory / f"{record_id}.json"
        fields = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(fields | {"at": f"2026-01-0{'bac'.index(record_id) + 1}T00:00:00+00:00"}))
    assert [letter.id for letter in DeadLetters(directory).letters()] == ["b", "a", "c"]


def test_without_a_directory_there_are_no_letters(directory: Path) -> None:
    letters = DeadLetters(directory)
    assert letters.letters() == []
    letters.remove("r-1")
    with pytest.raises(JournalError, match=r"read dead letter r-1 .*No such file"):
        letters.read("r-1")
    assert not directory.exists()


def test_removing_twice_is_no_error(directory: Path) -> None:
    letters = put(directory)
    letters.remove("r-1")
    letters.remove("r-1")
    assert letters.letters() == []


def damaged(**fields: Any) -> str:
    good = {"id": "bad", "at": "2026-01-01T00:00:00+00:00", "reason": "", "sentence": "", "request": ""}
    return json.dumps(good | fields)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("", id="empty"),
        pytest.param(damaged()[:-20], id="cut"),
        pytest.param("\0" * 100, id="zeros"),
        pytest.param("[]", id="a-list"),
        pytest.param("[" * 100_000, id="too-deep"),
        pytest.param("1" * 10_000, id="a-number-that-is-too-long"),
        pytest.param(damaged(id=1), id="an-id-of-another-type"),
        pytest.param(damaged(id="other"), id="another-letters-content"),
        pytest.param(damaged(request="%%%%"), id="no-base64"),
        pytest.param(damaged(request="ü"), id="no-ascii"),
        pytest.param(damaged(at="yesterday"), id="no-time"),
    ],
)
def test_a_damaged_letter_is_listed_as_such_and_hides_no_other(content: str, directory: Path) -> None:
    letters = put(directory)
    (directory / "bad.json").write_text(content, encoding="utf-8")
    assert {letter.id: letter.is_readable for letter in letters.letters()} == {"r-1": True, "bad": False}
    with pytest.raises(JournalError, match="bad"):
        letters.read("bad")
    letters.remove("bad")
    assert only(letters).id == "r-1"


def test_a_damaged_letter_of_a_hostile_id_is_found_by_its_files_name(directory: Path) -> None:
    letters = put(directory, "../x")
    (path,) = directory.iterdir()
    path.write_bytes(b"\xff")
    bad = only(letters)
    assert not bad.is_readable
    assert bad.id == path.stem
    with pytest.raises(JournalError, match="cannot be read"):
        letters.read(bad.id)
    letters.remove(bad.id)
    assert letters.letters() == []


def test_a_file_of_a_time_that_no_calendar_has_is_listed(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fakes the time: most file systems end before the calendar does."""
    letters = put(directory)
    (directory / "r-1.json").write_bytes(b"")
    monkeypatch.setattr(os, "stat", lambda *_, **__: os.stat_result((stat.S_IFREG, *[0] * 7, 2**40, 0)))
    assert only(letters) == Letter("r-1", "", "unreadable", only(letters).sentence, is_readable=False)


def test_a_huge_file_is_not_read(directory: Path) -> None:
    letters = put(directory)
    with (directory / "big.json").open("wb") as file:
        file.truncate(FILE_BYTES_MAX + 1)  # sparse
    assert {letter.id: letter.is_readable for letter in letters.letters()} == {"r-1": True, "big": False}


def test_foreign_things_are_left_alone(directory: Path, tmp_path: Path) -> None:
    letters = put(directory)
    secret = tmp_path / "secret"
    secret.write_text(damaged(id="link"))
    (directory / "link.json").symlink_to(secret)
    (directory / "dir.json").mkdir()
    (directory / "README").write_text("x")
    (directory / "Foreign.json").write_text("x")
    os.mkfifo(directory / "pipe.json")
    assert ids(directory) == {"r-1"}
    for name in ("link", "pipe"):
        with pytest.raises(JournalError):
            letters.read(name)
    put(directory, "link")
    assert letters.read("link").request == REQUEST
    assert secret.read_text() == damaged(id="link"), "a link was followed"


def test_a_link_in_place_of_the_directory_is_refused(directory: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    directory.parent.mkdir()
    directory.symlink_to(elsewhere)
    with pytest.raises(JournalError) as caught:
        put(directory)
    assert caught.value.reason == "disk_failed"
    assert list(elsewhere.iterdir()) == []


def test_a_letter_that_does_not_fit_is_said_and_leaves_nothing(directory: Path) -> None:
    with pytest.raises(JournalError, match="cannot keep a dead letter in") as caught, small_files(100):
        put(directory)
    assert caught.value.reason == "disk_full"
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, "disk_full"),
        (errno.EDQUOT, "disk_full"),
        (errno.EIO, "disk_failed"),
        (errno.EROFS, "disk_failed"),
    ],
    ids=["no-space", "quota", "broken", "read-only"],
)
@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
def test_a_disk_that_refuses_never_costs_the_letter_before(
    call: str, number: int, reason: str, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fakes the system's refusal: no disk here gives these errors when asked to."""
    letters = put(directory)

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, refuse)
        with pytest.raises(JournalError, match=os.strerror(number)) as caught:
            put(directory, request=b"later")
    assert caught.value.reason == reason
    assert letters.read("r-1").request == REQUEST
    assert [path.name for path in directory.iterdir()] == ["r-1.json"]
    put(directory, request=b"later")
    assert letters.read("r-1").request == b"later"


def test_a_letter_is_on_disk_before_anybody_can_see_it(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Watches the order of the calls: only a power cut could show it otherwise."""
    calls: list[str] = []

    def watch(name: str) -> None:
        real = getattr(os, name)

        def watched(*args: Any, **options: Any) -> Any:
            what = "directory" if name == "fsync" and stat.S_ISDIR(os.fstat(args[0]).st_mode) else "file"
            calls.append(f"{name} {what}")
            return real(*args, **options)

        monkeypatch.setattr(os, name, watched)

    watch("fsync")
    watch("replace")
    put(directory)
    assert calls == ["fsync directory", "fsync file", "replace file", "fsync directory"]


def test_what_a_killed_process_left_half_written_is_no_letter_and_goes(directory: Path) -> None:
    letters = put(directory)
    old, new, foreign = (
        directory / name for name in (f".r-2.{'0' * 16}.tmp", f".r-3.{'0' * 16}.tmp", ".somebodys.tmp")
    )
    for path in (old, new, foreign):
        path.write_text("{")
    for path in (old, foreign):
        os.utime(path, (0, path.stat().st_mtime - TEMPORARY_SECONDS_MAX - 60))
    assert only(letters).id == "r-1"
    put(directory)
    assert {path.name for path in directory.iterdir()} == {"r-1.json", new.name, foreign.name}


def test_a_letter_that_is_removed_while_they_are_listed_is_missing_not_damaged(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fakes the moment: the names are read, then one is removed."""
    letters = put(directory)
    real = os.fdopen

    def fdopen(*args: Any, **options: Any) -> Any:
        (directory / "r-2.json").unlink(missing_ok=True)
        return real(*args, **options)

    put(directory, "r-2")
    monkeypatch.setattr(os, "fdopen", fdopen)
    monkeypatch.setattr(os, "listdir", lambda _: ["r-1.json", "r-2.json"])
    assert ids(directory) == {"r-1"}
    assert letters.read("r-1").request == REQUEST
