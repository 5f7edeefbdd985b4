from __future__ import annotations

import logging
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given, settings, strategies
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from tests.hostile import fuzzed
from tron_audit_otel import forwarded, source_ip
from tron_audit_otel.config import AuditConfig
from tron_audit_otel.context import Recorder
from tron_audit_otel.event import Source
from tron_audit_otel.networks import Networks, address
from tron_audit_otel.source_ip import HEADER_BYTES_MAX, HOPS_MAX, NO_CLAIM, NO_PROXIES, Proxies

thoroughly = settings(fuzzed, max_examples=200)

Headers = list[tuple[bytes, bytes]]

TRUSTED = ("10.0.0.0/8", "2001:db8:f::/48", "192.0.2.1")
CONFIGURED = {
    "default": NO_PROXIES,
    "trusted": Proxies(Networks(TRUSTED)),
    "unix": Proxies(Networks(TRUSTED), unix=True),
    "hops": Proxies(hops=2),
    "hops-trusted": Proxies(Networks(TRUSTED), hops=3),
    "forwarded": Proxies(Networks(TRUSTED), header=b"forwarded"),
    "forwarded-hops": Proxies(hops=2, header=b"forwarded"),
    "single": Proxies(Networks(TRUSTED), header=b"x-real-ip"),
}

configured = strategies.sampled_from(sorted(CONFIGURED))
hosts = strategies.ip_addresses().map(str).filter(lambda text: address(text) is not None)
"""Addresses of one host each."""

addresses = strategies.one_of(
    strategies.ip_addresses().map(str),
    strategies.sampled_from(["10.0.0.1", "10.1.2.3", "192.0.2.1", "2001:db8:f::2", "::ffff:10.0.0.1", "203.0.113.9"]),
)
pieces = strategies.sampled_from(
    [
        *["10.0.0.1", "203.0.113.9", "2001:db8:f::1", "[2001:db8::9]:80", "10.0.0.1:40001", "::ffff:10.0.0.2"],
        *["for=", "for=10.0.0.1", "by=_x", "For=", ",", ", ", ";", '"', "\\", '\\"', "=", " ", "\t", "%1", "\n"],
        *["unknown", "_x", "[", "]", ":", "/8", "::", "255.255.255.255", "\x00", "\xff", "x" * 40, "," * 40],
    ]
)
written = strategies.lists(pieces, max_size=40).map(lambda parts: "".join(parts).encode("latin-1"))
"""What a client writes into a header: pieces of what is valid there."""

names = strategies.sampled_from([b"x-forwarded-for", b"forwarded", b"x-real-ip", b"host"])
clients = strategies.one_of(
    strategies.none(),
    strategies.tuples(addresses, strategies.integers(1, 65_535)),
    strategies.just(("10.0.0.1", 40_001)),
)


def find(proxies: Proxies, client: object, headers: Any) -> Source:
    return proxies.source(client, proxies.claim(headers, client))


@pytest.mark.parametrize(
    ("client", "expected"),
    [
        pytest.param(("192.0.2.7", 40_000), Source("192.0.2.7", "192.0.2.7", "peer"), id="ipv4"),
        pytest.param(["2001:db8::7", 40_000], Source("2001:db8::7", "2001:db8::7", "peer"), id="ipv6"),
        pytest.param(("testclient", 50_000), Source("testclient", "testclient", "peer"), id="name"),
        pytest.param(("a\nb", 1), Source(r"a\nb", r"a\nb", "peer"), id="line-break"),
        pytest.param(("192.0.2.7",), Source("192.0.2.7", "192.0.2.7", "peer"), id="no-port"),
        pytest.param(("192.0.2.7", None), Source("192.0.2.7", "192.0.2.7", "peer"), id="port-is-none"),
        pytest.param(None, Source(None, None, "none"), id="unix-socket"),
        pytest.param(("", 0), Source(None, None, "none"), id="empty"),
        pytest.param((None, 0), Source(None, None, "none"), id="no-address"),
        pytest.param((), Source(None, None, "none"), id="no-pair"),
    ],
)
def test_only_the_transport_peer_is_believed_by_default(client: object, expected: Source) -> None:
    assert NO_PROXIES.source(client, NO_CLAIM) == expected


