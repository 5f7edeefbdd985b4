from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, strategies

from tests import hostile
from tests.hostile import fuzzed, is_safe_line
from tron_audit_otel.event import Execution, Outcome, Text
from tron_audit_otel.redact import EXEC_CHARACTERS_MAX, NO_KEY, Redactor
from tron_audit_otel.run import (
    BODY_BYTES_MAX,
    EXEC_ERROR,
    QUERY_BYTES_MAX,
    QUERY_FIELDS_MAX,
    Run,
    complete,
    of_original,
    of_request,
    worked,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

LS = {"command": ["ls", "-l"], "container_name": "app"}


class Arguments:
    """A list of arguments that breaks while it is read."""

    def __iter__(self) -> Iterator[str]:
        yield "ls"
        raise RuntimeError("detached")


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        pytest.param(["ls", "-l"], ("ls", "-l"), id="list"),
        pytest.param(("ls",), ("ls",), id="tuple"),
        pytest.param("ls -l", ("ls -l",), id="text-is-one-argument"),
        pytest.param(42, ("42",), id="number"),
        pytest.param(["sleep", 1, None], ("sleep", "1", "None"), id="arguments-that-are-no-text"),
        pytest.param([], (), id="no-arguments"),
        pytest.param(None, None, id="unknown"),
        pytest.param(["a\nb"], (r"a\nb",), id="line-break"),
    ],
)
def test_a_command_of_any_form_is_a_list_of_arguments(command: object, expected: tuple[str, ...] | None) -> None:
    assert Run(command).execution == Execution(command=expected)


@pytest.mark.parametrize(
    "command", [b"ls -l", bytearray(b"ls -l"), {"cmd": "ls -l"}], ids=lambda value: type(value).__name__
)
def test_what_is_no_list_of_arguments_is_one_argument(command: object) -> None:
    arguments = Run(command).execution.command
    assert arguments is not None
    assert len(arguments) == 1
    assert "ls -l" in arguments[0]


def test_a_command_that_is_too_long_says_so() -> None:
    execution = Run(["x" * (EXEC_CHARACTERS_MAX + 1)]).execution
    assert execution.command is not None
    assert (len(execution.command[0]), execution.command_truncated) == (EXEC_CHARACTERS_MAX, True)


def test_a_command_of_many_arguments_is_not_read_to_its_end() -> None:
    def many() -> Iterator[str]:
        yield from ["x"] * EXEC_CHARACTERS_MAX
        pytest.fail("no more arguments than these can be in the record")

    assert Run(many()).execution.command_truncated


def test_a_command_that_breaks_while_it_is_read_does_not_break_the_request() -> None:
    assert Run(Arguments(), "app").execution.container == "app"


def test_what_is_told_of_an_execution_is_kept() -> None:
    run = Run(["ls"], "app")
    run.finish(stdout="out", stderr=b"err", return_code=0)
    assert run.execution == Execution(
        command=("ls",), container="app", stdout=NO_KEY.block("out"), stderr=NO_KEY.block("err"), exit_code=0
    )


def test_a_failure_keeps_the_command() -> None:
    run = Run(["ls"], "app")
    run.fail("timeout", "30 s\nwere not enough")
    assert run.execution == Execution(
        command=("ls",), container="app", error_type="timeout", error_message=r"30 s\nwere not enough"
    )


def test_a_failure_without_a_message_has_none() -> None:
    run = Run(["ls"])
    run.fail("timeout")
    assert run.execution.error_message is None


@pytest.mark.parametrize(
    ("return_code", "expected"),
    [
        pytest.param(0, 0, id="success"),
        pytest.param(137, 137, id="killed"),
        pytest.param(-9, -9, id="signal"),
        pytest.param(3_221_225_786, 3_221_225_786, id="windows"),
        pytest.param(None, None, id="unknown"),
        pytest.param("0", None, id="text"),
        pytest.param(2**63, None, id="more-than-otlp-carries"),
        pytest.param(-(2**63), None, id="less-than-otlp-carries"),
    ],
)
def test_an_exit_code_that_otlp_cannot_carry_is_left_out(return_code: Any, expected: int | None) -> None:
    run = Run(["ls"])
    run.finish(return_code=return_code)
    assert run.execution.exit_code == expected


def test_an_output_that_is_no_text_is_turned_into_text() -> None:
    run = Run(["ls"])
    run.finish(stdout={"a": 1})  # type: ignore[arg-type] # the caller's mistake
    assert isinstance(run.execution.stdout, Text)
    assert run.execution.stdout.head == "{'a': 1}"


@pytest.mark.parametrize(
    ("execution", "expected"),
    [
        pytest.param(Execution(), None, id="nothing-is-known"),
        pytest.param(Execution(exit_code=0), Outcome.SUCCESS, id="zero"),
        pytest.param(Execution(exit_code=1), Outcome.FAILURE, id="one"),
        pytest.param(Execution(exit_code=-9), Outcome.FAILURE, id="signal"),
        pytest.param(Execution(error_type="timeout"), Outcome.FAILURE, id="error"),
        pytest.param(Execution(exit_code=0, error_type="timeout"), Outcome.FAILURE, id="error-and-zero"),
    ],
)
def test_a_command_worked_only_if_it_says_so(execution: Execution, expected: Outcome | None) -> None:
    assert worked(execution) == expected


