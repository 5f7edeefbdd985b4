"""The bytes of a journal's segment: a header, then frames, each of which can be told whole and found again.

::

    segment   header, twice    magic with version, mark, number of the stream's record that comes first in it, CRC-32
              frames
    frame     header           mark, number of its first record, records, seconds since the epoch, payload's bytes,
                               payload's CRC-32, header's CRC-32
              payload

The mark is random, and each segment has its own: bytes of a client in a payload cannot pass for a frame when a reader
looks for the next one behind damage, nor can what the disk kept of a file that was removed. Integers are little-endian.
"""

from __future__ import annotations

import os
import struct
from collections import deque
from typing import TYPE_CHECKING, NamedTuple
from zlib import crc32

if TYPE_CHECKING:
    from collections.abc import Iterator

MARK_BYTES = 8

_MAGIC = b"TRONAUD\x01"
_CRC = struct.Struct("<I")
_SEGMENT = struct.Struct("<8s8sQ")
_FRAME = struct.Struct("<8sQIdII")
_NUMBER = struct.Struct("<Q")

_SEGMENT_COPY_BYTES = _SEGMENT.size + _CRC.size
SEGMENT_HEADER_BYTES = 2 * _SEGMENT_COPY_BYTES
FRAME_HEADER_BYTES = _FRAME.size + _CRC.size
NUMBER_BYTES = _NUMBER.size + _CRC.size

_SEARCH_BYTES = 1 << 18


def segment_header(mark: bytes, first: int) -> bytes:
    """Gives a segment's first bytes; twice the same, since one flipped bit must not cost every frame in it."""
    return 2 * _sealed(_SEGMENT.pack(_MAGIC, mark, first))


def frame_header(mark: bytes, first: int, records: int, written_s: float, payload: bytes) -> bytes:
    """Gives what stands before a payload."""
    return _sealed(_FRAME.pack(mark, first, records, written_s, len(payload), crc32(payload, crc32(mark))))


def pack_number(number: int) -> bytes:
    """Gives the content of a small file that holds a number."""
    return _sealed(_NUMBER.pack(number))


def unpack_number(data: bytes) -> int | None:
    """Gives the number back; None when the file is torn."""
    content = _unsealed(data, _NUMBER.size)
    return None if content is None else int(_NUMBER.unpack(content)[0])


class FrameHeader(NamedTuple):
    """Where a frame stands in its segment, and what it says of itself."""

    offset: int
    first: int
    records: int
    written_s: float
    payload_bytes: int
    payload_crc: int

    @property
    def end(self) -> int:
        """The offset behind it."""
        return self.offset + FRAME_HEADER_BYTES + self.payload_bytes


class SegmentReader:
    """Reads one segment through a descriptor that belongs to the caller; keeps nothing of what it read.

    A file that is shorter than it was is damage as any other. An ``OSError`` of the disk is passed on.
    """

    def __init__(self, descriptor: int) -> None:
        """Reads the segment's header."""
        self._descriptor = descriptor
        data = os.pread(descriptor, SEGMENT_HEADER_BYTES, 0)
        copies = (data[:_SEGMENT_COPY_BYTES], data[_SEGMENT_COPY_BYTES:])
        contents = [content for copy in copies if (content := _unsealed(copy, _SEGMENT.size)) is not None]
        self._mark = b""
        self.first: int | None = None
        """The number of the record that comes first in it; None: neither copy of the header can be read."""
        for magic, mark, first in map(_SEGMENT.unpack, contents):
            if magic == _MAGIC:
                self._mark, self.first = mark, first
        self._seed = crc32(self._mark)

    def header(self, offset: int, end: int) -> FrameHeader | None:
        """Gives the next frame's header, at ``offset`` or behind it, when the frame is no longer than ``end``."""
        while self.first is not None and offset + FRAME_HEADER_BYTES <= end:
            content = _unsealed(os.pread(self._descriptor, FRAME_HEADER_BYTES, offset), _FRAME.size)
            if content is not None:
                mark, *fields = _FRAME.unpack(content)
                header = FrameHeader(offset, *fields)
                if mark == self._mark and header.end <= end:
                    return header
            offset = self._find_mark(offset + 1, end)
        return None

    def frame(
        self, offset: int, end: int, payload_bytes_max: int | None = None
    ) -> tuple[FrameHeader, bytes | None] | None:
        """Gives the next whole frame, at ``offset`` or behind it; None: there is none before ``end``.

        A payload that is longer than ``payload_bytes_max`` stays unread, and None stands in its place.
        """
        while (header := self.header(offset, end)) is not None:
            if payload_bytes_max is not None and header.payload_bytes > payload_bytes_max:
                return header, None
            payload = os.pread(self._descriptor, header.payload_bytes, header.offset + FRAME_HEADER_BYTES)
            if len(payload) == header.payload_bytes and crc32(payload, self._seed) == header.payload_crc:
                return header, payload
            offset = header.offset + 1
        return None

    def headers(self, end: int) -> Iterator[FrameHeader]:
        """Gives every frame's header; payloads stay unread, so that nobody knows whether these are whole."""
        offset = SEGMENT_HEADER_BYTES
        while (header := self.header(offset, end)) is not None:
            yield header
            offset = header.end

    def last_header(self, end: int) -> FrameHeader | None:
        """Gives the last of :meth:`headers`."""
        return next(iter(deque(self.headers(end), maxlen=1)), None)

    def _find_mark(self, offset: int, end: int) -> int:
        while offset < end:
            block = os.pread(self._descriptor, min(_SEARCH_BYTES, end - offset), offset)
            found = block.find(self._mark)
            if found >= 0:
                return offset + found
            if len(block) < MARK_BYTES:
                break
            offset += len(block) - MARK_BYTES + 1  # it may stand across two blocks
        return end


def _sealed(content: bytes) -> bytes:
    return content + _CRC.pack(crc32(content))


def _unsealed(data: bytes, size: int) -> bytes | None:
    content = data[:size]
    return content if data[size : size + _CRC.size] == _CRC.pack(crc32(content)) else None
