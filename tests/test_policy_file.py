from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tron_audit_otel.errors import ConfigError
from tron_audit_otel.policy import Match, PolicyFile, Rule
from tron_audit_otel.policy_file import load, parse

if TYPE_CHECKING:
    from pathlib import Path

WHOLE = """\
rules:
  - name: login
    match: {method: POST, route: /auth/login}
    action: LOGIN
    resource: "users/{actor}"
  - name: exec
    match:
      method: [GET, POST]
      route: ["**/exec", "**/run"]
    action: EXEC
    command: [body.command, query.command]
    container: body.container_name
    commit: batch
  - name: refused
    match: {path: /**, status: [401, 4xx], actor_type: anonymous}
    headers: X-Request-ID
  - name: preflight
    match: {cors_preflight: true}
    level: none
default_rules: false
"""


def test_every_key_of_a_policy() -> None:
    assert parse(WHOLE, "policy.yaml") == PolicyFile(
        rules=(
            Rule(
                name="login",
                match=Match(method=("POST",), route=("/auth/login",)),
                action="LOGIN",
                resource="users/{actor}",
            ),
            Rule(
                name="exec",
                match=Match(method=("GET", "POST"), route=("**/exec", "**/run")),
                action="EXEC",
                command=("body.command", "query.command"),
                container=("body.container_name",),
            ),
            Rule(
                name="refused",
                match=Match(path=("/**",), status=("401", "4xx"), actor_type=("anonymous",)),
                headers=("x-request-id",),
            ),
            Rule(name="preflight", match=Match(cors_preflight=True), level="none"),
        ),
        default_rules=False,
    )


def test_the_default_rules_follow_unless_they_are_turned_off() -> None:
    assert parse("rules: []", "policy.yaml").default_rules


def test_rules_may_share_parts_by_anchors() -> None:
    text = "rules:\n- &read\n  name: one\n  level: none\n- <<: *read\n  name: two\n"
    assert [(rule.name, rule.level) for rule in parse(text, "policy.yaml").rules] == [("one", "none"), ("two", "none")]


def rule(*lines: str) -> str:
    return "\n".join(["rules:", "  - name: x", *(f"    {line}" for line in lines)])


METHOD = "must be one of CONNECT, DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT, QUERY, TRACE"
STATUS = "must be a status code such as 404, or a class such as 4xx"
PLACE = "must be body.<name>, query.<name> or path.<name>"

