"""The directory of one stream of records, below the journal's root: its files, its lock, and what a dead owner left.

A process killed at any moment leaves a directory that the next one can take over, whatever is missing in it. What has
no name of ours, and every symbolic link, belongs to somebody else and is left alone.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from tron_audit_otel.disk import (
    DIRECTORY,
    NEW,
    exposure,
    make_directory,
    open_directory,
    open_file,
    opened,
    opened_directory,
    read_number,
    refusal,
    strangeness,
    sync_directory,
)
from tron_audit_otel.errors import JournalError
from tron_audit_otel.frames import pack_number

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOCK = "lock"
ACKNOWLEDGED = "acknowledged"
"""The number of the first record that is not acknowledged."""
CLOSED = "closed"
"""The number behind the last record; its owner ended by itself."""
STATUS = "status.json"
PAGE_BYTES = 4096
"""Written at one moment, as far as a reader sees."""
DAMAGED = "damaged"

PROBE_SECONDS = 0.02
"""How long a look at a lock may keep others from taking it; far longer than it does."""
_NAMES_TRIED_MAX = 100

_STREAM = re.compile(r"\d{8}T\d{6}-\d+-[0-9a-f]{8}", re.ASCII)
_SEGMENT = re.compile(r"(\d{8,18})\.segment", re.ASCII)


_logger = logging.getLogger(__name__)

_forking = threading.RLock()
"""Held while a lock is taken: a child must not inherit one that nothing here knows of yet."""
_held: set[StreamDirectory] = set()
_locks: set[int] = set()
"""Descriptors of locks in the root; a child that kept one would hold the lock for as long as it lives."""


def segment_name(index: int) -> str:
    """Gives a segment's file name."""
    return f"{index:08d}.segment"


class StreamDirectory:
    """A stream's directory, ours as long as we hold the lock in it; every path is relative to its descriptor."""

    def __init__(self, name: str, root: int, directory: int, lock: int) -> None:
        """Takes its name, and the descriptors of the root, the directory and the lock, which it will close."""
        self.name = name
        self.descriptor = directory
        self._root = root
        self._descriptors = {root, directory, lock}
        _held.add(self)

    def open(self, name: str, flags: int) -> int:
        """Opens a file in it."""
        descriptor = open_file(name, flags, self.descriptor)
        self._descriptors.add(descriptor)
        return descriptor

    def close_file(self, descriptor: int) -> None:
        """Closes what :meth:`open` gave."""
        if descriptor in self._descriptors:  # else a fork or `close` has done so, and the number may be another's
            self._descriptors.remove(descriptor)
            os.close(descriptor)

    @contextmanager
    def opened(self, name: str, flags: int) -> Iterator[int]:
        """Opens a file for as long as the block lasts."""
        descriptor = self.open(name, flags)
        try:
            yield descriptor
        finally:
            self.close_file(descriptor)

    def in_use(self) -> bool:
        """Tells whether its owner came to use it, and did not leave while removing it."""
        return read_number(ACKNOWLEDGED, self.descriptor) is not None or bool(segment_sizes(self.descriptor))

    def put_number(self, name: str, number: int, *, sync: bool) -> None:
        """Overwrites a small file in place: that takes no room on the disk, and cannot be half done by a kill."""
        with self.opened(name, os.O_WRONLY | os.O_CREAT) as descriptor:
            os.pwrite(descriptor, pack_number(number), 0)
            if sync:
                os.fsync(descriptor)

    def put_note(self, data: bytes, bytes_before: int) -> int:
        """Overwrites the note in place, with spaces behind it up to a whole page, and gives the file's length.

        A disk that is full has no room for another file, and the note is there to tell of that.
        """
        size = max(bytes_before, -(-len(data) // PAGE_BYTES) * PAGE_BYTES)
        with self.opened(STATUS, os.O_WRONLY | os.O_CREAT) as descriptor:
            os.pwrite(descriptor, data.ljust(size), 0)
        return size

    def sync(self) -> None:
        """Makes durable which files there are."""
        sync_directory(self.descriptor)

    def remove(self, name: str) -> None:
        """Removes a file, if it is there."""
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.descriptor)

    def set_aside(self, name: str) -> None:
        """Moves a file, if it is there, to where operators find what is damaged."""
        with suppress(FileExistsError):
            os.mkdir(DAMAGED, 0o700, dir_fd=self._root)
        with opened(DAMAGED, os.O_RDONLY | DIRECTORY, self._root) as damaged, suppress(FileNotFoundError):
            os.rename(name, f"{self.name}-{name}", src_dir_fd=self.descriptor, dst_dir_fd=damaged)

    def dissolve(self) -> None:
        """Removes it, all segments being gone; a foreign file in it keeps the directory."""
        for name in (f"{STATUS}{NEW}", STATUS, CLOSED, ACKNOWLEDGED, LOCK):
            self.remove(name)
        try:
            os.rmdir(self.name, dir_fd=self._root)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                raise

    def close(self) -> None:
        """Gives up the lock; in a forked child, which shares the open file, only the child's hold on it."""
        with _forking:
            _held.discard(self)
            while self._descriptors:
                with suppress(OSError):  # it is closed, whatever it says
                    os.close(self._descriptors.pop())


def _after_fork_in_child() -> None:
    for directory in list(_held):
        directory.close()
    while _locks:
        with suppress(OSError):
            os.close(_locks.pop())
    _forking.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_forking.acquire, after_in_parent=_forking.release, after_in_child=_after_fork_in_child)


