from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from collector import build

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def otelcol() -> Path:
    """The real Collector: built here once and cached, or the one that TRON_AUDIT_OTELCOL names."""
    return build.otelcol()
