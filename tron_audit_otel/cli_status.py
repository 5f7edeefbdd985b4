"""``tron-audit status``: what the journal's directory holds, what its processes say of themselves, and the SIEMs."""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from tron_audit_otel import cli_siems
from tron_audit_otel.cli_processes import look
from tron_audit_otel.cli_text import (
    EXIT_CONFIG,
    EXIT_OK,
    EXIT_WORK,
    Answer,
    ago,
    count,
    duration,
    journal_root,
    nothing_yet,
    on_disk,
    size,
)
from tron_audit_otel.config import AuditConfig
from tron_audit_otel.dead_letter import DeadLetters
from tron_audit_otel.disk import opened_directory, refusal
from tron_audit_otel.errors import AuditError
from tron_audit_otel.journal_dir import DEAD_LETTERS, exposures
from tron_audit_otel.ledger import Counts
from tron_audit_otel.stream_dir import DAMAGED

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from tron_audit_otel.cli_processes import Process
    from tron_audit_otel.cli_siems import Told
    from tron_audit_otel.dead_letter import Letter

DISK_FREE_BYTES_MIN = 1 << 20
"""With less a process soon finds the disk full, and may not be able to say so: its note needs room, too."""

NOTHING_WAITS = "All is well: nothing waits."

BLOCKED = {
    "disk_full": "Make room on its disk.",
    "journal_full": "AUDIT_LOG_JOURNAL_MAX_BYTES is reached: see why nothing is delivered, or allow more.",
    "disk_failed": "Look after its disk; the application's log has the system's words.",
    "disk_stalled": "Look after its disk: a commit takes longer than AUDIT_LOG_COMMIT_SECONDS_MAX.",
    "queue_full": "AUDIT_LOG_QUEUE_RECORDS_MAX records wait in memory: its disk is too slow for them.",
}


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    cli_siems.add(parser)


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> Answer:
    """Tells what waits, what is lost, and what an operator has to do.

    Where a Collector answers or was named, its part is told whatever there is to say of a journal, which may be on
    other machines.

    Raises:
        ConfigError: A setting is wrong, or there is neither a journal on disk nor a Collector.
        JournalError: The journal cannot be read, and there is no Collector.
    """
    siems = cli_siems.look(options, environ)
    try:
        # As with audit on: a misspelt switch must not pass as "off".
        config = AuditConfig.from_env({**environ, "AUDIT_LOG_ENABLED": "true"})
        journal = journals(config)
    except AuditError as error:
        if not siems.answers and not siems.problems:
            raise
        journal = Journal(EXIT_OK, {"error": str(error)}, [str(error)], [], "")
        if environ.get("AUDIT_LOG_JOURNAL", "").strip() != "memory":  # which is no fault
            journal = replace(
                journal, code=EXIT_CONFIG, problems=[("journal", "Mend what keeps the journal from being read.")]
            )
    problems = [*journal.problems, *siems.problems]
    code = max(journal.code, EXIT_WORK if problems else EXIT_OK)
    data = {
        "ok": code == EXIT_OK,
        **journal.data,
        **siems.data,
        "problems": [{"kind": kind, "text": text} for kind, text in problems],
    }
    return Answer(code, data, [*journal.lines, "", *siems.lines, "", *_conclusion(problems, journal, siems)])


def _conclusion(problems: Sequence[tuple[str, str]], journal: Journal, siems: Told) -> list[str]:
    if problems:
        return [f"To do: {text}" for _, text in problems]
    if not siems.waiting:
        return [journal.all_well or "All is well."]
    if journal.all_well in ("", NOTHING_WAITS):
        return [f"All is well so far: on the way are {siems.waiting}."]
    return [journal.all_well, f"At the Collector are {siems.waiting}."]


@dataclass(frozen=True, slots=True)
class Journal:
    """What there is to say of the journals."""

    code: int
    data: dict[str, object]
    lines: list[str]
    problems: list[tuple[str, str]]
    all_well: str


