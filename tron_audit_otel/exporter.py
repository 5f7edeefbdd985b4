"""Where the batch processor's batches go: numbered, then sent to the Collector by OTLP.

This is the seam behind the OpenTelemetry SDK. The stock OTLP exporter loses what it cannot send soon; the journal
takes its place here.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from opentelemetry.sdk._logs.export import LogRecordExporter, LogRecordExportResult

from tron_audit_otel.event import error_type
from tron_audit_otel.log_record import SEQUENCE_NUMBER

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from grpc import ChannelCredentials
    from opentelemetry.sdk._logs import ReadableLogRecord

    from tron_audit_otel.config import AuditConfig

_logger = logging.getLogger(__name__)


class SequencedExporter(LogRecordExporter):
    """Numbers the records of a stream without gaps, from 1, and hands them to an exporter.

    The exporter is made at the first batch of each process, so that no socket is shared across a fork; a forked
    process's stream (its ``service.instance.id``) is new, and so are its numbers. One thread at a time comes here: the
    batch processor exports under a lock. What is lost before it comes here leaves no gap in the numbers.
    """

    def __init__(self, make: Callable[[], LogRecordExporter]) -> None:
        """Takes how to make the exporter."""
        self._make = make
        self._inner: LogRecordExporter | None = None
        self._pid = 0
        self._sequence = 0

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        """Numbers and exports a batch."""
        if self._inner is None or self._pid != os.getpid():
            self._inner = self._make()
            self._pid = os.getpid()
            self._sequence = 0
        for readable in batch:
            self._sequence += 1
            # The SDK's own attributes are a mutable mapping whose type says otherwise.
            readable.log_record.attributes[SEQUENCE_NUMBER] = self._sequence  # type: ignore[index] # as said above
        return self._exported(batch, self._inner)

    def _exported(self, batch: Sequence[ReadableLogRecord], inner: LogRecordExporter) -> LogRecordExportResult:
        """Exports, and says of what was not taken that these were audit records: the SDK says only "logs"."""
        try:
            result = inner.export(batch)
            why = "the exporter gave up"
        except BaseException as error:  # noqa: BLE001 - anything that passes would end the SDK's thread without a word
            result, why = LogRecordExportResult.FAILURE, error_type(error)
        if result is not LogRecordExportResult.SUCCESS:
            _logger.error("%d audit records are lost: %s", len(batch), why)
        return result

    def shutdown(self) -> None:
        """Shuts the exporter down, if this process made one."""
        if self._inner is not None and self._pid == os.getpid():
            self._inner.shutdown()  # type: ignore[no-untyped-call] # the SDK's base class has no annotation here

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Passes it on."""
        return self._inner is None or self._inner.force_flush(timeout_millis)


def otlp_exporter(config: AuditConfig) -> LogRecordExporter:
    """Makes OpenTelemetry's own OTLP exporter, for the protocol that is configured."""
    return _grpc_exporter(config) if config.otlp_protocol == "grpc" else _http_exporter(config)


def _http_exporter(config: AuditConfig) -> LogRecordExporter:
    from opentelemetry.exporter.otlp.proto.http import Compression  # noqa: PLC0415 - only the protocol in use is loaded
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter  # noqa: PLC0415 - as above

    return OTLPLogExporter(
        endpoint=config.endpoint,
        headers=dict(config.otlp_headers),
        timeout=config.otlp_timeout_s,
        compression=Compression(config.otlp_compression),
        certificate_file=_path(config.otlp_certificate),
        client_key_file=_path(config.otlp_client_key),
        client_certificate_file=_path(config.otlp_client_certificate),
    )


def _grpc_exporter(config: AuditConfig) -> LogRecordExporter:
    from grpc import Compression  # noqa: PLC0415 - importing grpc takes 0.1 s, which HTTP need not pay
    from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter  # noqa: PLC0415 - as above

    insecure = config.endpoint.startswith("http://") or ("://" not in config.endpoint and config.otlp_insecure)
    return OTLPLogExporter(
        endpoint=config.endpoint,
        insecure=insecure,
        credentials=None if insecure else _grpc_credentials(config),
        headers=dict(config.otlp_headers),
        timeout=config.otlp_timeout_s,
        compression={"gzip": Compression.Gzip, "deflate": Compression.Deflate}.get(
            config.otlp_compression, Compression.NoCompression
        ),
    )


def _grpc_credentials(config: AuditConfig) -> ChannelCredentials:
    from grpc import ssl_channel_credentials  # noqa: PLC0415 - as above

    return ssl_channel_credentials(
        root_certificates=config.otlp_certificate.read_bytes() if config.otlp_certificate else None,
        private_key=config.otlp_client_key.read_bytes() if config.otlp_client_key else None,
        certificate_chain=config.otlp_client_certificate.read_bytes() if config.otlp_client_certificate else None,
    )


def _path(path: os.PathLike[str] | None) -> str | None:
    return os.fspath(path) if path is not None else None
