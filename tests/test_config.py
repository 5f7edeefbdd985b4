from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies
from pydantic import ValidationError

from tests import hostile
from tests.hostile import fuzzed
from tron_audit_otel.config import PREFIX, AuditConfig
from tron_audit_otel.errors import ConfigError
from tron_audit_otel.settings import variables

FILE = Path(__file__)
ON = {"AUDIT_LOG_ENABLED": "true"}
SECRET = "s3cret"  # noqa: S105 - the word that must not be found
OTLP = "OTEL_EXPORTER_OTLP_"
LOGS = "OTEL_EXPORTER_OTLP_LOGS_"
PROXY = "AUDIT_LOG_PROXY_"


def config(**environ: str) -> AuditConfig:
    return AuditConfig.from_env(ON | environ)


def refusal(**environ: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        AuditConfig.from_env(ON | environ)
    return caught.value


def everything_printed(error: ConfigError) -> str:
    """What an application's start that fails may leave in a log."""
    return "".join([str(error), repr(error), *traceback.format_exception(error)])


def test_audit_is_off_unless_it_is_turned_on() -> None:
    assert AuditConfig.from_env({}) == AuditConfig()
    assert not AuditConfig().enabled


def test_while_audit_is_off_no_other_mistake_stops_the_start() -> None:
    environ = {"AUDIT_LOG_ENABLED": "false", "AUDIT_LOG_QUEUE_RECORDS_MAX": "many", "AUDIT_LOG_TYPO": "1"}
    assert AuditConfig.from_env(environ) == AuditConfig()


@pytest.mark.parametrize("value", ["true", "TRUE", "1", "yes", "on", " true "])
def test_the_ways_to_turn_audit_on(value: str) -> None:
    assert AuditConfig.from_env({"AUDIT_LOG_ENABLED": value}).enabled


@pytest.mark.parametrize("value", ["", " ", "false", "0", "no", "off"])
def test_the_ways_to_leave_it_off(value: str) -> None:
    assert not AuditConfig.from_env({"AUDIT_LOG_ENABLED": value}).enabled


VALID = [
    # variable, value, setting, as it is understood
    ("AUDIT_LOG_ENABLED", "true", "enabled", True),
    ("AUDIT_LOG_POLICY_FILE", str(FILE), "policy_file", FILE),
    ("AUDIT_LOG_COMMIT", "response", "commit", "response"),
    ("AUDIT_LOG_COMMIT_SECONDS_MAX", "1.5", "commit_seconds_max", 1.5),
    ("AUDIT_LOG_ON_FULL", "reject", "on_full", "reject"),
    ("AUDIT_LOG_JOURNAL", "memory", "journal", "memory"),
    ("AUDIT_LOG_JOURNAL_DIR", "/var/lib/x", "journal_dir", Path("/var/lib/x")),
    ("AUDIT_LOG_JOURNAL_MAX_BYTES", "1000000", "journal_bytes_max", 1_000_000),
    ("AUDIT_LOG_FSYNC", "false", "fsync", False),
    ("AUDIT_LOG_REQUEST_BYTES_MAX", "1000000", "request_bytes_max", 1_000_000),
    ("AUDIT_LOG_RETRY_SECONDS_MAX", "0.5", "retry_seconds_max", 0.5),
    ("AUDIT_LOG_QUEUE_RECORDS_MAX", "1024", "queue_records_max", 1024),
    ("AUDIT_LOG_BATCH_RECORDS_MAX", "1", "batch_records_max", 1),
    ("AUDIT_LOG_BATCH_DELAY_MS", "60000", "batch_delay_ms", 60_000),
    ("AUDIT_LOG_SHUTDOWN_SECONDS_MAX", "0.5", "shutdown_seconds_max", 0.5),
    ("AUDIT_LOG_TRUSTED_PROXIES", "10.0.0.0/8", "trusted_proxies", ("10.0.0.0/8",)),
    ("AUDIT_LOG_PROXY_HOPS", "32", "proxy_hops", 32),
    ("AUDIT_LOG_PROXY_HEADER", "X-Real-IP", "proxy_header", "x-real-ip"),
    ("AUDIT_LOG_HASH_KEY", "k" * 32, "hash_key", "k" * 32),
    ("OTEL_SERVICE_NAME", "tron", "service_name", "tron"),
    ("OTEL_RESOURCE_ATTRIBUTES", "a=1,b.c = x%20y ,", "resource_attributes", (("a", "1"), ("b.c", "x y"))),
    ("OTEL_RESOURCE_ATTRIBUTES", "teamName=Ops", "resource_attributes", (("teamName", "Ops"),)),
    ("OTEL_SDK_DISABLED", "false", "sdk_disabled", False),
    (OTLP + "PROTOCOL", "http/protobuf", "otlp_protocol", "http/protobuf"),
    (LOGS + "PROTOCOL", "grpc", "otlp_protocol", "grpc"),
    (OTLP + "ENDPOINT", "https://collector:4318/", "otlp_endpoint", "https://collector:4318/v1/logs"),
    (LOGS + "ENDPOINT", "http://[::1]:4318/x", "otlp_endpoint", "http://[::1]:4318/x"),
    (OTLP + "HEADERS", "Authorization=Bearer%20x", "otlp_headers", (("authorization", "Bearer x"),)),
    (LOGS + "HEADERS", "a=b=c, d=", "otlp_headers", (("a", "b=c"), ("d", ""))),
    (OTLP + "TIMEOUT", "2.5", "otlp_timeout_s", 2.5),
    (LOGS + "TIMEOUT", "600", "otlp_timeout_s", 600.0),
    (OTLP + "COMPRESSION", "gzip", "otlp_compression", "gzip"),
    (LOGS + "COMPRESSION", "deflate", "otlp_compression", "deflate"),
    (OTLP + "INSECURE", "true", "otlp_insecure", True),
    (LOGS + "INSECURE", "false", "otlp_insecure", False),
    (OTLP + "CERTIFICATE", str(FILE), "otlp_certificate", FILE),
    (LOGS + "CERTIFICATE", str(FILE), "otlp_certificate", FILE),
    (OTLP + "CLIENT_KEY", str(FILE), "otlp_client_key", FILE),
    (LOGS + "CLIENT_KEY", str(FILE), "otlp_client_key", FILE),
    (OTLP + "CLIENT_CERTIFICATE", str(FILE), "otlp_client_certificate", FILE),
    (LOGS + "CLIENT_CERTIFICATE", str(FILE), "otlp_client_certificate", FILE),
]
BOTH = {OTLP + "CLIENT_KEY": str(FILE), OTLP + "CLIENT_CERTIFICATE": str(FILE)}
"""Neither is valid without the other."""


def beside(variable: str) -> dict[str, str]:
    """What a variable is not valid without."""
    if variable == "AUDIT_LOG_PROXY_HEADER":
        return {"AUDIT_LOG_TRUSTED_PROXIES": "10.0.0.0/8"}
    return BOTH if "CLIENT" in variable else {}


@pytest.mark.parametrize(("variable", "value", "setting", "expected"), VALID)
def test_every_variable_is_understood(variable: str, value: str, setting: str, expected: object) -> None:
    environ = beside(variable) | {variable: value}
    assert getattr(config(**environ), setting) == expected


BOOLEAN = "must be true or false, not 'perhaps'"
INTEGER = "must be an integer, in"
NUMBER = "must be a number, in"
PAIRS = "must be key=value pairs with commas between them, percent-encoded"
NO_HEADER = "must hold headers' names, and values without control characters"
NETWORKS = "must be networks such as 10.0.1.0/24, addresses, or unix, with commas between them"
A_HEADER = "must be one header's name, such as x-forwarded-for, forwarded or x-real-ip"
URL = "must be a URL such as http://collector:4318"

INVALID = [
    # variable, value, the rest of the message
    ("AUDIT_LOG_ENABLED", "perhaps", BOOLEAN),
    ("AUDIT_LOG_POLICY_FILE", "/none.yaml", "must be an existing file, not '/none.yaml'"),
    ("AUDIT_LOG_POLICY_FILE", "x" * 300, f"must be an existing file, not '{'x' * 300}'"),
    ("AUDIT_LOG_POLICY_FILE", "/", "must be an existing file, not '/'"),
    ("AUDIT_LOG_COMMIT", "never", "must be 'batch' or 'response', not 'never'"),
    ("AUDIT_LOG_COMMIT_SECONDS_MAX", "0", "must be greater than 0, not '0'"),
    ("AUDIT_LOG_ON_FULL", "wait", "must be 'drop' or 'reject', not 'wait'"),
    ("AUDIT_LOG_JOURNAL", "tape", "must be 'disk' or 'memory', not 'tape'"),
    ("AUDIT_LOG_JOURNAL_DIR", "here", "must be an absolute path, not 'here'"),
    ("AUDIT_LOG_JOURNAL_MAX_BYTES", "1", "must be greater than or equal to 65536, not '1'"),
    ("AUDIT_LOG_FSYNC", "perhaps", BOOLEAN),
    ("AUDIT_LOG_REQUEST_BYTES_MAX", "1", "must be greater than or equal to 65536, not '1'"),
    ("AUDIT_LOG_RETRY_SECONDS_MAX", "0", "must be greater than 0, not '0'"),
    ("AUDIT_LOG_QUEUE_RECORDS_MAX", "0", "must be greater than or equal to 1, not '0'"),
    ("AUDIT_LOG_QUEUE_RECORDS_MAX", "10000001", "must be less than or equal to 10000000, not '10000001'"),
    ("AUDIT_LOG_QUEUE_RECORDS_MAX", "many", f"{INTEGER} records, not 'many'"),
    ("AUDIT_LOG_QUEUE_RECORDS_MAX", "5.5", f"{INTEGER} records, not '5.5'"),
    ("AUDIT_LOG_BATCH_RECORDS_MAX", "-1", "must be greater than or equal to 1, not '-1'"),
    ("AUDIT_LOG_BATCH_DELAY_MS", "0", "must be greater than or equal to 1, not '0'"),
    ("AUDIT_LOG_SHUTDOWN_SECONDS_MAX", "0", "must be greater than 0, not '0'"),
    ("AUDIT_LOG_SHUTDOWN_SECONDS_MAX", "nan", "must be less than or equal to 60, not 'nan'"),
    ("AUDIT_LOG_SHUTDOWN_SECONDS_MAX", "inf", "must be less than or equal to 60, not 'inf'"),
    ("AUDIT_LOG_SHUTDOWN_SECONDS_MAX", "soon", f"{NUMBER} s, not 'soon'"),
    ("AUDIT_LOG_TRUSTED_PROXIES", "*", f"{NETWORKS}; '*' is none, not '*'"),
    ("AUDIT_LOG_PROXY_HOPS", "0", "must be greater than or equal to 1, not '0'"),
    ("AUDIT_LOG_PROXY_HOPS", "33", "must be less than or equal to 32, not '33'"),
    ("AUDIT_LOG_PROXY_HOPS", "one", f"{INTEGER} proxies, not 'one'"),
    ("AUDIT_LOG_PROXY_HEADER", "a,b", f"{A_HEADER}, not 'a,b'"),
    ("AUDIT_LOG_PROXY_HEADER", "x real ip", f"{A_HEADER}, not 'x real ip'"),
    ("AUDIT_LOG_PROXY_HEADER", "x" * 65, f"{A_HEADER}, not '{'x' * 65}'"),
    (
        "AUDIT_LOG_PROXY_HEADER",
        "Authorization",
        "must be the name of a header with addresses, and this one carries secrets, not 'Authorization'",
    ),
    ("AUDIT_LOG_HASH_KEY", SECRET * 5, "must have at least 32 characters"),
    ("OTEL_RESOURCE_ATTRIBUTES", "a", f"{PAIRS}, not 'a'"),
    ("OTEL_RESOURCE_ATTRIBUTES", "a=b;c", f"{PAIRS}, not 'a=b;c'"),
    ("OTEL_SDK_DISABLED", "perhaps", BOOLEAN),
    (OTLP + "PROTOCOL", "http/json", "must be 'http/protobuf' or 'grpc', not 'http/json'"),
    (LOGS + "PROTOCOL", "GRPC", "must be 'http/protobuf' or 'grpc', not 'GRPC'"),
    (OTLP + "ENDPOINT", "collector:4318", f"{URL}, not 'collector:4318'"),
    (OTLP + "ENDPOINT", "ftp://collector", f"{URL}, not 'ftp://collector'"),
    (LOGS + "ENDPOINT", "http://", f"{URL}, not 'http://'"),
    (LOGS + "ENDPOINT", "http://[x", f"{URL}, not 'http://[x'"),
    (LOGS + "ENDPOINT", "http://h:99999", f"{URL}, not 'http://h:99999'"),
    (LOGS + "ENDPOINT", "http://h:0", f"{URL}, not 'http://h:0'"),
    (OTLP + "TIMEOUT", "10000", "must be less than or equal to 600, not '10000'"),
    (LOGS + "TIMEOUT", "0", "must be greater than 0, not '0'"),
    (OTLP + "COMPRESSION", "zip", "must be 'none', 'gzip' or 'deflate', not 'zip'"),
    (LOGS + "COMPRESSION", "zip", "must be 'none', 'gzip' or 'deflate', not 'zip'"),
    (OTLP + "INSECURE", "perhaps", BOOLEAN),
    (LOGS + "INSECURE", "perhaps", BOOLEAN),
    (OTLP + "CERTIFICATE", "/none.pem", "must be an existing file, not '/none.pem'"),
    (LOGS + "CERTIFICATE", "/none.pem", "must be an existing file, not '/none.pem'"),
    (OTLP + "CLIENT_KEY", "/none.pem", "must be an existing file, not '/none.pem'"),
    (LOGS + "CLIENT_KEY", "/none.pem", "must be an existing file, not '/none.pem'"),
    (OTLP + "CLIENT_CERTIFICATE", "/none.pem", "must be an existing file, not '/none.pem'"),
    (LOGS + "CLIENT_CERTIFICATE", "/none.pem", "must be an existing file, not '/none.pem'"),
]


@pytest.mark.parametrize(("variable", "value", "message"), INVALID)
def test_every_mistake_names_the_variable_and_the_value(variable: str, value: str, message: str) -> None:
    environ = beside(variable) | {variable: value}
    assert str(refusal(**environ)) == f"{variable} {message}"


HEADERS = [OTLP + "HEADERS", LOGS + "HEADERS"]
UNREADABLE = {
    "no-pair": SECRET,
    "no-key": f"={SECRET}",
    "semicolon": f"authorization=Bearer;{SECRET}",
    "backslash": rf"authorization=\{SECRET}",
    "space-in-the-key": f"author ization={SECRET}",
    "quotes": f'authorization="{SECRET}"',
    "quote-within": f'authorization=Bearer "{SECRET}',
    "not-ascii": f"authorization=ü{SECRET}",
    "control-character": f"authorization=a\x01{SECRET}",
    "tab-within": f"authorization=a\tb{SECRET}",
    "line-break-within": f"authorization=a\nb{SECRET}",
    "line-break-encoded": f"authorization=a%0d%0ab{SECRET}",
    "name-encoded": f"a%20b={SECRET}",
    "second-of-two": f'a=b,authorization="{SECRET}"',
}


@pytest.mark.parametrize("variable", HEADERS)
@pytest.mark.parametrize("value", UNREADABLE.values(), ids=UNREADABLE)
def test_headers_that_cannot_be_read_stop_the_start_and_are_told_to_nobody(
    variable: str, value: str, caplog: pytest.LogCaptureFixture
) -> None:
    error = refusal(**{variable: value})
    why = NO_HEADER if "%" in value else PAIRS
    assert str(error) == f"{variable} {why}"
    assert SECRET not in everything_printed(error)
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"OTEL_SDK_DISABLED": "true"}, id="settings-that-contradict"),
        pytest.param({"AUDIT_LOG_BATCH_DELAY_MS": "0"}, id="another-setting"),
        pytest.param({"AUDIT_LOG_TYPO": "x"}, id="unknown-variable"),
    ],
)
def test_another_mistake_does_not_tell_the_headers(other: dict[str, str]) -> None:
    error = refusal(**{OTLP + "HEADERS": f"a={SECRET}"}, **other)
    assert SECRET not in everything_printed(error)


