"""Where a request came from, from what the ASGI scope says alone. Pure functions.

Only the transport's other end is believed: a forwarding header is the client's word until the proxies that may
write it are configured.
"""

from __future__ import annotations

from functools import lru_cache
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple, Self

from tron_audit_otel.event import Source
from tron_audit_otel.redact import line

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tron_audit_otel.config import AuditConfig

FORWARDING_HEADERS = frozenset({b"forwarded", b"x-forwarded-for"})
"""Anybody can write them. uvicorn believes them from 127.0.0.1 unless told not to, and replaces the peer."""

RULE_PEER = "peer"
"""The transport peer, as the ASGI server reports it."""

RULE_NONE = "none"
"""The server reports no peer: a Unix socket."""


NOWHERE = Source(address=None, peer=None, rule=RULE_NONE)

_PEERS_CACHED_MAX = 1024

_name = itemgetter(0)


class Claim(NamedTuple):
    """What a request's headers say of where it came from: as much of it as is looked at."""

    is_made: bool = False
    """One of FORWARDING_HEADERS came with the request."""


NO_CLAIM = Claim()


class Proxies:
    """The proxies before the application, and what of their word is believed."""

    @classmethod
    def of(cls, config: AuditConfig) -> Self:  # noqa: ARG003
        """Takes those that are configured."""
        return cls()

    def claim(self, headers: Iterable[tuple[bytes, bytes]]) -> Claim:
        """Takes from a request's headers what :meth:`source` needs, bounded; costs next to nothing."""
        return NO_CLAIM if FORWARDING_HEADERS.isdisjoint(map(_name, headers)) else Claim(is_made=True)

    def source(self, client: object, claim: Claim) -> Source:
        """Gives where a request came from, by a scope's ``client`` (ASGI specification, HTTP scope) and its claim."""
        host = client[0] if isinstance(client, tuple | list) and client else None
        if not host:
            return NOWHERE
        # The peer is then a proxy, or a server such as uvicorn has already put the header's word in its place.
        return _of_peer(str(host), claim.is_made)


NO_PROXIES = Proxies()
"""Nobody's word is believed."""


@lru_cache(_PEERS_CACHED_MAX)
def _of_peer(host: str, suspect: bool) -> Source:  # noqa: FBT001 - the cache takes it so
    address = line(host)
    return Source(address, address, RULE_PEER, suspect)