def journals(config: AuditConfig) -> Journal:
    """Looks at the journals.

    Raises:
        ConfigError: There is no journal on disk.
        JournalError: It cannot be read.
    """
    root = journal_root(config)
    if (answer := nothing_yet(root)) is not None:
        found = {key: value for key, value in answer.data.items() if key != "ok"}
        return Journal(answer.code, found, answer.lines, [], "")
    seen = _Seen(
        root,
        look(root),
        DeadLetters(root / DEAD_LETTERS).letters(),
        _damaged(root),
        shutil.disk_usage(root).free,
        list(exposures(root)),
    )
    data: dict[str, object] = {
        "journal_dir": str(root),
        "exists": True,
        "processes": [_described(process) for process in seen.processes],
        "totals": _totals(seen.processes),
        "dead_letters": {"count": len(seen.letters), "newest_reason": _newest(seen.letters)},
        "damaged": {"segments": len(seen.damaged), "bytes": sum(seen.damaged)},
        "disk_free_bytes": seen.free_bytes,
    }
    return Journal(EXIT_OK, data, _report(seen), list(_problems(seen)), _all_well(seen.processes))


@dataclass(frozen=True, slots=True)
class _Seen:
    root: Path
    processes: Sequence[Process]
    letters: Sequence[Letter]
    damaged: Sequence[int]
    """Bytes of each segment that was set aside."""
    free_bytes: int
    exposed: Sequence[str]
    """What is open to others, each with what mends it."""


def _newest(letters: Sequence[Letter]) -> str | None:
    return letters[-1].reason if letters else None


def _damaged(root: Path) -> list[int]:
    try:
        with opened_directory(root / DAMAGED) as damaged, os.scandir(damaged) as entries:
            return [
                entry.stat(follow_symlinks=False).st_size for entry in entries if entry.is_file(follow_symlinks=False)
            ]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise refusal(f"AUDIT_LOG_JOURNAL_DIR: {root / DAMAGED} cannot be read", error) from error


# --- what an operator has to do


def _problems(seen: _Seen) -> Iterator[tuple[str, str]]:
    """Gives a word and a sentence for each."""
    for process in seen.processes:
        if process.is_up:
            yield from _problems_of(process)
    if seen.free_bytes < DISK_FREE_BYTES_MIN:
        yield "disk_full", f"The disk of {seen.root} is full: {size(seen.free_bytes)} free. Make room."
    for exposed in seen.exposed:
        yield "exposed", f"{exposed}. Without it no process starts anew."
    left = sum(process.journal.records for process in seen.processes if process.standing == "gone")
    if left and not any(process.is_up for process in seen.processes):
        wanted = "Start the application, or run `tron-audit journal ship`."
        yield "left", f"{count(left)} of processes that are gone, and none is alive to ship them. {wanted}"
    if letters := len(seen.letters):
        wanted = "See `tron-audit journal dead-letters`; once the receiver is mended, run it with --retry."
        yield "dead_letters", f"{count(letters)} that the receiver does not take as they are. {wanted}"
    if damaged := len(seen.damaged):
        wanted = "Look after the disk, then move them away."
        yield "damaged", f"{count(damaged, 'segment')} in {seen.root / DAMAGED} could not be read whole. {wanted}"
    if lost := _lost(seen.processes):
        yield "lost", f"{count(lost.total())} lost for good: {_reasons(lost)}. Mend the cause."


def _problems_of(process: Process) -> Iterator[tuple[str, str]]:
    note = process.note
    who = f"Process {process.pid}"
    if process.standing == "silent":
        since = f"for {duration(time.time() - note.noted_at)}" if note else "since its start"
        yield "silent", f"{who} has not renewed its note {since}. Look whether it hangs, or its disk is full."
    if note is None:
        return
    if note.shipping == "parked":
        wanted = "Mend it there, or mend the setting here and start the process anew. Until then its records wait."
        yield "parked", f"{who} can deliver nothing to {note.endpoint}: {note.reason}. {wanted}"
    if note.blocked is not None:
        wanted = BLOCKED.get(note.blocked, BLOCKED["disk_failed"])
        yield "blocked", f"{who} can write no record: {note.blocked}. {wanted}"


