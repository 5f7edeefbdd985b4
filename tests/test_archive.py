from __future__ import annotations

import gc
import json
import os
import tempfile
import tracemalloc
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from tests.archives import BEGIN_NS, SECOND, closed, line, lines, record, uuid, write
from tron_audit_otel import archive
from tron_audit_otel.archive import ALWAYS, Reading, Span
from tron_audit_otel.errors import ArchiveError

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator

FIRST, SECOND_FILE, THIRD = (closed(f"2026-09-21T14-2{minute}-00.000") for minute in range(3))


def span(first: int, last: int) -> Span:
    """From a second after the beginning up to but not with another."""
    return Span(BEGIN_NS + first * SECOND, BEGIN_NS + last * SECOND)


def ids(
    directory: Path,
    of: Span = ALWAYS,
    wanted: Container[str] | None = None,
    reading: Reading | None = None,
    *,
    late: bool = False,
) -> list[str]:
    requests = archive.read(directory, of, wanted, reading=reading, late=late)
    return [archive.record_id(each) for request in requests for each in archive.log_records(request)]


def uuids(numbers: Iterable[int]) -> list[str]:
    return [uuid(number) for number in numbers]


class TestWhichRecords:
    def test_the_span_has_its_first_moment_and_not_its_last(self, tmp_path: Path) -> None:
        write(tmp_path, current=lines(range(10)))
        assert ids(tmp_path, span(3, 6)) == uuids([3, 4, 5])

    def test_some_of_a_request(self, tmp_path: Path) -> None:
        write(tmp_path, current=line(*(record(uuid(n), BEGIN_NS + n * SECOND) for n in range(10))))
        assert ids(tmp_path, span(3, 6)) == uuids([3, 4, 5])

    def test_the_observed_time_counts_where_there_is_no_other(self, tmp_path: Path) -> None:
        observed = {"observedTimeUnixNano": str(BEGIN_NS)}
        later = record("later", BEGIN_NS + SECOND, **observed)
        write(tmp_path, current=line(record("observed", 0, **observed), later, record("timeless", 0)))
        assert ids(tmp_path, span(0, 1)) == ["observed"]
        assert ids(tmp_path, Span(0, 1)) == ["timeless"], "it counts as of 1970"

    def test_an_id_comes_once(self, tmp_path: Path) -> None:
        twice = line(record(uuid(1)), record("no uuid"), record(uuid(1)))
        write(tmp_path, **{FIRST: twice}, current=twice + line(record(uuid(2))))
        reading = Reading()
        assert ids(tmp_path, reading=reading) == [uuid(1), "no uuid", uuid(2)]
        assert reading.repeated == 4

    def test_ids_that_differ_in_case_are_two(self, tmp_path: Path) -> None:
        letters = "0198c5b2-0000-7000-8000-00000000abcd"
        write(tmp_path, current=line(record(letters), record(letters.upper()), record(letters.replace("-", ""))))
        assert len(ids(tmp_path)) == 3

    def test_records_without_an_id_always_come(self, tmp_path: Path) -> None:
        number = record(None, attributes=[{"key": "audit.record.id", "value": {"intValue": "7"}}])
        write(tmp_path, current=2 * line(record(None), record(""), number))
        reading = Reading()
        assert ids(tmp_path, reading=reading) == 6 * [""]
        assert reading.without_id == 6

    def test_only_the_wanted_ids(self, tmp_path: Path) -> None:
        quoted = 'a "quoted" \\ one'
        swapped = line(record("swapped")).replace(
            b'"key":"audit.record.id","value":{"stringValue":"swapped"}',
            b'"value":{"stringValue":"swapped"},"key":"audit.record.id"',
        )
        assert swapped != line(record("swapped"))
        write(tmp_path, current=lines(range(10)) + line(record(quoted), record(None)) + swapped)
        assert ids(tmp_path, wanted={uuid(3), quoted, "swapped", "absent"}) == [uuid(3), quoted, "swapped"]
        assert ids(tmp_path, span(0, 3), wanted={uuid(3)}) == []

    def test_what_stands_around_a_record_comes_with_it(self, tmp_path: Path) -> None:
        data = json.loads(line(record("a")))
        data["resourceLogs"][0] |= {"schemaUrl": "resource/1", "later": 1}
        data["resourceLogs"][0]["scopeLogs"][0] |= {"schemaUrl": "scope/1"}
        data["resourceLogs"].append({"resource": {}, "scopeLogs": [{"logRecords": [record("before", 1)]}]})
        write(tmp_path, current=json.dumps(data).encode() + b"\n")
        [request] = archive.read(tmp_path, span(0, 1))
        [of_resource] = request.resource_logs
        assert of_resource.resource.attributes[0].value.string_value == "api"
        assert (of_resource.schema_url, of_resource.scope_logs[0].schema_url) == ("resource/1", "scope/1")
        assert of_resource.scope_logs[0].scope.name == "tron_audit_otel"

    def test_late_ones_waited_at_their_sender_and_came_within_the_span(self, tmp_path: Path) -> None:
        # Number 2 happened before the span, and stands behind number 5, which happened within.
        write(tmp_path, current=lines([0, 1, 5, 2, 9, 3]))
        assert ids(tmp_path, span(4, 8)) == uuids([5])
        assert ids(tmp_path, span(4, 8), late=True) == uuids([5, 2, 3])
        assert ids(tmp_path, span(6, 8), late=True) == uuids([3]), "number 9 shows that the span had begun"

    @given(st.lists(st.integers(0, 30), max_size=20), st.integers(0, 30), st.integers(0, 30))
    def test_the_text_is_judged_as_the_records_would_be(self, times: list[int], first: int, last: int) -> None:
        with tempfile.TemporaryDirectory() as directory:
            records = [record(uuid(n), BEGIN_NS + time * SECOND) for n, time in enumerate(times)]
            write(Path(directory), current=b"".join(map(line, records)))
            found = ids(Path(directory), span(first, last))
        assert found == [uuid(n) for n, time in enumerate(times) if first <= time < last]


