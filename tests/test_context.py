"""What handlers say of a request, and that no request ever gets another's word."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Annotated, Any

import httpx
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Request
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient
from starlette.background import BackgroundTask
from starlette.middleware.base import BaseHTTPMiddleware

import tron_audit_otel as audit
from tests.test_endings import pass_on
from tron_audit_otel.testing import capture

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import ASGIApp, Receive, Scope, Send

BURST_REQUESTS = 2000
BURST_CONCURRENCY = 64


class User:
    """Stands for an ORM object: its e-mail changes, and later it cannot be read at all."""

    def __init__(self, email: str) -> None:
        self._email = email
        self.expired = False

    @property
    def email(self) -> str:
        if self.expired:
            raise RuntimeError("DetachedInstanceError")
        return self._email

    @email.setter
    def email(self, value: str) -> None:
        self._email = value

    def __str__(self) -> str:
        return self.email


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__

    def __bool__(self) -> bool:
        raise RuntimeError("neither")


async def authenticate(request: Request, name: str) -> str:
    await asyncio.sleep(0)
    if int(name) % 2:
        request.state.audit_actor = name
    else:
        audit.set_actor(name)
    return name


def authenticate_sync(name: str) -> str:
    audit.set_actor(name)
    return name


@pytest.mark.parametrize("base_http_middleware", [False, True], ids=["bare", "BaseHTTPMiddleware"])
def test_a_burst_never_mixes_two_requests(base_http_middleware: bool) -> None:
    app = FastAPI()
    if base_http_middleware:
        app.add_middleware(BaseHTTPMiddleware, dispatch=pass_on)

    @app.get("/async/{name}")
    async def asynchronous(name: str, user: Annotated[str, Depends(authenticate)]) -> None:
        await asyncio.sleep(0.001 * (int(name) % 3))
        audit.annotate(resource=f"things/{user}")

    @app.get("/sync/{name}")
    def synchronous(name: str, user: Annotated[str, Depends(authenticate_sync)]) -> None:
        with audit.execution(command=["echo", user], container=user) as run:
            run.finish(stdout=user, return_code=0)
        audit.annotate(resource=f"things/{user}")

    async def burst() -> None:
        limit = asyncio.Semaphore(BURST_CONCURRENCY)
        transport = httpx.ASGITransport(app)

        async def one(client: httpx.AsyncClient, number: int) -> None:
            async with limit:
                response = await client.get(f"/{'async' if number % 3 else 'sync'}/{number}")
            assert response.status_code == 200

        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            await asyncio.gather(*(one(client, number) for number in range(BURST_REQUESTS)))

    with capture(app) as seen:
        asyncio.run(burst())
    assert len(seen.records) == BURST_REQUESTS
    for record in seen.records:
        name = record["url.path"].rpartition("/")[2]
        assert record["audit.actor.id"] == name
        assert record["audit.resource"] == f"things/{name}"
        if record["url.path"].startswith("/sync"):
            assert record["process.command_args"] == ("echo", name)
            assert record["container.name"] == name
            assert record["audit.exec.stdout.text"] == name


def app_that(handler: Any) -> TestClient:
    app = FastAPI()
    app.add_api_route("/x", handler, methods=["GET", "POST"])
    return TestClient(app)


def last_record(handler: Any) -> dict[str, Any]:
    client = app_that(handler)
    with capture(client.app) as seen:  # type: ignore[arg-type] # it is the FastAPI made above
        client.get("/x")
    assert len(seen.records) == 1
    return seen.last


def test_the_actor_is_the_one_who_was_authenticated_not_the_changed_one() -> None:
    user = User("old@example.com")

    async def change_email() -> None:
        audit.set_actor(user)
        user.email = "new@example.com"
        user.expired = True

    record = last_record(change_email)
    assert record["audit.actor.id"] == "old@example.com"
    assert record["user.email"] == "old@example.com"


def test_an_actor_that_cannot_be_read_breaks_nothing() -> None:
    user = User("x")
    user.expired = True

    async def handler(request: Request) -> None:
        request.state.audit_actor = user

    assert last_record(handler)["audit.actor.id"] == "<User that has no text>"


@pytest.mark.parametrize(
    ("id", "type", "expected"),
    [
        ("alice@example.com", None, {"audit.actor.type": "user", "user.email": "alice@example.com"}),
        ("u-17", None, {"audit.actor.type": "user", "user.id": "u-17"}),
        ("token:ci", None, {"audit.actor.type": "token", "audit.actor.id": "token:ci"}),
        ("billing", "service", {"audit.actor.type": "service", "audit.actor.id": "billing", "user.id": None}),
        (17, None, {"audit.actor.id": "17"}),
        ("a\nb\u202e", None, {"audit.actor.id": "a\\nb\\u202e"}),
        ("a\ud800", None, {"audit.actor.id": "a\\ud800"}),
        ("x" * 5000, None, {"audit.actor.id": "x" * 1023 + "…"}),
    ],
)
def test_the_forms_of_an_actor(id: object, type: str | None, expected: dict[str, Any]) -> None:  # noqa: A002 - the attributes' names
    async def handler() -> None:
        audit.set_actor(id, type=type)

    record = last_record(handler)
    assert {name: record.get(name) for name in expected} == expected


def test_nobody_is_no_actor(caplog: pytest.LogCaptureFixture) -> None:
    async def handler() -> None:
        audit.set_actor(None)
        audit.claim_actor(None)

    record = last_record(handler)
    assert record["audit.actor.type"] == "anonymous"
    assert "audit.actor.claimed" not in record
    assert "the request stays anonymous" in caplog.text


@pytest.mark.parametrize("actor", [Unprintable(), "", None, 0])
def test_whatever_the_original_way_puts_there_the_record_is_written(actor: object) -> None:
    async def handler(request: Request) -> None:
        request.state.audit_actor = actor
        request.state.audit_exec_payload = actor

    assert last_record(handler)["http.response.status_code"] == 200


def test_an_execution_in_a_background_task_has_a_record_of_its_own() -> None:
    def job() -> None:
        with audit.execution(command="rm", container="app") as run:
            run.finish(return_code=1)

    async def handler(tasks: BackgroundTasks) -> None:
        audit.set_actor("alice")
        tasks.add_task(job)

    client = app_that(handler)
    with capture(client.app) as seen:  # type: ignore[arg-type]
        client.get("/x")
    request, executed = seen.records
    assert request["audit.action"] == "READ"
    assert (executed["process.command_args"], executed["process.exit.code"]) == (("rm",), 1)
    assert executed["audit.outcome"] == "failure"
    assert executed["audit.actor.id"] == "alice"


def test_an_execution_that_outlives_its_requests_record_ends_in_one_of_its_own() -> None:
    async def handler() -> StreamingResponse:
        async def output() -> AsyncIterator[bytes]:
            yield b"out"

        run = audit.execution(command="tail", container="app")
        started = run.__enter__()

        def end() -> None:
            started.finish(return_code=3)
            run.__exit__(None, None, None)

        return StreamingResponse(output(), background=BackgroundTask(end))

    client = app_that(handler)
    with capture(client.app) as seen:  # type: ignore[arg-type]
        client.get("/x")
    assert [record.get("process.exit.code") for record in seen.records] == [None, 3]
    assert {record["process.command_args"] for record in seen.records} == {("tail",)}


def test_an_execution_that_another_request_ends_is_not_in_its_name() -> None:
    app = FastAPI()
    left: list[AsyncIterator[bytes]] = []

    @app.get("/run")
    async def run() -> None:
        async def output() -> AsyncIterator[bytes]:
            with audit.execution(command="rm"):
                yield b"out"

        audit.set_actor("alice")
        left.append(output())
        await anext(left[0])

    @app.get("/other")
    async def other() -> None:
        audit.set_actor("bob")
        left.clear()  # as the garbage collector does
        await asyncio.sleep(0.01)

    client = TestClient(app)
    with capture(app) as seen, client:
        client.get("/run")
        client.get("/other")
    ended = [record for record in seen.records if record.get("error.type") == "GeneratorExit"]
    assert [(record.get("audit.actor.id"), record["audit.actor.type"]) for record in ended] == [(None, "system")]


def test_who_acts_is_told_where_a_middleware_hands_on_a_copy_of_the_state() -> None:
    app = FastAPI()

    class Copying:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await self.app({**scope, "state": dict(scope.get("state", {}))}, receive, send)

    app.add_middleware(Copying)

    @app.get("/x")
    async def handler(request: Request) -> None:
        request.state.audit_actor = "alice"
        audit.record(action="DELETE", resource="backups/42")

    with capture(app) as seen:
        TestClient(app).get("/x")
    assert [record["audit.actor.id"] for record in seen.records] == ["alice", "alice"]


def test_a_task_that_outlives_its_request_does_not_act_in_its_name() -> None:
    jobs: asyncio.Queue[str] = asyncio.Queue()
    workers: list[asyncio.Task[None]] = []

    async def work() -> None:
        while True:
            audit.record(action="DELETE", resource=f"backups/{await jobs.get()}")

    async def handler(who: str) -> None:
        audit.set_actor(who)
        if not workers:  # as applications start a worker when it is first needed
            workers.append(asyncio.create_task(work()))

    app = FastAPI()
    app.add_api_route("/x", handler)

    async def scenario() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            await client.get("/x", params={"who": "alice"})
            await client.get("/x", params={"who": "bob"})
            jobs.put_nowait("bobs")
            await asyncio.sleep(0.01)
            workers[0].cancel()

    with capture(app) as seen:
        asyncio.run(scenario())
    assert seen.last["audit.resource"] == "backups/bobs"
    assert (seen.last["audit.actor.type"], seen.last.get("audit.actor.id")) == ("system", None)
    assert "client.address" not in seen.last


def test_set_actor_outranks_the_original_way() -> None:
    async def handler(request: Request) -> None:
        request.state.audit_actor = "from-state"
        audit.set_actor("from-call")

    assert last_record(handler)["audit.actor.id"] == "from-call"


@pytest.mark.parametrize("is_left_out", [False, True], ids=["recorded", "left-out"])
def test_an_actor_of_the_original_way_acts_in_every_record_of_the_request(is_left_out: bool) -> None:
    app = FastAPI()

    def sign_in(request: Request) -> None:
        request.state.audit_actor = "alice@example.com"

    @app.get("/health" if is_left_out else "/backups", dependencies=[Depends(sign_in)])
    def effects(later: BackgroundTasks) -> None:
        audit.record(action="DELETE", resource="backups/42")
        for command in ("first", "second"):
            with audit.execution(command=[command]):
                pass
        later.add_task(audit.record, action="DELETE", resource="backups/43")

    with capture(app) as seen:
        TestClient(app).get("/health" if is_left_out else "/backups")
    assert [record.get("audit.actor.id") for record in seen.records] == ["alice@example.com"] * 4


def test_a_claimed_name_is_kept_apart_from_the_actor() -> None:
    async def login() -> None:
        audit.claim_actor("mallory@example.com")
        audit.annotate(action="LOGIN", resource="users/mallory")
        raise HTTPException(401)

    record = last_record(login)
    assert record["audit.actor.type"] == "anonymous"
    assert "audit.actor.id" not in record
    assert record["audit.actor.claimed"] == "mallory@example.com"
    assert record["audit.action"] == "LOGIN"
    assert record["audit.outcome"] == "failure"
    assert (record["audit.target.type"], record["audit.target.id"]) == ("users", "mallory")


def test_an_outcome_that_the_status_does_not_tell() -> None:
    async def handler() -> None:
        audit.annotate(outcome="failure")

    record = last_record(handler)
    assert record["audit.outcome"] == "failure"
    assert record["http.response.status_code"] == 200


def test_wrong_words_are_logged_and_break_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def handler() -> None:
        audit.set_actor("alice", type="usr")
        audit.annotate(action="log in", outcome="good")
        with audit.execution(command=5, container=object()) as run:  # type: ignore[arg-type]
            run.finish(stdout=b"\xff", stderr=5, return_code="one")  # type: ignore[arg-type]

    record = last_record(handler)
    assert record["audit.actor.id"] == "alice"
    assert record["audit.action"] == "OTHER"
    assert record["audit.outcome"] == "success"
    assert record["process.command_args"] == ("5",)
    assert record["audit.exec.stdout.text"] == "\\udcff"
    assert [line.getMessage() for line in caplog.records if line.levelno == logging.ERROR] == [
        "actor type must be one of user, service, token, system, anonymous; what was given is left out",
        "action must be capital letters, digits and underscores; what was given is recorded as OTHER",
        "outcome must be one of success, failure, unknown; what was given is left out",
    ]


WRONG: list[Any] = [3, b"LOGIN", None, [], {}, object(), Unprintable(), "\ud800", "x" * 10_000]


def say_all_wrong(value: Any) -> None:
    audit.set_actor(value)
    audit.set_actor("alice", type=value)
    audit.claim_actor(value)
    audit.annotate(action=value, resource=value, outcome=value)
    audit.record(action=value, resource=value, actor=value, actor_type=value, outcome=value)
    with audit.execution(command=value, container=value) as run:
        run.finish(stdout=value, stderr=value, return_code=value)
        run.fail(value, value)


@pytest.mark.parametrize("value", WRONG, ids=lambda value: type(value).__name__)
def test_no_call_raises_whatever_it_is_given(value: Any) -> None:
    async def handler() -> None:
        say_all_wrong(value)

    client = app_that(handler)
    with capture(client.app) as seen:  # type: ignore[arg-type]
        assert client.get("/x").status_code == 200
        say_all_wrong(value)
    assert len(seen.records) == 4


@pytest.mark.parametrize("value", WRONG, ids=lambda value: type(value).__name__)
def test_no_call_does_anything_where_audit_is_off(value: Any, caplog: pytest.LogCaptureFixture) -> None:
    say_all_wrong(value)
    assert caplog.records == []


def test_a_second_execution_has_a_record_of_its_own() -> None:
    async def handler() -> None:
        audit.set_actor("alice")
        with audit.execution(command="ls", container="first") as run:
            run.finish(return_code=0)
        with audit.execution(command="rm", container="second") as run:
            run.finish(return_code=3)

    client = app_that(handler)
    with capture(client.app) as seen:  # type: ignore[arg-type]
        client.post("/x")
    second, first = seen.records
    assert (first["container.name"], first["audit.outcome"], first["url.path"]) == ("first", "success", "/x")
    assert (second["container.name"], second["audit.outcome"]) == ("second", "failure")
    assert second["audit.actor.id"] == "alice"
    assert second["client.address"] == first["client.address"]
    assert [record.event_name for record in seen.log_records] == ["tron.audit.exec", "tron.audit.exec"]


def test_a_fact_within_a_request_has_its_actor_and_a_record_of_its_own() -> None:
    async def handler() -> None:
        audit.set_actor("alice")
        audit.record(action="DELETE", resource="backups/42")

    client = app_that(handler)
    with capture(client.app) as seen:  # type: ignore[arg-type]
        client.get("/x")
    fact, request = seen.records
    assert request["audit.action"] == "READ"
    assert fact["audit.action"] == "DELETE"
    assert (fact["audit.target.type"], fact["audit.target.id"]) == ("backups", "42")
    assert fact["audit.actor.id"] == "alice"
    assert "http.request.method" not in fact
    assert seen.log_records[0].event_name == "tron.audit.event"
    assert seen.log_records[0].body == "alice DELETE backups/42 from testclient: success"


def test_a_fact_outside_any_request_is_the_systems() -> None:
    app = FastAPI()
    with capture(app) as seen:
        audit.record(action="DELETE", resource="backups/42")
        audit.record(action="DELETE", resource="backups/43", actor="cron", actor_type="service", outcome="failure")
    assert [(record["audit.actor.type"], record.get("audit.actor.id")) for record in seen.records] == [
        ("system", None),
        ("service", "cron"),
    ]
    assert seen.last["audit.outcome"] == "failure"


def test_every_call_does_nothing_where_audit_is_off() -> None:
    audit.set_actor("alice")
    audit.claim_actor("alice")
    audit.annotate(action="LOGIN", resource="x", outcome="success")
    audit.record(action="DELETE", resource="backups/42")
    with audit.execution(command=["ls"]) as run:
        run.finish(return_code=0)
    assert run.execution.command == ("ls",)
