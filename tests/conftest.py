from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter

from collector import build, launch

BINARY = pytest.StashKey[Path]()

# How long an example takes is the machine's.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

# Whatever the shell has set for a service must not reach the applications that tests make; some are made on import.
for name in [name for name in os.environ if name.startswith(("AUDIT_", "OTEL_"))]:
    del os.environ[name]

# Whoever runs the tests in the background of a shell may have it ignored, and tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Journals that no test has named a place for must not outlive it, nor be found by the next run.
_STATE = tempfile.TemporaryDirectory(prefix="tron-audit-tests-")
os.environ["XDG_STATE_HOME"] = _STATE.name


@pytest.fixture(scope="session")
def otelcol(pytestconfig: pytest.Config) -> Path:
    """The real Collector: built here once and cached, or the one that TRON_AUDIT_OTELCOL names."""
    pytestconfig.stash[BINARY] = binary = build.otelcol()
    return binary


@pytest.fixture
def exporter() -> InMemoryLogRecordExporter:
    """Keeps what is exported, for the test to read."""
    return InMemoryLogRecordExporter()  # type: ignore[no-untyped-call] # the SDK has no annotation here


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Names the SIEMs that this Collector could not run, so that a green run never hides what it left out."""
    if (binary := config.stash.get(BINARY, None)) is not None:
        for name, reason in launch.unavailable(binary):
            terminalreporter.write_line(f"SIEM not run: {name}. This Collector {reason}.", yellow=True)
