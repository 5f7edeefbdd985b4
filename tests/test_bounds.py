"""Whatever a client sends: how long each attribute gets, what a request costs, and what of it waits in memory."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import pytest
from fastapi import FastAPI, HTTPException, Request, WebSocket

import tron_audit_otel as audit
from tests.asgi import Peer, drive, http_scope, websocket_scope
from tron_audit_otel.config import AuditConfig
from tron_audit_otel.context import Recorder
from tron_audit_otel.encoder import encode
from tron_audit_otel.exchange import Audit
from tron_audit_otel.log_record import NEVER_CUT, RECORD_BYTES_MAX
from tron_audit_otel.middleware import AuditMiddleware, ErrorObserver
from tron_audit_otel.policy import DEFAULT_RULES, HEADERS_MAX, Match, Policy, Rule
from tron_audit_otel.redact import CUT
from tron_audit_otel.testing import capture

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import FrameType

    from starlette.types import Message, Scope

    from tron_audit_otel.event import Fact

LINE = 1_024
TEXT = 4_096
WORD = 64
ROUTE = 2_048
HEADER_VALUES = 8
ARGUMENTS = 256
NAMES = [f"x-{number}" for number in range(HEADERS_MAX)]


class Bound(NamedTuple):
    """Of an attribute: who writes it, its characters in all, and how many texts it is."""

    writer: str
    characters: int
    texts: int = 1


BOUNDS = {
    "audit.record.id": Bound("we", 36),
    "audit.schema.version": Bound("we", WORD),
    "audit.actor.id": Bound("the application", LINE),
    "audit.actor.type": Bound("the application", WORD),
    "user.email": Bound("the application", LINE),
    "user.id": Bound("the application", LINE),
    "audit.actor.claimed": Bound("the client", LINE),
    "audit.action": Bound("policy, application", WORD),
    "audit.resource": Bound("policy, application", LINE),
    "audit.target.type": Bound("policy, application", LINE),
    "audit.target.id": Bound("policy, application", LINE),
    "audit.outcome": Bound("we", WORD),
    "error.type": Bound("the application", LINE),
    "error.message": Bound("the application", LINE),
    "client.address": Bound("the server", LINE),
    "network.peer.address": Bound("the server", LINE),
    "audit.source_ip.rule": Bound("we", WORD),
    "http.request.method": Bound("we", WORD),
    "http.request.method_original": Bound("the client", LINE),
    "http.route": Bound("the application", ROUTE),
    "url.path": Bound("the client", LINE),
    "user_agent.original": Bound("the client", LINE),
    "process.command_args": Bound("the client", TEXT, ARGUMENTS),
    "container.name": Bound("the client", LINE),
    "audit.exec.stdout.text": Bound("the container", TEXT),
    "audit.exec.stdout.sha256": Bound("we", 64),
    "audit.exec.stderr.text": Bound("the container", TEXT),
    "audit.exec.stderr.sha256": Bound("we", 64),
    "audit.exec.stdout.hmac_sha256": Bound("we", 64),
    "audit.exec.stderr.hmac_sha256": Bound("we", 64),
    "audit.truncated": Bound("we", 4_096, 128),
    "http.request.header.<name>": Bound("the client", HEADER_VALUES * LINE, HEADER_VALUES),
}
NUMBERS = {
    "audit.sequence.number",
    "audit.duration_ms",
    "audit.source_ip.suspect",
    "http.response.status_code",
    "audit.websocket.close_code",
    "audit.exec.command.truncated",
    "audit.exec.command.masked",
    "audit.exec.stdout.masked",
    "audit.exec.stderr.masked",
    "process.exit.code",
    "audit.exec.stdout.length",
    "audit.exec.stdout.truncated",
    "audit.exec.stderr.length",
    "audit.exec.stderr.truncated",
}
OPEN_ENDED = {"http.route"}
"""It is the application's."""


