"""Records of the archive, sent again through the Collector to one SIEM alone.

Each resource is marked with ``audit.replay.to``: every other SIEM's pipeline, and the archive's, drops what is marked
for another, and the SIEM's own removes the mark. Records keep their ids. What is sent may arrive twice, as with every
delivery here: when an answer is lost, or when the SIEM had the record already.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from google.protobuf.message import EncodeError  # type: ignore[import-untyped] # protobuf ships no annotations
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from tron_audit_otel.answer import Fate
from tron_audit_otel.archive import log_records, record_id
from tron_audit_otel.batch import put_together, take_apart
from tron_audit_otel.config import REPLAY_TO, AuditConfig
from tron_audit_otel.errors import ReplayError
from tron_audit_otel.receiver import RETRY_AFTER_SECONDS_MAX, Backoff

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tron_audit_otel.answer import Answer, Transport

REFUSED_IN_A_ROW_MAX = 100
"""Records that the Collector does not take, one after the other: then it is not the records."""

_DEFAULTS = AuditConfig()


@dataclass(frozen=True, slots=True)
class Pace:
    """How much is sent at a time, and how patiently; by default as an application sends."""

    request_bytes_max: int = _DEFAULTS.request_bytes_max
    """A single record may be longer."""
    retry_seconds_max: float = _DEFAULTS.retry_seconds_max
    """The longest wait between two attempts."""


_PACE = Pace()


def replay(  # noqa: PLR0913 - all by name, and most may be left out
    requests: Iterable[ExportLogsServiceRequest],
    to: str,
    transport: Transport,
    *,
    records_per_second: float = 0,
    on_sent: Callable[[int], None] = lambda _: None,
    pace: Pace = _PACE,
    before_send: Callable[[int], None] = lambda _: None,
    on_wait: Callable[[str], None] = lambda _: None,
    on_refused: Callable[[str, str], None] = lambda *_: None,
    stop: threading.Event | None = None,
) -> int:
    """Sends the records, marked for one SIEM; gives how many the Collector took.

    What may pass, such as a Collector that is down, is tried again for as long as it takes. A record that the Collector
    will never take, such as one that the mark makes too long for it, does not keep the others back.

    Args:
        requests: Whose records to send. Their resources are marked in place.
        to: The SIEM's name, as its file under ``collector/siem/`` has it.
        transport: The way to the Collector.
        records_per_second: The highest rate; 0 is as fast as the Collector takes them.
        on_sent: Is told after each request how many records it had.
        pace: How much at a time, and how patiently.
        before_send: Is told before each attempt how many bytes it has, and may wait.
        on_wait: Is told why, before each wait for another attempt.
        on_refused: Is told of each record that the Collector will never take: its id, and why.
        stop: Once it is set, no further request is sent.

    Raises:
        ReplayError: The Collector takes nothing, for good or until somebody mends a setting; the message says why.
    """
    stop = stop or threading.Event()
    sender = _Sender(transport, pace.retry_seconds_max, before_send, on_wait, stop)
    # No more at once than a second's worth: a burst is not what was asked for.
    records_max = max(1, int(records_per_second)) if records_per_second else None
    began_s, taken, refused_in_a_row = time.monotonic(), 0, 0
    for whole, in_all in _bodies(requests, to, pace.request_bytes_max, records_max):
        if records_per_second and stop.wait(max(0.0, began_s + taken / records_per_second - time.monotonic())):
            break
        left = [(whole, in_all)]
        while left:
            body, records = left.pop()
            answer = sender.send(body)
            if answer is None:
                return taken
            if answer.fate is Fate.DELIVERED:
                taken, refused_in_a_row = taken + records, 0
                on_sent(records)
            elif records > 1:
                left += reversed(_halves(body, records))
            else:
                refused_in_a_row += 1
                if refused_in_a_row == REFUSED_IN_A_ROW_MAX:
                    raise ReplayError(f"the Collector does not take the records: {answer.reason}")
                on_refused(_id(body), answer.reason)
    return taken


class _Sender:
    """Sends one request at a time, until it is taken or refused."""

    def __init__(
        self,
        transport: Transport,
        retry_seconds_max: float,
        before_send: Callable[[int], None],
        on_wait: Callable[[str], None],
        stop: threading.Event,
    ) -> None:
        self._stop = stop
        self._transport = transport
        self._backoff = Backoff(retry_seconds_max)
        self._before_send = before_send
        self._on_wait = on_wait

    def send(self, body: bytes) -> Answer | None:
        """Gives the answer, by which it was taken or will never be; None: it was to stop."""
        while not self._stop.is_set():
            self._before_send(len(body))
            if self._stop.is_set():
                break
            answer = self._transport.send(body)
            if answer.fate in (Fate.DELIVERED, Fate.POISON):
                self._backoff.reset()
                return answer
            if answer.fate is Fate.PARKED:
                raise ReplayError(f"the Collector does not take the records: {answer.reason}")
            self._on_wait(answer.reason)
            self._stop.wait(self._wait_s(answer))
        return None

    def _wait_s(self, answer: Answer) -> float:
        asked_s = min(answer.retry_after_s or 0.0, RETRY_AFTER_SECONDS_MAX)
        return self._backoff.next_s() + asked_s


def mark(request: ExportLogsServiceRequest, to: str) -> None:
    """Marks each resource for the SIEM, and for no other."""
    for of_resource in request.resource_logs:
        attributes = of_resource.resource.attributes
        kept = [pair for pair in attributes if pair.key != REPLAY_TO]
        if len(kept) < len(attributes):  # the archive holds none, but a file may have been put there by hand
            del attributes[:]
            attributes.extend(kept)
        attributes.add(key=REPLAY_TO).value.string_value = to


def _bodies(
    requests: Iterable[ExportLogsServiceRequest], to: str, bytes_max: int, records_max: int | None
) -> Iterator[tuple[bytes, int]]:
    """Makes of many short requests a few long ones, and of one that is too long several.

    Requests that stand one after the other are one request: that is how protobuf encodes repeated fields.
    """
    waiting: list[bytes] = []
    size = records = 0
    for request in requests:
        mark(request, to)
        for body, count in _split(_serialized(request), sum(1 for _ in log_records(request)), bytes_max, records_max):
            if waiting and (size + len(body) > bytes_max or (records_max and records + count > records_max)):
                yield b"".join(waiting), records
                waiting, size, records = [], 0, 0
            waiting.append(body)
            size += len(body)
            records += count
    if waiting:
        yield b"".join(waiting), records


def _serialized(request: ExportLogsServiceRequest) -> bytes:
    try:
        return bytes(request.SerializeToString())
    except EncodeError as error:
        raise ReplayError(f"a record cannot be sent: {error}") from error


def _split(body: bytes, records: int, bytes_max: int, records_max: int | None) -> Iterator[tuple[bytes, int]]:
    if records <= 1 or (len(body) <= bytes_max and (records_max is None or records <= records_max)):
        yield body, records
        return
    for half, count in _halves(body, records):
        yield from _split(half, count, bytes_max, records_max)


def _halves(body: bytes, records: int) -> list[tuple[bytes, int]]:
    parts = take_apart(body, records)
    middle = len(parts) // 2
    return [(put_together(half), len(half)) for half in (parts[:middle], parts[middle:])]


def _id(body: bytes) -> str:
    return next(map(record_id, log_records(ExportLogsServiceRequest.FromString(body))), "")
