from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from tron_audit_otel.errors import ConfigError
from tron_audit_otel.settings import variables
from tron_audit_otel.tool_config import ToolConfig, metrics_url, secret

TOKEN = "s3cret-of-the-search"  # noqa: S105 - made up


def test_with_nothing_set_it_looks_where_the_collector_is_by_default() -> None:
    config = ToolConfig.from_env({})
    assert config.archive == Path("/var/lib/tron-audit/archive")
    assert config.metrics_url == "http://127.0.0.1:8888/metrics"
    assert config.datadog_api_url == "https://api.datadoghq.com"


@pytest.mark.parametrize(
    ("host", "url"), [("::1", "http://[::1]:9/metrics"), ("collector", "http://collector:9/metrics")]
)
def test_the_address_of_the_metrics(host: str, url: str) -> None:
    config = ToolConfig.from_env({"AUDIT_COLLECTOR_METRICS_HOST": host, "AUDIT_COLLECTOR_METRICS_PORT": "9"})
    assert config.metrics_url == url


def test_elasticsearch_is_searched_where_it_is_written_to_unless_told_otherwise() -> None:
    environ = {"ELASTICSEARCH_URL": "https://write:9200/"}
    assert ToolConfig.from_env(environ).elasticsearch_url == "https://write:9200"
    environ |= {"ELASTICSEARCH_SEARCH_URL": "https://search"}
    assert ToolConfig.from_env(environ).elasticsearch_url == "https://search"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("AUDIT_COLLECTOR_DATA", "data", "must be an absolute path, not 'data'"),
        ("AUDIT_COLLECTOR_METRICS_PORT", "many", "must be an integer, not 'many'"),
        ("AUDIT_COLLECTOR_METRICS_PORT", "0", "not '0'"),
        ("VICTORIALOGS_URL", "victorialogs:9428", "must be a URL such as"),
        (
            "VICTORIALOGS_URL",
            "http://user:pw@victorialogs",
            "must hold no user and no password, not 'http://…@victorialogs'",
        ),
        ("VICTORIALOGS_TENANT", "1:2:3", "not '1:2:3'"),
        ("SPLUNK_SEARCH_URL", "ftp://splunk", "must be a URL such as"),
        ("SPLUNK_SEARCH_TOKEN_FILE", "/nowhere", "must be an existing file"),
    ],
)
def test_a_wrong_value_is_named_with_its_variable(name: str, value: str, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        ToolConfig.from_env({name: value})
    assert str(error.value).startswith(name)
    assert words in str(error.value)


def test_no_secret_is_shown() -> None:
    secrets = {name: TOKEN for env in variables(ToolConfig).values() for name in env.names if env.secret}
    assert len(secrets) == 4
    assert TOKEN not in repr(ToolConfig.from_env(secrets))


class TestSecret:
    def test_the_file_counts_first(self, tmp_path: Path) -> None:
        file = tmp_path / "token"
        file.write_text(f"{TOKEN}\n")
        assert secret("other", file, "X") == TOKEN
        assert secret("other", None, "X") == "other"

    @pytest.mark.parametrize("content", [b"", b" \n", b"\xff\xfe"])
    def test_a_file_without_one_is_named(self, tmp_path: Path, content: bytes) -> None:
        file = tmp_path / "token"
        file.write_bytes(content)
        with pytest.raises(ConfigError, match=f"X_FILE {file}"):
            secret("other", file, "X")

    def test_none_at_all_names_both_variables(self) -> None:
        with pytest.raises(ConfigError, match="X or X_FILE must be set"):
            secret(None, None, "X")


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://[::1]:9", "http://[::1]:9/metrics"),
        ("https://collector/", "https://collector/metrics"),
        ("http://gateway/collector/metrics", "http://gateway/collector/metrics"),
    ],
)
def test_an_address_of_metrics_as_it_is_typed(text: str, url: str) -> None:
    assert metrics_url(text) == url


def test_an_address_of_metrics_that_is_none() -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"must be a URL such as .*, not 'collector:9'"):
        metrics_url("collector:9")
