from __future__ import annotations

import itertools
import os
import shutil
import stat
import tempfile
import threading
import time
import tracemalloc
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tron_audit_otel.disk_journal import DiskJournal, adopt
from tron_audit_otel.errors import JournalError
from tron_audit_otel.frames import FRAME_HEADER_BYTES, SEGMENT_HEADER_BYTES, pack_number, segment_header
from tron_audit_otel.journal import Frame, Journal, MemoryJournal
from tron_audit_otel.journal_dir import check, inspect, swap

if TYPE_CHECKING:
    from collections.abc import Iterator

BYTES_MAX = 1 << 20


def create(root: Path, *, bytes_max: int = BYTES_MAX, fsync: bool = False) -> DiskJournal:
    return DiskJournal.create(root, bytes_max=bytes_max, fsync=fsync)


def crash(journal: DiskJournal) -> None:
    """Leaves everything as a kill of its process would, whose end releases the lock."""
    journal._directory.close()


@contextmanager
def temporary_root() -> Iterator[Path]:
    """Hypothesis calls a test many times, and pytest makes one directory for all."""
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)


def drain(journal: Journal, bytes_max: int = 1 << 16) -> tuple[list[bytes], int]:
    """Reads and acknowledges all of it: payloads, and how many records are damaged."""
    payloads, damaged = [], 0
    while (chunk := journal.read(bytes_max)) is not None:
        payloads += [frame.payload for frame in chunk.frames]
        damaged += chunk.damaged
        journal.acknowledge(chunk)
    assert journal.records == 0
    return payloads, damaged


def is_full(journal: Journal, payload: bytes, records: int) -> bool:
    """Appends, and tells whether that was refused."""
    try:
        journal.append(payload, records)
    except JournalError as error:
        if error.reason != "journal_full" or "AUDIT_LOG_JOURNAL_MAX_BYTES is " not in str(error):
            raise
        return True
    return False


def segments(root: Path) -> list[Path]:
    return sorted(path for path in root.glob("*/*.segment") if path.parent.name != "damaged")


def only(root: Path) -> DiskJournal:
    (journal,) = adopt(root)
    return journal


# --- any sequence of calls, against a model


Call = st.one_of(
    st.tuples(st.just("append"), st.integers(0, 700), st.integers(1, 3)),
    st.tuples(st.just("read"), st.integers(0, 900), st.integers(0, 1)),
    st.tuples(st.just("close"), st.just(0), st.just(0)),
    st.tuples(st.just("crash"), st.just(0), st.just(0)),
)


class Model:
    """Journals on disk beside what must be in them."""

    def __init__(self, root: Path, bytes_max: int) -> None:
        self.root = root
        self.bytes_max = bytes_max
        self.waiting: dict[str, list[Frame]] = {}
        self.open: list[DiskJournal] = []
        self.own = self.begin()
        self.appended = 0

    def begin(self) -> DiskJournal:
        own = create(self.root, bytes_max=self.bytes_max)
        self.waiting[own.name] = []
        self.open.append(own)
        return own

    def append(self, size: int, records: int) -> None:
        self.appended += 1
        payload = f"{self.appended:06d}".encode().ljust(size, b".")
        before = self.own.bytes
        if is_full(self.own, payload, records):
            assert before + SEGMENT_HEADER_BYTES + FRAME_HEADER_BYTES + len(payload) > self.bytes_max
        else:
            self.waiting[self.own.name].append(Frame(payload, records))
        files = (self.root / self.own.name).iterdir()
        assert self.own.bytes == sum(file.stat().st_size for file in files) <= self.bytes_max

    def read(self, bytes_max: int, acknowledged: int) -> None:
        for journal in self.open:
            waiting = self.waiting[journal.name]
            chunk = journal.read(bytes_max)
            if chunk is None:
                assert waiting == []
                continue
            got = list(chunk.frames)
            assert got == waiting[: len(got)]
            assert len(got) == 1 or sum(len(frame.payload) for frame in got) <= bytes_max
            if acknowledged:
                journal.acknowledge(chunk)
                del waiting[: len(got)]
            else:
                assert journal.read(bytes_max) == chunk
            assert journal.records == sum(frame.records for frame in waiting)

    def end(self, *, clean: bool) -> None:
        for journal in self.open:
            journal.close() if clean else crash(journal)
        left = {name: waiting for name, waiting in self.waiting.items() if waiting or not clean}
        self.open = adopt(self.root)
        assert [journal.name for journal in self.open] == sorted(left)
        assert all(journal.torn_bytes == 0 for journal in self.open)
        self.waiting = left
        self.own = self.begin()

    def finish(self) -> None:
        for journal in self.open:
            expected = [frame.payload for frame in self.waiting[journal.name]]
            assert drain(journal) == (expected, 0)
            journal.close()
        assert list(self.root.iterdir()) == []


