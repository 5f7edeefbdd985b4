"""Ctrl-C and SIGTERM as a wish that a command grants when it can."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

EXIT_SIGNAL = 128
"""And the signal's number, as shells have it."""


class Stop(threading.Event):
    """Is set by the signal."""

    signal = 0
    """Its number; 0: there was none."""


@contextmanager
def stopped() -> Iterator[Stop]:
    """Makes Ctrl-C and SIGTERM a wish for as long as the block lasts."""
    stop = Stop()

    def handle(number: int, _: object) -> None:
        stop.signal = number
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
