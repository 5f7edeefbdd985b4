"""P4: exactly one record for each significant request, however it ends."""

from __future__ import annotations

import asyncio
import functools
import gc
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, HTTPException, Request, Response, WebSocket
from fastapi.responses import JSONResponse, PlainTextResponse, RedirectResponse, StreamingResponse
from fastapi.testclient import TestClient
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute, Mount, Route, Router
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocketDisconnect

from tests.asgi import Peer, drive, http_scope, websocket_scope
from tests.garbage import uncollected
from tron_audit_otel import stats as counts
from tron_audit_otel.config import AuditConfig
from tron_audit_otel.testing import Captured, capture

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from starlette.middleware.base import RequestResponseEndpoint
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


class AppError(Exception):
    """An application's own; its name is in the record."""


def make_app() -> FastAPI:
    app = FastAPI()
    add_plain_routes(app)
    add_streams(app)
    add_websockets(app)
    add_routers_and_mounts(app)
    return app


def add_plain_routes(app: FastAPI) -> None:
    @app.get("/ok")
    async def ok() -> str:
        return "ok"

    @app.get("/sync")
    def sync() -> str:
        return "ok"

    @app.get("/status/{code}")
    async def status(code: int) -> Response:
        return Response(status_code=code)

    @app.get("/raise/{code}")
    async def refuse(code: int) -> None:
        raise HTTPException(code)

    async def deny() -> None:
        raise HTTPException(401)

    @app.delete("/denied/{item}", dependencies=[Depends(deny)])
    async def denied(item: str) -> None: ...

    @app.post("/validated")
    async def validated(number: int) -> int:
        return number

    @app.get("/crash")
    async def crash() -> None:
        raise AppError

    @app.get("/crash-sync")
    def crash_sync() -> None:
        raise AppError

    @app.get("/background")
    async def background(tasks: BackgroundTasks) -> str:
        tasks.add_task(asyncio.sleep, 0)
        return "ok"

    def fail() -> None:
        raise AppError

    @app.get("/background-crash")
    async def background_crash(tasks: BackgroundTasks) -> str:
        tasks.add_task(fail)
        return "ok"

    @app.get("/redirect")
    async def redirect() -> RedirectResponse:
        return RedirectResponse("/elsewhere", 307)

    @app.get("/found")
    async def found() -> RedirectResponse:
        return RedirectResponse("/elsewhere", 302)

    @app.get("/slash/")
    async def slash() -> str:
        return "ok"

    @app.get("/never")
    async def never() -> None:
        await asyncio.sleep(60)

    @app.post("/reads")
    async def reads(request: Request) -> str:
        return (await request.body()).decode()

    @app.get("/silent")
    async def silent() -> Response:
        return Silent()


class Silent(Response):
    """A broken response, which sends nothing."""

    async def __call__(self, *args: Any) -> None: ...


def add_streams(app: FastAPI) -> None:
    async def numbers() -> AsyncIterator[bytes]:
        for number in range(3):
            yield str(number).encode()

    async def broken() -> AsyncIterator[bytes]:
        yield b"0"
        raise AppError

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x"
            await asyncio.sleep(0)

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        return StreamingResponse(numbers())

    @app.get("/stream-crash")
    async def stream_crash() -> StreamingResponse:
        return StreamingResponse(broken())

    @app.get("/stream-endless")
    async def stream_endless() -> StreamingResponse:
        return StreamingResponse(endless())