@settings(max_examples=100)
@given(st.lists(Call, max_size=40), st.sampled_from([1_000, 4_000, 20_000]))
def test_any_calls_give_back_what_was_committed_in_order_and_once(
    calls: list[tuple[str, int, int]], bytes_max: int
) -> None:
    with temporary_root() as root:
        model = Model(root, bytes_max)
        for name, first, second in calls:
            match name:
                case "append":
                    model.append(first, second)
                case "read":
                    model.read(first, second)
                case _:
                    model.end(clean=name == "close")
        model.finish()


# --- the interface, on disk and in memory


@pytest.fixture(params=["disk", "memory"])
def journal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DiskJournal | MemoryJournal]:
    made = create(tmp_path) if request.param == "disk" else MemoryJournal(bytes_max=BYTES_MAX)
    yield made
    made.close()


def test_frames_come_back_until_they_are_acknowledged(journal: Journal) -> None:
    journal.append(b"one", 1)
    journal.append(b"", 2)
    chunk = journal.read(100)
    assert chunk is not None
    assert chunk.frames == (Frame(b"one", 1), Frame(b"", 2))
    journal.append(b"three", 3)
    assert journal.read(100) == chunk  # the same again, though there is more
    assert journal.records == 6
    journal.acknowledge(chunk)
    journal.acknowledge(chunk)  # a second time says nothing new
    assert journal.records == 3
    assert drain(journal) == ([b"three"], 0)
    assert journal.read(100) is None


def test_an_answer_may_be_asked_for_in_smaller_parts(journal: Journal) -> None:
    for payload in (b"aaa", b"bbb", b"ccc"):
        journal.append(payload, 1)
    whole, part = journal.read(9), journal.read(5)
    assert whole is not None
    assert part is not None
    assert [len(whole.frames), len(part.frames)] == [3, 1]
    journal.acknowledge(part)
    assert drain(journal) == ([b"bbb", b"ccc"], 0)


def test_a_frame_that_is_larger_than_what_is_asked_for_comes_by_itself(journal: Journal) -> None:
    for payload in (b"a", b"b" * 1000, b"c"):
        journal.append(payload, 1)
    assert drain(journal, 10) == ([b"a", b"b" * 1000, b"c"], 0)
    assert journal.read(10) is None


def test_a_frame_of_no_record_is_a_mistake_of_the_caller(journal: Journal) -> None:
    with pytest.raises(ValueError, match="at least one record"):
        journal.append(b"payload", 0)


def test_a_full_journal_says_so_and_takes_more_once_something_is_acknowledged(journal: Journal) -> None:
    payload = b"x" * 10_000
    while not is_full(journal, payload, 1):
        assert journal.bytes <= BYTES_MAX
    committed = journal.records
    assert committed * len(payload) > BYTES_MAX * 0.8
    assert drain(journal)[0] == [payload] * committed
    journal.append(payload, 1)
    assert drain(journal) == ([payload], 0)


def test_a_frame_that_can_never_fit_is_refused_and_changes_nothing(journal: Journal) -> None:
    journal.append(b"before", 1)
    with pytest.raises(JournalError) as raised:
        journal.append(b"x" * BYTES_MAX, 1)
    assert raised.value.reason == "journal_full"
    journal.append(b"behind", 1)
    assert drain(journal) == ([b"before", b"behind"], 0)


def test_what_memory_takes_is_bounded_when_payloads_are_empty() -> None:
    journal = MemoryJournal(bytes_max=1000)
    while not is_full(journal, b"", 1):
        assert journal.records < 100


# --- on disk


