"""Small things done with files, relative to a directory's descriptor; none of them follows a symbolic link."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from tron_audit_otel.errors import JournalError
from tron_audit_otel.frames import NUMBER_BYTES, unpack_number

if TYPE_CHECKING:
    from collections.abc import Iterator

DIRECTORY = getattr(os, "O_DIRECTORY", 0)  # Windows has neither, and no journal on disk
NEW = ".new"
"""At the end of a file's name until it takes another's place; a kill leaves it so."""
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def refusal(doing: str, error: OSError) -> JournalError:
    """Gives the error for what the system refused."""
    return JournalError(f"{doing}: {error.strerror or error}", "disk_full" if error.errno in _FULL else "disk_failed")


def open_file(name: str, flags: int, directory: int) -> int:
    """Opens a file, and no symbolic link; one that is made has mode 0600, whatever the umask."""
    descriptor = os.open(name, flags | _NOFOLLOW, 0o600, dir_fd=directory)
    if flags & os.O_CREAT:
        os.fchmod(descriptor, 0o600)
    return descriptor


@contextmanager
def opened(name: str, flags: int, directory: int) -> Iterator[int]:
    """Opens a file for as long as the block lasts."""
    descriptor = open_file(name, flags, directory)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def read_file(name: str, directory: int, bytes_max: int) -> bytes | None:
    """Gives a small file's content; None: it is not there."""
    with suppress(FileNotFoundError), opened(name, os.O_RDONLY, directory) as descriptor:
        return os.read(descriptor, bytes_max)
    return None


def read_number(name: str, directory: int) -> int | None:
    """Gives what a small file holds; None: it is not there, or torn."""
    data = read_file(name, directory, NUMBER_BYTES)
    return None if data is None else unpack_number(data)


def replace_file(name: str, directory: int, data: bytes, *, sync: bool) -> None:
    """Puts a file into another's place, at one moment."""
    new = f"{name}{NEW}"
    try:
        with opened(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, directory) as descriptor:
            write_all(descriptor, data, 0)
            if sync:
                os.fsync(descriptor)
        os.rename(new, name, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError:
        with suppress(OSError):
            os.unlink(new, dir_fd=directory)
        raise


def sync_directory(descriptor: int) -> None:
    """Makes durable which files there are; some network file systems cannot, and say that it is invalid."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise


def write_all(descriptor: int, data: bytes, offset: int) -> None:
    """Writes all of it, mostly at once; a disk that is full in the middle of it shows at the second try."""
    written = os.pwrite(descriptor, data, offset)
    while written < len(data):
        written += os.pwrite(descriptor, memoryview(data)[written:], offset + written)