MISTAKES = [
    # what is wrong, the file, the message
    ("empty-file", "", "p.yaml:1: the policy must be a mapping, not None"),
    ("no-mapping", "- name: x", "p.yaml:1: the policy must be a mapping"),
    ("text", "rules", "p.yaml:1: the policy must be a mapping, not 'rules'"),
    ("no-rules", "default_rules: true", "p.yaml:1: rules is missing"),
    ("rules-left-empty", "rules:", "p.yaml:1: rules must be a list, not None"),
    ("rules-are-no-list", "rules:\n  x: {}", "p.yaml:1: rules must be a list"),
    ("unknown-key", "rules: []\nrule: []", "p.yaml:2: rule is not a key of a policy"),
    ("default-rules", "rules: []\ndefault_rules: no", "p.yaml:2: default_rules must be a valid boolean, not 'no'"),
    ("a-rule-is-a-number", "rules:\n  - 1", "p.yaml:2: rule number 1: must be a mapping, not 1"),
    ("a-rule-is-empty", "rules:\n  - name: x\n  -", "p.yaml:3: rule number 2: must be a mapping, not None"),
    ("no-name", "rules:\n  - name: x\n  - level: none", "p.yaml:3: rule number 2: name is missing"),
    ("name-is-a-number", "rules:\n  - name: 1", "p.yaml:2: rule 1: name must be a valid string, not 1"),
    (
        "name-is-empty",
        "rules:\n  - name: ''",
        "p.yaml:2: rule number 1: name String should have at least 1 character, not ''",
    ),
    ("name-is-taken", "rules:\n- name: x\n- name: x", "p.yaml:3: rule 'x': the name is taken by an earlier rule"),
    ("unknown-key-of-a-rule", rule("lvl: none"), "p.yaml:3: rule 'x': lvl is not a key of a policy"),
    ("level", rule("level: body"), "p.yaml:3: rule 'x': level must be 'none' or 'metadata', not 'body'"),
    (
        "action",
        rule("action: login"),
        "p.yaml:3: rule 'x': action must be capital letters, digits and underscores, such as LOGIN, not 'login'",
    ),
    ("action-with-a-tag", rule("action: !x LOGIN"), "p.yaml:3: rule 'x': action must be a valid string"),
    (
        "resource",
        rule("resource: 'users/{a b}'"),
        "p.yaml:3: rule 'x': resource has a brace that encloses no name, not 'users/{a b}'",
    ),
    (
        "resource-names-what-the-route-has-not",
        rule("match: {route: '/users/{id}'}", "resource: users/{user}"),
        "p.yaml:2: rule 'x': resource names {user}, but the route has only: actor, id",
    ),
    (
        "header",
        rule("headers: ['a b']"),
        "p.yaml:3: rule 'x': headers must be a header's name, of at most 64 characters, not 'a b'",
    ),
    (
        "long-header",
        rule(f"headers: [{'x' * 65}]"),
        f"p.yaml:3: rule 'x': headers must be a header's name, of at most 64 characters, not '{'x' * 65}'",
    ),
    (
        "many-headers",
        rule(f"headers: [{', '.join(f'x-{number}' for number in range(33))}]"),
        "p.yaml:3: rule 'x': headers must name at most 32, not 33",
    ),
    ("headers-left-empty", rule("headers:"), "p.yaml:3: rule 'x': headers must be a valid string, not None"),
    ("command", rule("command: command"), f"p.yaml:3: rule 'x': command {PLACE}, not 'command'"),
    ("command-in-the-whole-body", rule("command: body"), f"p.yaml:3: rule 'x': command {PLACE}, not 'body'"),
    ("container", rule("container: query.a.b"), f"p.yaml:3: rule 'x': container {PLACE}, not 'query.a.b'"),
    ("commit", rule("commit: never"), "p.yaml:3: rule 'x': commit must be 'batch' or 'response', not 'never'"),
    ("match-is-text", rule("match: GET"), "p.yaml:3: rule 'x': match must be a mapping, not 'GET'"),
    ("match-left-empty", rule("match:"), "p.yaml:3: rule 'x': match must be a mapping, not None"),
    ("unknown-condition", rule("match:", "  verb: GET"), "p.yaml:4: rule 'x': match.verb is not a key of a policy"),
    (
        "method",
        rule("match:", "  method: get"),
        f"p.yaml:4: rule 'x': match.method {METHOD}, not 'get'",
    ),
    (
        "one-of-the-methods",
        rule("match:", "  method:", "    - GET", "    - GOT"),
        f"p.yaml:6: rule 'x': match.method {METHOD}, not 'GOT'",
    ),
    ("route", rule("match: {route: exec}"), "p.yaml:3: rule 'x': match.route must begin with / or **, not 'exec'"),
    (
        "two-stars-within-a-segment",
        rule("match: {route: '/a/b**'}"),
        "p.yaml:3: rule 'x': match.route must have ** as a whole segment, as in /a/**/b, not '/a/b**'",
    ),
    ("path", rule("match: {path: '*'}"), "p.yaml:3: rule 'x': match.path must begin with / or **, not '*'"),
    ("status", rule("match: {status: 600}"), f"p.yaml:3: rule 'x': match.status {STATUS}, not 600"),
    ("status-class", rule("match: {status: 4XX}"), f"p.yaml:3: rule 'x': match.status {STATUS}, not '4XX'"),
    ("status-is-true", rule("match: {status: true}"), f"p.yaml:3: rule 'x': match.status {STATUS}, not True"),
    (
        "status-in-other-digits",
        rule("match: {status: 4\uff10\uff14}"),
        f"p.yaml:3: rule 'x': match.status {STATUS}, not '4\uff10\uff14'",
    ),
    (
        "actor-type",
        rule("match: {actor_type: root}"),
        "p.yaml:3: rule 'x': match.actor_type must be 'user', 'service', 'token', 'system' or 'anonymous', not 'root'",
    ),
    (
        "preflight",
        rule("match: {cors_preflight: 1}"),
        "p.yaml:3: rule 'x': match.cors_preflight must be a valid boolean, not 1",
    ),
    ("not-yaml", "rules: [", "p.yaml:1: expected the node content, but found '<stream end>'"),
    ("mapping-in-a-value", "rules: []\na: b: c", "p.yaml:2: mapping values are not allowed here"),
    ("tab", "rules:\n\t- name: x", "p.yaml:2: found character '\\t' that cannot start any token"),
    ("control-character", "rules: \x00", "p.yaml: not valid YAML: unacceptable character #x0000: "),
    ("a-key-twice", "rules: []\nrules: []", 'p.yaml:2: found duplicate key "rules" with value "[]"'),
    ("two-documents", "rules: []\n---\nrules: []", "p.yaml:2: but found another document"),
    ("unknown-alias", "rules: *x", "p.yaml:1: found undefined alias 'x'"),
    ("key-is-a-list", "rules: []\n? [a]\n: b", "p.yaml:1: ('a',) Keys should be strings"),
    ("rules-within-themselves", "rules: &a [*a]", "p.yaml:1: rule number 1: must be a mapping"),
]


