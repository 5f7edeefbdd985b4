"""A chunk of the journal on its way: what to send next, and which of its records the receiver will never take.

A chunk is sent as one request. When the receiver refuses it, its halves are sent, and theirs, down to the records that
are refused by themselves. Pure: no network, no disk, no clock.
"""

from __future__ import annotations

import hashlib
import re
from collections import deque
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError  # type: ignore[import-untyped] # protobuf ships no annotations
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import ResourceLogs

from tron_audit_otel.log_record import RECORD_ID

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ScopeLogs

    from tron_audit_otel.journal import Frame

EMPTY_REQUEST: bytes = ExportLogsServiceRequest(resource_logs=[ResourceLogs()]).SerializeToString()
"""No record is in it; OTLP says that a receiver answers it with success. It has two bytes: a proxy may mind none."""

UNPROVEN_REFUSALS_MAX = 8
"""So many refusals, the empty request's among them, and nothing taken: it is not the records that are refused."""

_PLAIN_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


@dataclass(frozen=True, slots=True)
class Part:
    """What is sent or refused whole: a frame as it was read, or one record with the resource and scope it is under."""

    records: int
    frame: bytes | None = None
    """As it was read; the fields below are empty then."""
    resource: ResourceLogs | None = None
    """Without its scopes."""
    scope: ScopeLogs | None = None
    """Without its records."""
    record: LogRecord | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """What the receiver will never take: one record, or a frame that cannot be decoded."""

    record_id: str
    """The record's own, or a digest of the request where there is none that we would have written."""
    sentence: str
    """The record in one line, for people."""
    request: bytes
    records: int
    reason: str


class Delivery:
    """Says what of a chunk to send next, by the receiver's answers so far; a request stays until it is answered."""

    def __init__(self, frames: Sequence[Frame], bytes_max: int) -> None:
        """Takes the chunk's frames, and how large a request of more than one record may be."""
        self._bytes_max = bytes_max
        self.records = sum(frame.records for frame in frames)
        self._request: bytes | None = None
        # Wider parts come before narrower ones, so that what is taken shows soon that the receiver takes anything.
        self._left: deque[list[Part]] = deque()
        if frames:
            self._left.append([Part(frame.records, frame=frame.payload) for frame in frames])
        self._refused: list[Refusal] = []
        self._answers_refused = 0
        self._taken = False

    def request(self) -> bytes | None:
        """Gives what to send next, the same until it is answered; nothing once all is answered."""
        while self._request is None and self._left:
            request = put_together(self._left[0])
            halves = _halves(self._left[0]) if len(request) > self._bytes_max else []
            if len(halves) > 1:
                self._left.popleft()
                self._left.extendleft(reversed(halves))
            else:
                self._request = request
        return self._request

    def accepted(self) -> None:
        """The receiver has the request."""
        self._left.popleft()
        self._request = None
        self._taken = True

    def refused(self, reason: str) -> None:
        """The receiver will never take the request as it is."""
        halves = _halves(self._left[0])
        by_itself = [_refusal(half[0], reason) for half in halves] if len(halves) == 1 else []
        self._left.popleft()
        self._request = None
        self._answers_refused += 1
        self._left.extend(halves if len(halves) > 1 else [])
        self._refused += by_itself
        if self._answers_refused == 1 and not self._taken:
            self._left.appendleft([])  # does it take anything? The empty request tells

    @property
    def is_hopeless(self) -> bool:
        """Whether the receiver refuses everything: a wrong address, say. Its refusals tell nothing of the records."""
        unproven = bool(self._answers_refused) and not self._taken
        return unproven and (not self._left or self._answers_refused >= UNPROVEN_REFUSALS_MAX)

    @property
    def refusals(self) -> Sequence[Refusal]:
        """What was refused by itself."""
        return self._refused

    @property
    def delivered(self) -> int:
        """How many records the receiver has, once all is answered."""
        return self.records - sum(refusal.records for refusal in self._refused)


def take_apart(frame: bytes, records: int) -> list[Part]:
    """Gives a frame's records one by one; the frame whole when it cannot be decoded, or holds another number."""
    request = ExportLogsServiceRequest()
    try:
        request.ParseFromString(frame)
    except DecodeError:
        return [Part(records, frame=frame)]
    parts = []
    for resource_logs in request.resource_logs:
        resource = _without(resource_logs, "scope_logs")
        for scope_logs in resource_logs.scope_logs:
            scope = _without(scope_logs, "log_records")
            parts += [Part(1, resource=resource, scope=scope, record=record) for record in scope_logs.log_records]
    return parts if len(parts) == records else [Part(records, frame=frame)]


def put_together(parts: Sequence[Part]) -> bytes:
    """Makes one request of frames, or of one frame's records; the empty one of nothing.

    Requests that stand one after the other are one request: that is how protobuf encodes repeated fields.
    """
    return b"".join(_requests(parts)) if parts else EMPTY_REQUEST


def _requests(parts: Sequence[Part]) -> Iterator[bytes]:
    for resource, under_resource in groupby(parts, key=attrgetter("resource")):
        if resource is None:
            yield from (part.frame or b"" for part in under_resource)
            continue
        resource_logs = _without(resource, "scope_logs")
        for scope, under_scope in groupby(under_resource, key=attrgetter("scope")):
            scope_logs = resource_logs.scope_logs.add()
            scope_logs.CopyFrom(scope)
            scope_logs.log_records.extend(part.record for part in under_scope)
        yield ExportLogsServiceRequest(resource_logs=[resource_logs]).SerializeToString()


def _without(message: Any, field: str) -> Any:  # noqa: ANN401 - two kinds of message, whose classes are untyped
    copy = type(message)()
    copy.CopyFrom(message)
    copy.ClearField(field)
    return copy


def _halves(parts: list[Part]) -> list[list[Part]]:
    """Gives two halves; one where there is nothing to halve, and none of nothing. A frame is taken apart by itself."""
    if len(parts) == 1 and parts[0].frame is not None:
        parts = take_apart(parts[0].frame, parts[0].records)
    middle = len(parts) // 2
    return [half for half in (parts[:middle], parts[middle:]) if half]


def _refusal(part: Part, reason: str) -> Refusal:
    request = put_together([part])
    return Refusal(
        record_id=_record_id(part) or f"sha256-{hashlib.sha256(request).hexdigest()}",
        sentence=_sentence(part),
        request=request,
        records=part.records,
        reason=reason,
    )


def _record_id(part: Part) -> str | None:
    attributes = part.record.attributes if part.record is not None else ()
    ids = (str(attribute.value.string_value) for attribute in attributes if attribute.key == RECORD_ID)
    return next((found for found in ids if _PLAIN_ID.fullmatch(found)), None)


def _sentence(part: Part) -> str:
    if part.record is None:
        return f"{part.records} records that cannot be told apart"
    return str(part.record.body.string_value)
