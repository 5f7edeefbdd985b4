"""From the event to the journal and on: what is counted, announced, kept and let go of, in one process."""

from __future__ import annotations

import json
import logging
import threading
import time
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from tests.test_pipeline import event
from tron_audit_otel import disk_journal, journal_dir, transport
from tron_audit_otel.answer import Answer, Fate
from tron_audit_otel.config import AuditConfig
from tron_audit_otel.disk_journal import DiskJournal
from tron_audit_otel.errors import JournalError
from tron_audit_otel.ledger import Stats, total
from tron_audit_otel.pipeline import Pipeline

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tron_audit_otel.event import AuditEvent

WAIT_SECONDS_MAX = 30
"""For what takes milliseconds, on a machine that stalls; the longest batch delay is twice as long."""

ELAPSED_SECONDS_MAX = 15
"""For what has half a second, on a machine that stalls; without that deadline it takes twice as long or more."""


class Receiver:
    """Answers as told, and keeps what it took: a fake, since a real Collector says nothing on demand."""

    def __init__(self) -> None:
        self.answer = Answer(Fate.DELIVERED)
        self.poison: str | None = None
        self.records: list[dict[str, Any]] = []

    def send(self, request: bytes) -> Answer:
        found = [
            {pair.key: pair.value.string_value or pair.value.int_value for pair in record.attributes}
            for resource in ExportLogsServiceRequest.FromString(request).resource_logs
            for scope in resource.scope_logs
            for record in scope.log_records
        ]
        if any(record["audit.action"] == self.poison for record in found):
            return Answer(Fate.POISON, "HTTP 400")
        if self.answer.fate is Fate.DELIVERED:
            self.records += found
        return self.answer

    def close(self) -> None: ...

    def of(self, action: str) -> list[dict[str, Any]]:
        return [record for record in self.records if record["audit.action"] == action]


@pytest.fixture(autouse=True)
def _shipper_may_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    """What its thread still had to tell of would be one record more, at the end."""
    monkeypatch.setattr("tron_audit_otel.outbox.TELLING_SECONDS_MAX", WAIT_SECONDS_MAX)


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Receiver:
    made = Receiver()
    monkeypatch.setattr(transport, "maker", lambda _: lambda: made)
    return made


@pytest.fixture
def config(tmp_path: Path, request: pytest.FixtureRequest) -> AuditConfig:
    """The end waits for a machine that stalls, but not for a disk that refuses, of which nothing else would come."""
    return AuditConfig(
        enabled=True,
        journal_dir=tmp_path,
        batch_delay_ms=1,
        retry_seconds_max=0.05,
        shutdown_seconds_max=0.5 if "disk" in request.fixturenames else 60,
    )


