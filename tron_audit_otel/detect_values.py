"""Where the value ends that begins behind a secret's name: with its quotes, its line, its word."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

Span = tuple[int, int]


def words(text: str) -> frozenset[str]:
    """Gives the words of a table."""
    return frozenset(text.split())


LINE_CHARACTERS_MAX = 16_384
"""What is further on in a line counts as another one."""

SCHEME = re.compile(
    r"(?i:Bearer|Basic|Digest|Negotiate|NTLM|Token|ApiKey|DPoP|Hawk|OAuth|JWT|SharedKey(?:Lite)?|vapid|PrivateToken|Key"
    r"|GoogleLogin|AWS4?-?[A-Z0-9-]{0,20}|SCRAM-SHA-\d{1,3})[ \t\x1f]{1,8}(?=[^\s\x1f])"
)
"""The schemes of an Authorization header, whose credentials follow."""

ABOUT = words(
    "name names type types id ids file files path paths dir url uri ref count len length size limit max min "
    "policy expiry expires expire expired expiration ttl age lifetime timeout refs version enabled disabled "
    "required status state format field fields column prompt algorithm alg method methods warning error errors "
    "exception seconds minutes hours days ms change changes mode hint label title usage used budget index idx pos "
    "position endpoint at by on sock fd stdin utils not only py js ts go rs java md html css json yaml yml txt sh "
    "pem crt"
)
"""Ends a name that tells something about a secret."""

_SECRET_NAME = re.compile(
    r"(?:passw(?:or)?d|passphrase|secret|token|storepass|keypass|(?:^|[_.-])(?:pass|pwd|psk)|credentials?"
    r"|(?:api|access|private|secret|encryption|signing|master|account|auth)[_.-]?key)s?(?:[_.-]?\d{0,2}|(?-i:_[A-Z0-9]{1,24}))$",
    re.IGNORECASE,
)

_QUOTE = re.compile(r"""\\{0,3}["'`]""")
_BEGINS_QUOTED = re.compile(r"""[bfru$]{0,2}(?P<quote>\\{0,3}["'`])""")
_QUOTED = {
    '"': re.compile(r'(?:[^"\\\n]|\\.)*+'),
    "'": re.compile(r"(?:[^'\\\n]|\\.)*+"),
    "`": re.compile(r"[^`\n]*+"),
}
_GOES_ON = re.compile(r"[^\s\x1f,;:)\]}>|&\\#]")
_BARE = re.compile(
    r"""(?:[^\s,;&|"'`<>()\[\]{}\\]++"""
    r"""|[,;&|](?!\s|\Z|["'\w.%-]{1,48}[=:])"""
    r"""|["'`](?![\s,;:)\]}>|&.]|\Z)"""
    r"""|[()\[\]{}<>](?![\s,;:"'|&/)\]}]|\Z)"""
    r"""|\\(?![nrtu"']))*+"""
)
"""A word, with what would end it in a list or a program but does not look so here."""
_BARE_IN_SHELL = re.compile(_BARE.pattern.replace("[,;&|](?!", ",(?!"))
"""There no word goes on behind them: a command could hide in what is masked."""
_LINE = re.compile(rf"[^\n\r\x1f]{{0,{LINE_CHARACTERS_MAX}}}+")
_CALLED = re.compile(r"""(?:\[\])?[A-Za-z_][\w.:]{0,48}+\((?P<quote>\\{0,3}["'])""")
"""``SecretStr("…")``"""
_HARMLESS = re.compile(
    r"(?i:true|false|yes|no|on|off|null|none|nil|undefined|str(?:ing)?|bytes|int(?:eger)?|bool(?:ean)?|any|object|self"
    r"|required|optional|unset|not set|default|await|text|string|password|passphrase|token|secret|key|value|pass|none:"
    r"|\*+|x{3,}|\.{3,}|…|<[^<>]{0,64}>|\[[a-z ]{0,24}\]"
    r"|\((?:sensitive|hidden|redacted|known after)[a-z ]{0,16}\)|\d{1,6} bytes)"
    r"|<[^<>\n]{1,64}>(?:[ \t].*)?|[=><~^]{0,2}\d{1,4}(?:\.\d{1,4}){1,3}"
    r"|\$\{?[A-Z_][A-Z0-9_]*\}?|\$[0-9@*#?]|\$\{[A-Z_][A-Z0-9_]*(?::?[-?+][^}]{0,64})?\}|\$\([^)]{0,200}\)?"
    r"|\$?\{\{.{0,200}|\{[a-z_]{0,32}\}|%[sdr]|%\([a-z_]{1,32}\)s|[|>][+-]?|[{\[(\\,;]+|\.[*+].*|\{\$\w{1,16}:?|\[masked[^\]]{0,17}\]?"
)
"""What stands in a secret's place: a word of a program, a reference to a variable, a mask."""
_SMALL_DIGITS_MAX = 4
_COOKIE = re.compile(r"[^=;,\s\"'\x1f]{1,256}+[ \t]?=[ \t]?(?P<value>[^;\s\"'\x1f\\]++|\"[^\"\n]*+)")
COOKIE_ATTRIBUTES = words("path domain expires max-age samesite version priority comment")