def add_websockets(app: FastAPI) -> None:
    @app.websocket("/ws")
    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        try:
            while True:
                await websocket.send_text(await websocket.receive_text())
        except WebSocketDisconnect:
            pass

    @app.websocket("/ws-uncaught")
    async def uncaught(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.receive_text()

    @app.websocket("/ws-refuse")
    async def refuse(websocket: WebSocket) -> None:
        await websocket.close(1008)

    @app.websocket("/ws-policy")
    async def policy(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.close(1008)

    @app.websocket("/ws-done")
    async def done(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.close()

    @app.websocket("/ws-crash")
    async def crash(websocket: WebSocket) -> None:
        await websocket.accept()
        raise AppError

    @app.websocket("/ws-crash-early")
    async def crash_early(websocket: WebSocket) -> None:
        raise AppError

    @app.websocket("/ws-denied")
    async def denied(websocket: WebSocket) -> None:
        await websocket.send_denial_response(JSONResponse({}, 401))


def add_routers_and_mounts(app: FastAPI) -> None:
    inner = APIRouter(prefix="/instances")

    @inner.get("/{instance_id}")
    async def instance(instance_id: str) -> str:
        return instance_id

    @inner.websocket("/{instance_id}/attach")
    async def attach(websocket: WebSocket, instance_id: str) -> None:
        await websocket.accept()
        await websocket.close()

    outer = APIRouter(prefix="/orgs/{org}")
    outer.include_router(inner)
    app.include_router(outer, prefix="/api/v1")

    mounted = FastAPI()
    mounted.include_router(inner)

    @mounted.get("/plain/{name}")
    async def plain(name: str) -> str:
        return name

    @mounted.get("/crash")
    async def crash() -> None:
        raise AppError

    @mounted.get("/slash/")
    async def slash() -> str:
        return "ok"

    app.mount("/mounted", mounted)
    app.mount("/files", PlainTextResponse("a file"))


@dataclass(frozen=True)
class Ending:
    what: str
    method: str
    path: str
    expected: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


def success(status: Any = 200, **more: Any) -> dict[str, Any]:
    return {"audit.outcome": "success", "http.response.status_code": status, "error.type": None, **more}


def failure(status: int, error: Any = None, **more: Any) -> dict[str, Any]:
    return {"audit.outcome": "failure", "http.response.status_code": status, "error.type": error, **more}


APP_ERROR = f"{__name__}.AppError"
INSTANCE = {"http.route": "/api/v1/orgs/{org}/instances/{instance_id}", "audit.resource": "orgs/o/instances/i"}

ENDINGS = [
    Ending("async endpoint", "GET", "/ok", success()),
    Ending("sync endpoint", "GET", "/sync", success()),
    Ending("HEAD", "HEAD", "/ok", failure(405, **{"http.request.method": "HEAD"})),
    Ending("OPTIONS", "OPTIONS", "/ok", failure(405, **{"http.request.method": "OPTIONS"})),
    Ending("204", "GET", "/status/204", success(204)),
    Ending("304", "GET", "/status/304", success(304)),
    Ending("302 by a handler", "GET", "/found", success(302)),
    Ending("307 by a handler", "GET", "/redirect", success(307)),
    Ending("404 by a handler", "GET", "/raise/404", failure(404, **{"http.route": "/raise/{code}"})),
    Ending("503 by a handler", "GET", "/raise/503", failure(503, "503")),
    Ending("500 as a plain response", "GET", "/status/500", failure(500, "500")),
    Ending(
        "401 by a dependency",
        "DELETE",
        "/denied/7",
        failure(401, **{"audit.action": "DELETE", "http.route": "/denied/{item}", "audit.target.id": "7"}),
    ),
    Ending("422 by validation", "POST", "/validated?number=x", failure(422, **{"audit.action": "CREATE"})),
    Ending(
        "404 before routing",
        "GET",
        "/no/such",
        failure(404, **{"http.route": None, "url.path": "/no/such", "audit.resource": "no/such"}),
    ),
    Ending("405 before routing", "PATCH", "/ok", failure(405, **{"audit.action": "UPDATE"})),
    Ending("unhandled exception", "GET", "/crash", failure(500, APP_ERROR)),
    Ending("unhandled exception in a thread", "GET", "/crash-sync", failure(500, APP_ERROR)),
    Ending("background task", "GET", "/background", success()),
    Ending("background task that fails", "GET", "/background-crash", success()),
    Ending("stream", "GET", "/stream", success()),
    Ending("exception after the response began", "GET", "/stream-crash", failure(200, APP_ERROR)),
    Ending("nested include_router", "GET", "/api/v1/orgs/o/instances/i", success(**INSTANCE)),
    Ending(
        "mounted application",
        "GET",
        "/mounted/plain/x",
        success(**{"http.route": "/mounted/plain/{name}", "url.path": "/mounted/plain/x"}),
    ),
    Ending(
        "mounted application's router",
        "GET",
        "/mounted/instances/x",
        success(**{"http.route": "/mounted/instances/{instance_id}"}),
    ),
    Ending(
        "mounted ASGI application",
        "GET",
        "/files/a/b.txt",
        success(**{"http.route": None, "audit.resource": "files/a/b.txt"}),
    ),
    Ending("404 in a mounted application", "GET", "/mounted/none", failure(404, **{"url.path": "/mounted/none"})),
    # The mounted application answers 500 by itself before the exception reaches us; it is not instrumented here.
    Ending("exception in a mounted application", "GET", "/mounted/crash", failure(500, "500")),
    Ending("method that HTTP does not know", "BREW", "/ok", failure(405, **{"http.request.method": "_OTHER"})),
]


async def pass_on(request: Request, call_next: RequestResponseEndpoint) -> Response:
    return await call_next(request)


def with_base_http_middleware(app: FastAPI) -> None:
    app.add_middleware(BaseHTTPMiddleware, dispatch=pass_on)


def with_cors(app: FastAPI) -> None:
    app.add_middleware(CORSMiddleware, allow_origins=["*"])


STACKS: dict[str, Callable[[FastAPI], None]] = {
    "bare": lambda _: None,
    "BaseHTTPMiddleware": with_base_http_middleware,
    "CORSMiddleware": with_cors,
}


def differences(record: dict[str, Any], expected: dict[str, Any]) -> dict[str, Any]:
    return {name: record.get(name) for name, value in expected.items() if record.get(name) != value}


@pytest.mark.parametrize("stack", STACKS.values(), ids=STACKS)
@pytest.mark.parametrize("ending", ENDINGS, ids=lambda ending: ending.what)
def test_each_ending_makes_one_record(ending: Ending, stack: Callable[[FastAPI], None]) -> None:
    app = make_app()
    stack(app)
    with capture(app) as audit:
        client = TestClient(app, raise_server_exceptions=False, follow_redirects=False)
        client.request(ending.method, ending.path, **ending.options)
    assert len(audit.records) == 1
    assert differences(audit.last, ending.expected) == {}


@pytest.mark.parametrize("path", ["/ok/", "/slash", "/mounted/slash"])
def test_a_slash_redirect_makes_no_record_of_its_own(path: str) -> None:
    app = make_app()
    with capture(app) as audit:
        assert TestClient(app, follow_redirects=False).get(path).status_code == 307
        assert audit.records == []
        assert TestClient(app).get(path).status_code == 200
    assert len(audit.records) == 1


@pytest.mark.parametrize("location", ["/login/", "https://elsewhere.example/login/"])
def test_a_client_cannot_choose_a_redirect_that_leaves_no_record(location: str) -> None:
    async def login(next: str) -> RedirectResponse:  # noqa: A002 - the name that applications use
        return RedirectResponse(next)

    app = FastAPI()
    app.add_api_route("/login", login, methods=["POST"])
    app.add_route("/plain", lambda _: RedirectResponse("/plain/"))
    with capture(app) as audit:
        client = TestClient(app, follow_redirects=False)
        assert client.post("/login", params={"next": location}).status_code == 307
        assert client.get("/plain").status_code == 307
    assert len(audit.records) == 2


class Redirects:
    """An ASGI application that is no FastAPI one."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await RedirectResponse(Request(scope).query_params["next"])(scope, receive, send)


async def redirect(_: object, request: Request) -> RedirectResponse:
    return RedirectResponse(request.query_params["next"])


async def back(request: Request, _: object) -> RedirectResponse:
    return RedirectResponse(request.headers["referer"])


@pytest.mark.parametrize("path", ["/partial", "/instance", "/mounted/x"])
def test_nor_does_an_endpoint_of_another_kind_let_it(path: str) -> None:
    app = FastAPI()
    app.add_route("/partial", functools.partial(redirect, None), methods=["POST"])
    app.router.routes.append(Route("/instance", Redirects(), methods=["POST"]))
    app.mount("/mounted", Redirects())
    with capture(app) as audit:
        answer = TestClient(app, follow_redirects=False).post(path, params={"next": f"{path}/"})
    assert answer.status_code == 307
    assert len(audit.records) == 1


def test_nor_does_a_middleware() -> None:
    app = FastAPI()
    app.middleware("http")(back)
    with capture(app) as audit:
        answer = TestClient(app, follow_redirects=False).post("/do", headers={"referer": "/do/"})
    assert answer.status_code == 307
    assert len(audit.records) == 1


@pytest.mark.parametrize("path", ["/health", "/docs", "/openapi.json"])
def test_a_websocket_behind_a_pages_path_is_recorded(path: str) -> None:
    app = FastAPI()

    @app.websocket("/{name}")
    async def talk(socket: WebSocket, name: str) -> None:
        await socket.accept()
        await socket.close()

    with capture(app) as audit, TestClient(app).websocket_connect(path) as socket:
        assert socket.receive()["type"] == "websocket.close"
    assert [record["url.path"] for record in audit.records] == [path]


class CopiesTheScope:
    """A middleware that hands on a copy: what the router adds to it is not in the original."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(dict(scope), receive, send)


def test_a_middleware_that_copies_the_scope_hides_nothing() -> None:
    app = make_app()
    app.add_middleware(CopiesTheScope)
    with capture(app) as audit:
        TestClient(app).get("/api/v1/orgs/o/instances/i")
        TestClient(app).get("/slash", follow_redirects=False)
    assert len(audit.records) == 1
    assert differences(audit.last, success(**INSTANCE)) == {}


def test_a_mounts_parameter_cannot_forge_the_route() -> None:
    app, inner = FastAPI(), FastAPI()
    inner.add_api_route("/secrets/{secret}", lambda secret: secret, methods=["DELETE"])
    app.mount("/tenants/{tenant}", inner)
    with capture(app) as audit:
        TestClient(app).delete("/tenants/{secret}/secrets/9")
        TestClient(app).delete("/tenants/a%0Ab%1b/secrets/9")
    assert [record["audit.resource"] for record in audit.records] == [
        "tenants/%7Bsecret%7D/secrets/9",
        "tenants/a%0Ab%1B/secrets/9",
    ]
    assert {record["http.route"] for record in audit.records} == {"/tenants/{tenant}/secrets/{secret}"}


@pytest.mark.parametrize("more", ["", ", status: 200"], ids=["at-once", "at-the-end"])
@pytest.mark.parametrize("dots", ["..", "./..", "x/../..", "x/./../.."])
def test_no_path_leads_out_of_what_a_rule_leaves_out(tmp_path: Path, dots: str, more: str) -> None:
    """StaticFiles resolves what a client of ours for tests would have resolved by itself."""
    (tmp_path / "assets/x").mkdir(parents=True)
    (tmp_path / "report.txt").write_text("private")
    file = tmp_path / "policy.yaml"
    file.write_text(f"rules: [{{name: assets, match: {{path: /assets/**{more}}}, level: none}}]")
    app, peer = FastAPI(), Peer()
    app.mount("/", StaticFiles(directory=tmp_path))
    with capture(app, AuditConfig(enabled=True, policy_file=file)) as audit:
        asyncio.run(drive(app, http_scope(path=f"/assets/{dots}/report.txt"), peer))
        assert audit.last["url.path"] == f"/assets/{dots}/report.txt"
    assert peer.sent[1]["body"] == b"private"


TOKENS = ("ghp_aB3dE5gH7jK9mN1pQ3sT5vW7yZ9bC1dE3fG5", "ghp_zB3dE5gH7jK9mN1pQ3sT5vW7yZ9bC1dE3fG7")


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(f"/hooks/{TOKENS[0]}/read", id="in-a-mount"),
        pytest.param(f"/hooks/{TOKENS[0]}/unknown/read", id="in-a-mount-of-its-own-kind"),
        pytest.param(f"/a/{'x' * 1024}/b/{TOKENS[0]}", id="behind-what-is-cut"),
        pytest.param(f"/a/{'!' * 400}/b/{TOKENS[0]}", id="behind-what-is-cut-in-the-name"),
        pytest.param(f"/a/{TOKENS[0]}/b/%67{TOKENS[1][1:]}", id="encoded-behind-one-that-is-not"),
        pytest.param(f"/a/{'x' * 990}/b/{TOKENS[0]}", id="where-it-is-cut"),
    ],
)
def test_a_token_in_a_path_is_in_no_attribute(path: str) -> None:
    app, inner = FastAPI(), FastAPI()
    inner.get("/read")(lambda: None)
    inner.mount("/unknown", EveryonesMount(inner, "/as-well"))
    app.mount("/hooks/{secret}", inner)
    app.get("/a/{x}/b/{y}")(lambda: None)
    with capture(app) as audit:
        assert TestClient(app).get(path).status_code == 200
        for name, value in audit.last.items():
            assert not [token for token in TOKENS if token[4:12] in str(value)], name


def test_no_tenant_has_a_name_that_a_rule_leaves_out(tmp_path: Path) -> None:
    app, inner = FastAPI(), FastAPI()
    inner.delete("/instances/{instance}")(lambda: None)
    app.mount("/{tenant}", inner)
    file = tmp_path / "policy.yaml"
    file.write_text("rules: [{name: assets, match: {route: /static/**}, level: none}]")
    with capture(app, AuditConfig(enabled=True, policy_file=file)) as audit:
        for tenant in ("acme", "static", "v1", "api"):
            assert TestClient(app).delete(f"/{tenant}/instances/5").status_code == 200
            assert audit.last["audit.resource"] == f"{tenant}/instances/5"
    assert len(audit.records) == 4


def test_a_route_has_the_templates_of_all_its_mounts() -> None:
    app, middle, inner = FastAPI(), FastAPI(), FastAPI()
    for each in (app, middle, inner):
        each.get("/read")(lambda: None)
    middle.mount("/{kind}", inner)
    app.host("{host}.example.com", Router([Mount("/of-a-host/{a}", inner)]))
    app.mount("/tenants/{tenant}/special", inner)
    app.mount("/tenants/{tenant}", middle)
    app.mount("/files/{where:path}/in", inner)
    app.mount("/plain", EveryonesMount(inner, "/x y"))
    app.mount("", middle)
    asked = {
        "/read": "/read",
        "/tenants/a/read": "/tenants/{tenant}/read",
        "/tenants/a/b/read": "/tenants/{tenant}/{kind}/read",
        "/tenants/a/special/read": "/tenants/{tenant}/special/read",
        "/files/a/in/b/in/read": "/files/{where}/in/read",
        "/plain/read": "/plain/x%20y/read",
        "/a/read": "/{kind}/read",
    }
    with capture(app) as audit:
        for path, route in asked.items():
            assert TestClient(app).get(path).status_code == 200
            assert (path, audit.last["http.route"]) == (path, route)
        assert TestClient(app, "http://a.example.com").get("/of-a-host/b/read").status_code == 200
        assert audit.last["http.route"] == "/of-a-host/{a}/read"


def test_a_route_has_no_template_of_a_mount_that_did_not_take_it() -> None:
    def things() -> FastAPI:
        inner = FastAPI()
        inner.get("/things/{thing}")(lambda: None)
        return inner

    app, outer = FastAPI(), FastAPI()
    outer.mount("/{kind}", things())
    app.router.routes.append(EveryonesRoute(Mount("/of/{other}", things())))
    app.mount("/of/{any}", things())
    app.host("a.example.com", Router([Mount("/admin/{x}", things())]))
    app.host("{host}.example.com", Router([Mount("/{t}/{u}", things())]))
    app.mount("/behind", CORSMiddleware(outer))
    app.mount("/{tenant}", outer)
    asked = {
        ("test", "/of/a/things/1"): ("/of/a/things/{thing}", "of/a/things/1"),
        ("b.example.com", "/admin/a/things/1"): ("/{t}/{u}/things/{thing}", "admin/a/things/1"),
        ("test", "/behind/a/things/1"): ("/behind/a/things/{thing}", "behind/a/things/1"),
        ("test", "/b/a/things/1"): ("/{tenant}/{kind}/things/{thing}", "b/a/things/1"),
    }
    with capture(app) as audit:
        for (host, path), named in asked.items():
            assert TestClient(app, f"http://{host}").get(path).status_code == 200
            assert (audit.last["http.route"], audit.last["audit.resource"]) == named
        app.router.routes = [Mount("/{late}", things())]
        assert TestClient(app).get("/a/things/1").status_code == 200
        assert audit.last["http.route"] == "/{late}/things/{thing}"


@pytest.mark.parametrize(
    ("prefix", "path", "resource"),
    [
        pytest.param("/tenants/{id}", "/tenants/acme/things/globex", "tenants/acme/things/globex", id="plain"),
        pytest.param("/{id}", "/v1/things/globex", "v1/things/globex", id="a-tenant-that-looks-like-a-version"),
        pytest.param("/api/v1/{id}", "/api/v1/acme/things/globex", "acme/things/globex", id="of-an-api"),
    ],
)
def test_a_parameter_of_a_route_takes_no_mounts_place(prefix: str, path: str, resource: str) -> None:
    app, inner = FastAPI(), FastAPI()
    inner.delete("/things/{id}")(lambda: None)
    app.mount(prefix, inner)
    with capture(app) as audit:
        assert TestClient(app).delete(path).status_code == 200
    assert audit.last["http.route"] == f"{prefix}/things/{{id}}"
    assert audit.last["audit.resource"] == resource


def test_the_actor_of_a_rules_resource_is_not_the_paths(tmp_path: Path) -> None:
    def change(request: Request) -> None:
        request.state.audit_actor = "alice"

    app = FastAPI()
    app.put("/of/{actor}/password")(change)
    file = tmp_path / "policy.yaml"
    file.write_text("rules: [{name: password, match: {route: '**/password'}, resource: 'users/{actor}'}]")
    with capture(app, AuditConfig(enabled=True, policy_file=file)) as audit:
        TestClient(app).put("/of/bob/password")
    assert audit.last["audit.resource"] == "users/alice"


class EveryonesRoute(BaseRoute):
    """Hands on to another route: as the routes that FastAPI 0.137 and newer make of an included router's."""

    def __init__(self, inner: BaseRoute) -> None:
        self.inner = inner
        self.matches = inner.matches  # type: ignore[method-assign] # one that only hands on
        self.handle = inner.handle  # type: ignore[method-assign] # as above


class EveryonesMount:
    """Mounts an application as Starlette does, in a way that only it knows."""

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self.app, self.root_path = app, root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].removeprefix(scope["root_path"])
        root_path = scope["root_path"] + self.root_path
        scope.update({"root_path": root_path, "path": root_path + path})
        await self.app(scope, receive, send)


