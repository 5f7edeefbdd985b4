from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, LogRecordExporter, LogRecordExportResult
from opentelemetry.sdk.resources import Resource

from tests.test_encoder import attributes
from tests.test_log_record import FACT
from tron_audit_otel.exporter import JournalExporter, JournalProcessor, SequencedExporter, envelope
from tron_audit_otel.ledger import Counts, Ledger
from tron_audit_otel.log_record import RECORD_BYTES_MAX, RECORD_ID, SEQUENCE_NUMBER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tron_audit_otel.event import AuditEvent


class FakeReadable:
    """As much of the SDK's record as is numbered."""

    def __init__(self) -> None:
        self.log_record = self
        self.attributes: dict[str, Any] = {}


class Refusing(LogRecordExporter):
    """Fails as told: a fake, since no real exporter does so on demand."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error

    def export(self, batch: Sequence[Any]) -> LogRecordExportResult:  # noqa: ARG002 - the base's signature
        if self.error is not None:
            raise self.error
        return LogRecordExportResult.FAILURE

    def shutdown(self) -> None: ...

    def force_flush(self, timeout_millis: int = 0) -> bool:
        return timeout_millis > 0


def batch(size: int) -> list[Any]:
    return [FakeReadable() for _ in range(size)]


def numbers(records: list[Any]) -> list[int]:
    return [record.attributes[SEQUENCE_NUMBER] for record in records]


def test_a_stream_is_numbered_without_gaps_over_its_batches() -> None:
    exporter = SequencedExporter(InMemoryLogRecordExporter())  # type: ignore[no-untyped-call] # the SDK has no annotation here
    first, second = batch(3), batch(2)
    exporter.export(first)
    exporter.export(second)
    assert numbers(first + second) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("error", "why"),
    [(None, "the exporter gave up"), (ValueError("s3cret"), "ValueError"), (SystemExit(), "SystemExit")],
    ids=["result", "exception", "exit"],
)
def test_what_is_not_taken_is_said_to_be_audit_records(
    error: BaseException | None, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert SequencedExporter(Refusing(error)).export(batch(3)) is LogRecordExportResult.FAILURE
    assert caplog.messages == [f"3 audit records are lost: {why}"]


def test_the_ledger_knows_what_became_of_each() -> None:
    ledger = Ledger()
    for _ in range(5):
        ledger.admit(10)
    SequencedExporter(InMemoryLogRecordExporter(), ledger).export(batch(3))  # type: ignore[no-untyped-call] # as above
    SequencedExporter(Refusing(None), ledger).export(batch(1))
    assert ledger.counts() == Counts(emitted=5, delivered=3, dropped={"export_failed": 1}, pending=1, queued=1)


def test_a_flush_is_passed_on() -> None:
    exporter = SequencedExporter(Refusing(None))
    assert exporter.force_flush(1)
    assert not exporter.force_flush(0)
    exporter.shutdown()


class Outbox:
    """Keeps what is put into it, or breaks: a fake, since no real one breaks on demand."""

    def __init__(self, *, breaks: bool = False) -> None:
        self.ledger = Ledger()
        self.breaks = breaks
        self.requests: list[list[dict[str, Any]]] = []
        self.ids: list[str] = []
        self.lost: list[tuple[str, str]] = []

    def put(self, payload: bytes, record_ids: Sequence[str]) -> None:
        if self.breaks:
            raise ValueError("s3cret")
        records = ExportLogsServiceRequest.FromString(payload).resource_logs[0].scope_logs[0].log_records
        assert [attributes(record.SerializeToString())[RECORD_ID].string_value for record in records] == record_ids
        assert len(payload) <= BYTES_MAX
        self.requests.append([attributes(record.SerializeToString()) for record in records])
        self.ids += record_ids

    def lose(self, record_ids: Sequence[str], reason: str) -> None:
        self.lost += [(record_id, reason) for record_id in record_ids]
        self.ledger.drop(len(record_ids), reason)

    @property
    def numbers(self) -> list[int]:
        return [record[SEQUENCE_NUMBER].int_value for request in self.requests for record in request]


BYTES_MAX = 3000


def journaling(outbox: Any) -> JournalExporter:
    return JournalExporter(outbox, envelope(Resource({}), "scope", ""), BYTES_MAX)


def facts(*actions: str) -> list[AuditEvent]:
    return [FACT._replace(record_id=f"id-{number}", action=action) for number, action in enumerate(actions)]


def test_a_batch_is_committed_in_the_order_of_its_records_and_numbered_over_all_batches() -> None:
    outbox = Outbox()
    exporter = journaling(outbox)
    for batch in (facts("A", "B"), facts("C")):
        assert exporter.export(batch) is LogRecordExportResult.SUCCESS
    assert outbox.ids == ["id-0", "id-1", "id-0"]
    assert outbox.numbers == [1, 2, 3]


def test_a_batch_that_is_too_long_for_a_request_is_several() -> None:
    outbox = Outbox()
    journaling(outbox).export(facts(*["A" * 500] * 7))
    assert len(outbox.requests) > 1
    assert outbox.ids == [f"id-{number}" for number in range(7)]
    assert outbox.numbers == [1, 2, 3, 4, 5, 6, 7]


def test_a_record_is_cut_to_a_request_that_is_shorter_than_a_record_may_be() -> None:
    outbox = Outbox()  # it holds each request against BYTES_MAX
    [fact] = facts("A")
    journaling(outbox).export([fact._replace(error_type="x" * 100_000)])
    assert outbox.numbers == [1]
    assert outbox.lost == []


def test_no_record_takes_more_of_a_request_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.test_exporter.BYTES_MAX", 1 << 20)
    outbox = Outbox()
    [fact] = facts("A")
    journaling(outbox).export([fact._replace(error_type="x" * 100_000, resource=fact.resource._replace(name="y" * 9))])
    [[record]] = outbox.requests
    assert sum(pair.ByteSize() for pair in record.values()) <= RECORD_BYTES_MAX
    assert record["error.type"].string_value.endswith("x…")


def test_a_record_that_cannot_be_encoded_is_counted_and_the_rest_committed(caplog: pytest.LogCaptureFixture) -> None:
    outbox = Outbox()
    assert journaling(outbox).export(facts("A", "s3cret \ud800", "C")) is LogRecordExportResult.SUCCESS
    assert outbox.ids == ["id-0", "id-2"]
    assert outbox.numbers == [1, 2]
    assert outbox.lost == [("id-1", "unencodable")]
    assert "audit record id-1 is lost: it cannot be encoded: UnicodeEncodeError" in caplog.text
    assert "s3cret" not in caplog.text


def test_whatever_breaks_is_counted_and_does_not_end_the_sdks_thread(caplog: pytest.LogCaptureFixture) -> None:
    outbox = Outbox(breaks=True)
    outbox.ledger.admit(10)
    exporter = journaling(outbox)
    assert exporter.export(facts("A")) is LogRecordExportResult.FAILURE
    assert outbox.lost == [("id-0", "failed")]
    assert caplog.messages == ["1 audit records are lost: ValueError"]
    assert exporter.force_flush()
    exporter.shutdown()


@pytest.mark.parametrize("of_another_sdk", [False, True], ids=["this-sdk", "an-sdk-whose-queue-is-elsewhere"])
def test_the_batch_processor_takes_facts(of_another_sdk: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if of_another_sdk:
        monkeypatch.setattr("tron_audit_otel.exporter.QUEUE", "_elsewhere")
    outbox = Outbox()
    processor = JournalProcessor(journaling(outbox))
    for fact in facts("A", "B"):
        processor.put(fact)
    processor.force_flush()
    processor.shutdown()  # type: ignore[no-untyped-call] # the SDK has no annotation here
    assert outbox.ids == ["id-0", "id-1"]
