"""The parts of the benchmarks that compute: order, percentiles, ratios, counting, and what is shown of it."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import Counter
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest
from fastapi.testclient import TestClient
from rich.console import Console

from benchmarks import apps
from benchmarks.__main__ import PLOT, RESULTS, _parsed, main
from benchmarks.cores import Cores
from benchmarks.errors import BenchError
from benchmarks.facts import EVENT_NAME
from benchmarks.load import answers, percentile
from benchmarks.machine import machine
from benchmarks.order import BETWEEN_BARE_MAX, neighbours, order
from benchmarks.plot import plot, scale
from benchmarks.run import HALF_LOAD, Run
from benchmarks.sinks import ids
from benchmarks.summary import as_json, results, summed_up
from benchmarks.table import shown, tables
from benchmarks.variants import BARE, VARIANTS, Capture
from tests import archives
from tron_audit_otel.testing import capture

if TYPE_CHECKING:
    from pathlib import Path

OTHERS = [name for name in VARIANTS if name != BARE]
PHASE = ["throughput_rps", "p50_ms", "p99_ms", "p999_ms", "cpu_us", "loop_lag_p50_ms", "loop_lag_p99_ms"]


def run(variant: str, throughput: float = 1000, factor: float = 1, delivered: int = 100) -> Run:
    """A run whose latencies and costs are all 10, times a factor."""
    phase = dict.fromkeys(PHASE, 10 * factor) | {"throughput_rps": throughput}
    half = {HALF_LOAD + name: value for name, value in phase.items()}
    return Run(variant, {**phase, **half, "rss_mib": 60.0}, requests=100, delivered=delivered)


def row(sent_ns: int, latency_ns: int, status: int = 200, error: str = "") -> list[str]:
    return [str(sent_ns), str(status), str(latency_ns), "0", "0", error, "", "", "0", "GET", "http://x", ""]


@pytest.fixture
def runs() -> list[Run]:
    return [
        run(BARE, 1000),
        run("ours_batch", 900, 2),
        run(BARE, 800, 3),
        run("stock_otlp", 100, 8, delivered=90),
        run(BARE, 1000),
    ]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 8])
def test_the_bare_application_stands_at_both_ends_and_never_far_away(count: int) -> None:
    steps = order(OTHERS[:count], 3, 1)
    names = [name for _, name in steps]
    assert (names[0], names[-1]) == (BARE, BARE)
    gaps = "".join("b" if name == BARE else "." for name in names).strip("b").split("b")
    assert max(map(len, gaps)) <= BETWEEN_BARE_MAX
    assert "" not in gaps
    for number in (1, 2, 3):
        assert Counter(name for at, name in steps if at == number and name != BARE) == Counter(OTHERS[:count])


def test_the_order_changes_with_the_round_and_not_with_the_run() -> None:
    first, again = (order(OTHERS, 2, 7) for _ in range(2))
    assert first == again
    assert [name for at, name in first if at == 1][1:] != [name for at, name in first if at == 2]


def test_the_bare_application_alone_is_run_once_a_round() -> None:
    assert order([], 2, 1) == [(1, BARE), (2, BARE)]


def test_neighbours_are_the_nearest_bare_runs() -> None:
    names = [BARE, "a", "b", BARE, "c", BARE]
    assert [neighbours(names, i) for i in (1, 2, 4)] == [[0, 3], [0, 3], [3, 5]]
    assert neighbours([BARE, "a"], 1) == [0]


@pytest.mark.parametrize(("of_100", "value"), [(50, 500), (99, 990), (99.9, 999), (100, 1000), (0, 1)])
def test_a_percentile_is_a_value_that_was_measured(of_100: float, value: int) -> None:
    assert percentile(range(1, 1001), of_100) == value


def test_percentiles_of_few_values() -> None:
    assert (percentile([], 99), percentile([7], 50), percentile([7, 9], 99.9)) == (0, 7, 9)


def test_answers_are_read_from_vegetas_rows() -> None:
    rows = [row(1_000_000_000, 3_000_000), row(1_500_000_000, 500_000_000, 201), row(1_200_000_000, 1_000_000)]
    found = answers(rows, began=5, ended=6, cpu_seconds=0.5)
    assert (found.requests, found.latencies_ms, found.rps) == (3, [1, 3, 500], 3)
    assert (found.percentile(50), found.percentile(99.9)) == (3, 500)


def test_one_request_that_fails_fails_the_run() -> None:
    refused = "dial tcp 0.0.0.0:0->127.0.0.1:1: connect: connection refused"
    rows = [row(1, 1), row(2, 1, 503, "503 Service Unavailable"), row(3, 1, 0, refused), row(4, 1, 0, refused)]
    with pytest.raises(BenchError, match=r"of 4 requests .*\{503: 1, 0: 2\}.* 2 times connection refused; 1 times 503"):
        answers(rows, 0, 1, 0)


def test_no_request_at_all_fails_the_run() -> None:
    with pytest.raises(BenchError, match="no request"):
        answers([], 0, 1, 0)


def test_ratios_are_to_the_bare_runs_beside(runs: list[Run]) -> None:
    ours = summed_up(runs, half_rps=500)["ours_batch"]
    assert ours.medians["throughput_ratio"] == pytest.approx(900 / 900)
    assert ours.medians["p99_ratio"] == pytest.approx(20 / 20)
    assert ours.medians["half_load_loop_lag_p99_ratio"] == pytest.approx(1)
    assert ours.medians["audit_cpu_us"] == pytest.approx(20 - 20)


def test_the_bare_application_is_compared_with_itself(runs: list[Run]) -> None:
    bare = summed_up(runs, half_rps=500)[BARE]
    assert (bare.medians["throughput_ratio"], bare.spread["throughput_ratio"]) == (1, (0.8, 1))
    assert (bare.medians["audit_cpu_us"], bare.spread["audit_cpu_us"]) == (0, (0, 20))
    assert (bare.requests, bare.delivered, bare.lost) == (300, 300, 0)


def test_rounds_give_medians_and_spread() -> None:
    middle = [run("ours_batch", 1000 * share, delivered=100 - lost) for share, lost in ((0.7, 0), (0.9, 1), (0.8, 2))]
    found = summed_up([run(BARE), *middle, run(BARE)], half_rps=500)["ours_batch"]
    assert found.medians["throughput_ratio"] == pytest.approx(0.8)
    assert found.spread["throughput_ratio"] == pytest.approx((0.7, 0.9))
    assert (found.requests, found.delivered, found.lost) == (300, 297, 3)


def test_a_rate_that_was_not_kept_is_marked(runs: list[Run]) -> None:
    summaries = summed_up(runs, half_rps=500)
    assert [name for name, summary in summaries.items() if not summary.kept_rate] == ["stock_otlp"]
    assert "only 100" in text(runs)
    assert "only 9" not in text(runs)


def test_nothing_measured_is_no_division_by_zero() -> None:
    still = [run(name, factor=0) for name in (BARE, "ours_batch", BARE)]
    assert summed_up(still, half_rps=500)["ours_batch"].medians["p99_ratio"] == 0


def text(runs: list[Run]) -> str:
    console = Console(width=200, color_system=None)
    with console.capture() as printed:
        console.print(*tables(summed_up(runs, half_rps=500), half_rps=500))
    return printed.get()


def test_the_tables_have_every_variant_and_what_is_lost(runs: list[Run]) -> None:
    lines = text(runs).splitlines()
    assert [name for name in VARIANTS if any(f" {name} " in line for line in lines)] == [
        BARE,
        "ours_batch",
        "stock_otlp",
    ]
    last = [line.split("│") for line in lines if " stock_otlp " in line][-1]
    assert [cell.strip() for cell in last[-3:-1]] == ["90", "10"]


@pytest.mark.parametrize(
    ("value", "expected"), [(0.91234, "0.912"), (4.256, "4.26"), (0, "0"), (12345.6, "12,346"), (-150.2, "-150")]
)
def test_numbers_are_shown_with_the_digits_that_mean_something(value: float, expected: str) -> None:
    assert shown(value) == expected


def test_the_results_have_what_others_read(runs: list[Run]) -> None:
    found = json.loads(as_json(results(summed_up(runs, half_rps=500), machine(), {"fastapi": "1"})))
    assert list(found) == ["variants", "machine", "versions"]
    assert list(found["variants"]) == [BARE, "ours_batch", "stock_otlp"]
    for each in found["variants"].values():
        assert {"throughput_ratio", "p99_ratio", "cpu_us", "delivered", "lost", "audit_cpu_us", "rss_mib"} <= set(each)
        assert all(least <= each[name] <= most for name, (least, most) in each["spread"].items())
    assert {"cpu", "cores", "kernel", "python"} <= set(found["machine"])


def test_what_is_far_off_the_scale_does_not_make_it() -> None:
    assert scale([1, 1.1, 3.4, 314]) == 3.4
    assert scale([0, 12, 20, 30, 19_000]) == 30
    assert scale([0, 0]) == 1


def test_the_plot_names_every_variant_and_tells_what_is_off_the_scale(runs: list[Run], tmp_path: Path) -> None:
    far = [*runs, run("direct_post", 5, 3000), run(BARE, 1000)]
    files = [tmp_path / "first.svg", tmp_path / "again.svg"]
    for file in files:
        plot(summed_up(far, half_rps=500), file)
    drawn = files[0].read_text()
    words = {element.text for element in ET.fromstring(drawn).iter() if element.text}  # noqa: S314 - our own
    assert {BARE, "ours_batch", "stock_otlp", "direct_post", "3,000 →"} <= words
    assert drawn == files[1].read_text()


def test_only_requests_are_counted_and_each_once() -> None:
    request = archives.record(archives.uuid(1), eventName=EVENT_NAME)
    other = archives.record(archives.uuid(2), eventName=EVENT_NAME)
    start = archives.record(archives.uuid(3), eventName="tron.audit.system")
    lines = [archives.line(request, other), archives.line(request), archives.line(start, other), b"\n"]
    assert ids(lines) == {archives.uuid(1).encode(), archives.uuid(2).encode()}


@pytest.mark.parametrize(
    ("arguments", "files"),
    [
        ([], (RESULTS, PLOT)),
        (["--rounds", "5"], (RESULTS, PLOT)),
        (["--rounds", "1"], None),
        (["--seconds", "2"], None),
        (["--only", "ours_batch"], None),
    ],
)
def test_only_a_whole_run_replaces_the_results(arguments: list[str], files: tuple[Path, Path] | None) -> None:
    assert _parsed(arguments).files() == files


def test_a_lesser_run_writes_where_it_is_told(tmp_path: Path) -> None:
    options = _parsed(["--only", "stock_otlp", BARE, "--output", str(tmp_path / "some.json")])
    assert options.files() == (tmp_path / "some.json", tmp_path / "some.svg")
    assert options.names == ["stock_otlp"]


def test_a_machine_of_one_core_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {3}, raising=False)
    with pytest.raises(BenchError, match="only one core"):
        Cores.choose()


def test_a_system_that_pins_nothing_is_told_from_one_that_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {1, 4, 2}, raising=False)
    assert Cores.choose() == Cores(frozenset({1}), frozenset({2, 4}))
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert Cores.choose() == Cores()


def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: Capture) -> Any:
    monkeypatch.setenv(apps.CAPTURE, how)
    monkeypatch.setenv(apps.LAG_FILE, str(tmp_path / "lags.json"))
    return apps.create()


def test_the_other_designs_send_what_our_record_has(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Else they would be compared by another amount of work."""
    seen: list[Any] = []
    bare = served(monkeypatch, tmp_path, Capture.NONE)
    bare.add_middleware(apps.Observer, emit=seen.append)
    with capture(bare) as trail, TestClient(bare) as client:
        client.get("/instances/abc-123").raise_for_status()
        client.post("/instances", json={"name": "x", "size": 1}).raise_for_status()
        client.get("/health").raise_for_status()
    assert len(seen) == len(trail.records) == 2
    for theirs, ours in zip(seen, trail.log_records, strict=True):
        attributes = dict(ours.attributes or {})
        assert set(theirs.attributes) == set(attributes)
        own = {name: theirs.attributes[name] for name in ("audit.record.id", "audit.duration_ms")}
        assert theirs.attributes == attributes | own
        assert theirs.body == ours.body


def test_the_loops_lag_is_written_when_the_server_stops(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with TestClient(served(monkeypatch, tmp_path, Capture.NONE)) as client:
        assert client.portal is not None
        client.portal.call(asyncio.sleep, 4 * apps.LAG_SAMPLE_SECONDS)  # in that loop, whose earlier timers come first
    lags = json.loads((tmp_path / "lags.json").read_text())
    assert lags
    assert all(at <= time.monotonic() and lag >= 0 for at, lag in lags)


def test_the_variants_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(VARIANTS)


def test_a_variant_is_known_by_one_name() -> None:
    assert all(name == variant.name for name, variant in VARIANTS.items())
    assert list(VARIANTS) == [
        "bare",
        "ours_batch",
        "ours_response",
        "ours_batch_dead",
        "ours_response_dead",
        "ours_batch_hung",
        "ours_response_hung",
        "ours_batch_frozen",
        "ours_response_frozen",
        "stock_otlp",
        "direct_post",
    ]
