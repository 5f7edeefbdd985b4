"""Small things done with files and directories that are for us alone; none of them follows a symbolic link.

Whatever is done in a directory is done by its descriptor, so that nobody can put another in its place meanwhile. What
leads to a directory is its operator's to guard, and may have links in it. Hard links are not looked for: only who may
write in a directory can make one there, and that is us.
"""

from __future__ import annotations

import errno
import os
import shlex
import stat
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from tron_audit_otel.errors import JournalError
from tron_audit_otel.frames import NUMBER_BYTES, unpack_number

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DIRECTORY = getattr(os, "O_DIRECTORY", 0)  # Windows has neither, and no journal on disk
NEW = ".new"
"""At the end of a file's name until it takes another's place; a kill leaves it so."""
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_NONBLOCK = getattr(os, "O_NONBLOCK", 0)
"""Without it, opening a pipe waits for its other end; to a file it makes no difference."""
_OTHERS = 0o077
_IS_LINK = "it is a symbolic link, and none is followed"
_IS_NO_FILE = "it is no regular file"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def refusal(doing: str, error: OSError) -> JournalError:
    """Gives the error for what the system refused."""
    return JournalError(f"{doing}: {error.strerror or error}", "disk_full" if error.errno in _FULL else "disk_failed")


def open_file(name: str, flags: int, directory: int) -> int:
    """Opens a file or a directory, and nothing else; a file that is made has mode 0600, whatever the umask."""
    try:
        descriptor = os.open(name, flags | _NOFOLLOW | _NONBLOCK, 0o600, dir_fd=directory)
    except OSError as error:
        raise _explained(error, name, directory) from None
    try:
        if not flags & DIRECTORY and not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, _IS_NO_FILE)  # noqa: TRY301 - it is closed below
        if flags & os.O_CREAT:
            os.fchmod(descriptor, 0o600)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def open_directory(path: Path) -> int:
    """Opens a directory; its own name may be no symbolic link."""
    try:
        return os.open(path, os.O_RDONLY | DIRECTORY | _NOFOLLOW)
    except OSError as error:
        raise _explained(error, path) from None


@contextmanager
def opened_directory(path: Path) -> Iterator[int]:
    """Opens a directory for as long as the block lasts."""
    descriptor = open_directory(path)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _explained(error: OSError, name: str | Path, directory: int | None = None) -> OSError:
    """Gives it in words that help: of a link the system says that it is no directory, or that there are too many."""
    with suppress(OSError):
        state = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if stat.S_ISLNK(state.st_mode):
            return OSError(errno.ELOOP, _IS_LINK)
        if error.errno == errno.ENXIO:  # of a pipe that nobody reads: the device is not configured
            return OSError(errno.EINVAL, _IS_NO_FILE)
    return error


def make_directory(path: Path) -> None:
    """Makes a directory, and what is missing above it, all of mode 0700, whatever the umask."""
    if path.is_dir():
        return
    make_directory(path.parent)
    with suppress(FileExistsError):  # another process is as fast; or it is none, and opening it will tell
        path.mkdir(mode=0o700)
        # Only where the umask took from the mode: this follows a link that somebody may have put in its place by now.
        if stat.S_ISDIR(mode := path.lstat().st_mode) and mode & stat.S_IRWXU != stat.S_IRWXU:
            path.chmod(0o700)


def exposure(directory: int, path: Path) -> str | None:
    """Says how far a directory is open to others, and what mends it; None: to its owner alone."""
    mode = stat.S_IMODE(os.fstat(directory).st_mode)
    if not mode & _OTHERS:
        return None
    is_everybodys = mode & stat.S_ISVTX  # as /tmp is
    mends = "name a directory below it, which is then made" if is_everybodys else f"chmod 700 {shlex.quote(str(path))}"
    return f"{path} has mode {mode:04o}, and is to be for its owner alone: {mends}"


def strangeness(directory: int, path: Path) -> str | None:
    """Says that a directory is not ours, and what to do; None: it is."""
    owner, user = os.fstat(directory).st_uid, os.geteuid()
    if owner == user:
        return None
    return (
        f"{path} belongs to user {owner}, and this is user {user}: run it as that user, or chown {user} "
        f"{shlex.quote(str(path))}, or name a directory below it, which is then made"
    )


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
