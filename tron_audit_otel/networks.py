"""Addresses and networks, read as strictly as what depends on them needs: who may say where a request came from."""

from __future__ import annotations

import re
from bisect import bisect_right
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, collapse_addresses, ip_address, ip_network
from typing import TYPE_CHECKING, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Iterable

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

UNIX = "unix"
"""Among networks: a connection without an address, through a Unix socket."""

NETWORKS_MAX = 512
"""The largest content delivery networks publish about 300."""

_ADDRESS_CHARACTERS_MAX = 45
"""An IPv6 address with an IPv4 one in it."""

_PUBLIC_ADDRESSES_MAX = {4: 2**24, 6: 2**108}
"""An IPv4 /8 and an IPv6 /20, all public networks together: no operator of proxies has more, so there would be clients
among them."""

_PREFIX = re.compile(r"[1-9]?[0-9]|1[0-9]{2}")


class _Range(NamedTuple):
    """A network, comparable with any other."""

    version: int
    first: int
    last: int

    @classmethod
    def of(cls, network: Network) -> Self:
        return cls(network.version, int(network.network_address), int(network.broadcast_address))

    def overlaps(self, other: _Range) -> bool:
        return self.version == other.version and self.first <= other.last and other.first <= self.last

    def is_in(self, other: _Range) -> bool:
        return self.version == other.version and other.first <= self.first and self.last <= other.last


def _ranges(*networks: str) -> tuple[_Range, ...]:
    return tuple(_Range.of(ip_network(network)) for network in networks)


_NOT_PUBLIC = (
    *_ranges("10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"),
    *_ranges("::1/128", "2001:db8::/32", "fc00::/7", "fe80::/10"),
)

_ANYBODYS = _ranges("2002::/16", "2001::/32", "64:ff9b::/96", "64:ff9b:1::/48")
"""6to4 (RFC 3056), Teredo (RFC 4380), NAT64 (RFC 6052, RFC 8215): all of IPv4 is in each."""

_NOBODYS = _ranges("0.0.0.0/8", "224.0.0.0/4", "255.255.255.255/32", "::/128", "ff00::/8")
"""`0.0.0.0` is often meant to be everybody."""


def address(text: str) -> Address | None:
    """Reads an address, IPv4-mapped IPv6 as the IPv4 in it; None for what is none, or belongs to no one host.

    >>> str(address("::ffff:192.0.2.7"))
    '192.0.2.7'
    """
    if len(text) > _ADDRESS_CHARACTERS_MAX or "%" in text:
        return None
    try:
        found = ip_address(text)
    except ValueError:
        return None
    if isinstance(found, IPv6Address):
        found = found.ipv4_mapped or found
    place = _Range(found.version, int(found), int(found))
    return None if any(map(place.is_in, _NOBODYS)) else found


def parse(value: object) -> object:
    """Reads a list such as ``10.0.1.0/24, 2001:db8::1, unix``, and gives it in its shortest form.

    Raises:
        ValueError: An entry is none of these, or it would trust those who are to be found out.
    """
    if isinstance(value, tuple | list) and value:
        value = ",".join(map(str, value))
    if not isinstance(value, str):
        return value
    entries = [entry.strip().lower() for entry in value.split(",")]
    networks = [_network(entry) for entry in entries if entry != UNIX]
    shortest: list[Network] = [
        *collapse_addresses(network for network in networks if isinstance(network, IPv4Network)),
        *collapse_addresses(network for network in networks if isinstance(network, IPv6Network)),
    ]
    _refuse_clients(shortest)
    if len(shortest) > NETWORKS_MAX:
        raise ValueError(f"must hold at most {NETWORKS_MAX} networks, and these are {len(shortest)}")
    return (*map(_shown, shortest), *([UNIX] if UNIX in entries else []))


def _network(entry: str) -> Network:
    first, slash, prefix = entry.partition("/")
    wanted = f"must be networks such as 10.0.1.0/24, addresses, or {UNIX}, with commas between them; {entry!r} is none"
    # `ip_network` takes netmasks as well, and inverted ones.
    if (slash and not _PREFIX.fullmatch(prefix)) or "%" in entry:
        raise ValueError(wanted)
    try:
        network = ip_network(entry, strict=False)
    except ValueError:
        raise ValueError(wanted) from None
    if network.network_address != ip_address(first):
        raise ValueError(f"must not hold {entry}: it has bits behind its prefix; {network} or {first} is meant")
    if isinstance(network, IPv6Network) and (mapped := network.network_address.ipv4_mapped):
        return IPv4Network((mapped, network.prefixlen - 96))
    return network


def _refuse_clients(networks: list[Network]) -> None:
    for version, most in _PUBLIC_ADDRESSES_MAX.items():
        public = [n for n in networks if n.version == version and not any(map(_Range.of(n).is_in, _NOT_PUBLIC))]
        if sum(network.num_addresses for network in public) > most:
            widest = _shown(max(public, key=lambda network: network.num_addresses))
            raise ValueError(f"must not hold so many public addresses ({widest}): a client could be among them")
    for network in networks:
        if any(map(_Range.of(network).overlaps, _NOBODYS)):
            raise ValueError(f"must not hold {_shown(network)}: it has addresses that no connection comes from")
        if network.num_addresses > 1 and any(map(_Range.of(network).overlaps, _ANYBODYS)):
            raise ValueError(f"must not hold {_shown(network)}: any IPv4 client could have an address in it")


def _shown(network: Network) -> str:
    return str(network.network_address if network.num_addresses == 1 else network)


class Networks:
    """Which addresses are in one of some networks: by a search, since there may be hundreds. Immutable."""

    def __init__(self, networks: Iterable[str] = ()) -> None:
        """Takes what :func:`parse` gives, without the word for Unix sockets."""
        self._ranges = tuple(sorted(_ranges(*networks)))

    def __contains__(self, address: Address) -> bool:
        """Tells whether an address is in one of them."""
        place = _Range(address.version, int(address), int(address))
        # The last that begins at the address or before: they are disjoint.
        before = bisect_right(self._ranges, (place.version, place.first), key=lambda known: known[:2])
        return before > 0 and place.is_in(self._ranges[before - 1])

    def __bool__(self) -> bool:
        """Tells whether there are any."""
        return bool(self._ranges)

    def __eq__(self, other: object) -> bool:
        """Tells whether both hold the same."""
        return isinstance(other, Networks) and self._ranges == other._ranges

    def __hash__(self) -> int:
        """Gives a hash that costs no more for a long list."""
        return hash(self._ranges[:1])


NO_NETWORKS = Networks()
