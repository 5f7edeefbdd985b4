"""A reverse proxy before a real server that fails on demand.

It is a fake only for the fault: no real Collector answers 429 or drips its answer because a test wants it to. What it
lets pass goes to the real server, and the real server's answer goes back.

    with Faulty(gateway.url) as proxy:
        proxy.fault = status(503)
        ...
        proxy.mend()
"""

from __future__ import annotations

import contextlib
import gzip
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse

if TYPE_CHECKING:
    from collections.abc import Mapping
    from io import BufferedIOBase

    from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

PROTOBUF = {"Content-Type": "application/x-protobuf"}
UPSTREAM_SECONDS_MAX = 60
RECEIVE_BYTES = 2**20
LOOK_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer to the client; with `drip_seconds` a byte at a time, so long after one another."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    drip_seconds: float = 0


@dataclass(frozen=True, slots=True)
class Call:
    """A request that came in, and what a fault can do with it."""

    proxy: Faulty
    path: str
    headers: Mapping[str, str]
    body: bytes
    upstream: Callable[[str, Mapping[str, str], bytes], Reply]

    def forward(self) -> Reply:
        """The real server's answer."""
        return self.upstream(self.path, self.headers, self.body)

    def message(self) -> ExportLogsServiceRequest:
        """The OTLP request in it."""
        packed = self.headers.get("Content-Encoding") == "gzip"
        message = ExportLogsServiceRequest()
        message.ParseFromString(gzip.decompress(self.body) if packed else self.body)
        return message


Fault = Callable[[Call], Reply]
"""Makes the answer to a call. ConnectionResetError: the client sees the connection break."""


def passing(call: Call) -> Reply:
    return call.forward()


def status(code: int, **headers: str) -> Fault:
    """Answers so, and passes nothing on."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda _: Reply(code, names, b"by order of the test")


def reset(_: Call) -> Reply:
    """Breaks the connection without an answer."""
    raise ConnectionResetError


def hang(call: Call) -> Reply:
    """Reads the request and never answers; the connection breaks when the proxy is mended."""
    call.proxy.mended.wait()
    raise ConnectionResetError


Intake = Callable[["Faulty", socket.socket, "BufferedIOBase", int], bytes]
"""Reads a request's body, so many bytes of it, from a connection. ConnectionResetError: as with a fault."""


def whole(_: Faulty, __: socket.socket, stream: BufferedIOBase, length: int) -> bytes:
    body = stream.read(length)
    if len(body) < length:
        raise ConnectionResetError
    return body


def half(_: Faulty, __: socket.socket, stream: BufferedIOBase, length: int) -> bytes:
    """Breaks the connection in the middle of the request."""
    stream.read(length // 2)
    raise ConnectionResetError


def trickle(bytes_per_second: int) -> Intake:
    """Reads so slowly until the proxy is mended; the client waits with its body unsent, as on a thin line."""

    def intake(proxy: Faulty, connection: socket.socket, stream: BufferedIOBase, length: int) -> bytes:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, bytes_per_second)  # the system has a lower bound
        body = b""
        while len(body) < length:
            part = stream.read(min(bytes_per_second, length - len(body)))
            if not part:
                raise ConnectionResetError
            body += part
            if proxy.mended.wait(len(part) / bytes_per_second):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
        return body

    return intake


def slow(seconds: float) -> Fault:
    """Passes each request on after so long."""

    def fault(call: Call) -> Reply:
        call.proxy.closed.wait(seconds)
        return call.forward()

    return fault


def drip(seconds: float) -> Fault:
    """Passes each request on, and gives the answer back a byte at a time: no single read takes long."""

    def fault(call: Call) -> Reply:
        reply = call.forward()
        return Reply(reply.status, reply.headers, reply.body, seconds)

    return fault


def poison(is_poison: Callable[[LogRecord], bool]) -> Fault:
    """Answers 400, and passes nothing on, when any record is poison: so do receivers that check what they get."""

    def fault(call: Call) -> Reply:
        if any(map(is_poison, records(call.message()))):
            return Reply(400, {"Content-Type": "text/plain"}, b"a record is poison")
        return call.forward()

    return fault


def partial(is_poison: Callable[[LogRecord], bool]) -> Fault:
    """Passes on all but the poison, and answers 200 with a partial success that rejects the poison."""

    def fault(call: Call) -> Reply:
        message = call.message()
        rejected = 0
        for of_resource in message.resource_logs:
            for of_scope in of_resource.scope_logs:
                good = [record for record in of_scope.log_records if not is_poison(record)]
                rejected += len(of_scope.log_records) - len(good)
                del of_scope.log_records[:]
                of_scope.log_records.extend(good)
        if not rejected:
            return call.forward()
        headers = {name: value for name, value in call.headers.items() if name != "Content-Encoding"}
        reply = call.upstream(call.path, headers, message.SerializeToString())
        if reply.status != 200:
            return reply
        answer = ExportLogsServiceResponse()
        answer.partial_success.rejected_log_records = rejected
        answer.partial_success.error_message = "a record is poison"
        return Reply(200, PROTOBUF, answer.SerializeToString())

    return fault


def durable(life: Callable[[], object], kept: Callable[[], Callable[[], bool]]) -> Fault:
    """Passes on, and gives the answer back when it is `kept`, if the server lives the same `life` (its pid) still.

    For a store that keeps in memory for a moment what it has acknowledged: what a kill takes from it is, seen from
    here, never acknowledged. `kept` is called when the store has it, and gives what tells whether all that the store
    then had is on its disk; OSError: it does not answer.
    """

    def fault(call: Call) -> Reply:
        before = life()
        reply = call.forward()
        try:
            is_kept = kept()
            while life() == before and not is_kept() and not call.proxy.closed.wait(LOOK_SECONDS):
                pass
        except OSError:
            raise ConnectionResetError from None
        if life() != before:
            raise ConnectionResetError
        return reply

    return fault