def test_a_request_leaves_nothing_for_the_garbage_collector() -> None:
    app = make_app()

    async def requests() -> int:
        for path in ("/ok", "/api/v1/orgs/o/instances/i", "/no/such"):
            await drive(app, http_scope(path=path), Peer())
        gc.collect()
        with uncollected():
            for path in ("/ok", "/api/v1/orgs/o/instances/i", "/no/such"):
                await drive(app, http_scope(path=path), Peer())
            return gc.collect()

    without = asyncio.run(requests())
    with capture(app):
        assert asyncio.run(requests()) <= without


def test_the_applications_own_error_is_not_taken_for_a_lost_client() -> None:
    async def handler(request: Request) -> None:
        await request.is_disconnected()
        raise FileNotFoundError

    app = FastAPI()
    app.add_api_route("/x", handler)
    with capture(app) as audit:
        asyncio.run(drive(app, http_scope(path="/x"), Peer([{"type": "http.request"}, {"type": "http.disconnect"}])))
    assert differences(audit.last, failure(500, "FileNotFoundError")) == {}


def test_an_error_handler_that_answers_nothing_fails_as_it_would_without_us() -> None:
    app = make_app()
    app.add_exception_handler(Exception, lambda *_: None)  # type: ignore[arg-type] # the mistake
    with capture(app) as audit:
        error = asyncio.run(drive(app, http_scope(path="/crash"), Peer()))
    assert isinstance(error, TypeError)
    assert differences(audit.last, failure(500, APP_ERROR)) == {}


