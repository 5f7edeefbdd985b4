from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, strategies

from tests import hostile
from tests.hostile import fuzzed, is_safe_line
from tron_audit_otel.event import Resource
from tron_audit_otel.redact import LINE_CHARACTERS_MAX
from tron_audit_otel.resource import (
    TEMPLATE_CHARACTERS_MAX,
    _parts_of_route,
    by_path,
    by_route,
    encode,
    expand,
    named,
)

if TYPE_CHECKING:
    from collections.abc import Mapping


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        pytest.param("users/42", Resource("users/42", "users", "42"), id="type-and-id"),
        pytest.param(
            "organizations/acme/users/42", Resource("organizations/acme/users/42", "users", "42"), id="nested"
        ),
        pytest.param("settings", Resource("settings", "settings"), id="type-only"),
        pytest.param("/users/42/", Resource("users/42", "users", "42"), id="outer-slashes"),
        pytest.param("a//b", Resource("a//b", None, "b"), id="no-type-between-slashes"),
        pytest.param("", Resource(""), id="empty"),
        pytest.param("/", Resource(""), id="slash"),
        pytest.param("users/a\nb", Resource(r"users/a\nb", "users", r"a\nb"), id="line-break"),
        pytest.param(42, Resource("42", "42"), id="number"),
    ],
)
def test_a_name_has_its_type_and_id_apart(name: str, expected: Resource) -> None:
    assert named(name) == expected


@pytest.mark.parametrize(
    ("route", "params", "expected"),
    [
        pytest.param(
            "/instances/{id}", {"id": "abc"}, Resource("instances/abc", "instances", "abc"), id="one-parameter"
        ),
        pytest.param(
            "/api/v1/instances/{id}", {"id": 7}, Resource("instances/7", "instances", "7"), id="api-and-version"
        ),
        pytest.param("/v2/instances/{id}", {"id": "a"}, Resource("instances/a", "instances", "a"), id="version-only"),
        pytest.param(
            "/api/instances/{id}/stop", {"id": "a"}, Resource("instances/a", "instances", "a"), id="verb-after-the-id"
        ),
        pytest.param("/a/{x}/b/{y}/c", {"x": "1", "y": "2"}, Resource("a/1/b/2", "b", "2"), id="two-parameters"),
        pytest.param("/a/{x}/{y}", {"x": "1", "y": "2"}, Resource("a/1/2", "a", "2"), id="parameters-side-by-side"),
        pytest.param("/{x}", {"x": "1"}, Resource("1", None, "1"), id="only-a-parameter"),
        pytest.param(
            "/files/{path}",
            {"path": "a/../b"},
            Resource("files/a%2F..%2Fb", "files", "a%2F..%2Fb"),
            id="slash-in-a-parameter",
        ),
        pytest.param("/a/{x}", {}, Resource("a/-", "a", "-"), id="parameter-without-value"),
        pytest.param("/api/v1/instances", {}, Resource("instances", "instances"), id="no-parameter"),
        pytest.param("/instances/", {}, Resource("instances", "instances"), id="trailing-slash"),
        pytest.param("/", {}, Resource(""), id="root"),
        pytest.param("", {}, Resource(""), id="empty-mount-path"),
        pytest.param("/apivery/{x}", {"x": "1"}, Resource("apivery/1", "apivery", "1"), id="no-api"),
    ],
)
def test_a_route_names_the_resource(route: str, params: Mapping[str, object], expected: Resource) -> None:
    assert by_route(route, params) == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        pytest.param("/api/v1/probe/x", Resource("probe/x"), id="no-route"),
        pytest.param("/v1beta/x", Resource("v1beta/x"), id="no-version"),
    ],
)
def test_a_path_without_a_route_names_the_resource(path: str, expected: Resource) -> None:
    assert by_path(path) == expected


