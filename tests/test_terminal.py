"""Whatever somebody else chose, `tron-audit` prints it so that it is text, and one line stays one line."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given

from tests.hostile import TEXTS, fuzzed, text
from tests.journals import leave, note, receiver, request, run
from tests.metrics_fakes import says, server
from tron_audit_otel import cli, cli_journal, cli_text
from tron_audit_otel.dead_letter import DeadLetters
from tron_audit_otel.disk_journal import DiskJournal

if TYPE_CHECKING:
    from pathlib import Path

HOSTILE = {name: each for name, each in TEXTS.items() if len(each) < 1_000 and not each.isprintable()}
each_text = pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE)
each_form = pytest.mark.parametrize("form", [(), ("--json",)], ids=["lines", "json"])
FINAL = "\x1b[2J\x9b1m\r\u202e\u2028\x7f"


def is_safe(printed: str) -> bool:
    printed.encode("utf-8")
    return all(line.isprintable() for line in printed.split("\n"))


@given(text)
@fuzzed
def test_any_text_becomes_one_line_and_stays_as_it_is_then(some: str) -> None:
    once = cli_text.printable(some)
    assert is_safe(once)
    assert "\n" not in once
    assert cli_text.printable(once) == once


@each_text
@each_form
@pytest.mark.parametrize(
    "command",
    [
        "status",
        "journal list",
        "journal dead-letters",
        "journal dead-letters --retry",
        "journal dead-letters --show r-1",
    ],
)
def test_what_a_record_a_note_or_a_receiver_says_is_text(
    command: str, form: tuple[str, ...], hostile: str, tmp_path: Path, capsys: Any
) -> None:
    root = tmp_path / "journal"
    sendable = hostile.encode("utf-8", "replace").decode()
    DeadLetters(root / "dead-letter").put("r-1", request("r-1", sendable), reason=hostile, sentence=hostile)
    DeadLetters(root / "dead-letter").put(hostile, request("r-2"), reason=hostile, sentence=hostile)
    fields = dict.fromkeys(("service", "endpoint", "reason", "blocked"), sendable)
    journal = DiskJournal.create(root, bytes_max=1 << 20, fsync=False)
    journal.note(note(**fields, shipping="parked", dropped={sendable: 1}))
    with receiver() as collector:
        _, out, err = run(capsys, [*command.split(), *form], root, OTEL_EXPORTER_OTLP_LOGS_ENDPOINT=collector.url)
    journal.close()
    assert out
    assert is_safe(out)
    assert is_safe(err)
    if form:
        json.loads(out)


@each_form
@pytest.mark.parametrize(
    "command",
    [
        "check",
        "status",
        "journal list",
        "journal dead-letters",
        "journal ship",
        "replay --to x --since 1h",
        "reconcile --siem datadog --since 1h",
    ],
)
@pytest.mark.parametrize(
    "variable",
    [
        "AUDIT_LOG_JOURNAL_DIR",
        "AUDIT_LOG_FSYNC",
        "OTEL_SERVICE_NAME",
        "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT",
        "AUDIT_LOG_POLICY_FILE",
        "AUDIT_COLLECTOR_DATA",
        "AUDIT_COLLECTOR_METRICS_HOST",
        "DD_API_URL",
        "DD_API_KEY_FILE",
    ],
)
def test_what_a_setting_or_a_path_says_is_text(
    variable: str, command: str, form: tuple[str, ...], tmp_path: Path, capsys: Any
) -> None:
    value = f"{tmp_path}/{FINAL}" if variable.endswith(("_DIR", "_FILE", "_DATA")) else FINAL
    environ = {"AUDIT_COLLECTOR_METRICS_PORT": "1", "DD_API_KEY": "k", "DD_APP_KEY": "k", variable: value}
    _, out, err = run(capsys, [*command.split(), *form], tmp_path / "journal", **environ)
    assert is_safe(out)
    assert is_safe(err)


@each_form
@pytest.mark.parametrize(
    "arguments",
    [
        ["status", "--collector", FINAL],
        ["status", FINAL],
        [FINAL],
        ["replay", "--to", FINAL, "--since", FINAL],
        ["journal", "ship", "--seconds", FINAL],
        ["journal", "dead-letters", "--show", FINAL],
        ["reconcile", "--siem", FINAL, "--since", "1h"],
    ],
    ids=["value", "too-many", "command", "time", "number", "id", "name"],
)
def test_arguments_are_repeated_as_text(
    arguments: list[str], form: tuple[str, ...], tmp_path: Path, capsys: Any
) -> None:
    try:
        cli.main([*arguments, *form], {"AUDIT_LOG_JOURNAL_DIR": str(tmp_path)})
    except SystemExit as ended:
        assert ended.code == 2  # noqa: PT017 - argparse ends the program, the commands do not
    out, err = capsys.readouterr()
    assert out + err
    assert is_safe(out)
    assert is_safe(err)


@each_form
def test_what_a_collector_says_is_text(form: tuple[str, ...], tmp_path: Path, capsys: Any) -> None:
    name = FINAL.replace("\r", "").replace("\u2028", "")
    page = f'# TYPE otelcol_exporter_queue_size gauge\notelcol_exporter_queue_size{{exporter="otlp_http/{name}"}} 1\n'
    for body in (page, FINAL, f"{FINAL} 1\n"):
        with server(says(body.encode())) as url:
            _, out, err = run(capsys, ["status", "--collector", url, *form], tmp_path / "journal")
        assert is_safe(out)
        assert is_safe(err)


def test_what_a_library_logs_meanwhile_is_text(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def logs(*_: object) -> cli_text.Answer:
        logging.getLogger("urllib3.connection").warning("Failed to parse headers: %s", FINAL)
        return cli_text.Answer(0, {}, [])

    monkeypatch.setattr(cli_journal, "listed", logs)
    _, _, err = run(capsys, ["journal", "list"], tmp_path)
    assert err.startswith("tron-audit: Failed to parse headers: \\x1b[2J\\x9b1m\\r\\u202e\\u2028\\x7f\n")


def test_names_of_files_are_text(tmp_path: Path, capsys: Any) -> None:
    root = tmp_path / FINAL
    leave(root, ["r-1"])
    for command in ("status", "journal list", "journal dead-letters"):
        for form in ((), ("--json",)):
            code, out, err = run(capsys, [*command.split(), *form], root)
            assert code in (0, 1)
            assert is_safe(out + err)


@pytest.mark.parametrize(
    "arguments", [["status", "x\ntron-audit: all is well"], ["status", "--x\ntron-audit: all is well"]]
)
def test_a_wrong_argument_is_told_in_one_line(arguments: list[str], capsys: Any) -> None:
    with pytest.raises(SystemExit):
        cli.main(arguments, {})
    assert "\ntron-audit: all" not in capsys.readouterr().err


def test_names_that_a_collector_gives_are_told_in_one_line(tmp_path: Path, capsys: Any) -> None:
    """A label of Prometheus may have a line break, and an error of ours several lines."""
    page = 'otelcol_process_uptime 5\notelcol_exporter_queue_size{exporter="x\\ntron-audit: All was sent"} 0\n'
    with server(says(page.encode())) as url:
        arguments = ["replay", "--to", "splunk", "--since", "1h", "--archive", str(tmp_path), "--collector", url]
        _, _, err = run(capsys, arguments, tmp_path / "journal")
    assert "those it has: x\\ntron-audit" in err
