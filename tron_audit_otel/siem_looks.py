"""What earlier looks at the Collector saw, in a small file: since when a SIEM lacks records, and what was mended.

The Collector counts what a SIEM refused, and says neither when nor which records, nor whether somebody has sent them
again; and it begins anew with each start. Hence this file, one entry a Collector and SIEM:

- A SIEM is *clean* at a look that finds nothing waiting and nothing owed. All that is refused later was taken by the
  Collector after that look, however long it waited before it was refused; so a replay since then mends it. Before the
  first such look the Collector's start has to do, and what waited longer than that only `tron-audit reconcile` finds.
- Owed is what was refused, less what was mended. When the Collector has started anew, what was owed stays owed. What
  was refused between the last look and that start is not counted anywhere; the look after it says so.
- The Collector may lose what waits, without a word: when it is killed while it starts, or on a full disk. So what
  waited before a start is in *doubt*, and what a queue took and nobody can account for is *unaccounted*, until a
  replay or `tron-audit reconcile` has settled it.
- A replay mends what had been refused before it began, if its span reaches from that clean look to the refusal. What
  is refused while it runs stays owed, since the same clean look.
- A file that is missing, damaged or not to be written costs the history, never the answer.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, TypeVar
from uuid import UUID

from platformdirs import user_state_path
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tron_audit_otel.config import STATE
from tron_audit_otel.disk import open_directory, read_file, replace_file
from tron_audit_otel.stream_dir import locked

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from tron_audit_otel.archive import Span
    from tron_audit_otel.collector_metrics import Collector, Siem

    Result = TypeVar("Result")

FILE = "siems.json"
_LOCK = "siems.lock"
LOCK_SECONDS_MAX = 2
"""A look holds it for as long as a small file takes."""
FILE_BYTES_MAX = 1 << 20
COLLECTORS_MAX = 32
"""Those that were looked at longest ago are forgotten."""
RECENT_SECONDS = 600
"""So long a counter is called growing after a look has seen it grow: two people, or a monitor and one, look in turn."""
CLOCK_SECONDS = 60
"""Two reckonings of one start may differ by so much."""

_NS = 10**9

_LATEST_S = 4_102_444_800
"""2100: a time that can be told."""
_Time = Annotated[float, Field(ge=0, le=_LATEST_S)]
_Count = Annotated[int, Field(ge=0)]


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class _Grown(_Model):
    """A counter that ought to stand still."""

    value: _Count
    at: _Time | None
    """When a look saw it grown; None: it never did."""


class _Entry(_Model):
    """A SIEM at a Collector."""

    since: _Time
    """What it lacks was taken after this, in seconds since 1970."""
    clean: bool
    """``since`` is a look that found it clean; else a start of the Collector."""
    refused: _Count
    """As at the last look, since the Collector's start."""
    refused_at: _Time
    """The last look that saw more of it than the one before."""
    mended: _Count = 0
    """Of ``refused``."""
    owed: _Count = 0
    """From before the Collector's start."""
    delivered: _Count
    stuck_since: _Time | None
    """The first look that saw something wait, and nothing delivered since. None: there is no such."""
    arrived: _Count
    """Records that the archive took since ``since``."""
    turned_away: _Grown
    waited: bool = False
    """Something was in its queue at the last look."""
    doubt: _Time | None = None
    """What was taken after this may have been lost when the Collector started anew. None: nothing is in doubt."""
    settled: _Count = 0
    """Of what this run of the Collector cannot account for."""


class _Seen(_Model):
    """A Collector, at the last look."""

    read_at: _Time
    uptime_s: float
    instance: str
    archived: _Count
    refused: _Grown
    archive_failed: _Grown
    siems: dict[str, _Entry]


class _State(_Model):
    collectors: dict[str, _Seen] = {}


@dataclass(frozen=True, slots=True)
class Debt:
    """What a SIEM lacks, as far as counters tell."""

    owed: int
    """Records that it refused and nobody has sent again."""
    since: float
    """The Collector took them after this, in seconds since 1970."""
    clean: bool
    """It was clean then; else this is merely a start of the Collector."""
    grew: bool
    """It has delivered records since the look before this one."""
    still_s: float
    """So long it has delivered nothing although something waited, as far as was looked."""
    arrived: int
    """Records that the archive took after ``since``: the newest so many."""
    turned_away_lately: bool
    doubt: float | None
    """The Collector has started anew, and may have lost what it took after this and had not delivered before."""
    unaccounted: int
    """Records that it took, and neither delivered nor refused, and that do not wait; as far as nobody settled it."""


@dataclass(frozen=True, slots=True)
class Noted:
    """What the file knew, and knows now."""

    debts: Mapping[str, Debt]
    """By the SIEM's name."""
    refused_lately: bool
    """The receiver has refused records since the last look, or within RECENT_SECONDS."""
    archive_failed_lately: bool
    is_first: bool
    """There is no earlier look at this Collector."""
    unseen_since: float | None
    """The Collector has started anew; what it refused between this last look and its start is not known."""
    trouble: str | None
    """Why the history is not to be had; None: it is."""


