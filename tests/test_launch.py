from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from collector import build, launch

SPLUNK = {"SPLUNK_HEC_URL": "https://splunk:8088", "SPLUNK_HEC_TOKEN": "s3cret"}
EVERYTHING = {
    "ELASTICSEARCH_URL": "https://elasticsearch:9200",
    "ELASTICSEARCH_API_KEY": "s3cret",
    "ELASTIC_OTLP_URL": "https://elastic",
    "ELASTIC_OTLP_API_KEY": "s3cret",
    **SPLUNK,
    "DD_API_KEY": "s3cret",
    "AUDIT_SIEM_URL": "https://siem/ingest",
    "AUDIT_SIEM_TOKEN": "s3cret",
    "AUDIT_COLLECTOR_TOKEN": "s3cret",
    "AUDIT_COLLECTOR_TLS_CERT_FILE": "/certs/cert.pem",
    "AUDIT_COLLECTOR_TLS_KEY_FILE": "/certs/key.pem",
}


def names(environ: dict[str, str]) -> list[str]:
    return [file.name for file in launch.config_files(environ)]


def test_without_variables_there_is_only_the_base() -> None:
    assert launch.config_files({}) == [launch.BASE]


@pytest.mark.parametrize("siem", launch.SIEMS, ids=lambda siem: siem.name)
def test_a_siem_is_turned_on_by_its_own_variables_and_nothing_else(siem: launch.Part) -> None:
    assert names({entry[0]: "x" for entry in siem.needs}) == ["otel-collector-config.yaml", f"{siem.name}.yaml"]


@pytest.mark.parametrize("part", launch.PARTS, ids=lambda part: part.name)
def test_every_alternative_counts_as_well_as_the_first(part: launch.Part) -> None:
    assert part.file in launch.config_files({entry[-1]: "x" for entry in part.needs})


@pytest.mark.parametrize(
    ("part", "left_out"),
    [(part, entry) for part in launch.PARTS if len(part.needs) > 1 for entry in part.needs],
    ids=lambda value: value.name if isinstance(value, launch.Part) else value[0],
)
def test_variables_set_by_halves_are_an_error_that_names_the_missing_one(
    part: launch.Part, left_out: tuple[str, ...]
) -> None:
    given = {entry[0]: "s3cret" for entry in part.needs if entry != left_out}
    with pytest.raises(launch.LaunchError, match=" or ".join(left_out)) as caught:
        launch.config_files(given)
    assert "s3cret" not in str(caught.value)


def test_a_client_authority_without_a_certificate_is_an_error() -> None:
    with pytest.raises(launch.LaunchError, match="AUDIT_COLLECTOR_TLS_CERT_FILE, AUDIT_COLLECTOR_TLS_KEY_FILE"):
        launch.config_files({"AUDIT_COLLECTOR_TLS_CLIENT_CA_FILE": "ca.pem"})


def test_an_empty_variable_is_not_set() -> None:
    assert launch.config_files(dict.fromkeys(EVERYTHING, "")) == [launch.BASE]


def test_all_together_the_base_comes_first() -> None:
    assert names(EVERYTHING) == [
        "otel-collector-config.yaml",
        "auth.yaml",
        "tls.yaml",
        "elasticsearch.yaml",
        "elastic-otlp.yaml",
        "splunk.yaml",
        "datadog.yaml",
        "http.yaml",
    ]


def test_every_siem_file_is_in_the_table() -> None:
    assert {siem.file for siem in launch.SIEMS} == set((launch.HERE / "siem").glob("*.yaml"))


def test_the_image_has_the_version_that_is_built() -> None:
    version = re.search(r"^  version: (\S+)$", build.MANIFEST.read_text(), re.MULTILINE)
    assert version is not None
    assert version[1] == launch.IMAGE.partition(":")[2]


def test_the_collector_is_never_given_an_empty_text_for_a_default() -> None:
    environ = launch.collector_environ({"AUDIT_COLLECTOR_DATA": "", "EMPTY": "", "PATH": "/bin"}, [launch.BASE])
    assert environ == {"EMPTY": "", "PATH": "/bin"}


@pytest.mark.parametrize(
    ("given", "passed_on"), [("5", "5"), ("5s", "5"), ("0.5", "0.5"), ("0.5s", "0.5"), (" 7 ", "7")]
)
def test_the_timeout_may_have_its_unit(given: str, passed_on: str) -> None:
    environ = {"AUDIT_SIEM_URL": "u", "AUDIT_SIEM_TOKEN": "t", "AUDIT_SIEM_TIMEOUT": given}
    assert launch.collector_environ(environ, launch.config_files(environ))["AUDIT_SIEM_TIMEOUT"] == passed_on