def open_root(root: Path) -> int:
    """Makes the root if it is not there, and opens it.

    Raises:
        JournalError: It cannot be, or is open to others than us.
    """
    if sys.platform == "win32":
        raise JournalError(
            "a journal on disk needs file locks that Windows has not; AUDIT_LOG_JOURNAL=memory is the way there",
            "disk_failed",
        )
    try:
        make_directory(root)
        directory = open_directory(root)
    except OSError as error:
        raise refusal(f"AUDIT_LOG_JOURNAL_DIR: {root} cannot be used", error) from error
    why = strangeness(directory, root) or exposure(directory, root)
    if why is not None:
        os.close(directory)
        raise JournalError(f"AUDIT_LOG_JOURNAL_DIR: {why}", "disk_failed")
    return directory


def make(root: Path) -> StreamDirectory:
    """Makes a directory and locks it.

    Raises:
        JournalError: It cannot be.
    """
    root_fd = open_root(root)
    try:
        for _ in range(_NAMES_TRIED_MAX):
            # The time is there for people; nothing but the order of adoption follows from it.
            name = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{os.getpid()}-{secrets.token_hex(4)}"
            with suppress(FileExistsError, FileNotFoundError):
                os.mkdir(name, 0o700, dir_fd=root_fd)
                os.chmod(name, 0o700, dir_fd=root_fd)  # whatever the umask
                # Before it is locked, an adopter takes it for one that was left, and removes it: then the next name.
                if (directory := _claim(root_fd, name)) is not None:
                    with _closed_on_error(directory):
                        directory.put_number(ACKNOWLEDGED, 0, sync=False)
                        sync_directory(root_fd)
                    return directory
    except OSError as error:
        raise refusal(f"AUDIT_LOG_JOURNAL_DIR: {root} cannot be written in", error) from error
    finally:
        os.close(root_fd)
    raise JournalError(f"AUDIT_LOG_JOURNAL_DIR: something removes each new directory in {root}", "disk_failed")


def claim_dead(root: Path, directories_max: int | None = None) -> list[StreamDirectory]:
    """Locks every directory whose owner is dead, the oldest first; removes those that were never in use.

    Raises:
        JournalError: The root is there and cannot be read.
    """
    claimed: list[StreamDirectory] = []
    with streams(root) as (root_fd, names):
        if names and (why := strangeness(root_fd, root) or exposure(root_fd, root)) is not None:
            _logger.warning("no journal is taken over: AUDIT_LOG_JOURNAL_DIR: %s", why)
            return claimed
        busy = []
        for name in names:
            if directories_max is not None and len(claimed) >= directories_max:
                break
            if not _claim_dead(root, root_fd, name, claimed):
                busy.append(name)
        if busy:
            time.sleep(PROBE_SECONDS)
            for name in busy:
                _claim_dead(root, root_fd, name, claimed)
    return sorted(claimed, key=lambda directory: directory.name)


