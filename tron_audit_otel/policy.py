"""Which requests are recorded, and as what: rules as data, first match wins.

A rule matches on method, route template, path, status and actor type; it sets the level, the action, the resource,
the headers to keep, and where to find the command of an execution that never reached its handler. Rules come from a
YAML file, ``docs/policy.md`` describes it; behind them stand the default rules.
"""

from __future__ import annotations

import re
from functools import cached_property, lru_cache
from hashlib import sha256
from itertools import groupby, takewhile
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from tron_audit_otel.event import ACTION, Action
from tron_audit_otel.resource import PLACEHOLDER

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tron_audit_otel.event import ActorType

HTTP_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "QUERY"})
"""The methods that ``http.request.method`` names; any other is OTHER_METHOD (OpenTelemetry, HTTP conventions)."""

OTHER_METHOD = "_OTHER"

WEBSOCKET = "websocket"
"""Stands for the method of a WebSocket's handshake, which is GET."""

_ACTIONS = {
    "GET": Action.READ,
    "HEAD": Action.READ,
    "OPTIONS": Action.READ,
    "QUERY": Action.READ,
    "POST": Action.CREATE,
    "PUT": Action.UPDATE,
    "PATCH": Action.UPDATE,
    "DELETE": Action.DELETE,
}

_ROUTES_CACHED_MAX = 1024
"""Pairs of method and route template; a large API has a few hundred. Through a mount with parameters a client can make
more, of 2,048 characters."""

_KNOWN_LATER = ("route", "status", "actor_type")
"""Conditions on what is not known of a request when it comes."""

_OF_MATCHES = ("path", "status", "actor_type", "cors_preflight")
"""Conditions that :meth:`Match.matches` looks at."""

HEADERS_MAX = 32
"""Of a rule. Each of them has up to eight values in a record, which must not be all of it."""

_STATUS = re.compile(r"[1-5](?:[0-9]{2}|xx)")

_DOTS = re.compile(r"(?:\A|[/\\])\.{1,2}(?:[/\\]|\Z)")
"""Segments that an application may resolve, and then serves what stands elsewhere, as Starlette's StaticFiles does."""


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _given(value: object) -> object:
    # A key without a value would match everything, an empty list nothing; neither is what its author means.
    if value is None or value in ([], ()):
        raise ValueError("must not be left empty")
    return value


def _method(value: str) -> str:
    if value not in HTTP_METHODS:
        raise ValueError(f"must be one of {', '.join(sorted(HTTP_METHODS))}")
    return value


def _status(value: object) -> str:
    if not _STATUS.fullmatch(text := str(value)):
        raise ValueError("must be a status code such as 404, or a class such as 4xx")
    return text


def _glob(value: str) -> str:
    if not value.startswith(("/", "**")):
        raise ValueError("must begin with / or **")
    if any("**" in segment and segment != "**" for segment in value.split("/")):
        raise ValueError("must have ** as a whole segment, as in /a/**/b")
    if converter := re.search(r"\{(\w+):\w+\}", value):
        raise ValueError(f"must name a parameter as {{{converter[1]}}}, without its converter")
    return value


def _action(value: str) -> str:
    if not ACTION.fullmatch(value):
        raise ValueError("must be capital letters, digits and underscores, such as LOGIN")
    return value


def _template(value: str) -> str:
    if re.search(r"[{}]", PLACEHOLDER.sub("", value)):
        raise ValueError("has a brace that encloses no name")
    return value.strip("/")


def _header(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}", value):
        raise ValueError("must be a header's name, of at most 64 characters")
    return value.lower()


def _headers(value: tuple[str, ...]) -> tuple[str, ...]:
    if len(value) > HEADERS_MAX:
        raise ValueError(f"must name at most {HEADERS_MAX}, not {len(value)}")
    return value


def _place(value: str) -> str:
    if not re.fullmatch(r"body(\.[^.]+)+|(query|path)\.[^.]+", value):
        raise ValueError("must be body.<name>, query.<name> or path.<name>")
    return value


_STRICT = ConfigDict(frozen=True, extra="forbid", strict=True)
_Globs = Annotated[tuple[Annotated[str, AfterValidator(_glob)], ...], BeforeValidator(_as_tuple)]
_Places = Annotated[tuple[Annotated[str, AfterValidator(_place)], ...], BeforeValidator(_as_tuple)]
_Methods = Annotated[tuple[Annotated[str, AfterValidator(_method)], ...], BeforeValidator(_as_tuple)]
_Statuses = Annotated[tuple[Annotated[str, BeforeValidator(_status)], ...], BeforeValidator(_as_tuple)]
_ActorTypes = Annotated[
    tuple[Annotated[Literal["user", "service", "token", "system", "anonymous"], Field()], ...],
    BeforeValidator(_as_tuple),
]
_Headers = Annotated[
    tuple[Annotated[str, AfterValidator(_header)], ...], BeforeValidator(_as_tuple), AfterValidator(_headers)
]


