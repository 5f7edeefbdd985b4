"""The library's modules have ranks, and each imports only from lower ones: what it builds on can be read before it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import tron_audit_otel

RANKS = (
    {"errors", "messages", "networks", "detect_blocks", "detect_calls"}
    | {"detect_tokens", "detect_values", "detect_urls"},
    {"settings", "forwarded", "detect_labels", "detect_tables", "detect_commands", "detect_headers"},
    {"config", "tool_config", "event", "ledger", "frames", "commitment", "detect"},
    {"redact", "disk", "otlp_json", "collector_metrics"},
    {"bounds", "headers", "source_ip", "resource", "run", "answer", "stream_dir"},
    {"context", "policy", "log_record", "route", "journal_dir", "otlp_http", "otlp_grpc"},
    {"policy_file", "seen", "encoder", "journal", "dead_letter", "transport", "archive"},
    {"exchange", "disk_journal", "batch", "receiver"} | {"archive_tail", "siem_looks", "cli_time", "search_http"},
    {"http_exchange", "websocket_exchange", "shipper", "replay"}
    | {"search_victorialogs", "search_elasticsearch", "search_splunk", "search_datadog"},
    {"held_exchange", "outbox", "search"},
    {"middleware", "exporter", "metrics", "reconcile"},
    {"stream"},
    {"pipeline"},
    {"instrumentation"},
    {"testing", "cli_text", "cli_stop"},
    {"cli_processes", "cli_siems", "cli_queue", "cli_source"},
    {"cli_status", "cli_journal", "cli_ship", "cli_replay", "cli_mask"},
    {"cli_reconcile"},
    {"cli"},
    {"__init__"},
)
RANK = {module: rank for rank, modules in enumerate(RANKS) for module in modules}

PACKAGE = "tron_audit_otel"
SOURCES = {path.stem: path for path in Path(tron_audit_otel.__file__).parent.rglob("*.py")}

SDK_LOGS = "opentelemetry.sdk._logs"
MAY_RUN_SDK_LOGS = {"exporter", "stream", "testing"}
MAY_NAME_SDK_LOGS = MAY_RUN_SDK_LOGS | {"instrumentation", "pipeline"}
"""`instrument()` takes an exporter, and says of which type."""


def parse(module: str) -> ast.Module:
    return ast.parse(SOURCES[module].read_text(encoding="utf-8"))


def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imported(tree: ast.Module, *, for_types: bool = True) -> set[str]:
    """Every name that is imported, wherever in a module, with its package: `a.b` of `from a import b`."""
    names: set[str] = set()
    left: list[ast.AST] = [tree]
    while left:
        node = left.pop()
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        if for_types or not is_for_types(node):
            left.extend(ast.iter_child_nodes(node))
    return names


def own_modules(names: set[str]) -> set[str]:
    """The modules of the library among imported names; the package itself is its `__init__`."""
    parts = [name.split(".") for name in names if name.split(".")[0] == PACKAGE]
    return {path[1] if len(path) > 1 and path[1] in RANK else "__init__" for path in parts}


def test_every_module_has_a_rank_and_every_rank_its_modules() -> None:
    assert set(SOURCES) == set(RANK)
    assert sum(map(len, RANKS)) == len(RANK), "a module has two ranks"


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_a_module_imports_only_from_lower_ranks(module: str) -> None:
    too_high = {other for other in own_modules(imported(parse(module))) if RANK[other] >= RANK[module]}
    assert not too_high


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_the_sdks_unstable_part_is_kept_to_the_modules_at_the_seam(module: str) -> None:
    def uses_it(names: set[str]) -> bool:
        return any(f"{name}.".startswith(f"{SDK_LOGS}.") for name in names)

    tree = parse(module)
    assert uses_it(imported(tree, for_types=False)) == (module in MAY_RUN_SDK_LOGS)
    assert uses_it(imported(tree)) == (module in MAY_NAME_SDK_LOGS)


@pytest.mark.parametrize("module", sorted(set(SOURCES) - {"settings"}))
def test_the_environment_is_read_in_one_place(module: str) -> None:
    tree = parse(module)
    environment = {"environ", "environb", "getenv", "getenvb"}
    assert not {f"os.{name}" for name in environment} & imported(tree)
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr in environment]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        pytest.param("from tron_audit_otel.cli import main", {"cli"}, id="from-a-module"),
        pytest.param("from tron_audit_otel import cli as x", {"cli"}, id="a-module-by-another-name"),
        pytest.param("from tron_audit_otel import instrument", {"__init__"}, id="a-function-of-the-package"),
        pytest.param("import tron_audit_otel", {"__init__"}, id="the-package"),
        pytest.param("import tron_audit_otel.cli", {"cli"}, id="a-module-by-its-path"),
        pytest.param("def f():\n    from tron_audit_otel.cli import main", {"cli"}, id="within-a-function"),
        pytest.param("if TYPE_CHECKING:\n    from tron_audit_otel.cli import main", {"cli"}, id="for-types"),
        pytest.param("import os.path", set(), id="another-package"),
    ],
)
def test_no_way_to_import_gets_past_this_test(source: str, expected: set[str]) -> None:
    assert own_modules(imported(ast.parse(source))) == expected


def test_what_is_imported_for_types_is_told_apart() -> None:
    assert imported(ast.parse("if TYPE_CHECKING:\n    import a\nimport b"), for_types=False) == {"b"}
