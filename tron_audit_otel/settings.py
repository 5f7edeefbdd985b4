"""How a model of settings reads the environment: which variables a field comes from, and how a wrong value is told.

An empty variable counts as unset, as OpenTelemetry's specification has it.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Self, get_type_hints

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from tron_audit_otel.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Env:
    """Where a setting comes from: the variables in the order in which they are asked, and the value's unit."""

    names: tuple[str, ...]
    unit: str = ""
    secret: bool = False


def env(*names: str, unit: str = "", secret: bool = False) -> Env:
    """Says where a setting comes from."""
    return Env(names, unit, secret)


def _file(path: Path) -> Path:
    try:
        found = path.is_file()
    except OSError:  # such as one in a directory that we may not enter
        found = False
    if not found:
        raise ValueError("must be an existing file")
    return path


FilePath = Annotated[Path, AfterValidator(_file)]


def _absolute(path: Path) -> Path:
    # Processes that share it may run in different directories, and `tron-audit` in another one yet.
    if not path.is_absolute():
        raise ValueError("must be an absolute path")
    return path


DirectoryPath = Annotated[Path, AfterValidator(_absolute)]


class Settings(BaseModel):
    """A model each of whose fields says by :class:`Env` where it comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    @classmethod
    def read(cls, given: Mapping[str, str]) -> Self:
        """Reads what :func:`set_variables` gives.

        Raises:
            ConfigError: A variable has a value that it cannot have; the message names both.
        """
        values: dict[str, object] = {}
        for field, source in variables(cls).items():
            name = next((name for name in source.names if name in given), None)
            if name is not None:
                values[field] = given[name]
        return cls.validated(values, given)

    @classmethod
    def validated(cls, values: Mapping[str, object], given: Mapping[str, str] | None = None) -> Self:
        """Makes one from its fields' values; `given` says which variables they came from.

        Raises:
            ConfigError: As :meth:`read`.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            # Not `from error`: pydantic's own words about the same would stand before ours, 70 lines of them.
            problems = (_explain(problem, variables(cls), given or {}) for problem in error.errors())
            raise ConfigError("\n".join(problems)) from None


def environment() -> Mapping[str, str]:
    """Gives the process's environment; nobody else in this library reads it."""
    return os.environ


def set_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Gives those variables that have a value, without spaces around it."""
    return {name: value.strip() for name, value in environ.items() if value.strip()}


@cache
def variables(model: type[Settings]) -> Mapping[str, Env]:
    """Gives each setting's variables, by the name of the setting."""
    hints = get_type_hints(model, include_extras=True)
    return MappingProxyType(
        {name: next(part for part in hints[name].__metadata__ if isinstance(part, Env)) for name in model.model_fields}
    )


_KINDS = {"bool_parsing": "true or false", "int_parsing": "an integer", "float_parsing": "a number"}


def _explain(problem: Any, sources: Mapping[str, Env], given: Mapping[str, str]) -> str:  # noqa: ANN401 - pydantic's ErrorDetails, all of it
    message = str(problem["msg"]).removeprefix("Value error, ").replace("Input should be", "must be")
    if not problem["loc"]:
        return message
    source = sources[str(problem["loc"][0])]
    kind = _KINDS.get(problem["type"])
    if kind is not None:
        message = f"must be {kind}, in {source.unit}" if source.unit else f"must be {kind}"
    name = next((name for name in source.names if name in given), source.names[0])
    value = re.sub("//[^/@]*@", "//…@", repr(problem["input"]))
    return f"{name} {message}" if source.secret else f"{name} {message}, not {value}"
