"""Names what a request acts upon: ``instances/abc-123``. Pure functions."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import quote

from tron_audit_otel import redact
from tron_audit_otel.event import Resource

if TYPE_CHECKING:
    from collections.abc import Mapping

PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
"""A path parameter in a route template, as Starlette's ``path_format`` has it."""

TEMPLATES_CACHED_MAX = 4096
"""A large API has a few hundred; a mount with parameters adds one for each of their values."""

_API_PREFIX = re.compile(r"^/(?:api/)?(?:v\d+/)?")


def named(name: str) -> Resource:
    """Makes a resource of its name: the last two segments of ``a/b/c`` are its type and id."""
    name = redact.line(redact.text(name)).strip("/")
    parent, _, last = name.rpartition("/")
    if not parent:
        return Resource(name, type=name or None)
    return Resource(name, type=parent.rpartition("/")[2] or None, id=last)


def by_path(path: str) -> Resource:
    """Names the resource after a path that no route matched, without a leading ``/api`` and version."""
    return Resource(redact.line(_API_PREFIX.sub("", path).strip("/")))


def by_route(route: str, path_params: Mapping[str, object]) -> Resource:
    """Names the resource after the route up to its last parameter: ``instances/abc-123``.

    A leading ``/api`` and version are left out. A route without parameters is its own name.
    """
    return expand(_target(route), path_params)


@lru_cache(TEMPLATES_CACHED_MAX)
def _target(route: str) -> str:
    template = _API_PREFIX.sub("", route).strip("/")
    places = list(PLACEHOLDER.finditer(template))
    return template[: places[-1].end()] if places else template


def expand(template: str, values: Mapping[str, object]) -> Resource:
    """Fills a template such as ``instances/{instance_id}``; each value is percent-encoded and stays one segment.

    The last placeholder is the id, the segment before it the type. A value that is not known becomes ``-``.
    """
    parts, type_name = _parts(template)
    filled = list(parts)
    for index in range(1, len(parts), 2):
        value = values.get(parts[index])
        filled[index] = "-" if value is None else encode(redact.text(value))
    return Resource(redact.line("".join(filled)), type=type_name, id=filled[-2] if len(filled) > 1 else None)


@lru_cache(TEMPLATES_CACHED_MAX)
def _parts(template: str) -> tuple[tuple[str, ...], str | None]:
    """Gives a template's literals and names in turn, a literal at each end, and what stands before the last name."""
    parts = PLACEHOLDER.split(template)
    before = "".join(parts[:-1:2]) if len(parts) > 1 else template
    return tuple(parts), redact.line(before.strip("/").rpartition("/")[2]) or None


def encode(text: str | bytes, safe: str = "@:+,=$") -> str:
    """Percent-encodes a part of a path, bounded: no control character and no slash can pass as itself."""
    raw = text.encode("utf-8", "backslashreplace") if isinstance(text, str) else text
    # One byte more than fits, so that the cut shows.
    return redact.line(quote(raw[: redact.LINE_CHARACTERS_MAX + 1], safe=safe))
