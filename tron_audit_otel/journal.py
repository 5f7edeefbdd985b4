"""The journal: records wait in it, committed to disk, until the Collector has them. Bytes only.

One process appends to a stream of its own and reads it back; what it leaves when it dies, another one adopts. One
thread may append while another reads and acknowledges; the properties are for any.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, Protocol
from weakref import WeakSet

from tron_audit_otel.errors import JournalError
from tron_audit_otel.frames import FRAME_HEADER_BYTES


class Position(NamedTuple):
    """A place between two frames."""

    segment: int
    offset: int
    number: int
    """Of the record behind it."""


@dataclass(frozen=True, slots=True)
class Frame:
    """What was appended at once."""

    payload: bytes
    records: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """What is read at once."""

    frames: tuple[Frame, ...]
    end: Position
    damaged: int = 0
    """Records before or between these frames that cannot be read; there may be no frames then."""


class Journal(Protocol):
    """Keeps frames until they are acknowledged."""

    @property
    def name(self) -> str:
        """The directory's name, or ``memory``."""

    def append(self, payload: bytes, records: int) -> None:
        """Commits a frame of at least one record: it is durable on return.

        Raises:
            JournalError: It is not, and will never be read.
        """

    def read(self, bytes_max: int) -> Chunk | None:
        """Gives the next frames that are not acknowledged, the same ones until they are; None: nothing waits.

        Payloads take ``bytes_max`` together at most, unless there is but one.

        Raises:
            JournalError: The disk refuses to read; nothing is lost.
        """

    def acknowledge(self, chunk: Chunk) -> None:
        """The chunk need not be kept any longer."""

    def note(self, data: bytes) -> None:
        """Puts a text for operators beside it, in the place of the one before; errors are ignored."""

    def close(self) -> None:
        """Leaves it, and removes it when nothing waits."""

    @property
    def records(self) -> int:
        """Records that are not acknowledged."""

    @property
    def bytes(self) -> int:
        """What it takes on disk, or in memory."""


class MemoryJournal:
    """Keeps frames in memory: for a read-only file system, and for tests. It dies with the process."""

    name = "memory"

    def __init__(self, *, bytes_max: int) -> None:
        """Takes the bound; a frame counts as on disk."""
        self._bytes_max = bytes_max
        self.forget()
        forgetful.add(self)

    def forget(self) -> None:
        """Begins anew in a forked child."""
        self._lock = threading.Lock()
        self._frames: deque[Frame] = deque()
        self._first = 0
        self._answered: int | None = None
        self._records = self._bytes = 0

    def append(self, payload: bytes, records: int) -> None:
        """See :meth:`Journal.append`."""
        check_records(records)
        size = FRAME_HEADER_BYTES + len(payload)
        with self._lock:
            if self._bytes + size > self._bytes_max:
                raise full(self._bytes_max)
            self._frames.append(Frame(payload, records))
            self._records += records
            self._bytes += size

    def read(self, bytes_max: int) -> Chunk | None:
        """See :meth:`Journal.read`."""
        with self._lock:
            frames: list[Frame] = []
            size = 0
            for frame in islice(self._frames, self._answered):
                size += len(frame.payload)
                if frames and size > bytes_max:
                    break
                frames.append(frame)
            if not frames:
                return None
            self._answered = len(frames)
            return Chunk(tuple(frames), Position(0, 0, self._first + len(frames)))

    def acknowledge(self, chunk: Chunk) -> None:
        """See :meth:`Journal.acknowledge`."""
        with self._lock:
            while self._first < chunk.end.number and self._frames:
                frame = self._frames.popleft()
                self._first += 1
                self._records -= frame.records
                self._bytes -= FRAME_HEADER_BYTES + len(frame.payload)
                self._answered = None

    def note(self, data: bytes) -> None:
        """There is no place for it."""

    def close(self) -> None:
        """What waits is kept as long as this object."""

    @property
    def records(self) -> int:
        """Records that are not acknowledged."""
        return self._records

    @property
    def bytes(self) -> int:
        """What it takes."""
        return self._bytes


class _Forgetful(Protocol):
    def forget(self) -> None: ...


forgetful: WeakSet[_Forgetful] = WeakSet()
"""Journals that a forked child must let go of: all that is in them is its parent's."""


def _forget_parents_journals() -> None:
    for journal in forgetful:
        journal.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parents_journals)


def check_records(records: int) -> None:
    """Refuses a frame without a record."""
    if records < 1:
        raise ValueError(f"a frame holds at least one record, not {records}")


def full(bytes_max: int) -> JournalError:
    """Gives the error of a journal that is at its bound."""
    return JournalError(f"the journal is full: AUDIT_LOG_JOURNAL_MAX_BYTES is {bytes_max}", "journal_full")
