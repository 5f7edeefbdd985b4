from __future__ import annotations

import contextlib
import gzip
import socket
import ssl
import struct
import threading
import time
import zlib
from concurrent import futures
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import PackageNotFoundError
from typing import TYPE_CHECKING, Any, Self

import grpc
import pytest
import trustme
from google.protobuf.any_pb2 import Any as AnyMessage  # type: ignore[import-untyped] # protobuf ships no annotations
from google.protobuf.duration_pb2 import Duration  # type: ignore[import-untyped] # as above
from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped] # as above
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped] # as above
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.instrumentation.utils import is_http_instrumentation_enabled
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsPartialSuccess,
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs
from requests.adapters import HTTPAdapter

from tron_audit_otel import answer as answers
from tron_audit_otel import otlp_grpc, otlp_http
from tron_audit_otel.answer import ANSWER_BYTES_MAX, REASON_CHARACTERS_MAX, Answer, Fate, Transport
from tron_audit_otel.config import AuditConfig
from tron_audit_otel.transport import make

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

TIMEOUT_S = 0.2
"""Of the transports that are to run into it."""

TIMED_OUT = f"no answer within {TIMEOUT_S:g} s"

SLACK_S = 10.0
"""A machine's that stalls. The shortest of what could take our deadline's place, gRPC's own, is twice as long."""

PATIENCE_S = 30.0
"""For what takes milliseconds, on a machine that stalls."""

STUCK_S = 120.0
"""Of the peers and the time-outs that no test is to wait for."""

TOKEN = "Bearer s3cret-t0ken"  # noqa: S105 - not one of anybody's

REQUEST = ExportLogsServiceRequest(
    resource_logs=[ResourceLogs(scope_logs=[ScopeLogs(log_records=[LogRecord(event_name="tron.audit.request")])])]
).SerializeToString()

PROTOBUF = "application/x-protobuf"


def rejecting(count: int, message: str = "") -> bytes:
    partial = ExportLogsPartialSuccess(rejected_log_records=count, error_message=message)
    return bytes(ExportLogsServiceResponse(partial_success=partial).SerializeToString())


def status(message: str) -> bytes:
    return bytes(Status(code=3, message=message).SerializeToString())


def http(
    port: int, *, timeout_s: float = PATIENCE_S, tls: bool = False, host: str = "127.0.0.1", **values: Any
) -> Transport:
    endpoint = f"http{'s' if tls else ''}://{host}:{port}/v1/logs"
    return make(AuditConfig(otlp_endpoint=endpoint, otlp_timeout_s=timeout_s, **values))


@contextmanager
def sending(transport: Transport) -> Iterator[Callable[[], Answer]]:
    try:
        yield lambda: transport.send(REQUEST)
    finally:
        transport.close()


def eventually(is_so: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def in_time(send: Callable[[], Answer], until: Callable[[Answer], bool]) -> list[Answer]:
    """Attempts, none of which takes longer than it may; a machine that stalls can leave an attempt time for nothing."""
    answers: list[Answer] = []

    def attempt() -> bool:
        began = time.monotonic()
        answers.append(send())
        assert time.monotonic() - began < TIMEOUT_S + SLACK_S
        return until(answers[-1])

    assert eventually(attempt)
    return answers


def workers() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "tron-audit-transport"}


def raising(error: BaseException) -> Callable[..., Any]:
    def act(*_: Any, **__: Any) -> Any:
        raise error

    return act


# An HTTP receiver that answers as told.


class Receiver(ThreadingHTTPServer):
    """Answers each request with a chosen status, headers and body, and keeps the requests.

    A fake: the real Collector gives these answers only when it, or what is behind it, is broken in as many ways.
    """

    def __init__(self, port: int = 0) -> None:
        self.status = 200
        self.headers: dict[str, str] = {"content-type": PROTOBUF}
        self.body = b""
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.connections = 0
        super().__init__(("127.0.0.1", port), Handler)

    def process_request(self, *args: Any) -> None:
        self.connections += 1
        super().process_request(*args)

    def handle_error(self, *_: Any) -> None:
        """A client that has had enough is what some tests are about."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.requests.append((self.path, headers, body))
        self.send_response(self.server.status)
        for name, value in {"content-length": str(len(self.server.body)), **self.server.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *_: Any) -> None:
        """Not into the tests' output."""


@contextmanager
def running(server: ThreadingHTTPServer) -> Iterator[int]:
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    with running(server):
        yield server


def answer_to(receiver: Receiver, status: int, body: bytes = b"", **headers: str) -> Answer:
    receiver.status, receiver.body = status, body
    receiver.headers = {"content-type": PROTOBUF} | {name.replace("_", "-"): value for name, value in headers.items()}
    with sending(http(receiver.server_port)) as send:
        return send()


def test_what_is_sent_is_an_otlp_request(receiver: Receiver) -> None:
    with sending(http(receiver.server_port, otlp_headers={"authorization": TOKEN})) as send:
        assert send() == Answer(Fate.DELIVERED)
    ((path, headers, body),) = receiver.requests
    assert path == "/v1/logs"
    assert body == REQUEST
    assert headers["content-type"] == PROTOBUF
    assert headers["authorization"] == TOKEN
    assert headers["user-agent"].startswith("tron-audit-otel/")
    assert "content-encoding" not in headers
    assert "cookie" not in headers


def test_a_copy_that_was_not_installed_has_no_version(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "version", raising(PackageNotFoundError()))
    with sending(http(receiver.server_port)) as send:
        assert send().fate is Fate.DELIVERED
    assert receiver.requests[0][1]["user-agent"] == "tron-audit-otel"


@pytest.mark.parametrize(("name", "decompress"), [("gzip", gzip.decompress), ("deflate", zlib.decompress)])
def test_a_request_is_compressed_as_configured(
    name: str, decompress: Callable[[bytes], bytes], receiver: Receiver
) -> None:
    with sending(http(receiver.server_port, otlp_compression=name)) as send:
        assert send().fate is Fate.DELIVERED
    ((_, headers, body),) = receiver.requests
    assert headers["content-encoding"] == name
    assert decompress(body) == REQUEST


