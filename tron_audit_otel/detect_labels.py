"""Secrets that are told by a name before them: ``password=``, ``"apiKey":``, ``--token``, ``Cookie:``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from tron_audit_otel.detect_values import ABOUT, Place, end_of_line, of_header, opener, value, words

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Span = tuple[int, int]

ARGUMENT = "\x1f"
"""Stands between the arguments of a command that is looked at as one text."""

_KEY = (
    r"(?:api|access|auth|private|priv|secret|session|sign(?:ing)?|encrypt(?:ion)?|master|account|shared|subscription"
    r"|storage|hmac|aes|webhook|service|deploy|functions?|license|app|admin|rapidapi|integration|consumer|client"
    r"|recovery|unseal|global|activation|tsig)"
    r"[_. -]?"
)
_CLEAR = (
    r"passw(?:or)?ds?|passphrases?|passcodes?|passwort|secrets?|tokens?|credentials?|storepass|keypass|userpass"
    rf"|jsessionid|phpsessid|connect\.sid|authorization|pincode|mnemonic|bearer|{_KEY}keys?"
)
_SHORT = r"pwd|pswd|cvv|oauth|pass|pw|psk|creds?|otp|jwt|auth|sessid|sessionid|session|sid|signature"
_SHORT += r"|cookie|community|pat"
_CORE = re.compile(
    rf"(?i:{_CLEAR}|(?:(?<![A-Za-z])|(?-i:(?<=[a-z])(?=[A-Z])))(?:{_SHORT})"
    r"|(?:(?<=db)|(?<=pg)|(?<=ssh)|(?<=ftp)|(?<=smtp)|(?<=mail)|(?<=ldap)|(?<=bind)|(?<=root)|(?<=user)|(?<=admin)"
    r"|(?<=sql)|(?<=redis)|(?<=proxy)|(?<=require))(?:pass|pwd?)|(?<=master)auth"
    r"|(?-i:(?<=[A-Z0-9]_)(?<!PUBLIC_)(?<!PRIMARY_)(?<!FOREIGN_)(?<!GPG_)(?<!CACHE_)(?<!SORT_)(?<!HOST_)KEY(?![A-Z])))"
    r"(?:(?<=[a-z])(?![a-z])|(?<=[A-Z])(?![A-Z]))"
)
"""The word of a name that says "secret": whole, or a part in ``snake_case`` or ``camelCase``."""
_STEMS = (
    *("pass", "secret", "token", "cred", "pwd", "pw", "psk", "auth", "cookie", "sess", "sid", "signature", "otp"),
    *("jwt", "_pat", "_key", "community", "connect.sid", "storepass", "keypass", "userpass", "jsessionid", "phpsessid"),
    *("pswd", "cvv", "pincode", "mnemonic", "bearer", "oauth"),
)
"""With ``key``, where such a word can begin: a search for a text takes a hundredth of that for the pattern."""
_BEFORE_KEY = re.compile(f"{_KEY}$")
_BEFORE_KEY_CHARACTERS_MAX = 16
_WEAK = words("key pwd pass pat pw auth oauth session sid signature jwt otp creds cred community sessid")
_WEAK_BUT_LONG = words("key pat auth oauth bearer session sid signature jwt")
_LONG_VALUE = re.compile(r"""(?![a-z]{8,32}+(?:[\s,;.:)]|\Z)|/)\\{0,3}["']?(?:[\w.@-]{1,64}:)?[\w+/=.%~-]{8}""")

_IDENTIFIER = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-"
_NAME_CHARACTERS_MAX = 64
_REST = re.compile(r"[A-Za-z0-9_.-]{0,48}+")
_PART = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|\d+")

