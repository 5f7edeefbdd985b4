"""What is known of a command that a request runs in a container: said by the handler, or found in the request."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from tron_audit_otel import redact
from tron_audit_otel.event import Execution, Outcome
from tron_audit_otel.redact import NO_KEY, Redactor

if TYPE_CHECKING:
    from starlette.types import Scope

    from tron_audit_otel.event import Text


BODY_BYTES_MAX = 65_536
"""How much of an execution's request body is kept to find its command. A longer body's command is not found."""

EXEC_ERROR = "exec_error"
"""``error.type`` of an execution for which the original's payload has only an error's text."""


class Run:
    """An execution under way, from the command to its end."""

    def __init__(self, command: object, container: object = None, redactor: Redactor = NO_KEY) -> None:
        """Takes the command now, so that it is kept however the execution ends."""
        self._redactor = redactor
        self.execution = complete(Execution(), command, container, redactor)
        """As it stands."""

    def finish(
        self,
        *,
        stdout: str | bytes | None = None,
        stderr: str | bytes | None = None,
        return_code: int | None = None,
    ) -> None:
        """Says how the command ended.

        Args:
            stdout: What it wrote; the record keeps the first 4,096 characters, the length and the SHA-256.
            stderr: The same.
            return_code: Its exit code; anything but 0 makes the outcome a failure, whatever the response's status.
        """
        self.execution = self.execution._replace(
            stdout=self._output(stdout), stderr=self._output(stderr), exit_code=_exit_code(return_code)
        )

    def fail(self, error_type: str, message: object = None) -> None:
        """Says that the command gave no result: it could not start, or nobody waited for its end.

        Args:
            error_type: A class of errors, such as ``timeout``.
            message: More, for people.
        """
        self.execution = self.execution._replace(error_type=_line(error_type), error_message=_line(message))

    def _output(self, value: object) -> Text | None:
        if value is None:
            return None
        return self._redactor.block(value if isinstance(value, str | bytes) else redact.text(value))


def complete(told: Execution, command: object, container: object, redactor: Redactor = NO_KEY) -> Execution:
    """Adds a command and a container where they are not known yet."""
    if told.command is None and command is not None:
        kept, truncated = redactor.command(_arguments(command))
        told = told._replace(command=kept, command_truncated=truncated)
    return told if told.container is not None else told._replace(container=_line(container))


def _arguments(command: object) -> Iterator[str]:
    """Text is one argument, and so is anything else that is no list of them. Read no further than it is kept."""
    if not isinstance(command, Iterable) or isinstance(command, str | bytes | bytearray | Mapping):
        yield redact.text(command)
        return
    try:
        for argument in command:
            yield redact.text(argument)
    except Exception as error:  # noqa: BLE001 - an application's iterable may do anything; the request goes on
        yield f"<{type(error).__name__} while the arguments were read>"


def _line(value: object) -> str | None:
    return None if value is None else redact.line(redact.text(value))


def _exit_code(value: object) -> int | None:
    """An exit code is 8 bits on POSIX, 32 on Windows, or a negated signal; OTLP carries 64."""
    return int(value) if isinstance(value, int) and abs(value) < 2**63 else None


def worked(execution: Execution) -> Outcome | None:
    """Whether a command worked, by its exit code; None where it gave none and nothing failed."""
    if execution.error_type is not None:
        return Outcome.FAILURE
    if execution.exit_code is None:
        return None
    return Outcome.SUCCESS if execution.exit_code == 0 else Outcome.FAILURE


def of_original(payload: object, redactor: Redactor = NO_KEY) -> Execution:
    """Reads ``request.state.audit_exec_payload``, as the original pull request sets it.

    ``{"request": {"command": […], "container_name": …}, "response": {"stdout": …, "stderr": …, "return_code": …}}``,
    or ``{"response": {"error": …}}``. A part of another form is left out.
    """
    request = _mapping(payload, "request")
    response = _mapping(payload, "response")
    run = Run(request.get("command"), request.get("container_name"), redactor)
    run.finish(stdout=response.get("stdout"), stderr=response.get("stderr"), return_code=response.get("return_code"))
    if (error := response.get("error")) is not None:
        run.fail(EXEC_ERROR, error)
    return run.execution


def of_request(  # noqa: PLR0913, PLR0917 - all that is known of it
    told: Execution,
    scope: Scope,
    body: bytearray | None,
    command_at: Iterable[str],
    container_at: Iterable[str],
    redactor: Redactor = NO_KEY,
) -> Execution:
    """Completes what the handler told by what the request says, at the places that a policy rule names.

    A handler that was never reached tells nothing: a dependency refused, or the body was not valid.
    """
    if told.command is not None and told.container is not None:
        return told
    places = _places(scope, body)
    return complete(told, _first(places, command_at), _first(places, container_at), redactor)


def _mapping(value: object, key: str) -> dict[str, Any]:
    part = value.get(key) if isinstance(value, dict) else None
    return part if isinstance(part, dict) else {}


def _places(scope: Scope, body: bytearray | None) -> dict[str, object]:
    query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
    return {
        "path": scope.get("path_params") or {},
        "query": {name: values if len(values) > 1 else values[0] for name, values in query.items()},
        "body": _json(body),
    }


def _json(body: bytearray | None) -> object:
    if body is None or len(body) > BODY_BYTES_MAX:
        return None
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _first(places: Mapping[str, object], wanted: Iterable[str]) -> object:
    for place in wanted:
        found: object = places
        for key in place.split("."):
            found = found.get(key) if isinstance(found, dict) else None
        if found is not None:
            return found
    return None
