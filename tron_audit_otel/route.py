"""What an ASGI scope says of the route and the path. Pure functions.

The names are those of the ASGI specification, of Starlette's routing and of FastAPI's.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from starlette.applications import Starlette
from starlette.routing import BaseRoute, Host, Match, Mount, Router

from tron_audit_otel import headers
from tron_audit_otel.redact import LINE_CHARACTERS_MAX
from tron_audit_otel.resource import PLACEHOLDER, encode

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.types import Scope

_PLAIN = re.compile(rb"[A-Za-z0-9._~/%-]*")
_ROUTERS = (Mount, Host)

_RAW_PATHS = (bytes, type(None))
_LISTS = (list, tuple)
_TYPES: dict[str, type] = {"path": str, "raw_path": bytes, "method": str, "root_path": str}

PATH_SAFE = "/@:+,=$!&'()*;~"
"""The characters that RFC 3986 lets stand in a path."""


def within(path: str, root_path: str) -> str:
    """Gives a path without the prefix under which the application is served, if it begins so."""
    if not root_path:
        return path
    rest = path.removeprefix(root_path)
    return rest if rest == "" or rest.startswith("/") else path


def well_formed(scope: Scope) -> Scope:
    """Gives the scope or, where its server keeps to no types, what of it can be read as ASGI has it."""
    get = scope.get
    if (
        type(get("path")) is str
        and type(get("raw_path")) in _RAW_PATHS
        and type(get("method", "")) is str
        and type(get("root_path", "")) is str
        and type(get("headers", ())) in _LISTS
    ):
        return scope
    read: dict[str, Any] = {name: get(name) for name, kind in _TYPES.items() if type(get(name)) is kind}
    sent = get("headers")
    # What can be read but once is the application's to read.
    listed = headers.pairs(sent) if isinstance(sent, list | tuple) else []
    return {"type": get("type"), "path": "", **read, "client": get("client"), "headers": listed}


def template(scope: Scope, root_path: str, router: Router | None = None) -> str | None:
    """Gives the template of the route that matched, with the prefixes of its routers and mounts; none for a 404.

    ``root_path`` is the scope's at the application's door, before any mount added to it; ``router`` the application's.
    """
    try:
        route = scope.get("route")
        # FastAPI 0.137 and newer leave the prefix of `include_router` out of the route, and keep the whole here.
        effective = scope.get("fastapi", {}).get("effective_route_context")
        if effective is not None and getattr(effective, "original_route", None) is route:
            route = getattr(effective, "starlette_route", None) or effective
        path: str | None = getattr(route, "path_format", None) or getattr(route, "path", None)
        if type(path) is not str or isinstance(route, _ROUTERS):
            return None  # some versions name the mount here, where nothing within it matched
        mounted = within(scope.get("root_path", ""), root_path)
        return _mounts(mounted, router, scope) + path if mounted else path
    except Exception:  # noqa: BLE001 - an application may put any object there
        return None


def _mounts(path: str, router: Router | None, scope: Scope) -> str:
    """Gives the templates of the mounts that took this beginning of a path: a scope has only what they matched.

    Of mounts that are none of Starlette's it is the path itself: encoded, no part of it is a placeholder of ours.
    """
    found = _find_mounts(path, router.routes if router is not None else (), scope)
    # One of another router's that stands before it, as an included one's, has other parameters.
    took = scope.get("path_params") or {}
    return found if all(name in took for name in PLACEHOLDER.findall(found)) else encode(path, PATH_SAFE)


def _find_mounts(path: str, routes: Iterable[BaseRoute], scope: Scope) -> str:
    """As Starlette's router, it asks none behind the first that matches."""
    for route in routes:
        if isinstance(route, Host) and route.matches(scope)[0] is not Match.NONE:
            return _find_mounts(path, route.routes, scope)
        if isinstance(route, Mount) and (match := route.path_regex.match(f"{path}/")):
            rest = match["path"].removesuffix("/")
            own = route.path_format.removesuffix("/{path}")
            return own + (_find_mounts(f"/{rest}", route.routes, scope) if rest else "")
    return encode(path, PATH_SAFE)


def is_routed(scope: Scope) -> bool:
    """Whether a route's endpoint answers, and not a router on the way to one."""
    if (route := scope.get("route")) is not None and not isinstance(route, _ROUTERS):
        return True
    endpoint = scope.get("endpoint")  # of a mount, the mounted application: one with a router may redirect by itself
    return endpoint is not None and not isinstance(endpoint, Router | Starlette)


def url_path(raw_path: bytes | None, path: str, root_path: str = "") -> str:
    """Gives the path as the client sent it, percent-encoded; ASGI's decoded path turns ``%0A`` into a line break.

    Where ``root_path`` is given, it is left out.
    """
    if raw_path is None:
        sent = encode(path, PATH_SAFE)
    elif len(raw_path) <= LINE_CHARACTERS_MAX and _PLAIN.fullmatch(raw_path):
        sent = raw_path.decode("ascii")
    else:
        sent = encode(raw_path, PATH_SAFE + "%")
    return within(sent, encode(root_path, PATH_SAFE)) if root_path else sent


def is_slash_redirect(root_path: str, path: str, location: bytes) -> bool:
    """Whether a redirect leads to the same path with a slash more or less: Starlette's answer to a missing slash."""
    target = unquote(urlsplit(location.decode("latin-1")).path)
    same = target.rstrip("/") in (path.rstrip("/"), f"{root_path}{path}".rstrip("/"))
    # Starlette never redirects from the root; a redirect to another host's root looks the same from here.
    return bool(path.strip("/")) and same and target.endswith("/") != path.endswith("/")
