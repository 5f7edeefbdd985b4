"""ASGI conversations that no specification allows: made of names alone, so that each can be printed and run again.

A conversation runs the same against a bare application and an audited one; what both sides saw of it can be compared.
"""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections import ChainMap, UserDict
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType, SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn, cast

from hypothesis import strategies as st
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.websockets import WebSocketDisconnect

import tron_audit_otel as audit
from tests.asgi import http_scope, websocket_scope
from tron_audit_otel.exchange import SCOPE_KEY

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from random import Random

    from starlette.types import ASGIApp, Receive, Scope, Send

SECONDS_MAX = 60
"""A conversation that takes longer hangs. None waits for anything but the event loop."""


class HostileError(Exception):
    """Raised by whatever is asked of a hostile object."""


class RudeError(BaseException):
    """No exception that anybody should handle."""


def _refuse(*_: object, **__: object) -> NoReturn:
    raise HostileError


class Hostile:
    """An application's object, of which nothing can be asked."""

    __str__ = __repr__ = __eq__ = __bool__ = __len__ = __iter__ = __getitem__ = __format__ = _refuse
    __hash__ = _refuse
    __contains__ = __index__ = __int__ = __lt__ = __le__ = __gt__ = __ge__ = __call__ = _refuse


class HostileState:
    """A state of the application's own, that has nothing and says so wrongly."""

    def __getattr__(self, name: str) -> NoReturn:
        raise HostileError


class HostileDict(dict[Any, Any]):
    """A mapping that cannot be read."""

    get = items = keys = values = __iter__ = __contains__ = __getitem__ = _refuse


class HostileStr(str):
    __slots__ = ()
    __eq__ = __len__ = startswith = encode = removeprefix = isprintable = _refuse
    __hash__ = str.__hash__


class Told:
    """An object whose text is a hostile one."""

    def __str__(self) -> str:
        """Gives it."""
        return HostileStr("/a")


class HostileInt(int):
    __eq__ = __lt__ = __le__ = __gt__ = __ge__ = __int__ = __index__ = __abs__ = _refuse
    __hash__ = int.__hash__


class HostileGroup(ExceptionGroup):
    exceptions = property(_refuse)


class Long(Exception):  # noqa: N818 - a long name is all there is to it
    pass


Long.__qualname__ = "x" * 100_000


class Connection(dict[str, Any]):
    """A scope that can be referred to weakly."""


def _failing() -> Iterator[tuple[bytes, bytes]]:
    yield (b"x-first", b"1")
    raise HostileError


_HEADERS = [(b"host", b"test"), (b"user-agent", b"curl"), (b"x-forwarded-for", b"198.51.100.1")]
_PREFLIGHT = [(b"origin", b"a"), (b"access-control-request-method", b"PUT")]
MISSING = object()

Values = dict[str, "Callable[[], Any]"]

ANYTHING: Values = {
    "missing": lambda: MISSING,
    "none": lambda: None,
    "int": lambda: 7,
    "bytes": lambda: b"/bytes",
    "text": lambda: "/text",
    "list": lambda: ["a", b"b"],
    "dict": lambda: {"a": 1},
    "hostile": Hostile,
    "hostile dict": lambda: HostileDict(a=1),
    "hostile text": lambda: HostileStr("/a"),
    "of hostile text": Told,
}