def test_output_in_pieces_is_as_output_at_once() -> None:
    run, whole = Run(["cat"]), "caf\u00e9\npassword=hunter2hunter2\n".encode()
    for at in range(len(whole)):
        run.write(stdout=whole[at : at + 1])
    run.finish(return_code=0)
    assert run.execution.stdout == NO_KEY.block(whole)
    assert run.execution.stderr is None


def test_what_comes_at_the_end_is_the_last_of_it() -> None:
    run = Run(["cat"])
    run.write(stdout="out", stderr=b"er")
    run.write(stderr="r")
    run.finish(stdout="put")
    assert (run.execution.stdout, run.execution.stderr) == (NO_KEY.block("output"), NO_KEY.block("err"))


def test_a_failure_keeps_what_was_written() -> None:
    run = Run(["cat"])
    run.write(stdout="out")
    run.fail("timeout")
    assert run.execution.stdout == NO_KEY.block("out")


def test_a_piece_that_is_no_text_is_turned_into_text() -> None:
    run = Run(["cat"])
    run.write(stdout={"a": 1})  # type: ignore[arg-type] # the caller's mistake
    assert run.execution.stdout == NO_KEY.block("{'a': 1}")


@pytest.mark.parametrize("redactor", [NO_KEY, Redactor("k" * 32)], ids=["no-key", "key"])
def test_a_secret_is_in_no_part_of_an_execution(redactor: Redactor) -> None:
    said = "password=hunter2hunter2"
    run = Run(["app", "--token", "hunter2hunter2"], said, redactor)
    run.finish(stdout=said, stderr=said.encode(), return_code=1)
    run.fail(said, said)
    assert run.execution.command_masked == 1
    assert "hunter2" not in str(run.execution)
    assert str(run.execution).count(redactor.mask("hunter2hunter2")) == 6


def test_a_secret_is_in_no_part_of_an_originals_payload() -> None:
    said = "password=hunter2hunter2"
    payload = {"request": {"command": said, "container_name": said}, "response": {"stdout": said, "stderr": said}}
    assert "hunter2" not in str(of_original(payload))
    assert "hunter2" not in str(of_original({"response": {"error": said}}))


def test_what_is_known_already_is_not_replaced() -> None:
    told = Execution(command=("ls",), container="app")
    assert complete(told, ["rm"], "other") == told


def test_what_is_not_known_yet_is_added() -> None:
    assert complete(Execution(), ["rm"], "other") == Execution(command=("rm",), container="other")


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        pytest.param(
            {"request": LS, "response": {"stdout": "out", "stderr": "err", "return_code": 1}},
            Execution(("ls", "-l"), False, "app", NO_KEY.block("out"), NO_KEY.block("err"), 1),  # noqa: FBT003 - a whole value
            id="ran",
        ),
        pytest.param(
            {"request": LS, "response": {"error": "no such pod"}},
            Execution(("ls", "-l"), container="app", error_type=EXEC_ERROR, error_message="no such pod"),
            id="error",
        ),
        pytest.param({"request": LS}, Execution(("ls", "-l"), container="app"), id="no-response"),
        pytest.param(
            {"response": {"error": ""}}, Execution(error_type=EXEC_ERROR, error_message=""), id="error-without-text"
        ),
        pytest.param({"request": None, "response": []}, Execution(), id="parts-of-another-form"),
        pytest.param({}, Execution(), id="empty"),
        pytest.param("ls", Execution(), id="text"),
        pytest.param(None, Execution(), id="none"),
    ],
)
def test_the_originals_payload_of_any_form_is_read(payload: object, expected: Execution) -> None:
    assert of_original(payload) == expected