def test_the_smallest_bound_still_takes_one_frame_after_the_other(tmp_path: Path) -> None:
    journal = create(tmp_path, bytes_max=12 + SEGMENT_HEADER_BYTES + FRAME_HEADER_BYTES + 5)
    for _ in range(3):
        journal.append(b"12345", 1)
        with pytest.raises(JournalError):
            journal.append(b"", 1)
        assert drain(journal) == ([b"12345"], 0)
    journal.close()
    assert list(tmp_path.iterdir()) == []


def test_acknowledged_segments_are_removed_while_the_journal_is_used(tmp_path: Path) -> None:
    journal = create(tmp_path, bytes_max=8_000)
    for _ in range(100):
        journal.append(b"x" * 500, 1)
        assert drain(journal) == ([b"x" * 500], 0)
        assert len(segments(tmp_path)) <= 2


def test_a_frame_larger_than_a_segment_has_one_by_itself(tmp_path: Path) -> None:
    journal = create(tmp_path, bytes_max=8_000)
    for payload in (b"a", b"b" * 5_000, b"c"):
        journal.append(payload, 1)
    assert len(segments(tmp_path)) == 3
    crash(journal)
    assert drain(only(tmp_path)) == ([b"a", b"b" * 5_000, b"c"], 0)


def test_files_are_for_their_owner_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o277)
    try:
        journal = create(tmp_path / "made" / "root")
        journal.append(b"payload", 1)
        journal.note(b"{}")
        swap(tmp_path / "made" / "root", "policy", "digest")
        journal.close()
    finally:
        os.umask(before)
    modes = Counter(
        (path.is_dir(), stat.S_IMODE(path.stat().st_mode)) for path in (tmp_path / "made" / "root").rglob("*")
    )
    assert modes == {(True, 0o700): 1, (False, 0o600): 7}
    assert stat.S_IMODE((tmp_path / "made" / "root").stat().st_mode) == 0o700


def test_two_journals_in_one_process_are_two_streams(tmp_path: Path) -> None:
    first, second = create(tmp_path), create(tmp_path)
    first.append(b"first", 1)
    second.append(b"second", 1)
    assert adopt(tmp_path) == []  # both have an owner
    assert drain(first) == ([b"first"], 0)
    assert drain(second) == ([b"second"], 0)


def test_an_adopted_journal_takes_nothing_more(tmp_path: Path) -> None:
    crash(create(tmp_path))
    with pytest.raises(JournalError) as raised:
        only(tmp_path).append(b"payload", 1)
    assert raised.value.reason == "disk_failed"


def test_a_closed_journal_does_nothing(tmp_path: Path) -> None:
    journal = create(tmp_path)
    journal.append(b"payload", 1)
    chunk = journal.read(100)
    assert chunk is not None
    journal.close()
    journal.close()
    journal.acknowledge(chunk)
    journal.note(b"{}")
    assert journal.read(100) is None
    with pytest.raises(JournalError):
        journal.append(b"payload", 1)
    assert drain(only(tmp_path)) == ([b"payload"], 0)


def test_an_end_in_order_is_told_from_a_kill(tmp_path: Path) -> None:
    for clean in (True, False):
        journal = create(tmp_path)
        journal.append(b"payload", 1)
        if clean:
            journal.close()
        else:
            crash(journal)
        adopted = only(tmp_path)
        assert adopted.clean is clean
        drain(adopted)
        adopted.close()


def test_the_order_does_not_follow_a_clock_that_steps_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(10**9, -1000)
    monkeypatch.setattr("time.time", lambda: float(next(clock)))
    journal = create(tmp_path, bytes_max=8_000)
    payloads = [str(number).encode() * 100 for number in range(20)]
    for payload in payloads:
        journal.append(payload, 1)
    assert len(segments(tmp_path)) > 2
    crash(journal)
    assert drain(only(tmp_path)) == (payloads, 0)


def test_a_million_records_are_read_back_in_memory_that_does_not_grow_with_them(tmp_path: Path) -> None:
    journal = create(tmp_path, bytes_max=1 << 30)
    for _ in range(2_000):
        journal.append(b"x" * 50_000, 500)
    crash(journal)
    tracemalloc.start()
    try:
        adopted = only(tmp_path)
        assert adopted.records == 1_000_000
        while (chunk := adopted.read(1_000_000)) is not None:
            adopted.acknowledge(chunk)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert adopted.records == 0
    assert peak < 4_000_000
    adopted.close()