FIELDS: dict[str, Values] = {
    "path": {
        **ANYTHING,
        "health": lambda: "/health",
        "long": lambda: "/" + "x" * 65_536,
        "surrogate": lambda: "/\udc80\x00\u202e",
        "empty": str,
        "slash": lambda: "/a/b",
    },
    "raw_path": {**ANYTHING, "long": lambda: b"/" + b"\xff" * 65_536},
    "method": {
        **ANYTHING,
        "DELETE": lambda: "DELETE",
        "HEAD": lambda: "HEAD",
        "OPTIONS": lambda: "OPTIONS",
        "POST": lambda: "POST",
        "long": lambda: "G" * 65_536,
    },
    "headers": {
        **ANYTHING,
        "generator": lambda: (header for header in _HEADERS),
        "failing generator": _failing,
        "tuple": lambda: tuple(_HEADERS),
        "lists": lambda: [list(header) for header in _HEADERS],
        "of one": lambda: [(b"user-agent",), (b"x-forwarded-for",), (b"origin",)],
        "of three": lambda: [(b"user-agent", b"a", b"b")],
        "empty pairs": lambda: [()],
        "texts": lambda: [("user-agent", "curl"), ("x-forwarded-for", "a")],
        "text values": lambda: [(b"user-agent", "curl"), (b"x-forwarded-for", 7), (b"forwarded", None)],
        "hostile ones": lambda: [(Hostile(), Hostile())],
        "unhashable": lambda: [([], {})],
        "nones": lambda: [None],
        "preflight": lambda: list(_PREFLIGHT),
        "flood": lambda: [(b"x-forwarded-for", b"a" * 100)] * 2_000,
        "huge": lambda: [(b"user-agent", b"a" * 1_000_000)],
    },
    "client": {
        **ANYTHING,
        "of one": lambda: ("192.0.2.7",),
        "empty": tuple,
        "hostile host": lambda: (Hostile(), 1),
        "long": lambda: ("x" * 65_536, 1),
        "number": lambda: [7, 7],
    },
    "query_string": {**ANYTHING, "command": lambda: b"command=ls&container=a", "binary": lambda: b"\xff=%00&=&&"},
    "root_path": {**ANYTHING, "of path": lambda: "/a", "long": lambda: "/r" * 32_768},
    "state": {**ANYTHING, "object": HostileState, "space": SimpleNamespace},
    "extensions": {**ANYTHING, "denial": lambda: {"websocket.http.response": {}}},
    "path_params": {**ANYTHING, "odd": lambda: {"a": Hostile(), 7: "b", "c": None, "d": "x" * 65_536}},
    "route": {
        **ANYTHING,
        "hostile path": lambda: SimpleNamespace(path=Hostile()),
        "failing": HostileState,
        "exec": lambda: SimpleNamespace(path="/pods/{a}/exec"),
    },
    "endpoint": ANYTHING,
    "fastapi": ANYTHING,
    "http_version": {**ANYTHING, "1.0": lambda: "1.0"},
}

TYPES: Values = {
    "http": lambda: "http",
    "websocket": lambda: "websocket",
    "of the future": lambda: "http.next",
    **{name: ANYTHING[name] for name in ("missing", "none", "list", "hostile", "hostile text")},
}

SHAPES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "dict": dict,
    "connection": Connection,
    "proxy": MappingProxyType,
    "chain": ChainMap,
    "user dict": UserDict,
}

_START, _BODY = "http.response.start", "http.response.body"
_LENGTH = [(b"Content-Length", b"1")]

MESSAGES: Values = {
    "start": lambda: {"type": _START, "status": 200, "headers": []},
    "start of one byte": lambda: {"type": _START, "status": 200, "headers": list(_LENGTH)},
    "start of nothing": lambda: {"type": _START, "status": 204},
    "start with trailers": lambda: {"type": _START, "status": 200, "headers": [], "trailers": True},
    "start of 500": lambda: {"type": _START, "status": 500, "headers": []},
    "start of a slash redirect": lambda: {"type": _START, "status": 307, "headers": [(b"location", b"/a/b/")]},
    "start of a redirect": lambda: {"type": _START, "status": 308, "headers": iter([(b"location", b"/a/b/")])},
    "start without status": lambda: {"type": _START},
    **{
        f"start with status {name}": partial(lambda status: {"type": _START, "status": status()}, status)
        for name, status in {
            **ANYTHING,
            "huge": lambda: 10**5000,
            "true": lambda: True,
            "hostile number": lambda: HostileInt(200),
        }.items()
    },
    **{
        f"start with headers {name}": partial(lambda of: {"type": _START, "status": 200, "headers": of()}, headers)
        for name, headers in FIELDS["headers"].items()
    },
    "body": lambda: {"type": _BODY, "body": b"x"},
    "body of a view": lambda: {"type": _BODY, "body": memoryview(b"xy")},
    "no body": lambda: {"type": _BODY},
    "body and more": lambda: {"type": _BODY, "body": b"x", "more_body": True},
    "body and perhaps more": lambda: {"type": _BODY, "body": b"x", "more_body": Hostile()},
    **{
        f"body {name}": partial(lambda body: {"type": _BODY, "body": body(), "more_body": True}, body)
        for name, body in {**ANYTHING, "of a size": lambda: 10**15}.items()
    },
    "trailers": lambda: {"type": "http.response.trailers", "headers": []},
    "push": lambda: {"type": "http.response.push", "path": "/a", "headers": []},
    "path to send": lambda: {"type": "http.response.pathsend", "path": "/a"},
    "file to send": lambda: {"type": "http.response.zerocopysend", "file": 7},
    "early hint": lambda: {"type": "http.response.early_hint", "links": [b"a"]},
    "debug": lambda: {"type": "http.response.debug", "info": Hostile()},
    "accept": lambda: {"type": "websocket.accept"},
    "close": lambda: {"type": "websocket.close"},
    **{
        f"close with {name}": partial(lambda code: {"type": "websocket.close", "code": code()}, code)
        for name, code in {**ANYTHING, "1000": lambda: 1000, "4000": lambda: 4000, "huge": lambda: 10**5000}.items()
    },
    "text": lambda: {"type": "websocket.send", "text": "x"},
    "denial": lambda: {"type": "websocket.http.response.start", "status": 403, "headers": list(_LENGTH)},
    "odd denial": lambda: {"type": "websocket.http.response.start", "status": "403", "headers": _failing()},
    "denial's body": lambda: {"type": "websocket.http.response.body", "body": b"x"},
    "denial's body and more": lambda: {"type": "websocket.http.response.body", "more_body": True},
    "of an unknown type": lambda: {"type": "http.response.next"},
    "of a hostile type": lambda: {"type": Hostile()},
    "of a listed type": lambda: {"type": ["http.response.start"]},
    "without a type": dict,
    "a hostile dict": lambda: HostileDict(type=_START),
    "none": lambda: None,
    "a text": lambda: _START,
}