@pytest.mark.parametrize(
    ("status", "fate"),
    [
        (200, Fate.DELIVERED),
        (202, Fate.DELIVERED),
        (204, Fate.DELIVERED),
        (300, Fate.PARKED),
        (301, Fate.PARKED),
        (302, Fate.PARKED),
        (304, Fate.PARKED),
        (307, Fate.PARKED),
        (308, Fate.PARKED),
        (400, Fate.POISON),
        (401, Fate.PARKED),
        (402, Fate.PARKED),
        (403, Fate.PARKED),
        (404, Fate.PARKED),
        (405, Fate.PARKED),
        (407, Fate.PARKED),
        (408, Fate.RETRY),
        (413, Fate.POISON),
        (415, Fate.PARKED),
        (422, Fate.POISON),
        (429, Fate.RETRY),
        (499, Fate.PARKED),
        (500, Fate.RETRY),
        (501, Fate.PARKED),
        (505, Fate.PARKED),
        (502, Fate.RETRY),
        (503, Fate.RETRY),
        (504, Fate.RETRY),
        (599, Fate.RETRY),
        (999, Fate.RETRY),
    ],
)
def test_each_status_has_its_fate(status: int, fate: Fate, receiver: Receiver) -> None:
    answer = answer_to(receiver, status)
    assert answer.fate is fate
    assert answer.reason.startswith("" if fate is Fate.DELIVERED else f"HTTP {status}")
    assert answer.retry_after_s is None


def test_a_partial_success_is_a_refusal_of_a_part(receiver: Receiver) -> None:
    answer = answer_to(receiver, 200, rejecting(3, "no room\nfor these"))
    assert answer == Answer(Fate.POISON, r"partial success: 3 rejected (no room\nfor these)")


def test_a_partial_success_that_rejects_nothing_is_a_warning(receiver: Receiver) -> None:
    assert answer_to(receiver, 200, rejecting(0, "deprecated")) == Answer(Fate.DELIVERED, "deprecated")
    assert answer_to(receiver, 200, rejecting(-1)).fate is Fate.DELIVERED


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        pytest.param(b"<html>Please log in</html>", "text/html; charset=utf-8", id="a-login-page"),
        pytest.param(b"ok", "text/plain", id="text"),
        pytest.param(b"{}", "application/json", id="json"),
        pytest.param(b"\xff\xff", PROTOBUF, id="garbage"),
        pytest.param(b"<html>", "", id="no-type"),
        pytest.param(b"\0" * (ANSWER_BYTES_MAX + 1), PROTOBUF, id="too-much"),
        pytest.param(b"x", "evil\x1b[2J" + "x" * 500, id="a-type-that-is-none"),
    ],
)
def test_what_is_no_otlp_receiver_has_nothing(body: bytes, kind: str, receiver: Receiver) -> None:
    answer = answer_to(receiver, 200, body, content_type=kind)
    assert answer.fate is Fate.PARKED
    assert answer.reason.startswith("not an OTLP receiver")
    assert answer.reason.isprintable()


def test_a_redirect_is_named_and_not_followed(receiver: Receiver) -> None:
    location = f"http://user:pa55word@127.0.0.1:{receiver.server_port}/login?token=s3cret"
    answer = answer_to(receiver, 307, location=location)
    assert answer == Answer(Fate.PARKED, f"HTTP 307 (it redirects to http://127.0.0.1:{receiver.server_port})")
    assert len(receiver.requests) == 1


@pytest.mark.parametrize("location", ["/login", "", "http://[::1", "https://\x00\x01/", "//"])
def test_a_redirect_to_nowhere_is_one_as_well(location: str, receiver: Receiver) -> None:
    answer = answer_to(receiver, 302, location=location)
    assert answer.fate is Fate.PARKED
    assert answer.reason.startswith("HTTP 302 (it redirects")
    assert answer.reason.isprintable()


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("30", 30),
        (" 7 ", 7),
        ("0", 0),
        ("999999999", 999_999_999),
        ("-1", None),
        ("1.5", None),
        ("9" * 5000, None),
        ("soon", None),
        ("", None),
        ("\u0663", None),
        ("Fri, 99 Foo 2026 00:00:00 GMT", None),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_retry_after_is_read_and_nonsense_is_none(value: str, seconds: float | None, receiver: Receiver) -> None:
    answer = answer_to(receiver, 503, retry_after=value.encode().decode("latin-1"))
    assert answer == Answer(Fate.RETRY, "HTTP 503", seconds)


def test_retry_after_may_be_a_date(receiver: Receiver) -> None:
    at = datetime.now(UTC) + timedelta(hours=1)
    seconds = answer_to(receiver, 429, retry_after=format_datetime(at, usegmt=True)).retry_after_s
    assert seconds is not None
    assert 3500 < seconds <= 3600


def test_retry_after_says_nothing_where_a_retry_is_no_help(receiver: Receiver) -> None:
    assert answer_to(receiver, 401, retry_after="30").retry_after_s is None


@pytest.mark.parametrize(
    ("kind", "body", "reason"),
    [
        (PROTOBUF, status("record too old"), "HTTP 400 (record too old)"),
        ("text/plain; charset=utf-8", b"no \x1b[31m such\n", r"HTTP 400 (no \x1b[31m such)"),
        ("text/html", b"<html>", "HTTP 400"),
        (PROTOBUF, b"\xff", "HTTP 400"),
        ("text/plain", b"\xff\xfe", "HTTP 400 (\ufffd\ufffd)"),
    ],
    ids=["status", "text", "page", "garbage", "binary"],
)
def test_the_receivers_own_words_are_shown_made_safe(kind: str, body: bytes, reason: str, receiver: Receiver) -> None:
    assert answer_to(receiver, 400, body, content_type=kind).reason == reason


