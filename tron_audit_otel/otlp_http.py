"""OTLP over HTTP, within a deadline that holds whatever the receiver does."""

from __future__ import annotations

import encodings.idna  # noqa: F401 - or the first look-up of a name loads it, in a thread: see `transport.maker`
import gzip
import re
import socket
import ssl
import time
import zlib
from concurrent.futures import CancelledError, Future, InvalidStateError
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from queue import Full, Queue
from threading import Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import requests
from google.protobuf.message import DecodeError  # type: ignore[import-untyped] # protobuf ships no annotations
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped] # nor do these messages
from opentelemetry.instrumentation.utils import suppress_instrumentation
from requests.adapters import HTTPAdapter

from tron_audit_otel.answer import ANSWER_BYTES_MAX, REASON_CHARACTERS_MAX, Answer, Fate, Sender, user_agent, worded
from tron_audit_otel.redact import line

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tron_audit_otel.config import AuditConfig

COMPRESSION_LEVEL = 1
"""Audit records shrink tenfold at the lowest level; the highest saves a tenth more, for many times the CPU."""

CONNECT_SHARE = 3
"""One address gets a third of the time, so that a dead one among several does not cost all of it."""

_POISON_STATUS = {400, 413, 422}
_RETRY_STATUS = {408, 429}
_PARKED_STATUS = {501, 505}
"""What a web server that is no receiver says to a POST."""


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


class HttpTransport(Sender):
    """Posts from a thread of its own: looking up a name cannot be cut short, but need not be waited for."""

    def __init__(self, config: AuditConfig) -> None:
        """Takes the settings."""
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
        """Makes one attempt."""
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
        """Ends it, a running attempt too."""
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
        reason = worded(f"HTTP {status}", message)
        if status in _POISON_STATUS:
            return self._answer(Fate.POISON, reason)
        if status in _RETRY_STATUS or (status >= requests.codes.server_error and status not in _PARKED_STATUS):
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


def _http_headers(config: AuditConfig) -> dict[str, Any]:
    encoding = {} if config.otlp_compression == "none" else {"content-encoding": config.otlp_compression}
    given = {name: value.encode() for name, value in config.otlp_headers}
    return {"user-agent": user_agent(), **given, "content-type": "application/x-protobuf", **encoding}


def _client_certificate(config: AuditConfig) -> tuple[str, str] | None:
    if config.otlp_client_certificate is None:
        return None
    return str(config.otlp_client_certificate), str(config.otlp_client_key)


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