GIVEN: Values = {
    "request": lambda: {"type": "http.request", "body": b"x"},
    "request and more": lambda: {"type": "http.request", "body": b'{"command": "ls"}', "more_body": True},
    **{
        f"request of {name}": partial(lambda body: {"type": "http.request", "body": body()}, body)
        for name, body in ANYTHING.items()
    },
    "disconnect": lambda: {"type": "http.disconnect"},
    "connect": lambda: {"type": "websocket.connect"},
    "text": lambda: {"type": "websocket.receive", "text": "x"},
    "websocket disconnect": lambda: {"type": "websocket.disconnect", "code": 1001},
    **{
        f"websocket disconnect with {name}": partial(
            lambda code: {"type": "websocket.disconnect", "code": code()}, code
        )
        for name, code in ANYTHING.items()
    },
    **{f"message {name}": MESSAGES[name] for name in ("of an unknown type", "of a hostile type", "without a type")},
    **{f"message {name}": MESSAGES[name] for name in ("a hostile dict", "none", "a text")},
}

ERRORS: dict[str, Callable[[], BaseException]] = {
    "ValueError": lambda: ValueError("s3cret"),
    "OSError": lambda: OSError("gone"),
    "HTTPException": lambda: HTTPException(418),
    "ClientDisconnect": ClientDisconnect,
    "WebSocketDisconnect": WebSocketDisconnect,
    "RudeError": RudeError,
    "CancelledError": asyncio.CancelledError,
    "GeneratorExit": GeneratorExit,
    "group": lambda: ExceptionGroup("g", [ValueError(1)]),
    "groups": lambda: ExceptionGroup("g", [ExceptionGroup("h", [ValueError(1), OSError(2)])]),
    "rude group": lambda: BaseExceptionGroup("g", [asyncio.CancelledError()]),
    "group of one": lambda: BaseExceptionGroup("g", [RudeError()]),
    "hostile group": lambda: HostileGroup("g", [ValueError(1)]),
    "hostile argument": lambda: ValueError(Hostile()),
    "long name": Long,
    "RecursionError": RecursionError,
}


def _executes(command: object, **ending: object) -> None:
    with audit.execution(command=command, container=Hostile()) as run:  # type: ignore[arg-type] # as is all here
        run.finish(**ending)  # type: ignore[arg-type] # as said


def _executes_and_fails() -> None:
    with audit.execution(command=Hostile()):
        raise HostileGroup("g", [ValueError(1)])


SAYINGS: Values = {
    f"{name} of {kind}": partial(lambda say, value: say(value()), say, value)
    for kind, value in {**ANYTHING, "long": lambda: "x" * 100_000}.items()
    for name, say in {
        "set_actor": lambda value: audit.set_actor(value, type=value),
        "claim_actor": audit.claim_actor,
        "annotate": lambda value: audit.annotate(action=value, resource=value, outcome=value),
        "execution": lambda value: _executes(value, stdout=value, stderr=value, return_code=value),
        "record": lambda value: audit.record(
            action=value, resource=value, actor=value, actor_type=value, outcome=value
        ),
    }.items()
} | {
    "set_actor": lambda: audit.set_actor("alice"),
    "annotate": lambda: audit.annotate(action="LOGIN", resource="users/1", outcome="failure"),
    "execution": lambda: _executes(["ls"], return_code=HostileInt(1)),
    "execution that fails": _executes_and_fails,
    "record": lambda: audit.record(action="DELETE", resource="backups/42"),
}


