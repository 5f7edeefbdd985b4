from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, strategies
from pydantic import ValidationError

from tests.hostile import fuzzed
from tron_audit_otel.event import Action, ActorType
from tron_audit_otel.policy import (
    DEFAULT_RULES,
    EVERYTHING,
    HTTP_METHODS,
    Facts,
    Match,
    Policy,
    Rule,
    default_action,
    docs_rule,
)


def facts(method: str = "GET", route: str | None = None, path: str = "/", **changes: Any) -> Facts:
    usual = Facts(method, route, path, status=200, actor_type=ActorType.ANONYMOUS, cors_preflight=False)
    return usual._replace(**changes)


def holds(match: Match, request: Facts) -> bool:
    return match.allows(request.method) and match.may_match(request.route) and match.matches(request)


GLOBS = [
    # glob, what it matches, what it does not
    ("/healthz", ["/healthz"], ["/healthz/", "/healthz/x", "/a/healthz", "/health", "/healthz\n"]),
    ("/a/*", ["/a/b", "/a/", "/a/{id}"], ["/a", "/a/b/c", "/b/a"]),
    ("/a/*/c", ["/a/b/c", "/a//c"], ["/a/c", "/a/b/b/c"]),
    ("/a*", ["/a", "/ab"], ["/a/b", "/b"]),
    ("/a/**", ["/a/", "/a/b", "/a/b/c"], ["/a", "/ab"]),
    ("/a/**/c", ["/a/c", "/a/b/c", "/a/b/b/c"], ["/a/bc", "/ac", "/a/c/d"]),
    ("**/exec", ["/exec", "/pods/x/exec", "exec"], ["/executor", "/exec/x", "/pods/x-exec"]),
    ("**", ["/", "/a/b", "", "/a\nb"], []),
    ("/**", ["/", "/a/b"], [""]),
    ("/a.b", ["/a.b"], ["/axb"]),
    ("/a+(b)[c]|d?", ["/a+(b)[c]|d?"], ["/aa(b)c", "d"]),
    ("/a/{id}", ["/a/{id}"], ["/a/1", "/a/{name}"]),
    ("/a/*", ["/a/b\nc"], []),
]  # fmt: skip


@pytest.mark.parametrize(
    ("glob", "text", "expected"),
    [(glob, text, True) for glob, those, _ in GLOBS for text in those]
    + [(glob, text, False) for glob, _, others in GLOBS for text in others],
)
@pytest.mark.parametrize("of", ["route", "path"])
def test_a_star_stays_in_its_segment_and_two_span_any(glob: str, text: str, of: str, *, expected: bool) -> None:
    request = facts(route=text) if of == "route" else facts(path=text)
    assert holds(Match.model_validate({of: glob}), request) is expected


