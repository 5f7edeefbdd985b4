"""What proxies write of those who are behind them, read from the right: a proxy appends, a client can write the rest.

So nothing here depends on what stands to the left of what is asked for. Pure functions on bounded text.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tron_audit_otel.networks import address

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tron_audit_otel.networks import Address

FORWARDED = b"forwarded"
"""RFC 7239."""

X_FORWARDED_FOR = b"x-forwarded-for"

LISTS = frozenset({FORWARDED, X_FORWARDED_FOR})
"""Proxies append to them. Any other header has one address."""

X_REAL_IP = b"x-real-ip"

_SPACE = " \t"
_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_QUOTED = r'"(?:[^"\\\x00-\x08\x0a-\x1f\x7f]|\\[^\x00-\x08\x0a-\x1f\x7f])*+"'
_PAIR = re.compile(rf"({_WORD})=({_WORD}|{_QUOTED})")
_ANY_PAIR = rf"[ \t]*+(?:{_WORD}=(?:{_WORD}|{_QUOTED}))?+[ \t]*+"
_ELEMENT = re.compile(rf"{_ANY_PAIR}(?:;{_ANY_PAIR})*+")
"""`forwarded-element` of RFC 7239, 4, with the spaces that RFC 9110 has around such separators. Possessive throughout:
however a client writes it, each character is looked at once."""

_ESCAPE = re.compile(r"\\(.)", re.DOTALL)

_PORT_MAX = 65_535
_IPV4_NODE = re.compile(r"([0-9.]+)(?::([0-9]{1,5}))?", re.ASCII)
_IPV6_NODE = re.compile(r"\[([0-9A-Fa-f.]*:[0-9A-Fa-f:.]*)\](?::([0-9]{1,5}))?", re.ASCII)
_HIDDEN_PORT = re.compile(r":_[A-Za-z0-9._-]+\Z", re.ASCII)
"""`obfport` of RFC 7239, 6."""


def nodes(header: bytes, text: str) -> Iterator[Address | None]:
    """Gives the addresses that a header's lines, joined by commas, name, from the right; None for what names none."""
    if header == FORWARDED:
        return _of_forwarded(text)
    if header == X_FORWARDED_FOR:
        return (_bare(entry) for entry in reversed(entries(text)))
    return iter([_bare(text.strip(_SPACE))])


def entries(text: str) -> list[str]:
    """Gives what stands between the commas; an empty entry counts for nothing (RFC 9110, 5.6.1)."""
    return [entry for part in text.split(",") if (entry := part.strip(_SPACE))]


def _bare(entry: str) -> Address | None:
    return address(entry) or _node(entry)


def _node(text: str) -> Address | None:
    """Reads an address with or without a port; IPv6 in brackets."""
    found = _IPV4_NODE.fullmatch(text) or _IPV6_NODE.fullmatch(text)
    if found is None or int(found[2] or 0) > _PORT_MAX:
        return None
    return address(found[1])


def _of_forwarded(text: str) -> Iterator[Address | None]:
    end = comma = len(text)
    while end >= 0:
        comma = text.rfind(",", 0, comma)
        if _ELEMENT.fullmatch(text, comma + 1, end):
            if element := text[comma + 1 : end].strip(_SPACE):
                yield _for(element)
            end = comma
        elif comma < 0:
            yield None
            return


def _for(element: str) -> Address | None:
    """Gives the address that an element says it was forwarded for."""
    found = None
    names: set[str] = set()
    for name, value in _PAIR.findall(element):
        key = name.lower()
        if key in names:
            return None
        names.add(key)
        if key == "for":
            node = _ESCAPE.sub(r"\1", value[1:-1]) if value.startswith('"') else value
            found = _node(_HIDDEN_PORT.sub("", node))
    return found
