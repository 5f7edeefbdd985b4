from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trustme

from collector import launch, servers
from tests.integration.gateway import server_certificate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def certificate(tmp_path: Path, authority: trustme.CA) -> dict[str, str]:
    """What an operator sets for TLS."""
    return server_certificate(authority, tmp_path)


@pytest.fixture(scope="session")
def runnable(otelcol: Path) -> list[str]:
    """The names of the SIEMs whose exporter this Collector has."""
    lacking = {name for name, _ in launch.unavailable(otelcol)}
    return [siem.name for siem in launch.SIEMS if siem.name not in lacking]


@pytest.fixture(scope="module")
def store() -> Iterator[servers.VictoriaLogs]:
    """A log store of the module's own, empty at its start."""
    with servers.victorialogs() as server:
        yield server
