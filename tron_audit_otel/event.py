"""What happened, as plain frozen values: the one thing that the middleware hands on.

Beside each field from outside stands who writes it. "The client" means: believe it only as a claim.
"""

from __future__ import annotations

import os
import re
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.context import Context

ACTION = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
"""An action's name: what a search can group by, in every SIEM."""

ERROR_STATUS_MIN = 500
"""From here on an HTTP status says that the server failed (RFC 9110, 15.6)."""


class _Word(StrEnum):
    """A word of the record; it is equal to its text, and found by it."""

    __hash__ = str.__hash__


class Action(_Word):
    """The actions that this library gives by itself; a policy or a handler may name others (``[A-Z][A-Z0-9_]*``)."""

    READ = "READ"
    CREATE = "CREATE"
    UPDATE = "UPDATE"
    DELETE = "DELETE"
    EXEC = "EXEC"
    LOGIN = "LOGIN"
    OTHER = "OTHER"
    START = "START"
    """Of the trail itself, as are those below: a process begins to record."""
    STOP = "STOP"
    ADOPT = "ADOPT"
    """A process takes over what one that is gone had not delivered."""
    LOSS = "LOSS"
    """Records were lost, or requests refused because no record could have been written."""
    POLICY_CHANGE = "POLICY_CHANGE"


class Outcome(_Word):
    """Whether the action worked; the values are those of ECS ``event.outcome``."""

    SUCCESS = "success"
    FAILURE = "failure"
    UNKNOWN = "unknown"


class ActorType(_Word):
    """What kind of actor: the values of ``audit.actor.type`` in OpenTelemetry's draft Audit Logging signal."""

    USER = "user"
    SERVICE = "service"
    TOKEN = "token"  # noqa: S105 - a kind of actor, not a secret
    SYSTEM = "system"
    ANONYMOUS = "anonymous"


class EventName(_Word):
    """The names under which records are found; an OpenTelemetry log record's ``event_name``."""

    REQUEST = "tron.audit.request"
    EXEC = "tron.audit.exec"
    EVENT = "tron.audit.event"
    SYSTEM = "tron.audit.system"


class Actor(NamedTuple):
    """Who acted. The application says so after it has authenticated the caller, never the client."""

    id: str | None = None
    type: ActorType = ActorType.ANONYMOUS
    claimed: str | None = None
    """The client's own word, which failed to authenticate: for the search by account after a brute force."""


ANONYMOUS = Actor()


class Resource(NamedTuple):
    """What was acted upon: ``instances/abc-123``, with its type and id apart. By policy, or by the application."""

    name: str
    type: str | None = None
    id: str | None = None


class Source(NamedTuple):
    """Where the request came from."""

    address: str | None
    """The address to believe, by ``rule``."""
    peer: str | None
    """The transport's other end, as the ASGI server reports it."""
    rule: str
    suspect: bool = False


class Text(NamedTuple):
    """A text of any length, cut visibly: the head without secrets, and what tells of the whole."""

    head: str
    length: int
    """In characters."""
    sha256: str | None
    """None where something was masked: whoever guesses a short secret could check the guess by it."""
    truncated: bool
    hmac_sha256: str | None = None
    """In its place, where there is a key."""
    masked: int = 0
    """How many secrets were in the head."""


class Execution(NamedTuple):
    """A command run in a container. The client writes the command, the container writes its output."""

    command: tuple[str, ...] | None = None
    command_truncated: bool = False
    container: str | None = None
    stdout: Text | None = None
    stderr: Text | None = None
    exit_code: int | None = None
    error_type: str | None = None
    error_message: str | None = None
    command_masked: int = 0
    """How many secrets were in the command."""


NO_HEADERS: Mapping[str, tuple[str, ...]] = MappingProxyType({})


