"""The journal when processes are killed and forked, and when the disk refuses; with real processes and limits."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import IO, TYPE_CHECKING, Any

import pytest

from tron_audit_otel import disk_journal as journals
from tron_audit_otel import journal_dir, stream_dir
from tron_audit_otel.disk_journal import DiskJournal, adopt
from tron_audit_otel.errors import JournalError
from tron_audit_otel.frames import FRAME_HEADER_BYTES, SEGMENT_HEADER_BYTES
from tron_audit_otel.journal_dir import check, inspect, swap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WAIT_SECONDS = 60


def create(root: Path, *, bytes_max: int = 1 << 20, fsync: bool = True) -> DiskJournal:
    return DiskJournal.create(root, bytes_max=bytes_max, fsync=fsync)


def crash(journal: DiskJournal) -> None:
    """Leaves everything as a kill of its process would, whose end releases the lock."""
    journal._directory.close()


def drain(journal: DiskJournal) -> tuple[list[bytes], int]:
    """Reads and acknowledges all of it: payloads, and how many records are damaged."""
    payloads, damaged = [], 0
    while (chunk := journal.read(1 << 16)) is not None:
        payloads += [frame.payload for frame in chunk.frames]
        damaged += chunk.damaged
        journal.acknowledge(chunk)
    return payloads, damaged


@contextmanager
def python(script: str, *arguments: object, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Runs a script in a process of its own, and ends it."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def out(process: subprocess.Popen[str]) -> IO[str]:
    assert process.stdout is not None
    return process.stdout


# --- killed

APPENDS_AND_ACKNOWLEDGES = """
import random, sys, threading
from pathlib import Path
from tron_audit_otel.disk_journal import DiskJournal

root, seed = Path(sys.argv[1]), int(sys.argv[2])
journal = DiskJournal.create(root, bytes_max=4_000_000, fsync=False)

def acknowledge():
    while True:
        chunk = journal.read(20_000)
        if chunk is not None:
            for frame in chunk.frames:
                sys.stdout.write(f"read {int(frame.payload[:8])}\\n")
            sys.stdout.flush()
            journal.acknowledge(chunk)

if seed % 2:
    threading.Thread(target=acknowledge, daemon=True).start()
choose = random.Random(seed)
for number in range(1_000_000):
    while True:
        try:
            journal.append(b"%08d" % number + bytes(choose.randrange(20_000)), 1)
            break
        except Exception as error:
            if error.reason != "journal_full":
                raise
            if not seed % 2:
                sys.stdin.read()
    sys.stdout.write(f"appended {number}\\n")
    sys.stdout.flush()
"""


@pytest.mark.parametrize("seed", range(8))
def test_a_kill_at_any_moment_costs_nothing_that_was_committed_and_repeats_little(seed: int, tmp_path: Path) -> None:
    with python(APPENDS_AND_ACKNOWLEDGES, tmp_path, seed, stdin=subprocess.PIPE) as process:
        said = out(process).readline()
        timer = threading.Timer(random.Random(seed).random() * 0.2, process.kill)  # noqa: S311 - no secret
        timer.start()
        said += out(process).read()
        timer.join()
    lines = [line.split() for line in said.splitlines(keepends=True) if line.endswith("\n")]
    appended = [int(number) for word, number in lines if word == "appended"]
    read = [int(number) for word, number in lines if word == "read"]
    assert read == list(range(len(read)))
    (adopted,) = adopt(tmp_path)
    assert not adopted.clean
    payloads, damaged = drain(adopted)
    left = [int(payload[:8]) for payload in payloads]
    assert damaged == 0
    begin = left[0] if left else len(read)
    assert left == list(range(begin, begin + len(left)))
    assert begin <= len(read)  # nothing is left out between what was read before and now
    assert begin + len(left) >= len(appended)  # nothing is missing at the end
    adopted.close()
    assert list(tmp_path.iterdir()) == []


# --- many at once

ADOPTS = """
import sys
from pathlib import Path
from tron_audit_otel.disk_journal import adopt

print("ready", flush=True)
sys.stdin.readline()
for journal in adopt(Path(sys.argv[1])):
    while (chunk := journal.read(100)) is not None:
        for frame in chunk.frames:
            print(frame.payload.decode())
        journal.acknowledge(chunk)
    journal.close()
