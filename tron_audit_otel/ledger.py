"""What became of each record: ``emitted = delivered + pending + dead_lettered + dropped``, at every moment.

A record is emitted; it waits in memory until it is committed to the journal; from there it is delivered, set aside as
a dead letter, or found damaged. What is not committed is dropped for a reason. Every step is counted once, under one
lock that is held for nothing else.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Counts:
    """A ledger at one moment, in records."""

    emitted: int = 0
    delivered: int = 0
    """The Collector said that it has them."""
    dead_lettered: int = 0
    """The Collector will never take them; they lie in ``dead-letter/``."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Lost, by reason."""
    pending: int = 0
    """On their way: in memory or in the journal."""
    queued: int = 0
    """Of these, those that wait in memory for the journal."""
    rejected: int = 0
    """Requests refused with 503 before their handler ran, because their records could not have been written. An answer
    that was withdrawn after its handler is not among them: its record is. They are no records."""

    def __add__(self, other: Counts) -> Counts:
        """Adds two streams up."""
        return Counts(
            emitted=self.emitted + other.emitted,
            delivered=self.delivered + other.delivered,
            dead_lettered=self.dead_lettered + other.dead_lettered,
            dropped=dict(Counter(self.dropped) + Counter(other.dropped)),
            pending=self.pending + other.pending,
            queued=self.queued + other.queued,
            rejected=self.rejected + other.rejected,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats(Counts):
    """What became of a process's records, and of those that it has adopted from processes that are gone.

    ``emitted = delivered + pending + dead_lettered + sum(dropped.values())``, at every moment; likewise for `adopted`.
    """

    adopted: Counts = field(default_factory=Counts)
    """``emitted`` is here what was found."""
    journal: str | None = None
    """The name of the journal's directory, or ``memory``; none until a record is written."""
    shipping: str = "idle"
    """``idle``, ``shipping``, ``retrying`` or ``parked``: an operator must mend what ``reason`` says."""
    reason: str | None = None
    """Why the last attempt to deliver failed."""
    blocked: str | None = None
    """Why no record can be written at present: the journal refuses, the disk stalls, or too many wait already."""


class Ledger:
    """Counts one stream's records; safe for threads."""

    def __init__(self) -> None:
        """Begins with nothing."""
        self._lock = threading.RLock()  # a signal's handler may record something, in the middle of this
        self._emitted = self._committed = 0
        self._delivered = 0
        self._dead_lettered = 0
        self._dropped: Counter[str] = Counter()
        self._dropped_queued = 0
        self._rejected = 0
        self._reserved = 0

    def admit(self, queued_max: int, *, has_place: bool = False) -> bool:
        """Counts a record as emitted; tells whether it may join those that wait in memory: in no place that is kept."""
        with self._lock:
            self._emitted += 1
            return self.queued + (0 if has_place else self._reserved) <= queued_max

    def adopt(self, records: int) -> None:
        """They were found in the journal of a process that is gone."""
        with self._lock:
            self._emitted += records
            self._committed += records

    def reserve(self, queued_max: int) -> bool:
        """Keeps a place in memory for a request's record; tells whether there was one."""
        with self._lock:
            if self.queued + self._reserved >= queued_max:
                return False
            self._reserved += 1
            return True

    def release(self) -> None:
        """The record has taken its place, or there will be none."""
        with self._lock:
            self._reserved -= 1

    def commit(self, records: int) -> None:
        """They are in the journal."""
        with self._lock:
            self._committed += records

    def deliver(self, records: int) -> None:
        """The Collector has them."""
        with self._lock:
            self._delivered += records

    def dead_letter(self, records: int) -> None:
        """They are set aside."""
        with self._lock:
            self._dead_lettered += records

    def drop(self, records: int, reason: str, *, committed: bool = False) -> None:
        """They are lost, from memory or, when ``committed``, from the journal."""
        with self._lock:
            self._dropped[reason] += records
            if not committed:
                self._dropped_queued += records

    def reject(self) -> None:
        """A request was refused for want of a place for its record."""
        with self._lock:
            self._rejected += 1

    @property
    def queued(self) -> int:
        """Records that wait in memory."""
        return self._emitted - self._committed - self._dropped_queued

    def counts(self) -> Counts:
        """Gives all counts as they are at one moment."""
        with self._lock:
            lost = self._dropped.total()
            return Counts(
                emitted=self._emitted,
                delivered=self._delivered,
                dead_lettered=self._dead_lettered,
                dropped=dict(self._dropped),
                pending=self._emitted - self._delivered - self._dead_lettered - lost,
                queued=self.queued,
                rejected=self._rejected,
            )


def total(stats: Sequence[Stats]) -> Stats:
    """Adds up what the journals of a process say; of the rest, what the first one with something to say has."""

    def first(name: str, default: object) -> Any:  # noqa: ANN401 - of any field
        return next((value for each in stats if (value := getattr(each, name)) != default), default)

    own: Counts = sum(stats, Counts())
    adopted: Counts = sum((each.adopted for each in stats), Counts())
    rest = {name: first(name, default) for name, default in (("shipping", "idle"), ("journal", None), ("reason", None))}
    return Stats(**asdict(own), adopted=adopted, blocked=first("blocked", None), **rest)