def eventually(found: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def adds_up(stats: Stats) -> bool:
    return all(
        counts.emitted == counts.delivered + counts.pending + counts.dead_lettered + sum(counts.dropped.values())
        for counts in (stats, stats.adopted)
    )


class FullDisk:
    """Refuses to append until it is free again: a fake, since no real disk fills up on demand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error: BaseException | None = JournalError("no space left on device", "disk_full")
        real = DiskJournal.append

        def append(journal: DiskJournal, payload: bytes, records: int) -> None:
            if self.error is not None:
                raise self.error
            real(journal, payload, records)

        monkeypatch.setattr(DiskJournal, "append", append)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> FullDisk:
    return FullDisk(monkeypatch)


def test_a_stream_begins_and_ends_with_a_record_of_its_own(receiver: Receiver, config: AuditConfig) -> None:
    pipeline = Pipeline(config, policy="d1")
    pipeline.emit(event())
    assert pipeline.shutdown()
    assert [record["audit.action"] for record in receiver.records] == ["START", "DELETE", "STOP"]
    start = receiver.records[0]
    assert start["audit.actor.id"] == "tron_audit_otel"
    assert start["audit.system.commit"] == "batch"
    assert start["audit.system.on_full"] == "drop"
    assert start["audit.policy.sha256"] == "d1"
    assert [record["audit.sequence.number"] for record in receiver.records] == [1, 2, 3]
    stats = pipeline.stats()
    assert (stats.emitted, stats.delivered, stats.pending) == (3, 3, 0)
    assert not list(config.journal_path.glob("2*"))


def test_what_was_not_delivered_is_adopted_by_the_next_process_and_that_is_on_record(
    receiver: Receiver, config: AuditConfig
) -> None:
    receiver.answer = Answer(Fate.RETRY, "HTTP 503")
    first = Pipeline(config)
    first.emit(event())
    assert first.shutdown()
    assert first.stats().pending == 3
    receiver.answer = Answer(Fate.DELIVERED)
    second = Pipeline(config)
    second.emit(event())
    eventually(lambda: receiver.of("ADOPT"))
    eventually(lambda: second.stats().adopted.delivered == 3)
    assert second.shutdown()
    [adoption] = receiver.of("ADOPT")
    assert adoption["audit.system.records"] == 3
    assert adoption["audit.system.journal"] == first.stats().journal
    assert len(receiver.of("DELETE")) == 2
    assert adds_up(second.stats())
    assert not list(config.journal_path.glob("2*"))


def test_another_policy_than_before_is_on_record(receiver: Receiver, config: AuditConfig) -> None:
    for policy in ("d1", "d1", "d2"):
        pipeline = Pipeline(config, policy=policy)
        outbox = pipeline.start().outbox
        assert outbox
        eventually(lambda: not outbox._policy)  # noqa: B023 - called at once
        with outbox._telling:  # until all is told
            pass
        pipeline.shutdown()
    [change] = receiver.of("POLICY_CHANGE")
    assert change["audit.policy.sha256"] == "d2"
    assert change["audit.policy.previous_sha256"] == "d1"


@pytest.mark.parametrize("error", [JournalError("full", "disk_full"), OSError(5, "s3cret"), SystemExit()])
def test_a_disk_that_is_full_for_a_while_costs_nothing(
    receiver: Receiver, config: AuditConfig, disk: FullDisk, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    disk.error = error
    pipeline = Pipeline(config.model_copy(update={"shutdown_seconds_max": 60}))
    for _ in range(5):
        pipeline.emit(event())
    eventually(lambda: pipeline.stats().blocked)
    assert pipeline.stats().queued == 6
    disk.error = None
    eventually(lambda: pipeline.stats().delivered == 6)
    eventually(lambda: pipeline.stats().blocked is None)
    assert pipeline.shutdown()
    assert len(receiver.of("DELETE")) == 5
    assert not receiver.of("LOSS")
    assert "no audit record can be written, and up to AUDIT_LOG_QUEUE_RECORDS_MAX wait in memory" in caplog.text
    assert "s3cret" not in caplog.text


def test_what_a_full_disk_costs_is_counted_and_on_record(
    receiver: Receiver, config: AuditConfig, disk: FullDisk
) -> None:
    pipeline = Pipeline(config.model_copy(update={"queue_records_max": 4, "shutdown_seconds_max": 60}))
    pipeline.start()
    eventually(lambda: pipeline.stats().blocked)
    for _ in range(10):
        pipeline.emit(event())
    stats = pipeline.stats()
    assert stats.dropped == {"disk_full": 7}
    assert adds_up(stats)
    disk.error = None
    eventually(lambda: receiver.of("LOSS"))
    [loss] = receiver.of("LOSS")
    assert (loss["audit.system.records"], loss["audit.system.reason"]) == (7, "disk_full")
    assert pipeline.shutdown()
    assert len(receiver.of("DELETE")) == 3
    assert adds_up(pipeline.stats())


def test_requests_that_were_refused_are_counted_and_on_record(
    receiver: Receiver, config: AuditConfig, disk: FullDisk
) -> None:
    pipeline = Pipeline(config)
    pipeline.start()
    eventually(lambda: pipeline.stats().blocked)
    assert pipeline.admit() is None
    assert pipeline.admit() is None
    assert pipeline.stats().rejected == 2
    disk.error = None
    eventually(lambda: receiver.of("LOSS"))
    [loss] = receiver.of("LOSS")
    assert (loss["audit.system.records"], loss["audit.system.reason"]) == (2, "request_refused")
    assert pipeline.admit()
    pipeline.shutdown()


def test_a_disk_that_stays_full_ends_with_the_deadline_and_a_count(
    receiver: Receiver,
    config: AuditConfig,
    disk: FullDisk,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tron_audit_otel.stream.LAST_SECONDS", WAIT_SECONDS_MAX)
    pipeline = Pipeline(config)
    pipeline.emit(event())
    began = time.monotonic()
    pipeline.shutdown()
    assert time.monotonic() - began < ELAPSED_SECONDS_MAX
    assert pipeline.stats().dropped == {"disk_full": 3}
    assert adds_up(pipeline.stats())
    assert "3 audit records are lost: disk_full" in caplog.text
    assert not receiver.records


def test_a_disk_that_hangs_is_an_obstacle_after_a_while(
    receiver: Receiver, config: AuditConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    real = DiskJournal.append

    def append(journal: DiskJournal, payload: bytes, records: int) -> None:
        released.wait(2 * WAIT_SECONDS_MAX)
        real(journal, payload, records)

    monkeypatch.setattr(DiskJournal, "append", append)
    pipeline = Pipeline(config.model_copy(update={"commit_seconds_max": 0.05}))
    pipeline.emit(event())
    eventually(lambda: pipeline.admit() is None)
    stream = pipeline.start()
    assert stream.outbox
    assert stream.outbox.obstacle == "disk_stalled"
    released.set()
    eventually(lambda: stream.outbox and stream.outbox.obstacle is None)
    pipeline.shutdown()
    assert len(receiver.of("DELETE")) == 1


def test_a_record_that_fails_is_counted_and_the_rest_goes_on(
    receiver: Receiver, config: AuditConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline = Pipeline(config)
    pipeline.start()

    def broken(_: Any) -> Any:
        raise ValueError("s3cret")

    with monkeypatch.context() as patch:
        patch.setattr("tron_audit_otel.exporter.encode", broken)
        pipeline.emit(event())
        pipeline.flush()
    pipeline.emit(event())
    pipeline.shutdown()
    assert pipeline.stats().dropped["unencodable"] >= 1
    assert adds_up(pipeline.stats())
    assert "s3cret" not in caplog.text


def test_what_waits_in_memory_when_the_process_ends_is_counted_as_lost(
    receiver: Receiver, config: AuditConfig, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.answer = Answer(Fate.RETRY, "HTTP 503")
    pipeline = Pipeline(config.model_copy(update={"journal": "memory"}))
    pipeline.emit(event())
    assert pipeline.shutdown()
    stats = pipeline.stats()
    assert stats.dropped == {"shutdown": 3}
    assert adds_up(stats)
    assert stats.journal == "memory"
    assert "3 audit records are lost: shutdown" in caplog.text
    assert not list(config.journal_path.iterdir())


def test_the_counts_are_left_where_an_operator_finds_them(receiver: Receiver, config: AuditConfig) -> None:
    receiver.answer = Answer(Fate.PARKED, "HTTP 401")
    pipeline = Pipeline(config.model_copy(update={"service_name": "api"}))
    pipeline.emit(event())
    eventually(lambda: pipeline.stats().shipping == "parked")
    pipeline.shutdown()
    [state] = journal_dir.inspect(config.journal_path)
    assert state.note
    note = json.loads(state.note)
    assert (note["service"], note["emitted"], note["pending"], note["reason"]) == ("api", 3, 3, "HTTP 401")


def test_what_the_receiver_never_takes_is_a_dead_letter(receiver: Receiver, config: AuditConfig) -> None:
    receiver.poison = "DELETE"
    pipeline = Pipeline(config)
    pipeline.emit(event())
    pipeline.shutdown()
    stats = pipeline.stats()
    assert (stats.delivered, stats.dead_lettered) == (2, 1)
    assert adds_up(stats)
    [letter] = (config.journal_path / "dead-letter").iterdir()
    assert "HTTP 400" in letter.read_text()


def test_a_stream_that_ends_while_somebody_emits_counts_what_it_no_longer_takes(
    receiver: Receiver, config: AuditConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline(config)
    stream = pipeline.start()
    real = stream._sdk.shutdown

    def late() -> None:
        real()
        stream.emit(event())  # as a thread would that had looked the stream up before

    monkeypatch.setattr(stream._sdk, "shutdown", late)
    pipeline.shutdown()
    assert pipeline.stats().dropped == {"shutdown": 1}
    assert adds_up(pipeline.stats())


def test_a_late_event_begins_another_stream(receiver: Receiver, config: AuditConfig) -> None:
    pipeline = Pipeline(config)
    pipeline.emit(event())
    pipeline.shutdown()
    pipeline.emit(event())
    pipeline.shutdown()
    assert len(receiver.of("DELETE")) == 2
    assert [record["audit.sequence.number"] for record in receiver.records] == [1, 2, 3, 1, 2, 3]


def test_a_commitment_is_kept_at_once_and_not_after_the_batch_delay(receiver: Receiver, config: AuditConfig) -> None:

    pipeline = Pipeline(config.model_copy(update={"batch_delay_ms": 60_000}))

    async def commit() -> bool:
        commitment = pipeline.commit(event())
        assert commitment
        return await commitment.wait(WAIT_SECONDS_MAX)

    assert anyio.run(commit)
    pipeline.shutdown()
    assert len(receiver.of("DELETE")) == 1


def test_a_commitment_to_a_queue_that_is_full_is_not_kept(
    receiver: Receiver, config: AuditConfig, disk: FullDisk
) -> None:

    pipeline = Pipeline(config.model_copy(update={"queue_records_max": 1}))
    pipeline.start()

    async def commit() -> bool:
        commitment = pipeline.commit(event())
        assert commitment
        return await commitment.wait(WAIT_SECONDS_MAX)

    assert not anyio.run(commit)
    disk.error = None
    pipeline.shutdown()


def test_the_recovery_of_a_disk_is_said(
    receiver: Receiver, config: AuditConfig, disk: FullDisk, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    pipeline = Pipeline(config)
    pipeline.emit(event())
    eventually(lambda: pipeline.stats().blocked)
    disk.error = None
    eventually(lambda: "the audit journal can be written again" in caplog.text)
    pipeline.shutdown()


def test_two_journals_add_up() -> None:
    one = Stats(emitted=3, delivered=1, pending=2, journal="a", shipping="parked", reason="HTTP 401")
    two = Stats(emitted=1, pending=1, journal="b", blocked="disk_full")
    both = total([one, two])
    assert (both.emitted, both.pending, both.journal, both.shipping) == (4, 3, "a", "parked")
    assert (both.reason, both.blocked) == ("HTTP 401", "disk_full")
    assert total([]) == Stats()


def test_who_prefers_answers_to_records_does_not_wait_for_a_disk_that_is_known_to_refuse(
    receiver: Receiver, config: AuditConfig, disk: FullDisk
) -> None:
    pipeline = Pipeline(config.model_copy(update={"commit": "response", "on_full": "drop"}))
    pipeline.start()
    eventually(lambda: pipeline.stats().blocked)
    assert pipeline.commit(event()) is None
    disk.error = None
    pipeline.shutdown()


def test_a_loss_that_is_noticed_at_the_end_is_on_record(receiver: Receiver, config: AuditConfig) -> None:
    pipeline = Pipeline(config)
    stream = pipeline.start()
    eventually(lambda: pipeline.stats().delivered)
    stream.ledger.admit(10)
    stream.ledger.drop(1, "failed")
    pipeline.shutdown()
    [loss] = receiver.of("LOSS")
    assert (loss["audit.system.records"], loss["audit.system.reason"]) == (1, "failed")
    assert receiver.records[-1]["audit.action"] == "STOP"
    assert adds_up(pipeline.stats())


def test_nothing_is_announced_after_the_last_word(receiver: Receiver, config: AuditConfig) -> None:
    pipeline = Pipeline(config)
    stream = pipeline.start()
    outbox = stream.outbox
    assert outbox
    eventually(lambda: pipeline.stats().delivered)
    outbox.last_words()
    outbox.ledger.admit(10)
    outbox.lose(["1"], "failed")
    outbox._tick()
    pipeline.shutdown()
    assert not receiver.of("LOSS")
    assert adds_up(pipeline.stats())


def test_where_no_thread_can_be_started_a_commitment_is_kept_by_the_batch_delay(
    receiver: Receiver, config: AuditConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline(config)
    pipeline.start()

    def refuse(_: Any) -> Any:
        raise RuntimeError("can't start new thread")

    async def commit() -> bool:
        commitment = pipeline.commit(event())
        assert commitment
        return await commitment.wait(WAIT_SECONDS_MAX)

    with monkeypatch.context() as patch:
        patch.setattr("tron_audit_otel.stream._Committer", refuse)
        assert anyio.run(commit)
    pipeline.shutdown()


def test_no_more_requests_are_admitted_than_have_a_place(receiver: Receiver, config: AuditConfig) -> None:
    pipeline = Pipeline(config.model_copy(update={"queue_records_max": 3, "batch_delay_ms": 60_000}))
    places = [pipeline.admit() for _ in range(4)]  # START waits, too
    assert [place is not None for place in places] == [True, True, False, False]
    for place in filter(None, places):
        place()
    assert pipeline.admit()
    assert pipeline.stats().rejected == 2
    pipeline.shutdown()


def test_a_stream_that_cannot_begin_costs_a_count_and_one_line(
    receiver: Receiver, config: AuditConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: Any) -> Any:
        raise RuntimeError("can't start new thread")

    pipeline = Pipeline(config)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        for _ in range(5):
            pipeline.emit(event())
        with pytest.raises(RuntimeError):
            pipeline.admit()
    assert pipeline.stats().dropped == {"failed": 5}
    assert adds_up(pipeline.stats())
    assert len(caplog.messages) == 1
    pipeline.emit(event())
    pipeline.shutdown()
    assert (pipeline.stats().emitted, pipeline.stats().delivered) == (8, 3)


def test_a_handler_of_a_signal_may_record_something_at_any_moment(receiver: Receiver, config: AuditConfig) -> None:
    pipeline = Pipeline(config)
    with pipeline._starting:
        pipeline.emit(event())
    stream = pipeline.start()
    with stream.ledger._lock:
        pipeline.emit(event())
    pipeline._is_starting, pipeline._stream = True, None
    pipeline.emit(event())  # while the stream begins: counted, and no second one
    pipeline._is_starting, pipeline._stream = False, stream
    pipeline.shutdown()
    assert pipeline.stats().dropped == {"failed": 1}


def test_a_burst_that_is_larger_than_the_journal_waits_and_arrives(receiver: Receiver, config: AuditConfig) -> None:
    pipeline = Pipeline(config.model_copy(update={"journal_max_bytes": 65_536}))
    for _ in range(600):
        pipeline.emit(event())
    eventually(lambda: pipeline.stats().delivered == 601)
    pipeline.shutdown()


def test_a_disk_that_stalls_does_not_hold_up_the_end(
    receiver: Receiver, config: AuditConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    released, real = threading.Event(), disk_journal._sync

    def stall(descriptor: int) -> None:
        released.wait(2 * WAIT_SECONDS_MAX)
        real(descriptor)

    monkeypatch.setattr(disk_journal, "_sync", stall)
    pipeline = Pipeline(config.model_copy(update={"shutdown_seconds_max": 0.5}))
    pipeline.emit(event())
    began = time.monotonic()
    assert not pipeline.shutdown()
    assert time.monotonic() - began < ELAPSED_SECONDS_MAX
    released.set()


def test_no_more_journals_are_held_than_descriptors_allow_and_all_are_delivered(
    receiver: Receiver, config: AuditConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tron_audit_otel.outbox.ADOPTED_MAX", 2)
    receiver.answer = Answer(Fate.RETRY, "HTTP 503")
    dead = [Pipeline(config) for _ in range(5)]
    for pipeline in dead:
        # As if it were its service's only process: the others must not adopt what is left for the last.
        monkeypatch.setattr("tron_audit_otel.outbox.adopt", lambda *_: [])
        pipeline.emit(event())
        pipeline.shutdown()
    monkeypatch.undo()
    monkeypatch.setattr(transport, "maker", lambda _: lambda: receiver)
    monkeypatch.setattr("tron_audit_otel.outbox.ADOPTED_MAX", 2)
    last = Pipeline(config)
    stream = last.start()
    assert stream.outbox
    eventually(lambda: stream.outbox and len(stream.outbox._held) == 2)
    receiver.answer = Answer(Fate.DELIVERED)
    eventually(lambda: len(receiver.of("DELETE")) == 5)
    last.shutdown()
    assert len(receiver.of("ADOPT")) == 5


class OfRequest:
    """A request's fact, as the pipeline sees it."""

    def __init__(self) -> None:
        self.record_id = "r"

    def event(self) -> AuditEvent:
        return event()


def test_what_a_handler_records_besides_takes_no_place_that_a_request_has(
    receiver: Receiver, config: AuditConfig
) -> None:
    pipeline = Pipeline(
        config.model_copy(update={"queue_records_max": 4, "batch_delay_ms": 60_000, "on_full": "reject"})
    )
    places = [pipeline.admit() for _ in range(3)]  # START waits, too
    pipeline.emit(event())
    assert pipeline.stats().dropped == {"queue_full": 1}
    for place in places:
        pipeline.emit(OfRequest())
        assert place is not None
        place()
    assert pipeline.stats().dropped == {"queue_full": 1}
    pipeline.shutdown()


def test_adopted_journals_are_let_go_of_where_no_own_one_can_be_made(
    receiver: Receiver, config: AuditConfig, disk: FullDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tron_audit_otel.stream.LAST_SECONDS", WAIT_SECONDS_MAX)
    disk.error = None
    receiver.answer = Answer(Fate.RETRY, "HTTP 503")
    first = Pipeline(config.model_copy(update={"shutdown_seconds_max": 60}))
    first.emit(event())
    first.shutdown()

    def full(*_: Any, **__: Any) -> Any:
        raise JournalError("no space left on device", "disk_full")

    with monkeypatch.context() as patch:
        patch.setattr(DiskJournal, "create", full)
        second = Pipeline(config)
        stream = second.start()
        eventually(lambda: stream.outbox and stream.outbox._held)
        second.shutdown()
    [left] = disk_journal.adopt(config.journal_path)
    left.close()