_SEPARATOR = re.compile(
    r"""\\{0,3}["'`]?\]?\)?[ \t\x1f]{0,64}+"""
    r"""(?:=>|:=|(?:\|\||\?\?)?={1,3}|(?<=\s)(?:->|\.{4,64}+)(?=\s)|::(?=[ ])"""
    r"""|(?:\|\||\?\?)(?=[ ]["'])|:(?!:)(?:[ ]&?\w[\w.\[\]]{0,32}[ ]=(?=[ ]["']))?"""
    r"""|%3[DdAa]|\\u003[dD]|(?<![-=\s\x1f])>(?!>))[ \t\x1f]{0,64}+"""
)
_FLAG_SEPARATOR = re.compile(
    r"""(?:[=:]|\\{0,3}["']?[ \t]{0,8}\n[ \t]{0,64}+-[ ]{1,4}"""
    r"""|\\{0,3}["']?,?[ \t\n\x1f]{1,64}+|\\{0,3}["'],(?=\\{0,3}["']))(?![-<])"""
)
_LOOKS_DRAWN = r"(?=\S{0,64}\d)(?=\S{0,64}[A-Z])(?=\S{0,64}[a-z])[^\s/:()]"
_ITEM = re.compile(
    rf"(?:[\w.-]{{1,64}}+:[ ]|-[ ])[ ]{{0,16}}[\"']?(?P<value>(?={_LOOKS_DRAWN})[^\s\"']{{6,}}+)[\"']?[ ]{{0,8}}\Z"
)
_BLOCK = re.compile(r"[|>][+-]?\d?[ \t]{0,8}\n")
_BELOW = re.compile(
    rf"[ \t]{{0,64}}\n(?:[-=]{{3,64}}\n|\n)?[ \t]{{0,16}}(?={_LOOKS_DRAWN}{{16,128}}[ \t\r]{{0,8}}(?:\n|\Z))"
)
_BEHIND = re.compile(rf"\\?[\"']?[ ](?=[\"']?{_LOOKS_DRAWN}{{8,64}}(?:[\s,;.]|\Z))")
"""Nothing but white space parts them: only of what looks drawn at random."""
_PAIR = re.compile(
    r"""\\{0,3}["']?[,;\s\x1f]{1,64}+(?:"\w{1,32}"\s?:\s?["\w]{1,32},\s{0,32})?"""
    r"""\\{0,3}["']?value\\{0,3}["']?\s{0,8}+[:=]\s{0,8}+"""
    r"""|(?:["'][^<>\n]{0,64}|</\w{1,16})>\s{0,64}<(?:value|string)>""",
    re.IGNORECASE,
)
"""The name in one place, the value in the next: ``name: X`` and ``value:``, ``<name>X</name>`` and ``<value>``."""
_TOLD = re.compile(
    r"[ \t]{1,8}(?:(?:(?:is|was)[ \t]{1,8}(?:generated|set|reset|changed)[ \t]{1,8})?"
    r"(?:for|FOR|of|to)(?:[ \t]{1,8}[^\s:=]{1,64}+){1,4}(?:[ \t]{0,4}[:=]|[ ]is)[ \t]{1,8}"
    r"|(?:\w{1,32}[ \t]=|\d{1,2}:)[ \t]|(?:(?:has been|is|was)[ ])?(?:set|changed|reset|updated)[ ]to:?[ ]{1,4}"
    r"|(?:created|generated|issued)(?:[ ]successfully)?:[ ]{1,4}|(?:is|was)[ \t:]{1,8}|(?P<quoted>(?=[\"'])))(?=\S)"
)
_NEXT_TEXT = re.compile(
    r"""[\"'][ \t]{0,8},[ \t]{0,8}(?=[\"'][^\"'\n]{1,256}[\"'][ \t]{0,4}[)\]]"""
    r"""|[\"'][^\"'\d\n]{0,64}+\d[^\"'\n]{1,64}[\"'],)"""
    r"""|,[ ]?<<(?=")|\\?";s:\d{1,5}:(?=\\?")|"\s{1,4}\d{1,4}\)[ ](?=")"""
)
"""As in a call, in Erlang, in PHP, in the answer of a Redis."""
_FIRST_WORD = re.compile(r"[\"']?(?P<word>[A-Za-z]{0,16}+)[\"']?(?![^\s.,;:])")
_PROSE = words(
    "a an the not no required incorrect wrong invalid expired too set unset empty valid correct missing needed "
    "used sent stored in on at to for of and or being been now also only never always changed reset ok generated "
    "out"
)
_SPACE = re.compile(r"[\s\x1f]{1,16}")
_SET = re.compile(
    r"(?:(?:^|[\s\x1f;&\"'])(?:ENV|ARG|SetEnv|HSET|(?:[\w.-]{0,16}:)?(?:SET|set|setenv|put|config|update|write)"
    r"|declare[ \t]-\w{1,4}|set_config|--set(?:[ \t\x1f]{1,8}[\w./-]{1,64}){0,2})"
    r"(?:[ \t\x1f]{1,8}--?[a-z]{1,16}){0,2}[ \t\x1f]{1,8}(?:[\w.:/-]{0,64}[/: \x1f])?"
    r"|(?:login|machine|user(?:name)?|account)\s{1,8}\S{1,128}\s{1,8}|wifi[^\n]{0,96}[\s\x1f])$"
)
_COLUMN = re.compile(
    r"(?:[ ]{2,64}+|[ ]?(?:\t|\\t)[ \t]{0,64}+|[ ]{1,8}+[|\u2502][ ]{1,64}+)"
    r"(?=[^\s|\u2502\x1f]{1,256}+[ \t]{0,64}+(?:[|\u2502][ \t]{0,8}+)?(?:[\n\r]|\Z))"
)
_BEFORE_COLUMN = re.compile(r"(?:^|\n)[ \t|\u2502]{0,16}$")
_BEGINS_LINE = re.compile(
    r"(?:^|[\n\x1f])[ \t]{0,64}(?:[+>#-][ \t]{1,8})?(?:export[ \t]{1,8}|ENV[ \t]{1,8}|declare[ \t]-x[ \t]{1,8})?[\"']?$"
)
_EXPANSION = re.compile(r"^\$\{[\w.-]{1,128}:[+?]$")
_OBJECT = re.compile(r"""\{[^{}]{0,128}"value"\s{0,4}:\s{0,4}(?=")""")
_IN_TAG = re.compile(r"<[\w:.-]{0,32}+$|[\"']$")
_SETTER = re.compile(r"(?i:(?:^|[._])(?:set|with|password)|fromplain)")
_CALL = re.compile(r"\([ \t]{0,8}(?=[\"'])")
_REFERS = re.compile(r"(?:--from-(?:env-)?file=|arn:[\w:/-]{1,80}:)$")
_TEXT = re.compile(r"""\\?(?:"[^"\n]{0,512}+"|'[^'\n]{0,512}+')""")
_ITEMS = re.compile(rf"\[(?:\s{{0,64}}+{_TEXT.pattern}\s{{0,64}}+,?){{1,64}}+\s{{0,64}}\]")
_CHANGED = re.compile(r"\"[ ]->[ ](?=\")")
_CURL_HEADER = re.compile(r"-H[ \x1f]?(?P<quote>\\{0,3}[\"'])$")


