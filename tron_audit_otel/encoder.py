"""The SDK's records as serialized ``ExportLogsServiceRequest`` messages, none longer than a receiver takes.

The messages are those of the OpenTelemetry protocol, ``opentelemetry/proto/collector/logs/v1``.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs

from tron_audit_otel.event import error_type
from tron_audit_otel.log_record import RECORD_ID, TRUNCATED

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
    from opentelemetry.sdk._logs import ReadableLogRecord

_MARK_BYTES = 64
"""For the array around the names of what was cut; each name counts besides."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Encoded:
    """One request, and the ids of the records in it. Without a payload: they cannot be encoded."""

    payload: bytes
    ids: tuple[str, ...]


def encode(batch: Sequence[ReadableLogRecord], bytes_max: int) -> Iterator[Encoded]:
    """Encodes records in their order, in as few requests as the size allows.

    A record that is too long by itself is cut, and says in ``audit.truncated`` which attributes were. One that cannot
    be encoded at all does not take the others with it.
    """
    ids = tuple(str((readable.log_record.attributes or {}).get(RECORD_ID)) for readable in batch)
    try:
        request = encode_logs(batch)
        size = request.ByteSize()
    except Exception as error:  # noqa: BLE001 - whatever an encoder has against a value
        if len(batch) > 1:
            yield from _halves(batch, bytes_max)
            return
        # Neither the message nor a traceback: both may carry a client's data into the operational log.
        _logger.error("audit record %s is lost: it cannot be encoded: %s", ids[0], error_type(error))  # noqa: TRY400 - as above
        yield Encoded(b"", ids)
        return
    if size > bytes_max:
        if len(batch) > 1:
            yield from _halves(batch, bytes_max)
            return
        cut(request, bytes_max)
    yield Encoded(request.SerializeToString(), ids)


def _halves(batch: Sequence[ReadableLogRecord], bytes_max: int) -> Iterator[Encoded]:
    middle = len(batch) // 2
    yield from encode(batch[:middle], bytes_max)
    yield from encode(batch[middle:], bytes_max)


def cut(request: ExportLogsServiceRequest, bytes_max: int) -> None:
    """Cuts the longest values of a request's only record until it fits, and names them in the record."""
    (record,) = request.resource_logs[0].scope_logs[0].log_records
    names: list[str] = []
    for pair in sorted(record.attributes, key=lambda pair: pair.ByteSize(), reverse=True):
        excess = request.ByteSize() + sum(map(len, names)) + len(pair.key) + _MARK_BYTES * (len(names) + 1) - bytes_max
        if excess <= 0 or pair.key == RECORD_ID:
            break
        text = pair.value.string_value.encode()
        pair.value.string_value = text[: max(0, len(text) - excess)].decode(errors="ignore")  # an array becomes ""
        names.append(pair.key)
    mark = record.attributes.add()
    mark.key = TRUNCATED
    for name in names:
        mark.value.array_value.values.add().string_value = name
