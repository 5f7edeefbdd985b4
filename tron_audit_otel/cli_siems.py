"""What the Collector says of each SIEM, for ``tron-audit status``: what waits, what it refused, what mends that."""

from __future__ import annotations

import math
import shlex
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from tron_audit_otel import archive_tail, collector_metrics, siem_looks
from tron_audit_otel.cli_text import ago, count, duration, size
from tron_audit_otel.errors import CollectorError
from tron_audit_otel.tool_config import METRICS, ToolConfig, metrics_url

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping, Sequence

    from tron_audit_otel.collector_metrics import Collector, Siem
    from tron_audit_otel.siem_looks import Debt, Noted

LATE_SECONDS = 300
"""A record's time is when its action began; it reaches the Collector when that has ended and was shipped."""
LATE_SECONDS_MAX = 7 * 86_400
"""A record may have waited in its sender's journal; the archive tells. One that is later has a clock that is wrong, or
is a case for `reconcile`: everything since it would be sent again."""
AHEAD_SECONDS = 3600
"""A sender's clock may be so far ahead of this one, as the archive has it (`CLOCKS_APART_SECONDS_MAX`). What is said to
be mended must have been sent, and what came in this hour may come twice."""
SETTLE_SECONDS = 2
"""A batch waits a second at most; after that, what is uncounted still is not merely on its way."""
STILL_SECONDS_MAX = 60
"""Twice the longest pause between two attempts (`max_interval`): a SIEM that takes nothing for so long is down."""
OLDEST_SECONDS_MAX = 300
"""A record that waits longer is a problem, unless the SIEM is seen to catch up."""
ATTEMPTS_MIN = 3
"""So many failures and no success, and nobody need look a second time."""
FILL_MAX = 0.5
"""Of a queue; a full one stops the intake for every SIEM."""

_GOOD = range(200, 300)
_RETRIED = frozenset({429, 502, 503, 504})
"""By every exporter here."""
_KEPT = "Their senders keep them, and send them again."


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument(
        "--collector",
        type=metrics_url,
        metavar="URL",
        help="where the Collector shows its metrics; by default AUDIT_COLLECTOR_METRICS_HOST and _PORT say so",
    )
    parser.add_argument(
        "--archive",
        type=Path,
        metavar="DIR",
        help="the Collector's archive, which tells since when records wait; by default below AUDIT_COLLECTOR_DATA",
    )


@dataclass(frozen=True, slots=True)
class Told:
    """What there is to say of the Collector and the SIEMs."""

    answers: bool
    data: dict[str, object]
    """The keys ``collector`` and ``siems``."""
    lines: list[str]
    waiting: str = ""
    """What is on the way, in a few words; empty when nothing is."""
    problems: list[tuple[str, str]] = field(default_factory=list)
    """A word and a sentence for each."""


def look(options: argparse.Namespace, environ: Mapping[str, str]) -> Told:
    """Asks the Collector.

    Raises:
        ConfigError: A setting says wrongly where it is.
    """
    config = ToolConfig.of_collector(environ)
    url = options.collector or config.metrics_url
    is_named = options.collector is not None or any(environ.get(name, "").strip() for name in METRICS)
    looks = siem_looks.kept()
    try:
        collector = _settled(url)
    except CollectorError as error:
        data: dict[str, object] = {"collector": {"url": url, "answers": False, "error": str(error)}, "siems": []}
        seen_at = looks.seen_at(url)
        if not is_named and seen_at is None:
            return Told(answers=False, data=data, lines=[f"No Collector at {url}"])
        seen = "" if seen_at is None else f" It was last seen {ago(seen_at)}."
        problem = ("collector_silent", f"{error}.{seen} See whether it runs.")
        return Told(answers=False, data=data, lines=[f"Collector {url}: no answer"], problems=[problem])
    noted = looks.note(collector)
    archive = options.archive or config.archive
    rows = [_row(siem, noted.debts[siem.name], archive, options, collector) for siem in collector.siems]
    return _told(collector, noted, rows)


