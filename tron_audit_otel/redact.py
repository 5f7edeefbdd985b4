"""Makes text from outside safe to keep: one line, valid Unicode, bounded, cut visibly. Pure functions."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Self

from tron_audit_otel.event import Text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tron_audit_otel.config import AuditConfig

LINE_CHARACTERS_MAX = 1024
"""For an actor, a resource, a path, a user agent. The longest e-mail address has 254, a usual path under 200."""

EXEC_CHARACTERS_MAX = 4096
"""For a command, and for each output stream: the head is what an auditor reads, the hash proves the rest."""

CUT = "…"
"""Ends a line that was cut, so that nobody takes a prefix for the whole."""

SENSITIVE_HEADERS = frozenset(
    {"authorization", "proxy-authorization", "cookie", "set-cookie", "x-api-key", "x-auth-token", "x-csrf-token"}
)
"""Recorded as present when a policy names them, never with their value (OWASP logging cheat sheet)."""

MASK = "[masked]"


def text(value: object) -> str:
    """Turns anything into text now: an object may change or expire before the record is written. Never raises."""
    try:
        return value.decode("utf-8", "backslashreplace") if isinstance(value, (bytes, bytearray)) else str(value)
    except Exception:  # noqa: BLE001 - str() of an application's object may do anything; the request goes on
        return f"<{type(value).__name__} that has no text>"  # `__class__` of a lazy proxy may raise as well


def _escaped(text: str, keep: str = "") -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode("ascii") for c in text)


def line(text: str, characters_max: int = LINE_CHARACTERS_MAX) -> str:
    r"""Gives text as one line of printable characters, at most ``characters_max`` long.

    Control characters, line separators, bidirectional overrides and lone surrogates become backslash escapes, so
    that no value can break a line, hide behind a terminal sequence, or make a whole batch impossible to encode.

    >>> line("alice\nbob")
    'alice\\nbob'
    """
    if len(text) <= characters_max and text.isprintable():
        return text
    # One character can become ten; nothing past this head can survive the cut below.
    return _clipped(_escaped(text[: characters_max + 1]), characters_max)


def _clipped(text: str, characters_max: int) -> str:
    return text if len(text) <= characters_max else text[: characters_max - len(CUT)] + CUT


def block(text: str | bytes, characters_max: int = EXEC_CHARACTERS_MAX) -> Text:
    r"""Keeps the head of a text of many lines, with the length and the SHA-256 of the whole.

    Line breaks and tabs stay as they are. What UTF-8 cannot carry, and the other control characters, become
    backslash escapes. Bytes are hashed as they are; a string is hashed as UTF-8, lone surrogates as in WTF-8.
    """
    raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    if isinstance(text, str):
        length, head = len(text), text[:characters_max]
    else:
        # A character takes four bytes at most; escaping all of a large binary output would take seconds.
        length = len(text.decode("utf-8", "replace"))
        head = text[: 4 * characters_max].decode("utf-8", "backslashreplace")
    head = _escaped(head, keep="\n\t")
    return Text(
        head=head[:characters_max],
        length=length,
        sha256=hashlib.sha256(raw).hexdigest(),
        truncated=max(length, len(head)) > characters_max,
    )


def command(arguments: Iterable[str], characters_max: int = EXEC_CHARACTERS_MAX) -> tuple[tuple[str, ...], bool]:
    """Keeps as many arguments as fit into ``characters_max``, each as one line, and tells whether any was cut."""
    kept: list[str] = []
    left = characters_max
    for argument in arguments:
        if left <= 0:
            return tuple(kept), True
        shown = _escaped(argument[: left + 1])
        kept.append(_clipped(shown, left))
        if len(shown) > left:
            return tuple(kept), True
        left -= len(shown) + 1
    return tuple(kept), False


def header(name: str, values: Iterable[str]) -> tuple[str, ...]:
    """Gives a header's values as lines, masked where the name is one that carries secrets."""
    if name.lower() in SENSITIVE_HEADERS:
        return tuple(MASK for _ in values)
    return tuple(line(value) for value in values)


class Redactor:
    """Makes what may hold secrets safe to keep. Immutable; equal where the key is."""

    def __init__(self, key: str | None = None) -> None:
        """Takes the key by which a masked secret can be found again; None: it cannot."""
        self._key = key

    @classmethod
    def of(cls, config: AuditConfig) -> Self:  # noqa: ARG003
        """Takes what is configured."""
        return cls()

    def __eq__(self, other: object) -> bool:
        """Tells whether both mask alike."""
        return isinstance(other, Redactor) and self._key == other._key

    def __hash__(self) -> int:
        """Gives a hash, not the key's."""
        return hash(type(self))

    def block(self, text: str | bytes, characters_max: int = EXEC_CHARACTERS_MAX) -> Text:
        """Keeps the head of a text of many lines."""
        return block(text, characters_max)

    def command(
        self, arguments: Iterable[str], characters_max: int = EXEC_CHARACTERS_MAX
    ) -> tuple[tuple[str, ...], bool]:
        """Keeps as many arguments as fit."""
        return command(arguments, characters_max)

    def header(self, name: str, values: Iterable[str]) -> tuple[str, ...]:
        """Gives a header's values as lines, masked."""
        return header(name, values)


NO_KEY = Redactor()
"""Masks for good."""
