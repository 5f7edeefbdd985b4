"""What the operator's tools need to know besides the application's settings: the Collector, and the SIEMs' searches.

Names that the Collector's own files read, such as ``ELASTICSEARCH_URL``, mean the same here. A tool runs on the
Collector's machine, with its ``.env``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from tron_audit_otel.errors import ConfigError
from tron_audit_otel.settings import DirectoryPath, FilePath, Settings, env, environment, set_variables

if TYPE_CHECKING:
    from collections.abc import Mapping

_ARCHIVE = "archive"
"""Below AUDIT_COLLECTOR_DATA, as otel-collector-config.yaml has it."""

_DATA = "AUDIT_COLLECTOR_DATA"
METRICS = ("AUDIT_COLLECTOR_METRICS_HOST", "AUDIT_COLLECTOR_METRICS_PORT")

_PORT_MAX = 65_535


def url(value: str) -> str:
    """Takes an HTTP URL without a slash at its end.

    Raises:
        ValueError: It is none, or it holds a user and a password.
    """
    try:
        parts = urlsplit(value)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise ValueError("must be a URL such as https://siem.example.com:9200")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must hold no user and no password")
    return value.rstrip("/")


_Url = Annotated[str, AfterValidator(url)]


def metrics_url(value: str) -> str:
    """Takes the URL of a Collector's metrics, as an argument of a command; ``/metrics`` may be left out.

    Raises:
        argparse.ArgumentTypeError: It is none; the message has the value.
    """
    try:
        found = url(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}, not {value!r}") from error
    return found if urlsplit(found).path else f"{found}/metrics"


class ToolConfig(Settings):
    """Where the tools look. Make one by hand for a test, or :meth:`from_env` for a tool."""

    collector_data: Annotated[DirectoryPath, env("AUDIT_COLLECTOR_DATA", unit="path")] = Field(
        default=Path("/var/lib/tron-audit"), description="Holds the Collector's archive (`archive/`)."
    )
    metrics_host: Annotated[str, env("AUDIT_COLLECTOR_METRICS_HOST")] = Field(
        default="127.0.0.1", description="Where the Collector shows its own metrics."
    )
    metrics_port: Annotated[int, env("AUDIT_COLLECTOR_METRICS_PORT")] = Field(
        default=8888, ge=1, le=_PORT_MAX, description="The port of these metrics."
    )
    victorialogs_url: Annotated[_Url | None, env("VICTORIALOGS_URL", unit="URL")] = Field(
        default=None, description="VictoriaLogs, such as http://victorialogs:9428."
    )
    victorialogs_tenant: Annotated[str, env("VICTORIALOGS_TENANT", unit="AccountID:ProjectID")] = Field(
        default="0:0", pattern=r"^\d{1,10}:\d{1,10}$", description="The tenant in VictoriaLogs that has the records."
    )
    elasticsearch_url: Annotated[_Url | None, env("ELASTICSEARCH_SEARCH_URL", "ELASTICSEARCH_URL", unit="URL")] = Field(
        default=None, description="Elasticsearch, where it is searched another way than it is written to."
    )
    elasticsearch_key: Annotated[str | None, env("ELASTICSEARCH_SEARCH_API_KEY", secret=True)] = Field(
        default=None, repr=False, description="API key that may read the records, in its encoded form."
    )
    elasticsearch_key_file: Annotated[FilePath | None, env("ELASTICSEARCH_SEARCH_API_KEY_FILE", unit="path")] = Field(
        default=None, description="Holds that key; counts before ELASTICSEARCH_SEARCH_API_KEY."
    )
    elasticsearch_ca: Annotated[FilePath | None, env("ELASTICSEARCH_CA_FILE", unit="path")] = Field(
        default=None, description="Authority (PEM) of Elasticsearch's certificate, where the system does not know it."
    )
    splunk_url: Annotated[_Url | None, env("SPLUNK_SEARCH_URL", unit="URL")] = Field(
        default=None, description="Splunk's management port, such as https://splunk:8089."
    )
    splunk_token: Annotated[str | None, env("SPLUNK_SEARCH_TOKEN", secret=True)] = Field(
        default=None, repr=False, description="Token of a user that may search the records' index."
    )
    splunk_token_file: Annotated[FilePath | None, env("SPLUNK_SEARCH_TOKEN_FILE", unit="path")] = Field(
        default=None, description="Holds that token; counts before SPLUNK_SEARCH_TOKEN."
    )
    splunk_index: Annotated[str | None, env("SPLUNK_INDEX")] = Field(
        default=None, description="The index that holds the records; by default any that the user may search."
    )
    splunk_ca: Annotated[FilePath | None, env("SPLUNK_CA_FILE", unit="path")] = Field(
        default=None, description="Authority (PEM) of Splunk's certificate, where the system does not know it."
    )
    datadog_url: Annotated[_Url | None, env("DD_API_URL", unit="URL")] = Field(
        default=None, description="Datadog's API, where it is not `https://api.<DD_SITE>`."
    )
    datadog_site: Annotated[str, env("DD_SITE")] = Field(
        default="datadoghq.com", description="The Datadog site, such as datadoghq.eu."
    )
    datadog_key: Annotated[str | None, env("DD_API_KEY", secret=True)] = Field(
        default=None, repr=False, description="Datadog's API key."
    )
    datadog_key_file: Annotated[FilePath | None, env("DD_API_KEY_FILE", unit="path")] = Field(
        default=None, description="Holds that key; counts before DD_API_KEY."
    )
    datadog_app_key: Annotated[str | None, env("DD_APP_KEY", secret=True)] = Field(
        default=None, repr=False, description="Application key that may read logs (`logs_read_data`)."
    )
    datadog_app_key_file: Annotated[FilePath | None, env("DD_APP_KEY_FILE", unit="path")] = Field(
        default=None, description="Holds that key; counts before DD_APP_KEY."
    )

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Reads the environment, or the mapping that is given.

        Raises:
            ConfigError: A variable has a value that it cannot have; the message names it.
        """
        return cls.read(set_variables(environment() if environ is None else environ))

    @classmethod
    def of_collector(cls, environ: Mapping[str, str]) -> Self:
        """Reads only where the Collector is: another path in its ``.env`` may be one in its container.

        Raises:
            ConfigError: As :meth:`from_env`.
        """
        return cls.from_env({name: environ.get(name, "") for name in (_DATA, *METRICS)})

    @property
    def archive(self) -> Path:
        """The archive's directory."""
        return self.collector_data / _ARCHIVE

    @property
    def metrics_url(self) -> str:
        """The address of the Collector's metrics."""
        host = f"[{self.metrics_host}]" if ":" in self.metrics_host else self.metrics_host
        return f"http://{host}:{self.metrics_port}/metrics"

    @property
    def datadog_api_url(self) -> str:
        """The address of Datadog's API."""
        return self.datadog_url or f"https://api.{self.datadog_site}"


def secret(value: str | None, file: Path | None, name: str) -> str:
    """Gives a token that is set directly, or in a file, which counts first.

    Raises:
        ConfigError: It is not set, or its file cannot be read or is empty; the message names the variable.
    """
    if file is not None:
        try:
            value = file.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{name}_FILE {file} cannot be read: {error}") from error
        if not value:
            raise ConfigError(f"{name}_FILE {file} is empty")
    if not value:
        raise ConfigError(f"{name} or {name}_FILE must be set")
    return value