@pytest.mark.parametrize("given", ["0", "0s", "-1", "5m", "500ms", "five", "5ss"])
def test_a_timeout_that_is_none_is_refused(given: str) -> None:
    environ = {"AUDIT_SIEM_URL": "u", "AUDIT_SIEM_TOKEN": "t", "AUDIT_SIEM_TIMEOUT": given}
    with pytest.raises(launch.LaunchError, match=f"AUDIT_SIEM_TIMEOUT .* not '{given}'"):
        launch.collector_environ(environ, launch.config_files(environ))


@pytest.mark.parametrize("given", ["Production", "prod-eu", 'a"b', "a b", "x" * 101])
@pytest.mark.parametrize("url", ["ELASTICSEARCH_URL", "ELASTIC_OTLP_URL"])
def test_a_namespace_that_no_data_stream_could_have_is_refused(url: str, given: str) -> None:
    environ = {url: "u", url.replace("_URL", "_API_KEY"): "t", "AUDIT_COLLECTOR_NAMESPACE": given}
    with pytest.raises(launch.LaunchError, match="AUDIT_COLLECTOR_NAMESPACE must be of small letters"):
        launch.collector_environ(environ, launch.config_files(environ))
    environ["AUDIT_COLLECTOR_NAMESPACE"] = "prod_eu.1"
    assert launch.collector_environ(environ, launch.config_files(environ)) == environ


def test_a_variable_inside_the_default_of_another_is_found() -> None:
    assert {"DD_SITE", "DD_OTLP_LOGS_URL"} <= launch.variables([launch.HERE / "siem" / "datadog.yaml"])


