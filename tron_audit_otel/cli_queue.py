"""A SIEM's queue at the Collector, and the room in it for what a command sends."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from tron_audit_otel import collector_metrics
from tron_audit_otel.cli_text import size
from tron_audit_otel.errors import CollectorError

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from tron_audit_otel.cli_text import Progress
    from tron_audit_otel.collector_metrics import Collector, Siem

SHARE_MAX = 0.5
"""A command waits while the queue is fuller than that: a full one stops the intake for every SIEM."""
LOOK_SECONDS = 1.0
"""Between two looks at a queue that is too full."""
LOOK_SECONDS_MAX = 5.0
"""Between two looks at any queue: others fill it as well."""
REQUESTS_MIN = 8
"""A request is never longer than this part of the queue: one that does not fit would be tried for ever."""


def find(collector: Collector, name: str) -> Siem | None:
    """Gives the SIEM of that name, if the Collector has it."""
    return next((siem for siem in collector.siems if siem.name == name), None)


class Queue:
    """Looks at the Collector's metrics now and then while something is sent."""

    def __init__(
        self,
        collector: Collector,
        siem: Siem,
        stop: threading.Event,
        progress: Progress,
        show: Callable[[str], None],
    ) -> None:
        """Takes how it was before, what ends a wait, and who is told why there is one."""
        self._url = collector.url
        self._before = self._siem = siem
        self._stop = stop
        self._progress = progress
        self._show = show
        self._room_bytes = 0.0
        self._due_s = 0.0
        self._is_refusal_said = False

    @property
    def request_bytes_max(self) -> int:
        """How long a request may be for this queue."""
        capacity = self._siem.capacity_bytes
        return max(1, capacity // REQUESTS_MIN) if capacity else sys.maxsize

    def make_room(self, request_bytes: int) -> None:
        """Waits until the queue is half empty, or it is to stop."""
        if self._room_bytes < request_bytes or time.monotonic() >= self._due_s:
            while not self._look(request_bytes) and not self._stop.wait(LOOK_SECONDS):
                pass
        self._room_bytes -= request_bytes

    def settle(self, seconds_max: float) -> None:
        """Waits until nothing is in the queue, or it is to stop, but no longer than that."""
        deadline_s = time.monotonic() + seconds_max
        while self._read() and self._siem.waiting_bytes and time.monotonic() < deadline_s:
            if self._stop.wait(LOOK_SECONDS):
                break

    @property
    def refused(self) -> int:
        """How many records the SIEM has refused for good since the beginning, at the last look."""
        # A Collector that has started anew meanwhile has counted anew.
        return max(0, self._siem.refused - self._before.refused)

    @property
    def waiting_bytes(self) -> int:
        """What was in the queue at the last look."""
        return self._siem.waiting_bytes

    def _read(self) -> bool:
        try:
            found = find(collector_metrics.read(self._url), self._siem.name)
        except CollectorError:
            return False
        self._siem = found or self._siem
        return found is not None

    def _look(self, request_bytes: int) -> bool:
        """Tells whether there is room. A Collector that says nothing is perhaps down: sending will tell."""
        self._due_s = time.monotonic() + LOOK_SECONDS_MAX
        if not self._read() or not self._siem.capacity_bytes:
            self._room_bytes = 0.0
            return True
        name, refused = self._siem.name, self.refused
        if refused and not self._is_refusal_said:
            self._is_refusal_said = True
            self._progress.say(f"tron-audit: {name} refuses records for good, {refused:,} so far")
        waiting, capacity = self._siem.waiting_bytes, self._siem.capacity_bytes
        self._room_bytes = SHARE_MAX * capacity - waiting
        if self._room_bytes >= request_bytes or not waiting:
            return True
        self._show(f"paused: {name}'s queue holds {size(waiting)} of {size(capacity)}")
        return False