def test_an_applications_own_redirect_to_another_path_is_recorded() -> None:
    app = FastAPI()

    @app.get("/")
    async def home() -> RedirectResponse:
        return RedirectResponse("/login")

    with capture(app) as audit:
        TestClient(app, follow_redirects=False).get("/")
    assert audit.last["http.response.status_code"] == 307


def test_a_response_that_never_comes(audited: tuple[FastAPI, Captured]) -> None:
    app, audit = audited
    asyncio.run(drive(app, http_scope(path="/silent"), Peer()))
    assert len(audit.records) == 1
    assert differences(audit.last, {"audit.outcome": "unknown", "error.type": "no_response"}) == {}


def test_a_middleware_that_answers_for_an_exception_does_not_hide_it() -> None:
    app = make_app()

    async def answer(request: Request, call_next: RequestResponseEndpoint) -> Response:
        try:
            return await call_next(request)
        except AppError:
            return JSONResponse({"error": "try again"}, 503)

    app.add_middleware(BaseHTTPMiddleware, dispatch=answer)
    with capture(app) as audit:
        assert TestClient(app).get("/crash").status_code == 503
    assert len(audit.records) == 1
    assert differences(audit.last, failure(503, APP_ERROR)) == {}


def fail_in_handler(request: Request, error: Exception) -> Response:
    raise ValueError


