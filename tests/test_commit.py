"""Under `commit: response` no client has a whole answer before its record is on disk."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from fastapi import FastAPI, Request, WebSocket
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from tests.asgi import Peer, drive, http_scope, websocket_scope
from tron_audit_otel.commitment import Commitment, Commitments
from tron_audit_otel.context import Recorder
from tron_audit_otel.errors import JournalError
from tron_audit_otel.exchange import Audit
from tron_audit_otel.middleware import AuditMiddleware, reporting
from tron_audit_otel.policy import DEFAULT_RULES, Match, Policy, Rule

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from starlette.types import Message

    from tron_audit_otel.event import Fact


pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Disk:
    """Commits from a thread of its own, or never: a fake journal, since no real one fails on demand."""

    def __init__(self, *, kept: bool | None = True) -> None:
        self.kept = kept
        self.committed: list[Fact] = []
        self.emitted: list[Fact] = []
        self.commitments = Commitments()
        self.full = False

    def commit(self, event: Fact) -> Commitment:
        commitment = self.commitments.promise(event.record_id)
        if self.kept is not None:
            threading.Timer(0.02, self._settle, [event]).start()
        return commitment

    def _settle(self, event: Fact) -> None:
        if self.kept:
            self.committed.append(event)
        self.commitments.settle([event.record_id], kept=bool(self.kept))

    def audit(self, *rules: Rule, **settings: Any) -> Audit:
        given = {"commits_all": True, "commit_seconds_max": 60.0, **settings}
        return Audit(Policy((*rules, *DEFAULT_RULES)), Recorder(self.emitted.append), commit=self.commit, **given)


class Client(Peer):
    """Notes with each message how many records were on disk when the server got it."""

    def __init__(self, disk: Disk, messages: Any = ({"type": "http.request"},)) -> None:
        super().__init__(messages)
        self.disk = disk
        self.seen: list[tuple[str, int]] = []

    async def send(self, message: Message) -> None:
        self.seen.append((message["type"].removeprefix("http.response."), len(self.disk.committed)))
        await super().send(message)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


async def pass_on(request: Request, call_next: RequestResponseEndpoint) -> Response:
    return await call_next(request)


def make_app() -> FastAPI:
    app = FastAPI()

    @app.api_route("/plain", methods=["GET", "HEAD"])
    async def plain() -> dict[str, str]:
        return {"a": "b"}

    @app.delete("/nothing", status_code=204)
    async def nothing() -> None: ...

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def chunks() -> AsyncIterator[bytes]:
            yield b"one"
            yield b"two"

        return StreamingResponse(chunks())

    @app.get("/fails")
    async def fails() -> None:
        raise ValueError("s3cret")

    @app.get("/health")
    async def health() -> str:
        return "well"

    @app.websocket("/socket")
    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.close()

    return app


async def serve(disk: Disk, audit: Audit, path: str, method: str = "GET", app: Any = None) -> Client:
    client = Client(disk)
    middleware = AuditMiddleware(app or make_app(), audit, lambda: None, lambda: None)
    await drive(middleware, http_scope(method, path), client)
    return client


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/plain", 200), ("HEAD", "/plain", 200)])
@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "in BaseHTTPMiddleware"])
async def test_nothing_of_an_answer_of_known_length_goes_out_before_its_record_is_on_disk(
    method: str, path: str, status: int, wrapped: bool
) -> None:
    disk, app = Disk(), make_app()
    if wrapped:
        app.add_middleware(BaseHTTPMiddleware, dispatch=pass_on)
    client = await serve(disk, disk.audit(), path, method, app)
    assert client.status == status
    assert {records for _, records in client.seen} == {1}


async def test_an_answer_without_a_body_waits_with_its_headers() -> None:
    disk = Disk()
    client = await serve(disk, disk.audit(), "/nothing", "DELETE")
    assert client.status == 204
    assert client.seen == [("start", 1), ("body", 1)]


async def test_a_stream_flows_and_only_its_end_waits() -> None:
    disk = Disk()
    client = await serve(disk, disk.audit(), "/stream")
    assert client.seen == [("start", 0), ("body", 0), ("body", 0), ("body", 1)]
    assert client.body == b"onetwo"


@pytest.mark.parametrize("kept", [False, None], ids=["refused by the disk", "in time"])
async def test_an_answer_whose_record_is_not_on_disk_is_withdrawn(kept: bool | None) -> None:
    disk = Disk(kept=kept)
    client = await serve(disk, disk.audit(commit_seconds_max=0.05), "/plain")
    assert client.status == 503
    assert (b"retry-after", b"1") in client.sent[0]["headers"]
    assert b'"a"' not in client.body
    assert len(client.sent) == 2


async def test_a_stream_whose_record_is_not_on_disk_never_ends_well() -> None:
    disk = Disk(kept=False)
    client = Client(disk)
    error = await drive(AuditMiddleware(make_app(), disk.audit(), int, int), http_scope("GET", "/stream"), client)
    assert isinstance(error, JournalError)
    assert all(message.get("more_body", True) for message in client.sent)


async def test_who_prefers_answers_to_records_gets_them() -> None:
    disk = Disk(kept=False)
    client = await serve(disk, disk.audit(fails_open=True), "/plain")
    assert client.status == 200


async def test_an_unhandled_exception_waits_for_its_record() -> None:
    disk = Disk()
    app = make_app()
    app.add_middleware(BaseHTTPMiddleware, dispatch=pass_on)
    stack = app.build_middleware_stack()
    stack.app = AuditMiddleware(stack.app, disk.audit(), int, int)  # type: ignore[attr-defined] # the error layer's
    client = Client(disk)
    error = await drive(stack, http_scope("GET", "/fails", app=app), client)
    assert isinstance(error, ValueError)
    assert client.status == 500
    assert client.seen == [("start", 1), ("body", 1)]


@pytest.mark.parametrize(("kept", "status"), [(True, 418), (False, 503)])
async def test_the_applications_own_answer_to_an_exception_waits_too(kept: bool, status: int) -> None:
    disk, app = Disk(kept=kept), make_app()

    async def teapot(request: Request, error: Exception) -> Response:
        return PlainTextResponse("teapot", 418)

    app.add_exception_handler(Exception, reporting(teapot))
    stack = app.build_middleware_stack()
    stack.app = AuditMiddleware(stack.app, disk.audit(has_error_handler=True), int, int)  # type: ignore[attr-defined] # as above
    client = Client(disk)
    await drive(stack, http_scope("GET", "/fails", app=app), client)
    assert client.status == status
    assert {records for _, records in client.seen} == {int(kept)}


async def test_an_exception_whose_record_is_not_on_disk_is_answered_with_503_and_still_raised() -> None:
    disk = Disk(kept=False)
    stack = make_app().build_middleware_stack()
    stack.app = AuditMiddleware(stack.app, disk.audit(), int, int)  # type: ignore[attr-defined] # as above
    client = Client(disk)
    error = await drive(stack, http_scope("GET", "/fails", app=make_app()), client)
    assert isinstance(error, ValueError)
    assert client.status == 503


async def test_a_held_start_whose_handler_then_fails_is_no_success() -> None:
    disk = Disk()

    async def breaks(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"3")]})
        raise ValueError

    client = await serve(disk, disk.audit(), "/", app=breaks)
    assert client.sent == []
    [event] = disk.committed
    request = event.event().request
    assert request is not None
    assert request.status == 500


async def test_a_held_start_without_a_body_goes_out_in_the_end() -> None:
    disk = Disk()

    async def stops(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"3")]})

    client = await serve(disk, disk.audit(), "/", app=stops)
    assert client.seen == [("start", 1)]


async def test_the_length_counts_whatever_the_application_still_sends() -> None:
    disk = Disk()

    async def long_winded(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"6")]})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await send({"type": "http.response.body", "body": b"two", "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    client = await serve(disk, disk.audit(), "/", app=long_winded)
    assert client.seen == [("start", 0), ("body", 0), ("body", 1), ("body", 1)]
    assert len(disk.committed) == 1


async def test_only_the_rule_that_asks_for_it_makes_its_answers_wait() -> None:
    disk = Disk()
    rule = Rule(name="strict", match=Match(method=("DELETE",)), commit="response")
    strict = await serve(disk, disk.audit(rule, commits_all=False), "/nothing", "DELETE")
    assert strict.seen == [("start", 1), ("body", 1)]
    await serve(disk, disk.audit(rule, commits_all=False), "/plain")
    assert len(disk.committed) == len(disk.emitted) == 1


async def test_what_has_no_record_does_not_wait() -> None:
    disk = Disk(kept=None)
    client = await serve(disk, disk.audit(), "/health")
    assert client.status == 200


async def test_a_client_that_leaves_while_its_answer_waits_leaves_nothing_behind() -> None:
    disk = Disk(kept=None)
    task = asyncio.create_task(serve(disk, disk.audit(commit_seconds_max=0.5), "/plain"))
    while not disk.commitments._open and not task.done():  # noqa: ASYNC110 - nothing there could set an event
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert disk.commitments._open
    disk.commitments.settle(list(disk.commitments._open), kept=True)
    assert not disk.commitments._open


async def test_a_websocket_closes_after_its_record_is_on_disk() -> None:
    disk = Disk()
    client = Client(disk, [{"type": "websocket.connect"}])
    await drive(AuditMiddleware(make_app(), disk.audit(), int, int), websocket_scope("/socket"), client)
    assert client.seen == [("websocket.accept", 0), ("websocket.close", 1)]


async def test_a_websocket_whose_record_is_not_on_disk_is_closed_otherwise() -> None:
    disk = Disk(kept=False)
    client = Client(disk, [{"type": "websocket.connect"}])
    await drive(AuditMiddleware(make_app(), disk.audit(), int, int), websocket_scope("/socket"), client)
    assert client.sent[1:] == [{"type": "websocket.close", "code": 1013}]


def refusing(disk: Disk) -> Audit:
    return disk.audit(admit=lambda: None)


async def test_a_request_whose_record_could_not_be_written_does_not_reach_its_handler() -> None:
    disk, called = Disk(), []

    async def handler(scope: Any, receive: Any, send: Any) -> None:
        called.append(scope)

    client = await serve(disk, refusing(disk), "/plain", app=handler)
    assert client.status == 503
    assert not called
    assert not disk.committed
    assert not disk.emitted


async def test_a_request_that_has_no_record_is_never_refused() -> None:
    disk = Disk()
    assert (await serve(disk, refusing(disk), "/health")).status == 200


async def test_a_websocket_is_refused_before_its_handshake() -> None:
    disk = Disk()
    client = Client(disk, [{"type": "websocket.connect"}])
    await drive(AuditMiddleware(make_app(), refusing(disk), int, int), websocket_scope("/socket"), client)
    assert client.sent == [{"type": "websocket.close", "code": 1013}]


@pytest.mark.parametrize(
    ("rules", "excluded"),
    [
        pytest.param([Rule(name="a", match=Match(path=("/plain",)), level="none")], True, id="by its path"),
        pytest.param([Rule(name="a", match=Match(route=("/plain",)), level="none")], False, id="by its route"),
        pytest.param([Rule(name="a", match=Match(path=("/plain",), status=("4xx",)), level="none")], False, id="if"),
        pytest.param(
            [
                Rule(name="a", match=Match(status=("500",))),
                Rule(name="b", match=Match(path=("/plain",)), level="none"),
            ],
            False,
            id="an earlier rule may record it",
        ),
        pytest.param(
            [
                Rule(name="a", match=Match(status=("500",)), level="none"),
                Rule(name="b", match=Match(path=("/plain",)), level="none"),
            ],
            True,
            id="either rule excludes it",
        ),
        pytest.param([Rule(name="a", match=Match(method=("POST",), path=("/plain",)), level="none")], False, id="no"),
    ],
)
async def test_what_is_surely_excluded(rules: list[Rule], excluded: bool) -> None:
    disk = Disk()
    client = await serve(disk, disk.audit(*rules, admit=lambda: None), "/plain")
    assert (client.status == 200) is excluded


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_commitment_wakes_its_task_on_either_event_loop(backend: str) -> None:
    async def wait() -> bool:
        commitments = Commitments()
        commitment = commitments.promise("1")
        threading.Timer(0.01, commitments.settle, [["0", "1"]], {"kept": True}).start()
        return await commitment.wait(60)

    assert anyio.run(wait, backend=backend)


def test_a_loop_that_is_closed_is_no_error() -> None:
    commitments = Commitments()

    async def promise() -> None:
        commitments.promise("1")

    anyio.run(promise)
    commitments.settle(["1"], kept=True)
    commitments.settle(["1"], kept=True)


async def test_a_json_response_with_background_work_is_held_as_any_other() -> None:
    disk = Disk()
    app = FastAPI()

    @app.get("/")
    async def root() -> JSONResponse:
        return JSONResponse({}, headers={"X-A": "b"})

    client = await serve(disk, disk.audit(), "/", app=app)
    assert client.seen == [("start", 1), ("body", 1)]


# --- what servers and applications do at the edges of ASGI


def raw(*messages: Message) -> Any:
    """An application that sends just this."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for message in messages:
            await send(message)

    return app