class TestFiles:
    def test_the_oldest_comes_first_and_the_current_one_last(self, tmp_path: Path) -> None:
        names = [closed("2026-09-21T14-23-00.001"), closed("2026-09-21T14-23-00.000", ""), SECOND_FILE, FIRST]
        write(tmp_path, current=lines([4]), **{name: lines([n]) for n, name in zip([3, 2, 1, 0], names, strict=True)})
        assert ids(tmp_path) == uuids(range(5))

    def test_those_closed_long_before_the_span_are_not_opened(self, tmp_path: Path) -> None:
        write(tmp_path, **{FIRST: lines([0]), THIRD: lines([1])})  # closed 400 and 520 seconds after the beginning
        margin = archive.CLOCKS_APART_SECONDS_MAX
        reading = Reading()
        assert ids(tmp_path, span(margin + 401, margin + 9_999), reading=reading) == []
        assert (list(reading.files), reading.passed_over) == ([THIRD], 1)
        reading = Reading()
        ids(tmp_path, span(margin + 399, margin + 9_999), reading=reading)
        assert (list(reading.files), reading.passed_over) == ([FIRST, THIRD], 0)

    def test_those_closed_after_the_span_may_have_what_came_late(self, tmp_path: Path) -> None:
        write(tmp_path, **{closed("2027-01-01T00-00-00.000"): lines([0])})
        assert ids(tmp_path, span(0, 1)) == [uuid(0)]

    def test_what_else_lies_there_is_named_and_not_read(self, tmp_path: Path) -> None:
        foreign = ["audit-2026-13-01T00-00-00.000-size.jsonl", "audit.jsonl.gz", "notes.txt"]
        write(tmp_path, current=lines([0]), **dict.fromkeys(foreign, lines([1])))
        reading = Reading()
        assert ids(tmp_path, reading=reading) == [uuid(0)]
        assert reading.foreign == foreign

    def test_empty_files_and_no_files(self, tmp_path: Path) -> None:
        assert ids(tmp_path) == []
        write(tmp_path, **{FIRST: b""}, current=b"\n\n")
        reading = Reading()
        assert ids(tmp_path, reading=reading) == []
        assert (reading.damaged, reading.torn) == ([], 0)

    def test_progress_ends_with_all_of_it(self, tmp_path: Path) -> None:
        write(tmp_path, **{FIRST: lines([0, 1])}, current=lines([2]))
        told: list[tuple[int, int]] = []
        assert len(list(archive.read(tmp_path, ALWAYS, on_read=lambda *bytes_: told.append(bytes_)))) == 3
        size = len(lines([0, 1, 2]))
        assert told[-1] == (size, size)
        assert [done for done, _ in told] == sorted({done for done, _ in told})


