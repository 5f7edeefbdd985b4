"""For the tests of an application that is audited: its records, without a Collector, a disk or a network.

>>> from tron_audit_otel.testing import capture
>>> with capture(app) as audit:  # doctest: +SKIP
...     client.delete("/instances/abc-123")
...     assert audit.last["audit.action"] == "DELETE"
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.resources import Resource

from tron_audit_otel.config import AuditConfig
from tron_audit_otel.exporter import SequencedExporter
from tron_audit_otel.instrumentation import instrument, is_instrumented, uninstrument

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastapi import FastAPI
    from opentelemetry._logs import LogRecord


class Captured:
    """The records so far, oldest first."""

    def __init__(self, exporter: InMemoryLogRecordExporter) -> None:
        """Reads from an exporter."""
        self._exporter = exporter

    @property
    def log_records(self) -> list[LogRecord]:
        """As OpenTelemetry log records: body, severity, timestamps, trace and span."""
        return [readable.log_record for readable in self._exporter.get_finished_logs()]

    @property
    def records(self) -> list[dict[str, Any]]:
        """The attributes of each record."""
        return [dict(record.attributes or {}) for record in self.log_records]

    @property
    def last(self) -> dict[str, Any]:
        """The attributes of the newest record.

        Raises:
            AssertionError: There is none.
        """
        records = self.records
        if not records:
            raise AssertionError("no audit record was written")
        return records[-1]

    def clear(self) -> None:
        """Forgets them."""
        self._exporter.clear()


@contextmanager
def capture(app: FastAPI, config: AuditConfig | None = None) -> Iterator[Captured]:
    """Instruments an application for the length of a test; each record is there as soon as its request has ended.

    An application that instruments itself must do so with audit off, as it is where ``AUDIT_LOG_ENABLED`` is not set.

    Args:
        app: The application.
        config: Such as ``AuditConfig(enabled=True, policy_file=…)``; by default enabled, and nothing else.

    Raises:
        RuntimeError: The application is instrumented already, and its records would go elsewhere.
    """
    if is_instrumented(app):
        raise RuntimeError("the application is instrumented already: run its tests without AUDIT_LOG_ENABLED")
    exporter = InMemoryLogRecordExporter()  # type: ignore[no-untyped-call] # the SDK has no annotation here
    provider = LoggerProvider(Resource.create(), shutdown_on_exit=False)
    provider.add_log_record_processor(SimpleLogRecordProcessor(SequencedExporter(exporter)))
    instrument(app, logger_provider=provider, config=config or AuditConfig(enabled=True))
    try:
        yield Captured(exporter)
    finally:
        uninstrument(app)
        provider.shutdown()