def test_a_long_message_is_cut(receiver: Receiver) -> None:
    reason = answer_to(receiver, 400, status("\x00" * 10_000)).reason
    assert REASON_CHARACTERS_MAX - len(r"\x00") < len(reason) <= REASON_CHARACTERS_MAX  # no escape is cut in two
    assert reason.endswith("…")
    assert reason.isprintable()


@pytest.mark.parametrize("echo", [TOKEN, "s3cret-t0ken", "x" * 170 + TOKEN])
def test_a_token_that_is_given_back_is_not_shown(echo: str, receiver: Receiver) -> None:
    receiver.status, receiver.body = 401, status(f"who is {echo}?")
    with sending(http(receiver.server_port, otlp_headers={"authorization": TOKEN})) as send:
        reason = send().reason
    assert "s3cret" not in reason
    assert "[masked]" in reason or len(reason) == REASON_CHARACTERS_MAX


# The network, at its worst.


class Peer:
    """A socket that does with each connection whatever a test says.

    A fake: no HTTP server can be told to hang, to drip, or to break off in the middle.
    """

    def __init__(self, act: Callable[[socket.socket], None], context: ssl.SSLContext | None = None) -> None:
        self._act = act
        self._context = context
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        self.connections = 0
        self.ended = threading.Event()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                self.connections += 1
                self._threads.append(threading.Thread(target=self._serve, args=(connection,), daemon=True))
                self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError):
            connection.settimeout(STUCK_S)
            if self._context:
                connection = self._context.wrap_socket(connection, server_side=True)
            with connection:
                self._act(connection)
        self.ended.set()

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for thread in self._threads:
            thread.join(PATIENCE_S)


def received(connection: socket.socket) -> bytes:
    data = b""
    while REQUEST not in data:
        if not (piece := connection.recv(65_536)):
            break
        data += piece
    return data


def saying(data: bytes) -> Callable[[socket.socket], None]:
    def act(connection: socket.socket) -> None:
        received(connection)
        connection.sendall(data)

    return act


def dripping(head: bytes, drop: bytes = b"x") -> Callable[[socket.socket], None]:
    """Says the head, then a byte now and then, always sooner than any time-out of a read."""

    def act(connection: socket.socket) -> None:
        received(connection)
        connection.sendall(head)
        while True:
            connection.sendall(drop)
            time.sleep(TIMEOUT_S / 10)

    return act


def dripping_at_once(drop: bytes) -> Callable[[socket.socket], None]:
    def act(connection: socket.socket) -> None:
        while True:
            connection.sendall(drop)
            time.sleep(TIMEOUT_S / 10)

    return act


def waiting(event: threading.Event) -> Callable[[socket.socket], None]:
    """Takes nothing from the connection."""

    def act(_: socket.socket) -> None:
        event.wait(STUCK_S)

    return act


def silent(connection: socket.socket) -> None:
    while connection.recv(65_536):
        pass


def hang(connection: socket.socket) -> None:
    received(connection)
    connection.recv(1)  # until the other end goes


def reset(connection: socket.socket) -> None:
    received(connection)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\n"

answering = saying(OK + b"content-length: 0\r\n\r\n")

SLOW = {
    "hanging": hang,
    "dripping-status": dripping(b"HTTP/1.1 200 O"),
    "dripping-headers": dripping(OK + b"x-a: "),
    "dripping-continue": dripping(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "dripping-body": dripping(OK + b"content-length: 60000\r\n\r\n"),
    "dripping-body-of-a-last-answer": dripping(b"HTTP/1.0 200 OK\r\n\r\n"),
    "dripping-chunks": dripping(OK + b"transfer-encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    "dripping-redirect": dripping(b"HTTP/1.1 302 Found\r\nlocation: /x\r\n\r\n"),
    "dripping-error": dripping(b"HTTP/1.1 503 No\r\ncontent-length: 60000\r\n\r\n"),
}


@pytest.mark.parametrize("act", SLOW.values(), ids=SLOW.keys())
def test_a_slow_receiver_takes_no_more_than_the_time_there_is(act: Callable[[socket.socket], None]) -> None:
    with Peer(act) as peer, sending(http(peer.port, timeout_s=TIMEOUT_S)) as send:
        answers = in_time(send, lambda _: peer.connections >= 2)
        assert set(answers) == {Answer(Fate.RETRY, TIMED_OUT)}
        assert peer.ended.wait(PATIENCE_S), "the connection was not given up"
        assert peer.connections <= len(answers)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_receiver_that_reads_nothing_takes_no_more_than_the_time_there_is(
    tls: bool,
    authority: trustme.CA,
    pem: Path,
) -> None:
    is_over = threading.Event()
    with (
        Peer(waiting(is_over), server_context(authority) if tls else None) as peer,
        closing(http(peer.port, timeout_s=TIMEOUT_S, tls=tls, otlp_certificate=pem)) as transport,
    ):
        began = time.monotonic()
        answer = transport.send(bytes(20_000_000))
        assert time.monotonic() - began < TIMEOUT_S + SLACK_S
        assert time.monotonic() - began > TIMEOUT_S / 2, "sending may take as long as all"
        assert answer.fate is Fate.RETRY
        assert answer.reason == TIMED_OUT
        is_over.set()


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK", b"HTTP/1.1 302 Found\r\nlocation: /", b"HTTP/1.1 503 No"])
def test_an_endless_answer_is_not_read_to_its_end(head: bytes) -> None:
    sent = []

    def act(connection: socket.socket) -> None:
        received(connection)
        connection.sendall(head + b"\r\ncontent-type: text/html\r\n\r\n")
        while True:
            sent.append(connection.send(b"x" * 100_000))

    with Peer(act) as peer, sending(http(peer.port)) as send:
        answer = send()
        assert answer.fate is (Fate.RETRY if b"503" in head else Fate.PARKED)
        assert peer.ended.wait(PATIENCE_S)
        # What the system's buffers take is sent as well; all the time there is would be gigabytes of loopback.
        assert sum(sent) < 20_000_000


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        pytest.param(reset, "Connection reset by peer", id="reset"),
        pytest.param(saying(b""), "broken HTTP answer: RemoteDisconnected", id="closed"),
        pytest.param(saying(b"\0\0\x06\x04\0\0\0\0\0"), "broken HTTP answer: BadStatusLine", id="gRPCs-port"),
        pytest.param(saying(b"HTTP/1.1 2x0 OK\r\n\r\n"), "broken HTTP answer: BadStatusLine", id="garbage"),
        pytest.param(saying(b"HTTP/1.1 200 " + b"x" * 70_000), "broken HTTP answer: LineTooLong", id="long-line"),
        pytest.param(saying(OK + b"x: y\r\n" * 200 + b"\r\n"), "broken HTTP answer: HTTPException", id="many-headers"),
        pytest.param(saying(OK + b"content-length: 9\r\n\r\nx"), "broken HTTP answer: IncompleteRead", id="cut-body"),
        pytest.param(
            saying(OK + b"transfer-encoding: chunked\r\n\r\nzz\r\n"),
            "broken HTTP answer: IncompleteRead",
            id="cut-chunk",
        ),
    ],
)
def test_a_broken_answer_is_none(act: Callable[[socket.socket], None], reason: str) -> None:
    with Peer(act) as peer, sending(http(peer.port)) as send:
        assert send() == Answer(Fate.RETRY, reason)
        assert peer.connections == 1, "a fresh connection's failure is no stale one's"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "HTTP 101"),
        (OK + b"content-length: 1, 2\r\n\r\n", "not possible: InvalidHeader"),
    ],
    ids=["upgrade", "two-lengths"],
)
def test_an_answer_that_no_otlp_receiver_gives_wants_an_operator(answer: bytes, reason: str) -> None:
    with Peer(saying(answer)) as peer, sending(http(peer.port)) as send:
        assert send() == Answer(Fate.PARKED, reason)


