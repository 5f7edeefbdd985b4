"""The one end to which all journals are shipped: how it answers, and how long it is left alone."""

from __future__ import annotations

import logging
import random
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from tron_audit_otel.answer import Answer, Fate
from tron_audit_otel.event import error_type
from tron_audit_otel.redact import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from tron_audit_otel.answer import Transport

RETRY_SECONDS_MIN = 0.1
RETRY_AFTER_SECONDS_MAX = 3600.0
LOG_SECONDS_MIN = 60.0
"""Between two lines of one kind: a receiver that comes and goes must not fill the operational log."""

_logger = logging.getLogger(__name__)


class Receiver:
    """The one end to which all journals are shipped: sends to it, and knows how long to leave it alone."""

    def __init__(
        self,
        make_transport: Callable[[], Transport],
        on_sent: Callable[[float, Fate], None],
        backoff: Backoff,
        log: Log,
    ) -> None:
        """Takes how to reach it, who is told of each request, and the shipper's patience and log."""
        self._make_transport = make_transport
        self._on_sent = on_sent
        self._backoff = backoff
        self._log = log
        self._transport: Transport | None = None
        self._due_s = self._down_s = 0.0
        self._said: set[Fate] = set()
        self.outage: Answer | None = None
        """The last answer, when it says that nothing was taken or refused."""

    def prepare(self) -> None:
        """Makes the transport before it is needed: it may have a thread, and none can be started at exit."""
        with suppress(BaseException):  # the first request meets the same, and says so
            self._transport = self._transport or self._make_transport()

    @property
    def pause_s(self) -> float:
        """How long to leave it alone."""
        return self._due_s - time.monotonic() if self.outage is not None else 0.0

    def send(self, request: bytes) -> Answer:
        """Sends, and draws the conclusions but that from a refusal. Never raises."""
        began_s = time.monotonic()
        answer = self._answer(request)
        with suppress(BaseException):
            self._on_sent(time.monotonic() - began_s, answer.fate)
        if answer.fate is Fate.DELIVERED:
            self._recover()
        elif answer.fate is not Fate.POISON:
            self._wait(answer)
        return answer

    def park(self, reason: str) -> None:
        """An operator must mend something."""
        self._wait(Answer(Fate.PARKED, reason, None))

    def cut(self) -> None:
        """Ends the request that is under way, from another thread."""
        transport = self._transport
        if transport is not None:
            with suppress(BaseException):
                transport.close()

    def close(self) -> None:
        """Closes the connection; the next request makes another."""
        self.cut()
        self._transport = None

    def _answer(self, request: bytes) -> Answer:
        try:
            if self._transport is None:
                self._transport = self._make_transport()
        except BaseException as error:  # noqa: BLE001 - a certificate that is missing, say; its message may hold secrets
            fate = Fate.RETRY if isinstance(error, RuntimeError) else Fate.PARKED  # no thread now, but perhaps soon
            return Answer(fate, f"no transport can be made: {error_type(error)}", None)
        try:
            return self._transport.send(request)
        except BaseException as error:  # noqa: BLE001 - a transport raises nothing, but this thread's life hangs on it
            self.close()
            return Answer(Fate.RETRY, error_type(error), None)

    def _wait(self, answer: Answer) -> None:
        now_s = time.monotonic()
        if self.outage is None:
            self._down_s = now_s
        self.outage = answer
        self._due_s = now_s + self._backoff.next_s()
        if answer.retry_after_s is not None and answer.retry_after_s > 0:  # added: all processes were told the same
            self._due_s += min(answer.retry_after_s, RETRY_AFTER_SECONDS_MAX)
        if answer.fate in self._said:
            return
        parked = answer.fate is Fate.PARKED
        what = "audit records wait until an operator mends this: %s" if parked else "audit records wait: %s"
        if self._log.say(answer.fate.name, logging.ERROR if parked else logging.WARNING, what, answer.reason):
            self._said.add(answer.fate)

    def _recover(self) -> None:
        if self.outage is None:
            return
        self.outage = None
        self._backoff.reset()
        if self._said:
            self._said.clear()
            down_s = time.monotonic() - self._down_s
            self._log.say(None, logging.INFO, "audit records are taken again, after %.0f s", down_s)


class Backoff:
    """Waits twice as long each time, with jitter."""

    def __init__(self, seconds_max: float) -> None:
        """Takes the longest wait."""
        self._seconds_max = seconds_max
        self.reset()

    def reset(self) -> None:
        """Begins with the shortest wait again."""
        self._seconds = min(RETRY_SECONDS_MIN, self._seconds_max)

    def next_s(self) -> float:
        """Gives the next wait, in seconds."""
        seconds = self._seconds * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, guards nothing
        self._seconds = min(self._seconds * 2, self._seconds_max)
        return seconds


class Log:
    """Logs, without ever raising, and a kind of thing once in a while at most."""

    def __init__(self) -> None:
        """Has said nothing yet."""
        self._said_s: dict[str, float] = {}

    def say(self, kind: str | None, level: int, what: str, *values: object) -> bool:
        """Tells whether it was said; what is of no kind always is."""
        now_s = time.monotonic()
        if kind is not None:
            if now_s - self._said_s.get(kind, -LOG_SECONDS_MIN) < LOG_SECONDS_MIN:
                return False
            self._said_s[kind] = now_s
        with suppress(BaseException):
            # What a receiver or a file system says may hold anything.
            _logger.log(level, what, *(printable(str(v)) if isinstance(v, str | BaseException) else v for v in values))
        return True