# --- what a kill, a bad disk or a stranger leaves


def prepared(root: Path, *, clean: bool = False) -> list[bytes]:
    """A dead owner's journal of some segments, two records a frame."""
    journal = create(root, bytes_max=4_000)
    payloads = [f"{number:02d}".encode() * 60 for number in range(12)]
    for payload in payloads:
        journal.append(payload, 2)
    assert len(segments(root)) > 2
    if clean:
        journal.close()
    else:
        crash(journal)
    return payloads


def spared(payloads: list[bytes], root: Path, path: Path, begin: int, end: int) -> list[bytes]:
    """What stands outside of these bytes of a segment."""
    numbers = iter(payloads)
    kept = []
    for segment in segments(root):
        at = SEGMENT_HEADER_BYTES
        while at < segment.stat().st_size:
            payload = next(numbers)
            at, frame = at + FRAME_HEADER_BYTES + len(payload), at
            if segment != path or at <= begin or frame >= end:
                kept.append(payload)
    return kept


def check_damage(root: Path, expected: list[bytes], damaged: int, moved: list[Path]) -> None:
    adopted = only(root)
    assert adopted.records == 2 * len(expected) + damaged
    assert drain(adopted, 300) == (expected, damaged)
    adopted.close()
    assert sorted(path.name for path in root.glob("damaged/*")) == [f"{path.parent.name}-{path.name}" for path in moved]
    assert [path.name for path in root.iterdir() if path.name != "damaged"] == []


