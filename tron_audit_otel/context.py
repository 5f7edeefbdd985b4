"""The current request's draft, by which handlers and dependencies say what only the application knows.

A context variable holds a mutable draft, because a synchronous endpoint runs in a copy of the context: what it
changes in the draft is seen, what it sets in the context is lost. Outside a request, and where audit is off, every
call here does nothing. Nothing here raises: a wrong argument is logged as an error, and the request goes on.
"""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from opentelemetry import context as otel_context
from opentelemetry.trace import INVALID_SPAN, NonRecordingSpan, get_current_span, set_span_in_context

from tron_audit_otel import redact
from tron_audit_otel import resource as resources
from tron_audit_otel.event import (
    ACTION,
    ANONYMOUS,
    Action,
    Actor,
    ActorType,
    AuditEvent,
    EventName,
    Outcome,
    Resource,
    error_type,
    record_id,
)
from tron_audit_otel.redact import NO_KEY, Redactor
from tron_audit_otel.run import Run, worked
from tron_audit_otel.source_ip import NO_PROXIES, Proxies

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextvars import Token
    from enum import StrEnum

    from opentelemetry.context import Context
    from starlette.types import Scope

    from tron_audit_otel.event import Execution, Fact, Source

_logger = logging.getLogger(__name__)

TOKEN_PREFIX = "token:"  # noqa: S105 - a prefix of actors' names
"""The original pull request names an API token's actor ``token:`` and the token's name."""


class Recorder(NamedTuple):
    """What an application's facts become records with."""

    emit: Callable[[Fact], None]
    """Takes each fact; it neither raises nor waits."""
    proxies: Proxies = NO_PROXIES
    redactor: Redactor = NO_KEY


class Draft:
    """What is known of a request so far. One for each request; the middleware makes it and reads it at the end."""

    actor: Actor | None = None
    claimed: str | None = None
    action: str | None = None
    resource: Resource | None = None
    outcome: Outcome | None = None
    error_type: str | None = None
    run: Run | None = None
    closed = False
    """Its record is written, or it has none: what is said from now on needs one of its own."""
    scope: object = None
    """In whose state the original pull request's authentication names the actor."""
    left = False
    """The application has returned: who still runs, such as a worker task, may act for anybody."""

    def __init__(self, recorder: Recorder, context: Context, scope: Scope) -> None:
        """Begins a draft whose further records, such as a second execution's, go the same way."""
        self.recorder = recorder
        self.context = context
        # As they are now: a middleware may put others in their place.
        self.client: object = _bounded(scope.get("client"))
        self.claim = recorder.proxies.claim(scope.get("headers", ()), self.client)

    def who(self) -> Actor | None:
        """Gives the actor, as far as the application has said so by now."""
        if self.actor is None and (name := stated(self.scope, "audit_actor")) is not None and redact.text(name):
            return make_actor(name)
        return self.actor

    @property
    def source(self) -> Source:
        """Where the request came from."""
        return self.recorder.proxies.source(self.client, self.claim)


def _bounded(client: object) -> object:
    """A server that believes forwarding headers gives whatever stands there as the host: it waits in memory."""
    if not (isinstance(client, tuple | list) and type(client) in {tuple, list} and client):
        return client
    host = client[0]
    if type(host) is not str or len(host) <= redact.LINE_CHARACTERS_MAX:
        return client
    return (host[: redact.KEPT_MAX], *client[1:2])


def stated(scope: Any, name: str) -> object:  # noqa: ANN401 - a middleware may hand on any object
    """Gives what an application has set on ``request.state``; a middleware may have put any object there."""
    try:
        state = scope.get("state")
        return state.get(name) if isinstance(state, dict) else getattr(state, name, None)
    except Exception:  # noqa: BLE001 - as said
        return None


_draft: ContextVar[Draft | None] = ContextVar("tron_audit_otel_draft", default=None)
_recorders: list[Recorder] = []


def enter(draft: Draft) -> Token[Draft | None]:
    """Makes ``draft`` the current one; the token goes to :func:`leave`."""
    return _draft.set(draft)


