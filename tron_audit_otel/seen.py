"""What is known of a request at its end, and the event that it makes.

Kept apart because of the time: to keep what the server gave takes a microsecond of the event loop; to name the
resource, escape the texts and fill in the event takes ten, and any thread can do it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote

from tron_audit_otel import context, policy, redact, resource, route
from tron_audit_otel.event import NO_HEADERS, Action, AuditEvent, EventName, Outcome, Request
from tron_audit_otel.run import worked

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.context import Context

    from tron_audit_otel.context import Recorder
    from tron_audit_otel.event import Actor, Execution, Resource
    from tron_audit_otel.redact import Redactor
    from tron_audit_otel.source_ip import Claim


AGENTS_CACHED_MAX = 1024
"""Browsers and libraries are few; one that writes itself anew each time costs a search."""


class Seen(NamedTuple):
    """A request at its end. Nothing in it can change any more, and little of it is walked by the garbage collector."""

    record_id: str
    began_ns: int
    duration_ns: int
    context: Context
    client: object
    recorder: Recorder
    claim: Claim
    user_agent: bytes | None
    method: str
    route: str | None
    path: str
    raw_path: bytes | None
    root_path: str
    """The application's own, as are ``path`` and ``raw_path``: before any mount changed them."""
    path_params: Mapping[str, str]
    status: int | None
    close_code: int | None
    rule: policy.Rule
    headers: Mapping[str, tuple[str, ...]]
    """Those that the rule names, secrets and all; without values, those that are too many."""
    actor: Actor
    action: str | None
    """By the application's word, as is ``resource``."""
    resource: Resource | None
    told_outcome: Outcome | None
    outcome: Outcome
    error_type: str | None
    execution: Execution | None

    def event(self) -> AuditEvent:
        """Makes the event."""
        execution, outcome = self.execution, self.outcome
        redactor = self.recorder.redactor
        told = self.resource or self._resource()
        named = resource.without_tokens(told, redactor)
        path = route.url_path(self.raw_path, self.path)
        template = self.route
        # The name after a route has all of a path that is a client's, decoded; cut, or after anything else, it may have
        # less. A mount's own parameters stand in the route with the client's values.
        if named is not told or template is None or self.resource is not None or self.rule.resource is not None:
            template = template and redactor.tokens(template)
            path = redactor.tokens(path)
            # A client may have percent-encoded what needs no encoding.
            if named is not told and "%" in path and redactor.tokens(plain := unquote(path)) is not plain:
                path = redactor.tokens(route.url_path(None, self.path))
        method = policy.known_method(self.method)
        worked_out = worked(execution) if execution is not None else None
        return AuditEvent(
            self.record_id,
            EventName.EXEC if execution is not None else EventName.REQUEST,
            self.began_ns,
            self.duration_ns,
            context.without_tokens(self.actor, redactor),
            self.action or self.rule.action or (Action.EXEC if execution else policy.default_action(method)),
            named,
            self.told_outcome or (outcome if outcome is Outcome.FAILURE or worked_out is None else worked_out),
            self.context,
            self.recorder.proxies.source(self.client, self.claim),
            Request(
                method,
                redact.line(redactor.tokens(self.method)) if method == policy.OTHER_METHOD else None,
                template,
                path,
                self.status,
                _user_agent(self.user_agent, redactor) if self.user_agent is not None else None,
                self.close_code,
                {name: redactor.header(name, values) or (redact.CUT,) for name, values in self.headers.items()}
                if self.headers
                else NO_HEADERS,
            ),
            execution,
            self.error_type or (execution.error_type if execution is not None else None),
        )

    def _resource(self) -> Resource:
        if self.rule.resource is not None:
            return resource.expand(
                self.rule.resource, {**self.path_params, "actor": self.actor.id or self.actor.claimed}
            )
        if self.route is not None and (named := resource.by_route(self.route, self.path_params)) is not None:
            return named
        return resource.by_path(route.url_path(self.raw_path, self.path, self.root_path), self.route)


@lru_cache(AGENTS_CACHED_MAX)
def _user_agent(sent: bytes, redactor: Redactor) -> str:
    return redact.line(redactor.tokens(sent.decode("latin-1")))
