"""What stands in the journal's directories, for those who take them over and for operators."""

from __future__ import annotations

import os
import re
import secrets
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tron_audit_otel.disk import (
    DIRECTORY,
    exposure,
    open_file,
    opened,
    opened_directory,
    read_file,
    read_number,
    refusal,
    replace_file,
    sync_directory,
)
from tron_audit_otel.errors import JournalError
from tron_audit_otel.frames import SEGMENT_HEADER_BYTES, SegmentReader
from tron_audit_otel.stream_dir import (
    ACKNOWLEDGED,
    CLOSED,
    DAMAGED,
    STATUS,
    is_alive,
    locked,
    open_root,
    segment_name,
    segment_sizes,
    streams,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NOTE_BYTES_MAX = 1 << 20
SWAP_SECONDS_MAX = 2.0
LOOKS_MAX = 20
"""An owner that removes a segment each time is faster than any disk."""

DEAD_LETTERS = "dead-letter"
DIRECTORIES = (DEAD_LETTERS, DAMAGED)
"""Beside those of the streams."""

_SWAPPED = re.compile(r"[a-z][a-z0-9-]*", re.ASCII)


@dataclass(slots=True, eq=False)
class Segment:
    """What is kept in memory of a segment."""

    index: int
    first: int | None
    """The number of its first record; None: nobody can tell."""
    size: int
    """Bytes that the file takes."""
    end: int
    """The offset behind its last frame."""
    until: int
    """The number behind its last record. A frame that says otherwise was never committed."""
    damaged: bool = False


@dataclass(frozen=True, slots=True)
class Survey:
    """What stands in a directory."""

    segments: list[Segment]
    acknowledged: int
    end: int
    """The number behind the last record."""
    clean: bool
    """Its owner ended by itself."""
    torn_bytes: int
    """At the end; they were never committed, unless the owner ended by itself."""


@dataclass(frozen=True, slots=True)
class State:
    """A directory as an operator sees it."""

    name: str
    alive: bool
    """Its owner is alive, or somebody has taken it over."""
    clean: bool
    """Its owner ended by itself, and left something."""
    note: bytes | None
    """What :meth:`Journal.note` put there."""
    records: int
    """Not acknowledged."""
    bytes: int
    """What its segments take."""
    oldest: float | None
    """When the oldest of these records was written, in seconds since the epoch."""
    segments: tuple[tuple[str, int, int], ...]
    """Name, bytes, records that are not acknowledged."""


def survey(directory: int) -> Survey:
    """Looks at all segments of a stream; reads no payload."""
    segments = [segment for index, size in segment_sizes(directory) if (segment := _look(index, size, directory))]
    acknowledged = read_number(ACKNOWLEDGED, directory)
    if acknowledged is None:  # torn: what was removed was acknowledged
        acknowledged = next((segment.first for segment in segments if segment.first is not None), 0)
    end = read_number(CLOSED, directory)
    clean, torn_bytes = end is not None, 0
    if end is None:
        end, torn_bytes = _cut_tail(segments, directory)
        end = acknowledged if end is None else end
    until = end
    for segment in reversed(segments):
        segment.until = until
        until = until if segment.first is None else segment.first
    return Survey(segments, min(acknowledged, end), end, clean, torn_bytes)


def _look(index: int, size: int, directory: int) -> Segment | None:
    with suppress(FileNotFoundError), opened(segment_name(index), os.O_RDONLY, directory) as descriptor:
        return Segment(index, SegmentReader(descriptor).first, size, end=size, until=0)
    return None  # its owner lives, and removed it


def _cut_tail(segments: list[Segment], directory: int) -> tuple[int | None, int]:
    """Finds the number behind the last record; what follows on that was being written when its owner died."""
    torn_bytes = 0
    for segment in reversed(segments):
        if segment.first is not None:
            with opened(segment_name(segment.index), os.O_RDONLY, directory) as descriptor:
                last = SegmentReader(descriptor).last_header(segment.size)
            segment.end = SEGMENT_HEADER_BYTES if last is None else last.end
            end = segment.first if last is None else last.first + last.records
            return end, torn_bytes + segment.size - segment.end
        torn_bytes += segment.size
        segment.damaged = segment.size > SEGMENT_HEADER_BYTES  # then frames were in it
        segment.end = 0
    return None, torn_bytes


def inspect(root: Path) -> list[State]:
    """Tells what lies in the journal, whoever writes or reads it meanwhile.

    Raises:
        JournalError: The root is there and cannot be read, or a directory in it.
    """
    states = []
    with streams(root) as (root_fd, names):
        for name in names:
            try:
                states += _looked_at(name, root_fd)
            except OSError as error:
                raise refusal(f"the journal {root / name} cannot be read", error) from error
    return states


def _looked_at(name: str, root_fd: int) -> list[State]:
    """Looks again when its owner has just removed a segment; gives nothing when it has removed all."""
    for _ in range(LOOKS_MAX):
        try:
            directory = open_file(name, os.O_RDONLY | DIRECTORY, root_fd)
        except FileNotFoundError:
            break
        try:
            return [_state(name, directory)]
        except FileNotFoundError:
            continue
        finally:
            os.close(directory)
    return []


def _state(name: str, directory: int) -> State:
    alive = is_alive(directory)
    found = survey(directory)
    return State(
        name=name,
        alive=alive,
        clean=found.clean,
        records=found.end - found.acknowledged,
        bytes=sum(segment.size for segment in found.segments),
        oldest=_oldest(found, directory),
        segments=tuple(
            (
                segment_name(segment.index),
                segment.size,
                max(0, segment.until - max(segment.first or 0, found.acknowledged)),
            )
            for segment in found.segments
        ),
        note=_note(directory),
    )


def _note(directory: int) -> bytes | None:
    data = read_file(STATUS, directory, NOTE_BYTES_MAX)
    return None if data is None else data.rstrip(b" ")


def _oldest(found: Survey, directory: int) -> float | None:
    for segment in found.segments:
        if segment.until > found.acknowledged:
            with suppress(FileNotFoundError), opened(segment_name(segment.index), os.O_RDONLY, directory) as descriptor:
                for header in SegmentReader(descriptor).headers(segment.end):
                    if header.first >= found.acknowledged:
                        return header.written_s
    return None


def swap(root: Path, name: str, value: str) -> str | None:
    """Puts a small text in the place of the one of that name, and gives the one before; at one moment, for all.

    Raises:
        JournalError: The disk refuses, or another process holds the lock for ``SWAP_SECONDS_MAX``.
    """
    if not _SWAPPED.fullmatch(name):
        raise ValueError(f"{name!r} is no name for a file in the journal's root")
    root_fd = open_root(root)
    try:
        with locked(f"{name}.lock", root_fd, SWAP_SECONDS_MAX):
            before = read_file(name, root_fd, NOTE_BYTES_MAX)
            replace_file(name, root_fd, value.encode(), sync=True)
            sync_directory(root_fd)
    except OSError as error:
        raise refusal(f"AUDIT_LOG_JOURNAL_DIR: {root / name} cannot be written", error) from error
    finally:
        os.close(root_fd)
    return None if before is None else before.decode(errors="replace")


def foresee(root: Path) -> None:
    """Looks whether a journal could be kept there, and makes nothing: who asks may not be who will use it.

    Raises:
        JournalError: It could not; the message says where and why.
    """
    place = root
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        what = f"AUDIT_LOG_JOURNAL_DIR: {root} cannot be used: {place} is no directory that can be written in"
        raise JournalError(what, "disk_failed")
    _refuse_exposed(root)


def check(root: Path) -> None:
    """Looks whether a journal can be kept there; a full disk does not count, since it may become free again.

    Raises:
        JournalError: It cannot; the message says where and why.
    """
    name = f"check-{os.getpid()}-{secrets.token_hex(4)}.lock"
    try:
        root_fd = open_root(root)
        try:
            with locked(name, root_fd, 0):
                os.unlink(name, dir_fd=root_fd)
        except OSError as error:
            raise refusal(f"AUDIT_LOG_JOURNAL_DIR: {root} cannot be written in", error) from error
        finally:
            os.close(root_fd)
    except JournalError as error:
        if error.reason != "disk_full":
            raise
    _refuse_exposed(root)


def _refuse_exposed(root: Path) -> None:
    for what in exposures(root):
        raise JournalError(f"AUDIT_LOG_JOURNAL_DIR: {what}", "disk_failed")


def exposures(root: Path) -> Iterator[str]:
    """Tells what of the journal is open to others than its owner, and what mends that.

    Raises:
        JournalError: One of its directories is a symbolic link, or cannot be read.
    """
    for path in (root, *(root / name for name in DIRECTORIES)):
        try:
            with opened_directory(path) as descriptor:
                what = exposure(descriptor, path)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise refusal(f"AUDIT_LOG_JOURNAL_DIR: {path} cannot be read", error) from error
        if what is not None:
            yield what
