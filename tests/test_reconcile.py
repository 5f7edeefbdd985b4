from __future__ import annotations

from itertools import count
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from tron_audit_otel import reconcile
from tron_audit_otel.archive import Span
from tron_audit_otel.collector_metrics import Siem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

SPAN = Span(0, 1000)


def request(*ids: str) -> ExportLogsServiceRequest:
    made = ExportLogsServiceRequest()
    records = made.resource_logs.add().scope_logs.add().log_records
    for number, each in enumerate(ids):
        record = records.add(time_unix_nano=number)
        for key, value in {"audit.record.id": each, "audit.actor.id": "alice", "audit.action": "READ"}.items():
            record.attributes.add(key=key).value.string_value = value
    return made


class Has:
    """A SIEM that has these ids, and says how many it was asked for at a time."""

    def __init__(self, ids: Iterable[str]) -> None:
        self.stored = set(ids)
        self.asked: list[int] = []

    def ids(self, wanted: Sequence[str], span: Span) -> set[str]:
        assert span == SPAN
        self.asked.append(len(wanted))
        return self.stored & set(wanted)


def test_what_the_siem_lacks_is_missing_with_what_it_was() -> None:
    found = reconcile.compare([request("a", "b"), request("c")], Has(["a", "z"]), SPAN)
    assert (found.archived, found.found, found.unasked) == (3, 1, 0)
    assert list(found.missing.values()) == [
        reconcile.Lacking("b", 1, "alice", "READ"),
        reconcile.Lacking("c", 0, "alice", "READ"),
    ]


def test_what_came_late_is_asked_for_from_when_it_happened() -> None:
    spans: list[Span] = []

    class Knows:
        def ids(self, _: Sequence[str], span: Span) -> set[str]:
            spans.append(span)
            return set()

    missing = reconcile.compare([request("a", "b")], Knows(), Span(1, 1000)).missing
    reconcile.ask_again({"b": missing["b"]}, Knows(), Span(500, 1000))
    assert spans == [Span(0, 1000), Span(1, 1000)]


def test_no_question_is_longer_than_a_thousand_ids() -> None:
    siem = Has([])
    told: list[int] = []
    requests = (request(*(f"{batch}-{number}" for number in range(700))) for batch in range(5))
    found = reconcile.compare(requests, siem, SPAN, lambda comparison: told.append(comparison.archived))
    assert siem.asked == [1000, 1000, 1000, 500]
    assert told == [1000, 2000, 3000, 3500]
    assert len(found.missing) == 3500
    assert reconcile.ask_again(found.missing, siem, SPAN) == found.missing
    assert siem.asked[4:] == [1000, 1000, 1000, 500]


def test_an_empty_archive_asks_nothing() -> None:
    siem = Has([])
    assert reconcile.compare([], siem, SPAN).archived == 0
    assert siem.asked == []


@pytest.mark.parametrize("strange", ["", "a\nb", "\x00", " a", "a ", "x" * 513, "ж" * 257, "a\u2028b", "\u202e"])
def test_an_id_that_no_search_can_be_asked_for_keeps_nobody_from_the_others(strange: str) -> None:
    found = reconcile.compare([request("a", strange, "b")], Has(["a"]), SPAN)
    assert (found.archived, found.unasked, list(found.missing)) == (2, 1, ["b"])


@given(st.text())
def test_an_id_that_can_be_asked_for_is_a_line_of_its_own(text: str) -> None:
    if reconcile.can_be_asked(text):
        assert [line.strip() for line in f"{text}\n".splitlines()] == [text]


def test_what_has_come_meanwhile_is_not_missing_any_more() -> None:
    missing = reconcile.compare([request("a", "b", "c")], Has([]), SPAN).missing
    assert list(reconcile.ask_again(missing, Has(["b"]), SPAN)) == ["a", "c"]


def test_the_first_are_the_first_by_id() -> None:
    missing = reconcile.compare([request("c", "a", "b")], Has([]), SPAN).missing
    assert [lacking.id for lacking in reconcile.first(missing, 2)] == ["a", "b"]


# --- what waits


@pytest.fixture
def _no_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = count()
    # Not the module's own functions: whatever other thread there is would wind the clock on.
    monkeypatch.setattr(reconcile, "time", SimpleNamespace(sleep=lambda _: None, monotonic=lambda: float(next(clock))))


def looks(*seen: tuple[int, int | None, int, int]) -> Callable[[], Siem]:
    """Gives one look after another, the last one for ever: bytes and records that wait, delivered, refused."""
    left = list(seen)

    def look() -> Siem:
        waiting_bytes, waiting, delivered, refused = left.pop(0) if len(left) > 1 else left[0]
        return Siem("datadog", "otlp_http/datadog", 0, delivered, refused, 0, waiting_bytes, 1 << 30, waiting)

    return look


@pytest.mark.usefixtures("_no_sleep")
@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        pytest.param([(0, 0, 5, 0)], True, id="nothing-waits"),
        pytest.param([(900, 3, 5, 0), (0, 0, 8, 0)], True, id="it-empties"),
        pytest.param(
            [(900, 3, 5, 0), (900, 3, 9, 0), (900, 3, 12, 0)], True, id="a-siem-that-takes-records-all-the-time"
        ),
        pytest.param([(900, 3, 5, 0), (900, 3, 5, 7)], True, id="refused-is-worked-off-as-well"),
        pytest.param([(900, 3, 5, 0)], False, id="it-stands-still"),
        pytest.param([(900, 3, 5, 0), (900, 3, 8, 0)], False, id="an-estimate-is-not-believed-to-the-record"),
        pytest.param([(900, 3, 500, 0), (900, 3, 7, 0)], False, id="the-collector-began-anew"),
        pytest.param([(900, None, 5, 0), (900, None, 500, 0)], False, id="nobody-knows-how-many-wait"),
    ],
)
def test_what_waits_is_worked_off_or_not(seen: list[tuple[int, int | None, int, int]], *, expected: bool) -> None:
    assert reconcile.worked_off(looks(*seen), seconds_max=10) is expected