class Match(BaseModel):
    """What a rule asks of a request; a condition that is left out holds for every request."""

    model_config = _STRICT

    method: Annotated[_Methods | None, BeforeValidator(_given)] = None
    route: Annotated[_Globs | None, BeforeValidator(_given)] = None
    path: Annotated[_Globs | None, BeforeValidator(_given)] = None
    status: Annotated[_Statuses | None, BeforeValidator(_given)] = None
    actor_type: Annotated[_ActorTypes | None, BeforeValidator(_given)] = None
    cors_preflight: Annotated[bool | None, BeforeValidator(_given)] = None

    @cached_property
    def _route(self) -> re.Pattern[str] | None:
        return _compile(self.route)

    @cached_property
    def _path(self) -> re.Pattern[str] | None:
        return _compile(self.path)

    def asks(self, *names: str) -> bool:
        """Whether it has one of these conditions."""
        return any(getattr(self, name) is not None for name in names)

    def allows(self, method: str) -> bool:
        """Whether the condition on the method holds."""
        return self.method is None or method in self.method

    def may_match(self, route: str | None) -> bool:
        """Whether the condition on the route holds."""
        return self._route is None or (route is not None and self._route.fullmatch(route) is not None)

    def strays(self, path: str) -> bool:
        """Whether a path that the condition holds for may lead out of what the condition names."""
        return self._path is not None and _DOTS.search(path) is not None

    def matches(self, request: Facts) -> bool:
        """Whether those conditions hold that neither :meth:`allows` nor :meth:`may_match` looks at."""
        return (
            (self._path is None or self._path.fullmatch(request.path) is not None)
            and (self.status is None or _has_status(self.status, request.status))
            and (self.actor_type is None or request.actor_type in self.actor_type)
            and (self.cors_preflight is None or self.cors_preflight == request.cors_preflight)
        )


def _compile(globs: Sequence[str] | None) -> re.Pattern[str] | None:
    r"""Turns globs into one expression: ``*`` stays within a segment, ``**`` spans any number of them."""
    if globs is None:
        return None
    return re.compile("|".join(map(_expression, globs)), re.DOTALL)


def _expression(glob: str) -> str:
    """Each part but the last is taken at its first place, for good: no client's path can make it try them all."""
    head, *rest = re.split(r"(\*\*/?)", glob)
    parts = [
        ("(?:.*?/)??" if span == "**/" else ".*?") + _part(part)
        for span, part in zip(rest[::2], rest[1::2], strict=True)
    ]
    return _part(head) + "".join(f"(?>{part})" for part in parts[:-1]) + "".join(parts[-1:])


def _part(text: str) -> str:
    return "/".join(map(_segment, text.split("/")))


def _segment(text: str) -> str:
    head, *rest = (re.escape(literal) for literal in text.split("*"))
    stars = [f"[^/]*?{literal}" for literal in rest]
    return head + "".join(f"(?>{star})" for star in stars[:-1]) + "".join(stars[-1:])


def _has_status(wanted: Sequence[str], status: int | None) -> bool:
    return status is not None and (str(status) in wanted or f"{status // 100}xx" in wanted)


class Rule(BaseModel):
    """One rule of a policy file."""

    model_config = _STRICT

    name: str = Field(min_length=1)
    match: Match = Match()
    level: Literal["none", "metadata"] = "metadata"
    action: Annotated[str, AfterValidator(_action)] | None = None
    resource: Annotated[str, AfterValidator(_template)] | None = None
    headers: _Headers = ()
    command: _Places = ()
    container: _Places = ()
    commit: Literal["batch", "response"] = "batch"

    def allows(self, method: str) -> bool:
        """Whether the condition on the method holds; no rule about pages leaves out the WebSocket behind their path."""
        if method == WEBSOCKET:
            return self.match.allows("GET") if self.level != "none" else self.match.method is None
        return self.match.allows(method)

    @property
    def reads_body(self) -> bool:
        """Whether the rule looks for an execution's command in the request's body."""
        return any(place.startswith("body.") for place in (*self.command, *self.container))


class PolicyFile(BaseModel):
    """A policy file's whole content."""

    model_config = _STRICT

    rules: tuple[Rule, ...] = Field(strict=False)
    default_rules: bool = True
    """Whether the default rules follow. Without them, a request that no rule matches is recorded as it is."""


class Facts(NamedTuple):
    """What a policy may ask of a request; ``path`` is the application's own, without ``root_path``."""

    method: str
    route: str | None
    path: str
    status: int | None
    actor_type: ActorType
    cors_preflight: bool


EVERYTHING = Rule(name="everything")
"""Stands behind all others: what no rule excludes is recorded."""

DEFAULT_RULES = (
    Rule(
        name="health",
        match=Match(method=("GET", "HEAD"), path=("/health", "/healthz", "/livez", "/readyz")),
        level="none",
    ),
    Rule(name="cors-preflight", match=Match(method=("OPTIONS",), cors_preflight=True), level="none"),
    Rule(
        name="exec",
        match=Match(method=("GET", "POST"), route=("**/exec",)),
        action=Action.EXEC,
        command=("body.command", "query.command"),
        container=("body.container_name", "body.container", "query.container"),
    ),
)
"""Hold for every application; ``docs_rule`` adds its documentation pages, whose paths are its own."""


