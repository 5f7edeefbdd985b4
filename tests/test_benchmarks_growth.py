"""The arithmetic of `make growth`; what it measures is measured there."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import pytest

from benchmarks.growth import __main__ as growth
from benchmarks.growth import attributes, backlog, rate, siems, workers
from benchmarks.growth.app import PATH, ROUTE, app
from benchmarks.growth.driver import BURST, due
from benchmarks.growth.emitter import Drained, Window
from benchmarks.growth.sheet import MIB, Column, Sheet, median, per
from benchmarks.growth.stage import joined, write_frames
from tron_audit_otel import policy_file
from tron_audit_otel.journal import Frame

if TYPE_CHECKING:
    from pathlib import Path


def window(records: int, cpu_s: float, *, seconds: float = 1.0, rss_bytes: int = MIB, dropped: int = 0) -> Window:
    return Window(seconds, records, dropped, cpu_s, rss_bytes, queued=0, pending=0)


def taken(cpu_s: float, written_bytes: int | None = 4_000) -> siems.Taken:
    return siems.Taken(1_000, cpu_s, written_bytes, archive_bytes=2_000, queue_bytes=MIB, rss_bytes=MIB)


@pytest.mark.parametrize(
    ("elapsed_s", "wanted", "done", "expected"),
    [(0.0, 1_000, 0, 0), (0.002, 1_000, 0, 2), (0.002, 1_000, 2, 0), (9.0, 20_000, 0, BURST), (1.0, 0, 0, 0)],
)
def test_what_is_due_follows_the_clock_in_bounded_bursts(
    elapsed_s: float, wanted: int, done: int, expected: int
) -> None:
    assert due(elapsed_s, wanted, done) == expected


def test_no_records_cost_nothing() -> None:
    assert (per(1.0, 0), median([]), per(0.5, 1_000_000)) == (0.0, 0.0, 0.5)


@dataclass(frozen=True)
class Row:
    name: Annotated[str, Column("name")]
    size: Annotated[int, Column("MiB", ".1f", MIB)]
    perhaps: Annotated[float | None, Column("µs", "+.2f")]


def test_a_sheet_shows_each_field_as_its_column_says_and_keeps_the_value_for_json() -> None:
    sheet = Sheet("key", "title", (Row("a", 3 * MIB // 2, None), Row("b", 0, 1.0)))
    assert sheet.cells() == [["a", "1.5", "-"], ["b", "0.0", "+1.00"]]
    assert [column.header for column in sheet.table().columns] == ["name", "MiB", "µs"]
    assert sheet.plain()[0] == {"name": "a", "size": 3 * MIB // 2, "perhaps": None}


def test_a_rate_costs_what_the_same_without_audit_does_not() -> None:
    audited = [window(1_000, 0.3), window(1_000, 0.2), window(900, 9.0, dropped=7)]
    row = rate.row("request", 1_000, audited, [window(1_000, 0.1)])
    assert row.us_per_record == pytest.approx(200)
    assert row.cpu_ms_per_s == pytest.approx(200)
    assert (row.reached, row.dropped) == (1_000, 7)


def test_a_rate_is_reached_only_if_the_cpu_is_enough_for_what_still_waits_when_it_ends() -> None:
    assert rate.row("record", 20_000, [window(20_000, 2.0)], [window(20_000, 0.0)]).reached == pytest.approx(10_000)


def test_idle_is_counted_by_the_second() -> None:
    row = rate.row("request", 0, [window(0, 0.02, seconds=2)], [window(0, 0.01, seconds=2)])
    assert row.cpu_ms_per_s == pytest.approx(5)
    assert row.bare_us is None


def test_each_policy_is_one_that_the_library_takes_and_names_as_many_headers(tmp_path: Path) -> None:
    for count in attributes.COUNTS:
        file = tmp_path / f"{count}.yaml"
        file.write_text(attributes.policy(count))
        assert len(policy_file.load(file).rules[0].headers) == count


def test_the_request_is_one_that_the_application_has() -> None:
    assert ROUTE in {getattr(route, "path", None) for route in app.routes}
    assert PATH.startswith(ROUTE.partition("{")[0])


def test_a_backlog_costs_what_the_same_without_audit_does_not() -> None:
    row = backlog.cost(5, [window(1_000, 0.3)], [window(1_000, 0.1)])
    assert row.backlog_bytes == 5
    assert row.us_per_record == pytest.approx(200)


def test_a_drain_has_a_rate() -> None:
    row = backlog.drain("its own", 10, Drained(1_000, 2.0, 0.001, 1))
    assert row.records_per_s == 500
    assert row.us_per_record == pytest.approx(1)


def test_of_several_starts_the_middle_one_is_told() -> None:
    starts = [backlog.Start(0, seconds, None, 1) for seconds in (9.0, 1.0, 2.0)]
    assert backlog.typical(starts).first_s == 2.0


def test_frames_are_joined_until_each_is_full_and_written_for_another_process(tmp_path: Path) -> None:
    frames = joined([Frame(b"a", 2), Frame(b"b", 3), Frame(b"c", 5), Frame(b"d", 1)], 5)
    assert frames == [(b"ab", 5), (b"c", 5)]
    assert json.loads(write_frames(tmp_path / "frames", frames).read_text()) == [["6162", 5], ["63", 5]]
    assert joined([Frame(b"a", 2)], 5) == [(b"a", 2)]


def test_a_worker_that_is_new_has_spent_all_that_it_has() -> None:
    assert workers.spent({1: 1.0}, {1: 1.5, 2: 0.25}) == {1: 0.5, 2: 0.25}


def test_siems_are_measured_alone_and_together() -> None:
    assert siems.combinations(["a", "b"]) == {"nothing": (), "a": ("a",), "b": ("b",), "all of them": ("a", "b")}


@pytest.mark.parametrize(("written", "expected"), [(4_000, 4.0), (None, None)])
def test_a_siem_costs_what_the_archive_alone_does_not(written: int | None, expected: float | None) -> None:
    row = siems.row("a", [taken(0.3, written)], [taken(0.1, written)])
    assert row.more_us == pytest.approx(200)
    assert (row.written_bytes, row.archive_bytes) == (expected, 2.0)


def test_a_part_joins_others_of_the_same_machine_and_versions_and_replaces_the_rest(tmp_path: Path) -> None:
    file, here = tmp_path / "growth.json", {"machine": {"cores": 2}, "versions": {"python": "3"}}
    growth.write(file, "rate", {"rows": 1}, here)
    growth.write(file, "workers", {"rows": 2}, here)
    assert json.loads(file.read_text())["parts"] == {"rate": {"rows": 1}, "workers": {"rows": 2}}
    growth.write(file, "rate", {"rows": 3}, {**here, "machine": {"cores": 4}})
    assert json.loads(file.read_text())["parts"] == {"rate": {"rows": 3}}
