"""A SIEM's queue at the Collector, and the room in it for what a command sends."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from tron_audit_otel import collector_metrics
from tron_audit_otel.cli_text import printable, size
from tron_audit_otel.errors import CollectorError, ConfigError, ReplayError

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


def required(collector: Collector, name: str, argument: str) -> Siem:
    """Gives the SIEM of that name.

    Raises:
        ConfigError: The Collector has none; the message names the argument, and those that it has.
    """
    siem = find(collector, name)
    if siem is None:
        # What answers there chooses these names, and an error may have several lines.
        names = printable(", ".join(each.name for each in collector.siems)) or "none"
        raise ConfigError(
            f"{argument} {name}: the Collector at {collector.url} sends to no such SIEM; those it has: {names}"
        )
    return siem


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
        self._collector = collector
        self._siem = siem
        self._taken: int | None = 0
        self._is_gone = False
        self.refused = 0
        """How many records the SIEM has refused for good since the beginning, at the last look."""
        self.has_restarted = False
        """The Collector has: what was refused between the last look and its start is counted nowhere."""
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
        """Waits until nothing was in the queue at the last look, or it is to stop, but no longer than that."""
        deadline_s = time.monotonic() + seconds_max
        while self._siem.waiting_bytes and time.monotonic() < deadline_s:
            if self._stop.wait(LOOK_SECONDS) or not self._read():
                break

    def took(self) -> int | None:
        """Looks how many records were put into the queue since the beginning; None: nobody can tell."""
        is_read = self._read()
        return 0 if self._is_gone else self._taken if is_read else None

    @property
    def waiting_bytes(self) -> int:
        """What was in the queue at the last look."""
        return self._siem.waiting_bytes

    def _read(self) -> bool:
        try:
            collector = collector_metrics.read(self._collector.url)
        except CollectorError:
            return False
        found = find(collector, self._siem.name)
        self._is_gone = found is None
        if found is None:
            return False
        before, last = self._siem, self._collector
        is_new = collector.instance != last.instance or collector.uptime_s < last.uptime_s
        self.has_restarted |= is_new
        self.refused += max(0, found.refused - (0 if is_new else before.refused))
        if is_new or found.taken is None or before.taken is None or self._taken is None:
            self._taken = None
        else:
            self._taken += found.taken - before.taken
        self._siem, self._collector = found, collector
        return True

    def _look(self, request_bytes: int) -> bool:
        """Tells whether there is room. A Collector that says nothing is perhaps down: sending will tell."""
        self._due_s = time.monotonic() + LOOK_SECONDS_MAX
        is_read = self._read()
        if self._is_gone:
            raise ReplayError(f"the Collector at {self._collector.url} sends to {self._siem.name} no longer")
        if not is_read or not self._siem.capacity_bytes:
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
