from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, strategies

from tests import hostile
from tests.hostile import fuzzed, is_safe_line
from tron_audit_otel.redact import LINE_CHARACTERS_MAX
from tron_audit_otel.route import is_slash_redirect, template, url_path, within

if TYPE_CHECKING:
    from starlette.types import Scope

ROUTE = SimpleNamespace(path="/items/{path:path}", path_format="/items/{path}")
OTHER = SimpleNamespace(path_format="/other")
WHOLE = SimpleNamespace(path_format="/prefix/items/{path}")


def included(original: Any, **parts: Any) -> dict[str, Any]:
    return {"effective_route_context": SimpleNamespace(original_route=original, **parts)}


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        pytest.param({}, None, id="404"),
        pytest.param({"route": None}, None, id="no-route"),
        pytest.param({"route": SimpleNamespace()}, None, id="route-without-path"),
        pytest.param({"route": ROUTE}, "/items/{path}", id="converter-left-out"),
        pytest.param({"route": SimpleNamespace(path="/static")}, "/static", id="mount"),
        pytest.param({"route": ROUTE, "root_path": "/door"}, "/items/{path}", id="root-path"),
        pytest.param({"route": ROUTE, "root_path": "/door/mount"}, "/mount/items/{path}", id="mount-under-root-path"),
        pytest.param({"route": ROUTE, "root_path": "/elsewhere"}, "/elsewhere/items/{path}", id="another-root-path"),
        pytest.param({"route": ROUTE, "fastapi": {}}, "/items/{path}", id="fastapi-without-context"),
        pytest.param(
            {"route": ROUTE, "fastapi": included(OTHER, starlette_route=WHOLE)},
            "/items/{path}",
            id="context-of-another-route",
        ),
        pytest.param(
            {"route": ROUTE, "fastapi": included(ROUTE, starlette_route=WHOLE)},
            "/prefix/items/{path}",
            id="included-router",
        ),
        pytest.param(
            {"route": ROUTE, "fastapi": included(ROUTE, starlette_route=None, path="/prefix/x")},
            "/prefix/x",
            id="included-without-starlette-route",
        ),
        pytest.param(
            {"route": ROUTE, "fastapi": included(ROUTE, path_format="/prefix/y")},
            "/prefix/y",
            id="included-as-path-format",
        ),
    ],
)
def test_the_template_of_the_route_that_matched(scope: Scope, expected: str | None) -> None:
    assert template(scope, "/door" if str(scope.get("root_path", "")).startswith("/door") else "") == expected


@pytest.mark.parametrize(
    ("raw_path", "path", "expected"),
    [
        pytest.param(b"/pods/a%0Ab", "/pods/a\nb", "/pods/a%0Ab", id="encoded-line-break"),
        pytest.param(b"/pods/a%2Fb", "/pods/a/b", "/pods/a%2Fb", id="encoded-slash"),
        pytest.param(None, "/pods/a\nb", "/pods/a%0Ab", id="server-gives-no-raw-path"),
        pytest.param(None, "/a%b", "/a%25b", id="percent"),
        pytest.param(b"/a\nb\xff", "/ab", "/a%0Ab%FF", id="raw-bytes"),
        pytest.param(b"/a b?c#d", "/a b", "/a%20b%3Fc%23d", id="not-a-path"),
        pytest.param(b"", "/x", "", id="empty"),
        pytest.param(b"/;a=1,2/(b)'*!$&+:@~", "", "/;a=1,2/(b)'*!$&+:@~", id="reserved-that-may-stand"),
    ],
)
def test_the_path_is_as_the_client_sent_it_and_never_decoded(raw_path: bytes | None, path: str, expected: str) -> None:
    assert url_path(raw_path, path) == expected


@fuzzed
@given(strategies.none() | strategies.binary(), hostile.text)
def test_a_path_is_a_bounded_line(raw_path: bytes | None, path: str) -> None:
    assert is_safe_line(url_path(raw_path, path), LINE_CHARACTERS_MAX)


@pytest.mark.parametrize(
    ("root_path", "path", "location", "expected"),
    [
        pytest.param("", "/items", b"http://test/items/", True, id="slash-added"),
        pytest.param("", "/items/", b"http://test/items", True, id="slash-removed"),
        pytest.param("", "/items", b"http://test/items/?a=1", True, id="with-query"),
        pytest.param("", "/items", b"/items/", True, id="relative"),
        pytest.param("/door", "/items", b"http://test/door/items/", True, id="below-a-root-path"),
        pytest.param("/door", "/door/items", b"http://test/door/items/", True, id="root-path-in-the-path"),
        pytest.param("", "/a b", b"http://test/a%20b/", True, id="encoded"),
        pytest.param("", "/caf\u00e9", b"http://test/caf%C3%A9/", True, id="non-ascii"),
        pytest.param("", "/items", b"http://test/items", False, id="same-path"),
        pytest.param("", "/items", b"https://test/items", False, id="to-https"),
        pytest.param("", "/items", b"http://test/other/", False, id="another-path"),
        pytest.param("", "/items", b"http://test/items/1/", False, id="below"),
        pytest.param("/door", "/items", b"http://test/elsewhere/items/", False, id="another-root-path"),
        pytest.param("", "/", b"https://login.example.com", False, id="from-the-root-to-another-host"),
        pytest.param("", "/", b"", False, id="empty"),
    ],
)
def test_only_a_redirect_to_the_same_path_is_a_slash_redirect(
    root_path: str, path: str, location: bytes, *, expected: bool
) -> None:
    assert is_slash_redirect(root_path, path, location) is expected


@pytest.mark.parametrize(
    ("path", "root_path", "expected"),
    [
        ("/api/i/1", "/api", "/i/1"),
        ("/api", "/api", ""),
        ("/apix/i/1", "/api", "/apix/i/1"),
        ("/i/1", "", "/i/1"),
        ("/i/1", "/api", "/i/1"),
    ],
)
def test_a_prefix_ends_where_a_segment_ends(path: str, root_path: str, expected: str) -> None:
    assert within(path, root_path) == expected
    assert url_path(path.encode(), path, root_path) == expected
