"""The quick ways to a rule find the rule that reading them one by one finds."""

from __future__ import annotations

import re

from hypothesis import example, given
from hypothesis import strategies as st

from tests.hostile import fuzzed
from tron_audit_otel.event import ActorType
from tron_audit_otel.policy import EVERYTHING, WEBSOCKET, Facts, Match, Policy, Rule

METHODS = ("GET", "POST", "OPTIONS")
PLACES = ("/a", "/b", "/a/b")
GLOBS = (*PLACES, "/*", "/a/**", "**", "**/b")
STATUSES = ("200", "404", "4xx")


def some(values: tuple[str, ...]) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(values), min_size=1, max_size=2, unique=True)


conditions = {
    "method": some(METHODS),
    "route": some(GLOBS),
    "path": some(GLOBS),
    "status": some(STATUSES),
    "actor_type": some(("user", "anonymous")),
    "cors_preflight": st.booleans(),
}
matches = st.fixed_dictionaries({}, optional=conditions).map(Match.model_validate)
rules = st.lists(st.builds(Rule, name=st.just("any"), match=matches, level=st.sampled_from(["none", "metadata"])))
requests = st.builds(
    Facts,
    method=st.sampled_from((*METHODS, "_OTHER", WEBSOCKET)),
    route=st.none() | st.sampled_from(PLACES),
    path=st.sampled_from((*PLACES, "/c")),
    status=st.none() | st.sampled_from([200, 404, 403]),
    actor_type=st.sampled_from([ActorType.USER, ActorType.ANONYMOUS, ActorType.TOKEN]),
    cors_preflight=st.booleans(),
)

FITS = {
    "/*": re.compile(r"/[^/]*"),
    "/a/**": re.compile(r"/a/.*"),
    "**": re.compile(r".*"),
    "**/b": re.compile(r"(.*/)?b"),
}


def fits(glob: str, text: str) -> bool:
    return FITS[glob].fullmatch(text) is not None if glob in FITS else glob == text


def holds(rule: Rule, request: Facts) -> bool:
    """What docs/policy.md says of a rule's conditions."""
    match = rule.match
    if match.method is not None and request.method == WEBSOCKET:
        return rule.level != "none" and holds(rule, request._replace(method="GET"))
    status = (str(request.status), f"{request.status // 100}xx") if request.status is not None else ()
    return all(
        (
            match.method is None or request.method in match.method,
            match.route is None
            or (request.route is not None and any(fits(glob, request.route) for glob in match.route)),
            match.path is None or any(fits(glob, request.path) for glob in match.path),
            match.status is None or any(each in match.status for each in status),
            match.actor_type is None or str(request.actor_type) in match.actor_type,
            match.cors_preflight is None or match.cors_preflight == request.cors_preflight,
        )
    )


def found(rules: list[Rule], request: Facts) -> Rule:
    """Finds the rule as an exchange does; one that excludes at once is any that does."""
    policy = Policy(rules)
    if policy.excludes(request.method, request.path, cors_preflight=request.cors_preflight):
        return Rule(name="at once", level="none")
    return policy.certain_rule(request.method, request.route) or policy.rule(request)


A_LATER_EXCLUSION = [
    Rule(name="kept", match=Match(route=("/b",))),
    Rule(name="left out", match=Match(path=("/a",)), level="none"),
]
GET_A = Facts("GET", "/a", "/a", status=200, actor_type=ActorType.ANONYMOUS, cors_preflight=False)


@given(rules, requests)
@example(A_LATER_EXCLUSION, GET_A)
@fuzzed
def test_the_first_rule_that_matches_wins(rules: list[Rule], request: Facts) -> None:
    expected = next((rule for rule in rules if holds(rule, request)), EVERYTHING)
    rule = found(rules, request)
    assert rule.level == expected.level
    if rule.level != "none":
        assert rule is expected
    assert Policy(rules).rule(request) is expected


@given(rules, requests, requests)
@fuzzed
def test_what_is_excluded_at_once_is_excluded_whatever_becomes_of_it(
    rules: list[Rule], request: Facts, later: Facts
) -> None:
    policy = Policy(rules)
    ended = request._replace(route=later.route, status=later.status, actor_type=later.actor_type)
    if policy.excludes(request.method, request.path, cors_preflight=request.cors_preflight):
        assert policy.rule(ended).level == "none"
