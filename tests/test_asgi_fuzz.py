"""P5: no input makes the middleware raise, block or grow, whatever a client, an application or a server does."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import traceback
import tracemalloc
from collections import deque
from contextlib import contextmanager
from contextvars import Context
from dataclasses import fields, replace
from random import Random
from typing import TYPE_CHECKING, Any, NoReturn

import anyio
import pytest
from fastapi import FastAPI
from hypothesis import given, settings
from starlette.concurrency import run_in_threadpool
from starlette.responses import PlainTextResponse, Response

import tron_audit_otel as audit
from tests import asgi_hostile
from tests.asgi import Peer, drive, http_scope, websocket_scope
from tests.asgi_fuzz import SECONDS_MAX, Conversation, Seen, conversation_of, conversations, converse, copying, shown
from tests.hostile import fuzzed
from tron_audit_otel.commitment import Commitments
from tron_audit_otel.context import Recorder
from tron_audit_otel.encoder import encode
from tron_audit_otel.errors import JournalError
from tron_audit_otel.exchange import NO_ROOM, Audit, refusal_headers
from tron_audit_otel.log_record import to_log_record
from tron_audit_otel.middleware import AuditMiddleware, ErrorObserver
from tron_audit_otel.policy import DEFAULT_RULES, Match, Policy, Rule
from tron_audit_otel.redact import NO_KEY, Redactor
from tron_audit_otel.seen import Seen as Request
from tron_audit_otel.testing import Captured, capture

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Iterator

    from starlette.types import ASGIApp, Receive, Scope, Send

    from tron_audit_otel.commitment import Commitment
    from tron_audit_otel.event import Fact

CONVERSATIONS = 400
"""By the plain generator, in each mode; about 1 ms each."""

EXAMPLES = 60
"""By Hypothesis, in each mode; about 15 ms each."""

RECORD_BYTES_MAX = 65_536

MESSAGES = 4_000
GROWTH_BYTES_MAX = 300_000
"""What a request may hold once it has begun: a body's head of 64 KiB, and what caches fill up to."""

RULES = Policy(
    (
        Rule(name="socket", match=Match(path=("/text",)), headers=("user-agent", "x-forwarded-for", "authorization")),
        Rule(name="ours", match=Match(status=("4xx",)), resource="users/{actor}/{a}", command=("body.command",)),
        *DEFAULT_RULES,
    )
)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """What is logged of a hundred thousand wrong arguments."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def fail(*_: object) -> NoReturn:
    raise OSError


def commits(_: Fact) -> None:
    """Stands for a trail's own way to commit."""


class Trail:
    """Takes facts, and makes records of them as the journal's thread does; commits them as it is told."""

    def __init__(self, *, kept: bool | None = None, redactor: Redactor = NO_KEY, **given: Any) -> None:
        """Makes what requests are audited with.

        Args:
            kept: Whether a record that an answer waits for comes to be on disk; None: it is never known.
            redactor: The recorder's.
            given: The audit's.
        """
        self.can_commit = given.get("commit") is not fail
        self.requests = self.others = self.lost = 0
        self.broken: str | None = None
        self._kept = kept
        self._commitments = Commitments()
        if given.get("commit") is commits:
            given["commit"] = self.commit
        self.audit = Audit(RULES, Recorder(self.emit, redactor=redactor), lose=self.lose, **given)

    def lose(self) -> None:
        self.lost += 1

    def emit(self, fact: Fact) -> None:
        try:
            event = fact.event()
            assert len(encode(event, 1, RECORD_BYTES_MAX)) <= RECORD_BYTES_MAX
            to_log_record(event)
        except Exception:  # noqa: BLE001 - it is said when nobody is there to catch it
            self.broken = traceback.format_exc()  # the exception itself would hold the scope
        if isinstance(fact, Request):
            self.requests += 1
        else:
            self.others += 1

    def commit(self, fact: Fact) -> Commitment:
        self.emit(fact)
        commitment = self._commitments.promise(fact.record_id)
        if self._kept is not None:
            asyncio.get_running_loop().call_soon(self._settle, fact.record_id, self._kept)
        return commitment

    def _settle(self, record_id: str, kept: bool) -> None:
        self._commitments.settle([record_id], kept=kept)

    def wrap(self, conversation: Conversation) -> Callable[[ASGIApp], ASGIApp]:
        return lambda app: AuditMiddleware(copying(ErrorObserver(app), conversation), self.audit, bool, bool)


