"""Holds what docker-compose.yaml promises; nothing is started here. It was started with Docker and with podman."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any, Final

import pytest
from ruamel.yaml import YAML

from collector import launch
from examples.platform_api.app import create_app
from tron_audit_otel.config import AuditConfig
from tron_audit_otel.settings import variables
from tron_audit_otel.tool_config import ToolConfig

ROOT: Final = Path(__file__).resolve().parents[1]
COMPOSE: Final[dict[str, Any]] = YAML(typ="safe", pure=True).load((ROOT / "docker-compose.yaml").read_text("utf-8"))
SERVICES: Final[dict[str, dict[str, Any]]] = COMPOSE["services"]
DOCKERFILE: Final = (ROOT / "examples/Dockerfile").read_text("utf-8")
CONFIG_DIR: Final = "/etc/tron-audit"
# Elastic's images write beside their programs: their keystore, and what they optimize.
WRITABLE_ROOT: Final = {"elasticsearch", "kibana"}
PARTS: Final = [
    pytest.param(part.file, dict.fromkeys(names, "given"), id="+".join(names))
    for part in launch.PARTS
    for names in itertools.product(*part.needs)
]

every_service = pytest.mark.parametrize("name", SERVICES)


def interpolate(text: str, environ: dict[str, str]) -> str:
    """What compose makes of `${NAME:+text}`, the only form that the Collector's command uses."""
    return re.sub(r"\$\{(\w+):\+([^}]*)\}", lambda match: match[2] if environ.get(match[1]) else "", text)


def collector_command(environ: dict[str, str]) -> list[str]:
    return list(dict.fromkeys(interpolate(SERVICES["collector"]["command"], environ).split()))


def launch_command(environ: dict[str, str]) -> list[str]:
    return [flag.replace(str(ROOT), CONFIG_DIR) for flag in launch.flags(launch.config_files(environ))]


def mounts(service: str) -> dict[str, str]:
    """Source by target."""
    parts = [volume.split(":") for volume in SERVICES[service].get("volumes", [])]
    return {target: source for source, target, *_ in parts}


def mebibytes(size: str) -> int:
    return int(size[:-1]) * {"m": 1, "g": 1024}[size[-1]]


def test_the_collector_is_of_the_version_that_is_built_and_tested_here() -> None:
    built = YAML(typ="safe", pure=True).load((ROOT / "collector/builder-config.yaml").read_text("utf-8"))
    image = SERVICES["collector"]["image"]
    assert image == f"otel/opentelemetry-collector-contrib:{built['dist']['version']}"
    assert image == launch.IMAGE


@every_service
def test_no_image_moves(name: str) -> None:
    image = SERVICES[name]["image"]
    if image != SERVICES["api"]["image"]:  # which is built here
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+", image), "a whole version"


@every_service
def test_no_service_has_more_rights_than_it_needs(name: str) -> None:
    service = SERVICES[name]
    assert int(service["user"].split(":")[0]) > 0
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges"]
    assert service["read_only"] is (name not in WRITABLE_ROOT)
    assert not {"cap_add", "privileged", "devices", "network_mode", "pid", "ipc", "userns_mode"} & service.keys()
    assert not [source for source in mounts(name).values() if "docker.sock" in source]


@every_service
def test_no_service_can_take_the_machine_down(name: str) -> None:
    service = SERVICES[name]
    assert mebibytes(service["mem_limit"]) <= 2048
    assert service["pids_limit"] <= 4096


@every_service
def test_every_service_is_restarted_and_is_given_time_to_end(name: str) -> None:
    service = SERVICES[name]
    assert service["restart"] == ("no" if name == "tools" else "unless-stopped")
    assert "stop_grace_period" in service or service["stop_signal"] == "SIGKILL"


def test_only_the_api_is_published() -> None:
    assert [name for name, service in SERVICES.items() if "ports" in service and "profiles" not in service] == ["api"]


@every_service
def test_nothing_is_published_beyond_loopback(name: str) -> None:
    assert all(re.fullmatch(r"127\.0\.0\.1:\$\{\w+:-\d+\}:\d+", port) for port in SERVICES[name].get("ports", []))


def test_the_api_reaches_no_siem() -> None:
    stores = [
        service for service in SERVICES.values() if {"elasticsearch", "victorialogs"} & {*service.get("profiles", ())}
    ]
    siems = {network for service in stores for network in service["networks"]}
    assert not siems & set(SERVICES["api"]["networks"])
    assert siems <= set(SERVICES["collector"]["networks"])
    # Without it podman routes from one network to the other.
    assert all(network["driver_opts"] == {"isolate": "true"} for network in COMPOSE["networks"].values())