def test_a_valid_configuration_does_not_show_its_headers() -> None:
    made = config(**{OTLP + "HEADERS": f"authorization=Bearer%20{SECRET}"})
    assert made.otlp_headers == (("authorization", f"Bearer {SECRET}"),)
    assert SECRET not in repr(made) + str(made)


def test_the_key_is_shown_to_nobody() -> None:
    key = SECRET * 6
    assert SECRET not in repr(config(AUDIT_LOG_HASH_KEY=key)) + str(config(AUDIT_LOG_HASH_KEY=key))
    assert SECRET not in everything_printed(refusal(AUDIT_LOG_HASH_KEY=key, AUDIT_LOG_BATCH_DELAY_MS="0"))
    assert SECRET not in everything_printed(refusal(AUDIT_LOG_HASH_KEY=SECRET))
    with pytest.raises(ValidationError) as caught:
        AuditConfig(hash_key=SECRET)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("variable", [OTLP + "ENDPOINT", LOGS + "ENDPOINT"])
def test_a_password_in_the_endpoint_is_shown_to_nobody(variable: str) -> None:
    try:
        shown = repr(config(**{variable: f"http://user:{SECRET}@collector:4318"}))
    except ConfigError as error:
        shown = everything_printed(error)
    assert SECRET not in shown


