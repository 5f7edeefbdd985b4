"""The endings, executions, handlers' words and instrumentation, with other versions of FastAPI than the newest."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from collector import build

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from concurrent.futures import Future

ROOT = Path(__file__).parents[2]
PYPROJECT = ROOT / "pyproject.toml"
TESTS = ["tests/test_endings.py", "tests/test_exec.py", "tests/test_context.py", "tests/test_instrumentation.py"]

VERSIONS = {
    "0.115.0": "the oldest that pyproject.toml allows",
    "0.136.3": "the last whose routes carry the whole template",
    "0.137.2": "the first that keeps the prefix of include_router apart",
}


def run(*command: str | Path) -> None:
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{result.stdout[-4000:]}\n{result.stderr[-4000:]}"


def run_with(version: str) -> None:
    python = (
        build.cache_dir(os.environ)
        / f"fastapi-{version}-python{sys.version_info[0]}.{sys.version_info[1]}"
        / "bin"
        / "python"
    )
    wanted = [f"fastapi=={version}", "httpx", "httpx2", "hypothesis", "pytest", "--editable", str(ROOT)]
    installed, asked_for = python.parents[1] / "installed", "\n".join([*wanted, PYPROJECT.read_text()])
    if not installed.exists() or installed.read_text() != asked_for:
        if not python.exists():
            run(sys.executable, "-m", "venv", python.parents[1])
        run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted)
        installed.write_text(asked_for)
    # Newer parts warn about the older FastAPI; what they warn of is not ours to mend.
    run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "default", *TESTS)


@pytest.fixture(scope="module")
def runs() -> Iterator[Mapping[str, Future[None]]]:
    """All of them side by side: none uses a server, or a directory of another's."""
    with ThreadPoolExecutor(len(VERSIONS)) as pool:
        yield {version: pool.submit(run_with, version) for version in VERSIONS}


@pytest.mark.parametrize("version", VERSIONS)
def test_this_version_of_fastapi_passes_the_same_tests(version: str, runs: Mapping[str, Future[None]]) -> None:
    runs[version].result()
