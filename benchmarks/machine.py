"""What the figures were measured on, and with which versions."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from collector import build

if TYPE_CHECKING:
    from benchmarks.run import Tools

_PACKAGES = (
    "fastapi",
    "httptools",
    "httpx",
    "opentelemetry-exporter-otlp-proto-http",
    "opentelemetry-sdk",
    "protobuf",
    "pydantic",
    "starlette",
    "tron-audit-otel",
    "uvicorn",
    "uvloop",
)


def machine() -> dict[str, object]:
    """Tells what it is, without any name of its own."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.system(),
        "kernel": platform.release(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }


def versions(tools: Tools) -> dict[str, str]:
    """Tells those of the packages and of the programs."""
    command: list[str | Path] = [tools.otelcol, "--version"]
    collector = subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603 - our own build
    return {
        **{name: version(name) for name in _PACKAGES},
        "otelcol": collector.split()[-1],
        "vegeta": _required(build.VEGETA, build.VEGETA_PACKAGE),
        "victorialogs": _required(build.VICTORIALOGS, build.VICTORIALOGS_PACKAGE.partition("/app/")[0]),
    }


def _required(directory: Path, module: str) -> str:
    found = re.search(rf"{re.escape(module)} (v\S+)", (directory / "go.mod").read_text())
    return found[1] if found else "?"


def _cpu() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()