"""


def test_processes_that_adopt_together_adopt_each_record_once(tmp_path: Path) -> None:
    expected = []
    for number in range(16):
        journal = create(tmp_path, fsync=False)
        for part in range(3):
            journal.append(f"{number}/{part}".encode(), 1)
            expected.append(f"{number}/{part}")
        crash(journal)
    with ExitStack() as stack:
        processes = [stack.enter_context(python(ADOPTS, tmp_path, stdin=subprocess.PIPE)) for _ in range(8)]
        assert [out(process).readline() for process in processes] == ["ready\n"] * 8
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        adopted = [line.strip() for process in processes for line in out(process)]
        assert [process.wait(WAIT_SECONDS) for process in processes] == [0] * 8
    assert sorted(adopted) == sorted(expected)
    assert list(tmp_path.iterdir()) == []


LIVES_AND_ADOPTS = """
import os, random, sys, time
from pathlib import Path
from tron_audit_otel.disk_journal import DiskJournal, adopt
from tron_audit_otel.journal_dir import inspect

root, who = Path(sys.argv[1]), int(sys.argv[2])
choose = random.Random(who)
for turn in range(20):
    journal = DiskJournal.create(root, bytes_max=100_000, fsync=False)
    for part in range(choose.randrange(3)):
        journal.append(f"{who}/{turn}/{part}".encode(), 1)
        print("appended", f"{who}/{turn}/{part}")
    for found in [*adopt(root), *([journal] if choose.random() < 0.5 else [])]:
        while (chunk := found.read(10)) is not None:
            for frame in chunk.frames:
                print("read", frame.payload.decode())
            found.acknowledge(chunk)
        if found is not journal:
            found.close()
    if choose.random() < 0.5:
        journal.close()
    else:
        journal._directory.close()  # as a kill would leave it
    if choose.random() < 0.2:
        inspect(root)
"""


def test_directories_that_come_and_go_under_many_hands_lose_and_repeat_nothing(tmp_path: Path) -> None:
    with ExitStack() as stack:
        processes = [stack.enter_context(python(LIVES_AND_ADOPTS, tmp_path, who)) for who in range(4)]
        said = [line.split() for process in processes for line in out(process)]
        assert [process.wait(WAIT_SECONDS) for process in processes] == [0] * 4
    read = [name for word, name in said if word == "read"]
    for journal in adopt(tmp_path):
        read += [payload.decode() for payload in drain(journal)[0]]
        journal.close()
    assert sorted(read) == sorted(name for word, name in said if word == "appended")
    assert list(tmp_path.iterdir()) == []


def test_many_who_swap_together_see_one_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_dir, "SWAP_SECONDS_MAX", WAIT_SECONDS)
    before: list[str | None] = []
    threads = [
        threading.Thread(target=lambda name=str(number): before.append(swap(tmp_path, "policy", name)))
        for number in range(10)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    last = swap(tmp_path, "policy", "end")
    assert sorted([*before, last], key=str) == sorted([None, *map(str, range(10))], key=str)


def test_a_swap_does_not_wait_for_ever_for_one_that_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_dir, "SWAP_SECONDS_MAX", 0.05)
    swap(tmp_path, "policy", "before")
    with (tmp_path / "policy.lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(JournalError, match=r"policy cannot be written: policy\.lock is locked"):
            swap(tmp_path, "policy", "never")
    assert swap(tmp_path, "policy", "after") == "before"


def test_a_look_at_a_lock_keeps_nobody_from_adopting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = create(tmp_path)
    crash(journal)
    lock = (tmp_path / journal.name / "lock").open("r+")
    fcntl.flock(lock, fcntl.LOCK_SH)  # as `inspect` does
    # The look ends while who adopts waits.
    monkeypatch.setattr(stream_dir, "time", SimpleNamespace(sleep=lambda _: lock.close()))
    assert [found.name for found in adopt(tmp_path)] == [journal.name]


def test_a_lock_file_that_is_no_longer_the_one_in_the_directory_locks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its holder removed it after we had opened it, and a new owner came before we locked it."""
    journal = create(tmp_path)
    journal.append(b"a living owner's", 1)
    directory, locked = tmp_path / journal.name, stream_dir._locked
    (directory / "lock").unlink()
    (directory / "lock").touch()

    def owner_comes_first(lock: int, kind: int) -> bool:
        (directory / "lock").unlink()
        (directory / "lock").touch()
        return locked(lock, kind)

    monkeypatch.setattr(stream_dir, "_locked", owner_comes_first)
    assert adopt(tmp_path) == []