def bare(conversation: Conversation) -> Callable[[ASGIApp], ASGIApp]:
    return lambda app: copying(app, conversation)


def differing(expected: Seen, seen: Seen) -> dict[str, tuple[object, object]]:
    pairs = {each.name: (getattr(expected, each.name), getattr(seen, each.name)) for each in fields(Seen)}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def may_have_none(conversation: Conversation) -> bool:
    """Whether the policy excludes it, or a slash redirect stands for it."""
    excluded = {("path", "health"), ("headers", "preflight")} & set(conversation.fields)
    return bool(excluded) or any("slash redirect" in what for _, what in conversation.steps)


def is_recorded(conversation: Conversation) -> bool:
    return conversation.type in ("http", "websocket") and conversation.shape != "proxy"


def check_records(trail: Trail, conversation: Conversation) -> None:
    """No record is lost where any can be made, and no request has two."""
    if trail.broken is not None:
        raise AssertionError(trail.broken)
    if not is_recorded(conversation):
        assert (trail.requests, trail.lost) == (0, conversation.type in ("http", "websocket"))
    else:
        assert trail.requests + trail.lost in ((0, 1) if may_have_none(conversation) else (1,))
        assert not trail.lost or not trail.can_commit


async def batch(conversation: Conversation) -> None:
    """Nobody can tell an audited application from a bare one."""
    trail = Trail()
    expected = await converse(conversation, bare(conversation))
    seen = await converse(conversation, trail.wrap(conversation))
    assert seen == expected, differing(expected, seen)
    check_records(trail, conversation)


class BrokenRedactor(Redactor):
    """Fails wherever a request's own data are looked at; what handlers tell is looked at by `tokens`, which cannot."""

    block = command = header = line = masked = asgi_hostile.refuse


async def failing_trail(conversation: Conversation) -> None:
    """Nor where no record can be made or taken at all."""

    trail = Trail(redactor=BrokenRedactor())
    expected = await converse(conversation, bare(conversation))
    seen = await converse(conversation, trail.wrap(conversation))
    assert seen == expected, differing(expected, seen)


def kind_and_completes(message: Any) -> tuple[str | None, bool]:
    """A message's type, and whether a client could take an answer for whole after it; of one that was :func:`shown`."""
    told = dict(message) if isinstance(message, list) and all(type(each) is tuple for each in message) else {}
    kind = told.get("type")
    more = told.get("more_body", False)
    completes = kind in ("http.response.pathsend", "websocket.close") or (
        kind in ("http.response.body", "http.response.zerocopysend", "websocket.http.response.body") and not more
    )
    return (kind if type(kind) is str else None), completes


def is_http_1_0(conversation: Conversation) -> bool:
    return ("http_version", "1.0") in conversation.fields or ("change", "set http_version") in conversation.steps


def joined(messages: list[Any]) -> list[Any]:
    """One message for all parts of a body: an answer that ends with its connection is cut in others."""
    others = [message for message in messages if kind_and_completes(message)[0] != "http.response.body"]
    bodies = [dict(message).get("body") for message in messages if message not in others]
    return [others, b"".join(body for body in bodies if type(body) is bytes)]


async def kept(conversation: Conversation, trail: Trail) -> None:
    """An answer that waits for its record is the bare application's, but for a start that an exception outruns."""
    expected = await converse(conversation, bare(conversation))
    seen = await converse(conversation, trail.wrap(conversation))
    check_records(trail, conversation)
    check_held(conversation, expected, seen)