class TestComponents:
    @pytest.fixture(autouse=True)
    def small_collector(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(build, "components", lambda _binary: {"exporters": {"otlp_http", "file"}})

    def test_what_the_collector_lacks_is_listed_with_the_reason(self) -> None:
        assert launch.unavailable(Path("otelcol")) == [
            ("elasticsearch", f"has no exporter `elasticsearch`; the image {launch.IMAGE} has it"),
            ("splunk", f"has no exporter `splunk_hec`; the image {launch.IMAGE} has it"),
        ]

    def test_a_file_that_the_collector_cannot_run_is_refused_by_name(self) -> None:
        with pytest.raises(launch.LaunchError) as caught:
            launch.require_exporters(Path("/bin/otelcol"), launch.config_files(SPLUNK))
        assert str(caught.value) == (
            "collector/siem/splunk.yaml cannot be used: /bin/otelcol has no exporter `splunk_hec`; "
            f"the image {launch.IMAGE} has it"
        )

    def test_a_file_that_is_off_may_need_what_it_likes(self) -> None:
        launch.require_exporters(Path("otelcol"), launch.config_files({"DD_API_KEY": "k"}))


class TestEnvFile:
    def read(self, tmp_path: Path, text: str) -> dict[str, str]:
        file = tmp_path / ".env"
        file.write_text(text)
        return launch.read_env_file(file)

    def test_lines_comments_and_quotes(self, tmp_path: Path) -> None:
        text = "# a comment\n\nDD_API_KEY=k#1\nDD_SITE = datadoghq.eu\n"
        with pytest.raises(launch.LaunchError, match="line 4: must be NAME=value"):
            self.read(tmp_path, text)
        text = "# a comment\n\nA=k#1\n  B='two words'\nC=\"x=y\"\nexport D=4\nE=\n"
        assert self.read(tmp_path, text) == {"A": "k#1", "B": "two words", "C": "x=y", "D": "4", "E": ""}

    def test_a_wrong_line_is_not_shown_for_it_may_hold_a_secret(self, tmp_path: Path) -> None:
        with pytest.raises(launch.LaunchError) as caught:
            self.read(tmp_path, "s3cret\n")
        assert "s3cret" not in str(caught.value)

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(launch.LaunchError, match=r"nowhere/\.env: No such file"):
            launch.read_env_file(tmp_path / "nowhere" / ".env")


class TestMain:
    def test_print_shows_the_arguments_and_no_secret(self, capsys: pytest.CaptureFixture[str]) -> None:
        files = {name: __file__ for name in EVERYTHING if name.endswith("_FILE")}
        assert launch.main(["--print", "--", "--set=a=b"], EVERYTHING | files) == 0
        printed = capsys.readouterr().out
        assert printed.splitlines() == [
            "--feature-gates=confmap.enableMergeAppendOption",
            *(f"--config={file}" for file in launch.config_files(EVERYTHING)),
            "--set=a=b",
        ]
        assert "s3cret" not in printed

    def test_the_environment_wins_over_the_file(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file = tmp_path / ".env"
        file.write_text("DD_API_KEY=from-file\nSPLUNK_HEC_URL=u\nSPLUNK_HEC_TOKEN=t\n")
        assert launch.main(["--print", "--env-file", str(file)], {"DD_API_KEY": ""}) == 0
        printed = capsys.readouterr().out
        assert "splunk.yaml" in printed
        assert "datadog.yaml" not in printed

    def test_an_error_is_one_line_and_exit_code_2(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert launch.main(["--print"], {"SPLUNK_HEC_URL": "u"}) == 2
        assert capsys.readouterr().err == (
            "collector.launch: SPLUNK_HEC_URL is set, so SPLUNK_HEC_TOKEN or SPLUNK_HEC_TOKEN_FILE must be set too "
            "(collector/siem/splunk.yaml)\n"
        )

    def test_a_data_directory_that_cannot_be_is_named_with_its_variable(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "file").touch()
        directory = tmp_path / "file" / "data"
        assert launch.main(["--binary", "otelcol"], {"AUDIT_COLLECTOR_DATA": str(directory)}) == 2
        assert f"AUDIT_COLLECTOR_DATA: {directory} cannot be written" in capsys.readouterr().err


def test_a_full_disk_stops_the_start_which_would_lose_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=63 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert launch.main(["--binary", "otelcol"], {"AUDIT_COLLECTOR_DATA": str(tmp_path)}) == 2
    assert f"AUDIT_COLLECTOR_DATA: {tmp_path} has 63 MiB free, and 64 are needed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "problem"), [(None, "cannot be read: No such file or directory"), (b"\n", "is empty")]
)
def test_a_secret_file_that_holds_nothing_stops_the_start(
    content: bytes | None, problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    environ = {
        "AUDIT_COLLECTOR_DATA": str(tmp_path),
        "AUDIT_SIEM_URL": "http://127.0.0.1:1",
        "AUDIT_SIEM_TOKEN_FILE": str(file),
    }
    assert launch.main([], environ) == 2
    assert capsys.readouterr().err == f"collector.launch: AUDIT_SIEM_TOKEN_FILE: {file} {problem}\n"


def test_a_misspelt_variable_stops_the_start(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main(["--print"], {"AUDIT_COLLECTOR_MEMORY": "5"}) == 2
    assert "AUDIT_COLLECTOR_MEMORY is read by no configuration file; did you mean AUDIT_COLLECTOR_MEMORY_MIB?" in (
        capsys.readouterr().err
    )


def test_a_binary_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main(["--binary", "/nope"], {"AUDIT_COLLECTOR_DATA": str(tmp_path)}) == 2
    assert capsys.readouterr().err == "collector.launch: --binary /nope cannot be run\n"


class TestPrivate:
    @pytest.fixture
    def data(self, tmp_path: Path) -> Path:
        (tmp_path / "data" / "queue" / "splunk").mkdir(parents=True)
        (tmp_path / "data" / "archive").mkdir()
        for path in ("", "archive", "queue", "queue/splunk"):
            (tmp_path / "data" / path).chmod(0o700)
        return tmp_path / "data"

    def started(self, data: Path) -> int:
        return launch.main(["--binary", "/nope"], {"AUDIT_COLLECTOR_DATA": str(data)})

    def test_what_only_we_can_reach_is_taken(self, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
        data.chmod(0o755)
        assert self.started(data) == 2
        assert capsys.readouterr().err == "collector.launch: --binary /nope cannot be run\n"

    @pytest.mark.parametrize("name", ["archive", "queue", "queue/splunk"])
    @pytest.mark.parametrize("bits", [0o755, 0o770, 0o701])
    def test_what_others_can_reach_is_refused(
        self, bits: int, name: str, data: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (data / name).chmod(bits)
        assert self.started(data) == 2
        said = f"{data / name} has mode {bits:04o}, so that others can reach what is in it: chmod go= {data / name}"
        assert f"AUDIT_COLLECTOR_DATA: {said}" in capsys.readouterr().err

    def test_so_is_a_place_where_others_can_put_another(self, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
        data.chmod(0o775)
        assert self.started(data) == 2
        assert (
            f"{data} has mode 0775, so that others can reach what is in it: chmod go-w {data}"
            in capsys.readouterr().err
        )

    @pytest.mark.parametrize("name", ["archive", "queue/splunk"])
    def test_so_is_a_link(self, name: str, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (data / name).rename(data / "elsewhere")
        (data / name).symlink_to(data / "elsewhere")
        assert self.started(data) == 2
        assert f"{data / name} is a symbolic link, and none is followed" in capsys.readouterr().err

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
    def test_so_is_what_belongs_to_somebody_else(self, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
        os.chown(data / "archive", 65534, -1)
        assert self.started(data) == 2
        assert (
            f"{data / 'archive'} belongs to user 65534, not to 0: chown -R 0 {data / 'archive'}"
            in capsys.readouterr().err
        )
