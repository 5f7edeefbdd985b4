from __future__ import annotations

import pytest

from tron_audit_otel.event import Source
from tron_audit_otel.source_ip import NO_CLAIM, NO_PROXIES, RULE_NONE, RULE_PEER, Claim

NOWHERE = Source(address=None, peer=None, rule=RULE_NONE)


@pytest.mark.parametrize(
    ("client", "expected"),
    [
        pytest.param(("192.0.2.7", 40_000), Source("192.0.2.7", "192.0.2.7", RULE_PEER), id="ipv4"),
        pytest.param(["2001:db8::7", 40_000], Source("2001:db8::7", "2001:db8::7", RULE_PEER), id="ipv6"),
        pytest.param(("testclient", 50_000), Source("testclient", "testclient", RULE_PEER), id="name"),
        pytest.param(("a\nb", 1), Source(r"a\nb", r"a\nb", RULE_PEER), id="line-break"),
        pytest.param(None, NOWHERE, id="unix-socket"),
        pytest.param(("", 0), NOWHERE, id="empty"),
        pytest.param((None, 0), NOWHERE, id="no-address"),
        pytest.param((), NOWHERE, id="no-pair"),
    ],
)
def test_only_the_transport_peer_is_believed(client: object, expected: Source) -> None:
    assert NO_PROXIES.source(client, NO_CLAIM) == expected


def test_a_server_that_reports_no_peer_at_all_breaks_nothing() -> None:
    assert NO_PROXIES.source(None, Claim(is_made=True)) == NOWHERE


def test_a_forwarding_header_is_not_believed_and_makes_the_address_suspect() -> None:
    found = NO_PROXIES.source(("192.0.2.7", 1), Claim(is_made=True))
    assert found == Source("192.0.2.7", "192.0.2.7", RULE_PEER, suspect=True)
