"""Secrets that take more than a line: private keys, and what a Secret of Kubernetes holds."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

Span = tuple[int, int]

_KEY_END = r"-{4,5} ?END (?:[A-Z0-9]+ ){0,4}PRIVATE KEY(?: BLOCK)? ?-{4,5}"
_KEY_BEGIN = r"-{4,5} ?BEGIN (?:[A-Z0-9]+ ){0,4}PRIVATE KEY(?: BLOCK)? ?-{4,5}"
_KEY_MARK = re.compile(rf"(?<!-)(?:(?P<begin>{_KEY_BEGIN})|{_KEY_END})")
_BASE64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=\\ \t\r\n"
_PUTTY = re.compile(r"Private-Lines:[ \t]{0,4}\d{1,4}\s{0,4}")
_PUTTY_END = re.compile(r"Private-MAC:[ \t]{0,4}[0-9a-f]{0,128}")

_IS_SECRET = re.compile(r"""kind\\?["']?:\s{0,8}\\?["']?Secret(?:List)?\b(?!\w)""")
_DATA = re.compile(
    r"""(?P<before>(?:^|[\n{,])[ \t\n-]{0,64}+\\?["']?)(?:data|stringData)\\?["']?:[ \t]{0,8}(?P<brace>\s{0,8}\{)?"""
)
_JSON_VALUE = re.compile(r':\s{0,8}\\?"(?P<value>(?:[^"\\\n]|\\.)*+)"?')
_YAML_VALUE = re.compile(r"[ \t]*+(?P<key>[^\s:][^:\n]{0,253}+):[ \t]{0,64}+(?P<value>[^\n]*+)")


def blocks(text: str) -> Iterator[Span]:
    """Finds them."""
    if "PRIVATE KEY" in text:
        yield from _private_keys(text)
    if "Private-Lines" in text:
        for found in _PUTTY.finditer(text):
            end = _PUTTY_END.search(text, found.end())
            yield found.end(), len(text) if end is None else end.end()
            if end is None:
                break
    if "Secret" in text and _IS_SECRET.search(text):
        yield from _kubernetes(text)


def _private_keys(text: str) -> Iterator[Span]:
    begin = None
    last = 0
    for found in _KEY_MARK.finditer(text):
        if found["begin"] is not None:
            begin = found.end() if begin is None else begin
            continue
        if begin is None:  # its begin was cut off
            head = text[last : found.start()]
            begin = last + len(head.rstrip(_BASE64))
        if begin < found.start():
            yield begin, found.start()
        begin, last = None, found.end()
    if begin is not None and begin < len(text):
        yield begin, len(text)


def _kubernetes(text: str) -> Iterator[Span]:
    done = 0
    for found in _DATA.finditer(text):
        if found.start() < done:
            continue
        if found["brace"] is not None:
            end = text.find("}", found.end())
            done = len(text) if end < 0 else end
            for each in _JSON_VALUE.finditer(text, found.end(), done):
                yield each.span("value")
        else:
            done = yield from _yaml_values(text, found)
        done = max(done, found.end())


def _yaml_values(text: str, found: re.Match[str]) -> Generator[Span, None, int]:
    key_start = found.end("before")
    line_start = text.rfind("\n", 0, key_start) + 1
    depth = key_start - line_start
    position = text.find("\n", found.end()) + 1
    while 0 < position < len(text):
        end = text.find("\n", position)
        end = len(text) if end < 0 else end
        line = text[position:end]
        indent = len(line) - len(line.lstrip(" "))
        if line.strip() and indent <= depth:
            return position
        pair = _YAML_VALUE.match(text, position, end)
        start, stop = pair.span("value") if pair is not None else (position + indent, end)
        if text[start:stop].strip(" \r|>-+"):
            yield start, stop
        position = end + 1
    return len(text)
