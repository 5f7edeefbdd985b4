"""Records that the receiver will never take, one JSON file each, until somebody has looked at them.

The files are for people and their tools: a reason, a sentence, and the request in base64, ready to be sent again.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import secrets
import stat
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tron_audit_otel import disk
from tron_audit_otel.disk import DIRECTORY, make_directory, open_file, opened, refusal
from tron_audit_otel.errors import JournalError
from tron_audit_otel.redact import line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SUFFIX = ".json"

FILE_BYTES_MAX = 64 * 2**20
"""A larger file is not read: it is no letter. One record takes a few dozen KiB at most."""

TEMPORARY_SECONDS_MAX = 3600
"""Writing takes milliseconds: a temporary file of this age was left by a process that was killed."""

_PLAIN_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
"""Any other id is hashed. No capitals: there are file systems for which they make no difference."""

_HASHED = re.compile(r"hashed-[0-9a-f]{64}")
_TEMPORARY = re.compile(r"\.[a-z0-9-]+\.[0-9a-f]{16}\.tmp")


@dataclass(frozen=True, slots=True)
class Letter:
    """A record that was set aside, and why."""

    id: str
    """The record's, from the record: it may hold anything. Of an unreadable letter, the file's name."""
    at: str
    """When it was set aside, or when an unreadable file was last changed, if that is known: UTC, ISO 8601."""
    reason: str
    sentence: str
    request: bytes | None = None
    """A serialized ExportLogsServiceRequest with that record; a list of letters leaves it out."""
    is_readable: bool = True
    """False for a file that is damaged or none of ours; it is listed so that somebody looks at it."""


class DeadLetters:
    """A directory of letters, shared by processes.

    Raises:
        JournalError: From every method, when the disk refuses.
    """

    def __init__(self, directory: Path) -> None:
        """Takes the directory; it is made when the first letter is put."""
        self._directory = directory
        self._is_swept = False

    def put(self, record_id: str, request: bytes, *, reason: str, sentence: str) -> None:
        """Keeps a record; it is on disk when this returns. The same id again takes the same file."""
        name = _stem(record_id) + SUFFIX
        letter = {
            "id": record_id,
            "at": _iso(time.time()),
            "reason": line(reason),
            "sentence": line(sentence),
            "request": base64.b64encode(request).decode("ascii"),
        }
        with self._refusals("keep a dead letter"):
            self._make()
            with self._opened() as directory:
                self._sweep(directory)
                _write(directory, name, json.dumps(letter, indent=1).encode("ascii") + b"\n")

    def letters(self) -> list[Letter]:
        """Lists what there is, the oldest first, without the requests; what cannot be read is listed as such."""
        with self._refusals("list the dead letters"):
            try:
                with self._opened() as directory:
                    names = [name for name in _names(directory) if _is_letter(directory, name)]
                    found = [_listed(directory, name) for name in names]
            except FileNotFoundError:
                return []
        return sorted(filter(None, found), key=lambda letter: (letter.at, letter.id))

    def read(self, record_id: str) -> Letter:
        """Gives one letter with its request.

        Raises:
            JournalError: There is none, or it cannot be read.
        """
        with self._refusals(f"read dead letter {line(record_id)}"), self._opened() as directory:
            try:
                return _read(directory, self._name(directory, record_id))
            except ValueError as error:
                raise JournalError(f"dead letter {line(record_id)} cannot be read: {error}", "disk_failed") from None

    def remove(self, record_id: str) -> None:
        """Removes one; it is no error when it is gone already."""
        what = f"remove dead letter {line(record_id)}"
        with self._refusals(what), suppress(FileNotFoundError), self._opened() as directory:
            os.unlink(self._name(directory, record_id), dir_fd=directory)
            os.fsync(directory)

    @contextmanager
    def _refusals(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise refusal(f"cannot {what} in {self._directory}", error) from error

    def _make(self) -> None:
        make_directory(self._directory)
        with disk.opened_directory(self._directory.parent) as parent:
            os.fsync(parent)

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """Opens the directory, below one that no link leads to either; what is done by it stays within."""
        with (
            disk.opened_directory(self._directory.parent) as parent,
            opened(self._directory.name, os.O_RDONLY | DIRECTORY, parent) as directory,
        ):
            yield directory

    def _sweep(self, directory: int) -> None:
        """Once a process, removes what killed ones left half-written."""
        if self._is_swept:
            return
        self._is_swept = True
        for name in filter(_TEMPORARY.fullmatch, _names(directory)):
            with suppress(OSError):
                state = os.stat(name, dir_fd=directory, follow_symlinks=False)
                if stat.S_ISREG(state.st_mode) and time.time() - state.st_mtime > TEMPORARY_SECONDS_MAX:
                    os.unlink(name, dir_fd=directory)

    def _name(self, directory: int, record_id: str) -> str:
        """Finds the file of an id, or of a name that the list has shown for want of an id."""
        name = _stem(record_id) + SUFFIX
        if _HASHED.fullmatch(record_id) and not _is_letter(directory, name):
            return record_id + SUFFIX
        return name


def _stem(record_id: str) -> str:
    if _PLAIN_ID.fullmatch(record_id):
        return record_id
    return f"hashed-{hashlib.sha256(record_id.encode('utf-8', 'surrogatepass')).hexdigest()}"


def _iso(epoch_s: float) -> str:
    return datetime.fromtimestamp(epoch_s, UTC).isoformat(timespec="milliseconds")


def _names(directory: int) -> list[str]:
    return os.listdir(directory)


def _write(directory: int, name: str, data: bytes) -> None:
    """Writes a file at once: under its name there is all of it, or what was there before."""
    temporary = f".{name.removesuffix(SUFFIX)}.{secrets.token_hex(8)}.tmp"
    try:
        with os.fdopen(open_file(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, directory), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary, dir_fd=directory)
        raise
    os.fsync(directory)


def _is_letter(directory: int, name: str) -> bool:
    """Tells whether a name is one that a letter can have, and is that of a file; all else is foreign."""
    stem = name.removesuffix(SUFFIX)
    if stem == name or not (_PLAIN_ID.fullmatch(stem) or _HASHED.fullmatch(stem)):
        return False
    with suppress(OSError):
        return stat.S_ISREG(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode)
    return False


def _listed(directory: int, name: str) -> Letter | None:
    try:
        return replace(_read(directory, name), request=None)
    except FileNotFoundError:  # somebody has just removed it
        return None
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        at = _changed(directory, name)
        return Letter(name.removesuffix(SUFFIX), at, "unreadable", line(str(why)), is_readable=False)


def _changed(directory: int, name: str) -> str:
    with suppress(OSError, ValueError, OverflowError):  # removed just now, or at a time that no calendar has
        return _iso(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mtime)
    return ""


def _read(directory: int, name: str) -> Letter:
    with os.fdopen(open_file(name, os.O_RDONLY, directory), "rb") as file:
        if os.fstat(file.fileno()).st_size > FILE_BYTES_MAX:
            raise ValueError(f"it has more than {FILE_BYTES_MAX} bytes")
        try:
            fields = json.loads(file.read(FILE_BYTES_MAX))
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
    names = ("id", "at", "reason", "sentence", "request")
    if not isinstance(fields, dict) or not all(isinstance(fields.get(field), str) for field in names):
        raise ValueError("it is no dead letter")
    if _stem(fields["id"]) + SUFFIX != name:
        raise ValueError("its name is not that of its id")
    datetime.fromisoformat(fields["at"])
    request = base64.b64decode(fields["request"], validate=True)
    return Letter(fields["id"], fields["at"], fields["reason"], fields["sentence"], request)