class Name(NamedTuple):
    """The name of a secret."""

    word: str
    """What of it says so, in lower case."""
    start: int
    end: int
    whole: str
    is_called: bool
    """As in ``setPassword("…")``."""


def labelled(text: str, starts: Sequence[int], *, of_shell: bool = False) -> Iterator[Span]:
    """Finds values whose name says that they are secret.

    Args:
        text: The text.
        starts: What :func:`names` gives for it.
        of_shell: The text is a command, no file.
    """
    done = 0
    for start in starts:
        if start < done or (core := _CORE.match(text, start)) is None:
            continue
        if (name := _name(text, core)) is not None:
            for span in _of_name(text, name, of_shell=of_shell):
                done = max(done, span[1])
                yield span


def names(text: str) -> list[int]:
    """Tells where the name of a secret may begin."""
    lower = text.replace("\u0130", "i").lower()  # the one letter of which two become
    starts = set()
    for stem in _STEMS:
        at = lower.find(stem)
        while at >= 0:
            starts.add(at + (stem[0] == "_"))
            at = lower.find(stem, at + len(stem))
    at = lower.find("key")
    while at >= 0:
        first = max(0, at - _BEFORE_KEY_CHARACTERS_MAX)
        if (kind := _BEFORE_KEY.search(lower[first:at])) is not None:
            starts.add(first + kind.start())
        at = lower.find("key", at + 1)
    return sorted(starts)


def _name(text: str, core: re.Match[str]) -> Name | None:
    start, end = core.span()
    before = text[max(0, start - _NAME_CHARACTERS_MAX) : start]
    begin = start - len(before) + len(before.rstrip(_IDENTIFIER))
    rest = _REST.match(text, end)
    stop = end if rest is None else rest.end()
    parts = _PART.findall(text[end:stop])
    if (parts and parts[-1].lower() in ABOUT) or text[stop : stop + 1] in {"/", "@"}:
        return None
    if _REFERS.search(text, max(0, begin - 96), begin):
        return None
    is_called = text.startswith("(", stop)
    if is_called and not _SETTER.search(text[begin:stop]):
        return None
    return Name(core[0].lower(), begin, stop, text[begin:stop], is_called)