def test_every_variable_is_in_the_tables() -> None:
    known = {name for env in variables(AuditConfig).values() for name in env.names}
    never_wrong = {"OTEL_SERVICE_NAME"}
    assert {variable for variable, *_ in VALID} == known
    assert {variable for variable, *_ in INVALID} | set(HEADERS) | never_wrong == known


def test_every_setting_is_described_for_the_reference() -> None:
    assert set(variables(AuditConfig)) == set(AuditConfig.model_fields)
    assert all(field.description for field in AuditConfig.model_fields.values())


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        pytest.param(
            {"OTEL_SDK_DISABLED": "true"},
            "OTEL_SDK_DISABLED=true discards every audit record while AUDIT_LOG_ENABLED=true; unset one of them",
            id="sdk-disabled",
        ),
        pytest.param(
            {OTLP + "CLIENT_KEY": str(FILE)},
            f"{OTLP}CLIENT_KEY and {OTLP}CLIENT_CERTIFICATE must be set together",
            id="key-without-certificate",
        ),
        pytest.param(
            {LOGS + "CLIENT_CERTIFICATE": str(FILE)},
            f"{OTLP}CLIENT_KEY and {OTLP}CLIENT_CERTIFICATE must be set together",
            id="certificate-without-key",
        ),
        pytest.param(
            {PROXY + "HEADER": "x-forwarded-for"},
            f"{PROXY}HEADER=x-forwarded-for needs AUDIT_LOG_TRUSTED_PROXIES or {PROXY}HOPS",
            id="proxies-header-without-proxies",
        ),
        pytest.param(
            {PROXY + "HEADER": "Forwarded"},
            f"{PROXY}HEADER=forwarded needs AUDIT_LOG_TRUSTED_PROXIES or {PROXY}HOPS",
            id="rfc-7239-without-proxies",
        ),
        pytest.param(
            {PROXY + "HEADER": "x-real-ip"},
            f"{PROXY}HEADER=x-real-ip needs AUDIT_LOG_TRUSTED_PROXIES: a client can write it as well",
            id="one-address-that-anybody-can-write",
        ),
        pytest.param(
            {PROXY + "HEADER": "x-real-ip", PROXY + "HOPS": "1"},
            f"{PROXY}HOPS=1 counts addresses, and {PROXY}HEADER=x-real-ip has one",
            id="hops-in-one-address",
        ),
        pytest.param(
            {PROXY + "HEADER": "x-real-ip", PROXY + "HOPS": "2", "AUDIT_LOG_TRUSTED_PROXIES": "10.0.0.0/8"},
            f"{PROXY}HOPS=2 counts addresses, and {PROXY}HEADER=x-real-ip has one",
            id="hops-in-one-address-of-trusted-proxies",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(environ: dict[str, str], message: str) -> None:
    assert str(refusal(**environ)) == message


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        ("AUDIT_LOG_QUEUE_RECORD_MAX", "; did you mean AUDIT_LOG_QUEUE_RECORDS_MAX?"),
        ("AUDIT_LOG_POLICY", "; did you mean AUDIT_LOG_POLICY_FILE?"),
        ("AUDIT_LOG_NOTHING_THAT_IS_ANY_NEAR_TO_IT", ""),
    ],
)
def test_an_unknown_variable_of_ours_is_refused(variable: str, message: str) -> None:
    assert variable.startswith(PREFIX)
    assert str(refusal(**{variable: "1"})) == f"{variable} is not a setting of tron_audit_otel{message}"


