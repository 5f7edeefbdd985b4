"""An audit event as the bytes of an OTLP ``LogRecord``, and many of them as an ``ExportLogsServiceRequest``.

Protobuf's encoding of a message, and of another one behind it, is that of both merged; so a record is put together of
fragments, and those that many records share are encoded once. All encoding is protobuf's own: a message whose fields
are set anew costs a twentieth of one that is made anew. The messages are those of the OpenTelemetry protocol,
``opentelemetry/proto/logs/v1``.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto  # type: ignore[import-untyped] # protobuf ships no annotations
from google.protobuf.descriptor_pool import DescriptorPool  # type: ignore[import-untyped] # as above
from google.protobuf.message_factory import GetMessageClass  # type: ignore[import-untyped] # as above
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.trace import get_current_span

from tron_audit_otel import log_record
from tron_audit_otel.bounds import FIXED_BYTES
from tron_audit_otel.log_record import (
    DURATION,
    PATH,
    RECORD_BYTES_MAX,
    RECORD_ID,
    RESOURCE,
    SEQUENCE_NUMBER,
    TARGET_ID,
    Kind,
    sentence,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from opentelemetry.util.types import AnyValue as Value

    from tron_audit_otel.event import Actor, AuditEvent, Source

FRAGMENTS_CACHED_MAX = 1024
"""Of each sort. A client can write a user agent of its own, and a new one costs an encoding."""

FRAGMENT_BYTES_MAX = 768
"""Of those that are kept: with its key, a thousand times that is 4 MiB at most. A longer one is made each time."""

FORM_BYTES_MAX = 262_144
"""Protobuf keeps every text that a message ever had for as long as there is the message."""

LENGTH_BYTES = 6
"""A message's tag and length take no more, up to 4 GiB."""


class _LongError(Exception):
    """A fragment that is not to be kept."""


def encode(event: AuditEvent, number: int, bytes_max: int = RECORD_BYTES_MAX) -> bytes:
    """Encodes a record of at most ``bytes_max`` bytes, with its number in the stream.

    Raises:
        ValueError: A value is none that OTLP can carry, such as a lone surrogate; or a TypeError.
    """
    request = event.request
    try:
        fragments = [
            _of_itself(event, number),
            _of_kind(Kind.of(event)),
            _of_actor(event.actor),
            _of_source(event.source, request.user_agent if request is not None else None),
        ]
        if rest := log_record.of_rest(event):
            fragments.append(_attributes(rest))
    except (ValueError, _LongError):
        return _whole(event, number, bytes_max)
    encoded = b"".join(fragments)
    return encoded if len(encoded) <= bytes_max - FIXED_BYTES else _whole(event, number, bytes_max)


def _whole(event: AuditEvent, number: int, bytes_max: int) -> bytes:
    """Encodes what is long or odd: nothing of it is shared or kept."""
    record = log_record.to_log_record(event, bytes_max)
    message = LogRecord(
        time_unix_nano=record.timestamp or 0,
        observed_time_unix_nano=record.observed_timestamp or 0,
        body=_value(record.body),
        flags=record.trace_flags or 0,
        trace_id=record.trace_id.to_bytes(16, "big") if record.trace_id else b"",
        span_id=record.span_id.to_bytes(8, "big") if record.span_id else b"",
    )
    values = {SEQUENCE_NUMBER: number, **(record.attributes or {})}
    return b"".join((message.SerializeToString(), _severity(Kind.of(event)), _attributes(values)))


@lru_cache(FRAGMENTS_CACHED_MAX)
def _of_kind(kind: Kind) -> bytes:
    return _short(_severity(kind) + _attributes(log_record.of_kind(kind)))


def _severity(kind: Kind) -> bytes:
    severity = kind.severity
    number: Any = severity.value  # protobuf's enumeration has the same numbers, and a type of its own
    return bytes(
        LogRecord(severity_number=number, severity_text=severity.name, event_name=str(kind.name)).SerializeToString()
    )


@lru_cache(FRAGMENTS_CACHED_MAX)
def _of_actor(actor: Actor) -> bytes:
    return _short(_attributes(log_record.of_actor(actor)))


@lru_cache(FRAGMENTS_CACHED_MAX)
def _of_source(source: Source | None, user_agent: str | None) -> bytes:
    return _short(_attributes(log_record.of_source(source, user_agent)))


def _short(fragment: bytes) -> bytes:
    if len(fragment) > FRAGMENT_BYTES_MAX:
        raise _LongError  # what raises is not kept
    return fragment


