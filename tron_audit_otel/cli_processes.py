"""Who has a journal in a directory, and how each of them stands."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Literal

from pydantic import FiniteFloat, TypeAdapter, ValidationError

from tron_audit_otel.journal_dir import State, inspect
from tron_audit_otel.ledger import Stats

if TYPE_CHECKING:
    from pathlib import Path

NOTE_SECONDS_MAX = 60
"""A process renews its note about once a second, and less often while it waits for an answer."""

Standing = Literal["alive", "silent", "taken over", "gone"]
"""``silent``: alive, but its note is old. ``taken over``: gone, and another process ships what it left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Note(Stats):
    """What a process leaves in its directory about itself."""

    pid: int
    service: str | None
    endpoint: str
    started_at: FiniteFloat
    noted_at: FiniteFloat
    held: tuple[str, ...] = ()
    """Journals that it has taken over, and not emptied yet."""


@dataclass(frozen=True, slots=True)
class Process:
    """A directory's owner."""

    journal: State
    note: Note | None
    standing: Standing

    @property
    def pid(self) -> int:
        """As it says, or as the directory's name says."""
        return self.note.pid if self.note else int(self.journal.name.split("-")[1])

    @property
    def is_up(self) -> bool:
        """Whether it runs."""
        return self.standing in ("alive", "silent")


def look(root: Path) -> list[Process]:
    """Gives the owners of all directories, whatever they are at meanwhile.

    Raises:
        JournalError: A directory cannot be read.
    """
    now_s = time.time()
    found = [(journal, _note(journal.note)) for journal in inspect(root)]
    # Who takes a journal over holds its lock, and leaves in it the note of who is gone.
    held = {name for journal, note in found if journal.alive and note is not None for name in note.held}

    def standing(journal: State, note: Note | None) -> Standing:
        if not journal.alive:
            return "gone"
        if journal.clean or journal.name in held:
            return "taken over"
        return "alive" if now_s - _said_s(journal, note) <= NOTE_SECONDS_MAX else "silent"

    return [Process(journal, note, standing(journal, note)) for journal, note in found]


_NOTE = TypeAdapter(Note)


def _note(data: bytes | None) -> Note | None:
    with suppress(ValidationError):  # somebody else's, or another version's
        return None if data is None else _NOTE.validate_json(data)
    return None


def _said_s(journal: State, note: Note | None) -> float:
    if note is not None:
        return note.noted_at
    with suppress(ValueError):  # it may have begun just now
        return datetime.strptime(f"{journal.name.split('-')[0]}Z", "%Y%m%dT%H%M%S%z").timestamp()
    return 0.0