class Hostile:
    """Raises at whatever is asked of it."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __hash__(self) -> int:
        raise RuntimeError

    def __eq__(self, other: object) -> bool:
        raise RuntimeError

    def __str__(self) -> str:
        raise RuntimeError

    def __bool__(self) -> bool:
        raise RuntimeError

    def __iter__(self) -> Any:
        raise RuntimeError


XFF = b"x-forwarded-for"
NO_HEADERS_AT_ALL: list[Any] = [
    None,
    3,
    Hostile(),
    [None],
    [Hostile()],
    [()],
    [(XFF,)],
    [(XFF, None)],
    [(XFF, "text")],
    [(XFF, Hostile())],
    [(Hostile(), b"")],
    [([], b"")],
    [(XFF, b"203.0.113.9"), (XFF, 3)],
    [(XFF, memoryview(b"203.0.113.9"))],
    [(XFF, bytearray(b"203.0.113.9," * 1000))],
    [(XFF, b"203.0.113.9", b"a third")],
]
NO_CLIENTS: list[Any] = [
    3,
    "203.0.113.9",
    Hostile(),
    (Hostile(), 1),
    [Hostile(), Hostile()],
    ("203.0.113.9", Hostile()),
    ({}, []),
    (b"203.0.113.9", "80"),
    ("x" * 1_000_000, 1),
    ("\ud800", 2**70),
    (float("nan"), -1),
    ("10.0.0.1", True),
]


@pytest.mark.parametrize("proxies", CONFIGURED.values(), ids=CONFIGURED)
def test_no_scope_makes_it_raise(proxies: Proxies) -> None:
    for client in (*NO_CLIENTS, ("10.0.0.1", 40_001), None):
        for headers in (*NO_HEADERS_AT_ALL, [(XFF, b"203.0.113.9")], []):
            found = find(proxies, client, headers)
            for value in (found.address, found.peer):
                assert value is None or (value.isprintable() and len(value) <= 1024)


def test_headers_that_cannot_be_read_make_the_address_suspect() -> None:
    for headers in NO_HEADERS_AT_ALL[:13]:
        assert find(NO_PROXIES, ("203.0.113.9", 1), headers).suspect


@thoroughly
@given(configured, clients, strategies.lists(strategies.tuples(names, written), max_size=6))
def test_the_address_is_the_peers_or_one_that_the_header_names(
    name: str, client: tuple[str, int] | None, headers: Headers
) -> None:
    proxies = CONFIGURED[name]
    found = find(proxies, client, headers)
    sent = b",".join(value for name, value in headers if name == proxies.header).decode("latin-1")
    if found.rule in ("trusted_proxies", "proxy_hops"):
        assert found.address is not None
        named = ip_address(found.address)
        assert str(named) == found.address
        assert not named.is_unspecified
        assert not named.is_multicast
        assert any(str(named) in texts(part) for part in sent.replace('"', "").replace("\\", "").split(","))
        assert found.peer == (client[0] if client else None)
    elif client is None:
        assert found[:3] == (None, None, "none")
    else:
        assert ip_address(found.address or "") in {ip_address(client[0]), mapped(client[0])}
        assert found.peer == (None if found.rule == "server" else client[0])


def texts(part: str) -> set[str]:
    """Whatever address a part of a header may be meant to name, in its canonical form."""
    part = part.lower().rpartition("for=")[2].strip()
    forms = {part, part.strip("[]"), part.partition("]")[0].strip("["), part.rpartition(":")[0], part.partition(";")[0]}
    found = set()
    for form in forms | {form.strip("[] \t") for form in forms}:
        try:
            found |= {str(ip_address(form)), str(mapped(form))}
        except ValueError:
            continue
    return found


def mapped(host: str) -> Any:
    address = ip_address(host)
    return getattr(address, "ipv4_mapped", None) or address


def appended(proxies: Proxies, client: str, via: list[str]) -> bytes:
    """What well-behaved proxies append, each the address that it was connected from."""
    if proxies.header != b"forwarded":
        return ", ".join([client, *via]).encode()
    return ", ".join(f'for="[{each}]"' if ":" in each else f"for={each}" for each in (client, *via)).encode()


@thoroughly
@given(
    strategies.sampled_from(["trusted", "hops", "hops-trusted", "forwarded", "forwarded-hops"]),
    written,
    strategies.booleans(),
    hosts.filter(lambda host: mapped(host) not in Networks(TRUSTED)),
    strategies.lists(strategies.sampled_from(["10.0.0.2", "10.9.9.9", "2001:db8:f::2"]), min_size=2, max_size=2),
    strategies.lists(strategies.tuples(names, written), max_size=3),
)
def test_what_the_client_writes_never_changes_what_the_proxies_say(  # noqa: PLR0913, PLR0917 - each is drawn
    name: str, forged: bytes, on_its_own_line: bool, client: str, via: list[str], others: Headers
) -> None:
    proxies = CONFIGURED[name]
    via = via[: (proxies.hops or 3) - 1]
    said = appended(proxies, client, via)
    honest = find(proxies, ("10.0.0.1", 40_001), [(proxies.header, said)])
    assert honest == Source(str(mapped(client)), "10.0.0.1", honest.rule)
    lines = (
        [(proxies.header, forged), (proxies.header, said)]
        if on_its_own_line
        else [(proxies.header, forged + b", " + said)]
    )
    sent = [(name, value) for name, value in others if name != proxies.header] + lines
    found = find(proxies, ("10.0.0.1", 40_001), sent)
    assert found[:3] == honest[:3]
    # All that a client can do, and only to its own record: guess the port of the connection between proxies.
    assert not found.suspect or any(name == XFF and b"10.0.0.1:40001" in value for name, value in sent)


@thoroughly
@given(written, written, hosts, strategies.booleans())
def test_a_clients_host_within_the_proxys_element_does_not_part_it(
    forged: bytes, host: bytes, client: str, is_first: bool
) -> None:
    quoted = "".join(f"\\{each}" if each in '"\\' else each for each in host.decode("latin-1") if each.isprintable())
    node = f'for="[{client}]"' if ":" in client else f"for={client}"
    element = f'{node};host="{quoted}"' if is_first else f'proto=http;host="{quoted}";{node}'
    value = forged + b", " + element.encode("latin-1")
    found = find(CONFIGURED["forwarded-hops"], ("10.0.0.1", 40_001), [(b"forwarded", value + b", for=10.0.0.2")])
    assert found == Source(str(mapped(client)), "10.0.0.1", "proxy_hops")


@fuzzed
@given(configured, strategies.lists(strategies.tuples(names, strategies.binary(max_size=5000)), max_size=30))
def test_what_waits_in_memory_is_bounded(name: str, headers: Headers) -> None:
    claim = CONFIGURED[name].claim(headers)
    assert all(len(lines.tail) <= HEADER_BYTES_MAX for lines in (claim.ours, claim.x_forwarded_for) if lines)


@fuzzed
@given(strategies.lists(strategies.binary(max_size=900), min_size=1, max_size=9))
def test_the_kept_tail_is_the_end_of_the_joined_lines(lines: list[bytes]) -> None:
    claim = CONFIGURED["trusted"].claim([(XFF, line) for line in lines])
    whole = b",".join(lines)
    assert claim.ours is not None
    assert claim.ours.tail == whole[-HEADER_BYTES_MAX:] if whole else not claim.ours.tail
    assert claim.ours.is_cut == (len(whole) > HEADER_BYTES_MAX)


@pytest.mark.parametrize(
    "sizes",
    [
        *[(HEADER_BYTES_MAX,), (HEADER_BYTES_MAX + 1,), (0, HEADER_BYTES_MAX), (0, HEADER_BYTES_MAX - 1)],
        *[(1, HEADER_BYTES_MAX - 1), (0, 0, HEADER_BYTES_MAX - 1), (3, HEADER_BYTES_MAX), (HEADER_BYTES_MAX, 0)],
        *[(HEADER_BYTES_MAX, 3), (0,) * HEADER_BYTES_MAX, (0,) * (HEADER_BYTES_MAX + 2), (1,) * HEADER_BYTES_MAX],
    ],
    ids=lambda sizes: f"{len(sizes)}-lines-of-{sum(sizes)}-first-{sizes[0]}",
)
def test_the_bound_is_exact(sizes: tuple[int, ...]) -> None:
    lines = [bytes([ord("a") + number % 26]) * size for number, size in enumerate(sizes)]
    whole = b",".join(lines)
    ours = CONFIGURED["trusted"].claim([(XFF, line) for line in lines]).ours
    assert ours is not None
    assert ours.tail == whole[-HEADER_BYTES_MAX:]
    assert ours.is_cut is (len(whole) > HEADER_BYTES_MAX)


TRUSTED_BY_UVICORN = ",".join(TRUSTED)


def by_uvicorn(client: tuple[str, int], value: bytes) -> str:
    """The address that uvicorn's own walk finds: another implementation of the same rule."""
    found = ProxyHeadersMiddleware(lambda *_: None, TRUSTED_BY_UVICORN)  # type: ignore[arg-type]
    host, _ = found.trusted_hosts.get_trusted_client_address(value.decode())
    return host if client[0] in found.trusted_hosts else client[0]


