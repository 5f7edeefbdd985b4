"""Which records Elasticsearch, or OpenSearch, has.

Sources: https://www.elastic.co/guide/en/elasticsearch/reference/current/search-search.html (``_search``,
``allow_partial_search_results``), query-dsl-terms-query.html (65,536 terms at most) and
search-aggregations-bucket-terms-aggregation.html beside it (exact values to ``include``).

An aggregation instead of hits: it gives each id once, however often it is stored, so there are no pages to miss.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tron_audit_otel.search_http import parts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tron_audit_otel.archive import Span
    from tron_audit_otel.search_http import Client

STREAMS = "logs-tron.audit-*,logs-tron.audit.otel-*"
"""The data streams of ``elasticsearch`` and of ``elastic-otlp``, whatever their namespace."""

PATH = f"/{STREAMS}/_search?allow_partial_search_results=false"
FIELD = "event.id"
IDS_MAX = 1000
IDS_BYTES_MAX = 1 << 20


class Elasticsearch:
    """Asks for ``event.id`` in the audit trail's data streams."""

    def __init__(self, client: Client) -> None:
        """Takes the way to it."""
        self._client = client

    def ids(self, wanted: Sequence[str], span: Span) -> set[str]:  # noqa: ARG002 - by id alone, whatever `@timestamp` says
        """Gives those of the ids that it has.

        Raises:
            SearchError: It does not answer, not as it should, or not from all of its shards.
        """
        asked = set(wanted)
        found: set[str] = set()
        for part in parts(wanted, IDS_MAX, IDS_BYTES_MAX, str):
            found |= self._found(part)
        return found & asked

    def _found(self, ids: Sequence[str]) -> set[str]:
        answer = self._client.question(
            PATH,
            json={
                "size": 0,
                "track_total_hits": False,
                "query": {"bool": {"filter": [{"terms": {FIELD: ids}}]}},
                "aggs": {"ids": {"terms": {"field": FIELD, "size": len(ids), "include": ids}}},
            },
        )
        try:
            if answer["timed_out"] or answer["_shards"]["failed"]:
                raise self._client.odd(PATH, "is not from all of its shards")
            if not answer["_shards"]["total"]:  # no such data stream, or none that the key may read
                return set()
            return {str(bucket["key"]) for bucket in answer["aggregations"]["ids"]["buckets"]}
        except (KeyError, TypeError) as error:
            raise self._client.odd(PATH, f"lacks what it should have: {error}") from None
