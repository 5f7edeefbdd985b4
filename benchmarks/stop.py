"""A signal to end is an exception, so that everything that runs is stopped on the way out."""

from __future__ import annotations

import signal
import sys
from typing import NoReturn


def leave_on_signals() -> None:
    """Ends the process as an exit does, for every signal that asks it to end."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)


def _leave(number: int, _frame: object) -> NoReturn:
    sys.exit(128 + number)
