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
from tron_audit_otel.log_record import (
    DURATION,
    PATH,
    RECORD_ID,
    RESOURCE,
    SEQUENCE_NUMBER,
    TARGET_ID,
    TRUNCATED,
    Kind,
    sentence,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from opentelemetry.util.types import AnyValue as Value

    from tron_audit_otel.event import Actor, AuditEvent, Source

FRAGMENTS_CACHED_MAX = 1024
"""Of each sort. A client can write a user agent of its own, and a new one costs an encoding."""

_NEVER_CUT = (RECORD_ID, SEQUENCE_NUMBER)

FORM_USES_MAX = 256
"""Protobuf keeps every text that a message ever had for as long as there is the message."""

LENGTH_BYTES = 6
"""A message's tag and length take no more, up to 4 GiB."""

_MARK_BYTES = 64
"""More than what stands around the name of a cut attribute."""


def encode(event: AuditEvent, number: int, bytes_max: int) -> bytes:
    """Encodes a record, with its number in the stream.

    One that is too long is cut, and says in ``audit.truncated`` which attributes were.

    Raises:
        ValueError: A value is none that OTLP can carry, such as a lone surrogate; or a TypeError.
    """
    request = event.request
    fragments = [
        _of_itself(event, number),
        _of_kind(Kind.of(event)),
        _of_actor(event.actor),
        _of_source(event.source, request.user_agent if request is not None else None),
    ]
    if rest := log_record.of_rest(event):
        fragments.append(_attributes(rest))
    encoded = b"".join(fragments)
    return encoded if len(encoded) <= bytes_max else cut(encoded, bytes_max)


@lru_cache(FRAGMENTS_CACHED_MAX)
def _of_kind(kind: Kind) -> bytes:
    severity = kind.severity
    number: Any = severity.value  # protobuf's enumeration has the same numbers, and a type of its own
    message = LogRecord(severity_number=number, severity_text=severity.name, event_name=str(kind.name))
    return bytes(message.SerializeToString()) + _attributes(log_record.of_kind(kind))


@lru_cache(FRAGMENTS_CACHED_MAX)
def _of_actor(actor: Actor) -> bytes:
    return _attributes(log_record.of_actor(actor))


@lru_cache(FRAGMENTS_CACHED_MAX)
def _of_source(source: Source | None, user_agent: str | None) -> bytes:
    return _attributes(log_record.of_source(source, user_agent))


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

    __slots__ = ("body", "duration", "message", "number", "texts", "uses_left")

    def __init__(self, *, has_target: bool, has_path: bool) -> None:
        self.uses_left = FORM_USES_MAX
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
    form.uses_left -= 1
    if form.uses_left:
        unused.append(form)
    return encoded


def cut(encoded: bytes, bytes_max: int) -> bytes:
    """Cuts the longest values of a record until it fits, and names them in the record."""
    record = LogRecord.FromString(encoded)
    names: list[str] = []
    for pair in sorted(record.attributes, key=lambda pair: pair.ByteSize(), reverse=True):
        excess = record.ByteSize() + _mark_bytes(names) - bytes_max
        if excess <= 0 or pair.key in _NEVER_CUT:
            break
        excess += _mark_bytes([pair.key])
        text = pair.value.string_value.encode()
        pair.value.string_value = text[: max(0, len(text) - excess)].decode(errors="ignore")  # an array becomes ""
        names.append(pair.key)
    named = [AnyValue(string_value=name) for name in names]
    record.attributes.add(key=TRUNCATED, value=AnyValue(array_value=ArrayValue(values=named)))
    return bytes(record.SerializeToString())


def _mark_bytes(names: Sequence[str]) -> int:
    return sum(len(name) + _MARK_BYTES for name in names)


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