class Place(NamedTuple):
    """Where a value begins, and what is known of it."""

    at: int
    opener: str | None = None
    """The quote before its name, which may end both."""
    is_line: bool = False
    """Nothing else stands in its line."""
    is_weak: bool = False
    """Its name is often that of something else, and a small number then."""
    in_shell: bool = False
    """It stands in a command line."""


def names_secret(name: str) -> bool:
    """Tells whether a name is that of a secret, and not of something about one."""
    return _SECRET_NAME.search(name) is not None and re.split(r"[_.-]", name)[-1].lower() not in ABOUT


def cell(text: str, start: int, end: int) -> Iterator[Span]:
    """Gives what stands in a cell of a table, without its quotes."""
    while start < end and text[start] in " \t\"'":
        start += 1
    while start < end and text[end - 1] in " \t\r\"'":
        end -= 1
    is_small = end - start <= _SMALL_DIGITS_MAX and text[start:end].isdigit()
    if start < end and not is_small and not _HARMLESS.fullmatch(text, start, end):
        yield start, end


def value(text: str, place: Place) -> Iterator[Span]:
    """Gives the value that begins here, without a scheme before it and white space behind it."""
    start, end = _extent(text, place)
    scheme = SCHEME.match(text, start)
    if scheme is not None and scheme.end() < len(text):
        start = scheme.end()
        if end <= start:
            end = _end_of_word(text, start, place)
    end = start + len(text[start:end].rstrip(" \t,;"))
    secret = text[start:end]
    is_small = place.is_weak and secret.isdigit() and len(secret) <= _SMALL_DIGITS_MAX
    if secret and not is_small and not _HARMLESS.fullmatch(secret):
        yield start, end


def _extent(text: str, place: Place) -> Span:
    at, opener = place.at, place.opener
    quoted = _BEGINS_QUOTED.match(text, at)
    if quoted is not None and not (quoted["quote"] == opener and quoted.start("quote") == at):
        return quoted.end(), _end_of_quoted(text, quoted.end(), quoted["quote"])
    if place.is_line:
        return at, _closed(text, at, end_of_line(text, at), opener)
    return at, _end_of_word(text, at, place)


def _end_of_quoted(text: str, start: int, quote: str) -> int:
    rule = _QUOTED.get(quote)
    if rule is None:  # escaped, as in JSON within JSON
        return _closed(text, start, end_of_line(text, start), quote)
    end = _end(rule, text, start)
    if _GOES_ON.match(text, end + 1) and text.startswith(quote, end):
        return max(end, _end(_BARE, text, end + 1))  # 'abc'"'"'def' in a shell
    return end


def _end_of_word(text: str, start: int, place: Place) -> int:
    called = _CALLED.match(text, start)
    if called is not None:
        return _end_of_quoted(text, called.end(), called["quote"])
    rule = _BARE_IN_SHELL if place.in_shell and place.opener is None else _BARE
    stop = start + LINE_CHARACTERS_MAX
    closing = -1 if place.opener is None else text.find(place.opener, start, stop)
    found = rule.match(text, start, stop if closing < 0 else closing)
    return start if found is None else found.end()


def end_of_line(text: str, start: int) -> int:
    """Tells where a line ends, or the argument of a command."""
    return _end(_LINE, text, start)


def _end(rule: re.Pattern[str], text: str, start: int) -> int:
    found = rule.match(text, start)
    return start if found is None else found.end()


def _closed(text: str, start: int, end: int, quote: str | None) -> int:
    closing = -1 if quote is None else text.find(quote, start, end)
    return end if closing < 0 else closing


def opener(text: str, at: int) -> str | None:
    """Gives the quote that ends here, if there is one: with the backslashes before it, as in JSON within JSON."""
    found = _QUOTE.search(text, max(0, at - 4), at)
    return found[0] if found is not None and found.end() == at else None


def of_header(text: str, place: Place, *, cookie: str | None = None) -> Iterator[Span]:
    """Gives the credentials of an Authorization header that stands in a text, or what ``cookie`` has."""
    at, quote = place.at, place.opener
    inner = _QUOTE.match(text, at)
    if inner is not None and inner[0] != quote:
        at, quote = inner.end(), inner[0]
    end = _closed(text, at, end_of_line(text, at), quote)
    if _HARMLESS.fullmatch(text, at, end):
        return
    if cookie is not None:
        yield from cookies(text, at, end, is_set=cookie.lower().endswith("set-cookie"))
        return
    scheme = SCHEME.match(text, at, end)
    start = at if scheme is None else scheme.end()
    end = start + len(text[start:end].rstrip())
    if end > start and not _HARMLESS.fullmatch(text, start, end):
        yield start, end


def cookies(text: str, start: int, end: int, *, is_set: bool) -> Iterator[Span]:
    """Gives the values of cookies; of Set-Cookie, not those of its attributes."""
    found_any = False
    for found in _COOKIE.finditer(text, start, end):
        name = found[0].partition("=")[0].strip().lower()
        if is_set and found_any and name in COOKIE_ATTRIBUTES:
            continue
        found_any = True
        yield found.span("value")
    if not found_any and start < end:
        yield start, end
