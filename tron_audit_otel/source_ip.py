"""Where a request came from, from what the ASGI scope says alone. Pure functions.

Only the transport's other end is believed: a forwarding header is the client's word until the proxies that may
write it are configured.
"""

from __future__ import annotations

from functools import lru_cache

from tron_audit_otel.event import Source
from tron_audit_otel.redact import line

FORWARDING_HEADERS = frozenset({b"forwarded", b"x-forwarded-for"})
"""Anybody can write them. uvicorn believes them from 127.0.0.1 unless told not to, and replaces the peer."""

RULE_PEER = "peer"
"""The transport peer, as the ASGI server reports it."""

RULE_NONE = "none"
"""The server reports no peer: a Unix socket."""


NOWHERE = Source(address=None, peer=None, rule=RULE_NONE)

_PEERS_CACHED_MAX = 1024


def source(client: object, *, is_forwarded: bool) -> Source:
    """Gives the address of the transport's other end, by a scope's ``client`` (ASGI specification, HTTP scope).

    ``is_forwarded``: one of FORWARDING_HEADERS came with the request.
    """
    host = client[0] if isinstance(client, tuple | list) and client else None
    if not host:
        return NOWHERE
    # The peer is then a proxy, or a server such as uvicorn has already put the header's word in its place.
    return _of_peer(str(host), is_forwarded)


@lru_cache(_PEERS_CACHED_MAX)
def _of_peer(host: str, suspect: bool) -> Source:  # noqa: FBT001 - the cache takes it so
    address = line(host)
    return Source(address, address, RULE_PEER, suspect)
