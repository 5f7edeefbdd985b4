"""Names what a request acts upon: ``instances/abc-123``. Pure functions."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

from tron_audit_otel import redact
from tron_audit_otel.event import Resource

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tron_audit_otel.redact import Redactor

PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
"""A path parameter in a route template, as Starlette's ``path_format`` has it."""

TEMPLATES_CACHED_MAX = 2048
"""A large API has a few hundred; a mount with parameters adds one for each of their values."""

TEMPLATE_CHARACTERS_MAX = 512
"""Of one that is kept: a client may write a mount's parameters."""

_API_PREFIX = re.compile(r"^/(?:api/)?(?:v\d+/)?")


def named(name: str) -> Resource:
    """Makes a resource of its name: the last two segments of ``a/b/c`` are its type and id."""
    name = redact.line(redact.text(name)).strip("/")
    parent, _, last = name.rpartition("/")
    if not parent:
        return Resource(name, type=name or None)
    return Resource(name, type=parent.rpartition("/")[2] or None, id=last)


def by_path(path: str, route: str | None = None) -> Resource:
    """Names the resource after a path, without a leading ``/api`` and version; with a route, only without the route's.

    A mount's parameter may have any value, such as ``v1``.
    """
    prefix = _API_PREFIX.match(path if route is None else route)
    return Resource(redact.line(path.removeprefix(prefix[0] if prefix else "").strip("/")))


def by_route(route: str, path_params: Mapping[str, object]) -> Resource | None:
    """Names the resource after the route up to its last parameter: ``instances/abc-123``.

    A leading ``/api`` and version are left out. A route without parameters is its own name. None where a mount's
    parameter and a route's have one name: only the route's value is known.
    """
    parts = (_parts_of_route if len(route) <= TEMPLATE_CHARACTERS_MAX else _parts_of_route.__wrapped__)(route)
    return _fill(parts, path_params) if parts.is_clear else None


@lru_cache(TEMPLATES_CACHED_MAX)
def _parts_of_route(route: str) -> _Parts:
    template = _API_PREFIX.sub("", route).strip("/")
    places = list(PLACEHOLDER.finditer(template))
    return _split(template[: places[-1].end()] if places else template)


def without_tokens(resource: Resource, redactor: Redactor) -> Resource:
    """Masks what only its form tells to be a token: a path may carry one, such as a link to reset a password."""
    # The whole name has type and id in it.
    if (name := redactor.tokens(resource.name)) is resource.name and not name.endswith(redact.CUT):
        return resource
    kind, last = (text and redactor.tokens(text) for text in (resource.type, resource.id))
    return Resource(redact.clipped(name, redact.LINE_CHARACTERS_MAX), kind, last)


def expand(template: str, values: Mapping[str, object]) -> Resource:
    """Fills a template such as ``instances/{instance_id}``; each value is percent-encoded and stays one segment.

    The last placeholder is the id, the segment before it the type. A value that is not known becomes ``-``.
    """
    return _fill(_parts_of_template(template), values)


class _Parts(NamedTuple):
    texts: tuple[str, ...]
    """Literals and names in turn, a literal at each end."""
    type: str | None
    """What stands before the last name."""
    is_clear: bool
    """No name stands twice."""


def _split(template: str) -> _Parts:
    texts = PLACEHOLDER.split(template)
    names = texts[1::2]
    before = "".join(texts[:-1:2]) if names else template
    kind = redact.line(before.strip("/").rpartition("/")[2]) or None
    return _Parts(tuple(texts), kind, len(names) == len(set(names)))


_parts_of_template = lru_cache(TEMPLATES_CACHED_MAX)(_split)
"""For those of a policy."""


def _fill(parts: _Parts, values: Mapping[str, object]) -> Resource:
    filled, last = parts.texts[0], None
    for index in range(1, len(parts.texts), 2):
        value = values.get(parts.texts[index])
        last = "-" if value is None else encode(redact.text(value))
        filled += last + parts.texts[index + 1]
    return Resource(redact.line(filled), parts.type, last)


_PLAIN = re.compile(r"[A-Za-z0-9._~-]*")
"""What stays itself whatever is safe besides."""


def encode(text: str | bytes, safe: str = "@:+,=$") -> str:
    """Percent-encodes a part of a path, bounded: no control character and no slash can pass as itself."""
    if isinstance(text, str) and len(text) <= redact.LINE_CHARACTERS_MAX and _PLAIN.fullmatch(text):
        return text
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    # One byte more than fits, so that the cut shows.
    return redact.line(quote(raw[: redact.LINE_CHARACTERS_MAX + 1], safe=safe))
