"""What a real uvicorn makes of a connection's address before audit sees it, and that the record says so."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from tron_audit_otel.config import AuditConfig
from tron_audit_otel.testing import capture

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FORGED = "198.51.100.66"
HERE = "127.0.0.1"
SOURCE = ("client.address", "network.peer.address", "audit.source_ip.rule", "audit.source_ip.suspect")
START_SECONDS_MAX = 60
ANSWER_SECONDS_MAX = 60

UNTRUSTING = {"proxy_headers": False}
DEFAULT: dict[str, Any] = {}
TRUSTING_ALL = {"forwarded_allow_ips": "*"}


@contextmanager
def served(app: FastAPI, **options: Any) -> Iterator[uvicorn.Server]:
    """The application under uvicorn, on a free port or a Unix socket."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", **options))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + START_SECONDS_MAX
    while not server.started:
        assert thread.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    try:
        yield server
    finally:
        server.should_exit = True
        thread.join()


def sources(config: AuditConfig, headers: list[tuple[str, str]], uds: Path | None = None, **options: Any) -> Any:
    """What is on record of one request."""
    app = FastAPI()

    @app.get("/items")
    async def items() -> None: ...

    where = {} if uds is None else {"uds": str(uds)}
    with capture(app, config) as audit, served(app, **where, **options) as server:
        port = 0 if uds else server.servers[0].sockets[0].getsockname()[1]
        base = f"http://{HERE}:{port}"
        transport = httpx.HTTPTransport(uds=str(uds) if uds else None)
        with httpx.Client(transport=transport, base_url=base, timeout=ANSWER_SECONDS_MAX) as client:
            assert client.get("/items", headers=headers).status_code == 200
    return tuple(audit.last.get(name) for name in SOURCE)


OFF = AuditConfig(enabled=True)
TRUSTED = AuditConfig(enabled=True, trusted_proxies=(HERE, "unix"))
XFF = "x-forwarded-for"


@pytest.mark.parametrize("http", ["h11", "httptools"])
@pytest.mark.parametrize(
    ("options", "config", "headers", "expected"),
    [
        pytest.param(UNTRUSTING, OFF, [], (HERE, HERE, "peer", False), id="nothing-forged"),
        pytest.param(UNTRUSTING, OFF, [(XFF, FORGED)], (HERE, HERE, "peer", True), id="forged"),
        pytest.param(DEFAULT, OFF, [], (HERE, HERE, "peer", False), id="default, nothing-forged"),
        pytest.param(DEFAULT, OFF, [(XFF, FORGED)], (FORGED, None, "server", True), id="default, forged"),
        pytest.param(DEFAULT, OFF, [(XFF, f"{FORGED}:99")], (FORGED, None, "server", True), id="default, with-port"),
        pytest.param(
            DEFAULT, OFF, [(XFF, "1.2.3.4"), (XFF, f"{FORGED}:99")], (FORGED, None, "server", True), id="default, lines"
        ),
        pytest.param(DEFAULT, OFF, [(XFF, "<script>")], ("<script>", None, "server", True), id="default, no-address"),
        pytest.param(DEFAULT, TRUSTED, [(XFF, FORGED)], (FORGED, None, "server", True), id="default, although-trusted"),
        pytest.param(DEFAULT, TRUSTED, [(XFF, HERE)], (HERE, None, "server", True), id="default, as-the-proxy"),
        pytest.param(
            TRUSTING_ALL, OFF, [(XFF, f"{FORGED}, 1.2.3.4")], (FORGED, None, "server", True), id="all, leftmost"
        ),
        pytest.param(
            TRUSTING_ALL, OFF, [(XFF, f"{FORGED}:80, 1.2.3.4")], (FORGED, None, "server", True), id="all, with-port"
        ),
        pytest.param(
            UNTRUSTING,
            TRUSTED,
            [(XFF, f"{FORGED}, 1.2.3.4")],
            ("1.2.3.4", HERE, "trusted_proxies", False),
            id="trusted",
        ),
        pytest.param(
            UNTRUSTING,
            TRUSTED,
            [(XFF, FORGED), (XFF, "1.2.3.4")],
            ("1.2.3.4", HERE, "trusted_proxies", False),
            id="trusted, two-lines",
        ),
    ],
)
def test_over_tcp(
    http: str, options: dict[str, Any], config: AuditConfig, headers: list[tuple[str, str]], expected: tuple[Any, ...]
) -> None:
    assert sources(config, headers, http=http, **options) == expected


@pytest.mark.parametrize(
    ("options", "config", "headers", "expected"),
    [
        pytest.param(UNTRUSTING, OFF, [], (None, None, "none", False), id="nothing-forged"),
        pytest.param(UNTRUSTING, OFF, [(XFF, FORGED)], (None, None, "none", True), id="forged"),
        pytest.param(DEFAULT, OFF, [(XFF, FORGED)], (None, None, "none", True), id="default, forged"),
        pytest.param(TRUSTING_ALL, OFF, [(XFF, FORGED)], (FORGED, None, "server", True), id="all, forged"),
        pytest.param(
            DEFAULT,
            TRUSTED,
            [(XFF, f"{FORGED}, 1.2.3.4")],
            ("1.2.3.4", None, "trusted_proxies", False),
            id="trusted",
        ),
        pytest.param(
            TRUSTING_ALL, TRUSTED, [(XFF, FORGED)], (FORGED, None, "server", True), id="all, although-trusted"
        ),
    ],
)
def test_through_a_unix_socket(
    tmp_path: Path,
    options: dict[str, Any],
    config: AuditConfig,
    headers: list[tuple[str, str]],
    expected: tuple[Any, ...],
) -> None:
    assert sources(config, headers, tmp_path / "api.sock", **options) == expected
