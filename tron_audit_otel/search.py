"""The searches of SIEMs: which of some ids a SIEM has, asked at its own API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from tron_audit_otel.errors import ConfigError
from tron_audit_otel.search_datadog import Datadog
from tron_audit_otel.search_elasticsearch import Elasticsearch
from tron_audit_otel.search_http import Client
from tron_audit_otel.search_splunk import Splunk
from tron_audit_otel.search_victorialogs import VictoriaLogs
from tron_audit_otel.tool_config import secret

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tron_audit_otel.archive import Span
    from tron_audit_otel.tool_config import ToolConfig

USUAL = {"elasticsearch": "elasticsearch", "elastic-otlp": "elasticsearch", "splunk": "splunk", "datadog": "datadog"}
"""The kind of search of each SIEM that has one of its own; any may be VictoriaLogs in truth."""

RECORD_ID = "audit.record.id"
VICTORIALOGS_FIELDS = {"elasticsearch": "event.id", "elastic-otlp": "event.id", "splunk": "event.record_id"}
"""Where a SIEM's transform leaves the id, as VictoriaLogs names it; the others leave it in ``audit.record.id``."""


class Search(Protocol):
    """A SIEM's search."""

    def ids(self, wanted: Sequence[str], span: Span) -> set[str]:
        """Gives those of the ids that the SIEM has; the caller asks for some thousand at most.

        Raises:
            SearchError: It does not answer, or not as it should.
        """


def make(kind: str, siem: str, config: ToolConfig) -> Search:
    """Makes the search of that kind, for what the SIEM's pipeline writes.

    Raises:
        ConfigError: There is no such kind, or a variable that it needs is not set; the message names it.
    """
    if kind not in KINDS:
        raise ConfigError(f"--search must be one of {', '.join(KINDS)}, not {kind!r}")
    return KINDS[kind](siem, config)


def _victorialogs(siem: str, config: ToolConfig) -> Search:
    account, _, project = config.victorialogs_tenant.partition(":")
    url = _set(config.victorialogs_url, "VICTORIALOGS_URL")
    client = Client(url, {"AccountID": account, "ProjectID": project})
    return VictoriaLogs(client, VICTORIALOGS_FIELDS.get(siem, RECORD_ID))


def _elasticsearch(_: str, config: ToolConfig) -> Search:
    url = _set(config.elasticsearch_url, "ELASTICSEARCH_SEARCH_URL or ELASTICSEARCH_URL")
    key = secret(config.elasticsearch_key, config.elasticsearch_key_file, "ELASTICSEARCH_SEARCH_API_KEY")
    return Elasticsearch(Client(url, {"Authorization": f"ApiKey {key}"}, config.elasticsearch_ca))


def _splunk(_: str, config: ToolConfig) -> Search:
    url = _set(config.splunk_url, "SPLUNK_SEARCH_URL")
    token = secret(config.splunk_token, config.splunk_token_file, "SPLUNK_SEARCH_TOKEN")
    client = Client(url, {"Authorization": f"Bearer {token}"}, config.splunk_ca)
    try:
        return Splunk(client, config.splunk_index)
    except ValueError:
        raise ConfigError(f"SPLUNK_INDEX must be the name of an index, not {config.splunk_index!r}") from None


def _datadog(_: str, config: ToolConfig) -> Search:
    key = secret(config.datadog_key, config.datadog_key_file, "DD_API_KEY")
    app_key = secret(config.datadog_app_key, config.datadog_app_key_file, "DD_APP_KEY")
    return Datadog(Client(config.datadog_api_url, {"DD-API-KEY": key, "DD-APPLICATION-KEY": app_key}))


KINDS: Mapping[str, Callable[[str, ToolConfig], Search]] = {
    "victorialogs": _victorialogs,
    "elasticsearch": _elasticsearch,
    "splunk": _splunk,
    "datadog": _datadog,
}


def _set(value: str | None, name: str) -> str:
    if value is None:
        raise ConfigError(f"{name} must be set")
    return value
