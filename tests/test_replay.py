from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from tron_audit_otel import archive, config
from tron_audit_otel.answer import Answer, Fate
from tron_audit_otel.errors import ReplayError
from tron_audit_otel.replay import REFUSED_IN_A_ROW_MAX, Pace, replay

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

TAKEN = Answer(Fate.DELIVERED)


def text(key: str, value: str) -> KeyValue:
    return KeyValue(key=key, value=AnyValue(string_value=value))


def request(
    ids: Sequence[str], *, service: str = "api", padding: int = 0, marked: str | None = None
) -> ExportLogsServiceRequest:
    records = [
        LogRecord(attributes=[text("audit.record.id", each), text("padding", padding * "x")], time_unix_nano=7)
        for each in ids
    ]
    attributes = [text("service.name", service), *([text(config.REPLAY_TO, marked)] if marked else [])]
    scopes = [ScopeLogs(scope=InstrumentationScope(name="tron_audit_otel"), log_records=records, schema_url="scope/1")]
    of_resource = ResourceLogs(resource=Resource(attributes=attributes), scope_logs=scopes, schema_url="resource/1")
    return ExportLogsServiceRequest(resource_logs=[of_resource])


class Recorder:
    """A transport that keeps what it is given, and answers as it is told; a fake: no network is asked for here."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.bodies: list[bytes] = []

    def send(self, request: bytes) -> Answer:
        self.bodies.append(request)
        return self.answers.pop(0) if self.answers else TAKEN

    def close(self) -> None:
        """Nothing is open."""

    def requests(self) -> list[ExportLogsServiceRequest]:
        return [ExportLogsServiceRequest.FromString(body) for body in self.bodies]


class Waits(threading.Event):
    """Waits for nothing, and knows for how long it should have."""

    def __init__(self, on_wait: Callable[[Waits], None] = lambda _: None) -> None:
        super().__init__()
        self.seconds: list[float] = []
        self._on_wait = on_wait

    def wait(self, timeout: float | None = None) -> bool:
        self.seconds.append(timeout or 0.0)
        self._on_wait(self)
        return self.is_set()


@pytest.fixture
def _no_time_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tron_audit_otel.replay.time", SimpleNamespace(monotonic=lambda: 1000.0))


def ids_of(requests: Sequence[ExportLogsServiceRequest]) -> list[str]:
    return [archive.record_id(record) for request in requests for record in archive.log_records(request)]


def marks(request: ExportLogsServiceRequest) -> list[list[str]]:
    return [
        [pair.value.string_value for pair in of_resource.resource.attributes if pair.key == config.REPLAY_TO]
        for of_resource in request.resource_logs
    ]


class TestWhatIsSent:
    def test_each_resource_is_marked_for_the_siem_alone(self) -> None:
        recorder = Recorder()
        two = request(["a"])
        two.MergeFrom(request(["b"], service="other", marked="splunk"))
        assert replay([two], "datadog", recorder) == 2
        [sent] = recorder.requests()
        assert marks(sent) == [["datadog"], ["datadog"]]
        kept = [pair.value.string_value for pair in sent.resource_logs[1].resource.attributes]
        assert kept == ["other", "datadog"]

    def test_short_requests_are_joined_and_nothing_else_of_them_changes(self) -> None:
        recorder = Recorder()
        told: list[int] = []
        assert replay((request([str(n)]) for n in range(100)), "http", recorder, on_sent=told.append) == 100
        assert told == [100]
        [sent] = recorder.requests()
        assert ids_of([sent]) == [str(n) for n in range(100)]
        for of_resource in sent.resource_logs:
            del of_resource.resource.attributes[-1]
        assert sent.resource_logs[:] == [request([str(n)]).resource_logs[0] for n in range(100)]

    def test_one_that_is_too_long_is_split_and_keeps_what_stands_around(self) -> None:
        recorder = Recorder()
        assert replay([request([str(n) for n in range(50)], padding=1000)], "http", recorder, pace=Pace(10_000)) == 50
        assert all(len(body) <= 10_000 for body in recorder.bodies)
        assert ids_of(recorder.requests()) == [str(n) for n in range(50)]
        for sent in recorder.requests():
            assert marks(sent) == [["http"]]
            assert sent.resource_logs[0].schema_url == "resource/1"
            assert sent.resource_logs[0].scope_logs[0].scope.name == "tron_audit_otel"

    def test_a_record_that_is_too_long_by_itself_is_sent_alone(self) -> None:
        recorder = Recorder()
        found = [request(["a"]), request(["long"], padding=5_000), request(["b"])]
        assert replay(found, "http", recorder, pace=Pace(1_000)) == 3
        assert [ids_of([sent]) for sent in recorder.requests()] == [["a"], ["long"], ["b"]]

    def test_nothing(self) -> None:
        recorder = Recorder()
        assert replay([], "http", recorder) == 0
        assert recorder.bodies == []

    @given(
        st.lists(st.lists(st.integers(0, 300), max_size=9), max_size=9),
        st.integers(1, 2_000),
        st.floats(0, 20, allow_subnormal=False),
    )
    def test_every_record_once_and_in_order(self, paddings: list[list[int]], bytes_max: int, rate: float) -> None:
        requests = []
        for first, sizes in enumerate(paddings):
            made = request([])
            for number, padding in enumerate(sizes):
                made.MergeFrom(request([f"{first}-{number}"], padding=padding))
            requests.append(made)
        expected = ids_of(requests)
        recorder = Recorder()
        taken = replay(
            requests, "http", recorder, records_per_second=rate, pace=Pace(bytes_max, 1), stop=Waits(lambda _: None)
        )
        sent = recorder.requests()
        assert ids_of(sent) == expected
        assert taken == len(expected)
        for body, each in zip(recorder.bodies, sent, strict=True):
            count = len(ids_of([each]))
            assert len(body) <= bytes_max or count <= 1
            assert not rate or count <= max(1, int(rate))
            assert all(mark == ["http"] for mark in marks(each))


class TestWhatBecomesOfIt:
    def test_what_may_pass_is_tried_again(self) -> None:
        recorder = Recorder(Answer(Fate.RETRY, "refused"), Answer(Fate.RETRY, "HTTP 503", 7.0), TAKEN)
        waits, told = Waits(), list[str]()
        assert replay([request(["a"])], "http", recorder, on_wait=told.append, stop=waits) == 1
        assert len(set(recorder.bodies)) == 1
        assert len(recorder.bodies) == 3
        assert told == ["refused", "HTTP 503"]
        assert waits.seconds[0] <= 0.1
        assert 7 < waits.seconds[1] <= 7.2

    def test_the_waits_grow_up_to_a_bound_and_begin_anew_after_a_success(self) -> None:
        again = Answer(Fate.RETRY, "refused")
        recorder = Recorder(*9 * [again], TAKEN, again, TAKEN)
        waits = Waits()
        assert replay([request(["a"]), request(["b"])], "http", recorder, pace=Pace(1, 2.0), stop=waits) == 2
        assert 1 <= waits.seconds[8] <= 2
        assert waits.seconds[9] <= 0.1

    def test_what_somebody_must_mend_ends_it_with_the_reason(self) -> None:
        recorder = Recorder(TAKEN, Answer(Fate.PARKED, "HTTP 401 (no thanks)"))
        told: list[int] = []
        with pytest.raises(ReplayError, match=r"HTTP 401 \(no thanks\)"):
            replay([request(["a"]), request(["b"])], "http", recorder, on_sent=told.append, pace=Pace(1))
        assert told == [1]

    def test_a_record_that_will_never_pass_keeps_no_other_back(self) -> None:
        class Chooses(Recorder):
            def send(self, request: bytes) -> Answer:
                ids = ids_of([ExportLogsServiceRequest.FromString(request)])
                return Answer(Fate.POISON, "HTTP 413") if {"2", "5"} & set(ids) else super().send(request)

        recorder = Chooses()
        told, refused = list[int](), list[tuple[str, str]]()
        requests = [request([str(n)]) for n in range(8)]
        taken = replay(requests, "http", recorder, on_sent=told.append, on_refused=lambda *what: refused.append(what))
        assert (taken, sum(told)) == (6, 6)
        assert ids_of(recorder.requests()) == list("013467")
        assert refused == [("2", "HTTP 413"), ("5", "HTTP 413")]

    def test_a_receiver_that_takes_no_record_is_not_asked_for_ever(self) -> None:
        recorder = Recorder(*999 * [Answer(Fate.POISON, "HTTP 400")])
        refused: list[str] = []
        with pytest.raises(ReplayError, match="HTTP 400"):
            replay(
                [request([str(n) for n in range(500)])],
                "http",
                recorder,
                on_refused=lambda each, _: refused.append(each),
            )
        assert refused == [str(n) for n in range(REFUSED_IN_A_ROW_MAX - 1)]

    def test_it_stops_between_two_requests(self) -> None:
        stop = threading.Event()
        recorder = Recorder()
        requests = [request([str(n)]) for n in range(9)]
        assert replay(requests, "http", recorder, on_sent=lambda _: stop.set(), pace=Pace(1), stop=stop) == 1

    def test_it_stops_while_it_waits_for_another_attempt(self) -> None:
        recorder = Recorder(*9 * [Answer(Fate.RETRY, "refused")])
        assert replay([request(["a"])], "http", recorder, stop=Waits(Waits.set)) == 0
        assert len(recorder.bodies) == 1

    @pytest.mark.usefixtures("_no_time_passes")
    def test_it_stops_while_it_waits_for_its_turn(self) -> None:
        recorder = Recorder()
        requests = [request([str(n)]) for n in range(9)]
        stop = Waits(lambda waits: waits.set() if waits.seconds[-1] else None)
        assert replay(requests, "http", recorder, records_per_second=1, stop=stop) == 1

    def test_nothing_is_sent_after_a_wait_for_room_that_was_ended(self) -> None:
        stop = threading.Event()
        recorder = Recorder()
        assert replay([request(["a"])], "http", recorder, before_send=lambda _: stop.set(), stop=stop) == 0
        assert recorder.bodies == []

    def test_room_is_asked_for_before_each_attempt(self) -> None:
        recorder = Recorder(Answer(Fate.RETRY, "refused"), TAKEN)
        asked: list[int] = []
        replay([request(["a"])], "http", recorder, before_send=asked.append, stop=Waits())
        assert asked == [len(body) for body in recorder.bodies]
        assert len(asked) == 2

    @pytest.mark.usefixtures("_no_time_passes")
    def test_no_more_than_a_seconds_worth_goes_at_once(self) -> None:
        recorder, waits = Recorder(), Waits()
        requests = [request([f"{n}-{m}" for m in range(7)]) for n in range(10)]
        assert replay(requests, "http", recorder, records_per_second=10, stop=waits) == 70
        sizes = [len(ids_of([sent])) for sent in recorder.requests()]
        assert max(sizes) <= 10
        # What was waited for in all, as no time passes: the last request's turn comes when the others' time is over.
        assert waits.seconds[-1] == pytest.approx((70 - sizes[-1]) / 10)