def hostile_app(text: str) -> FastAPI:
    """Writes the text wherever the application may write."""
    app, tenants = FastAPI(), FastAPI()
    Failure = type("E" * 5_000, (Exception,), {})  # noqa: N806 - a class

    @app.api_route("/pods/{pod}/exec", methods=["GET", "POST"])
    def run() -> None:
        audit.set_actor(text, type="service")
        with audit.execution(command=[text, *["x"] * 5_000], container=text) as run:
            run.finish(stdout=text, stderr=text * 20, return_code=2**70)
            run.fail(text, text)

    @app.post("/many/exec")
    def many() -> None:
        with audit.execution(command=["x"] * 5_000) as run:
            run.finish(return_code=-(2**63) + 1)

    @app.post("/secret/exec")
    def secret() -> None:
        with audit.execution(command=["login", "--password", text]) as run:
            run.finish(stdout=f"password={text}", stderr=f"password={text}")

    @app.post("/said")
    def said() -> None:
        audit.set_actor(text if text.isprintable() else "a@b" + text)
        audit.claim_actor(text)
        audit.annotate(action="A" * 64, resource=f"{text}/{text}"[: 3 * LINE] + f"/{text}")

    @app.post("/typed")
    def typed() -> None:
        audit.claim_actor(text)
        audit.annotate(resource=f"{text[:700]}/x", action="A" * 65)

    @app.post("/fails")
    def fails() -> None:
        raise Failure

    @app.get("/refused/exec")
    def refused() -> None:
        raise HTTPException(403)

    @app.websocket("/socket")
    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.close(2**70)

    @tenants.get("/users/{user}")
    def of_tenant(user: str) -> None: ...

    app.mount("/{tenant}/mounted", tenants)
    return app


def hostile_requests(text: str) -> list[tuple[Scope, list[Message]]]:
    """Writes the text wherever the client may write."""
    raw = text.encode("utf-8", "surrogatepass")
    headers = [(b"user-agent", raw), (b"x-forwarded-for", raw), (b"forwarded", raw), *[(b"x-0", raw)] * 20]
    body = json.dumps({"command": text, "container": text}).encode()
    posted: list[Message] = [{"type": "http.request", "body": body}]
    quoted = "".join(f"%{byte:02x}" for byte in raw).encode()
    of = {"headers": headers, "client": (text, 1)}
    return [
        (http_scope("POST", "/pods/x/exec", **of), posted),
        (http_scope("POST", "/many/exec", **of), posted),
        (http_scope("POST", "/secret/exec", **of), posted),
        (http_scope("POST", "/said", **of), posted),
        (http_scope("POST", "/typed", **of), posted),
        (http_scope("POST", "/fails", **of), posted),
        (http_scope(text, "/pods/x/exec", **of), posted),
        (http_scope("GET", "/refused/exec", query_string=b"command=" + quoted[:7_000], **of), posted),
        (http_scope("GET", f"/{text}", raw_path=b"/" + quoted, **of), posted),
        (http_scope("GET", f"/{text}/mounted/users/{text}", raw_path=b"/" + quoted, **of), posted),
        (websocket_scope("/socket", **of), [{"type": "websocket.connect"}]),
    ]


TEXTS = {"astral": "\U0001f4a9" * 20_000, "controls": "\x00" * 20_000, "plain": "x" * 20_000, "slashes": "a/" * 10_000}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """The values of each attribute in the records of hostile requests."""
    file: Path = tmp_path_factory.mktemp("policy") / "policy.yaml"
    named = {"headers": NAMES, "resource": "a/{user}/b", "match": {"route": "**/mounted/users/{user}"}}
    exec_ = {"headers": "x-0", "match": {"route": "/pods/{pod}/exec"}, "action": "EXEC"}
    file.write_text(json.dumps({"rules": [{"name": "m", **named}, {"name": "e", **exec_}]}), encoding="utf-8")
    values: dict[str, list[Any]] = {}
    for text in TEXTS.values():
        app = hostile_app(text)
        with capture(app, AuditConfig(enabled=True, policy_file=file, hash_key="k" * 32)) as trail:
            for scope, messages in hostile_requests(text):
                asyncio.run(drive(app, scope, Peer(messages)))
            assert len(trail.records) == len(hostile_requests(text))
            for record in trail.log_records:
                assert len(str(record.body)) <= 3_000
                for name, value in (record.attributes or {}).items():
                    key = re.sub("(?<=^http.request.header.).*", "<name>", name)
                    values.setdefault(key, []).append(value)
    return values