def _claim_dead(root: Path, root_fd: int, name: str, claimed: list[StreamDirectory]) -> bool:
    """Tells whether there is no need to try again."""
    try:
        directory = _claim(root_fd, name)
        if directory is None:
            return False
        with _closed_on_error(directory):
            if directory.in_use():
                claimed.append(directory)
            else:
                directory.dissolve()
                directory.close()
    except FileNotFoundError:
        pass  # another process removed it
    except OSError as error:
        _logger.warning("the journal %s is left as it is: %s", root / name, error.strerror)
    return True


@contextmanager
def _closed_on_error(directory: StreamDirectory) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with suppress(OSError):
            directory.dissolve()  # unless a segment is in it
        directory.close()
        raise


def _claim(root_fd: int, name: str) -> StreamDirectory | None:
    """Takes the lock; None: somebody holds it."""
    with _forking, ExitStack() as opened:
        directory = open_file(name, os.O_RDONLY | DIRECTORY, root_fd)
        opened.callback(os.close, directory)
        lock = open_file(LOCK, os.O_RDWR | os.O_CREAT, directory)
        opened.callback(os.close, lock)
        if not _locked(lock, fcntl.LOCK_EX):
            return None
        # Who held it may have removed it meanwhile, and somebody else have made another.
        if not os.path.samestat(os.fstat(lock), os.stat(LOCK, dir_fd=directory, follow_symlinks=False)):
            return None
        root = os.dup(root_fd)
        opened.pop_all()
        return StreamDirectory(name, root, directory, lock)


def is_alive(directory: int) -> bool:
    """Tells whether somebody holds the lock in a directory."""
    with _forking, suppress(FileNotFoundError):
        lock = open_file(LOCK, os.O_RDONLY, directory)
        try:
            return not _locked(lock, fcntl.LOCK_SH)
        finally:
            os.close(lock)
    return False


@contextmanager
def locked(name: str, root_fd: int, seconds_max: float) -> Iterator[None]:
    """Holds a lock in the root.

    Raises:
        TimeoutError: Somebody else held it all the time.
    """
    deadline = time.monotonic() + seconds_max
    with _forking:  # and no longer: a fork would wait for the disk
        lock = open_file(name, os.O_RDWR | os.O_CREAT, root_fd)
        _locks.add(lock)
    try:
        while not _locked(lock, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                raise TimeoutError(errno.ETIMEDOUT, f"{name} is locked")
            time.sleep(PROBE_SECONDS)
        yield
    finally:
        with _forking:
            if lock in _locks:  # else this is a forked child, which has closed it
                _locks.remove(lock)
                os.close(lock)


def _locked(lock: int, kind: int) -> bool:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def streams(root: Path) -> Iterator[tuple[int, list[str]]]:
    """Opens the root for as long as the block lasts, and gives the names of our directories in it, in order.

    Raises:
        JournalError: It is there and cannot be read.
    """
    with ExitStack() as stack:
        root_fd, names = -1, []
        try:
            with suppress(FileNotFoundError):
                root_fd = stack.enter_context(opened_directory(root))
                entries = stack.enter_context(os.scandir(root_fd))
                names = [
                    entry.name
                    for entry in entries
                    if _STREAM.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
                ]
        except OSError as error:
            raise refusal(f"AUDIT_LOG_JOURNAL_DIR: {root} cannot be read", error) from error
        yield root_fd, sorted(names)


def segment_sizes(directory: int) -> list[tuple[int, int]]:
    """Gives the index and the bytes of each segment, in order."""
    sizes = []
    with os.scandir(directory) as entries:
        for entry in entries:
            name = _SEGMENT.fullmatch(entry.name)
            if name and entry.is_file(follow_symlinks=False):
                with suppress(FileNotFoundError):  # its owner may live, and remove it
                    sizes.append((int(name[1]), entry.stat(follow_symlinks=False).st_size))
    return sorted(sizes)
