"""Takes one serialized OTLP request to the receiver, and says what is to become of it.

The journal keeps what a request carries, so nothing is retried here and nothing is logged: the answer says whether to
try again, to ask for an operator, or to set records aside. Which is which follows OTLP's specification, but where that
would give up what may still be delivered.
"""

from __future__ import annotations

import gzip
import re
import socket
import ssl
import time
import zlib
from concurrent.futures import CancelledError, Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum
from http.client import HTTPException
from importlib.metadata import PackageNotFoundError, version
from queue import Full, Queue
from threading import Thread
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

import requests
from google.protobuf.message import DecodeError  # type: ignore[import-untyped] # protobuf ships no annotations
from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped] # nor do these messages
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped] # as above
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from requests.adapters import HTTPAdapter

from tron_audit_otel.redact import MASK, line

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import grpc

    from tron_audit_otel.config import AuditConfig

ANSWER_BYTES_MAX = 64 * 1024
"""More of an answer is never read: an OTLP response has a few bytes, and an error message that is shown has less."""

REASON_CHARACTERS_MAX = 200

COMPRESSION_LEVEL = 1
"""Audit records shrink tenfold at the lowest level; the highest saves a tenth more, for many times the CPU."""

CONNECT_SHARE = 3
"""One address gets a third of the time, so that a dead one among several does not cost all of it."""

SECRET_CHARACTERS_MIN = 8
"""A shorter part of a header, such as ``Bearer``, is no secret by itself."""

GRPC_METHOD = "/opentelemetry.proto.collector.logs.v1.LogsService/Export"

_POISON_STATUS = {400, 413, 422}
_RETRY_STATUS = {408, 429}
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


def make(config: AuditConfig) -> Transport:
    """Makes the transport for the protocol that is configured."""
    return _Grpc(config) if config.otlp_protocol == "grpc" else _Http(config)


class _Sender:
    """What both protocols share: how an answer is worded, and what a response says."""

    def __init__(self, config: AuditConfig) -> None:
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
            return self._answer(Fate.POISON, _with(rejected, partial.error_message))
        return self._answer(Fate.DELIVERED, partial.error_message)


