from __future__ import annotations

import threading
import time
from importlib.metadata import PackageNotFoundError
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, LogRecordExportResult

import tron_audit_otel as audit
from tron_audit_otel import pipeline as pipelines
from tron_audit_otel import stream
from tron_audit_otel.context import open_telemetry_context
from tron_audit_otel.event import Actor, AuditEvent, EventName, Outcome, Resource
from tron_audit_otel.pipeline import Pipeline

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path


def event() -> AuditEvent:
    return AuditEvent(
        record_id="1",
        name=EventName.EVENT,
        began_ns=time.time_ns(),
        duration_ns=0,
        actor=Actor(),
        action="DELETE",
        resource=Resource("backups/1"),
        outcome=Outcome.SUCCESS,
        context=open_telemetry_context(),
    )


class Hanging(InMemoryLogRecordExporter):
    """Waits until it is released: a fake, since no real exporter does so on demand."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # the SDK has no annotation here
        self.released = threading.Event()

    def export(self, batch: Sequence[Any]) -> LogRecordExportResult:
        self.released.wait(60)
        return super().export(batch)


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    exporter = Hanging()
    yield exporter
    exporter.released.set()


def config(**values: Any) -> audit.AuditConfig:
    return audit.AuditConfig(enabled=True, **{"shutdown_seconds_max": 60, **values})


def test_the_resource_says_what_the_operator_says_but_for_the_instance(exporter: InMemoryLogRecordExporter) -> None:
    attributes = {"deployment.environment.name": "production", "service.instance.id": "the same for four workers"}
    pipeline = Pipeline(config(service_name="api", resource_attributes=attributes), exporter=exporter)
    pipeline.emit(event())
    assert pipeline.shutdown()
    (record,) = exporter.get_finished_logs()
    resource = dict(record.resource.attributes)
    assert resource["service.name"] == "api"
    assert resource["deployment.environment.name"] == "production"
    assert resource["service.instance.id"] != "the same for four workers"


@pytest.mark.parametrize("method", ["flush", "shutdown"])
def test_an_exporter_that_hangs_is_waited_for_until_the_deadline_and_no_longer(
    method: str, hanging: Hanging, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline = Pipeline(config(shutdown_seconds_max=0.1), exporter=hanging)
    pipeline.emit(event())
    assert not getattr(pipeline, method)()
    assert "longer than AUDIT_LOG_SHUTDOWN_SECONDS_MAX (0.1 s)" in caplog.text


def test_emit_does_not_wait_for_an_exporter_that_hangs_nor_for_a_full_queue(hanging: Hanging) -> None:
    pipeline = Pipeline(config(queue_records_max=2, shutdown_seconds_max=0.1), exporter=hanging)
    for _ in range(100):
        pipeline.emit(event())
        assert hanging.get_finished_logs() == ()
    hanging.released.set()
    pipeline.shutdown()


def test_nothing_to_flush_before_the_first_event() -> None:
    pipeline = Pipeline(config())
    assert pipeline.flush()
    assert pipeline.shutdown()


def test_it_starts_anew_after_a_shutdown(exporter: InMemoryLogRecordExporter) -> None:
    made = Pipeline(config(), exporter=exporter)
    made.emit(event())
    made.shutdown()
    assert len(exporter.get_finished_logs()) == 1
    made.start()
    made.shutdown()


def test_where_no_thread_can_be_started_the_flush_is_done_all_the_same(
    monkeypatch: pytest.MonkeyPatch, exporter: InMemoryLogRecordExporter
) -> None:
    pipeline = Pipeline(config(batch_delay_ms=60_000), exporter=exporter)
    pipeline.emit(event())

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert pipeline.flush()
    assert len(exporter.get_finished_logs()) == 1
    pipeline.shutdown()


def test_a_lock_that_was_held_at_a_fork_does_not_stay_held_in_the_child(exporter: InMemoryLogRecordExporter) -> None:
    pipeline = Pipeline(config(), exporter=exporter)
    pipeline._starting.acquire()
    pipelines._forked()
    pipeline.start()
    pipeline.shutdown()


def test_without_its_distributions_metadata_it_works(
    monkeypatch: pytest.MonkeyPatch, exporter: InMemoryLogRecordExporter
) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(stream, "version", missing)
    pipeline = Pipeline(config(), exporter=exporter)
    pipeline.emit(event())
    pipeline.shutdown()
    assert len(exporter.get_finished_logs()) == 1


def test_applications_that_are_instrumented_alike_share_one_stream() -> None:
    from tron_audit_otel.instrumentation import _applications  # noqa: PLC0415 - shared is what cannot be seen outside

    alike = config(otlp_endpoint="http://127.0.0.1:1/v1/logs", shutdown_seconds_max=0.1)
    first, second = FastAPI(), FastAPI()
    audit.instrument(first, config=alike)
    audit.instrument(second, config=alike)
    assert _applications[first].pipeline is _applications[second].pipeline
    audit.uninstrument(first)
    assert second in _applications
    audit.uninstrument(second)


def test_without_default_rules_the_documentation_pages_are_recorded(tmp_path: Path) -> None:
    from tron_audit_otel.testing import capture  # noqa: PLC0415 - beside what it captures

    file = tmp_path / "policy.yaml"
    file.write_text("rules: []\ndefault_rules: false\n", encoding="utf-8")
    app = FastAPI()
    with capture(app, config(policy_file=file)) as seen:
        TestClient(app).get("/docs")
    assert seen.last["url.path"] == "/docs"
