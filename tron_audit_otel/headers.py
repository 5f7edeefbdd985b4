"""What a request's headers say, whatever a server or a middleware put in their place. Pure functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tron_audit_otel.redact import HEADER_VALUES_MAX, KEPT_MAX, LINE_CHARACTERS_MAX

if TYPE_CHECKING:
    from collections.abc import Iterable

CHARACTERS = 8 * LINE_CHARACTERS_MAX
"""When the headers that are kept have so many, no further one is. Each is searched for secrets, and waits in memory."""

_PAIR = 2


def pairs(headers: Iterable[object]) -> list[tuple[bytes, bytes]]:
    """Gives those headers that are a name and a value."""
    return [
        (header[0], header[1])
        for header in headers
        if isinstance(header, list | tuple) and len(header) == _PAIR and {type(part) for part in header} == {bytes}
    ]


def is_preflight(method: str, headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a browser asks what it may ask (Fetch standard, CORS-preflight request)."""
    return method == "OPTIONS" and bool(
        _values(headers, b"origin") and _values(headers, b"access-control-request-method")
    )


def _values(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    try:
        return [value for key, value in headers if key == name and type(value) is bytes]
    except Exception:  # noqa: BLE001 - not each of them is a pair
        return [value for key, value in pairs(headers) if key == name]


def kept(headers: Iterable[tuple[bytes, bytes]], names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Gives the values of the headers that are named, bounded; without values, one past :data:`CHARACTERS`."""
    texts: dict[str, tuple[str, ...]] = {}
    wanted = {name.encode("ascii"): name for name in names}
    found: dict[bytes, list[bytes]] = {key: [] for key in wanted}
    try:
        # In one pass, and of each no more than shows that there are more: a client can send any number.
        for key, value in headers:
            if key in found and type(value) is bytes and len(found[key]) <= HEADER_VALUES_MAX:
                found[key].append(value[: 2 * KEPT_MAX])
        left = CHARACTERS
        for key, name in wanted.items():
            if values := found[key]:
                texts[name] = tuple(value.decode("latin-1") for value in values) if left > 0 else ()
                left -= sum(map(len, values))
    except Exception:  # noqa: BLE001 - not each of them is a pair
        return texts
    return texts
