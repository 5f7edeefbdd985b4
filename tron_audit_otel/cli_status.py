"""What stands in the journal's directory, and what its processes say of themselves: ``tron-audit status``."""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from pydantic import FiniteFloat, TypeAdapter, ValidationError

from tron_audit_otel.dead_letter import DeadLetters
from tron_audit_otel.disk import refusal
from tron_audit_otel.errors import ConfigError
from tron_audit_otel.journal_dir import State, inspect
from tron_audit_otel.ledger import Counts
from tron_audit_otel.outbox import DEAD_LETTERS, Stats
from tron_audit_otel.stream_dir import DAMAGED

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tron_audit_otel.config import AuditConfig
    from tron_audit_otel.dead_letter import Letter

EXIT_OK = 0
EXIT_WORK = 1
"""An operator has something to do."""

NOTE_SECONDS_MAX = 60
"""A process renews its note about once a second; after an attempt to deliver that takes its whole time, later."""

DISK_FREE_BYTES_MIN = 1 << 20
"""With less, a process soon finds the disk full, and cannot even say so: its note needs room, too."""

_MINUTE_SECONDS = 60
_HOUR_SECONDS = 3600
_DAY_SECONDS = 86_400


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command has to say."""

    code: int
    data: dict[str, object]
    """For ``--json``."""
    lines: list[str]
    """For people. They may hold anything, and are escaped when they are printed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Note(Stats):
    """What a process left in its directory about itself."""

    pid: int
    service: str | None
    endpoint: str
    started_at: FiniteFloat
    noted_at: FiniteFloat


@dataclass(frozen=True, slots=True)
class Process:
    """The owner of a directory."""

    journal: State
    note: Note | None
    standing: Literal["alive", "silent", "taken over", "gone"]
    """``silent``: alive, and it has renewed no note for long. ``taken over``: gone, and another process ships it."""

    @property
    def pid(self) -> int:
        """As it says, or as the directory's name says."""
        return self.note.pid if self.note else int(self.journal.name.split("-")[1])

    @property
    def is_up(self) -> bool:
        """Whether it runs."""
        return self.standing in ("alive", "silent")


def journal_root(config: AuditConfig) -> Path:
    """Gives the directory of the journals.

    Raises:
        ConfigError: There is none.
    """
    if config.journal == "memory":
        raise ConfigError(
            "AUDIT_LOG_JOURNAL=memory: nothing is on disk, and only the process itself knows what became of its "
            "records: see tron_audit_otel.stats() there, and its metrics"
        )
    return config.journal_path


def nothing_yet(root: Path) -> Answer | None:
    """Gives the answer when the directory is not there."""
    try:
        root.stat()
    except FileNotFoundError:
        lines = [
            f"No process has written a record yet: {root} does not exist.",
            "If one should have: run this as the application's user, with its environment.",
        ]
        return Answer(EXIT_OK, {"ok": True, "journal_dir": str(root), "exists": False}, lines)
    except OSError as error:
        raise refusal(f"AUDIT_LOG_JOURNAL_DIR: {root} cannot be read", error) from error
    return None


def status(config: AuditConfig) -> Answer:
    """Tells what waits, what is lost, and what an operator has to do.

    Raises:
        ConfigError: There is no journal on disk.
        JournalError: It cannot be read.
    """
    root = journal_root(config)
    if (answer := nothing_yet(root)) is not None:
        return answer
    processes = look(root)
    letters = DeadLetters(root / DEAD_LETTERS).letters()
    damaged = _damaged(root)
    free = shutil.disk_usage(root).free
    problems = _problems(root, processes, letters, damaged, free)
    data: dict[str, object] = {
        "ok": not problems,
        "journal_dir": str(root),
        "exists": True,
        "processes": [_described(process) for process in processes],
        "totals": _totals(processes),
        "dead_letters": {"count": len(letters), "newest_reason": letters[-1].reason if letters else None},
        "damaged": {"segments": len(damaged), "bytes": sum(damaged)},
        "disk_free_bytes": free,
        "problems": [{"kind": kind, "text": text} for kind, text in problems],
    }
    lines = [f"Journal {root}", ""]
    for process in processes:
        lines += [*_lines(process), ""]
    lines += [
        _total_line(processes),
        f"Dead letters: {len(letters):,}" + (f", the newest because of: {letters[-1].reason}" if letters else ""),
        f"Damaged segments: {len(damaged):,}" + (f", {size(sum(damaged))}" if damaged else ""),
        f"Disk: {size(free)} free",
        "",
        *([f"To do: {text}" for _, text in problems] or [_all_well(processes)]),
    ]
    return Answer(EXIT_WORK if problems else EXIT_OK, data, lines)


