"""What is on disk is for its owner alone, whatever the umask and whatever somebody has put in its place."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.archives import lines
from tests.journals import note, run
from tron_audit_otel import archive, archive_tail, disk
from tron_audit_otel.dead_letter import DeadLetters
from tron_audit_otel.disk_journal import DiskJournal, adopt
from tron_audit_otel.errors import ArchiveError, JournalError
from tron_audit_otel.journal_dir import check, foresee, inspect, swap

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WRITER = """
import os, sys
os.umask(int(sys.argv[2], 8))
from pathlib import Path
from tron_audit_otel.dead_letter import DeadLetters
from tron_audit_otel.disk_journal import DiskJournal
from tron_audit_otel.journal_dir import check, swap

root = Path(sys.argv[1])
check(root)
journal = DiskJournal.create(root, bytes_max=1 << 20, fsync=False)
journal.append(b"x", 1)
journal.note(b"{}")
swap(root, "policy", "digest")
DeadLetters(root / "dead-letter").put("r-1", b"", reason="HTTP 400", sentence="")
os._exit(0)  # what a kill leaves is there to be seen
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.parametrize("umask", ["000", "022", "277", "777"])
def test_a_process_writes_nothing_that_others_can_reach(umask: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    above = tmp_path / "made" / "for-it"
    subprocess.run([sys.executable, "-c", WRITER, str(above / "journal"), umask], check=True, timeout=60)
    found = [tmp_path / "made", *(tmp_path / "made").rglob("*")]
    assert {mode(path) for path in found if path.is_dir()} == {0o700}
    assert {mode(path) for path in found if not path.is_dir()} == {0o600}
    assert len(found) == 12


def left(root: Path) -> str:
    """What a process that ended by itself has left; gives the journal's name."""
    journal = DiskJournal.create(root, bytes_max=1 << 20, fsync=False)
    journal.append(b"x", 1)
    journal.note(note())
    journal.close()
    return journal.name


# --- directories that are there already


USES: dict[str, Callable[[Path], Any]] = {
    "start": check,
    "tron-audit-check": foresee,
    "create": lambda root: DiskJournal.create(root, bytes_max=1 << 20, fsync=False),
    "swap": lambda root: swap(root, "policy", "digest"),
}
each_use = pytest.mark.parametrize("use", USES.values(), ids=USES)


@pytest.mark.parametrize("bits", [0o777, 0o755, 0o750, 0o701, 0o1777], ids=oct)
@each_use
def test_a_journal_that_others_can_reach_is_refused_with_what_mends_it(
    use: Callable[[Path], Any], bits: int, tmp_path: Path
) -> None:
    root = tmp_path / "a b"
    root.mkdir()
    root.chmod(bits)
    with pytest.raises(JournalError) as caught:
        use(root)
    mends = "name a directory below it, which is then made" if bits & 0o1000 else f"chmod 700 '{root}'"
    said = f"AUDIT_LOG_JOURNAL_DIR: {root} has mode {bits:04o}, and is to be for its owner alone: {mends}"
    assert str(caught.value) == said
    assert caught.value.reason == "disk_failed"
    assert list(root.iterdir()) == []
    root.chmod(0o700)
    use(root)


@pytest.mark.parametrize("name", ["dead-letter", "damaged"])
@pytest.mark.parametrize("use", [check, foresee])
def test_so_is_a_directory_within_it(use: Callable[[Path], Any], name: str, root: Path) -> None:
    root.mkdir(0o700)
    (root / name).mkdir()
    (root / name).chmod(0o750)
    with pytest.raises(JournalError, match=f"{root / name} has mode 0750, .*: chmod 700 {root / name}$"):
        use(root)


def test_status_says_what_became_reachable_while_a_process_ran(root: Path, capsys: Any) -> None:
    left(root)
    root.chmod(0o711)
    code, out, _ = run(capsys, ["status"], root)
    assert code == 1
    assert f"To do: {root} has mode 0711, and is to be for its owner alone: chmod 700 {root}. Without it no" in out


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
@pytest.mark.parametrize("use", [check, USES["create"]])
def test_a_journal_of_somebody_else_is_refused(use: Callable[[Path], Any], root: Path) -> None:
    root.mkdir(0o700)
    os.chown(root, 65534, -1)
    with pytest.raises(JournalError, match=f"{root} belongs to user 65534, and this is user 0: .* chown 0 {root}, or"):
        use(root)
    assert list(root.iterdir()) == []


@pytest.mark.parametrize("bits", [0o770, 0o702, 0o1777], ids=oct)
def test_an_archive_that_others_may_have_written_is_no_evidence(bits: int, tmp_path: Path) -> None:
    (tmp_path / "audit.jsonl").write_bytes(lines([0]))
    tmp_path.chmod(bits)
    with pytest.raises(ArchiveError, match=f"archive {tmp_path} has mode {bits:04o}, .* chmod 700 {tmp_path}$"):
        list(archive.read(tmp_path, archive.ALWAYS))


# --- symbolic links


def linked(path: Path) -> Path:
    """Moves something away, and leaves a link to it."""
    moved = path.with_name(f"{path.name}-moved")
    path.rename(moved)
    path.symlink_to(moved)
    return moved


@pytest.mark.parametrize("dangling", [False, True], ids=["to-a-journal", "to-nothing"])
@pytest.mark.parametrize("use", [*USES.values(), inspect, adopt], ids=[*USES, "inspect", "adopt"])
def test_a_link_in_place_of_the_journal_is_refused(use: Callable[[Path], Any], dangling: bool, root: Path) -> None:
    left(root)
    moved = linked(root)
    before = sorted(moved.rglob("*"))
    if dangling:
        root.unlink()
        root.symlink_to("nowhere")
    with pytest.raises(JournalError, match=f"{root} .*: it is a symbolic link, and none is followed"):
        use(root)
    assert sorted(moved.rglob("*")) == before


READS = {
    "": ["status", "journal list", "journal dead-letters", "journal ship --seconds 0.1", "check"],
    "dead-letter": ["status", "journal dead-letters", "check"],
    "damaged": ["status", "check"],
}


@pytest.mark.parametrize(("name", "command"), [(name, command) for name, reads in READS.items() for command in reads])
def test_no_command_follows_a_link(command: str, name: str, root: Path, capsys: Any) -> None:
    left(root)
    DeadLetters(root / "dead-letter").put("r-1", b"", reason="HTTP 400", sentence="")
    (root / "damaged").mkdir(0o700)
    linked(root / name if name else root)
    code, out, err = run(capsys, [*command.split(), "--json"], root)
    assert (code, out) == (2, "")
    assert "it is a symbolic link, and none is followed" in err


@pytest.mark.parametrize("name", ["audit.jsonl", ""])
def test_a_link_in_the_archive_is_named(name: str, tmp_path: Path) -> None:
    directory = tmp_path / "archive"
    directory.mkdir(0o700)
    (directory / "audit.jsonl").write_bytes(lines([0]).replace(b'"timeUnixNano"', b'"observedTimeUnixNano"'))
    assert archive_tail.observed_at(directory, 1) is not None
    linked(directory / name if name else directory)
    with pytest.raises(ArchiveError, match=r"cannot be read: it is a symbolic link, and none is followed"):
        list(archive.read(directory, archive.ALWAYS))
    assert archive_tail.observed_at(directory, 1) is None


def test_what_is_swapped_for_a_link_between_two_looks_is_not_followed(root: Path) -> None:
    """The descriptor is what counts: whoever renames the directory gets nothing of what is written afterwards."""
    journal = DiskJournal.create(root, bytes_max=1 << 20, fsync=False)
    decoy = root.with_name("decoy")
    (decoy / journal.name).mkdir(parents=True, mode=0o700)
    moved = root.with_name("moved")
    root.rename(moved)
    root.symlink_to(decoy)
    journal.append(b"x", 1)
    journal.note(b"{}")
    assert list((decoy / journal.name).iterdir()) == []
    assert {path.name for path in (moved / journal.name).iterdir()} >= {"00000001.segment", "status.json"}
    journal.close()


def test_a_letter_written_while_the_journal_is_swapped_is_refused(root: Path) -> None:
    letters = DeadLetters(root / "dead-letter")
    letters.put("r-1", b"", reason="HTTP 400", sentence="")
    moved = linked(root)
    with pytest.raises(JournalError, match="it is a symbolic link, and none is followed"):
        letters.put("r-2", b"", reason="HTTP 400", sentence="")
    assert [path.name for path in (moved / "dead-letter").iterdir()] == ["r-1.json"]


def test_a_directory_that_a_link_has_replaced_is_left_as_it_is(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake stands for whoever is as fast: it took hundreds of tries with real processes."""
    theirs = root.with_name("theirs")
    theirs.mkdir()
    theirs.chmod(0o755)
    mkdir = type(root).mkdir

    def swapped(path: Path, *args: Any, **options: Any) -> None:
        mkdir(path, *args, **options)
        path.rename(path.with_name("aside"))
        path.symlink_to(theirs)

    monkeypatch.setattr(type(root), "mkdir", swapped)
    disk.make_directory(root)
    assert stat.S_IMODE(theirs.stat().st_mode) == 0o755


def test_no_journal_is_taken_over_where_others_may_have_put_it(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal = DiskJournal.create(root, bytes_max=1 << 20, fsync=False)
    journal.append(b"x", 1)
    journal.close()
    root.chmod(0o777)
    assert adopt(root) == []
    assert "no journal is taken over: AUDIT_LOG_JOURNAL_DIR" in caplog.text
    root.chmod(0o700)
    [taken] = adopt(root)
    taken.close()


# --- what is no file


SPECIAL: dict[str, Callable[[Path], Any]] = {
    "pipe": os.mkfifo,
    "directory": lambda path: path.mkdir(),
    "link": lambda path: path.symlink_to("/dev/zero"),
}
if os.geteuid() == 0:
    SPECIAL["device"] = lambda path: os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # /dev/zero


@pytest.mark.parametrize("make", SPECIAL.values(), ids=SPECIAL)
@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR | os.O_CREAT, os.O_WRONLY | os.O_CREAT], ids=["r", "rw", "w"])
def test_nothing_but_a_file_is_opened_nor_waited_for(flags: int, make: Callable[[Path], Any], tmp_path: Path) -> None:
    make(tmp_path / "x")
    with disk.opened_directory(tmp_path) as directory:
        before = os.listdir(f"/proc/self/fd")  # noqa: F541, PTH208 - which descriptors are open
        with pytest.raises(OSError, match=r"no regular file|symbolic link|Is a directory|No such device"):
            disk.open_file("x", flags, directory)
        # Some of another test's may be gone: the garbage collector comes when it likes.
        assert set(os.listdir("/proc/self/fd")) <= set(before)  # noqa: PTH208 - as above


@pytest.mark.parametrize("name", ["status.json", "acknowledged", "lock", "00000001.segment"])
@pytest.mark.parametrize("make", SPECIAL.values(), ids=SPECIAL)
@pytest.mark.parametrize("command", [["status"], ["journal", "list"]], ids=" ".join)
def test_no_command_hangs_at_what_is_no_file(
    command: list[str], make: Callable[[Path], Any], name: str, root: Path, capsys: Any
) -> None:
    directory = root / left(root)
    (directory / name).unlink(missing_ok=True)
    make(directory / name)
    code, _, err = run(capsys, command, root)
    if name != "00000001.segment":  # which is passed over, like any foreign thing
        assert code == 2
        assert str(directory) in err
