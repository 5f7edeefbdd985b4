"""OTLP over gRPC."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import grpc
from google.protobuf.message import DecodeError  # type: ignore[import-untyped] # protobuf ships no annotations
from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped] # nor do these messages
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped] # as above
from opentelemetry.instrumentation.utils import suppress_instrumentation

from tron_audit_otel.answer import ANSWER_BYTES_MAX, Answer, Fate, Sender, user_agent, worded

if TYPE_CHECKING:
    from pathlib import Path

    from tron_audit_otel.config import AuditConfig

GRPC_METHOD = "/opentelemetry.proto.collector.logs.v1.LogsService/Export"

_PARKED_CODES = {"UNAUTHENTICATED", "PERMISSION_DENIED", "UNIMPLEMENTED", "NOT_FOUND"}

_TOO_LARGE = re.compile(
    r"message\b.*(larger than max|exceeds (the )?max|too large)|payload too large|status: 413", re.IGNORECASE
)
_POISON_MESSAGES = {
    "INVALID_ARGUMENT": re.compile(""),
    "INTERNAL": re.compile("unmarshal|deserializ", re.IGNORECASE),
    "RESOURCE_EXHAUSTED": _TOO_LARGE,
    "OUT_OF_RANGE": _TOO_LARGE,
    "UNKNOWN": _TOO_LARGE,
}
"""Where a code does not say it, how gRPC for Go, C++, Java, .NET and Rust, and the proxies before them, word it."""

_ANSWER_TOO_LARGE = "CLIENT: Received message larger than max"
_NOISE = re.compile(r"failed to connect to all addresses; last error: (UNKNOWN: )?|SSL_ERROR_SSL: error:.*_internal:")
"""Stands before what matters, which would be cut."""


class GrpcTransport(Sender):
    """Calls with gRPC, whose own deadline holds whatever the receiver does."""

    def __init__(self, config: AuditConfig) -> None:
        """Takes the settings."""
        super().__init__(config)
        self._config = config
        self._channel: grpc.Channel | None = None

    def send(self, request: bytes) -> Answer:
        """Makes one attempt."""
        if self._closed:
            return self._answer(Fate.RETRY, "closed")
        try:
            with suppress_instrumentation():
                return self._accepted(self._call(request))
        except grpc.RpcError as error:
            self._discard()
            return self._judge(error)
        except (ValueError, TypeError, OSError) as error:
            # A certificate's file that is missing, a header that gRPC does not take: its message holds the value.
            self._discard()
            reason = error.strerror if isinstance(error, OSError) else None
            return self._answer(Fate.PARKED, f"not possible: {reason or type(error).__name__}")
        except BaseException as error:  # noqa: BLE001 - whatever it is, the answer is that it was not delivered
            self._discard()
            return self._answer(Fate.RETRY, type(error).__name__)

    def close(self) -> None:
        """Ends it, a running attempt too."""
        self._closed = True
        self._discard()

    def _call(self, request: bytes) -> bytes:
        if self._channel is None:
            self._channel = _channel(self._config)
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(GRPC_METHOD)
        return call(request, timeout=self._config.otlp_timeout_s, metadata=self._config.otlp_headers)

    def _discard(self) -> None:
        """Closes the channel: a failed one may hold a dead connection, and has its own idea of when to try again."""
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

    def _judge(self, error: Any) -> Answer:  # noqa: ANN401 - what is raised is a grpc.Call as well, which no type says
        code, message = error.code().name, _NOISE.sub("", error.details() or "")
        reason = worded(f"gRPC {code}", message)
        retry_after_s = _retry_info(error.trailing_metadata())
        if _ANSWER_TOO_LARGE in message:
            return self._answer(Fate.PARKED, f"not an OTLP receiver: its answer has over {ANSWER_BYTES_MAX} bytes")
        if code in _PARKED_CODES:
            return self._answer(Fate.PARKED, reason)
        is_poison = code in _POISON_MESSAGES and _POISON_MESSAGES[code].search(message)
        if is_poison and retry_after_s is None:
            return self._answer(Fate.POISON, reason)
        return self._answer(Fate.RETRY, reason, retry_after_s)


def _channel(config: AuditConfig) -> grpc.Channel:
    options = {
        "grpc.max_receive_message_length": ANSWER_BYTES_MAX,
        "grpc.primary_user_agent": user_agent(),
        "grpc.use_local_subchannel_pool": 1,  # a new channel is a new connection
        # Not what its name says: how long a connection may be in the making, and outlive its channel.
        "grpc.min_reconnect_backoff_ms": max(int(config.otlp_timeout_s * 1000), 1),
    }
    compression = {"gzip": grpc.Compression.Gzip, "deflate": grpc.Compression.Deflate}.get(
        config.otlp_compression, grpc.Compression.NoCompression
    )
    target = urlsplit(config.endpoint).netloc or config.endpoint
    # TLS unless the scheme says otherwise, or there is none and OTEL_EXPORTER_OTLP_INSECURE does.
    if config.endpoint.startswith("http://") or ("://" not in config.endpoint and config.otlp_insecure):
        return grpc.insecure_channel(target, tuple(options.items()), compression)
    credentials = grpc.ssl_channel_credentials(
        _bytes(config.otlp_certificate), _bytes(config.otlp_client_key), _bytes(config.otlp_client_certificate)
    )
    return grpc.secure_channel(target, credentials, tuple(options.items()), compression)


def _bytes(path: Path | None) -> bytes | None:
    return path.read_bytes() if path else None


def _retry_info(metadata: Any) -> float | None:  # noqa: ANN401 - gRPC's metadata, which no type says
    for key, value in metadata or ():
        if key == "grpc-status-details-bin":
            with suppress(DecodeError):
                for detail in Status.FromString(value).details:
                    info = RetryInfo()
                    if detail.Unpack(info):
                        return max(float(info.retry_delay.seconds + info.retry_delay.nanos / 1e9), 0.0)
    return None