def look(root: Path) -> list[Process]:
    """Gives the owners of all directories, whatever they are at meanwhile.

    Raises:
        JournalError: A directory cannot be read.
    """
    now_s = time.time()
    found = [(journal, _note(journal.note)) for journal in inspect(root)]
    adopts = any(
        journal.alive and note and _is_fresh(journal, note, now_s) and note.adopted.pending for journal, note in found
    )

    def standing(journal: State, note: Note | None) -> Literal["alive", "silent", "taken over", "gone"]:
        if not journal.alive:
            return "gone"
        # Who takes a journal over holds its lock, and leaves the note of its owner as it is.
        if journal.clean or (adopts and not _is_fresh(journal, note, now_s)):
            return "taken over"
        return "alive" if _is_fresh(journal, note, now_s) else "silent"

    return [Process(journal, note, standing(journal, note)) for journal, note in found]


_NOTE = TypeAdapter(Note)


def _note(data: bytes | None) -> Note | None:
    with suppress(ValidationError):  # somebody else's, or of another version
        return None if data is None else _NOTE.validate_json(data)
    return None


def _is_fresh(journal: State, note: Note | None, now_s: float) -> bool:
    said_at = note.noted_at if note else 0.0
    if note is None:  # it may have begun just now
        with suppress(ValueError):
            began = datetime.strptime(journal.name.split("-")[0], "%Y%m%dT%H%M%S").replace(tzinfo=UTC)
            said_at = began.timestamp()
    return now_s - said_at <= NOTE_SECONDS_MAX


def _damaged(root: Path) -> list[int]:
    """Gives the bytes of each segment that was set aside."""
    try:
        with os.scandir(root / DAMAGED) as entries:
            return [
                entry.stat(follow_symlinks=False).st_size for entry in entries if entry.is_file(follow_symlinks=False)
            ]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise refusal(f"AUDIT_LOG_JOURNAL_DIR: {root / DAMAGED} cannot be read", error) from error


# --- what an operator has to do


def _problems(
    root: Path, processes: Sequence[Process], letters: Sequence[Letter], damaged: Sequence[int], free: int
) -> list[tuple[str, str]]:
    problems = [problem for process in processes if process.is_up for problem in _own_problems(process, root)]
    if free < DISK_FREE_BYTES_MIN:
        problems.append(("disk_full", f"the disk under {root} is full ({size(free)} free). Make room."))
    left = [process.journal for process in processes if process.standing == "gone" and process.journal.records]
    if left and not any(process.is_up for process in processes):
        waits = count(sum(journal.records for journal in left))
        problems.append(
            (
                "left",
                f"{waits} of processes that are gone wait, and no process is alive to ship them. Start the "
                "application, or run `tron-audit journal ship`.",
            )
        )
    if letters:
        problems.append(
            (
                "dead_letters",
                f"{count(len(letters))} lie in {root / DEAD_LETTERS}, because the receiver never takes them as they "
                "are. See `tron-audit journal dead-letters`; once the receiver is mended, add --retry.",
            )
        )
    if damaged:
        problems.append(
            (
                "damaged",
                f"{root / DAMAGED} holds segments that could not be read whole. Look after the disk, then move them "
                "away.",
            )
        )
    if lost := _lost(processes):
        problems.append(
            (
                "lost",
                f"{count(sum(lost.values()))} are lost for good ({_reasons(lost)}). Mend the cause; the counts begin "
                "anew with the process.",
            )
        )
    return problems


def _own_problems(process: Process, root: Path) -> list[tuple[str, str]]:
    note, problems = process.note, []
    if process.standing == "silent":
        since = f"for {duration(time.time() - note.noted_at)}" if note else "since its start"
        problems.append(
            (
                "silent",
                f"pid {process.pid} holds its journal and has said nothing {since}. Look whether it hangs, or the "
                "disk is full.",
            )
        )
    if note is not None and note.shipping == "parked":
        problems.append(
            (
                "parked",
                f"pid {process.pid} can deliver nothing to {note.endpoint}: {note.reason}. Mend it there, or the "
                "setting here and start anew. Until then records wait on disk.",
            )
        )
    if note is not None and note.blocked is not None:
        advice = {
            "disk_full": f"Make room on the disk under {root}.",
            "journal_full": "AUDIT_LOG_JOURNAL_MAX_BYTES is reached: see why nothing is delivered, or allow more.",
        }.get(note.blocked, f"Look after the disk under {root}.")
        problems.append(("blocked", f"pid {process.pid} can write no record: {note.blocked}. {advice}"))
    return problems


def _lost(processes: Sequence[Process]) -> Counter[str]:
    lost: Counter[str] = Counter()
    for process in processes:
        if process.note is not None:
            lost += Counter(process.note.dropped) + Counter(process.note.adopted.dropped)
    return lost


def _all_well(processes: Sequence[Process]) -> str:
    waits = sum(process.journal.records for process in processes)
    if not waits:
        return "All is well: nothing waits."
    for process in processes:
        if process.is_up and process.note is not None and process.note.shipping == "retrying":
            return f"All is well so far: {count(waits)} wait; it is tried again by itself ({process.note.reason})."
    return f"All is well: {count(waits)} on the way."