def _changes(scope: Any) -> dict[str, Callable[[], object]]:
    return {
        "clear the scope": scope.clear,
        "unmark the scope": lambda: scope.pop(SCOPE_KEY, None),
        "forge the mark": lambda: scope.update({SCOPE_KEY: Hostile()}),
        "no type": lambda: scope.pop("type"),
        "hostile actor": lambda: scope.setdefault("state", {}).update(audit_actor=Hostile()),
        "hostile execution": lambda: scope.setdefault("state", {}).update(audit_exec_payload=Hostile()),
        "odd execution": lambda: scope.setdefault("state", {}).update(
            audit_exec_payload={"request": {"command": Hostile()}}
        ),
    }


def say(what: str) -> None:
    """Says something to the audit, which never raises; but one block that it is said in does, on purpose."""
    try:
        SAYINGS[what]()
    except BaseException as error:
        if what != "execution that fails" or type(error) is not HostileGroup:
            raise AssertionError(f"{what} raised {type(error)}") from error


CHANGES = (*_changes(SimpleNamespace(clear=None)), *(f"set {name}" for name in FIELDS))


@dataclass(frozen=True)
class Conversation:
    """One request, by the names of what goes on."""

    type: str = "http"
    shape: str = "dict"
    fields: tuple[tuple[str, str], ...] = ()
    given: tuple[str, ...] = ("request",)
    """What the server gives; a disconnect whenever it is asked for more."""
    steps: tuple[tuple[str, str], ...] = (("send", "start"), ("send", "body"))
    swallows: bool = False
    """The application goes on after an exception."""
    copies: str | None = None
    """A middleware hands on a copy of the scope, of this shape."""
    send_fails: tuple[int, str] | None = None
    receive_fails: tuple[int, str] | None = None
    is_strict: bool = False
    """The server refuses what comes out of order, as real ones do."""

    def scope(self) -> Any:
        """Makes its scope."""
        scope = dict(websocket_scope() if self.type == "websocket" else http_scope())
        made = [("type", TYPES[self.type]()), *((name, FIELDS[name][value]()) for name, value in self.fields)]
        scope.update(made)
        return SHAPES[self.shape]({name: value for name, value in scope.items() if value is not MISSING})


@dataclass
class Seen:
    """What both sides saw of a conversation, as far as it can be compared."""

    scope: object = None
    received: list[object] = field(default_factory=list)
    sent: list[Any] = field(default_factory=list)
    steps: list[object] = field(default_factory=list)
    """How each step ended, for the application."""
    ended: object = None
    """What came out in the end."""
    is_own: bool = False
    """It is the very exception that the application or the server raised."""
    same_messages: bool = True
    """Each message came out as the object that went in."""
    is_marked: bool = False
    dies_at_once: bool = False
    """Nothing refers to the scope any more, and the garbage collector had nothing to do with it."""
    is_kept: bool = False
    """Something does, for good: Starlette's page for debugging may."""
    left: int = 0
    """Tasks that still run."""