CONDITIONS = [
    ("no-condition", {}, facts(), facts(status=None)),
    ("method", {"method": "GET"}, facts("GET"), None),
    ("other-method", {"method": "GET"}, None, facts("POST")),
    ("one-of-the-methods", {"method": ["GET", "PUT"]}, facts("PUT"), facts("POST")),
    ("unknown-method", {"method": list(HTTP_METHODS)}, facts("GET"), facts("_OTHER")),
    ("route", {"route": "/a/{id}"}, facts(route="/a/{id}"), facts(route="/b")),
    ("route-of-a-404", {"route": "**"}, facts(route="/"), facts(route=None)),
    ("one-of-the-routes", {"route": ["/a", "/b"]}, facts(route="/b"), facts(route="/c")),
    ("path", {"path": "/a/*"}, facts(path="/a/1"), facts(path="/b/1")),
    ("one-of-the-paths", {"path": ["/a", "/b"]}, facts(path="/b"), facts(path="/ab")),
    ("status", {"status": 401}, facts(status=401), facts(status=403)),
    ("status-as-text", {"status": "401"}, facts(status=401), facts(status=403)),
    ("status-class", {"status": "4xx"}, facts(status=499), facts(status=500)),
    ("one-of-the-statuses", {"status": [404, "5xx"]}, facts(status=503), facts(status=403)),
    ("status-of-a-client-that-left", {"status": ["1xx", "2xx", "3xx", "4xx", "5xx"]}, facts(), facts(status=None)),
    ("actor-type", {"actor_type": "token"}, facts(actor_type=ActorType.TOKEN), facts()),
    ("one-of-the-actor-types", {"actor_type": ["user", "token"]}, facts(actor_type=ActorType.USER), facts()),
    ("preflight", {"cors_preflight": True}, facts(cors_preflight=True), facts()),
    ("no-preflight", {"cors_preflight": False}, facts(), facts(cors_preflight=True)),
    ("all-together", {"method": "GET", "path": "/a", "status": "2xx"}, facts(path="/a"), facts(path="/a", status=404)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("conditions", "yes", "no"), [row[1:] for row in CONDITIONS], ids=[row[0] for row in CONDITIONS]
)
def test_a_rule_matches_where_all_its_conditions_hold(
    conditions: dict[str, Any], yes: Facts | None, no: Facts | None
) -> None:
    match = Match.model_validate(conditions)
    if yes is not None:
        assert holds(match, yes)
    if no is not None:
        assert holds(match, no) is not bool(conditions)


@pytest.mark.parametrize("actor_type", ActorType)
def test_a_rule_can_ask_for_every_type_of_actor(actor_type: ActorType) -> None:
    assert holds(Match.model_validate({"actor_type": str(actor_type)}), facts(actor_type=actor_type))


@pytest.mark.parametrize("method", sorted(HTTP_METHODS))
def test_a_rule_can_ask_for_every_method(method: str) -> None:
    assert holds(Match.model_validate({"method": method}), facts(method))


def test_the_first_rule_that_matches_wins() -> None:
    first = Rule(name="first", match=Match(path=("/a/**",)))
    second = Rule(name="second", match=Match(path=("/a/b",)))
    assert Policy((first, second)).rule(facts(path="/a/b")) is first
    assert Policy((second, first)).rule(facts(path="/a/b")) is second


def test_a_rule_that_fails_at_the_end_leaves_the_request_to_the_next() -> None:
    refused = Rule(name="refused", match=Match(method=("GET",), status=("401",)))
    rest = Rule(name="rest", match=Match(method=("GET",)))
    assert Policy((refused, rest)).rule(facts(status=200)) is rest


def test_what_no_rule_matches_is_recorded() -> None:
    assert Policy(()).rule(facts("DELETE", "/a/{id}")) is EVERYTHING
    assert EVERYTHING.level == "metadata"


@pytest.mark.parametrize(
    ("request_", "name", "level"),
    [
        pytest.param(facts("GET", "/health", "/health"), "health", "none", id="health"),
        pytest.param(facts("HEAD", "/healthz", "/healthz"), "health", "none", id="health-by-head"),
        pytest.param(facts(path="/livez", status=503), "health", "none", id="not-live"),
        pytest.param(facts(path="/readyz", status=404), "health", "none", id="not-there"),
        pytest.param(facts("DELETE", path="/healthz"), "everything", "metadata", id="delete-of-health"),
        pytest.param(facts(path="/healthz/x"), "everything", "metadata", id="below-health"),
        pytest.param(facts("OPTIONS", cors_preflight=True), "cors-preflight", "none", id="preflight"),
        pytest.param(facts("OPTIONS"), "everything", "metadata", id="options"),
        pytest.param(facts("GET", cors_preflight=True), "everything", "metadata", id="preflight-headers-on-a-get"),
        pytest.param(facts("POST", "/pods/{pod}/exec"), "exec", "metadata", id="exec"),
        pytest.param(facts("GET", "/pods/{pod}/exec"), "exec", "metadata", id="exec-by-websocket"),
        pytest.param(facts("DELETE", "/pods/{pod}/exec"), "everything", "metadata", id="delete-of-exec"),
        pytest.param(facts("POST", None, "/pods/x/exec"), "everything", "metadata", id="no-route"),
        pytest.param(facts("POST", "/pods/{pod}", "/pods/exec"), "everything", "metadata", id="pod-named-exec"),
        pytest.param(facts("GET", "/pods/{pod}/logs"), "everything", "metadata", id="logs-of-executor-0"),
        pytest.param(facts("GET", "/secrets/{id}"), "everything", "metadata", id="secrets-read"),
    ],
)
def test_the_default_rules(request_: Facts, name: str, level: str) -> None:
    rule = Policy().rule(request_)
    assert (rule.name, rule.level) == (name, level)


def test_the_default_exec_rule_knows_where_commands_stand() -> None:
    rule = DEFAULT_RULES[-1]
    assert (rule.action, rule.reads_body) == (Action.EXEC, True)
    assert "body.command" in rule.command
    assert "body.container_name" in rule.container


def test_the_documentation_of_an_application_is_not_recorded() -> None:
    rule = docs_rule(("/openapi.json", "/docs", None))
    assert rule is not None
    rules = Policy((rule,))
    assert rules.rule(facts(path="/docs")).level == "none"
    assert rules.rule(facts("HEAD", path="/openapi.json")).level == "none"
    assert rules.rule(facts("POST", path="/docs")) is EVERYTHING
    assert rules.rule(facts(path="/redoc")) is EVERYTHING


@pytest.mark.parametrize("paths", [(), (None, None)], ids=["no-paths", "all-turned-off"])
def test_an_application_without_documentation_has_no_rule_for_it(paths: tuple[None, ...]) -> None:
    assert docs_rule(paths) is None


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        pytest.param({}, False, id="none"),
        pytest.param({"command": "body.command"}, True, id="command"),
        pytest.param({"container": "body.container"}, True, id="container"),
        pytest.param({"command": "query.command", "container": "path.pod"}, False, id="elsewhere"),
    ],
)
def test_a_rule_reads_the_body_only_if_it_says_so(places: dict[str, str], *, expected: bool) -> None:
    assert Rule.model_validate({"name": "x", **places}).reads_body is expected


