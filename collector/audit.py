"""Asks the public advisories about everything that is pinned here: Python packages and Go modules.

    python3 -m collector.audit [--osv-url URL] [--go-db URL] [FILE …]

Nothing is resolved and nothing installed: pip-audit reads the lock files, govulncheck the Collector that was built
from `go.sum`. An advisory database that cannot be reached is an error, not a clean result. Exit codes: 0 nothing is
known; 1 something is, and is named; 2 it could not be told.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collector import build

if TYPE_CHECKING:
    from collections.abc import Sequence

LOCKS = tuple((build.HERE.parent / "requirements").glob("*.txt"))

EXIT_CLEAN, EXIT_FOUND, EXIT_UNKNOWN = 0, 1, 2
SECONDS_MAX = 600
_GOVULNCHECK_FOUND = 3
"""Its exit code; 1 is that it could not tell."""


def python(lock: Path, osv_url: str | None) -> int:
    """Ask OSV about a lock file's packages."""
    command = [sys.executable, "-m", "pip_audit", "--vulnerability-service", "osv", "--format", "json", "--strict"]
    command += ["--progress-spinner", "off", "--disable-pip", "--require-hashes", "--requirement", str(lock)]
    answer = _run([*command, *(["--osv-url", osv_url] if osv_url else [])])
    try:
        packages = json.loads(answer.stdout)["dependencies"]
    except (ValueError, KeyError):
        return _unknown(f"{lock.name}: the advisories for Python (OSV) could not be asked", answer)
    known = [(package, advisory) for package in packages for advisory in package.get("vulns", ())]
    for package, advisory in known:
        fixed = ", ".join(advisory["fix_versions"]) or "no version"
        _say(f"{lock.name}: {package['name']} {package['version']}: {_names(advisory)}; fixed in {fixed}")
    if not known:
        _say(f"{lock.name}: nothing is known of {len(packages)} packages")
    return EXIT_FOUND if known else EXIT_CLEAN


def go(go_db: str | None) -> int:
    """Ask Go's vulnerability database about what is in the Collector."""
    try:
        tool, binary = build.govulncheck(), build.otelcol()
    except build.BuildError as error:
        _say(f"the Collector could not be audited: {error}")
        return EXIT_UNKNOWN
    answer = _run([str(tool), *(["-db", go_db] if go_db else []), "-mode", "binary", str(binary)])
    if answer.returncode == _GOVULNCHECK_FOUND:
        _say(f"the Collector:\n{answer.stdout.strip()}")
        return EXIT_FOUND
    if answer.returncode:
        return _unknown("the advisories for Go could not be asked", answer)
    _say("the Collector: nothing is known of its modules")
    return EXIT_CLEAN


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python3 -m collector.audit", description=__doc__.partition("\n")[0])
    parser.add_argument("--osv-url", metavar="URL", help="ask another server that speaks OSV's API")
    parser.add_argument("--go-db", metavar="URL", help="ask another copy of https://vuln.go.dev")
    parser.add_argument("locks", nargs="*", type=Path, metavar="FILE", help="only these lock files, and no Collector")
    options = parser.parse_args(argv)
    results = [python(lock, options.osv_url) for lock in options.locks or sorted(LOCKS)]
    if not options.locks:
        results.append(go(options.go_db))
    return EXIT_UNKNOWN if EXIT_UNKNOWN in results else max(results)


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_MAX, check=False)


def _unknown(what: str, answer: subprocess.CompletedProcess[str]) -> int:
    said = (answer.stderr or answer.stdout).strip().splitlines()
    _say(f"{what}, so nothing can be said: {said[-1] if said else f'exit code {answer.returncode}'}")
    return EXIT_UNKNOWN


def _names(advisory: Any) -> str:  # noqa: ANN401 - JSON
    return " ".join([advisory["id"], *advisory["aliases"]])


def _say(text: str) -> None:
    """Print it, without what could steer a terminal: it comes from elsewhere."""
    shown = "".join(each if each.isprintable() or each == "\n" else ascii(each)[1:-1] for each in text)
    sys.stdout.write(f"{shown}\n")


if __name__ == "__main__":
    sys.exit(main())
