"""What gives way in a record that is too long: the longest values, each visibly. Pure functions.

Sizes are those of OTLP's protobuf encoding, in which each field is a tag, a length and what it holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tron_audit_otel.redact import CUT, whole_head

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from opentelemetry.util.types import AnyValue

FIXED_BYTES = 192
"""More than a record takes besides its body and its attributes: times, severity, name, trace and span; and besides what
its attributes gain afterwards: the sequence number, and a flag that a command was cut."""

NAMES_BYTES_MAX = 4096
"""For the names of what was cut. All that a record of ours can have take less."""

_AROUND_BYTES = 16
"""No less than the four tags and lengths, of up to 2 MiB, of an attribute, its name, its value, and the text in it."""

_ITEM_BYTES = _AROUND_BYTES // 2
"""The same of a text in a list."""

_CUT_BYTES = len(CUT.encode())
_DOUBLE_BYTES = 8


def fit(
    values: Mapping[str, AnyValue], body: str, bytes_max: int, whole: Collection[str]
) -> tuple[dict[str, AnyValue], tuple[str, ...]]:
    """Cuts the attributes of a record so that it has at most ``bytes_max`` bytes, and gives the names of those it cut.

    Texts end with ``…`` where they were cut, and lists with a text that does. An integer of more than 64 bits, for
    which OTLP has no place, is left out.

    Args:
        values: The attributes.
        body: The record's body, which stays.
        bytes_max: Of the record. A body, and attributes in ``whole``, have less.
        whole: The names of those that stay whole, unless these alone are too long.
    """
    fitted = {name: value for name, value in values.items() if not isinstance(value, int) or -(2**63) <= value < 2**63}
    cut = [name for name in values if name not in fitted]
    sizes = {name: _attribute_bytes(name, value) for name, value in fitted.items()}
    room = bytes_max - FIXED_BYTES - _field_bytes(_field_bytes(_text_bytes(body)))
    if cut or sum(sizes.values()) > room:
        room -= min(NAMES_BYTES_MAX, sum(_text_bytes(name) + _ITEM_BYTES for name in values)) + 2 * _AROUND_BYTES
        stays = sum(sizes[name] for name in whole if name in sizes)
        if stays <= room:
            room -= stays
            sizes = {name: size for name, size in sizes.items() if name not in whole}
        level = _level(sizes.values(), room)
        for name in [name for name, size in sizes.items() if size > level]:
            cut.append(name)
            short = _shortened(fitted.pop(name), level - _text_bytes(name) - _AROUND_BYTES)
            if short is not None:
                fitted[name] = short
    return fitted, _first(cut, NAMES_BYTES_MAX)


def _level(sizes: Iterable[int], room: int) -> int:
    """Gives the size to which all that are longer must come down for all to fit: the shortest stay as they are."""
    ascending = sorted(sizes)
    for index, size in enumerate(ascending):
        left = len(ascending) - index
        if size * left > room:
            return room // left
        room -= size
    return ascending[-1] if ascending else 0


def _shortened(value: AnyValue, bytes_max: int) -> AnyValue:
    """Gives the head of a text or of a list of texts; None where there is no room for any."""
    if isinstance(value, str) and bytes_max >= _CUT_BYTES:
        return _head(value, bytes_max)
    if isinstance(value, tuple) and bytes_max >= _CUT_BYTES + _ITEM_BYTES:
        return _first(map(str, value), bytes_max)
    return None


def _head(text: str, bytes_max: int) -> str:
    fitting = text.encode()[: bytes_max - _CUT_BYTES].decode(errors="ignore")
    return whole_head(text, len(fitting)) + CUT


def _first(texts: Iterable[str], bytes_max: int) -> tuple[str, ...]:
    """Gives as many texts as fit; if not all do, the last one ends with ``…``."""
    kept: list[str] = []
    left = bytes_max - _ITEM_BYTES
    for text in texts:
        size = _field_bytes(_field_bytes(_text_bytes(text)))
        if size > left - _CUT_BYTES:
            return (*kept, _head(text, left))
        kept.append(text)
        left -= size
    return tuple(kept)


def _attribute_bytes(name: str, value: AnyValue) -> int:
    return _field_bytes(_field_bytes(_text_bytes(name)) + _field_bytes(_value_bytes(value)))


def _value_bytes(value: AnyValue) -> int:
    if isinstance(value, str):
        return _field_bytes(_text_bytes(value))
    if isinstance(value, tuple):
        return _field_bytes(sum(_field_bytes(_value_bytes(item)) for item in value))
    return 1 + (_DOUBLE_BYTES if isinstance(value, float) else _varint_bytes(int(value) % 2**64))  # type: ignore[arg-type] # no other is an attribute


def _field_bytes(size: int) -> int:
    """With its tag and its length."""
    return 1 + _varint_bytes(size) + size


def _varint_bytes(number: int) -> int:
    """Seven bits a byte."""
    return max(1, -(-number.bit_length() // 7))


def _text_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())