@settings(max_examples=50)
@given(st.data())
def test_a_flipped_bit_costs_the_frame_that_it_is_in_and_is_counted_exactly(data: st.DataObject) -> None:
    with temporary_root() as root:
        payloads = prepared(root, clean=True)
        path = data.draw(st.sampled_from(segments(root)))
        content = bytearray(path.read_bytes())
        bit = data.draw(st.integers(0, len(content) * 8 - 1))
        content[bit // 8] ^= 1 << bit % 8
        expected = spared(payloads, root, path, bit // 8, bit // 8 + 1)
        path.write_bytes(content)
        damaged = 2 * (len(payloads) - len(expected))
        check_damage(root, expected, damaged, [path] if damaged else [])


@settings(max_examples=50)
@given(st.data())
def test_a_cut_segment_costs_what_was_cut_and_is_counted_exactly(data: st.DataObject) -> None:
    with temporary_root() as root:
        payloads = prepared(root, clean=True)
        path = data.draw(st.sampled_from(segments(root)))
        size = path.stat().st_size
        cut = data.draw(st.integers(0, size - 1))
        expected = spared(payloads, root, path, cut if cut >= SEGMENT_HEADER_BYTES // 2 else 0, size)
        os.truncate(path, cut)
        adopted = only(root)
        assert drain(adopted, 300) == (expected, 2 * (len(payloads) - len(expected)))
        adopted.close()
        assert [entry.name for entry in root.iterdir() if entry.name != "damaged"] == []


def test_a_kill_at_any_byte_of_an_append_costs_nothing_that_was_committed(tmp_path: Path) -> None:
    journal = create(tmp_path)
    for payload in (b"committed", b"torn"):
        journal.append(payload, 2)
    crash(journal)
    (path,) = segments(tmp_path)
    frame = FRAME_HEADER_BYTES + len(b"torn")
    for missing in range(1, frame + 1):
        os.truncate(path, path.stat().st_size - 1)
        adopted = only(tmp_path)
        assert adopted.torn_bytes == frame - missing
        chunk = adopted.read(100)
        assert chunk is not None
        assert (chunk.frames, chunk.damaged) == ((Frame(b"committed", 2),), 0)
        crash(adopted)
    assert drain(only(tmp_path)) == ([b"committed"], 0)


def test_a_kill_at_any_byte_of_a_new_segment_costs_nothing_that_was_committed(tmp_path: Path) -> None:
    header = segment_header(b"01234567", 1)
    for length in range(SEGMENT_HEADER_BYTES + 1):
        journal = create(tmp_path)
        journal.append(b"committed", 1)
        crash(journal)
        (tmp_path / journal.name / "00000002.segment").write_bytes(header[:length])
        adopted = only(tmp_path)
        assert drain(adopted) == ([b"committed"], 0)
        adopted.close()
        assert list(tmp_path.iterdir()) == []


def test_a_full_last_frame_with_a_bad_payload_is_damage_and_not_torn(tmp_path: Path) -> None:
    """A kill leaves the beginning of a frame; the whole length with another content is the disk's doing."""
    payloads = prepared(tmp_path)
    last = segments(tmp_path)[-1]
    content = bytearray(last.read_bytes())
    content[-1] ^= 1
    last.write_bytes(content)
    check_damage(tmp_path, payloads[:-1], 2, [last])


@pytest.mark.parametrize("left", [(), ("lock",), ("lock", "acknowledged"), ("lock", "acknowledged.torn")])
def test_a_kill_while_a_directory_is_made_or_removed_leaves_nothing_to_send(
    left: tuple[str, ...], tmp_path: Path
) -> None:
    directory = tmp_path / "20261124T110946-1234-9f3a6c1e"
    directory.mkdir()
    for name in left:
        (directory / name.removesuffix(".torn")).write_bytes(b"torn" if "torn" in name else pack_number(7))
    for journal in adopt(tmp_path):
        assert journal.read(100) is None
        journal.close()
    assert list(tmp_path.iterdir()) == []


def test_a_kill_while_a_note_is_written_keeps_no_directory(tmp_path: Path) -> None:
    journal = create(tmp_path)
    crash(journal)
    (tmp_path / journal.name / "status.json.new").write_text("half")
    only(tmp_path).close()
    assert list(tmp_path.iterdir()) == []


def test_a_missing_segment_is_counted_exactly(tmp_path: Path) -> None:
    payloads = prepared(tmp_path)
    middle = segments(tmp_path)[1]
    expected = spared(payloads, tmp_path, middle, 0, 1 << 20)
    middle.unlink()
    check_damage(tmp_path, expected, 2 * (len(payloads) - len(expected)), [])


def test_a_missing_first_segment_is_counted_unless_it_was_acknowledged(tmp_path: Path) -> None:
    payloads = prepared(tmp_path)
    first = segments(tmp_path)[0]
    expected = spared(payloads, tmp_path, first, 0, 1 << 20)
    first.unlink()
    check_damage(tmp_path, expected, 2 * (len(payloads) - len(expected)), [])


def test_a_segment_of_which_nothing_can_be_read_is_counted_and_kept_for_people(tmp_path: Path) -> None:
    payloads = prepared(tmp_path)
    middle = segments(tmp_path)[1]
    expected = spared(payloads, tmp_path, middle, 0, 1 << 20)
    middle.write_bytes(bytes(middle.stat().st_size))
    check_damage(tmp_path, expected, 2 * (len(payloads) - len(expected)), [middle])


def test_a_last_segment_of_which_nothing_can_be_read_is_kept_for_people_though_nobody_can_count_it(
    tmp_path: Path,
) -> None:
    payloads = prepared(tmp_path)
    last = segments(tmp_path)[-1]
    size = last.stat().st_size
    expected = spared(payloads, tmp_path, last, 0, 1 << 20)
    last.write_bytes(bytes(size))
    adopted = only(tmp_path)
    assert adopted.torn_bytes == size
    crash(adopted)
    assert [path.stat().st_size for path in tmp_path.glob("damaged/*")] == [size]
    assert drain(only(tmp_path)) == (expected, 0)


def test_damage_in_the_own_journal_is_found_without_an_adopter(tmp_path: Path) -> None:
    journal = create(tmp_path)
    for payload in (b"one", b"two", b"three"):
        journal.append(payload, 5)
    (path,) = segments(tmp_path)
    os.truncate(path, path.stat().st_size - 1)
    first = journal.read(100)
    assert first is not None
    assert [frame.payload for frame in first.frames] == [b"one", b"two"]
    journal.acknowledge(first)
    second = journal.read(100)
    assert second is not None
    assert (second.frames, second.damaged) == ((), 5)
    journal.append(b"four", 5)
    assert journal.read(100) == second
    journal.acknowledge(second)
    assert drain(journal) == ([b"four"], 0)
    journal.close()


@pytest.mark.parametrize("content", [b"", b"torn", bytes(12)])
def test_a_torn_position_repeats_and_loses_nothing(content: bytes, tmp_path: Path) -> None:
    journal = create(tmp_path)
    for payload in (b"one", b"two"):
        journal.append(payload, 1)
    chunk = journal.read(3)
    assert chunk is not None
    journal.acknowledge(chunk)
    crash(journal)
    (tmp_path / journal.name / "acknowledged").write_bytes(content)
    assert drain(only(tmp_path)) == ([b"one", b"two"], 0)


def test_a_torn_position_does_not_miss_what_was_acknowledged_and_removed(tmp_path: Path) -> None:
    journal = create(tmp_path, bytes_max=8_000)
    for number in range(20):
        journal.append(str(number).encode() * 100, 1)
    for _ in range(15):
        chunk = journal.read(1)
        assert chunk is not None
        journal.acknowledge(chunk)
    crash(journal)
    (tmp_path / journal.name / "acknowledged").write_bytes(b"")
    payloads, damaged = drain(only(tmp_path))
    assert damaged == 0
    assert set(payloads) >= {str(number).encode() * 100 for number in range(15, 20)}


@pytest.mark.parametrize("number", [24, 25, 2**63])
def test_a_position_behind_everything_leaves_nothing_to_read(number: int, tmp_path: Path) -> None:
    prepared(tmp_path)
    (directory,) = tmp_path.iterdir()
    (directory / "acknowledged").write_bytes(pack_number(number))
    adopted = only(tmp_path)
    assert adopted.records == 0
    assert adopted.read(100) is None
    adopted.close()
    assert list(tmp_path.iterdir()) == []


def test_a_position_in_a_segment_that_is_gone_goes_on_with_the_next(tmp_path: Path) -> None:
    payloads = prepared(tmp_path)
    (directory,) = tmp_path.iterdir()
    (directory / "acknowledged").write_bytes(pack_number(2))
    first = segments(tmp_path)[0]
    expected = spared(payloads, tmp_path, first, 0, 1 << 20)
    first.unlink()
    adopted = only(tmp_path)
    assert drain(adopted) == (expected, 2 * (len(payloads) - len(expected)) - 2)


def test_what_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    prepared(elsewhere)
    (theirs,) = elsewhere.iterdir()
    root.mkdir(0o700)
    (root / "20261124T110946-1234-9f3a6c1e").symlink_to(theirs)
    (root / "20261124T110946-1234-9f3a6c1f").write_text("a file with such a name")
    (root / "lost+found").mkdir()
    assert adopt(root) == []
    assert inspect(root) == []
    assert len(segments(elsewhere)) > 2

    own = create(root)
    directory = root / own.name
    (directory / "00000001.segment").symlink_to(segments(elsewhere)[0])
    (directory / "00000002.segment").mkdir()
    (directory / "core.1234").write_text("somebody's")
    with pytest.raises(JournalError):
        own.append(b"payload", 1)  # the name is taken: nothing is overwritten, and the next is tried
    with pytest.raises(JournalError):
        own.append(b"payload", 1)
    own.append(b"payload", 1)
    crash(own)
    adopted = only(root)
    assert drain(adopted) == ([b"payload"], 0)
    adopted.close()
    assert sorted(path.name for path in directory.iterdir()) == ["00000001.segment", "00000002.segment", "core.1234"]
    assert adopt(root) == []
    assert sorted(path.name for path in directory.iterdir()) == ["00000001.segment", "00000002.segment", "core.1234"]


def test_no_symbolic_link_is_followed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root, target = tmp_path / "root", tmp_path / "target"
    target.mkdir()
    (target / "file").write_text("somebody's")
    payloads = prepared(root)
    (directory,) = root.iterdir()
    segment = segments(root)[0]
    segment.write_bytes(bytes(segment.stat().st_size))
    (root / "damaged").symlink_to(target)
    (directory / "status.json.new").symlink_to(target / "file")
    (directory / "lock").rename(directory / "real")
    (directory / "lock").symlink_to(target / "file")
    assert adopt(root) == []
    assert f"the journal {directory} is left as it is" in caplog.text
    (directory / "real").rename(directory / "lock")
    adopted = only(root)
    adopted.note(b"written through a link")
    assert len(drain(adopted)[0]) < len(payloads)
    adopted.close()
    assert f"the journal {directory.name} is not tidied" in caplog.text
    assert [path.read_text() for path in target.iterdir()] == ["somebody's"]
    assert segment.exists()  # there was no place to set it aside


@pytest.mark.parametrize("which", ["directory", "root"])
def test_a_journal_that_somebody_removes_is_begun_anew_and_what_is_lost_is_counted(
    which: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "root"
    journal = create(root)
    journal.append(b"sent", 1)
    drain(journal)
    journal.append(b"lost", 3)
    former = journal.name
    shutil.rmtree(root / former if which == "directory" else root)
    journal.append(b"after", 1)
    assert journal.name != former
    assert "somebody removed the journal" in caplog.text
    assert journal.records == 4
    crash(journal)
    adopted = only(root)
    assert adopted.records == 4
    assert drain(adopted) == ([b"after"], 3)
    adopted.close()
    assert list(root.iterdir()) == []


def test_a_segment_that_somebody_removes_is_counted_and_not_appended_to(tmp_path: Path) -> None:
    journal = create(tmp_path)
    journal.append(b"lost", 3)
    segments(tmp_path)[0].unlink()
    journal.append(b"after", 1)
    assert drain(journal) == ([b"after"], 3)


# --- what operators ask


def test_an_operator_sees_what_waits_where(tmp_path: Path) -> None:
    before = time.time()
    journal = create(tmp_path, bytes_max=8_000)
    for _ in range(4):
        journal.append(b"x" * 500, 10)
    chunk = journal.read(1)
    assert chunk is not None
    journal.acknowledge(chunk)
    journal.note(b'{"state": "parked"}')
    (state,) = inspect(tmp_path)
    assert (state.name, state.alive, state.clean, state.records) == (journal.name, True, False, 30)
    assert [(name, records) for name, _, records in state.segments] == [
        (f"0000000{index}.segment", 10) for index in (2, 3, 4)
    ]
    assert (
        state.bytes == sum(size for _, size, _ in state.segments) == sum(p.stat().st_size for p in segments(tmp_path))
    )
    assert state.note == b'{"state": "parked"}'
    assert state.oldest is not None
    assert before <= state.oldest <= time.time()
    journal.close()
    (state,) = inspect(tmp_path)
    assert (state.alive, state.clean, state.records) == (False, True, 30)
    assert inspect(tmp_path / "absent") == []


def test_a_look_takes_no_journal_from_those_who_adopt(tmp_path: Path) -> None:
    prepared(tmp_path)
    inspect(tmp_path)
    adopted = only(tmp_path)
    assert inspect(tmp_path)[0].alive
    assert adopt(tmp_path) == []
    adopted.close()


def test_a_swap_gives_the_value_before(tmp_path: Path) -> None:
    root = tmp_path / "root"
    assert swap(root, "policy", "one") is None
    assert swap(root, "policy", "two") == "one"
    assert swap(root, "policy", "") == "two"
    assert swap(root, "policy", "three") == ""
    with pytest.raises(ValueError, match="is no name"):
        swap(root, "../policy", "four")


def test_a_check_says_where_and_why_a_journal_cannot_be(tmp_path: Path) -> None:
    check(tmp_path / "deep" / "root")
    assert list((tmp_path / "deep" / "root").iterdir()) == []
    (tmp_path / "file").write_text("no directory")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(
            JournalError, match=f"AUDIT_LOG_JOURNAL_DIR: {root} cannot be used: Not a directory"
        ) as raised:
            check(root)
        assert raised.value.reason == "disk_failed"
    with pytest.raises(JournalError, match="Not a directory"):
        create(tmp_path / "file")
    for look in (adopt, inspect):
        with pytest.raises(JournalError, match="cannot be read: Not a directory"):
            look(tmp_path / "file")


def test_a_look_never_misses_a_journal_whose_owner_removes_segments_meanwhile(tmp_path: Path) -> None:
    journal = create(tmp_path, bytes_max=64 * 1024)
    ended = threading.Event()

    def work() -> None:
        while not ended.is_set():
            journal.append(bytes(6_000), 1)
            chunk = journal.read(1)
            assert chunk is not None
            journal.acknowledge(chunk)

    owner = threading.Thread(target=work)
    owner.start()
    try:
        looks = [inspect(tmp_path) for _ in range(500)]
    finally:
        ended.set()
        owner.join()
    assert [len(states) for states in looks] == [1] * 500
    journal.close()
