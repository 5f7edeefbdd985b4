r"""Which records Datadog has. Written by its documentation; it was never run against Datadog itself.

Sources: https://docs.datadoghq.com/api/latest/logs/ ("Search logs (POST)": ``filter``, ``page.cursor``, ``page.limit``
up to 1,000, ``meta.page.after``, ``meta.status``), https://docs.datadoghq.com/logs/explorer/search_syntax/ (attributes,
and what needs a backslash), https://docs.datadoghq.com/api/latest/rate-limits/ (429, ``X-RateLimit-Reset``).

No limit of a query's length is documented, so questions are small. Only what is in an index is found: not what an
exclusion filter kept out of it, nor what lies in Flex Logs or an archive.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from tron_audit_otel.search_http import TooMuchError, parts, window_s

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tron_audit_otel.archive import Span
    from tron_audit_otel.search_http import Client

PATH = "/api/v2/logs/events/search"
FIELD = ("audit", "record", "id")
IDS_MAX = 100
IDS_BYTES_MAX = 6 * 1024

PAGES_MAX = 10
"""For a question; with more, something is stored many times over, and the question is split."""


class Datadog:
    """Asks for the attribute ``audit.record.id`` of logs in any index."""

    def __init__(self, client: Client) -> None:
        """Takes the way to its API."""
        self._client = client

    def ids(self, wanted: Sequence[str], span: Span) -> set[str]:
        """Gives those of the ids that it has.

        Raises:
            SearchError: It does not answer, or not as it should.
        """
        asked = set(wanted)
        found: set[str] = set()
        for part in parts(wanted, IDS_MAX, IDS_BYTES_MAX, escaped):
            found |= self._found(part, span)
        return found & asked

    def _found(self, ids: Sequence[str], span: Span) -> set[str]:
        """Asks for some, and for each half of them where the answer is too long.

        For one alone, the first log is enough: whoever sends an id a million times does not keep us from the others.
        """
        found: set[str] = set()
        try:
            for page, logs in enumerate(self._pages(ids, span), start=1):
                found.update(filter(None, map(record_id, logs)))
                if found.issuperset(ids) or len(ids) == 1:
                    return found
                if page == PAGES_MAX:
                    break
            else:
                return found
        except TooMuchError:
            if len(ids) == 1:
                raise
        half = len(ids) // 2
        return self._found(ids[:half], span) | self._found(ids[half:], span)

    def _pages(self, ids: Sequence[str], span: Span) -> Iterator[Sequence[object]]:
        since, until = window_s(span)
        body: dict[str, Any] = {
            "filter": {"query": query(ids), "from": str(since * 1000), "to": str(until * 1000), "indexes": ["*"]},
            "page": {"limit": len(ids)},
            "sort": "timestamp",
        }
        while True:
            answer = self._client.question(PATH, json=body)
            meta, logs = answer.get("meta") or {}, answer.get("data") or []
            page = (meta.get("page") or {}) if isinstance(meta, dict) else None
            if not isinstance(page, dict) or not isinstance(logs, list):
                raise self._client.odd(PATH, "lacks `data` or `meta`")
            if meta.get("status", "done") != "done":
                raise self._client.odd(PATH, f"is not whole: {meta.get('status')}")
            yield logs
            after = page.get("after")
            if not after:
                return
            body["page"]["cursor"] = after


def query(ids: Sequence[str]) -> str:
    """Gives the query for any of the ids."""
    return f"@{'.'.join(FIELD)}:({' OR '.join(map(escaped, ids))})"


def escaped(text: str) -> str:
    r"""Gives a term that is no operator: quoted if it is plain, else with a backslash before each special character.

    Control characters cannot be written, so a wildcard stands for each of them.

    >>> escaped("a b)")
    'a\\ b\\)'
    """
    if re.fullmatch(r"[A-Za-z0-9_-]+", text):
        return f'"{text}"'
    return "".join(_escaped(character) for character in text)


def _escaped(character: str) -> str:
    if character.isalnum() or character == "_":
        return character
    return f"\\{character}" if character.isprintable() else "?"


def record_id(log: object) -> str | None:
    """Finds the id in a log: Datadog gives attributes with dots in their names as objects in one another, or flat."""
    for step in ("attributes", "attributes"):
        log = log.get(step) if isinstance(log, dict) else None
    if isinstance(log, dict) and isinstance(flat := log.get(".".join(FIELD)), str):
        return flat
    for step in FIELD:
        log = log.get(step) if isinstance(log, dict) else None
    return log if isinstance(log, str) else None
