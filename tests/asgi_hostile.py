"""What no ASGI specification allows, by names: hostile objects, and what scopes and messages are made of with them."""

from __future__ import annotations

import asyncio
from collections import ChainMap, UserDict
from functools import partial
from types import MappingProxyType, SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.websockets import WebSocketDisconnect

import tron_audit_otel as audit
from tron_audit_otel.exchange import SCOPE_KEY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class HostileError(Exception):
    """Raised by whatever is asked of a hostile object."""


class RudeError(BaseException):
    """No exception that anybody should handle."""


def refuse(*_: object, **__: object) -> NoReturn:
    raise HostileError


class Hostile:
    """An application's object, of which nothing can be asked."""

    __str__ = __repr__ = __eq__ = __bool__ = __len__ = __iter__ = __getitem__ = __format__ = refuse
    __hash__ = refuse
    __contains__ = __index__ = __int__ = __lt__ = __le__ = __gt__ = __ge__ = __call__ = refuse


class HostileState:
    """A state of the application's own, that has nothing and says so wrongly."""

    def __getattr__(self, name: str) -> NoReturn:
        raise HostileError


class HostileDict(dict[Any, Any]):
    """A mapping that cannot be read."""

    get = items = keys = values = __iter__ = __contains__ = __getitem__ = refuse


class HostileStr(str):
    __slots__ = ()
    __eq__ = __len__ = startswith = encode = removeprefix = isprintable = refuse
    __hash__ = str.__hash__


class Told:
    """An object whose text is a hostile one."""

    def __str__(self) -> str:
        """Gives it."""
        return HostileStr("/a")


class HostileInt(int):
    __eq__ = __lt__ = __le__ = __gt__ = __ge__ = __int__ = __index__ = __abs__ = refuse
    __hash__ = int.__hash__


class HostileGroup(ExceptionGroup):
    exceptions = property(refuse)


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


def _each(label: str, values: Values, make: Callable[[Any], Any]) -> Values:
    """What is made with each of some values, by the label and the value's name."""
    return {f"{label} {name}": partial(lambda value: make(value()), value) for name, value in values.items()}


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
    **_each(
        "start with status",
        {**ANYTHING, "huge": lambda: 10**5000, "true": lambda: True, "hostile number": lambda: HostileInt(200)},
        lambda status: {"type": _START, "status": status},
    ),
    **_each(
        "start with headers",
        FIELDS["headers"],
        lambda headers: {"type": _START, "status": 200, "headers": headers},
    ),
    "body": lambda: {"type": _BODY, "body": b"x"},
    "body of a view": lambda: {"type": _BODY, "body": memoryview(b"xy")},
    "no body": lambda: {"type": _BODY},
    "body and more": lambda: {"type": _BODY, "body": b"x", "more_body": True},
    "body and perhaps more": lambda: {"type": _BODY, "body": b"x", "more_body": Hostile()},
    **_each(
        "body",
        {**ANYTHING, "of a size": lambda: 10**15},
        lambda body: {"type": _BODY, "body": body, "more_body": True},
    ),
    "trailers": lambda: {"type": "http.response.trailers", "headers": []},
    "push": lambda: {"type": "http.response.push", "path": "/a", "headers": []},
    "path to send": lambda: {"type": "http.response.pathsend", "path": "/a"},
    "file to send": lambda: {"type": "http.response.zerocopysend", "file": 7},
    "early hint": lambda: {"type": "http.response.early_hint", "links": [b"a"]},
    "debug": lambda: {"type": "http.response.debug", "info": Hostile()},
    "accept": lambda: {"type": "websocket.accept"},
    "close": lambda: {"type": "websocket.close"},
    **_each(
        "close with",
        {**ANYTHING, "1000": lambda: 1000, "4000": lambda: 4000, "huge": lambda: 10**5000},
        lambda code: {"type": "websocket.close", "code": code},
    ),
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
    **_each("request of", ANYTHING, lambda body: {"type": "http.request", "body": body}),
    "disconnect": lambda: {"type": "http.disconnect"},
    "connect": lambda: {"type": "websocket.connect"},
    "text": lambda: {"type": "websocket.receive", "text": "x"},
    "websocket disconnect": lambda: {"type": "websocket.disconnect", "code": 1001},
    **_each("websocket disconnect with", ANYTHING, lambda code: {"type": "websocket.disconnect", "code": code}),
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


def changes(scope: Any) -> dict[str, Callable[[], object]]:
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


CHANGES = (*changes(SimpleNamespace(clear=None)), *(f"set {name}" for name in FIELDS))


def say(what: str) -> None:
    """Says something to the audit, which never raises; but one block that it is said in does, on purpose."""
    try:
        SAYINGS[what]()
    except BaseException as error:
        if what != "execution that fails" or type(error) is not HostileGroup:
            raise AssertionError(f"{what} raised {type(error)}") from error
