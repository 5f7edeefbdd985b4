"""Where a request came from, from what the ASGI scope says alone, and by which rule that is believed.

A forwarding header is the client's word, but for what the configured proxies have appended to it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import cache, lru_cache
from itertools import islice
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple, Self

from tron_audit_otel import forwarded
from tron_audit_otel.event import Source
from tron_audit_otel.forwarded import FORWARDED, LISTS, X_FORWARDED_FOR, X_REAL_IP
from tron_audit_otel.networks import NO_NETWORKS, UNIX, Networks, address
from tron_audit_otel.redact import KEPT_MAX, line, text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from tron_audit_otel.config import AuditConfig
    from tron_audit_otel.networks import Address

_logger = logging.getLogger(__name__)

FORWARDING_HEADERS = frozenset({FORWARDED, X_FORWARDED_FOR, X_REAL_IP})
"""Anybody can write them. uvicorn believes the second from 127.0.0.1 unless told not to, and replaces the peer."""

RULE_PEER = "peer"
"""The transport peer, as the ASGI server reports it."""

RULE_NONE = "none"
"""The server reports no peer: a Unix socket."""

RULE_TRUSTED_PROXIES = "trusted_proxies"
"""The first address from the right that is no trusted proxy's; or the one in the one header that they write."""

RULE_PROXY_HOPS = "proxy_hops"
"""The address that stands as many places from the right as there are proxies."""

RULE_SERVER = "server"
"""The ASGI server has put a header's word in the peer's place."""

HOPS_MAX = 32
"""Of trusted proxies in a chain; each takes a search."""

HEADER_BYTES_MAX = 2048
"""Of a header's end, for each that is looked at: 32 hops with IPv6 addresses and ports. It waits in memory."""

_SOURCES_CACHED_MAX = 1024

_name = itemgetter(0)


class Lines(NamedTuple):
    """A header's lines, joined, as much of them as is kept."""

    tail: bytes
    is_cut: bool = False
    """There was more on the left."""
    names_peer: bool = False
    """Somewhere in the whole, of which only the tail is kept, stands the peer's address with a port."""

    @classmethod
    def of(cls, values: Sequence[bytes], host: str = "") -> Self | None:
        """Joins them, from the right and no further than they are kept; None where there are none."""
        if not values:
            return None
        if len(values) == 1 and type(values[0]) is bytes and len(values[0]) <= HEADER_BYTES_MAX:
            return cls(values[0])
        kept: list[bytes] = []
        left = HEADER_BYTES_MAX
        for value in reversed(values):
            if left < len(value):
                kept.append(value[len(value) - left :])
                names_peer = any(_names(value, host) for value in values)
                return cls(b",".join(reversed(kept))[-HEADER_BYTES_MAX:], is_cut=True, names_peer=names_peer)
            kept.append(value)
            left -= len(value) + 1
        return cls(b",".join(reversed(kept)))

    @property
    def has_ports(self) -> bool:
        """Tells whether any entry may name a port."""
        return self.names_peer or b":" in self.tail

    @property
    def text(self) -> str:
        """The entries that are there to the last character."""
        tail = self.tail.decode("latin-1")
        return tail.partition(",")[2] if self.is_cut else tail


def _names(value: bytes, host: str) -> bool:
    """Tells whether an address with a port stands anywhere in a header's line."""
    name = host.encode("latin-1", "replace")
    return bool(name) and (name + b":" in value or name + b"]:" in value)


class Claim(NamedTuple):
    """What a request's headers say of where it came from: as much of it as is looked at."""

    ours: Lines | None = None
    """The header that the proxies write."""
    x_forwarded_for: Lines | None = None
    """What the server may have believed."""
    is_made: bool = True
    """Any forwarding header came with the request."""


NO_CLAIM = Claim(is_made=False)


