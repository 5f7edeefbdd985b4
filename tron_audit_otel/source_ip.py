"""Where a request came from, from the ASGI scope alone. Pure functions.

Only the transport's other end is believed: a forwarding header is the client's word until the proxies that may
write it are configured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tron_audit_otel.event import Source
from tron_audit_otel.redact import line

if TYPE_CHECKING:
    from starlette.types import Scope

FORWARDING_HEADERS = (b"forwarded", b"x-forwarded-for")
"""Anybody can write them. uvicorn believes them from 127.0.0.1 unless told not to, and replaces the peer."""

RULE_PEER = "peer"
"""The transport peer, as the ASGI server reports it."""

RULE_NONE = "none"
"""The server reports no peer: a Unix socket."""


def source(scope: Scope) -> Source:
    """Gives the address of the transport's other end, from ``scope["client"]`` (ASGI specification, HTTP scope)."""
    client = scope.get("client")
    if not client or not client[0]:
        return Source(address=None, peer=None, rule=RULE_NONE)
    address = line(str(client[0]))
    # The peer is then a proxy, or a server such as uvicorn has already put the header's word in its place.
    suspect = any(name in FORWARDING_HEADERS for name, _ in scope.get("headers", ()))
    return Source(address=address, peer=address, rule=RULE_PEER, suspect=suspect)