def leave(draft: Draft, token: Token[Draft | None]) -> None:
    """Ends what :func:`enter` began."""
    draft.left, draft.scope = True, None
    try:
        _draft.reset(token)
    except ValueError:  # a coroutine that is closed from outside ends in the context of whoever closes it
        return


def add_recorder(recorder: Recorder) -> None:
    """Facts from outside any request go to the recorder that was added last."""
    if recorder not in _recorders:
        _recorders.append(recorder)


def remove_recorder(recorder: Recorder) -> None:
    """Undoes :func:`add_recorder`."""
    if recorder in _recorders:
        _recorders.remove(recorder)


def open_telemetry_context() -> Context:
    """Gives trace and span of the current OpenTelemetry context, and nothing else of it: a record may wait for long.

    It is never empty, which the SDK takes for "none given". The current one can be ``None`` where a declarative
    configuration names no propagator.
    """
    if not (current := otel_context.get_current()):
        return _NO_SPAN
    span = get_current_span(current).get_span_context()
    return set_span_in_context(NonRecordingSpan(span), otel_context.Context()) if span.is_valid else _NO_SPAN


_NO_SPAN = set_span_in_context(INVALID_SPAN, otel_context.Context())


def make_actor(id: object, type: object = None) -> Actor:  # noqa: A002 - the attributes' own names
    """Makes an actor of what an application says.

    Without a type, ``token:…`` is a token (the original pull request's notation) and everything else a user.
    """
    name = redact.line(redact.text(id))
    by_name = ActorType.TOKEN if name.startswith(TOKEN_PREFIX) else ActorType.USER
    return Actor(name, by_name if type is None else _member(ActorType, type, "actor type") or by_name)


def without_tokens(actor: Actor, redactor: Redactor) -> Actor:
    """Masks what only its form tells to be a token: people paste one where a name is asked for."""
    name, claimed = actor.id and redactor.tokens(actor.id), actor.claimed and redactor.tokens(actor.claimed)
    unchanged = name is actor.id and claimed is actor.claimed
    return actor if unchanged else actor._replace(id=name, claimed=claimed)


_Member = TypeVar("_Member", bound="StrEnum")


def _member(kind: type[_Member], value: object, what: str) -> _Member | None:
    try:
        return kind(redact.text(value))
    except ValueError:
        # Without the value, which may be a client's, and without a traceback, which adds nothing.
        _logger.error("%s must be one of %s; what was given is left out", what, ", ".join(kind))  # noqa: TRY400
        return None


def _action(name: object) -> str:
    text = redact.text(name)
    if ACTION.fullmatch(text):
        return text
    _logger.error("action must be capital letters, digits and underscores; what was given is recorded as OTHER")
    return Action.OTHER


def set_actor(id: object, *, type: str | None = None) -> None:  # noqa: A002 - the attributes' own names
    """Says who acts in the current request; call it where the caller has been authenticated.

    Args:
        id: A stable name, such as an e-mail address or an id. It is turned into text now.
        type: ``user``, ``service``, ``token``, ``system`` or ``anonymous``; by default ``user``, or ``token`` for an
            id that begins with ``token:``.
    """
    if (draft := _draft.get()) is None:
        return
    if id is None:
        _logger.error("set_actor() was given None; the request stays anonymous")
        return
    draft.actor = make_actor(id, type)


def claim_actor(id: object) -> None:  # noqa: A002 - the attribute's own name
    """Keeps a name that a caller claimed and could not prove: the account of a refused login.

    It is recorded apart from the actor, as ``audit.actor.claimed``.
    """
    if id is not None and (draft := _draft.get()):
        draft.claimed = redact.line(redact.text(id))


def annotate(*, action: str | None = None, resource: str | None = None, outcome: str | None = None) -> None:
    """Says what the current request does, where method and path do not tell; it outranks the policy.

    Args:
        action: Such as ``LOGIN``.
        resource: Such as ``users/42``.
        outcome: ``success``, ``failure`` or ``unknown``, where the status code would mislead.
    """
    draft = _draft.get()
    if draft is None:
        return
    if action is not None:
        draft.action = _action(action)
    if resource is not None:
        draft.resource = resources.named(resource)
    if outcome is not None:
        draft.outcome = _member(Outcome, outcome, "outcome")


