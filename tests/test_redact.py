from __future__ import annotations

import hashlib
from itertools import count
from typing import Any

import pytest
from hypothesis import given, strategies

from tests import hostile
from tests.hostile import fuzzed, is_safe_line
from tron_audit_otel import redact


class Unprintable:
    """As an ORM object outside of its session."""

    def __str__(self) -> str:
        raise RuntimeError("detached")


class LazyProxy:
    """As Django's SimpleLazyObject and wrapt's ObjectProxy: asking for its class asks the object that is not there."""

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        raise RuntimeError("no object")

    def __str__(self) -> str:
        raise RuntimeError("no object")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param("alice", "alice", id="text"),
        pytest.param(42, "42", id="number"),
        pytest.param(None, "None", id="none"),
        pytest.param(Unprintable(), "<Unprintable that has no text>", id="text-raises"),
        pytest.param(LazyProxy(), "<LazyProxy that has no text>", id="even-its-class-raises"),
    ],
)
def test_an_object_without_text_does_not_break_the_request(value: object, expected: str) -> None:
    assert redact.text(value) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("", "", id="empty"),
        pytest.param("alice@example.com", "alice@example.com", id="plain"),
        pytest.param("Grüße 世界 💩", "Grüße 世界 💩", id="letters-of-the-world"),
        pytest.param("a\nb\r\tc", r"a\nb\r\tc", id="line-breaks"),
        pytest.param("\x1b[31m", r"\x1b[31m", id="terminal-sequence"),
        pytest.param("a\u2028b\u2029", r"a\u2028b\u2029", id="line-separators"),
        pytest.param("\u202egpj.exe", r"\u202egpj.exe", id="right-to-left-override"),
        pytest.param("ali\u200bce", r"ali\u200bce", id="zero-width-space"),
        pytest.param("a\ud800b", r"a\ud800b", id="lone-surrogate"),
        pytest.param("\U000e0001", r"\U000e0001", id="language-tag"),
        pytest.param("\x00\x7f\x9b", r"\x00\x7f\x9b", id="controls"),
    ],
)
def test_a_line_shows_what_would_hide_or_break_it(text: str, expected: str) -> None:
    assert redact.line(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("12345678", "12345678", id="just-fits"),
        pytest.param("123456789", "1234567…", id="one-too-many"),
        pytest.param("123456\n", r"123456\n", id="escape-just-fits"),
        pytest.param("1234567\n", "1234567…", id="escape-does-not-fit"),
    ],
)
def test_a_line_that_is_cut_shows_the_cut(text: str, expected: str) -> None:
    assert redact.line(text, 8) == expected


@pytest.mark.parametrize("text", hostile.TEXTS.values(), ids=hostile.TEXTS)
def test_no_hostile_text_gets_out_of_its_line(text: str) -> None:
    assert is_safe_line(redact.line(text), redact.LINE_CHARACTERS_MAX)


@fuzzed
@given(hostile.text, strategies.integers(1, 64))
def test_a_line_is_printable_and_bounded_and_stays_as_it_is_when_made_again(text: str, characters_max: int) -> None:
    line = redact.line(text, characters_max)
    assert is_safe_line(line, characters_max)
    assert redact.line(line, characters_max) == line


@fuzzed
@given(hostile.text)
def test_printable_text_that_fits_is_never_changed(text: str) -> None:
    printable = "".join(filter(str.isprintable, text))
    assert redact.line(printable, max(1, len(printable))) == printable


def test_a_block_keeps_its_line_breaks_and_tabs() -> None:
    assert redact.block("a\n\tb\n").head == "a\n\tb\n"


@pytest.mark.parametrize(
    ("text", "head", "length"),
    [
        pytest.param("", "", 0, id="empty"),
        pytest.param(b"", "", 0, id="no-bytes"),
        pytest.param("a\x1b[2J\r\n", "a\\x1b[2J\\r\n", 7, id="controls"),
        pytest.param(b"caf\xc3\xa9", "café", 4, id="utf-8"),
        pytest.param(b"\xff\xfe\x00", r"\xff\xfe\x00", 3, id="binary"),
        pytest.param("a\ud800b", r"a\ud800b", 3, id="lone-surrogate"),
    ],
)
def test_a_block_of_any_bytes_is_text_that_utf_8_can_carry(text: str | bytes, head: str, length: int) -> None:
    block = redact.block(text)
    assert (block.head, block.length, block.truncated) == (head, length, False)


