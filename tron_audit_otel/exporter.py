"""Where the batch processor's batches go: numbered, encoded, and committed to the journal.

This is the seam behind the OpenTelemetry SDK: nothing past it knows the SDK's records.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from opentelemetry.sdk._logs.export import LogRecordExporter, LogRecordExportResult

from tron_audit_otel.encoder import encode
from tron_audit_otel.event import error_type
from tron_audit_otel.ledger import Ledger
from tron_audit_otel.log_record import RECORD_ID, SEQUENCE_NUMBER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.sdk._logs import ReadableLogRecord

    from tron_audit_otel.outbox import Outbox

_logger = logging.getLogger(__name__)


class JournalExporter(LogRecordExporter):
    """Numbers the records of a stream without gaps, from 1, and commits them to the journal of this process.

    A batch is committed whole, in the order of its records, before the next one is looked at; it waits here for as long
    as the journal refuses. One thread at a time comes here: the batch processor exports under a lock.
    """

    def __init__(self, outbox: Outbox, bytes_max: int) -> None:
        """Takes the outbox, and the size of a request."""
        self._outbox = outbox
        self._bytes_max = bytes_max
        self._numbers = Numbers()

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        """Commits a batch."""
        left = len(batch)
        try:
            self._numbers.give(batch)
            for encoded in encode(batch, self._bytes_max):
                if encoded.payload:
                    self._outbox.put(encoded.payload, encoded.ids)
                else:
                    self._outbox.lose(encoded.ids, "unencodable")
                left -= len(encoded.ids)
        except BaseException as error:  # noqa: BLE001 - anything that passes would end the SDK's thread without a word
            _logger.error("%d audit records are lost: %s", left, error_type(error))  # noqa: TRY400 - no data in the log
            ids = [str((each.log_record.attributes or {}).get(RECORD_ID)) for each in batch]
            self._outbox.lose(ids[len(ids) - left :], "failed")
            return LogRecordExportResult.FAILURE
        return LogRecordExportResult.SUCCESS

    def shutdown(self) -> None:
        """Does nothing: the outbox is closed by who opened it."""

    def force_flush(self, timeout_millis: int = 0) -> bool:  # noqa: ARG002 - the base's signature
        """Does nothing: a batch is committed when `export` returns."""
        return True


class Numbers:
    """Numbers a stream's records."""

    def __init__(self) -> None:
        """Begins at 1."""
        self._last = 0

    def give(self, batch: Sequence[ReadableLogRecord]) -> None:
        """Writes each record's number into it."""
        for readable in batch:
            self._last += 1
            # The SDK's own attributes are a mutable mapping whose type says otherwise.
            readable.log_record.attributes[SEQUENCE_NUMBER] = self._last  # type: ignore[index] # as said above


class SequencedExporter(LogRecordExporter):
    """Numbers records likewise, and hands them to an exporter that somebody gave: for tests, and for other ways out."""

    def __init__(self, inner: LogRecordExporter, ledger: Ledger | None = None) -> None:
        """Takes the exporter, and who counts what it takes."""
        self._inner = inner
        self._ledger = ledger or Ledger()
        self._numbers = Numbers()

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        """Exports, and says of what was not taken that these were audit records: the SDK says only "logs"."""
        self._numbers.give(batch)
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
