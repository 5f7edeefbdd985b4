"""Which records VictoriaLogs has.

Sources: https://docs.victoriametrics.com/victorialogs/querying/ (``/select/logsql/query``: form, answer a JSON object a
line), https://docs.victoriametrics.com/victorialogs/logsql/ (``in``, ``uniq``, ``_time``, string literals: Go's), and
its own sources for what an argument may have: ``-search.maxQueryLen`` is 16 KiB unless set.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tron_audit_otel.search_http import iso, parts, window_s

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tron_audit_otel.archive import Span
    from tron_audit_otel.search_http import Client

PATH = "/select/logsql/query"
IDS_MAX = 1000
IDS_BYTES_MAX = 15 * 1024
"""What ``-search.maxQueryLen`` leaves, beside a kilobyte for the rest of the query."""


class VictoriaLogs:
    """Asks for one field of one tenant's rows."""

    def __init__(self, client: Client, field: str) -> None:
        """Takes the field that has a record's id, which depends on how the SIEM is written to."""
        self._client = client
        self._field = field

    def ids(self, wanted: Sequence[str], span: Span) -> set[str]:
        """Gives those of the ids that it has.

        Raises:
            SearchError: It does not answer, or not as it should.
        """
        asked = set(wanted)
        found: set[str] = set()
        for part in parts(wanted, IDS_MAX, IDS_BYTES_MAX, _listed):
            answer = self._client.post(PATH, data={"query": query(self._field, part, span)})
            for row in answer.splitlines():
                found.add(str(self._client.parsed(PATH, row).get(self._field)))
        return found & asked


def query(field: str, ids: Sequence[str], span: Span) -> str:
    """Gives the query for each of the ids once, however often it is stored."""
    since, until = map(iso, window_s(span))
    listed = "".join(map(_listed, ids)).removesuffix(",")
    return f"_time:[{since}, {until}] {quoted(field)}:in({listed}) | uniq by ({quoted(field)})"


def quoted(text: str) -> str:
    r"""Gives a string literal: JSON's escapes are Go's, but for surrogates, which are not written as such.

    >>> quoted('a"b\\')
    '"a\\"b\\\\"'
    """
    return json.dumps(text, ensure_ascii=False)


def _listed(text: str) -> str:
    return f"{quoted(text)},"
