"""Where in a text secrets stand. Errs towards finding too much; what it costs is measured in ``docs/redaction.md``."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING

from tron_audit_otel.detect_blocks import blocks
from tron_audit_otel.detect_calls import calls
from tron_audit_otel.detect_commands import in_arguments, in_text
from tron_audit_otel.detect_headers import is_secret, secret_parts
from tron_audit_otel.detect_labels import ARGUMENT, labelled, names
from tron_audit_otel.detect_tables import columns, tables
from tron_audit_otel.detect_tokens import cut_tokens, forms, tokens
from tron_audit_otel.detect_urls import credentials, phrases, urls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

Span = tuple[int, int]
"""Where something begins and ends."""


_COLOUR = re.compile(r"\x1b\[[0-9;?]{0,32}+[A-Za-z]")


def secrets(text: str) -> list[Span]:
    """Finds the secrets in a text: in order, none empty, none within another."""
    plain, offsets = _plain(text)
    spans = [*_of_text(plain, of_shell=False)]
    if "\0" in text:  # /proc/1/cmdline, or environ
        spans += in_arguments(plain, _words(plain.replace("\n", ARGUMENT).split(ARGUMENT)))
    return _moved(_joined(spans), offsets)


def secrets_of_command(arguments: Sequence[str]) -> list[list[Span]]:
    """Finds the secrets in each argument of a command, also where only the argument before it tells."""
    text = ARGUMENT.join(arguments)
    words = _words(arguments)
    spans = _joined([*_of_text(text.replace("\0", "\n"), of_shell=True), *in_arguments(text, words)])
    return [_within(spans, start, end) for start, end in words]


def secrets_of_header(name: str, value: str) -> list[Span]:
    """Finds the secrets in a header's value."""
    return _joined(secret_parts(name, value)) if is_secret(name) else secrets(value)


def secret_tokens(text: str) -> list[Span]:
    """Finds only what vendors issue with a prefix of their own, and JSON Web Tokens."""
    return _joined(tokens(text))


def secret_tokens_of_head(text: str) -> list[Span]:
    """Finds them in a text that is cut at its end, which may have been within one of them."""
    return _joined([*tokens(text), *cut_tokens(text)])


def _of_text(text: str, *, of_shell: bool) -> Iterator[Span]:
    yield from blocks(text)
    yield from forms(text)
    starts = names(text)
    yield from labelled(text, starts, of_shell=of_shell)
    yield from tables(text, starts)
    yield from columns(text)
    yield from urls(text)
    yield from phrases(text)
    yield from calls(text)
    yield from credentials(text)
    yield from in_text(text)


def _plain(text: str) -> tuple[str, list[tuple[int, int]]]:
    """Takes out what colours a terminal, which may stand within a word; gives where, and how much was taken by then."""
    text = text.replace("\0", ARGUMENT)
    if "\x1b" not in text:
        return text, []
    parts, offsets, at, taken = [], [], 0, 0
    for found in _COLOUR.finditer(text):
        parts.append(text[at : found.start()])
        at = found.end()
        offsets.append((found.start() - taken, taken + at - found.start()))
        taken += at - found.start()
    return "".join([*parts, text[at:]]), offsets


def _moved(spans: list[Span], offsets: list[tuple[int, int]]) -> list[Span]:
    """Finds the places in the text again from which the colours were taken."""
    if not offsets:
        return spans
    places = [place for place, _ in offsets]

    def moved(at: int, side: Callable[[list[int], int], int]) -> int:
        before = side(places, at)
        return at + (offsets[before - 1][1] if before else 0)

    return [(moved(start, bisect_right), moved(end, bisect_left)) for start, end in spans]


def _words(arguments: Sequence[str]) -> list[Span]:
    """Tells where each stands in a text of all of them."""
    words, at = [], 0
    for argument in arguments:
        words.append((at, at + len(argument)))
        at += len(argument) + 1
    return words


def _within(spans: Sequence[Span], start: int, end: int) -> list[Span]:
    return [
        (max(first, start) - start, min(last, end) - start) for first, last in spans if first < end and last > start
    ]


def _joined(spans: Iterable[Span]) -> list[Span]:
    joined: list[Span] = []
    for start, end in sorted(spans):
        if start >= end:
            continue
        if joined and start < joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined
