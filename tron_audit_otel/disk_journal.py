"""The journal on disk: a directory of segments that is held by a lock, and read back by whoever holds it."""

from __future__ import annotations

import errno
import logging
import os
import secrets
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tron_audit_otel.disk import refusal, write_all
from tron_audit_otel.errors import JournalError
from tron_audit_otel.frames import (
    FRAME_HEADER_BYTES,
    MARK_BYTES,
    NUMBER_BYTES,
    SEGMENT_HEADER_BYTES,
    SegmentReader,
    frame_header,
    segment_header,
)
from tron_audit_otel.journal import Chunk, Frame, Position, check_records, forgetful, full
from tron_audit_otel.journal_dir import Segment, Survey, survey
from tron_audit_otel.stream_dir import ACKNOWLEDGED, CLOSED, StreamDirectory, claim_dead, make, segment_name

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SEGMENT_BYTES_MAX = 8 << 20
FRAME_BYTES_MAX = 1 << 30
"""The system reads little more at once."""
SEGMENTS_MIN = 8
"""So many fit at least, whatever the journal's bound: only whole segments are removed."""

_NUMBER_MAX = 1 << 64

_logger = logging.getLogger(__name__)

_sync = getattr(os, "fdatasync", os.fsync)  # the file's length is written with either


@dataclass(frozen=True, slots=True)
class _Active:
    """The segment that is appended to."""

    segment: Segment
    descriptor: int
    mark: bytes

    def is_full(self, size: int, bytes_max: int) -> bool:
        """Tells whether a frame of this size goes to the next one; a larger one than a segment is alone in its own."""
        return self.segment.end > SEGMENT_HEADER_BYTES and self.segment.end + size > bytes_max

    def is_removed(self) -> bool:
        """Tells whether somebody has removed it, so that nobody would find what is appended."""
        return os.fstat(self.descriptor).st_nlink == 0