def docs_rule(paths: Iterable[str | None]) -> Rule | None:
    """Excludes an application's documentation pages and OpenAPI schema, by their paths."""
    found = tuple(path for path in paths if path)
    return Rule(name="docs", match=Match(method=("GET", "HEAD"), path=found), level="none") if found else None


class _AtOnce(NamedTuple):
    """What decides on a request as soon as it comes."""

    path: re.Pattern[str] | None
    cors_preflight: bool | None
    excludes: bool


class _Candidates(NamedTuple):
    """The rules that may hold for a method and a route, each with the conditions that are left, if there are any."""

    rules: tuple[tuple[Rule, Match | None], ...]
    certain: Rule | None
    """The first one that would not have excluded the request at once, if it has no conditions left."""
    read_body: bool


class Policy:
    """Rules, ready to be asked. Immutable but for its caches."""

    def __init__(self, rules: Sequence[Rule] = DEFAULT_RULES) -> None:
        """Takes the rules in their order."""
        self.rules = (*rules, EVERYTHING)
        self._candidates = lru_cache(_ROUTES_CACHED_MAX)(self._find_candidates)
        self._at_once = lru_cache(len(HTTP_METHODS | {OTHER_METHOD, WEBSOCKET}))(self._find_at_once)

    @cached_property
    def digest(self) -> str:
        """Of all rules, the default ones included."""
        return sha256(PolicyFile(rules=self.rules).model_dump_json().encode()).hexdigest()

    def rule(self, request: Facts) -> Rule:
        """Gives the first rule that matches."""
        for rule, match in self._candidates(request.method, request.route).rules:
            if match is None or (match.matches(request) and not (rule.level == "none" and match.strays(request.path))):
                return rule
        return EVERYTHING

    def certain_rule(self, method: str, route: str | None) -> Rule | None:
        """Gives the rule of a request that :meth:`excludes` does not exclude, if method and route alone tell it."""
        return self._candidates(method, route).certain

    def _find_candidates(self, method: str, route: str | None) -> _Candidates:
        rules = [rule for rule in self.rules if rule.allows(method) and rule.match.may_match(route)]
        possible = (rule for rule in self.rules if rule.allows(method))
        # Past the first rule that may record, `excludes` has not asked.
        asked = {id(rule) for rule in takewhile(lambda rule: rule.level == "none", possible) if _excludes_at_once(rule)}
        first = next(rule for rule in rules if id(rule) not in asked)
        certain = None if first.match.asks(*_OF_MATCHES) else first
        conditions = [rule.match if rule.match.asks(*_OF_MATCHES) else None for rule in rules]
        return _Candidates(tuple(zip(rules, conditions, strict=True)), certain, any(rule.reads_body for rule in rules))

    def may_exclude(self, method: str) -> bool:
        """Whether :meth:`excludes` could say so of a request with this method."""
        return bool(self._at_once(method))

    def excludes(self, method: str, path: str, *, cors_preflight: bool = False) -> bool:
        """Whether a request that is not routed yet will have no record, whatever becomes of it."""
        for asked in self._at_once(method):
            if (asked.path is None or asked.path.fullmatch(path) is not None) and (
                asked.cors_preflight is None or asked.cors_preflight == cors_preflight
            ):
                if asked.excludes and asked.path is not None and _DOTS.search(path):
                    continue  # it may lead elsewhere
                return asked.excludes
        return False

    def _find_at_once(self, method: str) -> tuple[_AtOnce, ...]:
        possible = [rule for rule in self.rules if rule.allows(method)]
        certain = [rule for rule in possible if rule.level != "none" or _excludes_at_once(rule)]
        found = []
        for (excludes, cors), rules in groupby(certain, lambda rule: (rule.level == "none", rule.match.cors_preflight)):
            globs = [rule.match.path for rule in rules]
            anywhere = None in globs
            path = None if anywhere else _compile([glob for those in globs for glob in those or ()])
            found.append(_AtOnce(path, cors, excludes))
            if anywhere and cors is None:
                break
        while found and not found[-1].excludes:
            found.pop()  # as if there were none
        return tuple(found)

    def may_read_body(self, method: str, route: str | None) -> bool:
        """Whether a rule might look for a command in this request's body; without a route: on any route."""
        if route is not None:
            return self._candidates(method, route).read_body
        return any(rule.reads_body and rule.allows(method) for rule in self.rules)


def _excludes_at_once(rule: Rule) -> bool:
    return rule.level == "none" and not rule.match.asks(*_KNOWN_LATER)


def known_method(method: str) -> str:
    """Gives the method, or OTHER_METHOD where it is none of HTTP's."""
    return method if method in HTTP_METHODS else OTHER_METHOD


def default_action(method: str) -> str:
    """Gives the action that a method stands for; OTHER where HTTP does not say."""
    return _ACTIONS.get(method, Action.OTHER)
