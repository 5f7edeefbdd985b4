from __future__ import annotations

import hashlib
import hmac
import tracemalloc
from itertools import count, pairwise
from random import Random

import pytest
from hypothesis import given, strategies

from tests import hostile
from tests.hostile import fuzzed, is_safe_line
from tests.secrets_corpus import TOKENS, Maker, corpus
from tron_audit_otel import redact
from tron_audit_otel.redact import NO_KEY, Output, Redactor

backslashes = strategies.lists(strategies.sampled_from("\\\\\\\\nrtxuU0001aF\n\x1bé\ud800")).map("".join)
"""Text in which much reads as an escape."""


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
@given(hostile.text | backslashes, strategies.integers(1, 64))
def test_a_line_is_printable_and_bounded(text: str, characters_max: int) -> None:
    assert is_safe_line(redact.line(text, characters_max), characters_max)


@fuzzed
@given(hostile.text)
def test_printable_text_that_fits_is_never_changed(text: str) -> None:
    printable = "".join(filter(str.isprintable, text)).replace("\\", "/")
    assert redact.line(printable, max(1, len(printable))) == printable


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(r"a\nb", r"a\\nb", id="reads-as-a-line-break"),
        pytest.param(r"\x1b", r"\\x1b", id="reads-as-a-terminal-sequence"),
        pytest.param(r"\x1B \xg \u12 \U00110000", r"\x1B \xg \u12 \U00110000", id="reads-as-nothing"),
        pytest.param('{"a": "\\"b\\"", "c": "\\\\"}', '{"a": "\\"b\\"", "c": "\\\\\\"}', id="json"),
        pytest.param("\\\n", r"\\\n", id="before-what-is-escaped"),
        pytest.param("a\\", "a\\", id="at-the-end"),
        pytest.param("C:\\Users\\é", "C:\\Users\\é", id="before-a-letter-of-the-world"),
    ],
)
def test_a_backslash_is_doubled_where_it_would_read_as_an_escape(text: str, expected: str) -> None:
    assert redact.line(text) == expected
    assert redact.unescape(expected) == text


@fuzzed
@given(hostile.text | backslashes)
def test_what_was_escaped_can_be_had_back(text: str) -> None:
    assert redact.unescape(redact.line(text, 10 * len(text) + 1)) == text
    assert redact.unescape(NO_KEY.block(text, 10 * len(text) + 1).head) == text


