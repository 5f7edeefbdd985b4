"""How the commands of ``tron-audit`` answer: one object for programs, lines for people, progress for who waits."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn, TextIO

from pydantic import ByteSize

from tron_audit_otel import redact
from tron_audit_otel.disk import refusal
from tron_audit_otel.errors import ConfigError
from tron_audit_otel.redact import CUT, LINE_CHARACTERS_MAX

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from tron_audit_otel.config import AuditConfig

EXIT_OK = 0
EXIT_WORK = 1
"""An operator has something to do."""
EXIT_CONFIG = 2
"""A setting must be mended, or the journal cannot be read."""

PROGRESS_SECONDS = 5
"""Between two lines of progress that stay, where there is no terminal."""

_COLUMNS = 80
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


def journal_root(config: AuditConfig) -> Path:
    """Gives the directory of the journals.

    Raises:
        ConfigError: There is none.
    """
    if config.journal == "memory":
        raise ConfigError(
            "AUDIT_LOG_JOURNAL=memory: nothing is on disk, and only the process itself knows what became of its "
            "records: see its metrics, and tron_audit_otel.stats() in it"
        )
    return config.journal_path


def nothing_yet(root: Path) -> Answer | None:
    """Gives the answer when the directory is not there.

    Raises:
        JournalError: It cannot be told.
    """
    try:
        root.lstat()
    except FileNotFoundError:
        told = [
            f"No process has written a record yet: {root} does not exist.",
            "If one should have: run this as the application's user, with its environment.",
        ]
        return Answer(EXIT_OK, {"ok": True, "journal_dir": str(root), "exists": False}, told)
    except OSError as error:
        raise refusal(f"AUDIT_LOG_JOURNAL_DIR: {root} cannot be read", error) from error
    return None


def printable(text: str, characters_max: int = sys.maxsize) -> str:
    """Gives text as a terminal may show it: records, answers, names and paths hold what others chose."""
    text = redact.printable(text)
    return text if len(text) <= characters_max else text[: characters_max - len(CUT)] + CUT


def lines(texts: Iterable[str]) -> str:
    """Puts lines together, none of which can look like two."""
    return "\n".join(map(printable, texts))


class Progress:
    """One line that changes on a terminal; elsewhere a line once in a while."""

    def __init__(self, stream: TextIO | None = None) -> None:
        """Takes where it goes, by default standard error."""
        self._stream = stream or sys.stderr
        self._columns = _columns(self._stream) if self._stream.isatty() else 0
        self._due_s = 0.0

    def show(self, text: str) -> None:
        """Says how it stands."""
        if self._columns:
            self._write(f"\r{printable(text, self._columns - 1):{self._columns - 1}}")
        elif time.monotonic() >= self._due_s:
            self._due_s = time.monotonic() + PROGRESS_SECONDS
            self._write(f"{printable(text, LINE_CHARACTERS_MAX)}\n")

    def say(self, text: str) -> None:
        """Says something that stays."""
        self.end()
        self._write(f"{printable(text, LINE_CHARACTERS_MAX)}\n")

    def end(self) -> None:
        """Leaves no half line behind."""
        if self._columns:
            self._write(f"\r{'':{self._columns - 1}}\r")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


class ProgressHandler(logging.Handler):
    """Puts what is logged between the lines of progress."""

    def __init__(self, progress: Progress) -> None:
        """Takes warnings and errors."""
        super().__init__(logging.WARNING)
        self._progress = progress

    def emit(self, record: logging.LogRecord) -> None:
        """Says it."""
        self._progress.say(f"tron-audit: {record.getMessage()}")


@contextmanager
def logged(progress: Progress, logger: logging.Logger) -> Iterator[None]:
    """Says what is logged there for as long as the block lasts, by us or others: urllib3 logs what servers answer."""
    handler = ProgressHandler(progress)
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


class Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments, which may have been pasted from anywhere, in one printable line."""

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """Ends the program."""
        super().exit(status, message and f"{printable(message.rstrip())}\n")


def _columns(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or _COLUMNS
    except OSError:
        return _COLUMNS


def on_disk(records: int, size_bytes: int, oldest_at: float | None) -> str:
    """Says what waits in a journal."""
    oldest = f", the oldest written {ago(oldest_at)}" if oldest_at is not None and records else ""
    return f"{count(records)} waiting in {size(size_bytes)}{oldest}"


def count(number: int, what: str = "record") -> str:
    """Says how many.

    >>> count(1234)
    '1,234 records'
    """
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def size(size_bytes: int) -> str:
    """Says how many bytes.

    >>> size(3_400_000)
    '3.2 MiB'
    """
    return ByteSize(size_bytes).human_readable(separator=" ")


def ago(epoch_s: float) -> str:
    """Says how long ago that was."""
    return f"{duration(time.time() - epoch_s)} ago"


def duration(seconds: float) -> str:
    """Says how long that is; a clock that was set back makes it none.

    >>> duration(250)
    '4 min'
    """
    seconds = max(0.0, seconds)
    for unit_seconds, unit in ((_DAY_SECONDS, "days"), (_HOUR_SECONDS, "h"), (_MINUTE_SECONDS, "min")):
        if seconds >= 2 * unit_seconds:
            return f"{seconds / unit_seconds:,.0f} {unit}"
    return f"{seconds:.0f} s"