def kept() -> Looks:
    """Gives the file of this user."""
    return Looks(user_state_path(STATE) / FILE)


class Looks:
    """The file."""

    def __init__(self, path: Path) -> None:
        """Takes where it is; its directory is made when there is something to write."""
        self._path = path

    def note(self, collector: Collector) -> Noted:
        """Compares a look with the earlier ones, and keeps it. Never raises for the file's sake."""

        def change(state: _State) -> Noted:
            before = state.collectors.get(collector.url)
            seen = _seen(before, collector)
            state.collectors[collector.url] = seen
            return Noted(
                debts={siem.name: _debt(before, seen, siem, collector) for siem in collector.siems},
                refused_lately=_lately(seen.refused, collector),
                archive_failed_lately=_lately(seen.archive_failed, collector),
                is_first=before is None,
                unseen_since=before.read_at if before and _is_another_run(before, collector) else None,
                trouble=None,
            )

        noted, trouble = self._update(change)
        return replace(noted, trouble=trouble)

    def seen_at(self, url: str) -> float | None:
        """Gives when the Collector was last looked at, in seconds since 1970; None: never, or nobody knows."""
        try:
            directory = open_directory(self._path.parent)
        except OSError:
            return None
        try:
            seen = self._read(directory)[0].collectors.get(url)
        finally:
            os.close(directory)
        return seen.read_at if seen else None

    def mended(self, siem: str, span: Span, collector: Collector) -> int:
        """Notes that a replay of this span to this SIEM has succeeded; gives how many records that mends.

        Args:
            siem: Its name.
            span: What was sent again, all of it.
            collector: As it was read before the replay began: what was refused since then stays owed.
        """

        def change(state: _State) -> int:
            before = state.collectors.get(collector.url)
            earlier = before.siems.get(siem) if before else None
            seen = state.collectors[collector.url] = _seen(before, collector)
            entry = seen.siems.get(siem)
            if entry is None:
                return 0
            if entry.doubt is not None and covers(span, entry.doubt, collector.started_at):
                entry.doubt = None
            if span.since_ns > (earlier or entry).since * _NS:
                return 0
            owed = _owed(entry)
            if span.until_ns >= collector.read_at * _NS:
                known = next((each for each in collector.siems if each.name == siem), None)
                _mend(entry, known.refused if known else 0)
                entry.settled = max(entry.settled, known.unaccounted if known else 0)
            elif before and earlier and span.until_ns >= earlier.refused_at * _NS:
                _mend(entry, 0 if _is_another_run(before, collector) else earlier.refused)
            return owed - _owed(entry)

        return self._update(change)[0]

    def _update(self, change: Callable[[_State], Result]) -> tuple[Result, str | None]:
        trouble: str | None = None
        with ExitStack() as stack:
            directory: int | None = None
            try:
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                directory = open_directory(self._path.parent)
                stack.callback(os.close, directory)
                stack.enter_context(locked(_LOCK, directory, LOCK_SECONDS_MAX))
            except OSError as error:
                trouble = self._trouble(error)
            state, unread = self._read(directory)
            result = change(state)
            if directory is not None and trouble is None:
                try:
                    replace_file(self._path.name, directory, _kept(state), sync=False)
                except OSError as error:
                    trouble = self._trouble(error)
        return result, unread or trouble

    def _read(self, directory: int | None) -> tuple[_State, str | None]:
        if directory is None:
            return _State(), None
        try:
            content = read_file(self._path.name, directory, FILE_BYTES_MAX)
            return (_State() if content is None else _State.model_validate_json(content)), None
        except ValidationError:
            return _State(), f"{self._path} was damaged, and is begun anew"
        except OSError as error:
            return _State(), self._trouble(error)

    def _trouble(self, error: OSError) -> str:
        return f"{self._path} cannot be kept: {error.strerror or error}"


def covers(span: Span, since: float, until: float) -> bool:
    """Tells whether all of that time, in seconds since 1970, is within the span."""
    return span.since_ns <= since * _NS and span.until_ns >= until * _NS


def _kept(state: _State) -> bytes:
    latest = sorted(state.collectors.items(), key=lambda item: item[1].read_at)[-COLLECTORS_MAX:]
    return _State(collectors=dict(latest)).model_dump_json().encode()


# --- one look after another


def _is_older(before: _Seen, collector: Collector) -> bool:
    """Another look at the same run was faster, or was made while a replay ran."""
    return (
        collector.instance == before.instance
        and collector.uptime_s < before.uptime_s
        and collector.read_at <= before.read_at
        and abs(collector.started_at - (before.read_at - before.uptime_s)) <= CLOCK_SECONDS
    )