@thoroughly
@given(
    strategies.sampled_from(["10.0.0.1", "192.0.2.1", "2001:db8:f::1", "203.0.113.9", "10.255.255.255", "11.0.0.0"]),
    strategies.lists(
        strategies.one_of(
            hosts.filter(lambda host: str(mapped(host)) == host),
            strategies.sampled_from(["10.0.0.1", "10.1.2.3", "192.0.2.1", "2001:db8:f::2", "203.0.113.9"]),
        ),
        min_size=1,
        max_size=12,
    ),
)
def test_uvicorn_finds_the_same_in_a_chain_that_is_well_formed(host: str, chain: list[str]) -> None:
    value = ", ".join(chain).encode()
    found = find(CONFIGURED["trusted"], (host, 40_001), [(XFF, value)])
    assert found.address == by_uvicorn((host, 40_001), value)
    assert found.rule == ("trusted_proxies" if ip_address(host) in Proxies(Networks(TRUSTED)).networks else "peer")


@fuzzed
@given(
    strategies.lists(strategies.ip_addresses(v=4), min_size=1, max_size=20),
    strategies.ip_addresses(v=4),
    strategies.integers(8, 32),
)
def test_networks_are_those_that_python_has(bases: list[Any], address: Any, prefix: int) -> None:
    networks = {str(ip_network(f"{base}/{prefix}", strict=False)) for base in bases}
    disjoint = Networks(networks)
    for each in (address, *bases):
        assert (each in disjoint) is any(each in ip_network(network) for network in networks)


