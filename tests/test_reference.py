"""Every variable is in docs/reference.md and .env.example, with its type, default and unit as the code has them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest

from collector import launch
from tron_audit_otel.config import AuditConfig
from tron_audit_otel.settings import Settings, variables
from tron_audit_otel.tool_config import ToolConfig

ROOT = Path(__file__).parents[1]
REFERENCE = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
ENV_EXAMPLE = (ROOT / ".env.example").read_text(encoding="utf-8")
COMPOSE = (ROOT / "docker-compose.yaml").read_text(encoding="utf-8")

LIBRARY = [(AuditConfig, name) for name in AuditConfig.model_fields]
COLLECTORS = launch.variables(launch.FILES)
TOOLS = [
    (ToolConfig, name)
    for name in ToolConfig.model_fields
    # What the Collector's files read, too, is in the reference with their words.
    if variables(ToolConfig)[name].names[0] not in COLLECTORS
]
DIRECTORIES = {"journal_dir"}

# Read by the tools in this repository, not by the library or the Collector.
OTHERS = {"TRON_AUDIT_OTELCOL", "COMPOSE_PROFILES"} | set(re.findall(r"\$\{(AUDIT_COMPOSE_\w+)", COMPOSE))


def rows() -> dict[str, list[str]]:
    """The cells of each row of each table, by the name of the row's first variable."""
    found = {}
    for line in REFERENCE.splitlines():
        if line.startswith("| `"):
            cells = [cell.strip() for cell in line.strip("|").split(" | ")]
            found[cells[0].split("`")[1]] = cells
    return found


def type_of(annotation: Any) -> str:
    options = [option for option in get_args(annotation) if option is not type(None)]
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{option}`" for option in options)
    if get_origin(annotation) is tuple:
        return "list" if get_args(annotation)[0] is str else "pairs"
    kind = options[0] if type(None) in get_args(annotation) else annotation
    if get_origin(kind) is Literal:
        return type_of(kind)
    if get_origin(kind) is Annotated and get_args(kind)[0] is str:  # a text that is checked, as a URL is
        kind = str
    return {"str": "text", "bool": "boolean", "int": "integer", "float": "number"}.get(kind.__name__, "file")


def default_of(value: object) -> str:
    if value in (None, ()):
        return "-"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def known() -> set[str]:
    """Each row's first variable."""
    own = {variables(model)[name].names[0] for model, name in (*LIBRARY, *TOOLS)}
    return own | COLLECTORS | OTHERS


def shown() -> dict[str, str]:
    """Each row's last variable, which the example shows, and the first, under which the reference has it."""
    own = (variables(model)[name].names for model, name in LIBRARY)
    return {name: name for name in known()} | {names[-1]: names[0] for names in own}


@pytest.mark.parametrize(("model", "name"), [*LIBRARY, *TOOLS])
def test_a_setting_of_the_library_is_in_the_reference_as_it_is(model: type[Settings], name: str) -> None:
    field, env = model.model_fields[name], variables(model)[name]
    expected = [
        ", ".join(f"`{variable}`" for variable in env.names),
        "directory" if name in DIRECTORIES else type_of(field.annotation),
        default_of(field.default),
        env.unit or "-",
        field.description,
    ]
    assert rows()[env.names[0]] == expected, f"| {' | '.join(map(str, expected))} |"


def collector_defaults() -> dict[str, str]:
    """What each variable of the Collector's files is by default; empty where the file leaves it open."""
    found: dict[str, str] = {}
    for file in launch.FILES:
        text = "\n".join(line for line in file.read_text().splitlines() if not line.lstrip().startswith("#"))
        for name, default in re.findall(r"\$\{env:(\w+)(?::-((?:[^{}]|\$\{[^{}]*\})*))?\}", text):
            assert found.setdefault(name, default) == default, f"{name} has two defaults"
    return found


@pytest.mark.parametrize("name", sorted(collector_defaults()))
def test_a_variable_of_the_collector_is_in_the_reference_with_its_default(name: str) -> None:
    default = re.sub(r"\$\{env:(\w+):-[^}]*\}", r"$\1", collector_defaults()[name])
    assert rows()[name][2].strip("`") == (default or "-")


def test_the_reference_has_no_variable_that_nothing_reads() -> None:
    assert set(rows()) == known()


def test_the_example_has_every_variable_commented_out_or_set() -> None:
    firsts = {names[0] for names in (variables(AuditConfig)[name].names for _, name in LIBRARY) if len(names) > 1}
    wanted = set(shown()) - firsts - {"OTEL_SDK_DISABLED"}  # nobody should be led to set that one
    assert set(re.findall(r"^#?([A-Z][A-Z0-9_]+)=", ENV_EXAMPLE, re.MULTILINE)) == wanted


def test_the_example_shows_the_defaults() -> None:
    for name, value in re.findall(r"^#?([A-Z][A-Z0-9_]+)=(.*)$", ENV_EXAMPLE, re.MULTILINE):
        default = rows()[shown()[name]][2].strip("`")
        # A default that is made of another variable is for the Collector to fill in: nobody else would.
        assert value == ("" if default == "-" or "$" in default else default) or name == "AUDIT_LOG_ENABLED", name


def test_the_example_shows_type_and_unit() -> None:
    found = re.findall(r"^# .*\[([^]]*)\]\n#?([A-Z][A-Z0-9_]+)=", ENV_EXAMPLE, re.MULTILINE)
    brackets = {name: text for text, name in found}
    for name in re.findall(r"^#?([A-Z][A-Z0-9_]+)=", ENV_EXAMPLE, re.MULTILINE):
        cells = rows()[shown()[name]]
        kind, unit = cells[1].replace("`", ""), cells[3]
        wanted = kind if unit in ("-", kind) else f"{kind}, {unit}"
        assert brackets[name] == wanted, name


def test_the_example_is_one_that_compose_and_the_launcher_can_read(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text(ENV_EXAMPLE)
    assert launch.read_env_file(file) == {"AUDIT_LOG_ENABLED": "true"}
    file.write_text(re.sub(r"^#([A-Z])", r"\1", ENV_EXAMPLE, flags=re.MULTILINE))
    assert len(launch.read_env_file(file)) > 40


def test_the_record_page_names_every_attribute_and_no_other() -> None:
    text = (ROOT / "docs" / "record.md").read_text(encoding="utf-8")
    cells = [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| `")]
    documented = {name for cell in cells for name in re.findall(r"`([a-z0-9_.<>]+)`", cell)} - {"event_name", "body"}
    documented -= {"timestamp", "observed_timestamp"}
    source = (ROOT / "tron_audit_otel" / "log_record.py").read_text(encoding="utf-8")
    written = set(
        re.findall(r'"((?:audit|http|url|client|network|user|user_agent|process|container|error)\.[\w.]+)"', source)
    )
    written = {name for name in written if not name.startswith(("audit.exec.stdout", "audit.exec.stderr"))} | {
        "audit.exec.stdout.text",
        "audit.exec.stderr.text",
        "http.request.header.<name>",
    }
    assert documented == written