def start(*headers: tuple[bytes, bytes], status: int = 200) -> Message:
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def body(content: bytes | memoryview, *, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": content, "more_body": more}


async def test_a_handler_that_is_cancelled_waits_for_its_record_too() -> None:
    """Servers answer for it with a 500 of their own."""
    disk, app = Disk(), FastAPI()

    @app.get("/")
    async def root() -> None:
        task = asyncio.create_task(asyncio.sleep(10))
        task.cancel()
        await task

    client = Client(disk)
    error = await drive(AuditMiddleware(app, disk.audit(), int, int), http_scope(), client)
    assert isinstance(error, asyncio.CancelledError)
    assert len(disk.committed) == 1, "before the server could answer"


async def test_a_wait_that_a_middleware_cuts_short_is_not_over() -> None:
    disk = Disk()

    async def impatient(scope: Any, receive: Any, send: Any) -> None:
        with anyio.move_on_after(0.001):
            await send(start(status=204))
        await send(start((b"content-length", b"1"), status=200))
        await send(body(b"x"))

    client = await serve(disk, disk.audit(), "/", app=impatient)
    assert {records for _, records in client.seen} == {1}


async def test_an_error_handler_that_fails_leaves_its_answer_to_the_server_but_not_before_the_record() -> None:
    disk, app = Disk(), make_app()

    async def fails(request: Request, error: Exception) -> Response:
        raise KeyError

    app.add_exception_handler(Exception, reporting(fails))
    stack = app.build_middleware_stack()
    stack.app = AuditMiddleware(stack.app, disk.audit(has_error_handler=True), int, int)  # type: ignore[attr-defined] # as above
    error = await drive(stack, http_scope("GET", "/fails", app=app), Client(disk))
    assert isinstance(error, KeyError)
    assert len(disk.committed) == 1


async def test_an_error_handler_that_fails_is_answered_for_where_there_is_no_record() -> None:
    disk, app = Disk(kept=False), make_app()

    def fails(request: Request, error: Exception) -> Response:
        raise KeyError

    app.add_exception_handler(Exception, reporting(fails))
    stack = app.build_middleware_stack()
    stack.app = AuditMiddleware(stack.app, disk.audit(has_error_handler=True), int, int)  # type: ignore[attr-defined] # as above
    client = Client(disk)
    await drive(stack, http_scope("GET", "/fails", app=app), client)
    assert client.status == 503


@pytest.mark.parametrize("chunks", [(b"one", b"two", b""), (b"o", b"", b"n"), (b"one",)])
async def test_an_answer_that_ends_with_its_connection_lacks_its_last_byte_until_then(
    chunks: tuple[bytes, ...],
) -> None:
    disk = Disk()
    client = Client(disk)
    app = raw(start(), *[body(chunk, more=True) for chunk in chunks[:-1]], body(chunks[-1]))
    await drive(AuditMiddleware(app, disk.audit(), int, int), http_scope(http_version="1.0"), client)
    assert client.body == b"".join(chunks)
    before = b"".join(
        message.get("body", b"") for message, (_, records) in zip(client.sent, client.seen, strict=True) if not records
    )
    assert len(before) < len(client.body)


async def test_a_stream_of_events_flows_over_http_1_0_too() -> None:
    disk = Disk()
    client = Client(disk)
    app = raw(start((b"content-type", b"text/event-stream")), body(b"data: 1\n\n", more=True), body(b""))
    await drive(AuditMiddleware(app, disk.audit(), int, int), http_scope(http_version="1.0"), client)
    assert client.sent[1]["body"] == b"data: 1\n\n"


@pytest.mark.parametrize("length", [b" 3", b"3 ", b"3"])
async def test_a_length_is_read_as_servers_read_it(length: bytes) -> None:
    disk = Disk()
    client = await serve(disk, disk.audit(), "/", app=raw(start((b"content-length", length)), body(b"one", more=True)))
    assert client.seen == [("start", 1), ("body", 1)]


@pytest.mark.parametrize("length", [b"-3", b"three", b"9" * 5000, b""])
async def test_a_length_that_is_none_counts_as_none(length: bytes) -> None:
    disk = Disk()
    client = await serve(disk, disk.audit(), "/", app=raw(start((b"content-length", length)), body(b"one")))
    assert client.seen == [("start", 0), ("body", 1)]


async def test_of_two_lengths_the_client_may_believe_the_shorter() -> None:
    disk = Disk()
    lengths = start((b"content-length", b"6"), (b"content-length", b"3"))
    client = await serve(disk, disk.audit(), "/", app=raw(lengths, body(b"one", more=True), body(b"two")))
    assert client.seen[:2] == [("start", 1), ("body", 1)]


async def test_headers_that_can_be_read_once_arrive() -> None:
    disk = Disk()
    once = {"type": "http.response.start", "status": 200, "headers": iter([(b"x-a", b"b")])}
    client = await serve(disk, disk.audit(), "/", app=raw(once, {"type": "http.response.body", "body": None}))
    assert client.sent[0]["headers"] == [(b"x-a", b"b")]


async def test_a_second_start_is_the_servers_to_refuse() -> None:
    disk = Disk()
    first, second = start((b"content-length", b"1")), start((b"content-length", b"2"))
    client = await serve(disk, disk.audit(), "/", app=raw(first, second, body(b"ab")))
    assert [kind for kind, _ in client.seen] == ["start", "start", "body"]


async def test_an_early_hint_does_not_begin_the_answer() -> None:
    disk = Disk(kept=False)
    hint = {"type": "http.response.early_hint", "links": []}
    client = await serve(disk, disk.audit(), "/", app=raw(hint, start((b"content-length", b"1")), body(b"x")))
    assert [message.get("status") for message in client.sent] == [None, 503, None]


async def test_memory_views_over_http_1_0_keep_their_order() -> None:
    disk = Disk()
    app = raw(start(), *(body(part, more=True) for part in (b"abc", memoryview(b"def"), b"ghi")), body(b""))
    client = Client(disk)
    await drive(AuditMiddleware(app, disk.audit(), int, int), http_scope(http_version="1.0"), client)
    assert client.body == b"abcdefghi"
    assert client.seen[-1] == ("body", 1)


async def fails(scope: Any, receive: Any, send: Any) -> None:
    raise ValueError


async def test_a_place_is_kept_while_the_error_handler_runs() -> None:
    order: list[str] = []

    def admit() -> Callable[[], None]:
        order.append("kept")
        return lambda: order.append("let go")

    async def handler(_: Request, __: Exception) -> Response:
        order.append("handled")
        return Response(status_code=500)

    audit = Audit(Policy(), Recorder(lambda _: order.append("emitted")), admit=admit, has_error_handler=True)
    app = ServerErrorMiddleware(AuditMiddleware(fails, audit, int, int), reporting(handler))
    await drive(app, http_scope(), Peer())
    assert order == ["kept", "handled", "emitted", "let go"]


async def test_an_error_handler_that_is_closed_from_outside_does_not_wait() -> None:
    async def handler(_: Request, __: Exception) -> Response:
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    audit = replace(Disk(kept=None).audit(), has_error_handler=True)
    app = ServerErrorMiddleware(AuditMiddleware(fails, audit, int, int), reporting(handler))
    peer = Peer()
    serving = app(http_scope(), peer.receive, peer.send)
    serving.send(None)
    serving.close()


class Type(StrEnum):
    START = "http.response.start"
    BODY = "http.response.body"


async def test_a_type_may_be_any_text_that_a_server_takes() -> None:
    disk = Disk(kept=False)
    client = await serve(
        disk,
        disk.audit(),
        "/",
        app=raw({**start((b"content-length", b"1")), "type": Type.START}, {**body(b"x"), "type": Type.BODY}),
    )
    assert [message.get("status") for message in client.sent] == [503, None]


async def test_a_file_that_the_server_sends_by_itself_is_a_whole_answer() -> None:
    disk = Disk()
    sent: Message = {"type": "http.response.zerocopysend", "file": 3}
    client = await serve(disk, disk.audit(), "/", app=raw(start(), sent))
    assert client.seen == [("start", 0), ("zerocopysend", 1)]


async def test_a_head_is_answered_before_its_stream_says_anything() -> None:
    disk = Disk()
    silent = asyncio.Event()

    async def waits(scope: Any, receive: Any, send: Any) -> None:
        await send(start())
        await silent.wait()
        await send(body(b""))

    client = Client(disk)
    task = asyncio.create_task(drive(AuditMiddleware(waits, disk.audit(), int, int), http_scope("HEAD"), client))
    while not client.sent:  # noqa: ASYNC110 - nothing there could set an event
        await asyncio.sleep(0.001)
    assert client.seen == [("start", 1)]
    silent.set()
    await task


async def test_a_request_of_which_no_record_can_be_made_is_not_answered_as_if_there_were_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk = Disk()

    def broken(*_: Any) -> Any:
        raise RuntimeError

    monkeypatch.setattr("tron_audit_otel.exchange.record_id", broken)
    assert (await serve(disk, disk.audit(), "/plain")).status == 503
    assert (await serve(disk, disk.audit(fails_open=True), "/plain")).status == 200


async def test_a_commit_that_cannot_be_asked_for_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk()

    def broken(_: Fact) -> Any:
        raise RuntimeError

    monkeypatch.setattr(disk, "commit", broken)
    assert (await serve(disk, disk.audit(), "/plain")).status == 503


DENIAL: Message = {"type": "websocket.http.response.start", "status": 401, "headers": [(b"content-length", b"2")]}


@pytest.mark.parametrize(("kept", "status"), [(True, 401), (False, 503)])
async def test_a_denial_of_a_handshake_waits_as_any_answer(kept: bool, status: int) -> None:
    disk = Disk(kept=kept)
    client = Client(disk, [{"type": "websocket.connect"}])
    said: Message = {"type": "websocket.http.response.body", "body": b"no", "more_body": True}
    scope = websocket_scope(extensions={"websocket.http.response": {}})
    await drive(AuditMiddleware(raw(DENIAL, said), disk.audit(), int, int), scope, client)
    assert [message.get("status") for message in client.sent] == [status, None]
    assert {records for _, records in client.seen} == {int(kept)}


async def test_a_websocket_is_refused_with_a_503_where_the_server_can() -> None:
    disk = Disk()
    client = Client(disk, [{"type": "websocket.connect"}])
    scope = websocket_scope("/socket", extensions={"websocket.http.response": {}})
    await drive(AuditMiddleware(make_app(), refusing(disk), int, int), scope, client)
    assert client.sent[0]["status"] == 503


async def test_a_place_is_kept_until_the_record_has_taken_it_or_there_is_none() -> None:
    disk, places = Disk(), []

    def admit() -> Any:
        places.append("kept")
        return places.pop

    seen = []

    async def looks(scope: Any, receive: Any, send: Any) -> None:
        seen.append(len(places))
        await send(start())
        await send(body(b""))
        seen.append(len(places))

    await serve(disk, disk.audit(admit=admit), "/", app=looks)
    assert (seen, places) == ([1, 0], [])
    await serve(disk, disk.audit(Rule(name="none", level="none"), admit=admit), "/x", app=looks)
    assert not places


async def test_an_admission_that_fails_is_none() -> None:
    """Such as for want of a thread: nothing of what the handler would do could be on record."""

    def broken() -> Any:
        raise RuntimeError

    client = await serve(disk := Disk(), disk.audit(admit=broken), "/plain")
    assert client.status == 503


async def test_a_start_whose_body_never_comes_is_handed_on_at_the_end() -> None:
    async def stops_short(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})

    disk = Disk()
    client = await serve(disk, disk.audit(), "/plain", app=stops_short)
    assert client.seen == [("start", 1)]


async def test_a_coroutine_that_is_closed_from_outside_ends_at_once() -> None:
    async def waits(scope: Any, receive: Any, send: Any) -> None:
        await Suspended()

    class Suspended:
        def __await__(self) -> Any:
            yield

    disk = Disk(kept=None)
    client = Client(disk)
    middleware = AuditMiddleware(waits, disk.audit(), lambda: None, lambda: None)
    serving = middleware(http_scope(), client.receive, client.send)
    serving.send(None)
    serving.close()  # who waits in there gets a RuntimeError
    assert client.seen == []