class DiskJournal:
    """Keeps frames in a directory that is locked; :meth:`create` makes one, :func:`adopt` takes over what is left."""

    def __init__(
        self, directory: StreamDirectory, found: Survey, *, root: Path | None, bytes_max: int, fsync: bool
    ) -> None:
        """Takes a locked directory, and what stands in it; the root too, when it is this process's own."""
        self.name = directory.name
        self.clean = found.clean
        """Its former owner ended by itself."""
        self.torn_bytes = found.torn_bytes
        """What its former owner was writing when it died; it had not been committed."""
        self._directory = directory
        self._bytes_max = bytes_max
        self._segment_bytes = min(SEGMENT_BYTES_MAX, bytes_max // SEGMENTS_MIN)
        self._fsync = fsync
        self._root = root
        self._segments = found.segments
        self._index = max((segment.index for segment in found.segments), default=0)
        self._active: _Active | None = None
        self._end = found.end
        self._acknowledged = _start(found)
        self._answered: Position | None = None
        self._bytes = NUMBER_BYTES + sum(segment.size for segment in found.segments)
        self._note_bytes = 0
        self._complained = False
        self._open = True
        self._renew_locks()
        forgetful.add(self)
        self._dispose()

    def _renew_locks(self) -> None:
        self._state = threading.Lock()  # never held while the disk is asked for anything
        self._writing = threading.Lock()
        self._reading = threading.Lock()
        self._tidying = threading.Lock()

    @classmethod
    def create(cls, root: Path, *, bytes_max: int, fsync: bool) -> DiskJournal:
        """Makes a directory below the root and locks it.

        Args:
            root: Made if it is not there.
            bytes_max: What all files may take together; past it nothing is appended.
            fsync: A frame is to outlive the machine's power, and not the process alone.

        Raises:
            JournalError: The disk refuses.
        """
        nothing = Survey([], 0, 0, clean=False, torn_bytes=0)
        return cls(make(root), nothing, root=root, bytes_max=bytes_max, fsync=fsync)

    def append(self, payload: bytes, records: int) -> None:
        """See :meth:`Journal.append`."""
        check_records(records)
        with self._writing:
            if not self._open or self._root is None:
                raise JournalError(f"the journal {self.name} takes nothing from this process", "disk_failed")
            try:
                active = self._room(FRAME_HEADER_BYTES + len(payload))
                frame = frame_header(active.mark, self._end, records, time.time(), payload) + payload
                self._commit(active, frame)
            except OSError as error:
                if self.records == 0:
                    self._seal()  # up to 8 MiB that nobody needs any more: room for the next attempt
                raise refusal(f"the journal {self.name} cannot be written", error) from error
            with self._state:
                active.segment.end += len(frame)
                active.segment.size = active.segment.end
                self._bytes += len(frame)
                self._end += records

    def _room(self, size: int) -> _Active:
        """Gives the segment that takes a frame of this size."""
        active = self._active
        if active is not None and (active.is_full(size, self._segment_bytes) or active.is_removed()):
            self._seal()
        if not self._fits(size) and self.records == 0:
            self._seal()
        if not self._fits(size) or size > FRAME_BYTES_MAX:
            raise full(self._bytes_max)
        return self._active or self._begin()

    def _fits(self, size: int) -> bool:
        header = SEGMENT_HEADER_BYTES if self._active is None else 0
        return self._bytes + header + size <= self._bytes_max

    def _seal(self) -> None:
        """Appends nothing more to the segment."""
        if (active := self._active) is not None:
            with self._state:
                self._active = None
            self._directory.close_file(active.descriptor)
        self._dispose()

    def _begin(self) -> _Active:
        self._index += 1  # also when it fails: a segment that is in doubt is never opened again
        name, mark = segment_name(self._index), secrets.token_bytes(MARK_BYTES)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        try:
            descriptor = self._directory.open(name, flags)
        except FileNotFoundError:
            self._move()
            descriptor = self._directory.open(name, flags)
        try:
            write_all(descriptor, segment_header(mark, self._end), 0)
            if self._fsync:
                self._directory.sync()
        except BaseException:
            self._directory.close_file(descriptor)
            with suppress(OSError):
                self._directory.remove(name)
            raise
        size = SEGMENT_HEADER_BYTES
        segment = Segment(self._index, self._end, size, end=size, until=_NUMBER_MAX)
        active = _Active(segment, descriptor, mark)
        with self._state:
            self._active = active
            self._segments.append(segment)
            self._bytes += size
        return active

    def _move(self) -> None:
        """Begins a new directory in place of one that somebody removed; what waited there is found to be missing."""
        if self._root is None:
            raise FileNotFoundError(errno.ENOENT, "it was removed")
        directory, former = make(self._root), self._directory
        with self._reading, self._tidying:
            directory.put_number(ACKNOWLEDGED, self._acknowledged.number, sync=False)
            self._directory, self.name = directory, directory.name
        former.close()
        _logger.error("somebody removed the journal %s; %s is in its place", former.name, directory.name)

    def _commit(self, active: _Active, frame: bytes) -> None:
        written = False
        try:
            write_all(active.descriptor, frame, active.segment.end)
            written = True
            if self._fsync:
                _sync(active.descriptor)
        except BaseException:
            with suppress(OSError):
                os.ftruncate(active.descriptor, active.segment.end)
            if written:
                # After a failed fsync the kernel may call pages clean that never reached the disk. Should the frame
                # outlive this, the number of the next segment's first record says that it was not committed.
                self._seal()
            raise

    def read(self, bytes_max: int) -> Chunk | None:
        """See :meth:`Journal.read`."""
        with self._reading:
            if not self._open:
                return None
            try:
                chunk = self._read(bytes_max)
            except OSError as error:
                raise refusal(f"the journal {self.name} cannot be read", error) from error
            self._answered = None if chunk is None else chunk.end
            return chunk

    def _read(self, bytes_max: int) -> Chunk | None:
        position, end, segments = self._unread()
        for segment, segment_end in segments:
            if segment.index != position.segment:
                position = Position(segment.index, SEGMENT_HEADER_BYTES, position.number)
            with suppress(FileNotFoundError):  # its records are found missing in what follows
                chunk = self._read_segment(segment, position, segment_end, bytes_max)
                if chunk.frames:
                    return chunk
                position = chunk.end
        if position.number < end:
            return Chunk((), position._replace(number=end), end - position.number)
        return None

    def _unread(self) -> tuple[Position, int, list[tuple[Segment, int]]]:
        """Gives where to begin, the number and the segments' offsets where to end."""
        with self._state:
            begin, end = self._acknowledged, self._end
            segments = [(segment, segment.end) for segment in self._segments if segment.index >= begin.segment]
        if begin.number == end:
            return begin, end, []
        if (last := self._answered) is not None:  # the same answer again, though more may have been appended
            end = last.number
            segments = [
                (segment, last.offset if segment.index == last.segment else segment_end)
                for segment, segment_end in segments
                if segment.index <= last.segment
            ]
        return begin, end, segments

    def _read_segment(self, segment: Segment, begin: Position, end: int, bytes_max: int) -> Chunk:
        frames: list[Frame] = []
        size = damaged = 0
        _, offset, number = begin
        with self._directory.opened(segment_name(segment.index), os.O_RDONLY) as descriptor:
            reader = SegmentReader(descriptor)
            while offset < end and (found := reader.frame(offset, end, bytes_max - size if frames else None)):
                header, payload = found
                segment.damaged |= header.offset != offset
                if number <= header.first < segment.until:
                    if payload is None:
                        break
                    frames.append(Frame(payload, header.records))
                    size += len(payload)
                    damaged += header.first - number
                    number = header.first + header.records
                offset = header.end
            else:
                segment.damaged |= offset < end
                offset = end
        return Chunk(tuple(frames), Position(segment.index, offset, number), damaged)

    def acknowledge(self, chunk: Chunk) -> None:
        """See :meth:`Journal.acknowledge`."""
        with self._reading:
            with self._state:
                if not self._open or chunk.end <= self._acknowledged:
                    return
                self._acknowledged = chunk.end
            self._answered = None
            with self._tidying, self._complaining():
                self._directory.put_number(ACKNOWLEDGED, chunk.end.number, sync=False)
            self._dispose()

    def _dispose(self) -> None:
        """Removes the segments that are acknowledged, once it is durable that they are: else they would be missed."""
        with self._tidying:
            with self._state:
                number = self._acknowledged.number
                done = [segment for segment in self._segments if self._is_done(segment)]
            if done:
                with self._complaining():
                    if self._fsync:
                        self._directory.put_number(ACKNOWLEDGED, number, sync=True)
                    for segment in done:
                        self._remove(segment)

    def _remove(self, segment: Segment) -> None:
        if segment.damaged:
            self._directory.set_aside(segment_name(segment.index))
        else:
            self._directory.remove(segment_name(segment.index))
        with self._state:
            self._segments.remove(segment)
            self._bytes -= segment.size

    def _is_done(self, segment: Segment) -> bool:
        at = self._acknowledged
        if self._active is not None and segment is self._active.segment:
            return False
        if segment.end <= SEGMENT_HEADER_BYTES or at.number == self._end:
            return True
        return segment.index < at.segment or (segment.index == at.segment and at.offset >= segment.end)

    @contextmanager
    def _complaining(self) -> Iterator[None]:
        """Takes no error of tidying for more than it is, and says it once: at worst, records are sent twice."""
        try:
            yield
        except OSError as error:
            if not self._complained:
                _logger.warning("the journal %s is not tidied: %s", self.name, error.strerror)
            self._complained = True

    def note(self, data: bytes) -> None:
        """See :meth:`Journal.note`."""
        with self._reading, suppress(OSError):
            if self._open:
                size = self._directory.put_note(data, self._note_bytes)
                with self._state:
                    self._bytes += size - self._note_bytes
                    self._note_bytes = size

    def close(self) -> None:
        """See :meth:`Journal.close`. It waits for an append that goes on."""
        with self._writing, self._reading:
            if not self._open:
                return
            self._seal()
            with self._state:
                self._open = False
            with self._complaining():
                if not self._segments:
                    self._directory.dissolve()
                elif self._root is not None:
                    self._directory.put_number(CLOSED, self._end, sync=False)
            self._directory.close()

    def forget(self) -> None:
        """In a forked child: all of it is the parent's, and the descriptors are closed."""
        self._renew_locks()
        self._open = False
        self._active = None
        self._segments = []
        self._bytes = 0
        self._end = self._acknowledged.number

    @property
    def records(self) -> int:
        """See :attr:`Journal.records`."""
        with self._state:
            return self._end - self._acknowledged.number

    @property
    def bytes(self) -> int:
        """See :attr:`Journal.bytes`."""
        return self._bytes


def adopt(root: Path, journals_max: int | None = None) -> list[DiskJournal]:
    """Takes over every journal whose owner is dead, each of them once, whatever number of processes do so together.

    Each holds three descriptors, so that it may be wise not to take more than ``journals_max`` at once, oldest first.

    They are read and acknowledged like one's own, and take nothing more.

    Raises:
        JournalError: The root is there and cannot be read.
    """
    journals = []
    for directory in claim_dead(root, journals_max):
        try:
            found = survey(directory.descriptor)
        except OSError as error:
            _logger.warning("the journal %s is left as it is: %s", root / directory.name, error.strerror)
            directory.close()
        else:
            journals.append(DiskJournal(directory, found, root=None, bytes_max=0, fsync=True))
    return journals


def _start(found: Survey) -> Position:
    """Finds the segment in which the first record stands that is not acknowledged."""
    index = 0
    for segment in found.segments:
        if not index or (segment.first is not None and segment.first <= found.acknowledged):
            index = segment.index
    return Position(index, SEGMENT_HEADER_BYTES, found.acknowledged)