@contextmanager
def execution(*, command: str | Iterable[str] | None, container: str | None = None) -> Iterator[Run]:
    """Records a command's execution; the command is in the record however the block ends.

    ``with execution(command=["ls"], container="app") as run: … run.finish(stdout=…, return_code=0)``

    It joins the current request's record; a second execution in one request has a record of its own.

    Args:
        command: The arguments, or one string.
        container: The container's name.
    """
    draft = _draft.get()
    recorder = _recorder(draft)
    try:
        run = Run(command, container, recorder.redactor if recorder else NO_KEY)
    except Exception as broken:  # noqa: BLE001 - an application's objects may do anything
        run = Run(f"<{error_type(broken)} while the command was read>")
    joined = draft if draft is not None and draft.run is None and not draft.closed else None
    if joined is not None:
        joined.run = run
    began_ns, began = time.time_ns(), time.perf_counter_ns()
    try:
        yield run
    except BaseException as error:
        run.fail(error_type(error))
        raise
    finally:
        if joined is None or joined.closed:  # closed meanwhile: its end is on no record yet
            done = run.execution
            _emit(
                draft,  # a generator may be ended by whoever is there, in another request
                name=EventName.EXEC,
                began_ns=began_ns,
                duration_ns=time.perf_counter_ns() - began,
                action=Action.EXEC,
                resource=resources.expand("containers/{container}", {"container": done.container})
                if done.container
                else resources.named("containers"),
                outcome=worked(done) or Outcome.UNKNOWN,
                execution=done,
                error_type=done.error_type,
            )


def record(
    *,
    action: str,
    resource: str,
    actor: object = None,
    actor_type: str | None = None,
    outcome: str = Outcome.SUCCESS,
) -> None:
    """Records a fact that is no request of its own: a scheduled deletion, the second of two effects of a request.

    Args:
        action: Such as ``DELETE``.
        resource: Such as ``backups/42``.
        actor: Who acts; by default the current request's actor. Outside a request, and in a task that has outlived
            its request, it is the system itself.
        actor_type: As ``type`` of :func:`set_actor`.
        outcome: ``success``, ``failure`` or ``unknown``.
    """
    draft = _draft.get()
    if _recorder(draft) is None:
        return
    _emit(
        draft,
        name=EventName.EVENT,
        began_ns=time.time_ns(),
        duration_ns=0,
        action=_action(action),
        resource=resources.named(resource),
        outcome=_member(Outcome, outcome, "outcome") or Outcome.UNKNOWN,
        actor=make_actor(actor, actor_type) if actor is not None else None,
    )


def _recorder(draft: Draft | None) -> Recorder | None:
    """Who takes what is said here: the request's, else the last application's; None where audit is off."""
    return draft.recorder if draft else _recorders[-1] if _recorders else None


def _emit(  # noqa: PLR0913 - one call for the records that no request makes
    draft: Draft | None,
    *,
    name: EventName,
    began_ns: int,
    duration_ns: int,
    action: str,
    resource: Resource,
    outcome: Outcome,
    actor: Actor | None = None,
    execution: Execution | None = None,
    error_type: str | None = None,
) -> None:
    recorder = _recorder(draft)
    if recorder is None:
        return
    within = draft if draft is not None and not draft.left else None
    if actor is None:
        actor = (within.who() or ANONYMOUS) if within else Actor(type=ActorType.SYSTEM)
    recorder.emit(
        AuditEvent(
            record_id=record_id(),
            name=name,
            began_ns=began_ns,
            duration_ns=duration_ns,
            actor=without_tokens(actor, recorder.redactor),
            action=action,
            resource=resources.without_tokens(resource, recorder.redactor),
            outcome=outcome,
            context=draft.context if draft else open_telemetry_context(),
            source=within.source if within else None,
            execution=execution,
            error_type=error_type,
        )
    )
