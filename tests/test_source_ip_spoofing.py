"""Every way that we know to be somebody else, against every kind of configuration: tests/data/source_ip.txt."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from tron_audit_otel.config import AuditConfig
from tron_audit_otel.event import Source
from tron_audit_otel.source_ip import Proxies

NAMES = {"X": b"x-forwarded-for", "F": b"forwarded", "R": b"x-real-ip"}


class Vector(NamedTuple):
    about: str
    settings: str
    client: tuple[str, int] | None
    headers: list[tuple[bytes, bytes]]
    expected: Source


def read() -> list[Vector]:
    """The table."""
    found: list[Vector] = []
    settings, client = None, None
    text = Path(__file__).with_name("data").joinpath("source_ip.txt").read_text(encoding="ascii")
    for line in text.partition("\n[]\n")[2].splitlines():
        if line.startswith("["):
            settings = line[1:-1]
        elif line.startswith("@"):
            client = peer(line[1:].split())
        elif line:
            about, sent, wanted = (cell.strip() for cell in line.split(" | "))
            found.append(Vector(about, settings or "", client, headers(sent), source(client, wanted.split())))
    return found


def peer(words: list[str]) -> tuple[str, int] | None:
    return None if words == ["none"] else (words[0], int(words[1]))


def headers(sent: str) -> list[tuple[bytes, bytes]]:
    while match := re.search(r"REPEAT\((\d+), ([^()]*)\)", sent):
        sent = sent[: match.start()] + match[2] * int(match[1]) + sent[match.end() :]
    lines = (line.partition(":") for line in sent.split(r" \n ") if line)
    return [
        (NAMES.get(name) or name.encode(), value.removeprefix(" ").encode().decode("unicode_escape").encode("latin-1"))
        for name, _, value in lines
    ]


def source(client: tuple[str, int] | None, words: list[str]) -> Source:
    address, rule, *suspect = words
    host = client[0] if client and rule != "server" else None
    assert suspect in ([], ["suspect"])
    return Source(None if address == "-" else address, host, rule, bool(suspect))


VECTORS = read()


def proxies(settings: str) -> Proxies:
    environ = dict(setting.split("=", 1) for setting in settings.split())
    return Proxies.of(
        AuditConfig.from_env(
            {"AUDIT_LOG_ENABLED": "true"} | {f"AUDIT_LOG_{name}": value for name, value in environ.items()}
        )
    )


def ids(vector: Vector) -> str:
    return f"{vector.settings or 'default'} @{vector.client and vector.client[0]}: {vector.about}"


@pytest.mark.parametrize("vector", VECTORS, ids=ids)
def test_nobody_is_taken_for_somebody_else(vector: Vector) -> None:
    believed = proxies(vector.settings)
    assert believed.source(vector.client, believed.claim(vector.headers, vector.client)) == vector.expected


def test_the_table_is_as_long_as_promised_and_has_no_vector_twice() -> None:
    assert len(VECTORS) >= 200
    assert len({ids(vector) for vector in VECTORS}) == len(VECTORS)
    assert {vector.expected.rule for vector in VECTORS} == {"peer", "none", "trusted_proxies", "proxy_hops", "server"}