async def answer_async(request: Request, error: Exception) -> Response:
    return JSONResponse({}, 503)


def answer_sync(request: Request, error: Exception) -> Response:
    return JSONResponse({}, 503)


@pytest.mark.parametrize(
    ("handler", "status"),
    [(answer_async, 503), (answer_sync, 503), (fail_in_handler, 500)],
    ids=["async", "sync", "raises"],
)
def test_the_status_of_the_applications_own_error_handler(
    handler: Callable[[Request, Exception], Any], status: int
) -> None:
    app = make_app()
    app.add_exception_handler(Exception, handler)
    with capture(app) as audit:
        TestClient(app, raise_server_exceptions=False).get("/crash")
        TestClient(app, raise_server_exceptions=False).get("/stream-crash")
    assert len(audit.records) == 2
    assert differences(audit.records[0], failure(status, APP_ERROR)) == {}
    assert differences(audit.records[1], failure(200, APP_ERROR)) == {}


def test_a_refusal_by_a_middleware_is_recorded() -> None:
    app = make_app()

    async def refuse(request: Request, call_next: RequestResponseEndpoint) -> Response:
        return JSONResponse({}, 401)

    with capture(app) as audit:
        app.add_middleware(BaseHTTPMiddleware, dispatch=refuse)
        TestClient(app).delete("/denied/7")
    assert len(audit.records) == 1
    assert differences(audit.last, failure(401, **{"http.route": None, "audit.resource": "denied/7"})) == {}