def _lost(processes: Sequence[Process]) -> Counter[str]:
    lost: Counter[str] = Counter()
    for process in processes:
        if process.note is not None:
            lost += Counter(process.note.dropped) + Counter(process.note.adopted.dropped)
    return lost


def _all_well(processes: Sequence[Process]) -> str:
    waiting = sum(process.journal.records for process in processes)
    if not waiting:
        return NOTHING_WAITS
    for process in processes:
        if process.is_up and process.note is not None and process.note.shipping == "retrying":
            return f"All is well so far: what waits is tried again by itself ({process.note.reason})."
    return f"All is well: {count(waiting)} on the way."


# --- how it is told


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


def _totals(processes: Sequence[Process]) -> dict[str, object]:
    notes = [process.note for process in processes if process.is_up and process.note is not None]
    return {
        "alive": sum(process.is_up for process in processes),
        "gone": sum(not process.is_up for process in processes),
        "records": sum(process.journal.records for process in processes),
        "bytes": sum(process.journal.bytes for process in processes),
        "oldest_at": _oldest_at(processes),
        "counts": asdict(sum(notes, Counts())),
        "adopted": asdict(sum((note.adopted for note in notes), Counts())),
    }


def _oldest_at(processes: Sequence[Process]) -> float | None:
    return min((process.journal.oldest for process in processes if process.journal.oldest is not None), default=None)


def _report(seen: _Seen) -> list[str]:
    processes, letters, damaged = seen.processes, seen.letters, seen.damaged
    up = sum(process.is_up for process in processes)
    waiting = on_disk(
        sum(process.journal.records for process in processes),
        sum(process.journal.bytes for process in processes),
        _oldest_at(processes),
    )
    lines = [f"Journal {seen.root}", ""]
    for process in processes:
        lines += [*_lines(process), ""]
    return [
        *lines,
        f"Processes: {up:,} alive, {len(processes) - up:,} gone; {waiting}",
        f"Dead letters: {len(letters):,}" + (f", the newest: {_newest(letters)}" if letters else ""),
        f"Damaged segments: {len(damaged):,}" + (f", {size(sum(damaged))}" if damaged else ""),
        f"Disk: {size(seen.free_bytes)} free",
    ]


def _lines(process: Process) -> list[str]:
    journal, note = process.journal, process.note
    told: str = process.standing
    if process.standing == "gone":
        told = "gone, ended by itself" if journal.clean else "gone, killed"
    elif process.standing == "taken over":
        told = "gone, taken over by another process"
    elif note is not None:
        told = f"{process.standing}, {note.shipping}"
    service = f"{note.service}, " if note is not None and note.service else ""
    lines = [
        f"{service}process {process.pid}: {told}",
        f"  journal {journal.name}: {on_disk(journal.records, journal.bytes, journal.oldest)}",
    ]
    if note is None:
        return [*lines, "  no note yet" if process.is_up else "  no note"]
    lines.append(f"  {ago(note.noted_at)}: emitted {_sum(note)}")
    if note.adopted.emitted:
        lines.append(f"  of processes that are gone: {_sum(note.adopted)}")
    if note.rejected:
        lines.append(f"  refused with 503, since their records could not have been written: {note.rejected:,} requests")
    if note.reason is not None:
        lines.append(f"  {note.shipping}, to {note.endpoint}: {note.reason}")
    if note.blocked is not None:
        lines.append(f"  blocked: {note.blocked}")
    return lines


def _sum(counts: Counts) -> str:
    queued = f" ({counts.queued:,} in memory)" if counts.queued else ""
    lost = f" ({_reasons(counts.dropped)})" if counts.dropped else ""
    return (
        f"{counts.emitted:,} = {counts.delivered:,} delivered + {counts.pending:,} waiting{queued} + "
        f"{counts.dead_lettered:,} dead letters + {sum(counts.dropped.values()):,} lost{lost}"
    )


def _reasons(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {records:,}" for reason, records in dropped.items())
