"""Reads a policy from YAML; ``docs/policy.md`` describes the file. A mistake is named with its rule and its line."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from tron_audit_otel.errors import ConfigError
from tron_audit_otel.policy import PolicyFile
from tron_audit_otel.resource import PLACEHOLDER

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from tron_audit_otel.config import AuditConfig
    from tron_audit_otel.policy import Rule


def load(path: Path | None) -> PolicyFile:
    """Reads a policy file; without one there are the default rules alone.

    Raises:
        ConfigError: It cannot be read, or is no valid policy; the message names the rule and the line.
    """
    if path is None:
        return PolicyFile(rules=())
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"AUDIT_LOG_POLICY_FILE {str(path)!r} cannot be read: {error}") from error
    return parse(text, str(path))


def parse(text: str, source: str) -> PolicyFile:
    """Checks a policy file's text; ``source`` names it in errors.

    Raises:
        ConfigError: As :func:`load`.
    """
    try:
        tree = YAML(typ="rt").load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}" if mark else source
        raise ConfigError(f"{where}: {error.problem or 'not valid YAML'}") from error
    except YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML: {error}") from error
    try:
        policy = PolicyFile.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(tree, source, problem) for problem in error.errors())) from None
    _check(policy, tree, source)
    return policy


def check_commits(rules: Iterable[Rule], config: AuditConfig) -> None:
    """Refuses a promise that cannot be kept.

    Raises:
        ConfigError: A rule commits its records before the answer, and there is no disk to commit them to.
    """
    by_rule = [rule.name for rule in rules if rule.commit == "response"]
    if by_rule and config.journal == "memory":
        raise ConfigError(f"rule {by_rule[0]!r}: commit: response needs AUDIT_LOG_JOURNAL=disk")


def _check(policy: PolicyFile, tree: object, source: str) -> None:
    names: set[str] = set()
    for index, rule in enumerate(policy.rules):
        where = f"{source}:{_line(tree, ('rules', index))}: rule {rule.name!r}"
        if rule.name in names:
            raise ConfigError(f"{where}: the name is taken by an earlier rule")
        names.add(rule.name)
        if rule.resource and rule.match.route and not any("*" in route for route in rule.match.route):
            known = {name for route in rule.match.route for name in PLACEHOLDER.findall(route)} | {"actor"}
            if unknown := set(PLACEHOLDER.findall(rule.resource)) - known:
                raise ConfigError(
                    f"{where}: resource names {{{min(unknown)}}}, but the route has only: {', '.join(sorted(known))}"
                )


def _explain(tree: object, source: str, problem: Mapping[str, object]) -> str:
    place = problem["loc"]
    assert isinstance(place, tuple)  # noqa: S101 - pydantic documents it so
    keys = [str(key) for key in place if isinstance(key, str)]
    message = str(problem["msg"]).removeprefix("Value error, ").replace("Input should be", "must be")
    message = re.sub(r"a valid (?:dictionary or instance of \w+)", "a mapping", message).replace(
        "a valid tuple", "a list"
    )
    shown = {"missing": "is missing", "extra_forbidden": "is not a key of a policy"}.get(str(problem["type"]))
    value = problem["input"]
    given = f", not {value!r}" if isinstance(value, str | int | float | bool | None) and shown is None else ""
    rule = _rule_name(tree, place)
    knob = ".".join(keys[1:] if rule else keys) or ("" if rule else "the policy")
    return f"{source}:{_line(tree, place)}: {rule}{knob} {shown or message}{given}".replace(":  ", ": ")


def _rule_name(tree: object, place: tuple[object, ...]) -> str:
    try:
        rule = tree["rules"][place[1]]  # type: ignore[index] # what is no such tree raises
    except (KeyError, IndexError, TypeError):
        return ""
    name = rule.get("name") if isinstance(rule, dict) else None
    return f"rule {name!r}: " if name else f"rule number {int(str(place[1])) + 1}: "


def _line(tree: object, place: tuple[object, ...]) -> int:
    """Finds the line of the deepest node of ``place`` that the file really has."""
    found = 1
    for key in place:
        marks = getattr(tree, "lc", None)
        try:
            # There are no marks where the parent is a scalar, or the key came by a merge.
            position = marks.data[key]  # type: ignore[union-attr] # as above
            tree = tree[key]  # type: ignore[index] # what is no such tree raises
        except (AttributeError, KeyError, IndexError, TypeError):
            break
        found = position[0] + 1
    return found