def _is_another_run(before: _Seen, collector: Collector) -> bool:
    if _is_older(before, collector):
        return False
    if before.instance != collector.instance or collector.uptime_s < before.uptime_s:
        return True
    # An instance that somebody has set stays the same at each start; a random one tells by itself, whatever clocks do.
    started_at = before.read_at - before.uptime_s
    return not _is_random(collector.instance) and abs(collector.started_at - started_at) > CLOCK_SECONDS


def _is_random(instance: str) -> bool:
    try:
        UUID(instance)
    except ValueError:
        return False
    return True


def _seen(before: _Seen | None, collector: Collector) -> _Seen:
    if before is not None and _is_older(before, collector):
        return before.model_copy(deep=True)
    another = before is not None and _is_another_run(before, collector)
    entries = dict(before.siems) if before else {}
    for siem in collector.siems:
        earlier = entries.get(siem.name)
        entry = _entry(earlier, siem, collector, another=another)
        if another and earlier is not None and earlier.waited:
            entry.doubt = earlier.since if earlier.doubt is None else min(earlier.doubt, earlier.since)
        entry.arrived += collector.archived - (before.archived if before and not another else 0)
        if _is_clean(entry, siem):
            entry.since, entry.clean, entry.arrived = collector.read_at, True, 0
        if before is not None and before.read_at > collector.read_at + CLOCK_SECONDS:
            # The clock was set back: what it said before may lie in the future, or far too late.
            entry.since, entry.clean = min(entry.since, collector.started_at), False
            entry.refused_at = collector.read_at
            entry.stuck_since = collector.read_at if entry.stuck_since is not None else None
        entries[siem.name] = entry
    return _Seen(
        read_at=collector.read_at,
        uptime_s=collector.uptime_s,
        instance=collector.instance,
        archived=collector.archived,
        refused=_grown(before.refused if before else None, collector.refused, collector, another=another),
        archive_failed=_grown(
            before.archive_failed if before else None, collector.archive_failed, collector, another=another
        ),
        siems=entries,
    )


def _entry(before: _Entry | None, siem: Siem, collector: Collector, *, another: bool) -> _Entry:
    now = collector.read_at
    turned_away = _grown(before.turned_away if before else None, siem.turned_away, collector, another=another)
    if before is None:
        entry = _Entry(
            since=collector.started_at,
            clean=False,
            refused=siem.refused,
            refused_at=now,
            delivered=siem.delivered,
            stuck_since=now if siem.waiting_bytes else None,
            arrived=0,
            turned_away=turned_away,
        )
    else:
        # A SIEM that was turned off for a while, and a counter that went down, are like a start of the Collector.
        another = another or siem.refused < before.refused
        moved = siem.delivered > (0 if another else before.delivered)
        unmended = max(0, before.refused - before.mended) if another else 0
        entry = _Entry(
            since=before.since,
            clean=before.clean,
            refused=siem.refused,
            refused_at=now if siem.refused > (0 if another else before.refused) else before.refused_at,
            mended=0 if another else before.mended,
            owed=before.owed + unmended,
            delivered=siem.delivered,
            stuck_since=(before.stuck_since or now) if siem.waiting_bytes and not moved else None,
            arrived=before.arrived,
            turned_away=turned_away,
            doubt=before.doubt,
            settled=0 if another else before.settled,
        )
    entry.waited = bool(siem.waiting_bytes)
    return entry


def _is_clean(entry: _Entry, siem: Siem) -> bool:
    # The metrics are no snapshot: a queue may be told as empty when what became of the last of it was not yet counted.
    is_counted = siem.taken is None or siem.delivered + siem.refused + entry.settled >= siem.taken
    return not siem.waiting_bytes and is_counted and not _owed(entry)


def _mend(entry: _Entry, refused: int) -> None:
    """Takes what was owed, and so much of this run's, as mended."""
    entry.owed, entry.mended = 0, min(entry.refused, max(entry.mended, refused))


def _owed(entry: _Entry) -> int:
    return entry.owed + max(0, entry.refused - entry.mended)


def _debt(before: _Seen | None, seen: _Seen, siem: Siem, collector: Collector) -> Debt:
    entry = seen.siems.get(siem.name) or _entry(None, siem, collector, another=False)
    earlier = before.siems.get(siem.name) if before and not _is_another_run(before, collector) else None
    return Debt(
        owed=_owed(entry),
        since=entry.since,
        clean=entry.clean,
        grew=earlier is not None and siem.delivered > earlier.delivered,
        still_s=max(0.0, collector.read_at - (entry.stuck_since or collector.read_at)),
        arrived=entry.arrived,
        turned_away_lately=_lately(entry.turned_away, collector),
        doubt=entry.doubt,
        unaccounted=max(0, siem.unaccounted - entry.settled),
    )


def _grown(before: _Grown | None, value: int, collector: Collector, *, another: bool) -> _Grown:
    if value > (before.value if before and not another else 0):
        return _Grown(value=value, at=collector.read_at)
    return _Grown(value=value, at=before.at if before else None)


def _lately(grown: _Grown, collector: Collector) -> bool:
    return grown.at is not None and 0 <= collector.read_at - grown.at < RECENT_SECONDS
