"""The thread that takes what the journals hold to the receiver, for as long as it takes.

A chunk of a journal is acknowledged once the receiver has it, or once what the receiver will never take of it is set
aside; only then is it counted. A kill in between repeats records, and never loses one.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from tron_audit_otel.answer import Fate
from tron_audit_otel.batch import Delivery
from tron_audit_otel.errors import JournalError
from tron_audit_otel.event import error_type
from tron_audit_otel.receiver import Backoff, Log, Receiver

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tron_audit_otel.answer import Transport
    from tron_audit_otel.batch import Refusal
    from tron_audit_otel.dead_letter import DeadLetters
    from tron_audit_otel.journal import Chunk, Journal
    from tron_audit_otel.ledger import Ledger

TICK_SECONDS = 1.0
GATHER_SECONDS = 0.05
"""After a small request, so that more records are in the next one: a request takes the time of many records."""
DRAIN_POLL_SECONDS = 0.05
CUT_SECONDS = 0.5
"""What is left of the time to stop in when a request under way is cut off."""
LOGGED_IDS_MAX = 10


@dataclass(frozen=True, slots=True)
class Shipping:
    """What the shipper is at."""

    state: Literal["idle", "shipping", "retrying", "parked"] = "idle"
    """``parked``: nothing will be taken until an operator mends something."""
    reason: str | None = None
    since_epoch_s: float = field(default_factory=time.time)


class Shipper:
    """Ships any number of journals, one chunk of each in turn, in a thread that nothing ends but ``stop``.

    It is of no use in a forked child, which makes one of its own.
    """

    def __init__(  # noqa: PLR0913 - all by name, and given in one place
        self,
        *,
        make_transport: Callable[[], Transport],
        dead_letters: DeadLetters | None,
        request_bytes_max: int,
        retry_seconds_max: float,
        tick: Callable[[], None],
        on_sent: Callable[[float, Fate], None],
    ) -> None:
        """Takes the parts.

        Args:
            make_transport: Called in the thread, once each time that it starts.
            dead_letters: Takes what the receiver will never take; without it that is lost, and logged.
            request_bytes_max: Size of a request, unless it holds a single record.
            retry_seconds_max: The longest wait between two attempts, unless the receiver asks for a longer one.
            tick: Called about once a second.
            on_sent: Told of each request how many seconds it took, and what became of it.
        """
        self._log = Log()
        self._receiver = Receiver(make_transport, on_sent, Backoff(retry_seconds_max), self._log)
        self._dead_letters = dead_letters
        self._request_bytes_max = request_bytes_max
        self._retry_seconds_max = retry_seconds_max
        self._tick = tick
        self._ticked_s = -TICK_SECONDS
        self._set_aside_unsaid = 0
        self._sent_bytes = 0
        """Since the last look at all journals."""
        self._status = Shipping()
        self._streams: deque[_Stream] = deque()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._start_failed = False
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._progress = threading.Condition()

    def add(self, journal: Journal, ledger: Ledger, *, done: Callable[[], None] | None = None) -> None:
        """Ships this journal, too. With ``done`` it is an adopted one: closed and forgotten as soon as it is empty."""
        with self._lock:
            self._streams.append(_Stream(journal, ledger, done, Backoff(self._retry_seconds_max)))
        self._wake.set()

    def start(self) -> None:
        """Starts the thread, if it does not run. What a process that can start none has written stays for the next."""
        with self._lock:
            if self._thread is not None and self._thread.is_alive() and not self._stop.is_set():
                return
            stop = threading.Event()
            # A thread that was asked to end may still wait for an answer: the new one waits for its end.
            thread = threading.Thread(
                target=self._run, args=(stop, self._thread), name="tron-audit-shipper", daemon=True
            )
            try:
                thread.start()
            except RuntimeError as error:
                self._log.say("start", logging.ERROR, "audit records wait: %s", error)
                self._start_failed = True
                return
            self._stop, self._thread, self._start_failed = stop, thread, False

    def wake(self) -> None:
        """Says that a journal may have something new. Cheap, and never missed."""
        self._wake.set()
        if self._start_failed:
            self.start()

    def stop(self) -> None:
        """Asks the thread to end: at once, or when the request that is under way is answered. Does not wait."""
        with self._lock:
            self._stop.set()
            self._wake.set()

    def join(self, seconds: float) -> bool:
        """Waits for the end of the thread; tells whether it has ended, so that the journals may be closed.

        Shortly before the time is over, it cuts off a request that still waits for its answer.
        """
        with self._lock:
            thread = self._thread
        if thread is None:
            return True
        last_s = min(CUT_SECONDS, seconds / 2)
        thread.join(seconds - last_s)
        if thread.is_alive() and self._stop.is_set():
            self._receiver.cut()
        thread.join(last_s)
        return not thread.is_alive()

    def drain(self, seconds: float) -> bool:
        """Waits until all journals are empty, and tells whether they are; gives up when the last attempt failed."""
        deadline_s = time.monotonic() + seconds
        self._wake.set()
        while left := [stream for stream in self._all() if stream.has_more]:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or self._is_stuck(left):
                return False
            with self._progress:
                self._progress.wait(min(left_s, DRAIN_POLL_SECONDS))
        return True

    @property
    def status(self) -> Shipping:
        """What the shipper is at."""
        return self._status

    def _is_stuck(self, left: list[_Stream]) -> bool:
        with self._lock:
            runs = self._thread is not None and self._thread.is_alive() and not self._stop.is_set()
        return not runs or self._receiver.outage is not None or all(stream.trouble for stream in left)

    def _all(self) -> tuple[_Stream, ...]:
        with self._lock:
            return tuple(self._streams)

    def _run(self, stop: threading.Event, previous: threading.Thread | None) -> None:
        if previous is not None:
            previous.join()
        self._receiver.prepare()
        backoff = Backoff(self._retry_seconds_max)
        while True:
            self._wake.clear()  # before the look at everything that it may stand for
            if stop.is_set():
                break
            try:
                self._round(stop)
                backoff.reset()
            except BaseException as error:  # noqa: BLE001 - nothing ends this thread
                self._log.say("thread", logging.ERROR, "shipping of audit records goes on after %s", error_type(error))
                stop.wait(backoff.next_s())
            self._tell_progress()
        self._receiver.close()

    def _tell_progress(self) -> None:
        with self._progress:
            self._progress.notify_all()

    def _round(self, stop: threading.Event) -> None:
        """Ships a chunk of each journal; waits if there is none, or if the receiver is to be left alone."""
        self._keep_house()
        if self._receiver.pause_s > 0:
            stop.wait(min(self._receiver.pause_s, TICK_SECONDS))
            return
        busy = False
        for _ in range(len(self._streams)):
            stream = self._streams[0]
            if stream.due_s <= time.monotonic():
                busy |= self._served(stream, stop)
                if stop.is_set() or self._receiver.pause_s > 0:
                    break  # this one is next again, so that there is one chunk in memory, not one of each journal
            with self._lock:
                self._streams.popleft()
                if not stream.is_forgotten:
                    self._streams.append(stream)
        self._show(busy=busy)
        if busy and self._sent_bytes < self._request_bytes_max // 2:
            self._tell_progress()
            stop.wait(GATHER_SECONDS)
        self._sent_bytes = 0
        if not busy:
            due_s = min((stream.due_s for stream in self._all() if stream.trouble), default=float("inf"))
            self._wake.wait(max(0.0, min(due_s - time.monotonic(), TICK_SECONDS)))

    def _served(self, stream: _Stream, stop: threading.Event) -> bool:
        """Ships a stream's next chunk; tells whether there was one. Its own troubles hold up no other stream."""
        try:
            if stream.shipment is None:
                chunk = stream.journal.read(self._request_bytes_max)
                if chunk is None:
                    self._rest(stream)
                    return False
                self._sent_bytes += sum(len(frame.payload) for frame in chunk.frames)
                stream.shipment = _Shipment(chunk, Delivery(chunk.frames, self._request_bytes_max))
            shipment = stream.shipment
            self._ship(stream, shipment, stop)
        except BaseException as error:  # noqa: BLE001 - nothing ends this thread
            stream.due_s = time.monotonic() + stream.backoff.next_s()
            stream.trouble = str(error) if isinstance(error, JournalError) else error_type(error)
            self._log.say(
                f"journal {stream.journal.name}",
                logging.ERROR,
                "audit records of journal %s wait: %s",
                stream.journal.name,
                stream.trouble,
            )
            return False
        return bool(shipment.chunk.frames or shipment.chunk.damaged)

    def _rest(self, stream: _Stream) -> None:
        """There is nothing in it; an adopted one will never have anything again."""
        stream.calm()
        if stream.done is None:
            return
        for step in (stream.journal.close, stream.done):
            try:
                step()
            except BaseException as error:  # noqa: BLE001 - it is empty, so that nothing hangs on this
                name = stream.journal.name
                self._log.say("done", logging.ERROR, "the empty journal %s: %s", name, error_type(error))
        stream.is_forgotten = True

    def _ship(self, stream: _Stream, shipment: _Shipment, stop: threading.Event) -> None:
        """Goes on with a shipment, to its end or to the next failure."""
        try:
            self._send(stream, shipment.delivery, stop)
        except BaseException:
            stream.shipment = None  # what is known of it may be wrong: from its beginning, then
            raise
        if stream.shipment is None or shipment.delivery.request() is not None:
            return
        while shipment.refusals_kept < len(shipment.delivery.refusals):
            if stop.is_set():
                return
            self._keep(shipment.delivery.refusals[shipment.refusals_kept])
            shipment.refusals_kept += 1
            self._keep_house()
        stream.journal.acknowledge(shipment.chunk)
        stream.calm()
        try:
            self._count(stream.ledger, shipment)
        finally:
            stream.shipment = None  # acknowledged, so never counted twice

    def _send(self, stream: _Stream, delivery: Delivery, stop: threading.Event) -> None:
        while not stop.is_set() and (request := delivery.request()) is not None:
            self._show(busy=True)
            answer = self._receiver.send(request)
            self._keep_house()
            if answer.fate is Fate.DELIVERED:
                delivery.accepted()
            elif answer.fate is Fate.POISON:
                delivery.refused(answer.reason)
                if delivery.is_hopeless:
                    stream.shipment = None
                    self._receiver.park(f"it refuses everything, an empty request, too: {answer.reason}")
                    return
            else:
                return

    def _keep(self, refusal: Refusal) -> None:
        if self._dead_letters is not None:
            self._dead_letters.put(refusal.record_id, refusal.request, reason=refusal.reason, sentence=refusal.sentence)

    def _count(self, ledger: Ledger, shipment: _Shipment) -> None:
        delivery, damaged = shipment.delivery, shipment.chunk.damaged
        refused = delivery.records - delivery.delivered
        if delivery.delivered:
            ledger.deliver(delivery.delivered)
        if damaged:
            ledger.drop(damaged, "damaged", committed=True)
        if refused and self._dead_letters is not None:
            ledger.dead_letter(refused)
            self._set_aside_unsaid += refused
        elif refused:
            ledger.drop(refused, "rejected", committed=True)
            self._say_lost(refused, delivery.refusals)

    def _say_lost(self, records: int, refusals: Sequence[Refusal]) -> None:
        ids = ", ".join(refusal.record_id for refusal in refusals[:LOGGED_IDS_MAX])
        more = f" and {len(refusals) - LOGGED_IDS_MAX} more" if len(refusals) > LOGGED_IDS_MAX else ""
        what = "%d audit records are lost, because the receiver refuses them (%s): %s%s"
        self._log.say(None, logging.ERROR, what, records, refusals[0].reason, ids, more)

    def _keep_house(self) -> None:
        """Does what is due about once a second, whatever the thread is at."""
        if time.monotonic() - self._ticked_s < TICK_SECONDS:
            return
        self._ticked_s = time.monotonic()
        try:
            self._tick()
        except BaseException as error:  # noqa: BLE001 - nothing ends this thread
            self._log.say("tick", logging.ERROR, "the shipper's housekeeping failed: %s", error_type(error))
        what = "%d audit records were refused by the receiver and are kept as dead letters"
        if self._set_aside_unsaid and self._log.say("dead letters", logging.ERROR, what, self._set_aside_unsaid):
            self._set_aside_unsaid = 0

    def _show(self, *, busy: bool) -> None:
        """Says what the shipper is at; the time is that of the state's beginning."""
        outage = self._receiver.outage
        trouble = next((stream.trouble for stream in self._all() if stream.trouble), None)
        shown = Shipping("shipping" if busy else "idle")
        if outage is not None:
            shown = Shipping("parked" if outage.fate is Fate.PARKED else "retrying", outage.reason)
        elif trouble is not None:
            shown = Shipping("retrying", trouble)
        if (shown.state, shown.reason) != (self._status.state, self._status.reason):
            since_s = self._status.since_epoch_s if shown.state == self._status.state else shown.since_epoch_s
            self._status = replace(shown, since_epoch_s=since_s)


@dataclass(slots=True)
class _Shipment:
    """A chunk on its way."""

    chunk: Chunk
    delivery: Delivery
    refusals_kept: int = 0


@dataclass(slots=True)
class _Stream:
    """A journal, and what the shipper knows of it."""

    journal: Journal
    ledger: Ledger
    done: Callable[[], None] | None
    backoff: Backoff
    shipment: _Shipment | None = None
    due_s: float = 0.0
    trouble: str | None = None
    is_forgotten: bool = False

    @property
    def has_more(self) -> bool:
        """Whether there is anything left to do; an adopted one is still to be closed when it is empty."""
        # In this order: a shipment is let go when it is counted, which comes after its records have left the journal.
        return not self.is_forgotten and (
            self.done is not None or self.journal.records > 0 or self.shipment is not None
        )

    def calm(self) -> None:
        """It works."""
        self.backoff.reset()
        self.due_s = 0.0
        self.trouble = None