@pytest.mark.parametrize(
    ("text", "head", "truncated"),
    [
        pytest.param("1234", "1234", False, id="just-fits"),
        pytest.param("12345", "1234", True, id="one-too-many"),
        pytest.param("123\x00", r"123" + "\\", True, id="escape-does-not-fit"),
        pytest.param(b"12345", "1234", True, id="bytes"),
    ],
)
def test_a_block_that_is_cut_says_so(text: str | bytes, head: str, *, truncated: bool) -> None:
    block = redact.block(text, 4)
    assert (block.head, block.truncated) == (head, truncated)


def test_the_hash_is_that_of_the_whole_and_not_of_the_head() -> None:
    whole = "x" * 5000
    block = redact.block(whole)
    assert (len(block.head), block.length, block.truncated) == (4096, 5000, True)
    assert block.sha256 == hashlib.sha256(whole.encode()).hexdigest()


def test_the_hash_of_bytes_is_of_the_bytes_as_they_are() -> None:
    assert redact.block(b"\xff").sha256 == hashlib.sha256(b"\xff").hexdigest()


def test_two_lone_surrogates_have_two_hashes() -> None:
    assert redact.block("\ud800").sha256 != redact.block("\ud801").sha256


@fuzzed
@given(hostile.text | strategies.binary(), strategies.integers(1, 64))
def test_a_block_is_bounded_and_printable_but_for_line_breaks_and_tabs(text: str | bytes, characters_max: int) -> None:
    block = redact.block(text, characters_max)
    assert is_safe_line(block.head.replace("\n", "").replace("\t", ""), characters_max)
    assert len(block.head) <= characters_max
    assert block.truncated or len(block.head) >= block.length
    assert block.truncated == redact.block(text, characters_max).truncated


@pytest.mark.parametrize(
    ("arguments", "kept", "truncated"),
    [
        pytest.param([], (), False, id="none"),
        pytest.param(["ls", "-l"], ("ls", "-l"), False, id="short"),
        pytest.param(["", ""], ("", ""), False, id="empty-arguments"),
        pytest.param(["12345678"], ("12345678",), False, id="one-just-fits"),
        pytest.param(["1234", "123"], ("1234", "123"), False, id="two-just-fit"),
        pytest.param(["1234", "1234"], ("1234", "12…"), True, id="second-is-cut"),
        pytest.param(["12345678", "x"], ("12345678",), True, id="second-has-no-room"),
        pytest.param(["1234567", "x"], ("1234567",), True, id="only-the-separator-has-room"),
        pytest.param(["123456789"], ("1234567…",), True, id="first-is-cut"),
        pytest.param(["a\nb"], (r"a\nb",), False, id="line-break"),
        pytest.param(["wait…"], ("wait…",), False, id="ends-like-a-cut"),
        pytest.param(["123456789…"], ("1234567…",), True, id="cut-and-ends-like-a-cut"),
    ],
)
def test_a_command_that_is_cut_says_so(arguments: list[str], kept: tuple[str, ...], *, truncated: bool) -> None:
    assert redact.command(arguments, 8) == (kept, truncated)


def test_a_command_without_end_is_cut_and_not_waited_for() -> None:
    kept, truncated = redact.command(str(number) for number in count())
    assert truncated
    assert sum(map(len, kept)) <= redact.EXEC_CHARACTERS_MAX


@fuzzed
@given(strategies.lists(hostile.text), strategies.integers(1, 64))
def test_a_command_is_bounded_and_each_argument_a_line(arguments: list[str], characters_max: int) -> None:
    kept, truncated = redact.command(arguments, characters_max)
    assert all(is_safe_line(argument, characters_max) for argument in kept)
    assert sum(map(len, kept)) + max(0, len(kept) - 1) <= characters_max + 1
    assert truncated or kept == tuple(redact.line(argument, 10 * characters_max) for argument in arguments)


@pytest.mark.parametrize("name", sorted(redact.SENSITIVE_HEADERS))
@pytest.mark.parametrize(
    "change",
    [pytest.param(str.lower, id="lower"), pytest.param(str.upper, id="upper"), pytest.param(str.title, id="title")],
)
def test_a_header_that_carries_a_secret_is_masked_however_it_is_written(name: str, change: Any) -> None:
    assert redact.header(change(name), ["s3cret", "s3cret"]) == (redact.MASK, redact.MASK)


def test_any_other_header_is_a_line_for_each_value() -> None:
    assert redact.header("x-request-id", ["a\nb", "c"]) == (r"a\nb", "c")
