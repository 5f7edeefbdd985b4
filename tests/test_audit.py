"""`make audit` with stand-ins for the advisory databases, and the lock files that it reads."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from collector import audit, build

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[1]
PIN = f"jinja2==2.10 --hash=sha256:{'0' * 64}\n"
ADVISORY = (
    b'{"vulns":[{"id":"PYSEC-2019-217","aliases":["CVE-2019-10906\\u001b[2J"],"summary":"a way out of the sandbox",'
    b'"affected":[{"package":{"name":"jinja2","ecosystem":"PyPI"},'
    b'"ranges":[{"type":"ECOSYSTEM","events":[{"introduced":"0"},{"fixed":"2.10.1"}]}]}]}]}'
)


@contextmanager
def osv(answer: bytes) -> Iterator[str]:
    """Stands for api.osv.dev, which cannot be reached from everywhere."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_port}/v1/query"
        finally:
            http.shutdown()
            thread.join()


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    path = tmp_path / "lock.txt"
    path.write_text(PIN)
    return path


def test_a_known_vulnerability_fails_and_is_named(lock: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with osv(ADVISORY) as url:
        assert audit.main(["--osv-url", url, str(lock)]) == audit.EXIT_FOUND
    said = capsys.readouterr().out
    assert said == "lock.txt: jinja2 2.10: PYSEC-2019-217 CVE-2019-10906\\x1b[2J; fixed in 2.10.1\n"


def test_nothing_known_is_well(lock: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with osv(b"{}") as url:
        assert audit.main(["--osv-url", url, str(lock)]) == audit.EXIT_CLEAN
    assert capsys.readouterr().out == "lock.txt: nothing is known of 1 packages\n"


@pytest.mark.parametrize("text", [PIN, "jinja2==2.10\n", "jinja2\n"], ids=["unreachable", "no-hash", "no-version"])
def test_what_cannot_be_told_is_no_clean_result(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text(text)
    assert audit.main(["--osv-url", "http://127.0.0.1:1/", str(lock)]) == audit.EXIT_UNKNOWN
    assert (
        "lock.txt: the advisories for Python (OSV) could not be asked, so nothing can be said"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("code", "result"), [(0, audit.EXIT_CLEAN), (3, audit.EXIT_FOUND), (1, audit.EXIT_UNKNOWN), (2, audit.EXIT_UNKNOWN)]
)
def test_govulnchecks_codes_are_told_apart(
    code: int, result: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "govulncheck"
    tool.write_text(f"#!/bin/sh\necho said\nexit {code}\n")
    tool.chmod(0o755)
    monkeypatch.setattr(build, "govulncheck", lambda: tool)
    monkeypatch.setattr(build, "otelcol", lambda: tool)
    assert audit.go(None) == result


# --- the lock files


@pytest.mark.parametrize("lock", audit.LOCKS, ids=lambda path: path.stem)
def test_every_package_has_a_version_and_hashes_and_nothing_names_an_index(lock: Path) -> None:
    logical = re.sub(r"\\\n\s*", "", lock.read_text())
    for entry in logical.splitlines():
        assert re.fullmatch(r"[a-z0-9-]+==\S+( ; [^#]+?)?( --hash=sha256:[0-9a-f]{64})+", entry), entry


def test_what_the_image_and_the_build_take_is_what_is_tested() -> None:
    def pins(name: str) -> set[str]:
        return set(re.findall(r"^(\S+==\S+)", (ROOT / "requirements" / name).read_text(), re.MULTILINE))

    assert pins("example.txt") | pins("build.txt") <= pins("dev.txt")


@pytest.mark.parametrize("file", ["Makefile", "examples/Dockerfile"])
def test_nothing_is_installed_without_its_hash(file: str) -> None:
    text = re.sub(r"\\\n\s*", "", (ROOT / file).read_text())
    text = text.replace("$(PIP)", re.findall(r"^PIP := (.*)$", text, re.MULTILINE)[0] if "$(PIP)" in text else "")
    steps = [step for step in re.split(r"\n|&&", text) if re.search(r"\bpip\b.* (install|wheel)\b", step)]
    steps = [step for step in steps if not step.startswith("PIP :=")]
    assert len(steps) >= 2
    for step in steps:
        assert "--require-hashes --only-binary :all:" in step or "--no-index" in step, step
    assert "--no-deps" in text or "PIP_NO_DEPS=1" in text


def test_a_package_of_another_content_is_not_installed(tmp_path: Path) -> None:
    wheel = tmp_path / "x-1-py3-none-any.whl"
    wheel.write_bytes(b"not what was pinned")
    lock = tmp_path / "lock.txt"
    lock.write_text(f"x==1 --hash=sha256:{'0' * 64}\n")
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--require-hashes", "--only-binary", ":all:"]
    command += ["--no-index", "--find-links", str(tmp_path), "--target", str(tmp_path / "site"), "-r", str(lock)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert answer.returncode != 0
    assert "DO NOT MATCH THE HASHES" in answer.stderr