class Actors:
    """The application and the server of a conversation."""

    def __init__(self, conversation: Conversation) -> None:
        """Begins it."""
        self.conversation = conversation
        self.seen = Seen()
        self._given = [GIVEN[name]() for name in conversation.given]
        self._asked = self._sent = 0
        self._errors: list[BaseException] = []
        self._objects: list[object] = []
        self._has_started = False

    def _error(self, name: str) -> BaseException:
        self._errors.append(error := ERRORS[name]())
        return error

    async def receive(self) -> Any:
        """Is the server's."""
        self._asked += 1
        if (fails := self.conversation.receive_fails) is not None and self._asked == fails[0]:
            raise self._error(fails[1])
        if self._asked % 2:
            await asyncio.sleep(0)
        ends = "websocket.disconnect" if self.conversation.type == "websocket" else "http.disconnect"
        message = self._given.pop(0) if self._given else {"type": ends}
        self._objects.append(message)
        return message

    async def send(self, message: Any) -> None:
        """Is the server's."""
        self._sent += 1
        if (fails := self.conversation.send_fails) is not None and self._sent >= fails[0]:
            raise self._error(fails[1])
        if self._sent % 2:
            await asyncio.sleep(0)
        self.seen.same_messages &= any(message is known for known in self._objects)
        if self.conversation.is_strict:
            self._check(message)
        # As a server reads it, once.
        if type(message) is dict and hasattr(headers := message.get("headers"), "__next__"):
            message = {**message, "headers": list(cast("Any", headers))}
        self.seen.sent.append(shown(message))

    def _check(self, message: Any) -> None:
        kind = message["type"] if type(message) is dict and type(message.get("type")) is str else ""
        if kind.endswith((".start", ".accept")) == self._has_started or not kind:
            self._errors.append(error := RuntimeError("unexpected ASGI message"))
            raise error
        self._has_started = True

    async def application(self, scope: Any, receive: Receive, send: Send) -> None:
        """Is the application: takes its steps, whatever comes of them."""
        self.seen.scope = shown(_without_marks(scope))
        for verb, what in self.conversation.steps:
            try:
                await self._step(verb, what, scope, receive, send)
                self.seen.steps.append(None)
            except BaseException as error:
                self.seen.steps.append(shown(error))
                if not self.conversation.swallows:
                    raise

    async def _step(self, verb: str, what: str, scope: Any, receive: Receive, send: Send) -> None:
        match verb:
            case "send" | "send in a task":
                self._objects.append(message := MESSAGES[what]())
                if verb == "send":
                    await send(message)
                else:
                    async with asyncio.TaskGroup() as group:
                        group.create_task(_call(send, message))
            case "receive":
                message = await receive()
                self.seen.same_messages &= any(message is known for known in self._objects)
                self.seen.received.append(shown(message))
            case "raise":
                raise self._error(what)
            case "say":
                say(what)
            case "say in a thread":
                await asyncio.to_thread(say, what)
            case "cancel":
                await _cancelled()
            case "change":
                _change(scope, what)
            case _:
                raise AssertionError(verb)

    def forget(self) -> None:
        """Lets go of what was raised and sent."""
        self._errors.clear()
        self._objects.clear()
        self._given.clear()


async def _cancelled() -> None:
    current = asyncio.current_task()
    assert current is not None
    current.cancel()
    try:
        await asyncio.sleep(0)
    finally:
        current.uncancel()


def _change(scope: Any, what: str) -> None:
    if (change := _changes(scope).get(what)) is not None:
        change()
    else:
        name = what.removeprefix("set ")
        scope[name] = list(FIELDS[name].values())[-1]()


async def _call(call: Callable[[Any], Awaitable[None]], argument: object) -> None:
    await call(argument)


def _without_marks(scope: Any) -> dict[str, Any]:
    """What a server has given: an audited application's scope has a state as well."""
    kept = {
        name: scope[name] for name in scope if name not in (SCOPE_KEY, "app", "router", "starlette.exception_handlers")
    }
    if type(state := kept.get("state")) is dict and not state:
        del kept["state"]
    return kept


def shown(value: object) -> object:
    """Gives something that can be compared, of an object that may refuse to be."""
    kind = type(value)
    if kind in (str, bytes, int, bool, type(None)):
        return value
    if kind is memoryview:
        return bytes(value)  # type: ignore[call-overload] # as said
    if kind is dict:
        return [(shown(key), shown(each)) for key, each in value.items()]  # type: ignore[attr-defined] # as said
    if kind in (list, tuple):
        return [kind.__name__, *map(shown, value)]  # type: ignore[call-overload] # as said
    if isinstance(value, BaseException):
        return kind, shown(value.args)
    return kind


async def converse(conversation: Conversation, wrap: Callable[[ASGIApp], ASGIApp] = lambda app: app) -> Seen:
    """Runs a conversation, and gives what was seen of it; fails where it does not end."""
    actors = Actors(conversation)
    scope = conversation.scope()
    before = asyncio.all_tasks()
    serving = asyncio.create_task(_serve(wrap(actors.application), scope, actors))
    _, hang = await asyncio.wait({serving}, timeout=SECONDS_MAX)
    assert not hang, f"a conversation that does not end: {conversation}"
    await serving
    seen = actors.seen
    seen.left = len(asyncio.all_tasks() - before)
    try:
        seen.is_marked = any(name == SCOPE_KEY for name in scope if type(name) is str) and "forge" not in str(
            conversation.steps
        )
    except HostileError:
        seen.is_marked = False
    actors.forget()
    if type(scope) is Connection:
        reference = weakref.ref(scope)
        del scope, serving
        seen.dies_at_once = reference() is None
        if not seen.dies_at_once:
            gc.collect()
            seen.is_kept = reference() is not None
    return seen