def found(
    *, body: bytes | None = None, query: bytes = b"", at: Iterable[str] = ("body.command",), **scope: Any
) -> tuple[str, ...] | None:
    """The command that a request is found to carry."""
    raw = None if body is None else bytearray(body)
    return of_request(Execution(), {"query_string": query, **scope}, raw, at, ()).command


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(b'{"command": ["ls", "-l"]}', ("ls", "-l"), id="list"),
        pytest.param(b'{"command": "ls -l"}', ("ls -l",), id="text"),
        pytest.param(b'{"command": {"a": 1}}', ("{'a': 1}",), id="object"),
        pytest.param(b'{"command": [["a"], null]}', ("['a']", "None"), id="nested"),
        pytest.param(b'{"command": "a\\u0000\\ud800"}', (r"a\x00\ud800",), id="hostile"),
        pytest.param(b'{"command": null}', None, id="null"),
        pytest.param(b'{"other": 1}', None, id="missing"),
        pytest.param(b'["command"]', None, id="no-object"),
        pytest.param(b"", None, id="empty"),
        pytest.param(b"{", None, id="broken"),
        pytest.param(b'{"command": "\xff"}', None, id="not-utf-8"),
        pytest.param(b"[" * 50_000, None, id="nested-too-deep"),
        pytest.param(b'{"command": ' + b"9" * 5_000 + b"}", None, id="number-too-long"),
        pytest.param(b'{"command": "ls"' + b" " * BODY_BYTES_MAX + b"}", None, id="body-too-long"),
        pytest.param(None, None, id="no-body"),
    ],
)
def test_a_command_is_found_in_any_body(body: bytes | None, expected: tuple[str, ...] | None) -> None:
    assert found(body=body) == expected


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        pytest.param(b"command=ls", ("ls",), id="one"),
        pytest.param(b"command=ls&command=-l", ("ls", "-l"), id="many"),
        pytest.param(b"command=a%0Ab%FF", (r"a\nb\udcff",), id="hostile"),
        pytest.param(b"token=hunter2&command=--token+hunter2", ("--token [masked]",), id="secret"),
        pytest.param(b"command=ls&" + b"a" * QUERY_BYTES_MAX, None, id="too-long"),
        pytest.param(b"command=ls" + b"&a=1" * QUERY_FIELDS_MAX, None, id="too-many-fields"),
        pytest.param(b"command=ls" + b"&a=1" * (QUERY_FIELDS_MAX - 1), ("ls",), id="as-many-as-may-be"),
        pytest.param(b"command=", None, id="blank"),
        pytest.param(b"other=1", None, id="missing"),
        pytest.param(b"\xff=%", None, id="not-ascii"),
    ],
)
def test_a_command_is_found_in_a_query(query: bytes, expected: tuple[str, ...] | None) -> None:
    assert found(query=query, at=("query.command",)) == expected


def test_a_command_is_found_in_the_path() -> None:
    assert found(path_params={"what": "ls"}, at=("path.what",)) == ("ls",)


def test_a_request_that_was_never_routed_has_nothing_in_its_path() -> None:
    assert found(at=("path.what",), path_params=None) is None
    assert found(at=("path.what",)) is None


def test_a_command_is_found_deep_in_a_body() -> None:
    assert found(body=b'{"spec": {"run": "ls"}}', at=("body.spec.run",)) == ("ls",)


def test_a_place_below_a_text_is_not_found() -> None:
    assert found(body=b'{"spec": "x"}', at=("body.spec.run",)) is None


def test_the_first_place_that_has_something_counts() -> None:
    assert found(body=b'{"b": "2"}', query=b"c=3", at=("body.a", "body.b", "query.c")) == ("2",)


@pytest.mark.parametrize("query", [None, "command=ls", 5], ids=repr)
def test_a_query_that_is_none_breaks_nothing(query: Any) -> None:
    assert found(query=query, at=("query.command",)) is None


def test_a_scope_without_a_query_breaks_nothing() -> None:
    assert of_request(Execution(), {}, None, ("query.command",), ()) == Execution()


def test_the_handlers_word_outranks_the_request() -> None:
    body = bytearray(json.dumps({"command": "rm", "container": "other"}).encode())
    places = (("body.command",), ("body.container",))
    told = Execution(command=("ls",), container="app")
    assert of_request(told, {}, body, *places) is told
    assert of_request(Execution(command=("ls",)), {}, body, *places) == Execution(command=("ls",), container="other")
    assert of_request(Execution(container="app"), {}, body, *places) == Execution(command=("rm",), container="app")


json_values = strategies.recursive(
    strategies.none() | strategies.booleans() | strategies.integers() | strategies.floats() | hostile.text,
    lambda inner: strategies.lists(inner) | strategies.dictionaries(hostile.text, inner),
)


@fuzzed
@given(json_values, json_values)
def test_whatever_stands_in_a_body_becomes_bounded_lines(command: object, container: object) -> None:
    body = bytearray(json.dumps({"command": command, "container": container}).encode())
    execution = of_request(Execution(), {}, body, ("body.command",), ("body.container",))
    assert all(is_safe_line(argument, EXEC_CHARACTERS_MAX) for argument in execution.command or ())
    assert is_safe_line(execution.container or "", EXEC_CHARACTERS_MAX)


@fuzzed
@given(strategies.binary(), strategies.binary())
def test_no_body_and_no_query_is_too_broken_to_be_looked_at(body: bytes, query: bytes) -> None:
    of_request(Execution(), {"query_string": query}, bytearray(body), ("body.command",), ("query.container",))


class Piece(bytes):
    """As some clients of containers give it."""


class Broken(bytes):
    """Is no bytes on second thought."""

    def __bytes__(self) -> bytes:
        raise RuntimeError("detached")


def test_output_of_a_class_of_its_own_is_the_same_output() -> None:
    run, same = Run("ls"), Run("ls")
    for piece in (b"\xc3", b"\xa9\xff"):
        run.write(stdout=Piece(piece))
        same.write(stdout=piece)
    assert run.execution.stdout == same.execution.stdout
    run.write(stderr=Broken(b"x"))
    assert run.execution.stderr is not None