@pytest.mark.parametrize(
    "path", [pytest.param("/behind/items/7", id="as ASGI has it"), pytest.param("/items/7", id="prefix stripped")]
)
def test_a_root_path_is_no_part_of_the_route(path: str) -> None:
    app = FastAPI()

    @app.get("/items/{item}")
    async def item(item: str) -> str:
        return item

    with capture(app) as audit:
        asyncio.run(drive(app, http_scope(path=path, root_path="/behind"), Peer()))
    assert audit.last["http.route"] == "/items/{item}"
    assert audit.last["audit.resource"] == "items/7"
    assert audit.last["url.path"] == path


def test_the_exception_reaches_the_server_untouched() -> None:
    app = make_app()
    with capture(app), pytest.raises(AppError) as raised:
        TestClient(app).get("/crash")
    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None


def test_the_response_is_the_same_with_audit_and_without() -> None:
    app = make_app()
    client = TestClient(app, raise_server_exceptions=False)
    before = [client.get(path) for path in ("/ok", "/stream", "/raise/404", "/crash", "/nope")]
    with capture(app):
        after = [client.get(path) for path in ("/ok", "/stream", "/raise/404", "/crash", "/nope")]
    assert [(r.status_code, r.content, sorted(r.headers.items())) for r in before] == [
        (r.status_code, r.content, sorted(r.headers.items())) for r in after
    ]


@pytest.fixture
def audited() -> Iterator[tuple[FastAPI, Captured]]:
    app = make_app()
    with capture(app) as audit:
        yield app, audit


