from __future__ import annotations

import json
import os
import runpy
from typing import TYPE_CHECKING, Any

import pytest

from tron_audit_otel import cli
from tron_audit_otel.config import AuditConfig
from tron_audit_otel.settings import variables

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SECRET = "s3cret"  # noqa: S105 - the word that must not be found
POLICY = "rules:\n- name: login\n- name: probe\n  level: none\n"


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets the process's own environment, which a command-line tool reads."""

    def only(**environ: str) -> None:
        for env in variables(AuditConfig).values():
            for name in env.names:
                monkeypatch.delenv(name, raising=False)
        for name, value in environ.items():
            monkeypatch.setenv(name, value)

    only()
    return only


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY, encoding="utf-8")
    return path


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(arguments)
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_check_says_that_audit_is_off(environment: Callable[..., None], printed: Callable[..., Any]) -> None:
    environment()
    code, out, err = printed("check")
    assert (code, err) == (0, "")
    assert out.endswith("\nAudit is off: AUDIT_LOG_ENABLED is not true.\n")


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"AUDIT_LOG_POLICY_FILE": "/none.yaml"}, "AUDIT_LOG_POLICY_FILE must be an existing file, not '/none.yaml'"),
        (
            {"AUDIT_LOG_ENABLE": "true"},
            "AUDIT_LOG_ENABLE is not a setting of tron_audit_otel; did you mean AUDIT_LOG_ENABLED?",
        ),
    ],
    ids=["setting", "switch"],
)
def test_a_mistake_is_found_although_audit_is_off(
    environ: dict[str, str], message: str, environment: Callable[..., None], printed: Callable[..., Any]
) -> None:
    environment(**environ)
    assert printed("check") == (2, "", f"tron-audit: {message}\n")