def test_every_attribute_has_a_bound(found: dict[str, list[Any]]) -> None:
    assert set(found) == set(BOUNDS) | NUMBERS


@pytest.mark.parametrize("name", BOUNDS)
def test_an_attribute_keeps_to_its_bound_and_a_hostile_request_reaches_it(
    name: str, found: dict[str, list[Any]]
) -> None:
    bound = BOUNDS[name]
    lengths = [len("".join(value)) for value in found[name]]
    texts = [1 if isinstance(value, str) else len(value) for value in found[name]]
    assert max(lengths) <= bound.characters
    assert max(texts) <= bound.texts
    if bound.characters >= LINE and bound.writer != "we" and name not in OPEN_ENDED:
        assert max(lengths) > bound.characters // 2, "the requests are not hostile enough for it"


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_is_one_that_every_siem_can_hold(name: str, found: dict[str, list[Any]]) -> None:
    assert all(-(2**63) <= value < 2**63 for value in found[name])


def test_what_is_never_cut_leaves_most_of_a_record_to_the_rest() -> None:
    assert sum(4 * BOUNDS[name].characters for name in NEVER_CUT if name in BOUNDS) < RECORD_BYTES_MAX // 2


def test_no_record_has_more_attributes_than_the_sdk_keeps_by_default() -> None:
    assert len(BOUNDS | dict.fromkeys(NUMBERS)) < 128


class Work:
    """Counts the lines of Python that run for audit, in its own code and in what that calls; not in the application."""

    def __init__(self) -> None:
        self.lines = 0
        self._counted: set[FrameType] = set()

    def __enter__(self) -> Self:
        self._before = sys.gettrace()
        sys.settrace(self._called)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _called(self, frame: FrameType, _event: str, _value: object) -> Any:
        file = frame.f_code.co_filename
        ours = "/tron_audit_otel/" in file
        if not ours and (frame.f_back not in self._counted or any(of in file for of in FOREIGN)):
            return None
        self._counted.add(frame)
        return self._ran

    def _ran(self, frame: FrameType, event: str, _value: object) -> Any:
        if event == "line":
            self.lines += 1
        elif event == "return":
            self._counted.discard(frame)
        return self._ran


FOREIGN = ("/fastapi/", "/starlette/", "/tests/", "/asyncio/")


class Sent(NamedTuple):
    """A request, what its container writes, and the policy."""

    scope: Scope
    body: bytes = b""
    output: str = ""
    arguments: int = 1
    rules: tuple[Rule, ...] = DEFAULT_RULES


_serial = itertools.count()


def new() -> str:
    """A text that no cache has seen."""
    return f"n{next(_serial)}"


def scope_of(method: str = "GET", path: str = "/x", **changes: Any) -> Scope:
    headers = [(b"user-agent", new().encode()), *changes.pop("headers", ())]
    return http_scope(method, path, headers=headers, **changes)


def posted(body: object, **changes: Any) -> Sent:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Sent(scope_of("POST", "/pods/x/exec", **changes), raw)


def app_of(one: Sent) -> FastAPI:
    app = FastAPI()

    @app.post("/pods/{pod}/exec")
    async def refused(pod: str, request: Request) -> None:
        await request.body()
        raise HTTPException(403, pod)

    @app.post("/run")
    async def run() -> None:
        with audit.execution(command=["x"] * one.arguments, container="app") as run:
            run.finish(stdout=one.output, stderr=one.output, return_code=0)

    return app


def facts_of(one: Sent) -> list[Fact]:
    facts: list[Fact] = []
    recorded = Audit(Policy(one.rules), Recorder(facts.append))
    wrapped = AuditMiddleware(ErrorObserver(app_of(one)), recorded, bool, bool)
    asyncio.run(drive(wrapped, one.scope, Peer([{"type": "http.request", "body": one.body}])))
    assert len(facts) == 1
    return facts