@fuzzed
@given(strategies.binary() | backslashes.map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_bytes_that_are_no_text_can_be_had_back(raw: bytes) -> None:
    for shown in (redact.line(redact.text(raw), 10 * len(raw) + 1), NO_KEY.block(raw, 10 * len(raw) + 1).head):
        assert redact.unescape(shown).encode("utf-8", "surrogateescape") == raw


@fuzzed
@given(hostile.text | backslashes, strategies.integers(1, 64))
def test_no_escape_is_cut_in_two(text: str, characters_max: int) -> None:
    line = redact.line(text, characters_max)
    assert text.startswith(redact.unescape(line.removesuffix(redact.CUT) if line != redact.escape(text) else line))
    assert text.startswith(redact.unescape(NO_KEY.block(text, characters_max).head))


@pytest.mark.parametrize("text", ["\\", r"\x", r"\xZZ", r"\u123", r"\Uffffffff", r"\U00110000", r"\'"])
def test_what_is_no_escape_of_ours_is_left_alone(text: str) -> None:
    assert redact.unescape(text) == text


def test_a_block_keeps_its_line_breaks_and_tabs() -> None:
    assert NO_KEY.block("a\n\tb\n").head == "a\n\tb\n"


@pytest.mark.parametrize(
    ("text", "head", "length"),
    [
        pytest.param("", "", 0, id="empty"),
        pytest.param(b"", "", 0, id="no-bytes"),
        pytest.param("a\x1b[2J\r\n", "a\\x1b[2J\\r\n", 7, id="controls"),
        pytest.param(b"caf\xc3\xa9", "café", 4, id="utf-8"),
        pytest.param(b"\xff\xfe\x00", r"\udcff\udcfe\x00", 3, id="binary"),
        pytest.param("a\ud800b", r"a\ud800b", 3, id="lone-surrogate"),
    ],
)
def test_a_block_of_any_bytes_is_text_that_utf_8_can_carry(text: str | bytes, head: str, length: int) -> None:
    block = NO_KEY.block(text)
    assert (block.head, block.length, block.truncated) == (head, length, False)


@pytest.mark.parametrize(
    ("text", "head", "truncated"),
    [
        pytest.param("1234", "1234", False, id="just-fits"),
        pytest.param("12345", "1234", True, id="one-too-many"),
        pytest.param("123\x00", "123", True, id="escape-does-not-fit"),
        pytest.param(b"12345", "1234", True, id="bytes"),
    ],
)
def test_a_block_that_is_cut_says_so(text: str | bytes, head: str, *, truncated: bool) -> None:
    block = NO_KEY.block(text, 4)
    assert (block.head, block.truncated) == (head, truncated)


def test_the_hash_is_that_of_the_whole_and_not_of_the_head() -> None:
    whole = "x" * 5000
    block = NO_KEY.block(whole)
    assert (len(block.head), block.length, block.truncated) == (4096, 5000, True)
    assert block.sha256 == hashlib.sha256(whole.encode()).hexdigest()


def test_the_hash_of_bytes_is_of_the_bytes_as_they_are() -> None:
    assert NO_KEY.block(b"\xff").sha256 == hashlib.sha256(b"\xff").hexdigest()


def test_two_lone_surrogates_have_two_hashes() -> None:
    assert NO_KEY.block("\ud800").sha256 != NO_KEY.block("\ud801").sha256


@fuzzed
@given(hostile.text | strategies.binary(), strategies.integers(1, 64))
def test_a_block_is_bounded_and_printable_but_for_line_breaks_and_tabs(text: str | bytes, characters_max: int) -> None:
    block = NO_KEY.block(text, characters_max)
    assert is_safe_line(block.head.replace("\n", "").replace("\t", ""), characters_max)
    assert len(block.head) <= characters_max
    assert block.truncated or len(block.head) >= block.length
    assert block.truncated == NO_KEY.block(text, characters_max).truncated


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
    assert NO_KEY.command(arguments, 8) == (kept, truncated, 0)


def test_a_command_of_many_arguments_is_cut() -> None:
    assert not NO_KEY.command(["x"] * redact.ARGUMENTS_MAX).truncated
    assert NO_KEY.command(["x"] * (redact.ARGUMENTS_MAX + 1))[:2] == (("x",) * redact.ARGUMENTS_MAX, True)


def test_a_command_without_end_is_cut_and_not_waited_for() -> None:
    kept, truncated, _ = NO_KEY.command(str(number) for number in count())
    assert truncated
    assert sum(map(len, kept)) <= redact.EXEC_CHARACTERS_MAX


@fuzzed
@given(strategies.lists(hostile.text), strategies.integers(1, 64))
def test_a_command_is_bounded_and_each_argument_a_line(arguments: list[str], characters_max: int) -> None:
    kept, truncated, masked = NO_KEY.command(arguments, characters_max)
    assert all(is_safe_line(argument, characters_max) for argument in kept)
    assert sum(map(len, kept)) + max(0, len(kept) - 1) <= characters_max + 1
    assert truncated or masked or kept == tuple(redact.line(argument, 10 * characters_max) for argument in arguments)


KEY = "a key of at least 32 characters, for tests"
KEYED = Redactor(KEY)


def test_a_mask_tells_equal_secrets_only_to_who_has_the_key() -> None:
    mask = KEYED.mask("hunter2")
    assert mask == KEYED.mask("hunter2") != KEYED.mask("hunter3")
    assert mask != Redactor("another").mask("hunter2")
    assert mask == f"[masked:{hmac.digest(KEY.encode(), b'hunter2', 'sha256').hex()[:16]}]"
    assert NO_KEY.mask("hunter2") == "[masked]"


@pytest.mark.parametrize(
    "text",
    [
        "password=hunter2hunter2",
        "Authorization: Bearer hunter2hunter2",
        "Cookie: a=b; sid=hunter2hunter2",
        "postgres://app:hunter2hunter2@db/app",
        '{"token": "hunter2hunter2"}',
    ],
)
def test_a_secret_has_one_mask_wherever_it_stands(text: str) -> None:
    assert KEYED.mask("hunter2hunter2") in KEYED.block(text).head
    assert KEYED.mask("hunter2hunter2") in KEYED.command(["app", text]).arguments[1]
    assert KEYED.mask("hunter2hunter2") in KEYED.line(text)


@pytest.mark.parametrize("redactor", [NO_KEY, KEYED], ids=["no-key", "key"])
def test_a_hash_by_which_a_masked_secret_could_be_guessed_is_not_given(redactor: Redactor) -> None:
    text = "password=hunter2"
    block = redactor.block(text)
    assert (block.sha256, block.masked) == (None, 1)
    keyed = hmac.digest(KEY.encode(), text.encode(), "sha256").hex()
    assert block.hmac_sha256 == (keyed if redactor is KEYED else None)
    assert redactor.block("nothing").hmac_sha256 is None


def test_a_masked_secret_past_the_head_takes_the_hash_as_well() -> None:
    block = NO_KEY.block("x\n" * 2100 + "password=hunter2")
    assert (block.sha256, block.masked, block.truncated) == (None, 0, True)


@pytest.mark.parametrize("seed", [1, 20261129])
def test_no_secret_leaks_at_the_border_of_what_is_kept(seed: int) -> None:
    draw = Random(seed)  # noqa: S311 - the same ones in each run
    for secret in corpus(seed)[seed % 3 :: 3]:
        at = secret.text.find(secret.secrets[0])
        before = max(0, redact.EXEC_CHARACTERS_MAX - at - draw.randint(0, len(secret.secrets[0]) + 2))
        if secret.text:
            head = NO_KEY.block("\n" * before + secret.text + "\nafter").head
            assert (secret.leaks(head), secret) == (None, secret)
        if secret.arguments:
            before = draw.randint(redact.EXEC_CHARACTERS_MAX - len("".join(secret.arguments)) - 9, 4096)
            kept = NO_KEY.command(["x" * before, *secret.arguments]).arguments
            assert (secret.leaks("\n".join(kept)), secret) == (None, secret)


@pytest.mark.parametrize(
    "text",
    ["password=hunter2hunter2", "sk" + "-" + "aB3dE6gH9j" * 5, "-----BEGIN " + "PRIVATE KEY-----\n" + "aB3/" * 90],
    ids=["label", "token", "key"],
)
def test_no_secret_leaks_at_any_border(text: str) -> None:
    for before in range(redact.EXEC_CHARACTERS_MAX - len(text) - 1, redact.EXEC_CHARACTERS_MAX + 2):
        head = NO_KEY.block(" " * before + text + "\n").head
        assert "hunter2" not in head
        assert "aB3" not in head
        assert len(head) <= redact.EXEC_CHARACTERS_MAX


def test_no_mask_is_cut_in_two() -> None:
    for before in range(4060, 4100):
        head = KEYED.block(" " * before + "password=hunter2 x").head
        assert "[" not in head or KEYED.mask("hunter2") in head


@pytest.mark.parametrize("seed", [1, 20261129])
def test_no_secret_leaks_between_pieces(seed: int) -> None:
    draw = Random(seed)  # noqa: S311 - the same ones in each run
    for secret in corpus(seed):
        if not secret.text:
            continue
        raw = ("\u00e4" * draw.randint(0, 9) + "\n" + secret.text).encode()
        borders = sorted(draw.randint(0, len(raw)) for _ in range(draw.randint(1, 6)))
        output = Output(NO_KEY)
        for start, end in pairwise([0, *borders, len(raw)]):
            output.write(raw[start:end])
        assert (secret.leaks(output.text().head), secret) == (None, secret)
        assert output.text() == NO_KEY.block(raw)


def test_a_piece_may_end_within_a_character() -> None:
    output = Output(NO_KEY)
    for byte in "caf\u00e9 \U0001f4a9".encode() + b"\xff\xe2\x80":
        output.write(bytes([byte]))
    text = output.text()
    assert (text.head, text.length) == ("caf\u00e9 \U0001f4a9\\udcff\\udce2\\udc80", 9)
    assert output.text() == text


def test_a_text_behind_half_a_character_is_kept_in_order() -> None:
    output = Output(NO_KEY)
    for piece in (b"a\xc3", "b", b"\xa9c"):
        output.write(piece)
    assert output.text().head == "a\\udcc3b\\udca9c"


def test_output_without_end_takes_bounded_memory() -> None:
    output = Output(KEYED)
    tracemalloc.start()
    for _ in range(200):
        output.write(b"x" * 100_000)
        output.write("\u4e16" * 10_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000
    assert output.text().length == 200 * 110_000


@pytest.mark.parametrize("size", [1, 5_000, 8_000, 8_192, 9_000])
def test_no_more_than_a_window_of_it_is_kept(size: int) -> None:
    output = Output(NO_KEY)
    for _ in range(3 * redact.WINDOW_CHARACTERS // size):
        output.write("x" * size)
    assert "".join(output._window) == "x" * redact.WINDOW_CHARACTERS


def test_a_rule_that_breaks_lets_nothing_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> list[tuple[int, int]]:
        raise RecursionError

    for name in ("secrets", "secrets_of_command", "secrets_of_header", "secret_tokens"):
        monkeypatch.setattr(redact, name, broken)
    assert NO_KEY.block("anything").head == "[masked]"
    assert NO_KEY.command(["ls", "", "-l"]) == (("[masked]", "", "[masked]"), False, 2)
    assert NO_KEY.header("x", ["a"]) == ("[masked]",)
    assert NO_KEY.line("anything") == "[masked]"
    assert NO_KEY.tokens("A-word-that-is-long-enough") == "[masked]"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        pytest.param("Authorization", "Bearer abc", "Bearer [masked]", id="scheme"),
        pytest.param("authorization", "abc", "[masked]", id="no-scheme"),
        pytest.param("Cookie", "a=b; c=d", "a=[masked]; c=[masked]", id="cookies"),
        pytest.param("Cookie", "a=b SECRET; c=d", "a=[masked]; c=[masked]", id="cookie-with-a-space"),
        pytest.param("Cookie", 'a={"id":"SECRET"}', "a=[masked]", id="cookie-with-quotes"),
        pytest.param("Cookie", r"a=it's\SECRET", "a=[masked]", id="cookie-with-a-backslash"),
        pytest.param("Cookie", "a=1; SECRET", "a=[masked]; [masked]", id="cookie-without-a-name"),
        pytest.param("Cookie", "=SECRET; b=1", "[masked]; b=[masked]", id="cookie-of-an-empty-name"),
        pytest.param("Cookie", "c2VjcmV0=", "[masked]", id="cookie-that-is-base64"),
        pytest.param("Cookie", "a=b; c2VjcmV0czE==", "a=[masked]; [masked]", id="cookie-that-is-padded-twice"),
        pytest.param("Set-Cookie", "a=b; Path=/; Secure", "a=[masked]; Path=/; Secure", id="set-cookie"),
        pytest.param("Set-Cookie", "a=b c; x", "a=[masked]; [masked]", id="set-cookie-with-what-is-no-attribute"),
        pytest.param("Set-Cookie", "a=b; Path=/, c=d", "a=[masked]; Path=[masked]", id="set-cookies-in-one-line"),
        pytest.param("Set-Cookie", "a=b; Domain=x SECRET", "a=[masked]; Domain=[masked]", id="set-cookie-with-a-space"),
        pytest.param(
            "Set-Cookie",
            "a=b; Expires=Wed, 09 Jun 2027 10:18:14 GMT",
            "a=[masked]; Expires=Wed, 09 Jun 2027 10:18:14 GMT",
            id="set-cookie-with-a-date",
        ),
        pytest.param("X-Api-Key", "abc\n", "[masked]\\n", id="line-break"),
        pytest.param("X-Request-Id", "a\nb", r"a\nb", id="other"),
        pytest.param("Referer", "/x?access_token=abcdef&a=1", "/x?access_token=[masked]&a=1", id="query"),
        pytest.param("Idempotency-Key", "abc", "abc", id="key-that-is-none"),
        pytest.param("X-Api-Key", "", "", id="empty"),
        pytest.param("X", "x" * 2000, "x" * 1023 + "\u2026", id="long"),
        pytest.param("X-Api-Key", "x" * 5000, "[masked]", id="long-secret"),
    ],
)
def test_a_header_shows_what_is_no_secret(name: str, value: str, expected: str) -> None:
    assert NO_KEY.header(name, [value]) == (expected,)


def test_no_secret_of_a_header_leaks() -> None:
    for secret in corpus(1):
        if secret.header:
            assert secret.leaks(NO_KEY.header(secret.header[0], [secret.header[1]])[0]) is None


def test_a_flood_of_values_is_cut_visibly() -> None:
    assert NO_KEY.header("x", map(str, range(8))) == tuple("01234567")
    assert NO_KEY.header("x", map(str, count())) == (*"0123456", "\u2026")


WITH_A_PREFIX = TOKENS.keys() - {"telegram", "azure-client-secret", "mailchimp", "terraform"}


@pytest.mark.parametrize("kind", sorted(WITH_A_PREFIX))
def test_a_token_of_a_vendor_is_masked_in_a_path(kind: str) -> None:
    assert NO_KEY.tokens(f"/api/v1/x/{TOKENS[kind](Maker(7))}/y") == "/api/v1/x/[masked]/y"


@pytest.mark.parametrize("kind", sorted(WITH_A_PREFIX - {"twilio", "sendgrid", "postman"}))
@pytest.mark.parametrize("is_raw", [False, True], ids=["line", "raw"])
def test_of_a_token_that_the_end_cuts_no_more_than_its_prefix_is_left(kind: str, is_raw: bool) -> None:
    token = TOKENS[kind](Maker(7))
    for length in range(redact.LINE_CHARACTERS_MAX - len(token), redact.LINE_CHARACTERS_MAX - 4):
        whole = f"{'x' * length}/{token}/{'y' * 300}"
        shown = redact.line(NO_KEY.tokens(whole[: redact.KEPT_MAX] if is_raw else redact.line(whole)))
        assert token[: len("AGE-SECRET-KEY-1")] not in shown
        assert shown.endswith(redact.CUT)
        assert len(shown) <= redact.LINE_CHARACTERS_MAX


def test_what_holds_no_token_is_given_back_as_it_is() -> None:
    path = "/api/v1/instances/1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed/exec_logs"
    assert NO_KEY.tokens(path) is path


@fuzzed
@given(hostile.text | strategies.binary())
def test_redacting_never_raises(text: str | bytes) -> None:
    for redactor in (NO_KEY, KEYED):
        redactor.block(text)
        whole = redact.text(text)
        assert is_safe_line(redactor.line(whole, 64), 64)
        redactor.tokens(whole)
        assert all(is_safe_line(each, redact.LINE_CHARACTERS_MAX) for each in redactor.header(whole, [whole] * 9))