@pytest.mark.parametrize(
    ("template", "values", "expected"),
    [
        pytest.param("users/{actor}", {"actor": "a@b.c"}, Resource("users/a@b.c", "users", "a@b.c"), id="actor"),
        pytest.param("pods/{pod}.log", {"pod": "a"}, Resource("pods/a.log", "pods", "a"), id="suffix"),
        pytest.param("settings/all", {}, Resource("settings/all", "all"), id="no-placeholder"),
        pytest.param("users/{x}", {"x": None}, Resource("users/-", "users", "-"), id="none"),
        pytest.param(
            "users/{x}",
            {"x": "a b/c?d#e%0A"},
            Resource("users/a%20b%2Fc%3Fd%23e%250A", "users", "a%20b%2Fc%3Fd%23e%250A"),
            id="reserved-characters",
        ),
        pytest.param(
            "users/{x}",
            {"x": "{y}", "y": "1"},
            Resource("users/%7By%7D", "users", "%7By%7D"),
            id="a-value-is-no-template",
        ),
        pytest.param("a\n/{x}", {"x": "1"}, Resource(r"a\n/1", r"a\n", "1"), id="line-break-in-the-template"),
    ],
)
def test_a_template_is_filled_and_each_value_stays_one_segment(
    template: str, values: Mapping[str, object], expected: Resource
) -> None:
    assert expand(template, values) == expected


def test_a_value_that_has_no_text_breaks_nothing() -> None:
    class Detached:
        def __str__(self) -> str:
            raise RuntimeError

    assert expand("users/{x}", {"x": Detached()}).id == "%3CDetached%20that%20has%20no%20text%3E"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("a\nb", "a%0Ab", id="line-break"),
        pytest.param("a/b", "a%2Fb", id="slash"),
        pytest.param("%0A", "%250A", id="percent"),
        pytest.param("é", "%C3%A9", id="letter"),
        pytest.param("\udc80", "%ED%B2%80", id="lone-surrogate"),
        pytest.param(b"\xff\x00", "%FF%00", id="bytes"),
        pytest.param("a@b:c+d,e=f$g~h-i_j.k", "a@b:c+d,e=f$g~h-i_j.k", id="harmless"),
    ],
)
def test_a_value_is_percent_encoded(text: str | bytes, expected: str) -> None:
    assert encode(text) == expected


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        pytest.param("x" * LINE_CHARACTERS_MAX, False, id="just-fits"),
        pytest.param("x" * (LINE_CHARACTERS_MAX + 1), True, id="one-too-many"),
        pytest.param("\n" * (LINE_CHARACTERS_MAX // 3), False, id="escapes-just-fit"),
        pytest.param("\n" * (LINE_CHARACTERS_MAX // 3 + 1), True, id="escapes-do-not-fit"),
    ],
)
def test_an_encoded_value_that_is_cut_shows_the_cut(text: str, *, cut: bool) -> None:
    assert encode(text).endswith("…") is cut


@fuzzed
@given(hostile.text | strategies.binary())
def test_an_encoded_value_is_one_bounded_segment(text: str | bytes) -> None:
    encoded = encode(text)
    assert is_safe_line(encoded, LINE_CHARACTERS_MAX)
    assert not set(encoded) & set("/?# ")


@pytest.mark.parametrize("text", hostile.TEXTS.values(), ids=hostile.TEXTS)
def test_no_hostile_value_gets_out_of_its_segment(text: str) -> None:
    encoded = encode(text)
    assert is_safe_line(encoded, LINE_CHARACTERS_MAX)
    assert "/" not in encoded


@fuzzed
@given(hostile.text, strategies.just("/a/{x}/b"), strategies.dictionaries(hostile.text, hostile.text))
def test_every_part_of_a_resource_is_a_bounded_line(text: str, route: str, values: dict[str, str]) -> None:
    made_of_a_route = [by_route(route, {"x": text}), by_route(text, values)]
    for made in (named(text), by_path(text), expand("a/{x}", {"x": text}), *filter(None, made_of_a_route)):
        assert is_safe_line(made.name, LINE_CHARACTERS_MAX)
        assert is_safe_line(made.type or "", LINE_CHARACTERS_MAX)
        assert is_safe_line(made.id or "", LINE_CHARACTERS_MAX)
        assert made.type != ""


def test_no_cache_keeps_a_route_into_which_a_client_wrote() -> None:
    before = _parts_of_route.cache_info().currsize
    route = f"/{'x' * TEMPLATE_CHARACTERS_MAX}/users/{{id}}"
    assert by_route(route, {"id": "7"}) == Resource(f"{'x' * TEMPLATE_CHARACTERS_MAX}/users/7", "users", "7")
    assert _parts_of_route.cache_info().currsize == before
