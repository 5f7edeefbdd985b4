"""What a client, a container or a careless application may hand over, for tests of whatever takes it."""

from __future__ import annotations

from hypothesis import settings, strategies

TEXTS = {
    "empty": "",
    "line-feed": "alice\nDELETE users/1",
    "carriage-return": "alice\rbob",
    "crlf": "a\r\nb",
    "nul": "a\x00b",
    "escape-sequence": "\x1b[2J\x1b]0;owned\x07",
    "backspace": "bob\b\b\balice",
    "c1-control": "a\x9bb",
    "line-separator": "a\u2028b\u2029c",
    "next-line": "a\x85b",
    "right-to-left-override": "gpj.\u202eexe",
    "zero-width": "ali\u200bce\u2060\ufeff",
    "lone-high-surrogate": "a\ud800b",
    "lone-low-surrogate": "a\udfffb",
    "combining": "e" + "\u0301" * 50,
    "astral": "\U0001f4a9" * 3,
    "private-use": "\ue000",
    "noncharacter": "\uffff\U0010ffff",
    "no-break-space": "a\u00a0b",
    "format-string": "%s%n{0}{self.__class__}",
    "json": '"}],"x":[{"',
    "long": "x" * 100_000,
    "long-controls": "\x00" * 5_000,
    "long-astral-controls": "\U000e0001" * 5_000,
}

text = strategies.text(strategies.characters())  # with lone surrogates, which `text()` alone leaves out
"""Any string that Python can hold."""

fuzzed = settings(deadline=None, derandomize=True, database=None)
"""The same examples in each run, on a machine of any speed: a failure is a failure of this commit."""


def is_safe_line(text: str, characters_max: int) -> bool:
    """Whether text is one printable line within its bound, which UTF-8 can carry."""
    text.encode("utf-8")
    return len(text) <= characters_max and text.isprintable()