def test_an_unknown_variable_of_others_is_none_of_our_business() -> None:
    assert config(OTEL_TRACES_EXPORTER="x", AUDIT_SIEM_URL="x", AUDIT_LOGGER="x") == AuditConfig(enabled=True)


def test_every_mistake_is_told_at_once() -> None:
    error = refusal(AUDIT_LOG_BATCH_DELAY_MS="0", OTEL_SDK_DISABLED="perhaps")
    assert str(error).splitlines() == [
        "AUDIT_LOG_BATCH_DELAY_MS must be greater than or equal to 1, not '0'",
        f"OTEL_SDK_DISABLED {BOOLEAN}",
    ]


@pytest.mark.parametrize("value", ["", "  "])
def test_an_empty_variable_counts_as_unset(value: str) -> None:
    environ = {name: value for env in variables(AuditConfig).values() for name in env.names}
    assert AuditConfig.from_env(environ | ON) == AuditConfig(enabled=True)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        pytest.param({}, "http://localhost:4318/v1/logs", id="default"),
        pytest.param({"PROTOCOL": "grpc"}, "http://localhost:4317", id="default-for-grpc"),
        pytest.param({"ENDPOINT": "http://c:1"}, "http://c:1/v1/logs", id="general"),
        pytest.param({"ENDPOINT": "http://c:1/otlp/"}, "http://c:1/otlp/v1/logs", id="general-with-a-path"),
        pytest.param({"ENDPOINT": "http://c:1", "PROTOCOL": "grpc"}, "http://c:1", id="general-for-grpc"),
        pytest.param({"LOGS_ENDPOINT": "http://c:1"}, "http://c:1", id="for-logs-is-taken-as-it-is"),
        pytest.param({"ENDPOINT": "http://a:1", "LOGS_ENDPOINT": "http://b:2"}, "http://b:2", id="logs-outranks"),
        pytest.param({"ENDPOINT": "http://a:1", "LOGS_ENDPOINT": " "}, "http://a:1/v1/logs", id="logs-is-empty"),
    ],
)
def test_where_records_go(environ: dict[str, str], expected: str) -> None:
    assert config(**{OTLP + name: value for name, value in environ.items()}).endpoint == expected