class Request(NamedTuple):
    """The HTTP side of it."""

    method: str
    """One of the methods that HTTP defines, or ``_OTHER`` (semantic convention of ``http.request.method``)."""
    method_original: str | None
    """The client's method, where ``method`` is ``_OTHER``."""
    route: str | None
    """The template that the router matched; none for a 404."""
    path: str
    """The client's path, percent-encoded and bounded."""
    status: int | None
    """None where the client left before an answer began. 101 for an accepted WebSocket."""
    user_agent: str | None
    """The client."""
    close_code: int | None = None
    """The WebSocket's closing code (RFC 6455, 7.4)."""
    headers: Mapping[str, tuple[str, ...]] = NO_HEADERS
    """Those that a policy rule names. The client."""


class System(NamedTuple):
    """What happened to the trail itself. This library writes it, from its own counts and its configuration."""

    journal: str | None = None
    """The name of the journal's directory."""
    records: int | None = None
    """Adopted, lost, or left for the next process to deliver; for the reason ``rejected``, requests."""
    reason: str | None = None
    """Of a loss: the ledger's word for it."""
    clean_stop: bool | None = None
    """Of an adoption: the process had ended by itself."""
    commit: str | None = None
    on_full: str | None = None
    trusted_proxies: tuple[str, ...] | None = None
    """Of a start, as are the two below: whose word on source addresses is believed."""
    proxy_hops: int | None = None
    proxy_header: str | None = None
    policy_sha256: str | None = None
    policy_previous_sha256: str | None = None


class AuditEvent(NamedTuple):
    """One fact for the audit trail."""

    record_id: str
    name: EventName
    began_ns: int
    """Nanoseconds since the Unix epoch, by the wall clock."""
    duration_ns: int
    """By the monotonic clock: never negative, whatever happens to the wall clock."""
    actor: Actor
    action: str
    resource: Resource
    outcome: Outcome
    context: Context
    """The OpenTelemetry context in which it began: trace and span."""
    source: Source | None = None
    request: Request | None = None
    execution: Execution | None = None
    error_type: str | None = None
    system: System | None = None

    def event(self) -> AuditEvent:
        """Gives itself."""
        return self


class Fact(Protocol):
    """What an event is made of: later, where nobody waits for it."""

    @property
    def record_id(self) -> str:
        """The record's id."""

    def event(self) -> AuditEvent:
        """Makes the event."""


_IDS_DRAWN = 1024
"""Ids' worth of randomness drawn at once. Each draw is a system call for which a thread gives its turn away: for one id
at a time that took 27 microseconds of a request."""

_drawn: list[str] = []

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drawn.clear)  # or parent and child would give the same ids


def record_id() -> str:
    """Gives a new id, a random UUID (RFC 9562, version 4) from the system's random source."""
    try:
        digits = _drawn.pop()
    except IndexError:
        pool = os.urandom(16 * _IDS_DRAWN).hex()
        digits, *others = (pool[start : start + 32] for start in range(0, len(pool), 32))
        _drawn.extend(others)
    variant = _VARIANTS[digits[16]]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"


_VARIANTS = {digit: f"{int(digit, 16) & 3 | 8:x}" for digit in "0123456789abcdef"}
"""RFC 9562, 4.1: the two highest bits are 1 and 0."""


def cause(error: BaseException) -> BaseException:
    """Gives the one exception in a group of one: a task group wraps whatever ends one of its tasks."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


ERROR_TYPE_CHARACTERS_MAX = 256
"""A class that an application makes as it runs can have any name."""


def error_type(error: BaseException) -> str:
    """Names an exception's type for ``error.type``: qualified, except for Python's own; bounded, and one line.

    Never raises: an exception may not let itself be looked at.
    """
    try:
        kind = type(cause(error))
        name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    except Exception:  # noqa: BLE001 - as said
        name = Exception.__name__
    if len(name) <= ERROR_TYPE_CHARACTERS_MAX and name.isprintable():
        return name
    return ascii(name)[1:ERROR_TYPE_CHARACTERS_MAX] + "…"
