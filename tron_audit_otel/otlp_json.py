"""OTLP/JSON, read into OTLP's protobuf messages.

It is protobuf's JSON but for trace and span ids, which are hexadecimal
(https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding). Protobuf's own reader gives no more than 2,700
records a second, for it sets field after field from Python. Here only the names and the few values that JSON lacks
are translated, and the message is made of that at once: six times as fast.
"""

from __future__ import annotations

import base64
import json
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor  # type: ignore[import-untyped] # protobuf ships no annotations
from opentelemetry.proto.common.v1.common_pb2 import KeyValue

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_Message = TypeVar("_Message")

DEPTH_MAX = 90
"""Messages within a record. Protobuf itself gives up at 100 in a request, and could not send it."""

UNREADABLE = (ValueError, TypeError, AttributeError, OverflowError, RecursionError)
"""What reading raises when it is no OTLP/JSON: a number that is none, a text where a list should be."""

_HEXADECIMAL = {"trace_id", "span_id"}
_PAIR = KeyValue.DESCRIPTOR
_PAIR_FIELDS = 2


def loads(data: bytes) -> Any:  # noqa: ANN401 - JSON may be anything
    """Reads JSON. Bytes that are no UTF-8, which the Collector passes on as they are, become U+FFFD.

    Raises:
        ValueError, RecursionError: It is none.
    """
    return json.loads(data.decode("utf-8", "replace"), parse_int=_integer)


def message(data: Mapping[str, Any], kind: type[_Message]) -> _Message:
    """Makes a message of OTLP/JSON, already read; names that it does not know are passed over.

    Raises:
        UNREADABLE: It is no such message.
    """
    return kind(**keywords(data, kind))


def keywords(data: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """Gives what makes the message: its fields by their names in Python.

    Raises:
        UNREADABLE: It is no such message; a field's wrong type may show only when the message is made.
    """
    return _keywords(data, kind.DESCRIPTOR, 0)  # type: ignore[attr-defined] # of every message


def _keywords(data: Mapping[str, Any], descriptor: Any, depth: int) -> dict[str, Any]:  # noqa: ANN401 - has no types
    if depth == DEPTH_MAX:
        raise ValueError(f"nested deeper than {DEPTH_MAX} messages")
    fields = _fields(descriptor)
    found = {}
    for key, value in data.items():
        field = fields.get(key)
        if field is None or value is None:
            continue
        name, inner, convert = field
        if inner is not None:
            read = _pair if inner is _PAIR else _keywords
            found[name] = (
                [read(each, inner, depth + 1) for each in value]
                if isinstance(value, list)
                else read(value, inner, depth + 1)
            )
        elif convert is None:
            found[name] = value
        else:
            found[name] = [convert(each) for each in value] if isinstance(value, list) else convert(value)
    return found


def _pair(data: Mapping[str, Any], descriptor: Any, depth: int) -> dict[str, Any]:  # noqa: ANN401 - has no types
    """Reads an attribute; most are texts, and most objects are attributes."""
    value = data.get("value")
    if value is not None and len(value) == 1 and "stringValue" in value and len(data) == _PAIR_FIELDS:
        return {"key": data.get("key"), "value": {"string_value": value["stringValue"]}}
    return _keywords(data, descriptor, depth)


@cache
def _fields(descriptor: Any) -> dict[str, tuple[str, Any, Callable[[Any], Any] | None]]:  # noqa: ANN401 - has no types
    """Gives each field by its name in JSON: its name in Python, the message in it, what turns JSON into its value."""
    return {field.json_name: (field.name, field.message_type, _converter(field)) for field in descriptor.fields}


def _converter(field: Any) -> Callable[[Any], Any] | None:  # noqa: ANN401 - has no types
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
            return float  # of "NaN" and "-Infinity", too
        case FieldDescriptor.CPPTYPE_BOOL | FieldDescriptor.CPPTYPE_MESSAGE:
            return None
        case FieldDescriptor.CPPTYPE_STRING:
            if field.type != FieldDescriptor.TYPE_BYTES:
                return None
            return bytes.fromhex if field.name in _HEXADECIMAL else _base64
        case _:
            return int  # JSON has those of 64 bits as strings


def _base64(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _integer(digits: str) -> float:
    """Keeps the sign of a zero: so is the double -0.0 written."""
    return -0.0 if digits == "-0" else int(digits)