@pytest.mark.parametrize(
    "name",
    sorted(
        env.names[0] for env in variables(AuditConfig).values() if len(env.names) > 1 and "ENDPOINT" not in env.names[0]
    ),
)
def test_the_variable_for_logs_outranks_the_general_one(name: str) -> None:
    general = name.replace("_LOGS_", "_")
    valid = next(value for variable, value, *_ in VALID if variable == name)
    wrong = next((value for variable, value, _ in INVALID if variable == general), SECRET)
    both = BOTH if "CLIENT" in name else {}
    config(**(both | {name: valid, general: wrong}))
    assert str(refusal(**(both | {name: wrong, general: valid}))).startswith(f"{name} must be ")


def test_a_configuration_cannot_be_changed_once_it_is_checked() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        AuditConfig().enabled = True


def test_equal_configurations_share_a_pipeline() -> None:
    assert hash(config()) == hash(config())


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        pytest.param({"b": "2", "a": "1"}, (("a", "1"), ("b", "2")), id="mapping"),
        pytest.param((("a", "1"),), (("a", "1"),), id="pairs"),
        pytest.param("a=1", (("a", "1"),), id="text"),
    ],
)
def test_by_hand_headers_may_be_given_in_any_form(headers: Any, expected: object) -> None:
    assert AuditConfig(otlp_headers=headers).otlp_headers == expected


