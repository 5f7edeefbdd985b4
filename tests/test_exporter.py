from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
from grpc import Compression
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, LogRecordExporter, LogRecordExportResult

from tron_audit_otel.config import AuditConfig
from tron_audit_otel.exporter import SequencedExporter, otlp_exporter
from tron_audit_otel.log_record import SEQUENCE_NUMBER

if TYPE_CHECKING:
    from collections.abc import Sequence


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
    exporter = SequencedExporter(InMemoryLogRecordExporter)
    first, second = batch(3), batch(2)
    exporter.export(first)
    exporter.export(second)
    assert numbers(first + second) == [1, 2, 3, 4, 5]


def test_another_process_has_an_exporter_and_numbers_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[InMemoryLogRecordExporter] = []

    def make() -> InMemoryLogRecordExporter:
        made.append(InMemoryLogRecordExporter())  # type: ignore[no-untyped-call] # the SDK has no annotation here
        return made[-1]

    exporter = SequencedExporter(make)
    exporter.export(batch(3))
    monkeypatch.setattr(os, "getpid", lambda: -1)
    exporter.shutdown()  # not the parent's: its socket is the parent's, too
    child = batch(1)
    exporter.export(child)
    assert numbers(child) == [1]
    assert len(made) == 2
    assert len(made[0].get_finished_logs()) == 3


@pytest.mark.parametrize(
    ("error", "why"),
    [(None, "the exporter gave up"), (ValueError("s3cret"), "ValueError"), (SystemExit(), "SystemExit")],
    ids=["result", "exception", "exit"],
)
def test_what_is_not_taken_is_said_to_be_audit_records(
    error: BaseException | None, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert SequencedExporter(lambda: Refusing(error)).export(batch(3)) is LogRecordExportResult.FAILURE
    assert caplog.messages == [f"3 audit records are lost: {why}"]


def test_a_flush_before_the_first_batch_has_nothing_to_do() -> None:
    exporter = SequencedExporter(lambda: Refusing(None))
    assert exporter.force_flush(0)
    exporter.shutdown()
    exporter.export(batch(1))
    assert exporter.force_flush(1)
    assert not exporter.force_flush(0)


def config(**values: Any) -> AuditConfig:
    return AuditConfig(enabled=True, **values)


def test_http_takes_every_setting() -> None:
    exporter: Any = otlp_exporter(
        config(
            otlp_endpoint="https://collector/v1/logs",
            otlp_headers={"authorization": "Bearer x"},
            otlp_timeout_s=3,
            otlp_compression="gzip",
        )
    )
    assert exporter._endpoint == "https://collector/v1/logs"
    assert exporter._compression.value == "gzip"
    assert exporter._client._timeout == 3
    assert exporter._client._headers["authorization"] == "Bearer x"
    exporter.shutdown()


@pytest.mark.parametrize(
    ("endpoint", "insecure_set", "insecure"),
    [
        ("http://collector:4317", False, True),
        ("https://collector:4317", False, False),
        ("https://collector:4317", True, False),
        ("collector:4317", False, False),
        ("collector:4317", True, True),
    ],
)
def test_grpc_is_insecure_only_where_that_was_said(endpoint: str, insecure_set: bool, insecure: bool) -> None:  # noqa: FBT001 - parameters of the test
    exporter: Any = otlp_exporter(
        config(otlp_protocol="grpc", otlp_endpoint=endpoint, otlp_insecure=insecure_set, otlp_compression="gzip")
    )
    assert exporter._endpoint == "collector:4317"
    assert exporter._insecure is insecure
    assert exporter._compression is Compression.Gzip
    exporter.shutdown()