# --- forked

FORKS = """
import os, sys, time
from pathlib import Path
from tron_audit_otel.disk_journal import DiskJournal, adopt
from tron_audit_otel.journal import MemoryJournal

root = Path(sys.argv[1])
journal = DiskJournal.create(root, bytes_max=100_000, fsync=False)
memory = MemoryJournal(bytes_max=100_000)
journal.append(b"parent's", 1)
memory.append(b"parent's", 1)
child = os.fork()
if child == 0:
    names = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
    inherited = [name for name in names if str(root) in name]
    try:
        journal.append(b"child's", 1)
    except Exception as error:
        refused = error.reason
    seen = (journal.records, journal.bytes, journal.read(100), memory.records, memory.read(100), adopt(root))
    journal.note(b"child's")
    journal.close()
    print(inherited, refused, seen, flush=True)
    own = DiskJournal.create(root, bytes_max=100_000, fsync=False)
    own.append(b"child's", 1)
    print(os.getpid(), flush=True)
    time.sleep(60)
time.sleep(0.2)
journal.append(b"parent's again", 1)
print("parent", flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="it looks for inherited descriptors there")
def test_a_forked_child_has_no_part_in_its_parents_journal(tmp_path: Path) -> None:
    with python(FORKS, tmp_path) as process:
        lines = [out(process).readline().strip() for _ in range(3)]
        child = int(next(line for line in lines if line.isdigit()))
        try:
            assert "[] disk_failed (0, 0, None, 0, None, [])" in lines
            assert "parent" in lines
            assert [state.alive for state in inspect(tmp_path)] == [True, True]
            process.kill()
            process.wait()
            (adopted,) = adopt(tmp_path)  # though the child lives
            assert drain(adopted) == ([b"parent's", b"parent's again"], 0)
            adopted.close()
        finally:
            os.kill(child, signal.SIGKILL)
        deadline = time.monotonic() + WAIT_SECONDS
        while not (left := adopt(tmp_path)) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert drain(left[0]) == ([b"child's"], 0)


FORKS_WHILE_A_LOCK_IS_TAKEN = """
import os, sys, threading, time
from pathlib import Path
from tron_audit_otel import stream_dir
from tron_audit_otel.disk_journal import DiskJournal

root, taken, locked = Path(sys.argv[1]), threading.Event(), stream_dir._locked

def locks_slowly(lock, kind):
    done = locked(lock, kind)
    taken.set()
    time.sleep(0.3)
    return done

stream_dir._locked = locks_slowly
threading.Thread(target=DiskJournal.create, args=(root,), kwargs={"bytes_max": 1000, "fsync": False}).start()
taken.wait()
if os.fork() == 0:
    names = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
    print([name for name in names if name.startswith(str(root)) and name.endswith("/lock")], flush=True)
    os._exit(0)
os.wait()
"""


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="it looks for inherited descriptors there")
def test_a_child_that_is_forked_while_a_lock_is_taken_does_not_inherit_it(tmp_path: Path) -> None:
    with python(FORKS_WHILE_A_LOCK_IS_TAKEN, tmp_path) as process:
        assert out(process).read() == "[]\n"


# --- the disk refuses

FILLS = """
import resource, sys
from pathlib import Path
from tron_audit_otel.errors import JournalError
from tron_audit_otel.disk_journal import DiskJournal

resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
journal = DiskJournal.create(Path(sys.argv[1]), bytes_max=1 << 30, fsync=True)
number = 0
while True:
    try:
        journal.append(b"%08d" % number * 1_000, 1)
        number += 1
    except JournalError as error:
        print(error.reason, number, journal.records, error, flush=True)
        if sys.stdin.readline() == "":
            break