def _of_name(text: str, name: Name, *, of_shell: bool) -> Iterator[Span]:
    separator = (_CALL if name.is_called else _SEPARATOR).match(text, name.end)
    if separator is not None and _is_of_shell(text, name, separator, of_shell=of_shell):
        return
    is_flag = name.whole.startswith("-") and (name.start == 0 or text[name.start - 1] in " \t\n\x1f\"'[(,=")
    if separator is None and is_flag:
        separator = _FLAG_SEPARATOR.match(text, name.end)
    quote = opener(text, name.start)
    if quote is not None and text.startswith(quote, name.end):
        quote = None  # the name's own
    if name.word in {"cookie", "authorization"}:
        if separator is not None:
            before = _CURL_HEADER.search(text, max(0, name.start - 8), name.start + 2)
            place = Place(separator.end(), before["quote"] if quote is None and before is not None else quote)
            yield from of_header(text, place, cookie=name.whole if name.word == "cookie" else None)
    elif separator is not None and _BLOCK.match(text, separator.end()):
        yield from _indented(text, name.start, separator.end())
    elif separator is not None and text.startswith("\n", separator.end()):
        yield from _below(text, name, separator.end())
    elif (at := _without_separator(text, name) if separator is None else _within_object(text, separator)) is not None:
        is_line = separator is not None and not of_shell and not is_flag and _begins_line(text, name.start)
        if separator is None or _means_secret(text, name, at):
            is_weak = name.word in _WEAK or name.word == "tokens"
            yield from _values(text, Place(at, quote, is_line, is_weak, of_shell))


def _values(text: str, place: Place) -> Iterator[Span]:
    """Gives the value that begins here, or each of a list; and the new one behind it, in a plan of Terraform."""
    if (items := _ITEMS.match(text, place.at)) is not None:
        for found in _TEXT.finditer(text, *items.span()):
            yield from value(text, Place(found.start()))
        return
    for span in value(text, place):
        yield span
        if (changed := _CHANGED.match(text, span[1])) is not None:
            yield from value(text, Place(changed.end()))


def _below(text: str, name: Name, at: int) -> Iterator[Span]:
    """Gives the value in the next line, or those of a list or a map in the next lines."""
    if (below := _BELOW.match(text, at)) is not None:
        yield from value(text, Place(below.end()))
    elif name.word.endswith("s"):
        for start, end in _indented(text, name.start, at):
            if (item := _ITEM.match(text, start, end)) is not None:
                yield item.span("value")


def _is_of_shell(text: str, name: Name, separator: re.Match[str], *, of_shell: bool) -> bool:
    """Tells whether a shell only asks if there is a value, or writes to a file."""
    if _EXPANSION.search(text[max(0, name.start - 2) : separator.end() + 1]):
        return True
    is_redirection = of_shell and separator[0].strip(" \t\x1f") in {">", "||"}
    return is_redirection and not _IN_TAG.search(text, max(0, name.start - 40), name.start)


def _within_object(text: str, separator: re.Match[str]) -> int:
    """Tells where a value begins, also where an object says more of it: `terraform output -json`."""
    inner = _OBJECT.match(text, separator.end())
    return separator.end() if inner is None else inner.end()


def _begins_line(text: str, at: int) -> bool:
    return _BEGINS_LINE.search(text, max(0, at - 96), at) is not None


def _means_secret(text: str, name: Name, at: int) -> bool:
    """Tells whether a short name that stands for many things stands for a secret here."""
    if name.word == "pwd":  # a shell's working directory
        return text[at : at + 1] not in {"/", "~"} and text[at + 1 : at + 2] != "/"
    return name.word not in _WEAK_BUT_LONG or _LONG_VALUE.match(text, at) is not None


def _without_separator(text: str, name: Name) -> int | None:
    """Finds where a value begins that only white space or a word parts from its name."""
    before = text[max(0, name.start - 160) : name.start]
    if name.word in _WEAK - {"pass", "pwd"}:
        return None
    told = _TOLD.match(text, name.end)
    # kubectl puts the name of an object in quotes behind its kind.
    if told is not None and (told["quoted"] is None or name.whole.lower() not in {"secret", "secrets"}):
        word = _FIRST_WORD.match(text, told.end())
        return None if word is not None and word["word"].lower() in _PROSE else told.end()
    if (pair := _PAIR.match(text, name.end) or _NEXT_TEXT.match(text, name.end)) is not None:
        return pair.end()
    if (space := _SPACE.match(text, name.end)) is not None and _SET.search(before):
        word = _FIRST_WORD.match(text, space.end())
        return None if word is not None and word["word"].lower() in _PROSE else space.end()
    found = _BEHIND.match(text, name.end) or _BELOW.match(text, name.end)
    if found is None and _BEFORE_COLUMN.search(before):
        found = _COLUMN.match(text, name.end)
    return None if found is None else found.end()


def _indented(text: str, start: int, at: int) -> Iterator[Span]:
    """Gives a block of YAML: the lines that stand further in than their key."""
    before = text[max(0, start - 256) : start].rpartition("\n")[2]
    depth = len(before) - len(before.lstrip(" "))
    position = text.find("\n", at) + 1
    while 0 < position < len(text):
        end = end_of_line(text, position)
        line = text[position:end]
        first = position + len(line) - len(line.lstrip(" "))
        if line.strip() and first - position <= depth:
            return
        if line.strip():
            yield first, end
        position = end + 1