def _settled(url: str) -> Collector:
    """Asks once more where records seem to be missing: they may only not have been counted yet."""
    collector = collector_metrics.read(url)
    if any(siem.unaccounted for siem in collector.siems):
        time.sleep(SETTLE_SECONDS)
        collector = collector_metrics.read(url)
    return collector


@dataclass(frozen=True, slots=True)
class _Row:
    siem: Siem
    debt: Debt
    oldest_at: float | None
    since: int
    """A replay since then has all that it lacks, as far as can be told; in seconds since 1970."""
    replay: list[str] | None
    too_early: float | None = None
    """Some of what came bears a time from before ``since``."""
    settle: str = ""
    """How to settle what may be lost there; empty when nothing may."""


def _row(siem: Siem, debt: Debt, archive: Path, options: argparse.Namespace, collector: Collector) -> _Row:
    oldest_at = archive_tail.observed_at(archive, siem.waiting) if siem.waiting else None
    since = math.floor(debt.since) - LATE_SECONDS
    given = {"--collector": options.collector, "--archive": options.archive}
    places = [str(part) for option, value in given.items() if value is not None for part in (option, value)]
    settle = _settle(siem, debt, places) if debt.doubt is not None or debt.unaccounted else ""
    if not debt.owed:
        return _Row(siem, debt, oldest_at, since, None, settle=settle)
    earliest = archive_tail.earliest(archive, debt.arrived) if debt.arrived else None
    too_early = None
    if earliest is not None and earliest < since - LATE_SECONDS_MAX:
        too_early = earliest
    elif earliest is not None:
        since = min(since, math.floor(earliest))
    replay = [
        *("tron-audit", "replay", "--to", siem.name),
        *("--since", _iso(since), "--until", _iso(math.ceil(collector.read_at) + AHEAD_SECONDS)),
        *places,
    ]
    return _Row(siem, debt, oldest_at, since, replay, too_early, settle)


def _settle(siem: Siem, debt: Debt, places: Sequence[str]) -> str:
    since = _iso(min(debt.since, debt.doubt or debt.since) - LATE_SECONDS)
    reconcile = shlex.join(["tron-audit", "reconcile", "--siem", siem.name, "--since", since, *places])
    replay = shlex.join(["tron-audit", "replay", "--to", siem.name, "--since", since, *places])
    return f"`{reconcile}` finds them and sends them again; where it has no search, `{replay}` sends everything again."