"""


def test_a_file_that_may_grow_no_more_is_a_full_disk_until_it_may(tmp_path: Path) -> None:
    # The limit is on each file; as segments are larger, the disk is full for this process, in the middle of a frame.
    with python(FILLS, tmp_path, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        for number, more in ((12, 200_000), (24, 300_000)):
            assert out(process).readline().startswith(f"disk_full {number} {number} the journal ")
            (path,) = tmp_path.glob("*/*.segment")
            assert path.stat().st_size == SEGMENT_HEADER_BYTES + number * (FRAME_HEADER_BYTES + 8_000)
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (more, resource.RLIM_INFINITY))
            process.stdin.write("\n")
            process.stdin.flush()
        assert out(process).readline().startswith("disk_full 37 37 the journal ")
    (adopted,) = adopt(tmp_path)
    assert adopted.torn_bytes == 0
    assert drain(adopted) == ([b"%08d" % number * 1_000 for number in range(37)], 0)


FILLS_A_TMPFS = """
import os, subprocess, sys
from pathlib import Path

subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "none", sys.argv[1]], check=True)
from tron_audit_otel.errors import JournalError
from tron_audit_otel.disk_journal import DiskJournal, adopt
from tron_audit_otel.journal_dir import check, inspect, swap

root = Path(sys.argv[1])
journal = DiskJournal.create(root, bytes_max=1 << 30, fsync=True)
journal.note(b"well")
ballast = root / "ballast"
ballast.write_bytes(bytes(500_000))
spare = root / "spare"
spare.write_bytes(bytes(10_000))
number = 0
for _ in range(2):
    try:
        while True:
            journal.append(b"%08d" % number * 1_000, 1)
            number += 1
    except JournalError as error:
        print(error.reason, number > 30, journal.records == number)
    check(root)
    journal.note(b"blocked")
    print(inspect(root)[0].note)
    ballast.unlink(missing_ok=True)
first = journal.read(100_000)
journal.acknowledge(first)
payloads = [frame.payload for frame in first.frames]
spare.unlink()
journal.close()
(adopted,) = adopt(root)
while (chunk := adopted.read(100_000)) is not None:
    payloads += [frame.payload for frame in chunk.frames]
    adopted.acknowledge(chunk)
adopted.close()
print(payloads == [b"%08d" % n * 1_000 for n in range(number)], os.listdir(root))
"""


@pytest.fixture
def mounting() -> list[str]:
    """The command under which anybody may mount a file system for himself."""
    command = ["unshare", "--user", "--map-root-user", "--mount"]
    trial = [*command, "mount", "-t", "tmpfs", "none", "/mnt"]
    if shutil.which("unshare") is None or subprocess.run(trial, capture_output=True, check=False).returncode:
        pytest.skip("this system lets nobody mount; the limit above stands for a full disk")
    return command


def test_a_disk_that_is_full_takes_more_once_it_is_free(mounting: list[str], tmp_path: Path) -> None:
    command = [*mounting, sys.executable, "-c", FILLS_A_TMPFS, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_SECONDS, check=False)
    assert done.stderr == ""
    full = ["disk_full True True", "b'blocked'"]
    assert done.stdout.splitlines() == [*full, *full, "True []"]


def test_a_directory_that_may_not_be_written_in_is_told_from_a_full_disk(tmp_path: Path) -> None:
    script = """
import os, sys
from pathlib import Path
from tron_audit_otel.errors import JournalError
from tron_audit_otel.disk_journal import DiskJournal, adopt
from tron_audit_otel.journal_dir import check, swap

if os.getuid() == 0:
    os.chown(sys.argv[1], 65534, -1)
    os.setuid(65534)  # for root everything may be written in
create = lambda root: DiskJournal.create(root, bytes_max=1000, fsync=True)
for refuse in (check, create, lambda root: swap(root, "a", "b")):
    try:
        refuse(Path(sys.argv[1]))
    except JournalError as error:
        print(error.reason, error)