def test_client_leaves_while_the_handler_works(audited: tuple[FastAPI, Captured]) -> None:
    app, audit = audited

    async def scenario() -> None:
        task = asyncio.ensure_future(drive(app, http_scope(path="/never"), Peer()))
        await asyncio.sleep(0.01)
        task.cancel()
        await task

    asyncio.run(scenario())
    assert len(audit.records) == 1
    expected = {"audit.outcome": "unknown", "error.type": "cancelled", "http.response.status_code": None}
    assert differences(audit.last, expected) == {}


@pytest.mark.parametrize("stack", STACKS.values(), ids=STACKS)
@pytest.mark.parametrize("spec_version", ["2.3", "2.4"])
def test_client_leaves_in_the_middle_of_a_stream(spec_version: str, stack: Callable[[FastAPI], None]) -> None:
    app = make_app()
    stack(app)

    async def scenario() -> None:
        peer = Peer()
        if spec_version == "2.4":
            peer.raise_on_send = 3
        scope = http_scope(path="/stream-endless", asgi={"version": "3.0", "spec_version": spec_version})
        task = asyncio.ensure_future(drive(app, scope, peer))
        while len(peer.sent) < 3 and not task.done():  # noqa: ASYNC110 - nothing there could set an event
            await asyncio.sleep(0)
        if spec_version == "2.3":
            peer.leave()
        await task
        assert len(peer.sent) >= 3

    with capture(app) as audit:
        asyncio.run(scenario())
    assert len(audit.records) == 1
    expected = {"audit.outcome": "unknown", "error.type": "client_disconnected", "http.response.status_code": 200}
    assert differences(audit.last, expected) == {}