class TestFaults:
    def test_a_torn_last_line(self, tmp_path: Path) -> None:
        write(tmp_path, current=lines([0]) + lines([1])[:-40])
        reading = Reading()
        assert ids(tmp_path, reading=reading) == [uuid(0)]
        assert (reading.torn, reading.damaged) == (1, [])

    def test_a_last_line_that_lacks_nothing_but_its_break(self, tmp_path: Path) -> None:
        # The break is a write of its own, and the file may be closed in between.
        write(tmp_path, **{FIRST: lines([0]).rstrip()}, current=b"\n" + lines([1]))
        reading = Reading()
        assert ids(tmp_path, reading=reading) == uuids([0, 1])
        assert (reading.torn, reading.damaged) == (0, [])

    @pytest.mark.parametrize("cut", range(1, 60, 7))
    def test_what_follows_a_torn_request_on_its_line(self, tmp_path: Path, cut: int) -> None:
        torn = lines([1])[:-cut].rstrip()
        write(tmp_path, current=lines([0]) + torn + torn + lines([2, 3]))
        reading = Reading()
        assert ids(tmp_path, reading=reading)[-2:] == uuids([2, 3])
        whole = cut == 1  # but for its line break
        assert (reading.torn, reading.repeated, reading.damaged) == ((0, 1, []) if whole else (2, 0, []))

    def test_zeros_that_a_crash_of_the_machine_leaves(self, tmp_path: Path) -> None:
        write(tmp_path, current=lines([0]) + bytes(4096) + lines([1]))
        assert ids(tmp_path) == uuids([0, 1])

    @pytest.mark.parametrize(
        "bad",
        [
            b"\xff\xfe\x00garbage",
            b"[1,2]",
            b'"text"',
            b'{"resourceLogs":[{"scopeLogs":7}]}',
            b'{"resourceLogs":',
            b"[" * 99_999,
            b'{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"timeUnixNano":"' + b"9" * 9_999 + b'"}]}]}]}',
        ],
        ids=["binary", "a-list", "a-text", "a-number", "half", "deep", "late"],
    )
    def test_a_damaged_line_is_named_and_passed_over(self, tmp_path: Path, bad: bytes) -> None:
        before = lines([0])
        write(tmp_path, current=before + bad + b"\n" + lines([1]))
        reading = Reading()
        assert ids(tmp_path, reading=reading) == uuids([0, 1])
        assert (reading.damaged_in_all, reading.damaged) == (1, [f"audit.jsonl, byte {len(before):,}"])
        assert gc.isenabled(), "it is off while a line is read"

    def test_damage_without_end_is_counted_and_not_listed(self, tmp_path: Path) -> None:
        write(tmp_path, current=1_000 * b"?\n")
        reading = Reading()
        assert ids(tmp_path, reading=reading) == []
        assert (reading.damaged_in_all, len(reading.damaged)) == (1_000, archive.DAMAGE_LISTED_MAX)

    def test_a_damaged_record_does_not_cost_its_neighbours(self, tmp_path: Path) -> None:
        bad: dict[str, Any] = record(uuid(1), traceId="no hexadecimal")
        write(tmp_path, current=line(record(uuid(0)), bad, record(uuid(2))) + line(record(uuid(1))))
        reading = Reading()
        assert ids(tmp_path, reading=reading) == uuids([0, 2, 1]), "a whole copy of it is not taken for a repetition"
        assert (reading.damaged_in_all, reading.damaged) == (1, ["audit.jsonl, byte 0"])

    def test_a_text_that_looks_like_a_request_is_a_text(self, tmp_path: Path) -> None:
        text = lines([7]).decode()
        write(tmp_path, current=line(record(uuid(0), body={"stringValue": text}), record(text)))
        assert ids(tmp_path) == [uuid(0), text]

    def test_line_separators_of_unicode_do_not_end_a_line(self, tmp_path: Path) -> None:
        write(tmp_path, current=line(record("a\u2028b\u0085c\x1e")))
        assert ids(tmp_path) == ["a\u2028b\u0085c\x1e"]

    def test_a_request_as_large_as_the_collector_takes(self, tmp_path: Path) -> None:
        large = "é\n" * (10 * 2**20 // 2)
        write(tmp_path, current=line(record(uuid(0), body={"stringValue": large})) + lines([1]))
        [first, _] = archive.read(tmp_path, ALWAYS)
        assert next(archive.log_records(first)).body.string_value == large

    def test_a_line_that_no_collector_writes_is_not_held_in_memory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(archive, "LINE_BYTES_MAX", 1000)
        write(tmp_path, current=lines([0]) + b"x" * 5_500 + b"\n" + lines([1]) + b"y" * 2_000)
        reading = Reading()
        assert ids(tmp_path, reading=reading) == uuids([0, 1])
        assert reading.damaged_in_all == 2

    def test_memory_grows_by_the_ids_alone(self, tmp_path: Path) -> None:
        write(tmp_path, current=lines(range(20_000)))
        tracemalloc.start()
        try:
            count = sum(1 for _ in archive.read(tmp_path, ALWAYS))
            grown = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert count == 20_000
        assert grown < 2**20 + 20_000 * 150, "the buffer, and the ids"  # the set was being enlarged

    def test_no_id_is_so_long_that_it_takes_the_memory(self, tmp_path: Path) -> None:
        long = [f"{number}{100_000 * 'x'}" for number in range(50)]
        write(tmp_path, current=b"".join(line(record(each)) for each in [*long, *long]))
        reading = Reading()
        tracemalloc.start()
        try:
            count = sum(1 for _ in archive.read(tmp_path, ALWAYS, reading=reading))
            grown = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert (count, reading.repeated) == (50, 50)
        assert grown < 4 * 2**20


class TestWhatChangesWhileItIsRead:
    def test_a_file_that_is_closed_is_read_on(self, tmp_path: Path) -> None:
        write(tmp_path, current=lines([0, 1]))
        requests = archive.read(tmp_path, ALWAYS)
        next(requests)
        (tmp_path / "audit.jsonl").rename(tmp_path / FIRST)
        write(tmp_path, current=lines([2]))
        assert [archive.record_id(each) for request in requests for each in archive.log_records(request)] == [uuid(1)]

    def test_a_file_that_was_closed_just_before_is_read_once(self, tmp_path: Path) -> None:
        write(tmp_path, current=2 * line(record(None)))
        os.link(tmp_path / "audit.jsonl", tmp_path / FIRST)  # so does it look between two looks
        assert len(ids(tmp_path)) == 2

    def test_a_file_that_is_removed_before_it_is_read(self, tmp_path: Path) -> None:
        write(tmp_path, **{FIRST: lines([0]), SECOND_FILE: lines([1]), THIRD: lines([2])})
        reading = Reading()
        requests = archive.read(tmp_path, ALWAYS, reading=reading)
        next(requests)
        (tmp_path / FIRST).unlink()
        (tmp_path / SECOND_FILE).unlink()
        assert len(list(requests)) == 1
        assert reading.removed == [SECOND_FILE]

    def test_what_comes_after_the_start_is_not_waited_for(self, tmp_path: Path) -> None:
        write(tmp_path, current=lines(range(5_000)))
        count = 0
        with (tmp_path / "audit.jsonl").open("ab") as file:
            for _ in archive.read(tmp_path, ALWAYS):
                count += 1
                file.write(lines([10_000 + count]))
                file.flush()
        assert count == 5_000

    def test_a_line_that_was_being_written_is_read_whole(self, tmp_path: Path) -> None:
        whole = lines([1])
        write(tmp_path, current=lines([0]) + whole[:50])
        requests = archive.read(tmp_path, ALWAYS)
        with (tmp_path / "audit.jsonl").open("ab", buffering=0) as file:
            # The reader knows the size when it gives the first record, and has read what there was into its buffer.
            next(requests)
            file.write(whole[50:])
        assert [archive.record_id(each) for each in archive.log_records(next(requests))] == [uuid(1)]


@contextmanager
def nobody() -> Iterator[None]:
    before = os.geteuid()
    if before == 0:
        os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(before)


class TestRefusals:
    def test_no_directory(self, tmp_path: Path) -> None:
        with pytest.raises(ArchiveError, match=r"absent cannot be read: No such file or directory"):
            ids(tmp_path / "absent")

    def test_a_file_for_a_directory(self, tmp_path: Path) -> None:
        write(tmp_path, current=b"")
        with pytest.raises(ArchiveError, match=r"audit\.jsonl cannot be read: Not a directory"):
            ids(tmp_path / "audit.jsonl")

    @pytest.mark.parametrize("name", ["audit.jsonl", FIRST])
    def test_no_symbolic_link_is_followed(self, tmp_path: Path, name: str) -> None:
        elsewhere = tmp_path / "elsewhere"
        elsewhere.write_bytes(lines([0]))
        (tmp_path / name).symlink_to(elsewhere)
        with pytest.raises(ArchiveError, match=f"{name} cannot be read: it is a symbolic link"):
            ids(tmp_path)

    def test_no_pipe_is_waited_for(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "audit.jsonl")
        with pytest.raises(ArchiveError, match=r"audit\.jsonl cannot be read: it is no regular file"):
            ids(tmp_path)

    @pytest.mark.parametrize("name", ["audit.jsonl", FIRST])
    def test_a_file_that_we_may_not_read_is_named(self, name: str) -> None:
        with tempfile.TemporaryDirectory() as directory:  # below one that everybody may enter
            Path(directory).chmod(0o755)
            (Path(directory) / name).write_bytes(lines([0]))
            (Path(directory) / name).chmod(0)
            with nobody(), pytest.raises(ArchiveError, match=f"{name} cannot be read: Permission denied"):
                ids(Path(directory))


def test_a_disk_that_does_not_read_is_told_with_the_file_and_the_place() -> None:
    path = Path("/proc/self/mem")  # nothing is mapped at its beginning, so that it cannot be read
    with (
        path.open("rb") as file,
        pytest.raises(ArchiveError, match=r"mem cannot be read at byte 0: Input/output error"),
    ):
        list(archive._lines(path, file, 1))


def test_a_records_time_is_when_it_happened_or_else_was_observed() -> None:
    assert archive.record_time_ns(LogRecord(time_unix_nano=1, observed_time_unix_nano=2)) == 1
    assert archive.record_time_ns(LogRecord(observed_time_unix_nano=2)) == 2