def test_the_profiles_add_the_local_siems_and_nothing_runs_without_them() -> None:
    by_profile: dict[str, set[str]] = {}
    for name, service in SERVICES.items():
        for profile in service.get("profiles", [""]):
            by_profile.setdefault(profile, set()).add(name)
    assert by_profile == {
        "": {"api", "collector", "collector-health"},
        "elasticsearch": {"elasticsearch", "kibana"},
        "tools": {"tools"},
        "victorialogs": {"victorialogs"},
    }
    versions = {SERVICES[name]["image"].rpartition(":")[2] for name in by_profile["elasticsearch"]}
    assert len(versions) == 1


def test_the_api_starts_without_a_collector() -> None:
    assert "depends_on" not in SERVICES["api"]


@pytest.mark.parametrize(("file", "environ"), PARTS)
def test_setting_its_variables_is_all_that_turns_a_file_on(file: Path, environ: dict[str, str]) -> None:
    command = collector_command(environ)
    assert command == launch_command(environ)
    assert command[-1] == f"--config={CONFIG_DIR}/{file.relative_to(ROOT)}"


def test_nothing_is_on_unless_asked_for_and_everything_can_be_on() -> None:
    everything = {name: "given" for part in launch.PARTS for need in part.needs for name in need}
    assert collector_command({}) == launch_command({}) == launch.flags([Path(CONFIG_DIR) / launch.BASE.name])
    assert collector_command(everything) == launch_command(everything)
    assert len(collector_command(everything)) == 1 + len(launch.FILES)


def test_no_value_of_a_variable_stands_on_a_command_line() -> None:
    assert "${" not in interpolate(SERVICES["collector"]["command"], {})
    others = [service["command"] for service in SERVICES.values() if isinstance(service.get("command"), list)]
    assert not re.findall(r"(?<!\$)\$\{?\w", json.dumps(others))


def test_the_collector_is_given_every_variable_that_its_files_read_and_no_other() -> None:
    assert set(SERVICES["collector"]["environment"]) == launch.variables(launch.FILES)


def test_the_api_is_given_every_variable_of_the_library() -> None:
    names = {env.names[-1] for env in variables(AuditConfig).values()}
    given = set(SERVICES["api"]["environment"])
    assert given <= names
    # The protocol is fixed and the scheme says whether there is TLS; the SDK must not be off.
    assert names - given == {"OTEL_EXPORTER_OTLP_INSECURE", "OTEL_SDK_DISABLED"}


def test_the_tools_are_given_every_variable_that_they_read_and_what_an_application_has_to_reach_the_collector() -> None:
    given, api = SERVICES["tools"]["environment"], SERVICES["api"]["environment"]
    names = {name for env in variables(ToolConfig).values() for name in env.names} - {"ELASTICSEARCH_URL"}
    assert names <= set(given)
    for name in given.keys() - names - {"AUDIT_LOG_JOURNAL", "XDG_STATE_HOME"}:
        assert given[name] == api[name]


def test_the_tools_see_the_archive_and_change_none_of_it() -> None:
    assert "archive:/var/lib/tron-audit/archive:ro" in SERVICES["tools"]["volumes"]
    assert mounts("tools")[SERVICES["tools"]["environment"]["XDG_STATE_HOME"]] == "looks"


def test_no_siem_secret_reaches_the_api() -> None:
    api = SERVICES["api"]
    siem_variables = launch.variables([part.file for part in launch.SIEMS])
    assert not siem_variables & set(re.findall(r"\$\{(\w+)", json.dumps(api)))
    assert not siem_variables & set(api["environment"])


@pytest.mark.parametrize("name", ["api", "collector", "tools"])
def test_a_file_is_mounted_where_its_variable_says(name: str) -> None:
    service = SERVICES[name]
    files = {variable: value for variable, value in service["environment"].items() if "/run/secrets/" in str(value)}
    expected = {}
    for variable, value in files.items():
        match = re.fullmatch(r"\$\{(\w+):\+/run/secrets/(\w+)\}", value)
        assert match, value
        assert match[1] == variable
        expected[match[2]] = {"file": f"${{{variable}:-/dev/null}}"}
    assert {secret: COMPOSE["secrets"][secret] for secret in service["secrets"]} == expected
    named_file = {variable for variable in service["environment"] if re.search(r"_FILE$|CERTIFICATE$|_KEY$", variable)}
    literal = {
        "AUDIT_LOG_POLICY_FILE",
        *(variable for variable in named_file if re.search(r"(API|APP|HASH)_KEY$", variable)),
    }
    assert named_file - literal == set(files)