# --- how it is told


def _totals(processes: Sequence[Process]) -> dict[str, object]:
    notes = [process.note for process in processes if process.is_up and process.note is not None]
    return {
        "alive": sum(process.is_up for process in processes),
        "gone": sum(not process.is_up for process in processes),
        "records": sum(process.journal.records for process in processes),
        "bytes": sum(process.journal.bytes for process in processes),
        "oldest_at": _oldest_at(processes),
        **asdict(sum(notes, Counts())),
        "adopted": asdict(sum((note.adopted for note in notes), Counts())),
    }


def _oldest_at(processes: Sequence[Process]) -> float | None:
    return min((process.journal.oldest for process in processes if process.journal.oldest is not None), default=None)


def _described(process: Process) -> dict[str, object]:
    journal = process.journal
    return {
        "name": journal.name,
        "standing": process.standing,
        "pid": process.pid,
        "ended_by_itself": journal.clean,
        "records": journal.records,
        "bytes": journal.bytes,
        "oldest_at": journal.oldest,
        "note": asdict(process.note) if process.note else None,
    }


def _total_line(processes: Sequence[Process]) -> str:
    up = sum(process.is_up for process in processes)
    waits, taken = (sum(getattr(process.journal, what) for process in processes) for what in ("records", "bytes"))
    return f"Total: {up} alive, {len(processes) - up} gone; {on_disk(waits, taken, _oldest_at(processes))}"


def _lines(process: Process) -> list[str]:
    journal, note = process.journal, process.note
    standing: str = process.standing
    if process.standing == "gone":
        standing = "gone, ended by itself" if journal.clean else "gone, killed"
    elif process.standing == "alive" and note is not None:
        standing = f"alive, {note.shipping}"
    service = f"{note.service} " if note is not None and note.service else ""
    lines = [
        f"{service}pid {process.pid}: {standing}",
        f"  journal {journal.name}: {on_disk(journal.records, journal.bytes, journal.oldest)}",
    ]
    if note is None:
        return [*lines, "  it has left no note"]
    lines.append(f"  {_sum('emitted', note)}   (said {ago(note.noted_at)})")
    if note.adopted.emitted:
        lines.append(f"  {_sum('of processes that are gone', note.adopted)}")
    if note.rejected:
        lines.append(f"  {note.rejected:,} requests refused, because their records could not have been written")
    if note.reason:
        lines.append(f"  {note.shipping} to {note.endpoint}: {note.reason}")
    if note.blocked:
        lines.append(f"  blocked: {note.blocked}")
    return lines


def _sum(what: str, counts: Counts) -> str:
    memory = f" ({counts.queued:,} in memory)" if counts.queued else ""
    lost = f" ({_reasons(counts.dropped)})" if counts.dropped else ""
    return (
        f"{what} {counts.emitted:,} = {counts.delivered:,} delivered + {counts.pending:,} waiting{memory} "
        f"+ {counts.dead_lettered:,} dead letters + {sum(counts.dropped.values()):,} lost{lost}"
    )


def _reasons(dropped: dict[str, int]) -> str:
    return ", ".join(f"{reason} {records:,}" for reason, records in dropped.items() if records)


def on_disk(records: int, size_bytes: int, oldest_at: float | None) -> str:
    """Says what waits."""
    oldest = f", the oldest written {ago(oldest_at)}" if oldest_at is not None and records else ""
    return f"{count(records)} waiting in {size(size_bytes)}{oldest}"


def count(records: int) -> str:
    """Says how many records.

    >>> count(1234)
    '1,234 records'
    """
    return f"{records:,} record" + ("" if records == 1 else "s")


def size(size_bytes: float) -> str:
    """Says how many bytes.

    >>> size(3_400_000)
    '3.2 MiB'
    """
    unit = "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size_bytes < 1024:  # noqa: PLR2004 - what these units are made of
            break
        size_bytes, unit = size_bytes / 1024, larger
    return f"{size_bytes:.0f} bytes" if unit == "bytes" else f"{size_bytes:,.1f} {unit}"


def ago(epoch_s: float) -> str:
    """Says how long ago that was."""
    return f"{duration(time.time() - epoch_s)} ago"


def duration(seconds: float) -> str:
    """Says how long that is; a clock that was set back makes it none.

    >>> duration(250)
    '4 min'
    """
    seconds = max(0.0, seconds)
    if seconds < _MINUTE_SECONDS:
        return f"{seconds:.0f} s"
    if seconds < _HOUR_SECONDS:
        return f"{seconds / _MINUTE_SECONDS:.0f} min"
    if seconds < _DAY_SECONDS:
        return f"{seconds / _HOUR_SECONDS:.1f} h"
    return f"{seconds / _DAY_SECONDS:,.1f} days"