def _iso(epoch_s: float) -> str:
    return datetime.fromtimestamp(max(0.0, epoch_s), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _told(collector: Collector, noted: Noted, rows: Sequence[_Row]) -> Told:
    notes = list(_notes(collector, noted, rows))
    waiting = [row.siem for row in rows if row.siem.waiting_bytes]
    return Told(
        answers=True,
        data={
            "collector": {
                "url": collector.url,
                "answers": True,
                "started_at": collector.started_at,
                "accepted": collector.accepted,
                "refused": collector.refused,
                "archived": collector.archived,
                "archive_failed": collector.archive_failed,
                "answers_elsewhere": collector.elsewhere,
                "notes": notes,
            },
            "siems": [_described(row) for row in rows],
        },
        lines=[
            f"Collector {collector.url}: up for {duration(collector.uptime_s)}; counts are since its start",
            f"  receiver: {count(collector.accepted)} taken, {collector.refused:,} refused",
            f"  archive: {count(collector.archived)} written, {collector.archive_failed:,} failed",
            *(line for row in rows for line in _lines(row)),
            *([] if rows else ["  it has no SIEM: setting one's variables turns it on"]),
            *(f"  Note: {note}" for note in notes),
        ],
        waiting=" and ".join(f"{_waiting(siem)} for {siem.name}" for siem in waiting),
        problems=list(_problems(collector, noted, rows)),
    )


def _notes(collector: Collector, noted: Noted, rows: Sequence[_Row]) -> Iterator[str]:
    if noted.trouble:
        yield f"{noted.trouble}. Without it, what was refused before or mended is not known."
    elif noted.is_first and rows:
        start = f"the Collector's start, {ago(collector.started_at)},"
        yield f"this is the first look. What a SIEM refused before {start} is counted nowhere."
    if noted.unseen_since is not None and rows:
        since = _iso(noted.unseen_since - LATE_SECONDS)
        yield (
            f"the Collector has started anew. What a SIEM refused between the last look, {ago(noted.unseen_since)}, "
            f"and that start is counted nowhere: `tron-audit reconcile --siem NAME --since {since}` finds it."
        )
    if any(row.siem.taken is None for row in rows):
        yield "how many records a SIEM took is told at service.telemetry.metrics.level: detailed alone."
    for address, codes in collector.elsewhere.items():
        yield f"{address} answered {_codes(codes, 0)}; whose that is, the Collector does not tell."


# --- what an operator has to do


def _problems(collector: Collector, noted: Noted, rows: Sequence[_Row]) -> Iterator[tuple[str, str]]:
    if noted.archive_failed_lately:
        failed = f"The archive could not be written: {count(collector.archive_failed)} since the Collector's start"
        wanted = "Look after the disk of AUDIT_COLLECTOR_DATA."
        yield "archive_failed", f"{failed}. {_KEPT} {wanted}"
    for row in rows:
        yield from _problems_of(row, collector.uptime_s)
    if noted.refused_lately and not noted.archive_failed_lately and not any(r.debt.turned_away_lately for r in rows):
        wanted = "See its log: it lacks memory (AUDIT_COLLECTOR_MEMORY_MIB), or a disk is full."
        refused = f"The Collector has refused {count(collector.refused)} since its start"
        yield "collector_refused", f"{refused}. {_KEPT} {wanted}"


def _problems_of(row: _Row, uptime_s: float) -> Iterator[tuple[str, str]]:
    siem, debt = row.siem, row.debt
    if row.replay is not None:
        yield "siem_refused", _refused(row, row.replay)
    if debt.doubt is not None:
        lost = "A Collector that is killed while it starts, or starts on a full disk, loses some without a word."
        yield (
            "siem_doubt",
            f"{siem.name}: records waited for it when the Collector was started anew. {lost} {row.settle}",
        )
    if debt.unaccounted:
        lost = f"the Collector cannot account for {count(debt.unaccounted)}, as after a full disk"
        yield "siem_lacks", f"{siem.name}: {lost}. {row.settle}"
    if debt.turned_away_lately:
        full = f"{siem.name}: its queue is full or cannot be written ({_fill(siem)} of {size(siem.capacity_bytes)})"
        wanted = "Mend that SIEM, look after the disk of AUDIT_COLLECTOR_DATA, or raise AUDIT_COLLECTOR_QUEUE_BYTES."
        yield "siem_queue_full", f"{full}, so that the Collector takes nothing for any SIEM. {_KEPT} {wanted}"
    elif siem.waiting_bytes > FILL_MAX * siem.capacity_bytes:
        wanted = "Mend that SIEM, or raise AUDIT_COLLECTOR_QUEUE_BYTES: a full one stops the intake for every SIEM."
        yield "siem_queue", f"{siem.name}: its queue is {_fill(siem)} full. {wanted}"
    if (why := _is_down(row, uptime_s)) is not None:
        answers = _codes(siem.answers, siem.unanswered)
        told = f"; its answers: {answers}" if answers else ""
        wanted = "It is tried again by itself: see whether it can be reached, and the Collector's log for what it says."
        yield "siem_down", f"{siem.name}: {why}{told}. {wanted}"


def _refused(row: _Row, replay: Sequence[str]) -> str:
    siem, debt = row.siem, row.debt
    bad = _codes({code: times for code, times in siem.answers.items() if code not in {*_GOOD, *_RETRIED}}, 0)
    told = f" (it answered {bad})" if bad else ""
    reconcile = f"tron-audit reconcile --siem {shlex.quote(siem.name)}"
    more = ""
    if row.too_early is not None:
        more = f" Some of what came bears an earlier time: `{reconcile} --since {_iso(row.too_early)}` finds it."
    elif not debt.clean:
        since = _iso(row.since)
        more = f" No earlier look saw it without a fault: what came before {since}, `{reconcile} --since …` finds."
    return (
        f"{siem.name} has refused {count(debt.owed)} for good{told}.{more} Mend the cause first, most often its token, "
        f"then send them again: {shlex.join(replay)}"
    )


def _is_down(row: _Row, uptime_s: float) -> str | None:
    """Tells why it is taken for down: by earlier looks, or by what this one shows alone."""
    siem, debt = row.siem, row.debt
    if not siem.waiting_bytes or debt.grew:
        return None
    failures = siem.unanswered + sum(times for code, times in siem.answers.items() if code not in _GOOD)
    if not siem.delivered and failures >= ATTEMPTS_MIN and not any(code in _GOOD for code in siem.answers):
        return f"it has taken nothing, and {_waiting(siem)} wait"
    if uptime_s < STILL_SECONDS_MAX:  # what waited on disk has hardly been tried
        return None
    if debt.still_s >= STILL_SECONDS_MAX:
        return f"nothing was delivered for {duration(debt.still_s)}, and {_waiting(siem)} wait"
    if row.oldest_at is not None and time.time() - row.oldest_at > OLDEST_SECONDS_MAX:
        return f"{_waiting(siem)} wait, the oldest from about {ago(row.oldest_at)}"
    return None


# --- how it is told


def _described(row: _Row) -> dict[str, object]:
    siem, debt = row.siem, row.debt
    return {
        "name": siem.name,
        "exporter": siem.exporter,
        "taken": siem.taken,
        "delivered": siem.delivered,
        "waiting": siem.waiting,
        "waiting_bytes": siem.waiting_bytes,
        "capacity_bytes": siem.capacity_bytes,
        "oldest_waiting_at": row.oldest_at,
        "refused": siem.refused,
        "turned_away": siem.turned_away,
        "owed": debt.owed,
        "unaccounted": debt.unaccounted,
        "doubtful_since": debt.doubt,
        "since": row.since,
        "since_is_clean": debt.clean,
        "answers": siem.answers,
        "unanswered": siem.unanswered,
        "replay": row.replay,
    }


def _lines(row: _Row) -> Iterator[str]:
    siem, debt = row.siem, row.debt
    taken = "?" if siem.taken is None else f"{siem.taken:,}"
    owed = "" if debt.owed == siem.refused else f" (not sent again: {debt.owed:,})"
    yield f"{siem.name}: {taken} taken, {siem.delivered:,} delivered, {siem.refused:,} refused{owed}"
    if siem.waiting_bytes:
        oldest = "since when is not known" if row.oldest_at is None else f"the oldest from about {ago(row.oldest_at)}"
        yield f"  waiting: {_waiting(siem)} in {size(siem.waiting_bytes)}, {_fill(siem)} of the queue; {oldest}"
    if siem.turned_away:
        yield f"  found no room in the queue: {siem.turned_away:,}"
    if answers := _codes(siem.answers, siem.unanswered):
        yield f"  answers: {answers}"


def _fill(siem: Siem) -> str:
    return f"{siem.waiting_bytes / max(1, siem.capacity_bytes):.0%}"


def _waiting(siem: Siem) -> str:
    return "records" if siem.waiting is None else f"about {count(siem.waiting)}"


def _codes(codes: Mapping[int, int], unanswered: int) -> str:
    told = [f"{code} ({times:,})" for code, times in codes.items()]
    return ", ".join([*told, f"none ({unanswered:,})"] if unanswered else told)
