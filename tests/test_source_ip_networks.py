"""Which networks may be trusted: what anybody could exploit stops the start, and so does what may be a mistake."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, strategies
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from tests.hostile import fuzzed
from tests.test_stream import Receiver
from tron_audit_otel import transport
from tron_audit_otel.config import AuditConfig
from tron_audit_otel.errors import ConfigError
from tron_audit_otel.networks import NETWORKS_MAX, Networks, address
from tron_audit_otel.pipeline import Pipeline

if TYPE_CHECKING:
    from pathlib import Path

    from tron_audit_otel.answer import Answer

VARIABLE = "AUDIT_LOG_TRUSTED_PROXIES"


def trusted(value: str) -> tuple[str, ...]:
    return AuditConfig.from_env({"AUDIT_LOG_ENABLED": "true", VARIABLE: value}).trusted_proxies


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param("10.0.0.1", ("10.0.0.1",), id="address"),
        pytest.param("10.0.0.1/32", ("10.0.0.1",), id="network-of-one"),
        pytest.param("10.0.0.0/8, 192.168.1.0/24", ("10.0.0.0/8", "192.168.1.0/24"), id="spaces"),
        pytest.param("2001:DB8:0::1,10.0.0.1", ("10.0.0.1", "2001:db8::1"), id="shortest-form"),
        pytest.param("unix", ("unix",), id="unix"),
        pytest.param("UNIX", ("unix",), id="capitals"),
        pytest.param("unix,10.0.0.1,unix", ("10.0.0.1", "unix"), id="unix-twice"),
        pytest.param("10.0.0.0/9,10.128.0.0/9,10.1.0.0/16", ("10.0.0.0/8",), id="joined"),
        pytest.param("::ffff:10.0.0.0/104", ("10.0.0.0/8",), id="mapped"),
        pytest.param("::ffff:10.0.0.1", ("10.0.0.1",), id="mapped-address"),
        pytest.param("173.245.48.0/20,104.16.0.0/13", ("104.16.0.0/13", "173.245.48.0/20"), id="cdn"),
        pytest.param("64:ff9b::a00:5", ("64:ff9b::a00:5",), id="one-address-behind-nat64"),
    ],
)
def test_what_proxies_have_is_understood(value: str, expected: tuple[str, ...]) -> None:
    assert trusted(value) == expected


@pytest.mark.parametrize(
    "network",
    ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "127.0.0.0/8", "fc00::/7", "fe80::/10", "::1"],
)
def test_private_networks_may_be_trusted_whole(network: str) -> None:
    assert trusted(network) == (network,)


CLIENTS = "a client could be among them"
TRANSLATED = "any IPv4 client could have an address in it"
NOWHERE = "it has addresses that no connection comes from"


@pytest.mark.parametrize(
    ("value", "why"),
    [
        pytest.param("0.0.0.0/0", CLIENTS, id="everybody"),
        pytest.param("::/0", CLIENTS, id="everybody-by-ipv6"),
        pytest.param("0.0.0.0/1,128.0.0.0/1", CLIENTS, id="everybody-by-halves"),
        pytest.param("128.0.0.0/1", CLIENTS, id="half-of-everybody"),
        pytest.param("::ffff:0:0/96", CLIENTS, id="everybody-mapped"),
        pytest.param("::ffff:0.0.0.0/97,::ffff:128.0.0.0/97", CLIENTS, id="everybody-mapped-by-halves"),
        pytest.param("2000::/3", CLIENTS, id="all-public-ipv6"),
        pytest.param("2a00::/16", CLIENTS, id="half-of-europe"),
        pytest.param("2.0.0.0/7", CLIENTS, id="two-eighths-joined"),
        pytest.param("1.0.0.0/8,3.0.0.0/8", CLIENTS, id="two-eighths-apart"),
        pytest.param("8.0.0.0/7,10.0.0.0/8", CLIENTS, id="beside-a-private-one"),
        pytest.param(",".join(f"{n}.0.0.0/9" for n in range(1, 224, 2)), CLIENTS, id="a-quarter-in-slices"),
        pytest.param(",".join(f"2a0{n}::/20" for n in range(4)), CLIENTS, id="slices-of-ipv6"),
        pytest.param("224.0.0.0/3", CLIENTS, id="multicast-and-the-rest"),
        pytest.param("2002::/16", CLIENTS, id="6to4"),
        pytest.param("2002:cb00::/24", TRANSLATED, id="a-part-of-6to4"),
        pytest.param("2001::/32", TRANSLATED, id="teredo"),
        pytest.param("64:ff9b::/96", TRANSLATED, id="nat64"),
        pytest.param("64:ff9b::/64", TRANSLATED, id="around-nat64"),
        pytest.param("64:ff9b:1::/48", TRANSLATED, id="local-nat64"),
        pytest.param("0.0.0.0", NOWHERE, id="zero"),  # noqa: S104 - it is refused
        pytest.param("::", NOWHERE, id="zero-by-ipv6"),
        pytest.param("::/64", NOWHERE, id="around-zero"),
        pytest.param("224.0.0.1", NOWHERE, id="multicast"),
        pytest.param("255.255.255.255", NOWHERE, id="broadcast"),
        pytest.param("ff02::1", NOWHERE, id="multicast-by-ipv6"),
    ],
)
def test_what_anybody_could_exploit_stops_the_start(value: str, why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        trusted(value)
    assert str(caught.value).startswith(f"{VARIABLE} must not hold ")
    assert why in str(caught.value)
    assert str(caught.value).endswith(f", not {value!r}")


NONE = "such as 10.0.1.0/24, addresses, or unix"


@pytest.mark.parametrize(
    ("value", "why"),
    [
        pytest.param("*", NONE, id="star"),
        pytest.param("proxy.example", NONE, id="name"),
        pytest.param("localhost", NONE, id="localhost"),
        pytest.param("unix:/run/api.sock", NONE, id="path"),
        pytest.param("10.0.0.0/255.0.0.0", NONE, id="netmask"),
        pytest.param("10.0.0.0/0.255.255.255", NONE, id="hostmask"),
        pytest.param("10.0.0.0/33", NONE, id="prefix-too-long"),
        pytest.param("fc00::/129", NONE, id="prefix-too-long-for-ipv6"),
        pytest.param("10.0.0.0/08", NONE, id="prefix-with-a-zero"),
        pytest.param("10.0.0.0/+8", NONE, id="prefix-with-a-sign"),
        pytest.param("10.0.0.0/", NONE, id="prefix-missing"),
        pytest.param("10.0.0.0/8/8", NONE, id="two-prefixes"),
        pytest.param("/8", NONE, id="address-missing"),
        pytest.param("10", NONE, id="integer"),
        pytest.param("10.0.0", NONE, id="three-parts"),
        pytest.param("010.0.0.1", NONE, id="leading-zero"),
        pytest.param("0x0a.0.0.1", NONE, id="hexadecimal"),
        pytest.param("１０.0.0.1", NONE, id="fullwidth-digits"),  # noqa: RUF001 - what is tested
        pytest.param("fe80::1%eth0", NONE, id="zone"),
        pytest.param("[::1]", NONE, id="brackets"),
        pytest.param("10.0.0.1:80", NONE, id="port"),
        pytest.param("10.0.0.1 10.0.0.2", NONE, id="no-comma"),
        pytest.param("10.0.0.1,,10.0.0.2", NONE, id="empty-entry"),
        pytest.param("10.0.0.1,", NONE, id="comma-at-the-end"),
        pytest.param("10.0.0.1/8", "it has bits behind its prefix; 10.0.0.0/8 or 10.0.0.1 is meant", id="host-bits"),
        pytest.param("::ffff:0:0/95", "it has bits behind its prefix", id="mapped-and-more"),
        pytest.param(
            ",".join(f"10.0.{n >> 8}.{n & 255}" for n in range(0, 2 * NETWORKS_MAX + 2, 2)),
            f"must hold at most {NETWORKS_MAX} networks, and these are {NETWORKS_MAX + 1}",
            id="too-many",
        ),
    ],
)
def test_a_mistake_stops_the_start_and_is_named(value: str, why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        trusted(value)
    assert str(caught.value).startswith(f"{VARIABLE} must ")
    assert why in str(caught.value)
    assert str(caught.value).endswith(f", not {value!r}")


def test_what_is_set_by_hand_is_held_to_the_same() -> None:
    with pytest.raises(ValueError, match=CLIENTS):
        AuditConfig(trusted_proxies=("0.0.0.0/0",))


entries = strategies.one_of(
    strategies.tuples(strategies.ip_addresses(v=4), strategies.integers(0, 32)),
    strategies.tuples(strategies.ip_addresses(v=6), strategies.integers(0, 128)),
).map(lambda drawn: str(ip_network(f"{drawn[0]}/{drawn[1]}", strict=False)))


@fuzzed
@given(strategies.lists(entries, min_size=1, max_size=8), strategies.ip_addresses())
def test_what_is_accepted_trusts_what_it_names_and_nothing_else(networks: list[str], other: Any) -> None:
    try:
        accepted = Networks(trusted(",".join(networks)))
    except ConfigError:
        return
    for each in (other, *(ip_network(network).network_address for network in networks)):
        found = address(str(each))
        if found is not None and found == each:
            assert (found in accepted) is any(found in ip_network(network) for network in networks)


def test_a_start_is_on_record_with_whom_it_believed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Keeping(Receiver):
        """Keeps the requests themselves."""

        def send(self, request: bytes) -> Answer:
            requests.append(request)
            return super().send(request)

    requests: list[bytes] = []
    monkeypatch.setattr(transport, "maker", lambda _: Keeping)
    plain = AuditConfig(enabled=True, journal_dir=tmp_path, batch_delay_ms=1, shutdown_seconds_max=60)
    believing = plain.model_copy(update={"trusted_proxies": ("10.0.0.0/8", "unix"), "proxy_hops": 2})
    for config in (believing, plain):
        pipeline = Pipeline(config)
        pipeline.admit()
        assert pipeline.shutdown()
    starts = [
        {pair.key: pair.value for pair in record.attributes if pair.key.startswith("audit.system.")}
        for request in requests
        for around in ExportLogsServiceRequest.FromString(request).resource_logs
        for record in around.scope_logs[0].log_records
        if any(pair.value.string_value == "START" for pair in record.attributes)
    ]
    known, unknown = starts
    assert [value.string_value for value in known["audit.system.trusted_proxies"].array_value.values] == [
        "10.0.0.0/8",
        "unix",
    ]
    assert known["audit.system.proxy_hops"].int_value == 2
    assert known["audit.system.proxy_header"].string_value == "x-forwarded-for"
    assert set(unknown) == {"audit.system.commit", "audit.system.on_full"}


def test_an_address_of_everybody_is_none() -> None:
    assert [address(text) for text in ("0.0.0.0", "::", "::ffff:0.0.0.0", "224.0.0.1")] == [None] * 4  # noqa: S104 - as above
    assert address("::ffff:10.0.0.1") == ip_address("10.0.0.1")
