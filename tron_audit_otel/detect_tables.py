"""Secrets that are told by the name of their column: in what databases print, in CSV, in SQL."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tron_audit_otel.detect_values import cell, names_secret

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Span = tuple[int, int]

_COLUMNS_MAX = 64
_COLUMN_NAME = re.compile(r"[ \t]{0,256}\"?[A-Za-z_][\w.-]{0,62}(?:[ ][\w.-]{1,32}){0,2}\"?[ \t\r]{0,256}")
_RULE = re.compile(r"[-+|=: \t\u2500\u253c\u2502]{3,}")
_COPY = re.compile(r"COPY [^\s(]{1,128} \((?P<names>[^()]{1,2048}+)\) FROM stdin")
_INSERT = re.compile(
    r"(?i:into)\s{1,8}[^\s(]{1,128}+\s{0,8}\((?P<names>[^()]{1,1024}+)\)\s{0,8}(?i:values?)\s{0,8}(?=\()"
)
_SQL_VALUE = re.compile(
    r"(?P<begin>[,\s]{0,8}\(\s{0,8})?(?P<value>'(?:[^'\\\n]|\\.|''){0,1024}+'|\"(?:[^\"\\\n]|\\.){0,1024}+\""
    r"|[^\s,'\"()]{1,256}+(?:\((?:[^()\n]|\([^()\n]{0,256}+\)){0,512}+\))?)\s{0,8}(?:,\s{0,8}(?!\()|\))"
)
_VARIABLE = re.compile(
    r"variable[ ]\"(?P<name>[\w-]{1,128})\"[ ]\{[^{}]{0,512}?\bdefault[ ]{1,16}=[ ]\"(?P<value>[^\"\n]{1,512}+)\""
)
_PARAMETERS = re.compile(r"[^\[\n]{0,128}\]\s{0,8}\[parameters: (?=\()")
"""As SQLAlchemy shows what stood in the place of ``?``."""
_VALUE_FIRST = re.compile(
    r"""value\\?["']?\s{0,4}[:=]\s{0,4}\\?["'](?P<value>[^"'\\\n]{1,512}+)\\?["']\s{0,8}(?:,|WHERE)\s{0,32}"""
    r"""\\?["']?(?:name|key)\\?["']?\s{0,4}[:=]\s{0,4}\\?["'](?P<name>[\w./-]{1,128}+)\\?["']""",
    re.IGNORECASE,
)


def columns(text: str) -> Iterator[Span]:
    """Finds what SQL puts into a column of a secret's name, and a value that stands before its name."""
    for hint, rule in (("alue", _VALUE_FIRST), ("variable", _VARIABLE)):
        for found in rule.finditer(text) if hint in text else ():
            if names_secret(found["name"]):
                yield from cell(text, *found.span("value"))
    done = 0
    for found in _INSERT.finditer(text) if "NTO" in text or "nto" in text else ():
        if found.start() >= done and (secret := _secret_columns(found["names"].split(","))):
            at, column = found.end(), 0
            while (each := _SQL_VALUE.match(text, at)) is not None:
                column = 0 if each["begin"] else column
                if column in secret:
                    yield from cell(text, *each.span("value"))
                at, column = each.end(), column + 1
                if (parameters := _PARAMETERS.match(text, at)) is not None:
                    at = parameters.end()
            done = at


def tables(text: str, starts: Iterable[int]) -> Iterator[Span]:
    """Finds what stands below a secret's name in a table; ``starts`` tells where such names may begin."""
    done = 0
    for start in starts:
        if start < done:
            continue
        begin = text.rfind("\n", 0, start) + 1
        end = done = _end_of_row(text, start)
        before = text[text.rfind("\n", 0, max(0, begin - 1)) + 1 : begin]
        after = text[end + 1 : _end_of_row(text, end + 1)]
        separator, count, secret = _heading(text[begin:end], before, after)
        while secret and end < len(text):
            at, end = end + 1, _end_of_row(text, end + 1)
            cells = text[at:end].split(separator)
            if len(cells) != count and not _RULE.fullmatch(text, at, end):
                break
            done = end
            for column, each in enumerate(cells):
                if column in secret:
                    yield from cell(text, at, at + len(each))
                at += len(each) + 1


def _end_of_row(text: str, at: int) -> int:
    end = text.find("\n", at)
    return len(text) if end < 0 else end


def _heading(line: str, before: str, after: str) -> tuple[str, int, frozenset[int]]:
    """Tells what parts the columns, how many there are, and which hold secrets."""
    copied = _COPY.match(line)
    if copied is not None:
        names = copied["names"].split(",")
        return "\t", len(names), _secret_columns(names)
    for separator in "|,\t;\u2502":
        if separator not in line:
            continue
        names = line.split(separator)
        is_ruled = separator in "|\u2502"
        if (
            1 < len(names) <= _COLUMNS_MAX
            and (_RULE.fullmatch(after) if is_ruled else before.count(separator) != len(names) - 1)
            and all(_COLUMN_NAME.fullmatch(name) or (is_ruled and not name.strip()) for name in names)
        ):
            return separator, len(names), _secret_columns(names)
    return "", 0, frozenset()


def _secret_columns(names: list[str]) -> frozenset[int]:
    return frozenset(at for at, name in enumerate(names) if names_secret(name.strip(" \t\r\n\"'`[]").replace(" ", "_")))