def work(make: Callable[[], Sent]) -> tuple[int, int]:
    """The lines that run on the event loop, and those in the exporter's thread, for one of many like requests."""
    with Work() as counted:
        for _ in range(2):  # the first one fills the caches
            counted.lines = 0
            facts = facts_of(make())
            on_loop, counted.lines = counted.lines, 0
            for fact in facts:
                encode(fact.event(), 1)
    return on_loop, counted.lines


KEPT = (Rule(name="kept", match=Match(route=("**",)), headers=tuple(NAMES)),)

LENGTHS: dict[str, Callable[[int], Sent]] = {
    "path": lambda size: Sent(scope_of(path=f"/{new()}" + "a" * size)),
    "escaped-path": lambda size: Sent(scope_of(path=f"/{new()}" + "\n" * size, raw_path=b"/" + b"%0A" * size)),
    "path-segments": lambda size: Sent(scope_of(path=f"/{new()}" + "/a" * size)),
    "user-agent": lambda size: Sent(http_scope(headers=[(b"user-agent", new().encode() + b"\x80" * size)])),
    "kept-header": lambda size: Sent(scope_of("POST", "/run", headers=[(b"x-1", b"\x80" * size)]), rules=KEPT),
    "forwarded-hops": lambda size: Sent(scope_of(headers=[(b"x-forwarded-for", b"192.0.2.1, " * size)])),
    "method": lambda size: Sent(scope_of(method="B" * size)),
    "query-of-one-value": lambda size: posted(b"", query_string=b"command=" + b"x" * size),
    "query-of-escapes": lambda size: posted(b"", query_string=b"command=" + b"%0a" * size),
    "query-of-many-values": lambda size: posted(b"", query_string=b"a=1&" * size),
    "nested-body": lambda size: posted(b'{"command":' + b"[" * size),
    "body-of-arguments": lambda size: posted({"command": ["a"] * (size // 5)}),
    "body-of-controls": lambda size: posted({"command": "\x01" * (size // 6)}),
    "output": lambda size: Sent(scope_of("POST", "/run"), output="x" * (16 * size)),
    "output-of-controls": lambda size: Sent(scope_of("POST", "/run"), output="\x1b" * size),
    "arguments": lambda size: Sent(scope_of("POST", "/run"), arguments=size),
    "body-beyond-all-bounds": lambda size: posted(b"[" * (16 * size)),
}
COUNTS: dict[str, Callable[[int], Sent]] = {
    "headers": lambda count: Sent(scope_of(headers=[(b"x-%d" % number, b"v") for number in range(count)])),
    "cookies": lambda count: Sent(scope_of(headers=[(b"cookie", b"a=b")] * count)),
    "forwarded-lines": lambda count: Sent(scope_of(headers=[(b"x-forwarded-for", b"192.0.2.1")] * count)),
    "kept-headers": lambda count: Sent(
        scope_of("POST", "/run", headers=[(b"x-%d" % number, b"v") for number in range(count)]), rules=KEPT
    ),
    "one-kept-header": lambda count: Sent(scope_of("POST", "/run", headers=[(b"x-1", b"v")] * count), rules=KEPT),
}
SIZE = 32_768
LOOP_LINES_MAX = 100_000
"""Of a query of 65,536 bytes, all of them escapes, in which a command is looked for. Usual are 500."""
WORKER_LINES_MAX = 20_000
JITTER = 100
LINES_A_HEADER_MAX = 4
ROUNDS = 3
CPU_SECONDS_MAX = 60
"""A cost that grows with the square of a length would take hours."""


@pytest.mark.parametrize("make", LENGTHS.values(), ids=LENGTHS)
def test_past_its_bound_what_is_longer_costs_no_more(make: Callable[[int], Sent]) -> None:
    lines = [work(lambda: make(size)) for size in (SIZE // 64, SIZE // 8, SIZE // 4, SIZE // 2, SIZE, 2 * SIZE)]  # noqa: B023 - called at once
    assert max(on_loop for on_loop, _ in lines) <= LOOP_LINES_MAX
    assert max(in_worker for _, in_worker in lines) <= WORKER_LINES_MAX
    assert lines[-1][0] <= lines[-2][0] + JITTER
    assert lines[-1][1] <= lines[-2][1] + JITTER


@pytest.mark.parametrize("make", COUNTS.values(), ids=COUNTS)
def test_each_header_costs_the_same_however_many_there_are(make: Callable[[int], Sent]) -> None:
    count = 5_000
    once, twice = work(lambda: make(count)), work(lambda: make(2 * count))
    assert twice[0] - once[0] <= LINES_A_HEADER_MAX * count + JITTER
    assert twice[1] <= once[1] + JITTER, "the exporter's thread sees those that are kept"


def serve_all() -> None:
    """Serves each hostile request several times, at its full size."""
    for make in (*LENGTHS.values(), *COUNTS.values()):
        for _ in range(ROUNDS):
            for fact in facts_of(make(2 * SIZE)):
                encode(fact.event(), 1)


@pytest.mark.skipif(sys.platform == "win32", reason="the system has no bound on CPU time")
def test_nothing_in_c_takes_longer_than_linear_time_either() -> None:
    limited = (
        f"import resource; resource.setrlimit(resource.RLIMIT_CPU, ({CPU_SECONDS_MAX}, {CPU_SECONDS_MAX}));"
        "from tests.test_bounds import serve_all; serve_all()"
    )
    subprocess.run([sys.executable, "-c", limited], check=True)


SHARED = (Rule, FastAPI)
SEEN_BYTES_MAX = 40 * 1024
"""Of one record that waits, whoever sent the request: most of it is a command, or output, of 4,096 characters of four
bytes."""


def held(value: object) -> int:
    """The bytes of a value and of all that it holds, but for what all requests share."""
    seen: set[int] = set()
    left, size = [value], 0
    while left:
        each = left.pop()
        if id(each) in seen or isinstance(each, SHARED) or callable(each):
            continue
        seen.add(id(each))
        size += sys.getsizeof(each)
        if isinstance(each, dict):
            left += [*each.keys(), *each.values()]
        elif isinstance(each, tuple | list | set | frozenset):
            left += each
    return size


def everything(size: int) -> Sent:
    """All that anybody can send at once, to a route where a command is looked for."""
    text = "\U0001f4a9" * size
    headers = [(name, b"1" * size) for name in (b"user-agent", b"x-forwarded-for", b"forwarded", b"x-real-ip")]
    scope = http_scope("POST", f"/pods/{text}/exec", raw_path=b"/" + b"%F0" * size, headers=headers)
    body = {"command": "\U0001f4a9" * 5_000, "container": "\U0001f4a9" * 2_000}
    return Sent(scope, json.dumps(body, ensure_ascii=False).encode())


HELD: dict[str, Callable[[int], Sent]] = {
    **LENGTHS,
    "everything": everything,
    "output-of-four-bytes": lambda size: Sent(scope_of("POST", "/run"), output="\U0001f4a9" * size),
    "host-by-a-server-that-believes-headers": lambda size: Sent(scope_of(client=("1" * size, 0))),
}


@pytest.mark.parametrize("make", HELD.values(), ids=HELD)
def test_what_waits_in_memory_is_bounded(make: Callable[[int], Sent]) -> None:
    [fact] = facts_of(make(2 * SIZE))
    assert held(fact) <= SEEN_BYTES_MAX


def test_all_headers_of_a_request_together_are_bounded_and_what_is_left_out_shows() -> None:
    headers = [(name.encode(), b"v" * 5_000) for name in NAMES for _ in range(20)]
    sent = Sent(scope_of(headers=headers), rules=(Rule(name="all", headers=tuple(NAMES)),))
    [fact] = facts_of(sent)
    assert held(fact) <= SEEN_BYTES_MAX
    request = fact.event().request
    kept = request.headers if request is not None else {}
    assert list(kept) == NAMES
    assert kept[NAMES[-1]] == (CUT,)
