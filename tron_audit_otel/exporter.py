"""Where the batch processor's batches go: numbered, and committed to the journal.

This is the seam behind the OpenTelemetry SDK: nothing past it knows the SDK's records.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from opentelemetry._logs import LogRecord
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.sdk._logs import ReadableLogRecord, ReadWriteLogRecord
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor, LogRecordExporter, LogRecordExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from tron_audit_otel.encoder import LENGTH_BYTES, Envelope, encode
from tron_audit_otel.event import error_type
from tron_audit_otel.ledger import Ledger
from tron_audit_otel.log_record import RECORD_BYTES_MAX, SEQUENCE_NUMBER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from opentelemetry.sdk.resources import Resource

    from tron_audit_otel.event import Fact
    from tron_audit_otel.outbox import Outbox

QUEUE = "_batch_processor"
"""The SDK's own name for what groups the records. Where it has another one, they take the slower way."""

TURN_RECORDS = 64
"""After so many, the event loop has its turn: a whole batch would make it wait for milliseconds."""

HURRY_RECORDS = 2048
"""When more wait than this, there are no turns: a busy loop takes its time over each, and the queue would run full."""

_logger = logging.getLogger(__name__)


class JournalProcessor(BatchLogRecordProcessor):
    """The SDK's batch processor, with facts in its queue: they become records where nobody waits for it."""

    put: Callable[[Fact], None]
    """Queues what a record is made of; never waits."""

    def __init__(self, exporter: JournalExporter, **options: Any) -> None:  # noqa: ANN401 - the base's own
        """Takes the exporter, and the base's options."""
        super().__init__(exporter, **options)
        # Public is only `on_emit`, which copies each record twice; the queue behind it takes anything.
        queue = getattr(self, QUEUE, None)
        self.put = getattr(queue, "emit", self._wrap)

    def _wrap(self, fact: Fact) -> None:
        self.on_emit(ReadWriteLogRecord(LogRecord(body=fact)))  # type: ignore[call-overload] # only `_fact` looks at it


def _fact(queued: Any) -> Any:  # noqa: ANN401 - a fact, or the SDK's record around it
    return queued.log_record.body if isinstance(queued, ReadableLogRecord) else queued


class JournalExporter(LogRecordExporter):
    """Numbers the records of a stream without gaps, from 1, and commits them to the journal of this process.

    A batch is committed whole, in the order of its records, before the next one is looked at; it waits here for as long
    as the journal refuses. One thread at a time comes here: the batch processor exports under a lock.
    """

    def __init__(self, outbox: Outbox, envelope: Envelope, bytes_max: int) -> None:
        """Takes the outbox, what is around the records of a request, and the size of a request."""
        self._outbox = outbox
        self._envelope = envelope
        self._bytes_max = bytes_max - envelope.bytes
        self._record_bytes_max = min(RECORD_BYTES_MAX, self._bytes_max - LENGTH_BYTES)
        self._last = 0

    def export(self, batch: Sequence[Any]) -> LogRecordExportResult:
        """Commits a batch of facts."""
        left = len(batch)
        try:
            for ids, records in self._requests(map(_fact, batch)):
                if records:
                    self._outbox.put(self._envelope.request(records), ids)
                else:
                    self._outbox.lose(ids, "unencodable")
                left -= len(ids)
        except BaseException as error:  # noqa: BLE001 - anything that passes would end the SDK's thread without a word
            _logger.error("%d audit records are lost: %s", left, error_type(error))  # noqa: TRY400 - no data in the log
            ids = [_fact(queued).record_id for queued in batch]
            self._outbox.lose(ids[len(ids) - left :], "failed")
            return LogRecordExportResult.FAILURE
        return LogRecordExportResult.SUCCESS

    def _requests(self, facts: Iterable[Fact]) -> Iterator[tuple[list[str], list[bytes]]]:
        """Encodes records in their order, in as few requests as the size allows.

        Gives each with its records' ids. One without records is that of a record that cannot be encoded.
        """
        ids: list[str] = []
        records: list[bytes] = []
        size = 0
        for fact in facts:
            try:
                record = encode(fact.event(), self._last + 1, self._record_bytes_max)
            except Exception as error:  # noqa: BLE001 - whatever an encoder has against a value
                # Neither the message nor a traceback: both may carry a client's data into the operational log.
                _logger.error("audit record %s is lost: it cannot be encoded: %s", fact.record_id, error_type(error))  # noqa: TRY400 - as above
                if records:
                    yield ids, records
                    ids, records, size = [], [], 0
                yield [fact.record_id], []
                continue
            self._last += 1
            if records and size + len(record) + LENGTH_BYTES > self._bytes_max:
                yield ids, records
                ids, records, size = [], [], 0
            ids.append(fact.record_id)
            records.append(record)
            size += len(record) + LENGTH_BYTES
            if len(records) % TURN_RECORDS == 0 and self._outbox.ledger.queued < HURRY_RECORDS:
                time.sleep(0)
        if records:
            yield ids, records

    def shutdown(self) -> None:
        """Does nothing: the outbox is closed by who opened it."""

    def force_flush(self, timeout_millis: int = 0) -> bool:  # noqa: ARG002 - the base's signature
        """Does nothing: a batch is committed when `export` returns."""
        return True


def envelope(resource: Resource, scope: str, version: str) -> Envelope:
    """Makes what is around the records of a stream, as the SDK encodes it."""
    record = ReadableLogRecord(LogRecord(), resource, InstrumentationScope(scope, version))
    request = encode_logs([record])
    del request.resource_logs[0].scope_logs[0].log_records[:]
    return Envelope(request.SerializeToString())


class SequencedExporter(LogRecordExporter):
    """Numbers records likewise, and hands them to an exporter that somebody gave: for tests, and for other ways out."""

    def __init__(self, inner: LogRecordExporter, ledger: Ledger | None = None) -> None:
        """Takes the exporter, and who counts what it takes."""
        self._inner = inner
        self._ledger = ledger or Ledger()
        self._last = 0

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        """Exports, and says of what was not taken that these were audit records: the SDK says only "logs"."""
        for readable in batch:
            self._last += 1
            # The SDK's own attributes are a mutable mapping whose type says otherwise.
            readable.log_record.attributes[SEQUENCE_NUMBER] = self._last  # type: ignore[index] # as said above
        try:
            result = self._inner.export(batch)
            why = "the exporter gave up"
        except BaseException as error:  # noqa: BLE001 - anything that passes would end the SDK's thread without a word
            result, why = LogRecordExportResult.FAILURE, error_type(error)
        self._ledger.commit(len(batch))
        if result is LogRecordExportResult.SUCCESS:
            self._ledger.deliver(len(batch))
        else:
            self._ledger.drop(len(batch), "export_failed", committed=True)
            _logger.error("%d audit records are lost: %s", len(batch), why)
        return result

    def shutdown(self) -> None:
        """Passes it on."""
        self._inner.shutdown()  # type: ignore[no-untyped-call] # the SDK's base class has no annotation here

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Passes it on."""
        return self._inner.force_flush(timeout_millis)