def check_held(conversation: Conversation, expected: Seen, seen: Seen) -> None:
    """What the server and the application saw is what they saw without audit, though some of it later."""
    assert seen.left == 0
    assert seen.is_kept == expected.is_kept
    if conversation.send_fails is not None or conversation.is_strict:
        return  # whatever it refuses, it refuses later
    gone = expected.sent[:-1] if is_start(expected.sent[-1:]) else expected.sent
    if (
        expected.ended is not None
        and (not is_http_1_0(conversation) or not expected.sent)
        and (seen.sent != expected.sent or not is_start(gone))
    ):
        # A start that an exception outruns never goes out. With nothing gone out, an answer can tell of the exception.
        assert seen.sent[: len(gone)] == gone
        assert len(seen.sent) <= len(gone) + (0 if is_start(gone) else 2)
        return
    if is_http_1_0(conversation):
        assert joined(seen.sent) == joined(expected.sent)
    else:
        assert seen.sent == expected.sent
    for told in ("scope", "received", "steps", "ended", "is_own", "is_marked"):
        assert getattr(seen, told) == getattr(expected, told), differing(expected, seen)


def is_start(messages: list[Any]) -> bool:
    return any(kind_and_completes(message)[0] == "http.response.start" for message in messages)


REFUSALS: tuple[list[Any], ...] = (
    [],
    [
        shown({"type": "http.response.start", "status": 503, "headers": refusal_headers()}),
        shown({"type": "http.response.body", "body": NO_ROOM}),
    ],
    [
        shown({"type": "websocket.http.response.start", "status": 503, "headers": refusal_headers()}),
        shown({"type": "websocket.http.response.body", "body": NO_ROOM}),
    ],
    [shown({"type": "websocket.close", "code": 1013})],
)


async def not_kept(conversation: Conversation, trail: Trail) -> None:
    """Without a record no client has a whole answer: what it has is a beginning, or a 503 in its place."""
    expected = await converse(conversation, bare(conversation))
    seen = await converse(conversation, trail.wrap(conversation))
    check_records(trail, conversation)
    assert (seen.left, seen.is_kept) == (0, expected.is_kept)
    if conversation.send_fails is not None or conversation.is_strict or is_http_1_0(conversation):
        return
    if not is_recorded(conversation) or may_have_none(conversation):
        return
    passed = sum(1 for ours, theirs in zip(seen.sent, expected.sent, strict=False) if ours == theirs)
    refusal = next(each for each in REFUSALS if seen.sent == [*expected.sent[:passed], *each])
    kinds = [kind_and_completes(message) for message in seen.sent[:passed]]
    ours = f"{conversation.type}."
    assert not any(completes for kind, completes in kinds if str(kind).startswith(ours))
    if refusal and conversation.type == "http":
        assert not any(kind == "http.response.start" for kind, _ in kinds)
    # In a group where it was sent in a task.
    assert seen.ended in (None, expected.ended) or seen.ended[0] in (JournalError, ExceptionGroup)  # type: ignore[index]


async def refused(conversation: Conversation, trail: Trail) -> None:
    """A request for whose record there is no place gets a 503, and nothing else of it happens."""
    conversation = replace(conversation, send_fails=None, is_strict=False)
    seen = await converse(conversation, trail.wrap(conversation))
    assert trail.requests == trail.lost == 0 or not is_recorded(conversation)
    if is_recorded(conversation) and not may_have_none(conversation):
        assert seen.scope is None
        assert seen.ended is None
        assert seen.sent in REFUSALS[1:]


def held(*, kept: bool | None, **given: Any) -> Trail:
    return Trail(kept=kept, **{"commit": commits, "commits_all": True, "commit_seconds_max": 30.0, **given})


MODES: dict[str, Callable[[Conversation], Awaitable[None]]] = {
    "batch": batch,
    "a hostile redactor": failing_trail,
    "response": lambda of: kept(of, held(kept=True)),
    "response, by a rule": lambda of: kept(of, held(kept=True, commits_all=False)),
    "response, open, refused": lambda of: kept(of, held(kept=False, fails_open=True)),
    "response, open, fails": lambda of: kept(of, held(kept=False, fails_open=True, commit=fail)),
    "response, refused": lambda of: not_kept(of, held(kept=False)),
    "response, too late": lambda of: not_kept(of, held(kept=None, commit_seconds_max=0.0)),
    "rejected": lambda of: refused(of, Trail(admit=lambda: None)),
    "admission fails": lambda of: refused(of, Trail(admit=fail)),
}