def test_check_prints_what_is_in_force(
    environment: Callable[..., None], printed: Callable[..., Any], policy: Path
) -> None:
    environment(
        AUDIT_LOG_ENABLED="true",
        AUDIT_LOG_POLICY_FILE=str(policy),
        OTEL_EXPORTER_OTLP_ENDPOINT="http://c:1",
        OTEL_RESOURCE_ATTRIBUTES="a=b",
    )
    code, out, err = printed("check")
    settings, _, end = out.partition("\n\n")
    assert (code, err) == (0, "")
    shown = dict(line.split(maxsplit=1) for line in settings.splitlines())
    assert set(shown) == {env.names[-1] for env in variables(AuditConfig).values()}
    assert shown["AUDIT_LOG_ENABLED"] == "true"
    assert shown["AUDIT_LOG_POLICY_FILE"] == str(policy)
    assert shown["OTEL_SERVICE_NAME"] == "-  (default)"
    assert shown["OTEL_RESOURCE_ATTRIBUTES"] == "a=b"
    assert shown["OTEL_EXPORTER_OTLP_HEADERS"] == "-  (default)"
    assert shown["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://c:1/v1/logs"
    journal = shown["AUDIT_LOG_JOURNAL_DIR"].removesuffix("  (default)")
    assert journal.endswith("tron-audit-otel/default")
    assert end == (
        "Policy: login, probe, then the default rules\n"
        "Rule 'probe' leaves out every request that no rule before it matches.\n"
        f"Records go to {journal}, and from there to http://c:1/v1/logs\n"
    )


def test_check_names_the_variable_that_a_setting_comes_from(
    environment: Callable[..., None], printed: Callable[..., Any]
) -> None:
    environment(OTEL_EXPORTER_OTLP_LOGS_TIMEOUT="3", OTEL_EXPORTER_OTLP_TIMEOUT="5")
    assert "OTEL_EXPORTER_OTLP_LOGS_TIMEOUT" in printed("check")[1]


def test_check_without_a_policy_says_that_the_default_rules_hold(
    environment: Callable[..., None], printed: Callable[..., Any]
) -> None:
    environment(AUDIT_LOG_ENABLED="true")
    assert "\nPolicy: only the default rules\n" in printed("check")[1]


def test_check_does_not_promise_default_rules_that_are_turned_off(
    environment: Callable[..., None], printed: Callable[..., Any], policy: Path
) -> None:
    policy.write_text(POLICY + "default_rules: false\n", encoding="utf-8")
    environment(AUDIT_LOG_ENABLED="true", AUDIT_LOG_POLICY_FILE=str(policy))
    assert "\nPolicy: login, probe\n" in printed("check")[1]


def test_check_prints_one_json_object(
    environment: Callable[..., None], printed: Callable[..., Any], policy: Path
) -> None:
    environment(AUDIT_LOG_ENABLED="true", AUDIT_LOG_POLICY_FILE=str(policy))
    code, out, err = printed("check", "--json")
    assert (code, err) == (0, "")
    answer = json.loads(out)
    assert (answer["ok"], answer["enabled"], answer["rules"]) == (True, True, ["login", "probe"])
    assert set(answer["settings"]) == {env.names[-1] for env in variables(AuditConfig).values()}
    assert answer["settings"]["AUDIT_LOG_POLICY_FILE"] == str(policy)
    assert answer["settings"]["AUDIT_LOG_BATCH_DELAY_MS"] == AuditConfig().batch_delay_ms


def test_check_prints_json_while_audit_is_off(environment: Callable[..., None], printed: Callable[..., Any]) -> None:
    environment()
    answer = json.loads(printed("check", "--json")[1])
    assert (answer["ok"], answer["enabled"], answer["rules"]) == (True, False, [])


@pytest.mark.parametrize("options", [(), ("--json",)], ids=["for-people", "json"])
def test_no_secret_is_printed(
    options: tuple[str, ...], environment: Callable[..., None], printed: Callable[..., Any]
) -> None:
    environment(AUDIT_LOG_ENABLED="true", OTEL_EXPORTER_OTLP_HEADERS=f"authorization=Bearer%20{SECRET}")
    code, out, err = printed("check", *options)
    assert code == 0
    assert "[masked]" in out
    assert SECRET not in out + err


@pytest.mark.parametrize("options", [(), ("--json",)], ids=["for-people", "json"])
def test_a_mistake_does_not_print_the_secret(
    options: tuple[str, ...], environment: Callable[..., None], printed: Callable[..., Any]
) -> None:
    environment(AUDIT_LOG_ENABLED="true", OTEL_EXPORTER_OTLP_HEADERS=f"authorization {SECRET}")
    code, out, err = printed("check", *options)
    assert code == 2
    assert "OTEL_EXPORTER_OTLP_HEADERS must be key=value pairs" in err
    assert SECRET not in out + err


def test_a_mistake_in_the_environment_ends_with_a_code_of_its_own(
    environment: Callable[..., None], printed: Callable[..., Any]
) -> None:
    environment(AUDIT_LOG_ENABLED="perhaps")
    message = "AUDIT_LOG_ENABLED must be true or false, not 'perhaps'"
    assert printed("check") == (2, "", f"tron-audit: {message}\n")
    code, out, err = printed("check", "--json")
    assert (code, out, json.loads(err)) == (2, "", {"ok": False, "error": message})


def test_a_mistake_in_the_policy_ends_with_a_code_of_its_own(
    environment: Callable[..., None], printed: Callable[..., Any], policy: Path
) -> None:
    policy.write_text("rules:\n- name: x\n  level: all\n", encoding="utf-8")
    environment(AUDIT_LOG_ENABLED="true", AUDIT_LOG_POLICY_FILE=str(policy))
    message = f"tron-audit: {policy}:3: rule 'x': level must be 'none' or 'metadata', not 'all'\n"
    assert printed("check") == (2, "", message)


@pytest.mark.parametrize("arguments", [[], ["chek"], ["check", "--xml"]], ids=["none", "unknown-command", "option"])
def test_a_command_line_that_is_wrong_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: tron-audit" in capsys.readouterr().err


def test_the_version_is_that_of_the_distribution(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    name, version = capsys.readouterr().out.split()
    assert name == "tron-audit"
    assert version[0].isdigit()


def test_the_module_runs_as_a_program(environment: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    environment()
    monkeypatch.setattr("sys.argv", ["tron-audit", "check"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(os.fspath(cli.__file__), run_name="__main__")
    assert caught.value.code == 0


def test_check_refuses_what_would_stop_a_start(
    printed: Callable[..., Any], environment: Callable[..., None], tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.touch()
    environment(AUDIT_LOG_JOURNAL_DIR=str(file / "journal"))
    code, _, err = printed("check")
    assert code == 2
    assert f"AUDIT_LOG_JOURNAL_DIR: {file}/journal cannot be used: {file} is no directory" in err
    policy = tmp_path / "policy.yaml"
    policy.write_text("rules: [{name: strict, commit: response}]")
    environment(AUDIT_LOG_POLICY_FILE=str(policy), AUDIT_LOG_JOURNAL="memory", AUDIT_LOG_JOURNAL_DIR="")
    code, _, err = printed("check")
    assert (code, err) == (2, "tron-audit: rule 'strict': commit: response needs AUDIT_LOG_JOURNAL=disk\n")


def test_check_makes_nothing(printed: Callable[..., Any], environment: Callable[..., None], tmp_path: Path) -> None:
    environment(AUDIT_LOG_JOURNAL_DIR=str(tmp_path / "journal"))
    assert printed("check")[0] == 0
    assert not list(tmp_path.iterdir())