async def _serve(app: ASGIApp, scope: Scope, actors: Actors) -> None:
    try:
        await app(scope, actors.receive, actors.send)
    except BaseException as error:  # noqa: BLE001 - the server's own view
        actors.seen.ended = shown(error)
        actors.seen.is_own = any(error is known for known in actors._errors)


def copying(app: ASGIApp, conversation: Conversation) -> ASGIApp:
    """Puts a middleware in front that hands on a copy of the scope, where the conversation has one."""
    if conversation.copies is None:
        return app
    shape = SHAPES[conversation.copies]

    async def copied(scope: Scope, receive: Receive, send: Send) -> None:
        await app(shape(dict(scope)), receive, send)

    return copied


_STEPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("send", tuple(MESSAGES)),
    ("send in a task", tuple(MESSAGES)),
    ("receive", ("",)),
    ("raise", tuple(ERRORS)),
    ("say", tuple(SAYINGS)),
    ("say in a thread", tuple(SAYINGS)),
    ("cancel", ("",)),
    ("change", CHANGES),
)
_STEPS_MAX = 8
_USUAL = {
    "http": (("receive", ""), ("send", "start"), ("send", "body and more"), ("send", "body")),
    "websocket": (("receive", ""), ("send", "accept"), ("receive", ""), ("send", "text"), ("send", "close")),
}


def conversations() -> st.SearchStrategy[Conversation]:
    """Any conversation; Hypothesis makes a failing one as plain as it can be."""
    fields = st.one_of([st.tuples(st.just(name), st.sampled_from(list(values))) for name, values in FIELDS.items()])
    step = st.one_of([st.tuples(st.just(verb), st.sampled_from(names)) for verb, names in _STEPS])
    fails = st.none() | st.tuples(st.integers(1, 4), st.sampled_from(list(ERRORS)))
    return st.builds(
        Conversation,
        type=st.sampled_from([*TYPES, *["http"] * 8, *["websocket"] * 4]),
        shape=st.sampled_from(["dict", "dict", *SHAPES]),
        fields=st.lists(fields, max_size=3).map(tuple),
        given=st.lists(st.sampled_from(list(GIVEN)), max_size=3).map(tuple),
        steps=st.one_of([st.just(usual) for usual in _USUAL.values()])
        .flatmap(lambda usual: st.lists(step | st.sampled_from(usual), max_size=_STEPS_MAX))
        .map(tuple),
        swallows=st.booleans(),
        copies=st.sampled_from([None, None, *SHAPES]),
        send_fails=fails,
        receive_fails=fails,
        is_strict=st.booleans(),
    )


def conversation_of(random: Random) -> Conversation:
    """The same by a plain random generator, much faster: a usual request with something unusual in it."""
    choose = random.choice
    kind = choose((*TYPES, *["http"] * 12, *["websocket"] * 6))
    steps = list(_USUAL["websocket" if kind == "websocket" else "http"])
    for _ in range(random.randrange(5)):
        verb, names = choose(_STEPS)
        where = random.randrange(len(steps) + 1)
        steps[where : where + random.randrange(2)] = [(verb, choose(names))]
    fails = [(random.randint(1, 4), choose(list(ERRORS))) if random.random() < 0.15 else None for _ in range(2)]
    wrong = random.sample(list(FIELDS), random.choice((0, 0, 0, 1, 1, 2, 3)))
    if random.random() < 0.1:
        steps = steps[: random.randrange(len(steps) + 1)]  # an early end
    return Conversation(
        type=kind,
        shape=choose(("dict", "dict", "dict", *SHAPES)),
        fields=tuple((name, choose(list(FIELDS[name]))) for name in wrong),
        given=tuple(
            choose(list(GIVEN)) if random.random() < 0.3 else usual
            for usual in (("connect", "text") if kind == "websocket" else ("request",))
        ),
        steps=tuple(steps),
        swallows=random.random() < 0.4,
        copies=choose((None, None, None, *SHAPES)),
        send_fails=fails[0],
        receive_fails=fails[1],
        is_strict=random.random() < 0.3,
    )


def without_failing_server(conversation: Conversation) -> Conversation:
    """The same with a server that takes everything."""
    return replace(conversation, send_fails=None, is_strict=False)
