"""What an ASGI message says, whoever made it: nothing here raises for one of another form.

The names are those of the ASGI specification.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import Message

BYTES = (bytes, bytearray, memoryview)
"""What the part of a body may be: Starlette streams any of them."""

BODILESS_STATUSES = (204, 304)
"""RFC 9110, 6.4.1: their responses end with their headers."""

_STATUS_MIN, _STATUS_MAX = 100, 999
"""RFC 9112, 4: three digits."""

_CODES = range(1, 65_536)
"""RFC 6455, 5.5.1: two bytes."""

_DIGITS_MAX = 20
"""Of a body's length: 64 bits."""


def kind_of(message: Message) -> str | None:
    """Gives a message's type; None of what has none, which is the other side's to refuse."""
    try:
        kind = message["type"]
        # A server compares: a StrEnum's member is as good as its text.
        return kind if type(kind) is str else str.__str__(kind) if isinstance(kind, str) else None
    except Exception:  # noqa: BLE001 - as said
        return None


def status_of(start: Message) -> int | None:
    """Gives the status with which a response starts; None where it is none."""
    try:
        status = start["status"]
        return int(status) if isinstance(status, int) and _STATUS_MIN <= status <= _STATUS_MAX else None
    except Exception:  # noqa: BLE001 - an application may send anything
        return None


def code_of(message: Message) -> int | None:
    """Gives the code with which a side closes; None where it gives none that could be sent."""
    try:
        code = message["code"]
        return int(code) if isinstance(code, int) and code in _CODES else None
    except Exception:  # noqa: BLE001 - either side may give anything
        return None


def body_of(message: Message) -> bytes:
    """Gives the part of a body that a message carries."""
    try:
        body = message.get("body")
        return bytes(body) if isinstance(body, BYTES) else b""
    except Exception:  # noqa: BLE001 - either side may give anything
        return b""


def is_whole(message: Message) -> bool:
    """Whether no more of a body comes after this message."""
    try:
        return not message.get("more_body", False)
    except Exception:  # noqa: BLE001 - an application may send anything
        return False


def ends_response(message: Message) -> bool:
    """Whether an application sends nothing of its response after this message."""
    try:
        kind = message["type"]
        return kind == "http.response.pathsend" or (
            kind in ("http.response.body", "http.response.zerocopysend") and not message.get("more_body", False)
        )
    except Exception:  # noqa: BLE001 - an application may send anything
        return False


def bytes_announced(method: str, start: Message) -> int | None:
    """Gives the length of a response's body by the response's own word; None where it does not say."""
    if method == "HEAD" or status_of(start) in BODILESS_STATUSES:
        return 0
    try:
        lengths = [value.strip() for name, value in start.get("headers", ()) if name.lower() == b"content-length"]
        # Servers and clients strip it; where several contradict each other, the client may believe the shortest.
        return min((int(each) for each in lengths if each.isdigit() and len(each) <= _DIGITS_MAX), default=None)
    except Exception:  # noqa: BLE001 - no headers that a server could send
        return None


def readable(start: Message) -> Message:
    """Makes a list of headers that can be read but once; any iterable may stand there by ASGI."""
    try:
        headers = start["headers"]
        if iter(headers) is not headers:
            return start
    except Exception:  # noqa: BLE001 - the server's to refuse
        return start
    return {**start, "headers": list(headers)}  # what that raises, the server would have raised