def test_a_refusal_before_the_request_is_read_is_heard() -> None:
    def act(connection: socket.socket) -> None:
        connection.recv(100)
        connection.sendall(b"HTTP/1.1 413 Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")

    with Peer(act) as peer, closing(http(peer.port)) as transport:
        assert transport.send(bytes(20_000_000)) == Answer(Fate.POISON, "HTTP 413")


@given(
    st.one_of(
        st.binary(max_size=200),
        st.binary(max_size=200).map(lambda data: OK + b"\r\n" + data),
        st.binary(max_size=200).map(lambda data: b"HTTP/1.1 503 No\r\nretry-after: " + data + b"\r\n\r\n"),
        st.binary(max_size=200).map(lambda data: b"HTTP/1.1 302 No\r\nlocation: " + data + b"\r\n\r\n"),
        st.binary(max_size=200).map(lambda data: b"HTTP/1.1 400 No\r\ncontent-type: text/plain\r\n\r\n" + data),
    )
)
@settings(max_examples=100)
def test_no_answer_whatever_gets_past_as_an_error(data: bytes) -> None:
    with Peer(saying(data)) as peer, sending(http(peer.port)) as send:
        reason = send().reason
    assert not reason or reason.isprintable()
    assert len(reason) <= REASON_CHARACTERS_MAX