print(adopt(Path(sys.argv[1])))
"""
    root = tmp_path / "root"
    journal = create(root)
    journal.append(b"payload", 1)
    crash(journal)
    (root / journal.name).chmod(0)
    root.chmod(0o500)
    for parent in (tmp_path, *list(tmp_path.parents)[:2]):
        parent.chmod(0o755)
    try:
        with python(script, root, stderr=subprocess.PIPE) as process:
            said, complained = process.communicate(timeout=WAIT_SECONDS)
        assert said.splitlines() == [
            f"disk_failed AUDIT_LOG_JOURNAL_DIR: {root} cannot be written in: Permission denied",
            f"disk_failed AUDIT_LOG_JOURNAL_DIR: {root} cannot be written in: Permission denied",
            f"disk_failed AUDIT_LOG_JOURNAL_DIR: {root / 'a'} cannot be written: Permission denied",
            "[]",
        ]
        assert complained == f"the journal {root / journal.name} is left as it is: Permission denied\n"
    finally:
        os.chown(root, os.geteuid(), -1)
        root.chmod(0o700)
        (root / journal.name).chmod(0o700)
    (adopted,) = adopt(root)
    assert drain(adopted) == ([b"payload"], 0)


def failing(number: int) -> Callable[..., Any]:
    """What the disk refuses: a fake, since no disk here does so on demand."""

    def fail(*arguments: object, **named: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


class FailingSync:
    """Fails as told: a fake, since no disk here does so on demand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.errno = 0
        self.synced = 0
        monkeypatch.setattr(journals, "_sync", self)

    def __call__(self, descriptor: int) -> None:
        self.synced += 1
        if self.errno:
            raise OSError(self.errno, os.strerror(self.errno))
        os.fsync(descriptor)


@pytest.fixture
def sync(monkeypatch: pytest.MonkeyPatch) -> FailingSync:
    return FailingSync(monkeypatch)


@pytest.fixture(params=["truncates", "does not truncate either"])
def truncation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a disk that does nothing any longer: a fake, as above."""
    if request.param != "truncates":
        monkeypatch.setattr(os, "ftruncate", failing(errno.EIO))


def test_a_commit_is_one_sync_and_none_when_it_is_not_wanted(tmp_path: Path, sync: FailingSync) -> None:
    journal = create(tmp_path)
    journal.append(b"one", 1)
    journal.append(b"two", 1)
    assert sync.synced == 2
    create(tmp_path, fsync=False).append(b"three", 1)
    assert sync.synced == 2


@pytest.mark.parametrize(("number", "reason"), [(errno.EIO, "disk_failed"), (errno.ENOSPC, "disk_full")])
@pytest.mark.usefixtures("truncation")
def test_a_segment_whose_sync_failed_is_never_appended_to_again(
    number: int, reason: str, tmp_path: Path, sync: FailingSync
) -> None:
    journal = create(tmp_path)
    journal.append(b"before", 1)
    sync.errno = number
    with pytest.raises(JournalError) as raised:
        journal.append(b"never committed", 7)
    assert raised.value.reason == reason
    assert journal.records == 1
    sync.errno = 0
    journal.append(b"after", 1)
    assert len(list(tmp_path.glob("*/*.segment"))) == 2
    crash(journal)
    (adopted,) = adopt(tmp_path)
    assert drain(adopted) == ([b"before", b"after"], 0)
    adopted.close()
    assert list(tmp_path.iterdir()) == []


def test_syncs_that_keep_failing_leave_no_heap_of_segments(tmp_path: Path, sync: FailingSync) -> None:
    journal = create(tmp_path)
    journal.append(b"before", 1)
    sync.errno = errno.EIO
    for _ in range(20):
        with pytest.raises(JournalError):
            journal.append(b"never committed", 1)
    assert len(list(tmp_path.glob("*/*.segment"))) == 1
    sync.errno = 0
    journal.append(b"after", 1)
    assert drain(journal) == ([b"before", b"after"], 0)


def test_a_segment_whose_name_is_not_durable_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake refuses, as above."""
    journal = create(tmp_path)
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    with pytest.raises(JournalError, match="Input/output error"):
        journal.append(b"never committed", 1)
    assert list(tmp_path.glob("*/*.segment")) == []
    # Some network file systems sync no directory, and say that it is invalid.
    monkeypatch.setattr(os, "fsync", failing(errno.EINVAL))
    journal.append(b"committed", 1)
    monkeypatch.undo()
    crash(journal)
    assert drain(adopt(tmp_path)[0]) == ([b"committed"], 0)


