"""ASGI conversations that no specification allows: made of names alone, so that each can be printed and run again.

A conversation runs the same against a bare application and an audited one; what both sides saw of it can be compared.
"""

from __future__ import annotations

import asyncio
import gc
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from hypothesis import strategies as st

from tests.asgi import http_scope, websocket_scope
from tests.asgi_hostile import (
    CHANGES,
    ERRORS,
    FIELDS,
    GIVEN,
    MESSAGES,
    MISSING,
    SAYINGS,
    SHAPES,
    TYPES,
    Connection,
    HostileError,
    changes,
    say,
)
from tests.garbage import uncollected
from tron_audit_otel.exchange import SCOPE_KEY

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from random import Random

    from starlette.types import ASGIApp, Receive, Scope, Send

SECONDS_MAX = 60
"""A conversation that takes longer hangs. None waits for anything but the event loop."""


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
        """Gives the application what the server has for it."""
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
        """Takes what the application sends, as a server does."""
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
        """Serves as the application: takes the steps, whatever comes of them."""
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
    if (change := changes(scope).get(what)) is not None:
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
    with uncollected():  # or it might come by and take what would not have died at once
        return await _converse(conversation, wrap)


async def _converse(conversation: Conversation, wrap: Callable[[ASGIApp], ASGIApp]) -> Seen:
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