@pytest.mark.parametrize(
    ("method", "route", "expected"),
    [
        pytest.param("POST", "/pods/{pod}/exec", True, id="route-of-the-rule"),
        pytest.param("POST", "/pods/{pod}", False, id="another-route"),
        pytest.param("PUT", "/pods/{pod}/exec", False, id="another-method"),
        pytest.param("POST", None, True, id="not-routed-yet"),
        pytest.param("PUT", None, False, id="not-routed-yet-but-another-method"),
    ],
)
def test_a_body_is_kept_only_where_a_rule_may_read_it(method: str, route: str | None, *, expected: bool) -> None:
    assert Policy().may_read_body(method, route) is expected


def test_a_rule_for_every_method_may_read_any_body() -> None:
    rules = Policy((Rule(name="x", command=("body.command",)),))
    assert rules.may_read_body("PUT", None)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("GET", "READ"), ("HEAD", "READ"), ("OPTIONS", "READ"), ("QUERY", "READ"), ("POST", "CREATE"),
        ("PUT", "UPDATE"), ("PATCH", "UPDATE"), ("DELETE", "DELETE"), ("TRACE", "OTHER"), ("CONNECT", "OTHER"),
        ("_OTHER", "OTHER"), ("delete", "OTHER"),
    ],
)  # fmt: skip
def test_a_method_stands_for_an_action(method: str, expected: str) -> None:
    assert default_action(method) == expected


def test_a_rule_cannot_be_changed_once_it_is_checked() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        EVERYTHING.level = "none"


@pytest.mark.parametrize(
    ("glob", "path"),
    [
        pytest.param("/**/a/**/b/**/c/**/d", "/x" + "/a/b/c" * 300, id="many-segments"),
        pytest.param("/*a*b*c*d", "/" + "abc" * 400, id="one-long-segment"),
    ],
)
def test_a_long_path_cannot_stall_the_event_loop(glob: str, path: str) -> None:
    began = time.thread_time()  # of a machine that stalls, nothing counts
    assert not holds(Match(path=(glob,)), facts(path=path))
    assert time.thread_time() - began < 5, "a client's path must be matched in linear time"


segments = strategies.text("ab*.\n{}é", max_size=4).filter(lambda segment: "**" not in segment)
paths = strategies.lists(segments, max_size=5).map(lambda parts: "/" + "/".join(parts))


@fuzzed
@given(paths)
def test_a_glob_without_stars_matches_itself_alone(path: str) -> None:
    glob = path.replace("*", "")
    assert holds(Match(path=(glob,)), facts(path=glob))
    assert not holds(Match(path=(glob,)), facts(path=glob + "x"))


@fuzzed
@given(paths, paths)
def test_any_glob_can_be_asked_of_any_path(glob: str, path: str) -> None:
    wider = "/".join("**" if "*" in segment else segment for segment in glob.split("/"))
    if holds(Match(path=(glob,)), facts(path=path)):
        assert holds(Match(path=(wider,)), facts(path=path)), "two stars match whatever one matches"


@fuzzed
@given(paths, paths)
def test_two_stars_match_any_number_of_segments(head: str, tail: str) -> None:
    tail = tail.replace("*", "")
    assert holds(Match(path=("/x/**" + tail,)), facts(path="/x" + head.rstrip("/") + tail))