def test_a_read_only_disk_refuses_with_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake refuses to make files: only root could mount a disk so."""
    real = os.open

    def read_only(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(path, flags, mode, dir_fd=dir_fd)

    journal = create(tmp_path)
    left = create(tmp_path)
    left.append(b"left", 1)
    crash(left)
    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(JournalError, match="Read-only file system") as raised:
        check(tmp_path)
    assert raised.value.reason == "disk_failed"
    with pytest.raises(JournalError, match="Read-only file system"):
        journal.append(b"payload", 1)
    journal.note(b"{}")
    assert adopt(tmp_path) == []
    monkeypatch.setattr(os, "open", real)
    journal.append(b"payload", 1)
    assert drain(journal) == ([b"payload"], 0)
    assert drain(adopt(tmp_path)[0]) == ([b"left"], 0)


def test_a_disk_that_refuses_to_read_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake refuses: no disk here has a bad sector on demand."""
    journal = create(tmp_path)
    journal.append(b"payload", 3)

    with monkeypatch.context() as patched:
        patched.setattr(os, "pread", failing(errno.EIO))
        with pytest.raises(JournalError, match="cannot be read: Input/output error") as raised:
            journal.read(100)
        assert raised.value.reason == "disk_failed"
        assert journal.records == 3
        crash(journal)
        assert adopt(tmp_path) == []  # it stays for later
        with pytest.raises(JournalError, match=f"the journal {tmp_path / journal.name} cannot be read: Input/output"):
            inspect(tmp_path)
    assert drain(adopt(tmp_path)[0]) == ([b"payload"], 0)


def test_an_acknowledgement_that_cannot_be_written_repeats_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A fake refuses, as above."""
    journal = create(tmp_path)
    journal.append(b"payload", 1)

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", failing(errno.EIO))
        assert drain(journal) == ([b"payload"], 0)
        journal.close()
    assert caplog.text.count("is not tidied: Input/output error") == 1
    assert drain(adopt(tmp_path)[0]) == ([b"payload"], 0)


def test_segments_that_could_not_be_removed_do_not_fill_the_journal_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A fake refuses, as above."""
    journal = create(tmp_path, bytes_max=8_000)
    with monkeypatch.context() as patched:
        patched.setattr(os, "unlink", failing(errno.EROFS))
        for size in (*[904] * 7, 758):
            journal.append(b"x" * size, 1)
        drain(journal)
    assert journal.bytes > 7_800
    assert caplog.text.count("is not tidied: Read-only file system") == 1
    journal.append(b"x" * 100, 1)  # there is room for it in the last segment, and not in the journal
    assert journal.bytes < 1_000


def test_the_counts_do_not_wait_for_a_disk_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake hangs: no disk here does so on demand."""
    hanging, released = threading.Event(), threading.Event()

    def hang(descriptor: int) -> None:
        hanging.set()
        assert released.wait(WAIT_SECONDS)

    journal = create(tmp_path)
    journal.append(b"one", 1)
    monkeypatch.setattr(journals, "_sync", hang)
    thread = threading.Thread(target=journal.append, args=(b"two", 1))
    thread.start()
    assert hanging.wait(WAIT_SECONDS)
    assert (journal.records, journal.bytes > 0) == (1, True)
    assert drain(journal) == ([b"one"], 0)  # neither does who reads
    assert thread.is_alive()
    released.set()
    thread.join()
    assert drain(journal) == ([b"two"], 0)


def test_one_thread_appends_while_another_reads(tmp_path: Path) -> None:
    journal = create(tmp_path, bytes_max=60_000, fsync=False)
    payloads = [f"{number:05d}".encode() * (number % 200) for number in range(1, 3_000)]

    def append() -> None:
        for payload in payloads:
            while True:
                try:
                    journal.append(payload, 1)
                    break
                except JournalError as error:
                    assert error.reason == "journal_full"  # noqa: PT017 - in a thread, where pytest sees nothing

    thread = threading.Thread(target=append)
    thread.start()
    got: list[bytes] = []
    while thread.is_alive() or journal.records:
        more, damaged = drain(journal)
        assert damaged == 0
        assert journal.bytes <= 60_000
        got += more
    assert got == payloads
    journal.close()
    assert list(tmp_path.iterdir()) == []