class _Adapter(HTTPAdapter):
    """Keeps the socket in use at hand, so that another thread can cut it.

    No timeout of ``requests`` or ``urllib3`` can do that: theirs begin anew with each byte that is received.
    """

    def __init__(self) -> None:
        super().__init__(pool_connections=1, pool_maxsize=1, max_retries=0)
        self.socket: socket.socket | None = None
        self.deadline = 0.0

    def get_connection_with_tls_context(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401 - passed through
        pool: Any = super().get_connection_with_tls_context(*args, **options)
        if not issubclass(pool.ConnectionCls, _Cuttable):
            pool.ConnectionCls = type("Connection", (_Cuttable, pool.ConnectionCls), {"adapter": self})
        return pool

    def cut(self) -> None:
        if self.socket is not None:
            with suppress(OSError):
                # Not SSLSocket's own, which is not made for another thread reading.
                socket.socket.shutdown(self.socket, socket.SHUT_RDWR)


class _Cuttable:
    """Mixed into urllib3's connections: tells the adapter of each socket, and what time there is for it."""

    adapter: _Adapter

    @property
    def sock(self) -> Any:  # noqa: ANN401 - a socket, one in TLS, or None
        return self.__dict__.get("sock")

    @sock.setter
    def sock(self, value: Any) -> None:  # noqa: ANN401 - as above
        self.__dict__["sock"] = value
        if isinstance(value, socket.socket):  # the adapter keeps it while the connection lets go of it to read
            value.settimeout(_left(self.adapter.deadline))
            self.adapter.socket = value

    @property
    def timeout(self) -> float:
        """What connecting to one address may take; then, what sending may."""
        left = _left(self.adapter.deadline)
        return left if self.sock else left / CONNECT_SHARE

    @timeout.setter
    def timeout(self, value: object) -> None:
        """Not heeded: urllib3 would send for no longer than it connects."""


class _Http(_Sender):
    """Posts from a thread of its own: looking up a name cannot be cut short, but need not be waited for."""

    def __init__(self, config: AuditConfig) -> None:
        super().__init__(config)
        self._timeout_s = config.otlp_timeout_s
        self._compression = config.otlp_compression
        self._url = config.endpoint
        self._headers = _http_headers(config)
        certificate = str(config.otlp_certificate) if config.otlp_certificate else None
        # The session only reads the environment: proxies and REQUESTS_CA_BUNDLE. Its own way to send would put a
        # netrc's password in place of our header, keep cookies, and read a redirect's body whole.
        with requests.Session() as session:
            self._settings: Any = session.merge_environment_settings(
                config.endpoint, proxies={}, stream=True, verify=certificate, cert=_client_certificate(config)
            )
        self._adapter = _Adapter()
        self._is_kept = False
        self._future: Future[Answer] = Future()
        # One at most waits behind one that cannot be cut: what it holds does not add up.
        self._jobs: Queue[tuple[Future[Answer], bytes, float] | None] = Queue(maxsize=1)
        Thread(target=self._work, name="tron-audit-transport", daemon=True).start()

    def send(self, request: bytes) -> Answer:
        deadline = time.monotonic() + self._timeout_s
        future = self._future = Future()
        if self._closed:
            return self._answer(Fate.RETRY, "closed")
        try:
            self._jobs.put((future, request, deadline), timeout=self._timeout_s)
            return future.result(_left(deadline))
        except (TimeoutError, Full):
            self._adapter.cut()
            return self._late()
        except CancelledError:
            return self._answer(Fate.RETRY, "closed")
        finally:
            future.cancel()

    def close(self) -> None:
        self._closed = True
        self._future.cancel()
        self._adapter.cut()
        with suppress(Full):
            self._jobs.put_nowait(None)

    def _work(self) -> None:
        with suppress_instrumentation():  # an export is no request of the application's
            while not self._closed and self._do_next():
                pass
        self._adapter.close()

    def _do_next(self) -> bool:
        """Works off one job; in a call of its own, so that no request stays in memory while none is sent."""
        job = self._jobs.get()
        if job is None:
            return False
        future, request, deadline = job
        if not future.cancelled():
            answer = self._attempt(request, deadline)
            with suppress(InvalidStateError):  # nobody waits any more
                future.set_result(answer)
        return True

    def _attempt(self, request: bytes, deadline: float) -> Answer:
        try:
            return self._deliver(self._compressed(request), deadline)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the thread must live and somebody waits
            return self._failed(error)

    def _compressed(self, request: bytes) -> bytes:
        if self._compression == "gzip":
            return gzip.compress(request, COMPRESSION_LEVEL, mtime=0)
        return zlib.compress(request, COMPRESSION_LEVEL) if self._compression == "deflate" else request

    def _deliver(self, body: bytes, deadline: float) -> Answer:
        is_kept, self._is_kept = self._is_kept, False
        try:
            answer = self._post(body, deadline)
        except Exception as error:
            # A connection that was kept may have been closed meanwhile: that is no outage.
            if not is_kept or _is_timeout(error):
                raise
            answer = self._post(body, deadline)
        self._is_kept = True
        return answer

    def _post(self, body: bytes, deadline: float) -> Answer:
        self._adapter.deadline = deadline
        request = requests.Request("POST", self._url, headers=self._headers, data=body).prepare()
        with self._adapter.send(request, timeout=_left(deadline), **self._settings) as response:
            return self._judge(response.status_code, response.headers, _content(response.raw))

    def _judge(self, status: int, headers: Mapping[str, str], body: bytes) -> Answer:
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if requests.codes.ok <= status < requests.codes.multiple_choices:
            if len(body) > ANSWER_BYTES_MAX or (body and not _is_message(kind)):
                what = line(kind, REASON_CHARACTERS_MAX // 2) or "something else"
                return self._answer(Fate.PARKED, f"not an OTLP receiver: HTTP {status} with {what}")
            return self._accepted(body)
        is_redirect = requests.codes.multiple_choices <= status < requests.codes.bad_request
        message = f"it redirects{_origin(headers.get('location', ''))}" if is_redirect else _message(kind, body)
        reason = _with(f"HTTP {status}", message)
        if status in _POISON_STATUS:
            return self._answer(Fate.POISON, reason)
        if status in _RETRY_STATUS or status >= requests.codes.server_error:
            return self._answer(Fate.RETRY, reason, _retry_after(headers.get("retry-after", "")))
        return self._answer(Fate.PARKED, reason)

    def _failed(self, error: BaseException) -> Answer:
        if type(error) is OSError:  # so does requests say that a certificate's file is missing
            return self._answer(Fate.PARKED, str(error))
        if isinstance(error, requests.ConnectTimeout):
            return self._answer(Fate.RETRY, "timed out while connecting")
        if isinstance(error, ValueError):  # and that a header is invalid, ours or theirs; its message holds it
            return self._answer(Fate.PARKED, f"not possible: {type(error).__name__}")
        return self._late() if _is_timeout(error) else self._answer(Fate.RETRY, _cause(error))

    def _late(self) -> Answer:
        return self._answer(Fate.RETRY, f"no answer within {self._timeout_s:g} s")


class _Grpc(_Sender):
    """Calls with gRPC, whose own deadline holds whatever the receiver does."""

    def __init__(self, config: AuditConfig) -> None:
        super().__init__(config)
        self._config = config
        self._channel: grpc.Channel | None = None

    def send(self, request: bytes) -> Answer:
        from grpc import RpcError  # noqa: PLC0415 - importing grpc takes 0.1 s, which HTTP need not pay

        if self._closed:
            return self._answer(Fate.RETRY, "closed")
        try:
            with suppress_instrumentation():
                return self._accepted(self._call(request))
        except RpcError as error:
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
        reason = _with(f"gRPC {code}", message)
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
    import grpc  # noqa: PLC0415 - as above

    options = {
        "grpc.max_receive_message_length": ANSWER_BYTES_MAX,
        "grpc.primary_user_agent": _user_agent(),
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


def _http_headers(config: AuditConfig) -> dict[str, Any]:
    encoding = {} if config.otlp_compression == "none" else {"content-encoding": config.otlp_compression}
    given = {name: value.encode() for name, value in config.otlp_headers}
    return {"user-agent": _user_agent(), **given, "content-type": "application/x-protobuf", **encoding}


def _client_certificate(config: AuditConfig) -> tuple[str, str] | None:
    if config.otlp_client_certificate is None:
        return None
    return str(config.otlp_client_certificate), str(config.otlp_client_key)


def _user_agent() -> str:
    with suppress(PackageNotFoundError):
        return f"tron-audit-otel/{version('tron-audit-otel')}"
    return "tron-audit-otel"


def _left(deadline: float) -> float:
    """Seconds until then; never none at all, which a socket takes for "do not wait"."""
    return max(deadline - time.monotonic(), 0.001)


def _content(raw: Any) -> bytes:  # noqa: ANN401 - urllib3's response, which requests does not type
    """Reads the answer, but little more than we look at; what is left costs the connection."""
    content = b""
    while len(content) <= ANSWER_BYTES_MAX:
        piece = raw.read(ANSWER_BYTES_MAX + 1 - len(content), decode_content=False)
        if not piece:
            break
        content += piece
    return content


def _is_message(kind: str) -> bool:
    return kind in ("", "application/x-protobuf", "application/octet-stream")


def _message(kind: str, body: bytes) -> str:
    """The receiver's own words in an error's body; a proxy's page has none."""
    if kind == "text/plain":
        return body.decode("utf-8", "replace")[: 2 * REASON_CHARACTERS_MAX].strip()
    if kind == "application/x-protobuf":
        with suppress(DecodeError):
            return str(Status.FromString(body).message)
    return ""


def _with(reason: str, message: str) -> str:
    return f"{reason} ({message})" if message else reason


def _origin(location: str) -> str:
    """Where a redirect leads, without what may be secret in it."""
    with suppress(ValueError):
        url = urlsplit(location)
        return f" to {url.scheme}://{url.netloc.rpartition('@')[2]}" if url.netloc else ""
    return ""


def _retry_after(value: str) -> float | None:
    """Reads Retry-After: seconds, or a date (RFC 9110, section 10.2.3). What is neither is as if it were not there."""
    if re.fullmatch(r"[0-9]{1,9}", value.strip()):
        return float(value)
    try:
        at = parsedate_to_datetime(value)
        return max((at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds(), 0.0)
    except (ValueError, OverflowError):
        return None


def _retry_info(metadata: Any) -> float | None:  # noqa: ANN401 - gRPC's metadata, which no type says
    for key, value in metadata or ():
        if key == "grpc-status-details-bin":
            with suppress(DecodeError):
                for detail in Status.FromString(value).details:
                    info = RetryInfo()
                    if detail.Unpack(info):
                        return max(float(info.retry_delay.seconds + info.retry_delay.nanos / 1e9), 0.0)
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came from, the first one last."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_timeout(error: BaseException) -> bool:
    return any(isinstance(cause, TimeoutError) for cause in _causes(error))


def _cause(error: BaseException) -> str:
    """Says what is at the root of an error; only in words that cannot hold a header or a password."""
    causes = list(_causes(error))
    root = causes[-1]
    if isinstance(root, ssl.SSLCertVerificationError):
        return f"TLS: certificate not trusted: {root.verify_message}"
    if isinstance(root, ssl.SSLError):
        return f"TLS: {root.reason or type(root).__name__}"
    for cause in causes:
        if isinstance(cause, HTTPException):
            return f"broken HTTP answer: {type(cause).__name__}"
    if isinstance(root, OSError) and root.strerror:
        return root.strerror
    return str(root) if type(root) is OSError else type(root).__name__  # so does http.client say what a proxy answers