def uvicorn_replaced(value: bytes, trusted: str) -> tuple[str, int]:
    """What uvicorn puts in the peer's place."""
    hosts = ProxyHeadersMiddleware(lambda *_: None, trusted).trusted_hosts  # type: ignore[arg-type]
    return hosts.get_trusted_client_address(value.decode("latin-1"))


@thoroughly
@given(strategies.sampled_from(["127.0.0.1", "*"]), written)
def test_whatever_uvicorn_has_put_in_the_peers_place_is_noticed(trusted: str, value: bytes) -> None:
    host, port = uvicorn_replaced(value, trusted)
    if host:
        found = find(NO_PROXIES, (host, port), [(XFF, value)])
        assert (found.peer, found.rule, found.suspect) == (None, "server", True)


def test_a_server_that_replaces_addresses_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    source_ip._warn.cache_clear()
    with caplog.at_level(logging.WARNING):
        find(NO_PROXIES, ("10.0.0.1", 40_001), [(XFF, b"10.0.0.1:40001")])
        assert not caplog.messages, "a client that knows its own port could make an operator look for a mistake"
        for client in ("203.0.113.1", "203.0.113.2"):
            find(NO_PROXIES, (client, 0), [(XFF, client.encode())])
    assert len(caplog.messages) == 1
    assert "--no-proxy-headers" in caplog.text
    assert "AUDIT_LOG_TRUSTED_PROXIES" in caplog.text
    assert "203.0.113" not in caplog.text


def test_no_more_hops_are_looked_at_than_there_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[str] = []

    def bare(entry: str) -> Any:
        looked_at.append(entry)
        return address(entry)

    monkeypatch.setattr(forwarded, "_bare", bare)
    value = b"10.0.0.2," * 10_000
    find(CONFIGURED["trusted"], ("10.0.0.1", 40_001), [(XFF, value)])
    assert len(looked_at) == HOPS_MAX


def test_what_is_the_same_for_many_requests_is_worked_out_once() -> None:
    proxies = Proxies(Networks(["10.0.0.0/8"]))
    headers = [(XFF, b"203.0.113.77")]
    first, second = (find(proxies, ("10.0.0.1", port), headers) for port in (40_001, 40_002))
    assert first is second


def test_what_is_kept_of_a_long_host_is_bounded() -> None:
    first, second = (find(NO_PROXIES, ("x" * 2000 + end, 0), [(XFF, b"x")]) for end in "ab")
    assert first is second


def test_a_host_from_a_header_is_found_there_however_long() -> None:
    name = "x" * 1_500
    for entry in (name, f"[{name}]"):
        source = find(NO_PROXIES, (name, 99), [(XFF, f"{entry}:99".encode())])
        assert (source.peer, source.rule, source.suspect) == (None, "server", True)


def test_equal_settings_make_equal_proxies() -> None:
    config = AuditConfig.from_env(
        {"AUDIT_LOG_ENABLED": "true", "AUDIT_LOG_TRUSTED_PROXIES": "10.0.0.0/9,10.128.0.0/9,unix"}
    )
    made, again = Proxies.of(config), Proxies(Networks(["10.0.0.0/8"]), unix=True)
    assert made == again
    assert hash(made) == hash(again)
    assert made != Proxies(Networks(["10.0.0.0/8"]))
    assert Recorder(print, made) == Recorder(print, again)
    assert Proxies.of(AuditConfig()) == NO_PROXIES


@pytest.mark.parametrize("name", ["unix", "default"])
def test_an_empty_address_with_the_servers_port_is_no_unix_socket(name: str) -> None:
    """As hypercorn's ProxyFixMiddleware and daphne's --proxy-headers leave it."""
    assert find(CONFIGURED[name], ("", 0), [(XFF, b"198.51.100.66,")]) == Source(None, None, "server", suspect=True)


def test_only_an_ipv6_address_has_a_zone() -> None:
    assert find(CONFIGURED["trusted"], ("10.0.0.1%x", 40_001), [(XFF, b"198.51.100.66")]).rule == "peer"
