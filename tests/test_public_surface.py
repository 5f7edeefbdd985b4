from __future__ import annotations

import inspect
import re
import tomllib
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import tron_audit_otel as audit

PACKAGE = Path(audit.__file__).parent
PROJECT: dict[str, Any] = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))


def public(module: ModuleType) -> set[str]:
    """What a module has for others, without the modules in it and what `from __future__` leaves behind."""
    return {
        name
        for name, value in vars(module).items()
        if not (name.startswith("_") or isinstance(value, ModuleType) or name == "annotations")
    }


def test_nothing_is_public_by_accident_and_nothing_promised_is_missing() -> None:
    assert public(audit) == set(audit.__all__)


def test_what_is_public_is_named_once_and_in_order() -> None:
    assert sorted(set(audit.__all__)) == audit.__all__


def test_no_public_name_hides_a_module() -> None:
    modules = {path.stem for path in PACKAGE.glob("*.py")}
    assert not modules & set(audit.__all__)


@pytest.mark.parametrize("name", audit.__all__)
def test_what_is_public_is_documented(name: str) -> None:
    value = getattr(audit, name)
    inherits = inspect.isclass(value) and vars(value)["__doc__"] is None
    assert value.__doc__
    assert not inherits


def own_functions() -> list[tuple[str, Any]]:
    found = [(name, getattr(audit, name)) for name in audit.__all__]
    functions = [(name, value) for name, value in found if inspect.isfunction(value)]
    methods = [
        (f"{name}.{method}", function)
        for name, value in found
        if inspect.isclass(value)
        for method, function in inspect.getmembers(value, inspect.isroutine)
        if method in vars(value) and not method.startswith("_") and function.__module__.startswith("tron_audit_otel")
    ]
    return functions + methods


@pytest.mark.parametrize(("name", "function"), own_functions(), ids=[name for name, _ in own_functions()])
def test_every_argument_is_explained(name: str, function: Any) -> None:
    arguments = [argument for argument in inspect.signature(function).parameters if argument not in ("self", "cls")]
    explained = re.findall(r"^ +(\w+): ", inspect.getdoc(function) or "", re.MULTILINE)
    if len(arguments) > 1:
        assert set(arguments) <= set(explained), name


def test_users_types_are_checked_against_ours() -> None:
    assert (PACKAGE / "py.typed").exists()
    assert PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == [PACKAGE.name]


ENTRY_POINTS = {
    **PROJECT["project"]["scripts"],
    **{name: place for group in PROJECT["project"]["entry-points"].values() for name, place in group.items()},
}


@pytest.mark.parametrize("place", ENTRY_POINTS.values(), ids=ENTRY_POINTS)
def test_every_entry_point_leads_somewhere(place: str) -> None:
    module, _, name = place.partition(":")
    assert callable(getattr(import_module(module), name))