def test_by_hand_a_mistake_does_not_show_its_headers() -> None:
    with pytest.raises(ValidationError) as caught:
        AuditConfig(otlp_headers=SECRET)  # type: ignore[arg-type] # the caller's mistake
    assert SECRET not in str(caught.value)


def test_by_hand_an_unknown_setting_is_refused() -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        AuditConfig.model_validate({"queue": 1})


known_names = strategies.sampled_from([name for env in variables(AuditConfig).values() for name in env.names])


@fuzzed
@given(strategies.dictionaries(known_names, hostile.text))
def test_whatever_stands_in_the_environment_is_understood_or_refused_by_name(environ: dict[str, str]) -> None:
    try:
        AuditConfig.from_env(environ | ON)
    except ConfigError as error:
        if not any(name in str(error) for name in environ):
            pytest.fail(f"names no variable: {error}")


def test_grpc_takes_an_endpoint_without_a_scheme_and_http_does_not() -> None:
    environ = {"AUDIT_LOG_ENABLED": "true", OTLP + "PROTOCOL": "grpc", OTLP + "ENDPOINT": "collector:4317"}
    assert AuditConfig.from_env(environ).endpoint == "collector:4317"


def test_a_misspelt_switch_is_told_although_audit_is_off(caplog: pytest.LogCaptureFixture) -> None:
    assert not AuditConfig.from_env({"AUDIT_LOG_ENABLE": "true"}).enabled
    assert caplog.messages == [
        "audit is off, and AUDIT_LOG_ENABLE is not a setting of tron_audit_otel; did you mean AUDIT_LOG_ENABLED?"
    ]


