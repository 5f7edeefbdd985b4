"""What is kept of a request until its record is made, and who still holds it: the record is made later, elsewhere."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import weakref
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import BackgroundTasks, FastAPI

import tron_audit_otel as audit
from tests.asgi import Peer, drive, http_scope
from tests.garbage import uncollected
from tron_audit_otel.commitment import Commitments
from tron_audit_otel.context import Recorder
from tron_audit_otel.exchange import Audit
from tron_audit_otel.middleware import AuditMiddleware, ErrorObserver
from tron_audit_otel.policy import Match, Policy, Rule
from tron_audit_otel.testing import capture

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.types import ASGIApp, Receive, Scope, Send

    from tron_audit_otel.event import AuditEvent, Fact


class Headers(list[tuple[bytes, bytes]]):
    """A list that can be referred to weakly, as can the other classes here."""


class Connection(dict[str, Any]):
    pass


class User:
    def __init__(self, name: str) -> None:
        self.name = name

    def __str__(self) -> str:
        return self.name


def observed(app: ASGIApp, facts: list[Fact]) -> ASGIApp:
    return AuditMiddleware(ErrorObserver(app), Audit(Policy(), Recorder(facts.append)), bool, bool)


async def answer(send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"x"})


def recorded(app: ASGIApp, scope: Scope, change: Callable[[], object] = bool) -> AuditEvent:
    """Serves one request; its event is made after ``change``."""
    facts: list[Fact] = []
    assert asyncio.run(drive(observed(app, facts), scope, Peer())) is None
    change()
    (fact,) = facts
    return fact.event()


def test_a_queued_fact_keeps_nothing_of_its_request_and_waits_for_no_collector() -> None:
    facts: list[Fact] = []
    kept: dict[str, weakref.ref[Any]] = {}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        user = User("alice")
        scope["state"]["user"] = user
        scope["path_params"] = {"user": user}
        audit.set_actor(user)
        kept["user"] = weakref.ref(user)
        await answer(send)

    async def request() -> None:
        scope = Connection(http_scope(headers=Headers([(b"authorization", b"s3cret")])))
        kept.update(scope=weakref.ref(scope), headers=weakref.ref(scope["headers"]))
        await drive(observed(app, facts), scope, Peer())

    with uncollected():
        asyncio.run(request())
        assert [name for name, reference in kept.items() if reference() is not None] == []
    assert len(facts) == 1
    assert "s3cret" not in repr(facts)


def test_a_task_that_outlives_its_request_does_not_keep_its_headers() -> None:
    held: list[object] = []
    kept: list[weakref.ref[Any]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        held.extend((contextvars.copy_context(), receive, send))  # as each task has one, and many have the others
        kept.append(weakref.ref(scope["headers"]))
        await answer(send)

    async def request() -> None:
        await drive(observed(app, []), http_scope(headers=Headers([(b"authorization", b"s3cret")])), Peer())

    asyncio.run(request())
    gc.collect()
    assert kept[0]() is None


def test_a_body_that_comes_after_the_record_is_not_kept() -> None:
    held: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        held.append(receive)
        await answer(send)

    async def request() -> None:
        peer = Peer([{"type": "http.request", "body": b"s3cret", "more_body": True}])
        await drive(observed(app, []), http_scope("POST", "/exec"), peer)
        await held[0]()

    asyncio.run(request())
    assert held[0].__self__._body is None


def test_what_changes_after_the_end_changes_no_record() -> None:
    params: dict[str, Any] = {"user": User("alice")}
    scope = http_scope(headers=[(b"user-agent", b"curl")])

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        scope["path_params"] = params
        scope["route"] = SimpleNamespace(path="/users/{user}")
        await answer(send)

    def change() -> None:
        params["user"].name = "mallory"
        params["user"] = "mallory"
        scope["headers"][:] = [(b"x-forwarded-for", b"198.51.100.1")]
        scope.update(path="/else", raw_path=b"/else", client=None, method="DELETE", path_params={})

    event = recorded(app, scope, change)
    assert event.resource.name == "users/alice"
    assert event.request is not None
    assert (event.request.method, event.request.path, event.request.user_agent) == ("GET", "/", "curl")
    assert event.source is not None
    assert (event.source.address, event.source.suspect) == ("192.0.2.7", False)


async def plain(_scope: Scope, _receive: Receive, send: Send) -> None:
    await answer(send)


def test_of_two_user_agents_the_first_is_recorded() -> None:
    event = recorded(plain, http_scope(headers=[(b"user-agent", b"first"), (b"user-agent", b"second")]))
    assert event.request is not None
    assert event.request.user_agent == "first"


def test_a_middleware_that_strips_a_forwarding_header_leaves_the_peer_suspect() -> None:
    async def stripping(scope: Scope, receive: Receive, send: Send) -> None:
        scope["headers"].clear()
        await plain(scope, receive, send)

    event = recorded(stripping, http_scope(headers=[(b"x-forwarded-for", b"198.51.100.1")]))
    assert event.source is not None
    assert event.source.suspect


def test_a_parameter_without_a_value_is_a_dash() -> None:
    async def app(scope: Scope, _receive: Receive, send: Send) -> None:
        scope["path_params"] = {"user": None}
        scope["route"] = SimpleNamespace(path="/users/{user}")
        await answer(send)

    assert recorded(app, http_scope()).resource.name == "users/-"


# --- requests that have no record


def run(*, command: str) -> None:
    with audit.execution(command=[command], container="app") as running:
        running.finish(return_code=0)


def records_of(path: str, handler: Callable[..., Awaitable[None]]) -> list[dict[str, Any]]:
    app = FastAPI()
    app.add_api_route(path, handler)
    with capture(app) as seen:
        assert asyncio.run(drive(app, http_scope(path=path), Peer())) is None
    return seen.records


@pytest.mark.parametrize("path", ["/health", "/recorded"])
def test_a_background_task_of_any_request_has_its_executions_on_record(path: str) -> None:
    async def handler(tasks: BackgroundTasks) -> None:
        audit.set_actor("alice")
        tasks.add_task(run, command="later")

    executed = [record for record in records_of(path, handler) if record["audit.action"] == "EXEC"]
    assert [record["process.command_args"] for record in executed] == [("later",)]
    assert executed[0]["audit.actor.id"] == "alice"


@pytest.mark.parametrize("path", ["/health", "/recorded"])
def test_a_task_that_outlives_any_request_has_its_executions_on_record(path: str) -> None:
    app = FastAPI()
    answered = asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def later() -> None:
        await answered.wait()
        run(command="later")

    async def handler() -> None:
        tasks.append(asyncio.create_task(later()))

    async def serve() -> None:
        await drive(app, http_scope(path=path), Peer())
        answered.set()
        await tasks[0]

    app.add_api_route(path, handler)
    with capture(app) as seen:
        asyncio.run(serve())
    assert seen.last["audit.action"] == "EXEC"
    assert seen.last["process.command_args"] == ("later",)


def test_what_an_excluded_request_says_is_on_record_but_itself() -> None:
    async def handler() -> None:
        audit.set_actor("alice")
        audit.record(action="DELETE", resource="backups/42")

    (record,) = records_of("/health", handler)
    assert (record["audit.action"], record["audit.actor.id"]) == ("DELETE", "alice")
    assert record["client.address"] == "192.0.2.7"


def test_an_exception_in_an_excluded_request_reaches_the_server_and_leaves_the_scope_as_it_was() -> None:
    async def fails(scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError

    facts: list[Fact] = []
    scope = http_scope(path="/health")
    before = dict(scope)
    assert isinstance(asyncio.run(drive(observed(fails, facts), scope, Peer())), ValueError)
    assert facts == []
    assert scope == before


def test_an_application_that_is_mounted_in_an_excluded_request_adds_no_record() -> None:
    facts: list[Fact] = []
    inner = AuditMiddleware(plain, Audit(Policy(()), Recorder(facts.append)), bool, bool)
    assert asyncio.run(drive(observed(inner, facts), http_scope(path="/health"), Peer())) is None
    assert facts == []


def test_a_recorded_rule_before_them_does_not_switch_the_default_exclusions_off() -> None:
    facts: list[Fact] = []
    rules = (Rule(name="files", match=Match(route=("/files/**",))), *Policy().rules[:-1])
    app = AuditMiddleware(plain, Audit(Policy(rules), Recorder(facts.append)), bool, bool)
    assert asyncio.run(drive(app, http_scope(path="/health"), Peer())) is None
    assert facts == []


@pytest.mark.parametrize("raw", [True, False], ids=["raw-path", "no-raw-path"])
def test_what_waits_is_bounded_whatever_a_client_writes_and_the_cut_shows(raw: bool) -> None:
    facts: list[Fact] = []
    long = "x" * 60_000

    async def routed(scope: Scope, receive: Receive, send: Send) -> None:
        scope["path_params"] = {"a": long, "b": long.encode()}
        await plain(scope, receive, send)

    headers = [(b"user-agent", long.encode())]
    path = {"raw_path": f"/{long}".encode() if raw else None}
    app = AuditMiddleware(routed, Audit(Policy(), Recorder(facts.append)), bool, bool)
    scope = http_scope(long.upper(), f"/{long}", headers=headers, **path)
    assert asyncio.run(drive(app, scope, Peer())) is None
    [fact] = facts
    assert len(repr(fact)) < 10_000
    request = fact.event().request
    assert request is not None
    assert request.user_agent == "x" * 1023 + "…"
    assert request.path == "/" + "x" * 1022 + "…"
    assert request.method_original == "X" * 1023 + "…"


# --- commitments


@pytest.mark.parametrize("settles", [True, False], ids=["settled", "over"])
def test_two_tasks_can_wait_for_one_record(settles: bool) -> None:
    """The task that sends the answer, and the one whose request it is."""

    async def wait() -> list[bool]:
        commitments = Commitments()
        commitment = commitments.promise("id")
        waiting = [asyncio.create_task(commitment.wait(60 if settles else 0.05)) for _ in range(2)]
        await asyncio.sleep(0.01)
        if settles:
            commitments.settle(["id"], kept=True)
        return await asyncio.wait_for(asyncio.gather(*waiting), 30)

    assert asyncio.run(wait()) == [settles, settles]


def test_a_wait_that_was_cancelled_can_begin_again_and_one_that_is_over_ends_at_once() -> None:
    async def wait() -> None:
        commitments = Commitments()
        commitment = commitments.promise("id")
        cancelled = asyncio.create_task(commitment.wait(5))
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        assert not await commitment.wait(0)
        commitments.settle(["id"], kept=True)
        assert await commitment.wait(5)
        assert await commitment.wait(0)

    asyncio.run(wait())