def test_the_health_container_looks_at_what_the_collector_gets() -> None:
    collector, health = SERVICES["collector"], SERVICES["collector-health"]
    assert "python -m collector.launch --print\n" in health["command"][-1]
    assert health["working_dir"] == CONFIG_DIR
    assert health["environment"] == collector["environment"]
    assert health["secrets"] == collector["secrets"]
    assert mounts("collector").items() <= mounts("collector-health").items()


def test_archive_and_queue_are_kept_apart_in_volumes_that_the_collector_can_write() -> None:
    data = SERVICES["collector"]["environment"]["AUDIT_COLLECTOR_DATA"]
    assert mounts("collector")[f"{data}/archive"] == "archive"
    assert mounts("collector")[f"{data}/queue"] == "queue"
    assert "collector-health" in SERVICES["collector"]["depends_on"]
    assert "collector-health" in SERVICES["victorialogs"]["depends_on"]
    # Docker gives a fresh volume the owner of the place in the image of the container that mounts it first.
    owned = re.search(r"install -d -m 0700 -o (\d+) -g (\d+) (.*)", DOCKERFILE.replace("\\\n", ""))
    assert owned
    named = {
        target
        for name in ("api", "collector-health")
        for target, source in mounts(name).items()
        if source in COMPOSE["volumes"]
    }
    assert set(owned[3].split()) == named
    for name in ("api", "collector", "collector-health", "tools", "victorialogs"):
        assert SERVICES[name]["user"] == f"{owned[1]}:{owned[2]}"


def test_the_journal_outlives_the_container() -> None:
    directory = SERVICES["api"]["environment"]["AUDIT_LOG_JOURNAL_DIR"]
    assert mounts("api")[directory] == "journal"


def test_every_volume_is_declared_and_every_file_of_ours_is_read_only() -> None:
    used = set()
    for name in SERVICES:
        for volume in SERVICES[name].get("volumes", []):
            source, _, *options = volume.split(":")
            if source.startswith("./"):
                assert (ROOT / source).exists()
                assert options == ["ro,z"]
            else:
                used.add(source)
    assert used == set(COMPOSE["volumes"])


def test_those_who_talk_to_the_collector_use_the_ports_that_it_listens_on() -> None:
    listens = SERVICES["collector"]["environment"]
    endpoint = SERVICES["api"]["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"]
    assert interpolate(endpoint, {}) == "http://collector:4318"
    assert interpolate(endpoint, {"AUDIT_COLLECTOR_TLS_CERT_FILE": "cert.pem"}) == "https://collector:4318"
    assert listens["AUDIT_COLLECTOR_HTTP_ENDPOINT"] == "0.0.0.0:4318"
    assert listens["AUDIT_COLLECTOR_HEALTH_ENDPOINT"] == "0.0.0.0:13133"
    assert listens["AUDIT_COLLECTOR_METRICS_HOST"] == "0.0.0.0"  # noqa: S104 - in a container
    assert SERVICES["tools"]["environment"]["AUDIT_COLLECTOR_METRICS_HOST"] == "collector"
    assert SERVICES["collector-health"]["healthcheck"]["test"][-1] == "http://collector:13133/"


def test_the_collector_refuses_records_before_its_memory_runs_out() -> None:
    collector = SERVICES["collector"]
    limiter = int(collector["environment"]["AUDIT_COLLECTOR_MEMORY_MIB"])
    assert mebibytes(collector["mem_limit"]) == 1.5 * limiter


def test_the_health_check_of_the_api_asks_for_a_page_that_there_is() -> None:
    url = SERVICES["api"]["healthcheck"]["test"][-1]
    port = json.loads(re.findall(r"^CMD (.*)$", DOCKERFILE, re.MULTILINE)[0])[5]
    path = url.removeprefix(f"http://127.0.0.1:{port}")
    assert path in {getattr(route, "path", None) for route in create_app().routes}
    assert SERVICES["api"]["ports"][0].endswith(f":{port}")


def test_the_build_context_holds_what_is_copied_and_nothing_else() -> None:
    copied = {
        source
        for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE)
        for source in line.split()[:-1]
    }
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == copied
    assert all((ROOT / source).exists() for source in copied)


def test_every_variable_stands_in_the_env_example_and_none_is_set_to_nothing() -> None:
    example = (ROOT / ".env.example").read_text("utf-8")
    known = set(re.findall(r"^#? ?([A-Z][A-Z0-9_]*)=", example, re.MULTILINE))
    used = set(re.findall(r"\$\{(\w+)", (ROOT / "docker-compose.yaml").read_text("utf-8")))
    passed = {
        name for service in SERVICES.values() for name, value in service.get("environment", {}).items() if value is None
    }
    assert used | passed <= known
    # A variable that is set to nothing reaches the Collector as nothing, and its default is not taken.
    assert not re.findall(r"^[A-Z][A-Z0-9_]*=\s*$", example, re.MULTILINE)