def test_nothing_in_memory_is_committed() -> None:
    with pytest.raises(ConfigError, match="AUDIT_LOG_COMMIT=response needs AUDIT_LOG_JOURNAL=disk"):
        config(AUDIT_LOG_COMMIT="response", AUDIT_LOG_JOURNAL="memory")


@pytest.mark.parametrize(
    ("on_full", "commit", "expected"),
    [("", "batch", "drop"), ("", "response", "reject"), ("drop", "response", "drop"), ("reject", "batch", "reject")],
)
def test_what_is_committed_before_its_answer_fails_closed_unless_told_otherwise(
    on_full: str, commit: str, expected: str
) -> None:
    assert config(AUDIT_LOG_ON_FULL=on_full).on_full_for(commit) == expected


@pytest.mark.parametrize(
    ("service", "name"), [("", "default"), ("platform-api", "platform-api"), ("../x y", "---x-y"), ("x" * 99, "x" * 64)]
)
def test_each_service_has_a_journal_directory_of_its_own_by_default(service: str, name: str) -> None:
    path = config(OTEL_SERVICE_NAME=service).journal_path
    assert (path.name, path.parent.name) == (name, "tron-audit-otel")


def test_a_journal_in_memory_is_smaller_by_default() -> None:
    assert config().journal_bytes_max == 2**30
    assert config(AUDIT_LOG_JOURNAL="memory").journal_bytes_max == 2**26