@pytest.mark.parametrize(("text", "message"), [row[1:] for row in MISTAKES], ids=[row[0] for row in MISTAKES])
def test_a_mistake_is_named_with_its_rule_and_its_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, "p.yaml")
    assert str(caught.value).split("\n")[0].startswith(message)


@pytest.mark.parametrize("condition", ["method", "route", "path", "status", "actor_type", "cors_preflight"])
@pytest.mark.parametrize("nothing", ["", "[]"], ids=["left-empty", "empty-list"])
def test_a_condition_without_a_value_is_not_taken_for_no_condition(condition: str, nothing: str) -> None:
    with pytest.raises(ConfigError, match=rf"p\.yaml:4: rule 'x': match\.{condition} "):
        parse(rule("match:", f"  {condition}: {nothing}", "level: none"), "p.yaml")


def test_a_route_with_a_converter_that_no_template_has_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"p\.yaml:3: rule 'x': match\.route .*\{path:path\}"):
        parse(rule("match: {route: '/files/{path:path}'}"), "p.yaml")


@pytest.mark.parametrize(
    ("match", "resource"),
    [
        pytest.param("{route: '/users/{id}'}", "users/{id}", id="of-the-route"),
        pytest.param("{route: /me}", "users/{actor}", id="the-actor"),
        pytest.param("{route: ['/a/{x}', '/b/{y}']}", "c/{y}", id="of-one-of-the-routes"),
        pytest.param("{route: '**/exec'}", "pods/{pod}", id="of-a-route-that-is-not-known"),
        pytest.param("{path: /a/*}", "a/{x}", id="of-any-route"),
        pytest.param("{route: /me}", "/users/me/", id="outer-slashes"),
    ],
)
def test_a_resource_may_name_what_the_route_can_have(match: str, resource: str) -> None:
    (parsed,) = parse(rule(f"match: {match}", f"resource: '{resource}'"), "p.yaml").rules
    assert parsed.resource == resource.strip("/")


def test_a_mistake_in_a_shared_part_is_named_at_each_rule_that_shares_it() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("rules:\n- &one\n  name: x\n  level: all\n- <<: *one\n", "p.yaml")
    message = "rule 'x': level must be 'none' or 'metadata', not 'all'"
    assert str(caught.value).splitlines() == [f"p.yaml:4: {message}", f"p.yaml:5: {message}"]


def test_every_mistake_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(rule("level: all", "match: {method: get, path: x}"), "p.yaml")
    assert [line.split(": ")[2].split()[0] for line in str(caught.value).splitlines()] == [
        "match.method",
        "match.path",
        "level",
    ]


def test_a_file_is_read_as_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("rules:\n- name: Prüfung", encoding="utf-8")
    assert load(path).rules[0].name == "Prüfung"


def test_a_mistake_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("rules: 1", encoding="utf-8")
    with pytest.raises(ConfigError, match="must be a list, not 1") as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}:1: ")


def test_a_file_that_is_not_there_is_named_with_its_variable(tmp_path: Path) -> None:
    path = tmp_path / "none.yaml"
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value).startswith(f"AUDIT_LOG_POLICY_FILE {str(path)!r} cannot be read: ")


def test_a_file_that_is_not_utf_8_is_named_with_its_variable(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_bytes(b"rules: [\xff]")
    with pytest.raises(ConfigError, match=r"AUDIT_LOG_POLICY_FILE .* cannot be read: .*codec can't decode"):
        load(path)


def test_a_directory_is_no_policy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"AUDIT_LOG_POLICY_FILE .* cannot be read: "):
        load(tmp_path)
