"""From when the records are that came last into the archive: about, and without reading all of it.

The Collector tells how many records wait for a SIEM, or came since a look; the archive has them at its end, in the
order in which they came. Where they begin is guessed by the size of its last records.
"""

from __future__ import annotations

import os
import re
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from tron_audit_otel import disk
from tron_audit_otel.archive import CURRENT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

TAIL_BYTES = 1 << 20
TAIL_BYTES_MAX = 64 << 20
"""In so many bytes there is a record, or the archive is not what it ought to be: the Collector takes 20 MiB at once."""

# Not within a text, where the quotation marks were escaped.
_OBSERVED = re.compile(rb'"observedTimeUnixNano":"(\d{1,20})"')
_ANY_TIME = re.compile(rb'[tT]imeUnixNano":"([1-9]\d{0,19})"')
_FIELD_BYTES = 64
"""The other time of a record stands so near before this one."""
_CLOSED = re.compile(r"audit-\d{4}-.*\.jsonl", re.ASCII)
_NS = 10**9


def observed_at(directory: Path, records: int) -> float | None:
    """Gives when about the `records`-th newest record was observed, in seconds since 1970; None: nothing tells."""
    with _opened(directory) as files:
        begin = None if files is None else _begin(files, records)[0]
        if files is None or begin is None:
            return None
        # Further on, should the guess be within a record that is longer than what is read at once.
        parts = (_times(_OBSERVED, files.read(at, TAIL_BYTES)) for at in range(begin, files.size, TAIL_BYTES))
        return next((times[0] for times in parts if times), None)


def earliest(directory: Path, records: int) -> float | None:
    """Gives the earliest time where about the newest so many records begin, in seconds since 1970.

    A replay since then sends them all, for it sends whatever came after the first record of its span. None: nothing
    tells.
    """
    with _opened(directory) as files:
        begin, doubt_bytes = (None, 0) if files is None else _begin(files, records)
        if files is None or begin is None:
            return None
        times = _times(_ANY_TIME, files.read(begin - doubt_bytes, doubt_bytes + TAIL_BYTES))
        return min(times, default=None)


def _begin(files: _Files, records: int) -> tuple[int | None, int]:
    """Gives about the byte at which the newest so many begin, and by how many it may be too late."""
    tail_bytes = TAIL_BYTES
    found = _places(files, tail_bytes)
    while not found and tail_bytes < min(files.size, TAIL_BYTES_MAX):
        tail_bytes *= 4
        found = _places(files, tail_bytes)
    if not found:
        return None, 0
    tail_bytes = min(tail_bytes, files.size)
    if len(found) >= records:
        return files.size - tail_bytes + found[-records], _FIELD_BYTES
    return max(0, int(files.size - records * tail_bytes / len(found))), TAIL_BYTES


def _places(files: _Files, tail_bytes: int) -> Sequence[int]:
    return [match.start() for match in _OBSERVED.finditer(files.read(files.size - tail_bytes, tail_bytes))]


def _times(kind: re.Pattern[bytes], content: bytes) -> Sequence[float]:
    return [int(time) / _NS for time in kind.findall(content)]


@contextmanager
def _opened(directory: Path) -> Iterator[_Files | None]:
    with ExitStack() as stack:
        try:
            files: _Files | None = _Files(stack.enter_context(disk.opened_directory(directory)))
        except OSError:
            files = None
        yield files


class _Files:
    """The archive's files, one behind the other."""

    def __init__(self, directory: int) -> None:
        self._directory = directory
        closed = sorted(filter(_CLOSED.fullmatch, os.listdir(directory)))
        self._sizes = dict(self._measured([*closed, CURRENT]))
        self.size = sum(self._sizes.values())

    def _measured(self, names: Sequence[str]) -> Iterator[tuple[str, int]]:
        for name in names:
            try:
                yield name, os.stat(name, dir_fd=self._directory, follow_symlinks=False).st_size
            except FileNotFoundError:  # removed, or renamed, since they were listed
                continue

    def read(self, at: int, length: int) -> bytes:
        """Gives what is there; less at either end."""
        length += min(at, 0)
        at = max(at, 0)
        content = b""
        for name, size in self._sizes.items():
            if at < size and len(content) < length:
                with suppress(OSError), disk.opened(name, os.O_RDONLY, self._directory) as descriptor:
                    content += os.pread(descriptor, min(length - len(content), size - at), at)
                at = size
            at -= size
        return content
