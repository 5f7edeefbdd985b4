from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from collector import launch

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def runnable(otelcol: Path) -> list[str]:
    """The names of the SIEMs whose exporter this Collector has."""
    lacking = {name for name, _ in launch.unavailable(otelcol)}
    return [siem.name for siem in launch.SIEMS if siem.name not in lacking]