def _attributes(values: Mapping[str, Value]) -> bytes:
    pairs = [KeyValue(key=name, value=_value(value)) for name, value in values.items() if value is not None]
    return bytes(LogRecord(attributes=pairs).SerializeToString())


def _value(value: Value) -> Any:  # noqa: ANN401 - protobuf's messages have no types
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    if isinstance(value, str):
        return AnyValue(string_value=value)
    if isinstance(value, tuple):
        return AnyValue(array_value=ArrayValue(values=map(_value, value)))
    raise TypeError(f"no attribute can be a {type(value).__name__}")


class _Form:
    """What is different in each record, to be filled in and serialized again and again."""

    __slots__ = ("body", "bytes_left", "duration", "message", "number", "texts")

    def __init__(self, *, has_target: bool, has_path: bool) -> None:
        self.bytes_left = FORM_BYTES_MAX
        self.message = LogRecord(body=AnyValue(string_value=""))
        self.body = self.message.body
        self.number = self.message.attributes.add(key=SEQUENCE_NUMBER).value
        self.duration = self.message.attributes.add(key=DURATION).value
        names = (RECORD_ID, RESOURCE, *((TARGET_ID,) * has_target), *((PATH,) * has_path))
        self.texts = [self.message.attributes.add(key=name).value for name in names]


_forms: dict[tuple[bool, bool], list[_Form]] = {
    (target, path): [] for target in (False, True) for path in (False, True)
}
"""Those that no thread uses at the moment."""


def _of_itself(event: AuditEvent, number: int) -> bytes:
    resource, request = event.resource, event.request
    has_target, has_path = resource.id is not None, request is not None
    texts = [event.record_id, resource.name]
    if resource.id is not None:
        texts.append(resource.id)
    if request is not None:
        texts.append(request.path)
    unused = _forms[has_target, has_path]
    try:
        form = unused.pop()
    except IndexError:
        form = _Form(has_target=has_target, has_path=has_path)
    message = form.message
    message.time_unix_nano = event.began_ns
    message.observed_time_unix_nano = event.began_ns + event.duration_ns
    span = get_current_span(event.context).get_span_context()
    message.trace_id = span.trace_id.to_bytes(16, "big") if span.trace_id else b""
    message.span_id = span.span_id.to_bytes(8, "big") if span.span_id else b""
    message.flags = span.trace_flags
    form.body.string_value = sentence(event)
    form.number.int_value = number
    form.duration.double_value = event.duration_ns / 1e6
    for value, text in zip(form.texts, texts, strict=True):
        value.string_value = text
    encoded = bytes(message.SerializeToString())
    form.bytes_left -= len(encoded)
    if form.bytes_left > 0:
        unused.append(form)
    return encoded


class Envelope:
    """Requests whose records are encoded already, all of one resource and one scope."""

    def __init__(self, empty: bytes) -> None:
        """Takes a request of one resource and one scope, without a record."""
        self.bytes = len(empty) + 3 * LENGTH_BYTES
        """What a request takes besides its records, each of which takes LENGTH_BYTES more than its own."""
        self._empty = empty

    def request(self, records: Sequence[bytes]) -> bytes:
        """Gives the request of these records."""
        request = _Request.FromString(self._empty)
        request.resource_logs[0].scope_logs[0].log_records.extend(records)
        return bytes(request.SerializeToString())


def _request_of_encoded_records() -> Any:  # noqa: ANN401 - protobuf's classes have no types
    """Makes ``ExportLogsServiceRequest`` anew, with bytes in the place of messages: they look alike when encoded."""
    file = FileDescriptorProto(name="tron_audit_otel/request.proto", package="tron_audit_otel", syntax="proto3")
    for message, fields in (
        ("Scope", (("scope", 1, None), ("log_records", 2, ""), ("schema_url", 3, None))),
        ("Resource", (("resource", 1, None), ("scope_logs", 2, "Scope"), ("schema_url", 3, None))),
        ("Request", (("resource_logs", 1, "Resource"),)),
    ):
        described = file.message_type.add(name=message)
        for name, number, repeated in fields:
            described.field.add(
                name=name,
                number=number,
                label=FieldDescriptorProto.LABEL_OPTIONAL if repeated is None else FieldDescriptorProto.LABEL_REPEATED,
                type=FieldDescriptorProto.TYPE_MESSAGE if repeated else FieldDescriptorProto.TYPE_BYTES,
                type_name=f".tron_audit_otel.{repeated}" if repeated else None,
            )
    pool = DescriptorPool()
    pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName("tron_audit_otel.Request"))


_Request = _request_of_encoded_records()
