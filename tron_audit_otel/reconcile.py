"""What a SIEM lacks of the archive: the archive's ids against those that the SIEM's own search returns.

The SIEM is asked for the archive's ids, some at a time, and not for all that it has: no page can be missed, and what
others have written to it does not matter.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tron_audit_otel.archive import Span, deed, log_records, record_id, record_time_ns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
    from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

    from tron_audit_otel.collector_metrics import Siem
    from tron_audit_otel.search import Search

ASKED_AT_ONCE = 1000

ID_BYTES_MAX = 512
"""Elasticsearch takes no longer id of a document, and ours have 36. A question with a longer one could be more than a
search takes, and would keep us from an answer about the others."""

WAITING_DOUBT = 2
"""How many records wait is an estimate by their average size: so many times that have to be worked off."""

LOOK_SECONDS = 1


@dataclass(frozen=True, slots=True)
class Lacking:
    """A record that the SIEM lacks. Its words are its sender's, and can be anything."""

    id: str
    time_ns: int
    actor: str
    action: str


@dataclass(slots=True)
class Comparison:
    """What was compared."""

    archived: int = 0
    """Records in the archive that could be asked for."""
    unasked: int = 0
    """Records that could not; see :func:`can_be_asked`."""
    missing: dict[str, Lacking] = field(default_factory=dict)
    """By id, in the archive's order."""

    @property
    def found(self) -> int:
        """Those that the SIEM has."""
        return self.archived - len(self.missing)


def compare(
    requests: Iterable[ExportLogsServiceRequest],
    search: Search,
    span: Span,
    on_asked: Callable[[Comparison], None] = lambda _: None,
) -> Comparison:
    """Asks the SIEM for each record of the archive.

    In memory are what is missing (some 300 bytes each) and one question.

    Args:
        requests: From :func:`tron_audit_otel.archive.read`.
        search: The SIEM's.
        span: The requests'.
        on_asked: Is told after each question how it stands.

    Raises:
        SearchError: The SIEM does not answer, or not as it should.
        ArchiveError: The archive cannot be read.
    """
    comparison = Comparison()
    asked: dict[str, LogRecord] = {}

    def ask() -> None:
        found = search.ids(list(asked), _around(span, map(record_time_ns, asked.values())))
        comparison.archived += len(asked)
        comparison.missing |= {text: _lacking(text, record) for text, record in asked.items() if text not in found}
        asked.clear()
        on_asked(comparison)

    for request in requests:
        for record in log_records(request):
            found_id = record_id(record)
            if not can_be_asked(found_id):
                comparison.unasked += 1
                continue
            asked[found_id] = record
            if len(asked) == ASKED_AT_ONCE:
                ask()
    if asked:
        ask()
    return comparison


def can_be_asked(text: str) -> bool:
    r"""Tells whether an id can be asked for at every search, and stand on a line of a file of ids.

    Who may write to the Collector may choose any, or none. Ours are UUIDs.

    >>> can_be_asked("a b"), can_be_asked(""), can_be_asked("a\nb")
    (True, False, False)
    """
    return 0 < len(text.encode()) <= ID_BYTES_MAX and text.isprintable() and text == text.strip()


def ask_again(missing: Mapping[str, Lacking], search: Search, span: Span) -> dict[str, Lacking]:
    """Gives what is still missing.

    Raises:
        SearchError: The SIEM does not answer, or not as it should.
    """
    ids = list(missing)
    found: set[str] = set()
    for begin in range(0, len(ids), ASKED_AT_ONCE):
        part = ids[begin : begin + ASKED_AT_ONCE]
        found |= search.ids(part, _around(span, (missing[text].time_ns for text in part)))
    return {text: lacking for text, lacking in missing.items() if text not in found}


def _around(span: Span, times_ns: Iterable[int]) -> Span:
    """Gives the span with what came late in it, which happened before it began."""
    return Span(min(span.since_ns, *times_ns), span.until_ns)


def worked_off(look: Callable[[], Siem], seconds_max: float) -> bool:
    """Waits until all that waits for the SIEM now is delivered or refused; tells whether it is.

    A SIEM that takes records all the time always has some that wait. What waits now is worked off when the queue is
    empty, or when so many have left it since: it is first in, first out.

    Args:
        look: Reads the Collector's metrics.
        seconds_max: How long it may take.

    Raises:
        CollectorError: The Collector's metrics cannot be read.
    """
    deadline_s = time.monotonic() + seconds_max
    first = siem = look()
    while siem.waiting_bytes:
        left = siem.delivered + siem.refused - first.delivered - first.refused
        if first.waiting is not None and left > WAITING_DOUBT * first.waiting:
            return True
        if time.monotonic() >= deadline_s:
            return False
        time.sleep(LOOK_SECONDS)
        siem = look()
    return True


def first(missing: Mapping[str, Lacking], count: int) -> Sequence[Lacking]:
    """Gives the first by id."""
    return [missing[text] for text in sorted(missing)[:count]]


def _lacking(text: str, record: LogRecord) -> Lacking:
    return Lacking(text, record_time_ns(record), *deed(record))