@contextmanager
def said(conversation: Conversation) -> Iterator[None]:
    """Names the conversation that went wrong."""
    try:
        yield
    except Exception as error:
        error.add_note(repr(conversation))
        raise


@pytest.mark.parametrize("mode", MODES)
def test_an_audited_application_is_as_the_bare_one_whatever_anybody_does(mode: str) -> None:
    async def run() -> None:
        random = Random(mode)  # noqa: S311 - the same in each run
        for _ in range(CONVERSATIONS):
            conversation = conversation_of(random)
            with said(conversation):
                await MODES[mode](conversation)

    asyncio.run(run())


@pytest.mark.parametrize("mode", ["batch", "response", "response, refused"])
@settings(fuzzed, max_examples=EXAMPLES)
@given(conversation=conversations())
def test_the_plainest_conversation_that_breaks_it_is_found(mode: str, conversation: Conversation) -> None:
    asyncio.run(_run(mode, conversation))


async def _run(mode: str, conversation: Conversation) -> None:
    await MODES[mode](conversation)


class Whole:
    """A FastAPI application, whose one endpoint is a conversation's."""

    def __init__(self, **given: Any) -> None:
        """Makes it; ``handler`` answers for unhandled exceptions, the rest is FastAPI's."""
        handler = given.pop("handler", None)
        self.app = FastAPI(**given)
        self.app.router.default = self._default
        if handler is not None:
            self.app.add_exception_handler(Exception, handler)
        self._application: ASGIApp = self._default

    async def _default(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._application(scope, receive, send)

    def wrap(self, application: ASGIApp) -> ASGIApp:
        self._application = application
        return self.app


async def teapot(_: object, __: Exception) -> Response:
    return PlainTextResponse("teapot", 418)


async def helpless(_: object, error: Exception) -> Response:
    raise error


async def odd(_: object, __: Exception) -> Any:
    return asgi_hostile.HostileState()


WHOLES: dict[str, dict[str, Any]] = {
    "without a handler": {},
    "with a handler": {"handler": teapot},
    "with a handler that raises": {"handler": helpless},
    "with a handler of odd answers": {"handler": odd},
    "debugged": {"debug": True},
}


@pytest.mark.parametrize("whole", WHOLES)
def test_an_instrumented_fastapi_is_as_the_bare_one_whatever_anybody_does(whole: str) -> None:
    plain, audited = Whole(**WHOLES[whole]), Whole(**WHOLES[whole])

    async def run(trail: Captured) -> None:
        random = Random(whole)  # noqa: S311 - the same in each run
        for _ in range(CONVERSATIONS // 2):
            conversation = replace(conversation_of(random), copies=None)
            expected = await converse(conversation, plain.wrap)
            with said(conversation):
                seen = await converse(conversation, audited.wrap)
                if whole != "debugged":  # whose page shows the call stack
                    assert seen == expected, differing(expected, seen)
                names = [record.event_name for record in trail.log_records]
                requests = names.count("tron.audit.request")
                assert requests <= 1
                if is_recorded(conversation) and not may_have_none(conversation) and not executes(conversation):
                    assert requests == 1
            trail.clear()

    with capture(audited.app) as trail:
        asyncio.run(run(trail))


def executes(conversation: Conversation) -> bool:
    """Whether its record may be one of an execution."""
    names = [name for pair in (*conversation.steps, *conversation.fields) for name in pair]
    return any("exec" in name or name == "set route" for name in names)


# --- what no conversation brings about


@pytest.mark.parametrize("what", asgi_hostile.SAYINGS)
def test_nothing_that_is_said_raises(what: str) -> None:
    trail = Trail()

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        asgi_hostile.say(what)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        asgi_hostile.say(what)
        await send({"type": "http.response.body"})
        asgi_hostile.say(what)

    error = asyncio.run(drive(AuditMiddleware(ErrorObserver(app), trail.audit, bool, bool), http_scope(), Peer()))
    assert error is None
    assert trail.broken is None
    assert trail.requests == 1


def test_an_answer_that_goes_out_before_its_record_keeps_nothing_of_what_comes_after_it() -> None:
    """A disk that hangs, a policy that prefers answers, and an application that sends on and on."""
    commitments = Commitments()

    async def wait() -> int:
        commitment = commitments.promise("id")
        for _ in range(100):
            await commitment.wait(0)
        return len(gc.get_referents(*[each for each in gc.get_referents(commitment) if isinstance(each, list)]))

    assert asyncio.run(wait()) == 0


def test_a_coroutine_that_is_closed_from_outside_has_its_record_and_says_nothing() -> None:
    """By a server that drops it, or by the end of the event loop: in another context, and without a loop."""
    trail = Trail()

    async def app(_scope: Scope, receive: Receive, _send: Send) -> None:
        await receive()

    async def forever() -> Any:
        await suspended

    suspended = _Suspended()
    serving = AuditMiddleware(app, trail.audit, bool, bool)(http_scope(), forever, Peer().send)
    Context().run(serving.send, None)
    serving.close()
    assert trail.requests == 1


class _Suspended:
    def __await__(self) -> Generator[None, None, None]:
        yield


def test_the_end_of_a_lifespan_waits_for_no_thread_of_the_application() -> None:
    """An endpoint that hangs in a thread keeps it, whatever the server does; all of them may hang."""
    ended: list[bool] = []
    release = threading.Event()

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        hanging = [asyncio.create_task(run_in_threadpool(release.wait)) for _ in range(100)]
        await asyncio.sleep(0.01)
        await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        release.set()
        await asyncio.gather(*hanging)

    async def serve() -> None:
        middleware = AuditMiddleware(app, Trail().audit, fail, lambda: ended.append(True))
        with anyio.fail_after(SECONDS_MAX):
            await middleware({"type": "lifespan"}, Peer().receive, Peer().send)

    asyncio.run(serve())
    assert ended == [True]


def test_an_end_that_fails_keeps_no_server_from_stopping() -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        for message in ({}, None, {"type": "lifespan.startup.complete"}, {"type": "lifespan.shutdown.complete"}):
            await send(message)  # type: ignore[arg-type] # an application may send anything

    peer = Peer()
    middleware = AuditMiddleware(app, Trail().audit, fail, fail)
    assert asyncio.run(drive(middleware, {"type": "lifespan"}, peer)) is None
    assert len(peer.sent) == 4


@pytest.mark.parametrize("commit", ["batch", "response"])
@pytest.mark.parametrize("what", ["answers", "asks", "talks", "executes"])
def test_nothing_is_kept_of_a_message(commit: str, what: str) -> None:
    """A stream that never ends, either way, and an application that never stops recording."""
    facts: deque[Fact] = deque(maxlen=1)

    def keep(fact: Fact) -> None:
        facts.append(fact)

    waits = commit == "response"
    audited = Audit(RULES, Recorder(facts.append), commit=keep if waits else None, commits_all=waits)
    grown: list[int] = []
    body = {"type": "http.response.body", "body": b"x" * 100, "more_body": True}

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await send(
            {"type": "websocket.accept"}
            if what == "talks"
            else {"type": "http.response.start", "status": 200, "headers": []}
        )
        for index in range(MESSAGES):
            if index == MESSAGES // 5:
                gc.collect()
                tracemalloc.start()
            if what == "answers":
                await send({**body})
            elif what == "asks":
                await receive()
            elif what == "talks":
                await receive()
                await send({"type": "websocket.send", "bytes": b"x" * 100})
            else:
                audit.record(action="DELETE", resource=f"backups/{index}")
                with audit.execution(command=["ls"]) as run:
                    run.finish(stdout="x" * 100, return_code=0)
        gc.collect()
        grown.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()

    async def receive() -> Any:
        if what == "talks":
            return {"type": "websocket.receive", "bytes": b"x" * 100}
        return {"type": "http.request", "body": b"x" * 100, "more_body": True}

    async def send(_: object) -> None: ...

    scope = websocket_scope() if what == "talks" else http_scope("POST", "/pods/a/exec")
    asyncio.run(AuditMiddleware(ErrorObserver(app), audited, bool, bool)(scope, receive, send))
    assert grown[0] < GROWTH_BYTES_MAX
