from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import metrics as api
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from tests.test_pipeline import event
from tests.test_stream import FullDisk, Receiver, config, disk, eventually, receiver
from tron_audit_otel import metrics
from tron_audit_otel.answer import Answer, Fate
from tron_audit_otel.pipeline import Pipeline

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tron_audit_otel.config import AuditConfig

__all__ = ["config", "disk", "receiver"]  # fixtures


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemoryMetricReader]:
    """Reads a meter provider of the test's own; the global one can be set but once."""
    reader = InMemoryMetricReader()
    monkeypatch.setattr(api, "get_meter", MeterProvider([reader], shutdown_on_exit=False).get_meter)
    monkeypatch.setattr(metrics, "_watched", [])
    metrics.duration.cache_clear()
    yield reader
    metrics.duration.cache_clear()


def read(reader: InMemoryMetricReader) -> dict[str, dict[str, Any]]:
    """The value of each point, by metric and by what its attributes say."""
    found: dict[str, dict[str, Any]] = {}
    data = reader.get_metrics_data()
    for resource in data.resource_metrics if data else ():
        for metric in resource.scope_metrics[0].metrics:
            for point in metric.data.data_points:
                key = ",".join(str(value) for value in (point.attributes or {}).values())
                found.setdefault(metric.name, {})[key] = getattr(point, "value", getattr(point, "count", None))
    return found


def test_the_ledger_is_there_under_the_draft_signals_names(
    receiver: Receiver, config: AuditConfig, reader: InMemoryMetricReader
) -> None:
    pipeline = Pipeline(config)
    pipeline.emit(event())
    eventually(lambda: pipeline.stats().delivered == 2)
    receiver.answer = Answer(Fate.RETRY, "HTTP 503")
    pipeline.emit(event())
    eventually(lambda: pipeline.stats().shipping == "retrying")
    found = read(reader)
    assert found["audit.records.emitted"] == {"own": 3, "adopted": 0}
    assert found["audit.records.exported"] == {"own": 2, "adopted": 0}
    assert found["audit.records.dead_lettered"] == {"own": 0, "adopted": 0}
    assert found["audit.queue.depth"] == {"own": 1, "adopted": 0}
    assert found["audit.requests.rejected"] == {"own": 0, "adopted": 0}
    assert "audit.records.dropped" not in found
    assert found["audit.export.duration"].keys() == {"delivered", "retry"}
    pipeline.shutdown()


def test_losses_have_their_reason(
    receiver: Receiver, config: AuditConfig, disk: FullDisk, reader: InMemoryMetricReader
) -> None:
    pipeline = Pipeline(config.model_copy(update={"queue_records_max": 1}))
    pipeline.start()
    eventually(lambda: pipeline.stats().blocked == "disk_full")
    pipeline.emit(event())
    assert pipeline.admit() is None
    found = read(reader)
    assert found["audit.records.dropped"] == {"own,disk_full": 1}
    assert found["audit.requests.rejected"]["own"] == 1
    pipeline.shutdown()


def test_a_pipeline_that_is_gone_is_observed_no_more(
    receiver: Receiver, config: AuditConfig, reader: InMemoryMetricReader
) -> None:
    pipeline = Pipeline(config)
    pipeline.emit(event())
    pipeline.shutdown()
    assert read(reader)["audit.records.emitted"] == {"own": 3, "adopted": 0}
    del pipeline
    gc.collect()
    assert read(reader)["audit.records.emitted"] == {"own": 0, "adopted": 0}


def test_counters_never_go_down_when_another_stream_begins(
    receiver: Receiver, config: AuditConfig, reader: InMemoryMetricReader
) -> None:
    pipeline = Pipeline(config.model_copy(update={"shutdown_seconds_max": 60}))
    for emitted in (3, 6):
        pipeline.emit(event())
        pipeline.shutdown()
        assert read(reader)["audit.records.exported"]["own"] == emitted
        assert pipeline.stats().emitted == 3


def test_all_pipelines_of_a_process_are_in_the_sums(
    receiver: Receiver, config: AuditConfig, reader: InMemoryMetricReader
) -> None:
    pipelines = [Pipeline(config), Pipeline(config.model_copy(update={"journal": "memory"}))]
    for pipeline in pipelines:
        pipeline.emit(event())
    assert read(reader)["audit.records.emitted"]["own"] == 4
    for pipeline in pipelines:
        pipeline.shutdown()
