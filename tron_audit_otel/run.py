"""What is known of a command that a request runs in a container: said by the handler, or found in the request."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from tron_audit_otel import redact
from tron_audit_otel.event import Execution, Outcome
from tron_audit_otel.redact import NO_KEY, Output, Redactor

if TYPE_CHECKING:
    from starlette.types import Scope


QUERY_BYTES_MAX = 65_536
QUERY_FIELDS_MAX = 1024
"""A longer query's command is not found."""

BODY_BYTES_MAX = 65_536
"""How much of an execution's request body is kept to find its command. A longer body's command is not found."""

EXEC_ERROR = "exec_error"
"""``error.type`` of an execution for which the original's payload has only an error's text."""


class Run:
    """An execution under way, from the command to its end."""

    def __init__(self, command: object, container: object = None, redactor: Redactor = NO_KEY) -> None:
        """Takes the command now, so that it is kept however the execution ends."""
        self._redactor = redactor
        self._stdout: Output | None = None
        self._stderr: Output | None = None
        self._execution = complete(Execution(), command, container, redactor)

    def write(self, *, stdout: str | bytes | None = None, stderr: str | bytes | None = None) -> None:
        """Takes a piece of output as it comes, from a stream or a WebSocket; call it as often as pieces come.

        A character or a secret may begin in one piece and end in a later one. However much comes, only the head is
        kept in memory.

        Args:
            stdout: A piece of what the command writes.
            stderr: The same.
        """
        if stdout is not None:
            self._stdout = self._written(self._stdout, stdout)
        if stderr is not None:
            self._stderr = self._written(self._stderr, stderr)

    def _written(self, output: Output | None, piece: object) -> Output:
        output = output or Output(self._redactor)
        if isinstance(piece, bytes | bytearray | memoryview) and type(piece) is not bytes:
            with suppress(Exception):  # a view that was released; a class of the application's may do anything
                piece = bytes(piece)
        output.write(piece if type(piece) is str or type(piece) is bytes else redact.text(piece))
        return output

    def finish(
        self,
        *,
        stdout: str | bytes | None = None,
        stderr: str | bytes | None = None,
        return_code: int | None = None,
    ) -> None:
        """Says how the command ended.

        Args:
            stdout: What it wrote, or, after :meth:`write`, the last of it. The record keeps the first 4,096 characters
                without the secrets in them, the length, and the SHA-256 of the whole where nothing was masked.
            stderr: The same.
            return_code: Its exit code; anything but 0 makes the outcome a failure, whatever the response's status.
        """
        self.write(stdout=stdout, stderr=stderr)
        self._execution = self._execution._replace(exit_code=_exit_code(return_code))

    def fail(self, error_type: str, message: object = None) -> None:
        """Says that the command gave no result: it could not start, or nobody waited for its end.

        Args:
            error_type: A class of errors, such as ``timeout``.
            message: More, for people; without the secrets in it.
        """
        self._execution = self._execution._replace(
            error_type=_line(error_type, self._redactor), error_message=_line(message, self._redactor)
        )

    @property
    def execution(self) -> Execution:
        """As it stands."""
        return self._execution._replace(
            stdout=None if self._stdout is None else self._stdout.text(),
            stderr=None if self._stderr is None else self._stderr.text(),
        )


def complete(told: Execution, command: object, container: object, redactor: Redactor = NO_KEY) -> Execution:
    """Adds a command and a container where they are not known yet."""
    if told.command is None and command is not None:
        kept, truncated, masked = redactor.command(_arguments(command))
        told = told._replace(command=kept, command_truncated=truncated, command_masked=masked)
    return told if told.container is not None else told._replace(container=_line(container, redactor))


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


def _line(value: object, redactor: Redactor) -> str | None:
    return None if value is None else redactor.line(redact.text(value))


def _exit_code(value: object) -> int | None:
    """An exit code is 8 bits on POSIX, 32 on Windows, or a negated signal; OTLP carries 64."""
    try:
        code = int.__int__(value) if isinstance(value, int) else None
    except Exception:  # noqa: BLE001 - an application's object may do anything
        return None
    return code if code is not None and abs(code) < 2**63 else None


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
    return {"path": scope.get("path_params") or {}, "query": _query(scope.get("query_string")), "body": _json(body)}


def _query(raw: object) -> dict[str, object]:
    if not isinstance(raw, bytes) or len(raw) > QUERY_BYTES_MAX:
        return {}
    try:
        # What is no UTF-8 is kept as PEP 383 has it, and shows as `\udcXX`.
        text = raw.decode("utf-8", "surrogateescape")
        fields = parse_qs(text, max_num_fields=QUERY_FIELDS_MAX, errors="surrogateescape")
    except ValueError:
        return {}
    return {name: values if len(values) > 1 else values[0] for name, values in fields.items()}


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
