"""What became of an attempt to deliver, and how it is worded."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Protocol

from google.protobuf.message import DecodeError  # type: ignore[import-untyped] # protobuf ships no annotations
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse

from tron_audit_otel.redact import MASK, line

if TYPE_CHECKING:
    from tron_audit_otel.config import AuditConfig

ANSWER_BYTES_MAX = 64 * 1024
"""More of an answer is never read: an OTLP response has a few bytes, and an error message that is shown has less."""

REASON_CHARACTERS_MAX = 200

SECRET_CHARACTERS_MIN = 8
"""A shorter part of a header, such as ``Bearer``, is no secret by itself."""


class Fate(Enum):
    """What is to become of a request."""

    DELIVERED = "delivered"
    """The receiver has it."""
    RETRY = "retry"
    """It may succeed later by itself."""
    PARKED = "parked"
    """It will succeed once somebody has mended a setting, here or at the receiver."""
    POISON = "poison"
    """The receiver will never take it, or not all of it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of an attempt."""

    fate: Fate
    reason: str = ""
    """One printable line without secrets. Partly the receiver's own words, which can be anything."""
    retry_after_s: float | None = None
    """The receiver asks for so long a pause."""


class Transport(Protocol):
    """The way to the receiver; for one thread of the process that made it."""

    def send(self, request: bytes) -> Answer:
        """Makes one attempt. Never raises, and never takes longer than ``otlp_timeout_s``."""

    def close(self) -> None:
        """Ends it, a running attempt too; may be called from another thread."""


class Sender:
    """What both protocols share: how an answer is worded, and what a response says."""

    def __init__(self, config: AuditConfig) -> None:
        """Takes the settings."""
        values = [value for _, value in config.otlp_headers if value]
        parts = [part for value in values for part in value.split() if len(part) >= SECRET_CHARACTERS_MIN]
        self._secrets = sorted({*values, *parts}, key=len, reverse=True)
        self._closed = False

    def _answer(self, fate: Fate, reason: str = "", retry_after_s: float | None = None) -> Answer:
        for secret in self._secrets:  # a receiver may give back what it was sent
            reason = reason.replace(secret, MASK)
        return Answer(fate, line(reason, REASON_CHARACTERS_MAX), retry_after_s)

    def _accepted(self, body: bytes) -> Answer:
        """Reads the response to what the receiver took, which may say that it took only a part."""
        try:
            partial = ExportLogsServiceResponse.FromString(body).partial_success
        except DecodeError:
            return self._answer(Fate.PARKED, "not an OTLP receiver: its answer cannot be read")
        if partial.rejected_log_records > 0:
            rejected = f"partial success: {partial.rejected_log_records} rejected"
            return self._answer(Fate.POISON, worded(rejected, partial.error_message))
        return self._answer(Fate.DELIVERED, partial.error_message)


def worded(reason: str, message: str) -> str:
    """Adds the receiver's own words, if there are any."""
    return f"{reason} ({message})" if message else reason


def user_agent() -> str:
    """Gives our name and version, as HTTP and gRPC have them."""
    with suppress(PackageNotFoundError):
        return f"tron-audit-otel/{version('tron-audit-otel')}"
    return "tron-audit-otel"