def test_a_dead_address_among_several_does_not_hide_the_living(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fakes the name server's answer; the dead address is real: a queue that is full takes no connection."""
    with socket.socket() as dead, contextlib.ExitStack() as stack:
        dead.bind(("127.0.0.1", 0))
        dead.listen(0)
        for _ in range(8):
            client = stack.enter_context(socket.socket())
            client.settimeout(0)
            client.connect_ex(dead.getsockname())
        family = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
        addresses = [(*family, dead.getsockname()), (*family, ("127.0.0.1", receiver.server_port))]
        with monkeypatch.context() as patched:
            patched.setattr(socket, "getaddrinfo", lambda *_, **__: addresses)
            with sending(http(80, host="collector.invalid", timeout_s=1.5)) as send:
                assert eventually(lambda: send() == Answer(Fate.DELIVERED))
            patched.setattr(socket, "getaddrinfo", lambda *_, **__: addresses[:1])
            with sending(http(80, host="collector.invalid", timeout_s=TIMEOUT_S)) as send:
                assert eventually(lambda: send() == Answer(Fate.RETRY, "timed out while connecting"))


def test_nobody_listening_is_an_outage() -> None:
    with socket.socket() as bound:  # or somebody else could come to listen there
        bound.bind(("127.0.0.1", 0))
        with sending(http(bound.getsockname()[1])) as send:
            assert send() == Answer(Fate.RETRY, "Connection refused")


def test_a_name_that_is_unknown_is_an_outage() -> None:
    with sending(http(4318, host="collector.invalid")) as send:
        answer = send()
        assert answer.fate is Fate.RETRY
        assert "ame" in answer.reason


def test_a_lookup_that_hangs_is_not_waited_for(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fakes the system's resolver: no name server here hangs when asked to."""
    is_over, real, others = threading.Event(), socket.getaddrinfo, workers()

    def hanging(*args: Any, **options: Any) -> Any:
        is_over.wait(STUCK_S)
        return real(*args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", hanging)
    with sending(http(receiver.server_port, timeout_s=TIMEOUT_S)) as send:
        for _ in range(3):
            began = time.monotonic()
            assert send() == Answer(Fate.RETRY, TIMED_OUT)
            assert time.monotonic() - began < TIMEOUT_S + SLACK_S
        assert len(workers() - others) == 1, "each attempt would leave something behind"
        is_over.set()
        assert eventually(lambda: send().fate is Fate.DELIVERED)


def test_a_connection_is_used_again(receiver: Receiver) -> None:
    with sending(http(receiver.server_port)) as send:
        for _ in range(3):
            assert send().fate is Fate.DELIVERED
    assert (receiver.connections, len(receiver.requests)) == (1, 3)


@pytest.mark.parametrize("how", ["idle", "busy", "reset"])
def test_a_connection_that_the_receiver_closed_meanwhile_is_no_outage(how: str) -> None:
    closed = threading.Event()

    def act(connection: socket.socket) -> None:
        received(connection)
        connection.sendall(OK + b"content-length: 0\r\n\r\n")
        if how != "idle":
            received(connection)
        if how == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
        closed.set()

    with Peer(act) as peer, sending(http(peer.port)) as send:
        assert send().fate is Fate.DELIVERED
        assert how != "idle" or closed.wait(PATIENCE_S)
        assert send().fate is Fate.DELIVERED
        assert peer.connections == 2


def test_a_receiver_that_went_after_an_answer_is_an_outage() -> None:
    peer = Peer(answering)
    with sending(http(peer.port)) as send:
        with peer:
            assert send().fate is Fate.DELIVERED
        assert send() == Answer(Fate.RETRY, "Connection refused")


def test_closing_ends_an_attempt_at_once() -> None:
    begun, others = threading.Event(), workers()

    def act(connection: socket.socket) -> None:
        received(connection)
        begun.set()
        connection.recv(1)

    with Peer(act) as peer, futures.ThreadPoolExecutor(1) as pool:
        transport = http(peer.port, timeout_s=STUCK_S)
        answer = pool.submit(transport.send, REQUEST)
        assert begun.wait(PATIENCE_S)
        transport.close()
        assert answer.result(PATIENCE_S) == Answer(Fate.RETRY, "closed")
        assert peer.ended.wait(PATIENCE_S), "the connection is still open"
        assert transport.send(REQUEST) == Answer(Fate.RETRY, "closed")
        transport.close()
    assert eventually(lambda: workers() <= others), "its thread is still there"


def test_nothing_ends_the_thread(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fakes an error that nobody thought of."""
    with sending(http(receiver.server_port)) as send:
        with monkeypatch.context() as patched:
            patched.setattr(otlp_http, "_content", raising(SystemExit("s3cret")))
            assert send() == Answer(Fate.RETRY, "SystemExit")
        assert send().fate is Fate.DELIVERED


def test_an_export_is_no_request_of_the_applications(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks where an instrumented client would: none is installed here."""
    seen = []
    real = HTTPAdapter.send

    def looking(*args: Any, **options: Any) -> Any:
        seen.append(is_http_instrumentation_enabled())
        return real(*args, **options)

    monkeypatch.setattr(HTTPAdapter, "send", looking)
    with sending(http(receiver.server_port)) as send:
        send()
    assert seen == [False]


# The environment, the settings, and TLS.


def test_a_proxy_of_the_environment_is_used(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://user:pa55word@127.0.0.1:{receiver.server_port}")
    monkeypatch.setenv("http_proxy", f"http://user:pa55word@127.0.0.1:{receiver.server_port}")
    with sending(http(80, host="collector.invalid")) as send:
        assert send().fate is Fate.DELIVERED
    ((path, headers, _),) = receiver.requests
    assert path == "http://collector.invalid:80/v1/logs"
    assert headers["proxy-authorization"].startswith("Basic ")


def test_a_proxy_that_refuses_is_named_without_its_password(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", f"http://user:pa55word@127.0.0.1:{receiver.server_port}")
    with sending(http(443, host="collector.invalid", tls=True)) as send:
        assert send() == Answer(Fate.RETRY, "Tunnel connection failed: 501 Unsupported method ('CONNECT')")


def test_a_proxy_that_drips_takes_no_more_than_the_time_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def act(connection: socket.socket) -> None:
        connection.recv(1000)
        while True:
            connection.sendall(b"H")
            time.sleep(TIMEOUT_S / 10)

    with Peer(act) as proxy:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.port}")
        with sending(http(443, host="collector.invalid", tls=True, timeout_s=TIMEOUT_S)) as send:
            answers = in_time(send, lambda _: proxy.connections > 0)
            assert {answer.reason for answer in answers} == {TIMED_OUT}
            assert proxy.ended.wait(PATIENCE_S)


def test_a_netrc_does_not_take_our_headers_place(
    receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password else\n", encoding="utf-8")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    with sending(http(receiver.server_port, otlp_headers={"authorization": TOKEN})) as send:
        send()
    with sending(http(receiver.server_port)) as send:
        send()
    assert [headers.get("authorization") for _, headers, _ in receiver.requests] == [TOKEN, None]


def test_a_receivers_cookies_are_not_kept(receiver: Receiver) -> None:
    receiver.headers["set-cookie"] = "a=b"
    with sending(http(receiver.server_port)) as send:
        send()
        send()
    assert not [headers for _, headers, _ in receiver.requests if "cookie" in headers]


def test_a_header_may_hold_any_text_but_not_a_second_header(receiver: Receiver) -> None:
    with sending(http(receiver.server_port, otlp_headers={"x-tenant": "Zürich \u2603"})) as send:
        assert send().fate is Fate.DELIVERED
    assert receiver.requests[0][1]["x-tenant"].encode("latin-1").decode() == "Zürich \u2603"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def pem(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tls") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


def server_context(authority: trustme.CA, name: str = "127.0.0.1") -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


def test_a_collector_in_tls_is_reached(authority: trustme.CA, pem: Path) -> None:
    peer = Peer(answering, server_context(authority))
    with peer, sending(http(peer.port, tls=True, otlp_certificate=pem)) as send:
        assert send() == Answer(Fate.DELIVERED)


@pytest.mark.parametrize("act", [SLOW["dripping-headers"], SLOW["dripping-body-of-a-last-answer"], SLOW["hanging"]])
def test_a_slow_collector_in_tls_takes_no_more_than_the_time_there_is(
    act: Callable[[socket.socket], None], authority: trustme.CA, pem: Path
) -> None:
    with (
        Peer(act, server_context(authority)) as peer,
        sending(http(peer.port, tls=True, timeout_s=TIMEOUT_S, otlp_certificate=pem)) as send,
    ):
        answers = in_time(send, lambda _: peer.connections > 0)
        assert {answer.reason for answer in answers} == {TIMED_OUT}
        assert peer.ended.wait(PATIENCE_S)


def test_a_handshake_that_drips_takes_no_more_than_the_time_there_is(pem: Path) -> None:
    def act(connection: socket.socket) -> None:
        connection.recv(10_000)
        connection.sendall(b"\x16\x03\x03\x40\x00\x02\x00\x3f\xf0")
        while True:
            connection.sendall(b"\0")
            time.sleep(TIMEOUT_S / 10)

    with Peer(act) as peer, sending(http(peer.port, tls=True, timeout_s=TIMEOUT_S, otlp_certificate=pem)) as send:
        answers = in_time(send, lambda _: peer.connections > 0)
        assert {answer.fate for answer in answers} == {Fate.RETRY}
        assert peer.ended.wait(PATIENCE_S)


def test_a_collector_that_nobody_vouches_for_gets_nothing(authority: trustme.CA, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    got = []
    with Peer(lambda connection: got.append(received(connection)), server_context(authority)) as peer:
        for certificate in (other, None):
            with sending(http(peer.port, tls=True, otlp_certificate=certificate)) as send:
                answer = send()
                assert answer.fate is Fate.RETRY
                assert answer.reason.startswith("TLS: certificate not trusted: ")
    assert not any(got)


def test_a_certificate_for_another_name_is_refused(authority: trustme.CA, pem: Path) -> None:
    peer = Peer(answering, server_context(authority, "localhost"))
    with peer, sending(http(peer.port, tls=True, otlp_certificate=pem)) as send:
        assert "TLS: certificate not trusted: IP address mismatch" in send().reason


def test_tls_to_a_plain_port_says_so(receiver: Receiver) -> None:
    with sending(http(receiver.server_port, tls=True)) as send:
        assert send().reason.startswith("TLS: ")


def test_our_own_certificate_is_shown(authority: trustme.CA, pem: Path, tmp_path: Path) -> None:
    context = server_context(authority)
    context.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(context)
    ours = authority.issue_cert("service")
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    ours.private_key_pem.write_to_path(str(key))
    for part in ours.cert_chain_pems:
        part.write_to_path(str(certificate), append=True)
    with Peer(answering, context) as peer:
        with sending(http(peer.port, tls=True, otlp_certificate=pem)) as send:
            assert send().fate is Fate.RETRY
        pair: dict[str, Any] = {"otlp_client_key": key, "otlp_client_certificate": certificate}
        with sending(http(peer.port, tls=True, otlp_certificate=pem, **pair)) as send:
            assert send().fate is Fate.DELIVERED


def test_the_environments_authorities_count_unless_ours_is_set(
    authority: trustme.CA, pem: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    with Peer(answering, server_context(authority)) as peer:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(pem))
        with sending(http(peer.port, tls=True)) as send:
            assert send().fate is Fate.DELIVERED
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(other))
        with sending(http(peer.port, tls=True, otlp_certificate=pem)) as send:
            assert send().fate is Fate.DELIVERED


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_certificates_file_that_is_gone_wants_an_operator(protocol: Any, pem: Path, tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.write_bytes(pem.read_bytes())
    config = AuditConfig(otlp_protocol=protocol, otlp_endpoint="https://127.0.0.1:1", otlp_certificate=path)
    transport = make(config)
    path.unlink()
    with sending(transport) as send:
        answer = send()
        assert answer.fate is Fate.PARKED
        assert "certificate" in answer.reason or "No such file" in answer.reason


# gRPC.


class GrpcReceiver:
    """A gRPC server that answers with chosen bytes, or a chosen code, message and details.

    A fake: the real Collector gives these codes only when it is broken in as many ways.
    """

    def __init__(self, port: int = 0, credentials: grpc.ServerCredentials | None = None) -> None:
        self.code: grpc.StatusCode | None = None
        self.message = ""
        self.details = b""
        self.body = b""
        self.wait_s = 0.0
        self.requests: list[tuple[dict[str, Any], bytes]] = []
        self.peers: set[str] = set()
        # Kept per handler thread and joined when the server stops.
        self._server = grpc.server(futures.ThreadPoolExecutor(4))
        handler: Any = grpc.unary_unary_rpc_method_handler(self._export)
        service = "opentelemetry.proto.collector.logs.v1.LogsService"
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": handler}),))
        address = f"127.0.0.1:{port}"
        if credentials:
            self.port = self._server.add_secure_port(address, credentials)
        else:
            self.port = self._server.add_insecure_port(address)
        self._server.start()

    def _export(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        self.requests.append((dict(context.invocation_metadata()), request))
        self.peers.add(context.peer())
        deadline = time.monotonic() + self.wait_s
        while time.monotonic() < deadline and context.is_active():
            time.sleep(0.02)
        if self.code is not None:
            if self.details:
                context.set_trailing_metadata((("grpc-status-details-bin", self.details),))
            context.abort(self.code, self.message)
        return self.body

    def stop(self) -> None:
        self._server.stop(0).wait()


@pytest.fixture
def grpc_receiver() -> Iterator[GrpcReceiver]:
    server = GrpcReceiver()
    yield server
    server.stop()


def calling(port: int, *, timeout_s: float = PATIENCE_S, **values: Any) -> Transport:
    endpoint = values.pop("otlp_endpoint", f"http://127.0.0.1:{port}")
    return make(AuditConfig(otlp_protocol="grpc", otlp_endpoint=endpoint, otlp_timeout_s=timeout_s, **values))


def code_of(receiver: GrpcReceiver, code: grpc.StatusCode, message: str = "", details: bytes = b"") -> Answer:
    receiver.code, receiver.message, receiver.details = code, message, details
    with sending(calling(receiver.port)) as send:
        return send()


def retry_info(seconds: int, nanos: int = 0) -> bytes:
    detail = AnyMessage()
    detail.Pack(RetryInfo(retry_delay=Duration(seconds=seconds, nanos=nanos)))
    return bytes(Status(code=8, message="busy", details=[AnyMessage(type_url="x/y"), detail]).SerializeToString())


@pytest.mark.parametrize("compression", ["none", "gzip", "deflate"])
def test_grpc_sends_an_otlp_request(compression: str, grpc_receiver: GrpcReceiver) -> None:
    values: dict[str, Any] = {"otlp_headers": {"Authorization": TOKEN}, "otlp_compression": compression}
    with sending(calling(grpc_receiver.port, **values)) as send:
        assert send() == Answer(Fate.DELIVERED)
        assert send() == Answer(Fate.DELIVERED)
    metadata, request = grpc_receiver.requests[0]
    assert request == REQUEST
    assert metadata["authorization"] == TOKEN
    assert metadata["user-agent"].startswith("tron-audit-otel/")
    assert len(grpc_receiver.peers) == 1, "each request would have a connection of its own"


PARKED_CODES = {"UNAUTHENTICATED", "PERMISSION_DENIED", "UNIMPLEMENTED", "NOT_FOUND"}
POISON_CODES = {"INVALID_ARGUMENT"}


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_each_grpc_code_has_its_fate(code: grpc.StatusCode, grpc_receiver: GrpcReceiver) -> None:
    fate = Fate.PARKED if code.name in PARKED_CODES else Fate.POISON if code.name in POISON_CODES else Fate.RETRY
    assert code_of(grpc_receiver, code, "why\nnot") == Answer(fate, rf"gRPC {code.name} (why\nnot)")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("RESOURCE_EXHAUSTED", "grpc: received message larger than max (5000000 vs. 4194304)"),
        ("RESOURCE_EXHAUSTED", "grpc: received message after decompression larger than max 4194304"),
        ("RESOURCE_EXHAUSTED", "SERVER: Received message larger than max (5000000 vs. 4194304)"),
        ("RESOURCE_EXHAUSTED", "gRPC message exceeds maximum size 4194304: 5000000"),
        ("RESOURCE_EXHAUSTED", "Received message exceeds the maximum configured message size."),
        ("OUT_OF_RANGE", "Error, decoded message length too large: found 5000000 bytes, the limit is: 4194304 bytes"),
        ("UNKNOWN", "Received http2 header with status: 413"),
        ("INTERNAL", "grpc: error unmarshalling request: unexpected EOF"),
        ("INTERNAL", "Exception deserializing request!"),
    ],
)
def test_a_request_that_is_too_large_or_unreadable_is_taken_apart(
    code: str, message: str, grpc_receiver: GrpcReceiver
) -> None:
    assert code_of(grpc_receiver, grpc.StatusCode[code], message).fate is Fate.POISON
    assert code_of(grpc_receiver, grpc.StatusCode[code], message, retry_info(1)).fate is Fate.RETRY


@pytest.mark.parametrize("message", ["sending queue is full", "rate exceeds the maximum", "quota too large"])
def test_a_receiver_that_is_busy_is_not_one_of_which_too_much_was_asked(
    message: str, grpc_receiver: GrpcReceiver
) -> None:
    assert code_of(grpc_receiver, grpc.StatusCode.RESOURCE_EXHAUSTED, message).fate is Fate.RETRY


def test_a_real_grpc_server_says_too_large_in_words_that_we_know() -> None:
    server = GrpcReceiver()
    with closing(calling(server.port)) as transport:
        answer = transport.send(bytes(5_000_000))
    server.stop()
    assert answer.fate is Fate.POISON
    assert answer.reason.startswith("gRPC RESOURCE_EXHAUSTED")


@pytest.mark.parametrize(
    ("details", "seconds"),
    [
        (retry_info(30, 500_000_000), 30.5),
        (retry_info(-5), 0.0),
        (b"\xff\xff", None),
        (Status(message="busy").SerializeToString(), None),
        (Status(details=[AnyMessage(type_url="a/google.rpc.RetryInfo", value=b"\xff")]).SerializeToString(), None),
    ],
    ids=["seconds", "negative", "garbage", "none", "garbage-within"],
)
@pytest.mark.parametrize("code", [grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE])
def test_a_pause_that_grpc_asks_for_is_read(
    code: grpc.StatusCode, details: bytes, seconds: float | None, grpc_receiver: GrpcReceiver
) -> None:
    answer = code_of(grpc_receiver, code, "busy", details)
    assert answer == Answer(Fate.RETRY, f"gRPC {code.name} (busy)", seconds)


def test_grpc_tells_of_a_partial_success(grpc_receiver: GrpcReceiver) -> None:
    grpc_receiver.body = rejecting(2, "no")
    with sending(calling(grpc_receiver.port)) as send:
        assert send() == Answer(Fate.POISON, "partial success: 2 rejected (no)")


@pytest.mark.parametrize("body", [b"\xff\xff", b"\0" * (ANSWER_BYTES_MAX + 1)], ids=["garbage", "too-much"])
def test_a_grpc_server_that_is_no_otlp_receiver_has_nothing(body: bytes, grpc_receiver: GrpcReceiver) -> None:
    grpc_receiver.body = body
    with sending(calling(grpc_receiver.port)) as send:
        answer = send()
        assert answer.fate is Fate.PARKED
        assert answer.reason.startswith("not an OTLP receiver")


def test_a_grpc_server_without_the_service_wants_an_operator() -> None:
    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with sending(calling(port)) as send:
        assert send() == Answer(Fate.PARKED, "gRPC UNIMPLEMENTED (Method not found!)")
    server.stop(0).wait()


def test_a_grpc_receiver_that_hangs_takes_no_more_than_the_time_there_is(grpc_receiver: GrpcReceiver) -> None:
    grpc_receiver.wait_s = STUCK_S
    with sending(calling(grpc_receiver.port, timeout_s=TIMEOUT_S)) as send:
        # Where the machine stalls while it connects, it may be this that is told first.
        answers = in_time(send, lambda answer: answer.reason.startswith("gRPC DEADLINE_EXCEEDED"))
        assert {answer.fate for answer in answers} == {Fate.RETRY}
        grpc_receiver.wait_s = 0
        assert eventually(lambda: send().fate is Fate.DELIVERED)


@pytest.mark.parametrize("act", [silent, dripping_at_once(b"H"), dripping_at_once(b"\0")])
def test_grpc_to_something_else_takes_no_more_than_the_time_there_is(act: Callable[[socket.socket], None]) -> None:
    with Peer(act) as peer, sending(calling(peer.port, timeout_s=TIMEOUT_S)) as send:
        answers = in_time(send, lambda _: peer.connections > 0)
        assert {answer.fate for answer in answers} == {Fate.RETRY}
        assert peer.ended.wait(SLACK_S), "the connection was not given up"


def test_a_grpc_receiver_that_is_back_is_reached_at_once() -> None:
    server = GrpcReceiver()
    with sending(calling(server.port)) as send:
        assert send().fate is Fate.DELIVERED
        server.stop()
        assert send().fate is Fate.RETRY  # its end of the connection may not know yet
        for _ in range(5):  # gRPC's own pause would be seconds by now
            answer = send()
            assert answer.fate is Fate.RETRY
            assert "onnection refused" in answer.reason
        server = GrpcReceiver(server.port)
        assert send().fate is Fate.DELIVERED
        server.stop()


def test_a_connection_that_a_grpc_receiver_closed_meanwhile_is_no_outage() -> None:
    server = GrpcReceiver()
    with sending(calling(server.port)) as send:

        def is_none() -> bool:
            nonlocal server
            assert send().fate is Fate.DELIVERED
            server.stop()
            server = GrpcReceiver(server.port)
            return send().fate is Fate.DELIVERED

        # More than once only where the machine stalls: until our end knows, what is sent is lost.
        assert eventually(is_none)
    server.stop()


def test_closing_ends_a_call_at_once(grpc_receiver: GrpcReceiver) -> None:
    grpc_receiver.wait_s = STUCK_S
    transport = calling(grpc_receiver.port, timeout_s=STUCK_S)
    with futures.ThreadPoolExecutor(1) as pool:
        answer = pool.submit(transport.send, REQUEST)
        assert eventually(lambda: bool(grpc_receiver.requests))
        transport.close()
        assert answer.result(PATIENCE_S).fate is Fate.RETRY
    assert transport.send(REQUEST) == Answer(Fate.RETRY, "closed")


def test_no_error_of_grpc_gets_past(grpc_receiver: GrpcReceiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fakes an error that nobody thought of."""
    with sending(calling(grpc_receiver.port)) as send:
        with monkeypatch.context() as patched:
            patched.setattr(otlp_grpc, "_channel", raising(SystemExit("s3cret")))
            assert send() == Answer(Fate.RETRY, "SystemExit")
        assert send().fate is Fate.DELIVERED


@pytest.mark.parametrize("name", ["x-tenant", "x-tenant-bin"])
def test_a_header_that_grpc_does_not_take_is_not_shown(name: str, grpc_receiver: GrpcReceiver) -> None:
    with sending(calling(grpc_receiver.port, otlp_headers={name: "s3cret\u2603"})) as send:
        answer = send()
        assert answer.fate in (Fate.PARKED, Fate.RETRY)
        assert "s3cret" not in answer.reason
        assert grpc_receiver.requests == []


def test_grpc_in_tls(authority: trustme.CA, pem: Path, tmp_path: Path) -> None:
    issued = authority.issue_cert("localhost")
    chain = b"".join(part.bytes() for part in issued.cert_chain_pems)
    credentials = grpc.ssl_server_credentials([(issued.private_key_pem.bytes(), chain)])
    server = GrpcReceiver(credentials=credentials)
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    for endpoint in (f"https://localhost:{server.port}", f"localhost:{server.port}"):
        with sending(calling(0, otlp_endpoint=endpoint, otlp_certificate=pem)) as send:
            assert send() == Answer(Fate.DELIVERED)
    with sending(calling(0, otlp_endpoint=f"https://localhost:{server.port}", otlp_certificate=other)) as send:
        answer = send()
        assert answer.fate is Fate.RETRY
        assert "CERTIFICATE_VERIFY_FAILED: unable to get local issuer certificate" in answer.reason
    server.stop()


@pytest.mark.parametrize(
    ("endpoint", "insecure_set", "insecure"),
    [
        ("http://collector:4317", False, True),
        ("https://collector:4317", False, False),
        ("https://collector:4317", True, False),
        ("collector:4317", False, False),
        ("collector:4317", True, True),
    ],
)
def test_grpc_is_insecure_only_where_that_was_said(
    endpoint: str,
    insecure_set: bool,
    insecure: bool,
    grpc_receiver: GrpcReceiver,
) -> None:
    endpoint = endpoint.replace("collector:4317", f"127.0.0.1:{grpc_receiver.port}")
    with sending(calling(0, otlp_endpoint=endpoint, otlp_insecure=insecure_set)) as send:
        assert send().fate is (Fate.DELIVERED if insecure else Fate.RETRY)


def test_a_grpc_export_is_no_request_of_the_applications(
    grpc_receiver: GrpcReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looks where an instrumented client would: none is installed here."""
    seen = []
    real = grpc.insecure_channel

    def looking(*args: Any, **options: Any) -> Any:
        seen.append(is_http_instrumentation_enabled())
        return real(*args, **options)

    monkeypatch.setattr(grpc, "insecure_channel", looking)
    with sending(calling(grpc_receiver.port)) as send:
        send()
    assert seen == [False]
    assert is_http_instrumentation_enabled()
