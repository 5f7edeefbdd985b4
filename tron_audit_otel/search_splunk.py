r"""Which records Splunk has. Written by its documentation; no Splunk could be had to run it against.

Where it is documented: Splunk's REST API Reference, "Search endpoint descriptions", search/v2/jobs/export (form, since
Splunk 9.0.1); Search Reference, "search" (quoted phrases, wildcards, which have no escape), "where", "JSON functions"
(``json_extract``) and "Text functions" (``urldecode``). The answer's lines,
``{"preview":false,"offset":0,"lastrow":true,"result":{…}}``, and the previews to pass over, are as other clients read
them.

- The id is taken out of the event by name. Splunk's own fields end after the first 5,000 bytes of an event
  (``extraction_cutoff`` in limits.conf), and what is not found would be sent again.
- Ids that consist of letters, digits and ``-_.`` are asked for as phrases, which Splunk finds by its index. What else
  there may be in an id has no sure way to be quoted there, so such ids are written with each of their bytes as ``%XX``
  and decoded by Splunk: no id can break out of its quotes, or be a wildcard.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from tron_audit_otel.search_http import parts, window_s

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tron_audit_otel.archive import Span
    from tron_audit_otel.search_http import Client

PATH = "/services/search/v2/jobs/export"
SOURCETYPE = "tron:audit"
FIELD = "record_id"
TAKEN = "tron_record_id"
"""What the search calls it, so that it is no field that Splunk makes."""
IDS_MAX = 500
IDS_BYTES_MAX = 32 * 1024

_PLAIN = re.compile(r"[A-Za-z0-9_.-]+")
_INDEX = re.compile(r"[a-z0-9_*-]+")


class Splunk:
    """Asks for the ``record_id`` of events of sourcetype ``tron:audit``."""

    def __init__(self, client: Client, index: str | None = None) -> None:
        """Takes the index that is searched, by default each that the user may search.

        Raises:
            ValueError: No index can have that name.
        """
        if index is not None and not _INDEX.fullmatch(index):
            raise ValueError(index)
        self._client = client
        self._index = index or "*"

    def ids(self, wanted: Sequence[str], span: Span) -> set[str]:
        """Gives those of the ids that it has.

        Raises:
            SearchError: It does not answer, or not as it should, or says that its answer is not all.
        """
        asked = set(wanted)
        found: set[str] = set()
        plain = [text for text in wanted if _PLAIN.fullmatch(text)]
        others = [text for text in wanted if not _PLAIN.fullmatch(text)]
        for part in parts(plain, IDS_MAX, IDS_BYTES_MAX, str):
            found |= self._found(by_index(self._index, part), span)
        for part in parts(others, IDS_MAX, IDS_BYTES_MAX, encoded):
            found |= self._found(by_reading(self._index, part), span)
        return found & asked

    def _found(self, search: str, span: Span) -> set[str]:
        since, until = window_s(span)
        answer = self._client.post(
            PATH,
            data={
                "search": search,
                "earliest_time": since,
                "latest_time": until,
                "output_mode": "json",
                "preview": "false",
                "adhoc_search_level": "fast",
            },
        )
        rows = [self._client.parsed(PATH, row) for row in answer.splitlines() if row.strip()]
        self._check(rows)
        results = [row.get("result") for row in rows if not row.get("preview")]
        return {str(result.get(TAKEN)) for result in results if isinstance(result, dict)}

    def _check(self, rows: Sequence[dict[str, Any]]) -> None:
        """Raises an error when the search has failed, in whole or in part: then HTTP's status is 200 all the same."""
        for row in rows:
            messages = row.get("messages")
            for message in messages if isinstance(messages, list) else []:
                if isinstance(message, dict) and message.get("type") in ("ERROR", "FATAL"):
                    raise self._client.odd(PATH, f"is an error: {message.get('text')}")
        if not any(row.get("lastrow") and not row.get("preview") for row in rows):
            raise self._client.odd(PATH, "has no last row: it is not whole")


def by_index(index: str, ids: Sequence[str]) -> str:
    """Gives the search for ids of plain characters."""
    return f"{_base(index)} ({' OR '.join(map(_quoted, ids))}) | {_TAKE} | stats count by {TAKEN}"


def by_reading(index: str, ids: Sequence[str]) -> str:
    """Gives the search for any ids, which reads each event of the time."""
    terms = " OR ".join(f"{TAKEN}=urldecode({_quoted(encoded(text))})" for text in ids)
    return f"{_base(index)} | {_TAKE} | where {terms} | stats count by {TAKEN}"


_TAKE = f'eval {TAKEN}=json_extract(_raw, "{FIELD}")'


def _base(index: str) -> str:
    return f'search index="{index}" sourcetype="{SOURCETYPE}"'


def _quoted(text: str) -> str:
    return f'"{text}"'


def encoded(text: str) -> str:
    """Writes each byte as ``%XX``, but for letters, digits and ``-_.~``.

    >>> encoded('a"b')
    'a%22b'
    """
    return quote(text, safe="")