def test_a_server_that_tells_the_end_while_it_takes_the_last_message_is_not_misunderstood() -> None:
    app = make_app()

    class Telling(Peer):
        async def send(self, message: Message) -> None:
            await super().send(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                self.leave()
                await asyncio.sleep(0.01)  # whoever listens for a disconnect hears it now

    scope = http_scope(path="/stream", asgi={"version": "3.0", "spec_version": "2.3"})
    with capture(app) as audit:
        asyncio.run(drive(app, scope, Telling()))
    assert differences(audit.last, success()) == {}


def test_client_leaves_before_its_body_is_whole(audited: tuple[FastAPI, Captured]) -> None:
    app, audit = audited
    peer = Peer([{"type": "http.request", "body": b"half", "more_body": True}, {"type": "http.disconnect"}])
    asyncio.run(drive(app, http_scope("POST", "/reads"), peer))
    assert len(audit.records) == 1
    assert audit.last["audit.outcome"] == "unknown"
    assert audit.last["error.type"] == "client_disconnected"


def test_a_stream_is_passed_on_piece_by_piece(audited: tuple[FastAPI, Captured]) -> None:
    app, audit = audited
    peer = Peer()
    asyncio.run(drive(app, http_scope(path="/stream"), peer))
    assert [message.get("body") for message in peer.sent[1:]] == [b"0", b"1", b"2", b""]
    assert len(audit.records) == 1


def test_a_record_is_there_as_soon_as_the_response_is_complete() -> None:
    app = FastAPI()
    seen: list[int] = []

    with capture(app) as audit:

        @app.get("/later")
        async def later(tasks: BackgroundTasks) -> str:
            tasks.add_task(lambda: seen.append(len(audit.records)))
            return "ok"

        TestClient(app).get("/later")
    assert seen == [1]


CONNECT = {"type": "websocket.connect"}
TEXT = {"type": "websocket.receive", "text": "hi"}


def gone(code: int) -> dict[str, Any]:
    return {"type": "websocket.disconnect", "code": code}


@pytest.mark.parametrize(
    ("path", "messages", "expected"),
    [
        pytest.param(
            "/ws",
            [CONNECT, TEXT, gone(1000)],
            success(101, **{"audit.websocket.close_code": 1000}),
            id="closed by the client",
        ),
        pytest.param("/ws", [CONNECT, gone(1001)], success(101), id="page left"),
        pytest.param("/ws-uncaught", [CONNECT, gone(1000)], success(101), id="disconnect not caught by the handler"),
        pytest.param(
            "/ws",
            [CONNECT, gone(1006)],
            {"audit.outcome": "unknown", "error.type": "client_disconnected", "http.response.status_code": 101},
            id="connection lost",
        ),
        pytest.param(
            "/ws",
            [CONNECT, gone(1012)],
            {"audit.outcome": "unknown", "error.type": "cancelled", "audit.websocket.close_code": 1012},
            id="server stopped",
        ),
        pytest.param("/ws-done", [CONNECT], success(101, **{"audit.websocket.close_code": 1000}), id="closed by us"),
        pytest.param(
            "/ws-policy", [CONNECT], failure(101, **{"audit.websocket.close_code": 1008}), id="closed by us for cause"
        ),
        pytest.param("/ws-refuse", [CONNECT], failure(403), id="refused"),
        pytest.param("/ws-crash", [CONNECT], failure(101, APP_ERROR), id="exception after the accept"),
        pytest.param("/ws-crash-early", [CONNECT], failure(500, APP_ERROR), id="exception before the accept"),
        pytest.param("/ws-nowhere", [CONNECT], failure(403, **{"http.route": None}), id="no such route"),
        pytest.param(
            "/api/v1/orgs/o/instances/i/attach",
            [CONNECT],
            success(101, **{"http.route": "/api/v1/orgs/{org}/instances/{instance_id}/attach"}),
            id="nested include_router",
        ),
    ],
)
def test_each_websocket_ending_makes_one_record(
    audited: tuple[FastAPI, Captured], path: str, messages: list[dict[str, Any]], expected: dict[str, Any]
) -> None:
    app, audit = audited
    asyncio.run(drive(app, websocket_scope(path), Peer(messages)))
    assert len(audit.records) == 1
    assert audit.last["http.request.method"] == "GET"
    assert differences(audit.last, expected) == {}


@pytest.mark.parametrize(
    ("path", "messages", "error"),
    [
        pytest.param("/ws-silent", [CONNECT], "no_response", id="handler that does nothing"),
        pytest.param("/ws-silent", [gone(1006)], "no_response", id="gone before the accept, unheard"),
        pytest.param("/ws-hears", [gone(1006)], "client_disconnected", id="gone before the accept"),
    ],
)
def test_websocket_without_an_answer(path: str, messages: list[dict[str, Any]], error: str) -> None:
    app = FastAPI()

    @app.websocket("/ws-silent")
    async def silent(websocket: WebSocket) -> None: ...

    @app.websocket("/ws-hears")
    async def hears(websocket: WebSocket) -> None:
        await websocket.scope["tron_audit_otel"].receive()

    with capture(app) as audit:
        asyncio.run(drive(app, websocket_scope(path), Peer(messages)))
    assert differences(audit.last, {"audit.outcome": "unknown", "error.type": error}) == {}


def test_websocket_whose_server_is_stopped(audited: tuple[FastAPI, Captured]) -> None:
    app, audit = audited

    async def scenario() -> None:
        task = asyncio.ensure_future(drive(app, websocket_scope("/ws"), Peer([CONNECT])))
        await asyncio.sleep(0.01)
        task.cancel()
        await task

    asyncio.run(scenario())
    assert differences(audit.last, {"audit.outcome": "unknown", "error.type": "cancelled"}) == {}


@pytest.mark.parametrize("headers", [{}, {"location": "http://[broken/"}])
def test_a_middlewares_redirect_to_nowhere_is_recorded(headers: dict[str, str]) -> None:
    app = make_app()

    async def redirect(request: Request, call_next: RequestResponseEndpoint) -> Response:
        return Response(status_code=307, headers=headers)

    app.add_middleware(BaseHTTPMiddleware, dispatch=redirect)
    with capture(app) as audit:
        TestClient(app, follow_redirects=False).get("/ok")
    assert audit.last["http.response.status_code"] == 307


def test_websocket_lost_while_the_server_writes(audited: tuple[FastAPI, Captured]) -> None:
    app, audit = audited
    peer = Peer([CONNECT, TEXT])
    peer.raise_on_send = 1
    asyncio.run(drive(app, websocket_scope("/ws"), peer))
    expected = {"audit.outcome": "unknown", "error.type": "client_disconnected", "audit.websocket.close_code": 1006}
    assert differences(audit.last, expected) == {}


def test_websocket_denied_with_a_response(audited: tuple[FastAPI, Captured]) -> None:
    app, audit = audited
    scope = websocket_scope("/ws-denied", extensions={"websocket.http.response": {}})
    asyncio.run(drive(app, scope, Peer([CONNECT])))
    assert len(audit.records) == 1
    assert differences(audit.last, failure(401)) == {}


def test_an_error_of_ours_never_breaks_a_request(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "hunter2"  # noqa: S105 - must not reach the log

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError(secret)

    app = make_app()
    for place in (
        "tron_audit_otel.source_ip.Proxies.source",
        "tron_audit_otel.exchange.record_id",
        "tron_audit_otel.route.template",
        "tron_audit_otel.stream.to_log_record",
    ):
        with monkeypatch.context() as patch, capture(app) as audit:
            patch.setattr(place, broken)
            caplog.clear()
            lost = counts().dropped.get("failed", 0)
            assert TestClient(app).post("/reads", content="x").text == '"x"'
            assert audit.records == []
            assert counts().dropped["failed"] == lost + 1, place
            assert "RuntimeError" in caplog.text, place
            assert secret not in caplog.text


def test_headers_that_asgi_does_not_promise_do_not_break_a_request() -> None:
    app = FastAPI()

    @app.get("/x")
    async def redirect() -> Response:
        return Response(status_code=307, headers={"location": "http://[broken/x"})

    with capture(app) as audit:
        assert TestClient(app, follow_redirects=False).get("/x").status_code == 307
    assert audit.last["http.response.status_code"] == 307