@dataclass(frozen=True)
class Proxies:
    """The proxies before the application, and what of their word is believed."""

    networks: Networks = NO_NETWORKS
    unix: bool = False
    """A connection through a Unix socket is a proxy's."""
    hops: int | None = None
    """How many stand one behind the other."""
    header: bytes = X_FORWARDED_FOR
    """The one that they write."""
    _names: frozenset[bytes] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Keeps the names of the headers that are looked at."""
        object.__setattr__(self, "_names", FORWARDING_HEADERS | {self.header})

    @classmethod
    def of(cls, config: AuditConfig) -> Self:
        """Takes those that are configured."""
        trusted = config.trusted_proxies
        networks = Networks(each for each in trusted if each != UNIX)
        return cls(networks, UNIX in trusted, config.proxy_hops, config.proxy_header.encode("ascii"))

    def claim(self, headers: Iterable[tuple[bytes, bytes]], client: object = None) -> Claim:
        """Takes from a request's headers what :meth:`source` needs, bounded; costs next to nothing. Never raises."""
        try:
            if self._names.isdisjoint(map(_name, headers)):
                return NO_CLAIM
            return self._claim(headers, _host_and_port(client)[0] or "")
        except Exception:  # noqa: BLE001 - headers that are none, from a server that is none
            return Claim()

    def _claim(self, headers: Iterable[tuple[bytes, bytes]], host: str) -> Claim:
        ours = Lines.of([value for name, value in headers if name == self.header], host)
        if self.header == X_FORWARDED_FOR:
            return Claim(ours, ours)
        return Claim(ours, Lines.of([value for name, value in headers if name == X_FORWARDED_FOR], host))

    def source(self, client: object, claim: Claim) -> Source:
        """Gives where a request came from, by a scope's ``client`` (ASGI specification, HTTP scope) and its claim.

        Never raises.
        """
        if claim is NO_CLAIM and type(client) is tuple and client and type(client[0]) is str and client[0]:
            return _of_peer(client[0], suspect=False)  # as with nearly all
        host, port = _host_and_port(client)
        if not claim.is_made:
            return _of_peer(host, suspect=False)
        if port and not (claim.x_forwarded_for and claim.x_forwarded_for.has_ports):
            port = None  # nobody names it, and what is the same for all connections is worked out once
        return _of_claim(self, host, port, claim)

    def believes(self, peer: Address | None, *, has_peer: bool) -> bool:
        """Tells whether the other end of a connection is a proxy whose word counts."""
        if self.networks or self.unix:
            return self.unix if not has_peer else peer is not None and peer in self.networks
        return self.hops is not None

    def choose(self, lines: Lines) -> tuple[Address | None, bool]:
        """Gives the address to believe of those in the proxies' header, if any is, and whether to doubt it."""
        if lines.is_cut and self.header not in LISTS:
            return None, False
        nodes = forwarded.nodes(self.header, lines.text)
        if self.hops is not None:
            return next(islice(nodes, self.hops - 1, None), None), False
        return self._walk(nodes, is_cut=lines.is_cut)

    def _walk(self, nodes: Iterator[Address | None], *, is_cut: bool) -> tuple[Address | None, bool]:
        last = None
        for node in islice(nodes, HOPS_MAX):
            if node is None:
                return last, True
            if node not in self.networks:
                return node, False
            last = node
        return last, is_cut or next(nodes, last) is not last


NO_PROXIES = Proxies()
"""Nobody's word is believed."""


def _host_and_port(client: object) -> tuple[str | None, int | None]:
    try:
        if not isinstance(client, tuple | list) or not client or client[0] is None:
            return None, None
        host, port = text(client[0])[:KEPT_MAX], client[1] if len(client) > 1 else None
    except Exception:  # noqa: BLE001 - as with the headers
        return None, None
    return host or None, port if type(port) is int else None


@lru_cache(_SOURCES_CACHED_MAX)
def _address(host: str | None) -> Address | None:
    if host is None:
        return None
    return address(host.partition("%")[0] if ":" in host else host)  # behind a % stands a link-local zone


@lru_cache(_SOURCES_CACHED_MAX)
def _of_peer(host: str | None, *, suspect: bool) -> Source:
    if host is None:
        return Source(None, None, RULE_NONE, suspect)
    return Source(_shown(host), line(host), RULE_PEER, suspect)


def _shown(host: str) -> str:
    return str(_address(host) or line(host))


@lru_cache(_SOURCES_CACHED_MAX)
def _of_claim(proxies: Proxies, host: str | None, port: int | None, claim: Claim) -> Source:
    believed = proxies.believes(_address(host), has_peer=host is not None)
    # No connection has port 0; servers put it where they believe a header that names no port.
    replaced = port == 0
    doubtful = replaced or _is_named(host, port, claim.x_forwarded_for)
    if replaced:
        _warn()
    # A client that guesses the port of a connection between proxies may name it, too, and must not win by that.
    if replaced or (doubtful and not believed):
        return Source(None if host is None else _shown(host), None, RULE_SERVER, suspect=True)
    if not believed or claim.ours is None:
        return _of_peer(host, suspect=True)
    chosen, suspect = proxies.choose(claim.ours)
    if chosen is None:
        return _of_peer(host, suspect=True)
    rule = RULE_TRUSTED_PROXIES if proxies.hops is None else RULE_PROXY_HOPS
    return Source(str(chosen), line(host) if host is not None else None, rule, suspect or doubtful)


def _is_named(host: str | None, port: int | None, lines: Lines | None) -> bool:
    """Tells whether X-Forwarded-For names both as one end: uvicorn takes the port from there, too."""
    if host is None or port is None or lines is None:
        return False
    return lines.names_peer or any(_is_end(entry.strip(), host, port) for entry in forwarded.entries(lines.text))


def _is_end(entry: str, host: str, port: int) -> bool:
    named, _, number = entry.rpartition(":")
    try:
        inner = named[1:-1] if named[:1] == "[" and named[-1:] == "]" else named
        return host in (named[:KEPT_MAX], inner[:KEPT_MAX]) and int(number) == port  # no more of the host is kept
    except ValueError:
        return False


@cache
def _warn() -> None:
    _logger.warning(
        "the ASGI server has put a forwarding header's word in the place of a connection's address; such records are "
        "suspect. Run uvicorn with --no-proxy-headers, gunicorn with --forwarded-allow-ips=, and name the proxies in "
        "AUDIT_LOG_TRUSTED_PROXIES"
    )