def records(message: ExportLogsServiceRequest) -> list[LogRecord]:
    return [
        record
        for of_resource in message.resource_logs
        for of_scope in of_resource.scope_logs
        for record in of_scope.log_records
    ]


def attribute(record: LogRecord, name: str) -> str:
    """A record's attribute as a string, empty without it."""
    return next((pair.value.string_value for pair in record.attributes if pair.key == name), "")


def number(record: LogRecord, name: str) -> int:
    """A record's attribute as a number, 0 without it."""
    return next((pair.value.int_value for pair in record.attributes if pair.key == name), 0)


class Faulty:
    """The proxy; `url` is its address, with the path of the server's."""

    def __init__(self, upstream: str) -> None:
        """Takes the server's URL. It need not run."""
        parts = urlsplit(upstream)
        self.fault: Fault = passing
        self.intake: Intake = whole
        self.closed = threading.Event()
        self.mended = threading.Event()
        """Set by `mend` and at the end; `hang` and `trickle` stop at it. A fault that begins clears it."""
        self.seen: list[tuple[float, int]] = []
        """When each call was answered (monotonic seconds), and with which status; 0 is a broken connection."""
        self.on_answer: Callable[[Call, Reply], None] = lambda *_: None
        """Told of each answer before it is given: what a client knows of, this knows of."""
        self.errors: list[BaseException] = []
        self._upstream = (parts.hostname or "", parts.port or 80)
        self._server: _Server | None = _Server(self, self._upstream)
        self._port = self._server.server_port
        self._held: socket.socket | None = None
        self.url = f"http://127.0.0.1:{self._port}{parts.path}"

    def __enter__(self) -> Self:
        self._serve()
        return self

    def __exit__(self, *_: object) -> None:
        self.closed.set()
        self.mended.set()
        self._close()
        if self._held is not None:
            self._held.close()
        assert not self.errors, f"the proxy itself failed: {self.errors}"

    def begin(self, fault: Fault = passing, intake: Intake = whole) -> None:
        """Fails so from now on, for connections that are open as well."""
        self.mended.clear()
        self.fault, self.intake = fault, intake

    def refuse(self) -> None:
        """Closes the port, and breaks what is connected."""
        self.mended.clear()
        self._close()
        # Bound and not listened at: connections are refused, and nobody else is given the port.
        self._held = socket.socket()
        self._held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._held.bind(("127.0.0.1", self._port))

    def mend(self) -> None:
        """Passes everything on from now on; what hangs is broken, what trickles is read at once."""
        self.fault, self.intake = passing, whole
        self.mended.set()
        if self._held is not None:
            self._held.close()
            self._held = None
            self._server = _Server(self, self._upstream, self._port)
            self._serve()

    def statuses(self) -> list[int]:
        return [code for _, code in self.seen]

    def _serve(self) -> None:
        assert self._server is not None
        threading.Thread(target=self._server.serve_forever, args=(0.05,), name="faulty", daemon=True).start()

    def _close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server.break_connections()
            self._server = None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, proxy: Faulty, upstream: tuple[str, int], port: int = 0) -> None:
        self.proxy = proxy
        self.upstream = upstream
        self._connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def break_connections(self) -> None:
        for connection in self._connections.copy():
            with contextlib.suppress(OSError):  # its own thread may have closed it
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the base's signature
        error = sys.exc_info()[1]
        if error is not None and not isinstance(error, ConnectionError | TimeoutError):
            self.proxy.errors.append(error)


class _Handler(BaseHTTPRequestHandler):
    """One client's connection, with one of its own to the real server."""

    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def setup(self) -> None:
        super().setup()
        self._upstream = HTTPConnection(*self.server.upstream, timeout=UPSTREAM_SECONDS_MAX)

    def finish(self) -> None:
        self._upstream.close()
        with contextlib.suppress(ConnectionError, ValueError):  # the client may be gone, or the connection broken
            super().finish()

    def do_POST(self) -> None:
        proxy = self.server.proxy
        try:
            body = proxy.intake(proxy, self.connection, self.rfile, int(self.headers["Content-Length"]))
            call = Call(proxy, self.path, dict(self.headers.items()), body, self._forward)
            reply = proxy.fault(call)
        except ConnectionResetError:
            proxy.seen.append((time.monotonic(), 0))
            self._break()
            return
        proxy.seen.append((time.monotonic(), reply.status))
        proxy.on_answer(call, reply)
        self._give(reply)

    def _forward(self, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
        kept = {name: value for name, value in headers.items() if name.lower() not in ("host", "content-length")}
        for attempt in (1, 2):
            try:
                self._upstream.request("POST", path, body, kept)
                answer = self._upstream.getresponse()
                return Reply(
                    answer.status, {"Content-Type": answer.headers.get("Content-Type", "text/plain")}, answer.read()
                )
            except (OSError, HTTPException):
                # The first may be a kept connection whose server has gone since; a dead server is a broken connection.
                self._upstream.close()
                if attempt == 2:
                    raise ConnectionResetError from None
        raise AssertionError

    def _give(self, reply: Reply) -> None:
        headers = {**reply.headers, "Content-Length": str(len(reply.body))}
        head = f"HTTP/1.1 {reply.status} -\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        answer = head.encode() + b"\r\n" + reply.body
        if not reply.drip_seconds:
            self.wfile.write(answer)
            return
        for byte in answer:
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            if self.server.proxy.closed.wait(reply.drip_seconds):
                break

    def _break(self) -> None:
        self.close_connection = True
        # An RST: the client cannot take it for an orderly end.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's signature
        pass
