"""Secrets that are told by their place in a URL, or in a file or a protocol of a known form."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

Span = tuple[int, int]

_USERINFO = re.compile(
    r"""://(?P<user>[^\s:/?#@"'<>\\\x1f]{0,256}+)"""
    r"""(?::(?!\d{1,5}(?:[/?#\s"'\x1f]|\Z))(?P<password>(?:[^\s@"'<>\\\x1f]{0,256}+@){1,4}+))?"""
)
_USER_ONLY = re.compile(r"://(?P<user>(?=[^@\s]{0,256}\d)[\w%.~+-]{16,256}+)@")
_ORACLE = re.compile(r"/(?P<value>[^\s/\"'\x1f]{1,128})@[\w./-]{1,128}")
_ORACLE_USER = re.compile(r"(?:thin:|oci8?:)[\w$.-]{1,64}$")
_QUERY = re.compile(
    r"[?&;](?:amp;)?(?:sig|sign|signature|key|code|sid|otp|x-amz-(?:signature|security-token|credential)"
    r"|x-goog-(?:signature|credential)|samlresponse|samlrequest|assertion|ticket|auth|hmac|sas|pw|pass)"
    r"(?:=|%3[dD])(?P<value>[^\s&#\"'<>;|\x1f]{6,}+)",
    re.IGNORECASE,
)

_PHRASES = (
    ((":5432:",), re.compile(r"(?:^|\n)[\w.*-]{1,128}+:5432:[\w.*-]{0,64}+:[\w.*-]{1,64}+:(?P<value>[^\s:][^\n\r]*+)")),
    (
        (":*:",),
        re.compile(r"(?:^|\n)[\w.*-]{1,128}+:(?:\*|\d{1,5}):[\w.*-]{0,64}+:[\w.*-]{1,64}+:(?P<value>[^\s:][^\n\r]*+)"),
    ),
    (
        (":_",),
        re.compile(r":_(?:auth(?:Token)?|password)(?:[ \t]?=[ \t]?|[ \t\x1f]{1,8})[\"']?(?P<value>[^\s\"'\x1f]++)"),
    ),
    *(
        (
            (hint,),
            re.compile(
                rf"{hint}[ \t]{{1,8}}(?:(?i:with)[ \t]{{1,8}}\S{{1,64}}+[ \t]{{1,8}})?(?i:by|as)[ \t]{{1,8}}"
                r"(?:(?i:password)[ \t]{1,8})?['\"]?(?P<value>(?<=['\"])[^'\"\n]++|(?=[^\s;]{0,64}\d)[^\s'\";]{4,}+)"
            ),
        )
        for hint in ("IDENTIFIED", "identified")
    ),
)
_SETTING = re.compile(
    r"(?<![\w.])(?:requirepass|masterauth|bindpw|rootpw|AUTH(?:[ ](?:PLAIN|LOGIN|XOAUTH2))?|ConvertTo-SecureString"
    r"|(?:[Pp]assword|secret|key)[ \t][0-9]"
    r"|snmp-server[ \t]community|(?:requirepass|masterauth)(?=\n))[ \t\x1f\n]{1,8}[\"']?(?P<value>[^\s\"'\x1f]{4,}+)"
)
_FOREIGN = re.compile(
    r"(?i:contrase\u00f1a|mot de passe|senha|wachtwoord|has\u0142o|l\u00f6senord|parola"
    r"|\u043f\u0430\u0440\u043e\u043b\u044c|\u5bc6\u7801|\u5bc6\u78bc|\u30d1\u30b9\u30ef\u30fc\u30c9|\ube44\ubc00\ubc88\ud638)"
    r"[ \t]{0,8}[:=\uff1a][ \t]{0,8}[\"']?(?P<value>[^\s\"'\x1f]{3,}+)"
)
_TAG = re.compile(
    r"<(?:[\w-]{1,32}:)?[\w.-]{0,32}[Pp]assw(?:or)?d(?:[ \t][^<>\n]{0,128}+)?>\s{0,32}+(?:<!\[CDATA\[)?"
    r"(?P<value>[^<>\]\s][^<>\]\n]{0,256}+)"
)
_REDIS_USER = re.compile(
    r"(?:SETUSER|setuser|user)[ \t\x1f]{1,8}[\w-]{1,64}[ \t\x1f](?:[^\n>#]{0,64})[>#](?P<value>[^\s\"'\x1f]{1,256}+)"
)
_SECRET_ID = re.compile(
    r"(?i:secret[_ .-]?id)[\"']?\s{0,16}[:=]\s{0,16}[\"']?(?P<value>[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f-]{22})"
)
_DRAWN = (
    r"\\?[\"']?(?:[ ]{0,16}(?:=>|[:=])|,)[ ]{0,16}\\?[\"']?(?P<value>[0-9A-Fa-f]{32,}+(?![\w-])"
    r"|(?=[^\s\"']{0,64}\d)(?=[^\s\"']{0,64}[A-Z])(?=[^\s\"']{0,64}[a-z])[^\s\"'\\/(){}\[\]<>]{20,}+)"
)
_DRAWN_NAMES = (
    "key",
    "Key",
    "KEY",
    "salt",
    "Salt",
    "SALT",
    "seed",
    "SEED",
    "pepper",
    "PEPPER",
    "refresh",
    "csrf",
    "CSRF",
)
"""Names that are often those of something else: only of what looks drawn at random."""
_CODE = re.compile(
    r"(?:[ -][Cc]ode(?:(?<=(?i:verification).{5})|(?<=(?i:confirmation).{5})|(?<=(?i:security).{5})|(?<=(?i:login).{5})"
    r"|(?<=[12]FA.{5})|(?<=MFA.{5}))|OTP)"
    r"(?:[ ]is|[ ]?:)?[ ]{1,4}(?P<value>\d{4,10})(?!\w)"
)
_LOGIN = re.compile(
    r"(?:[Cc]redentials?|[Ll]ogin with)[ :=]{1,4}[\w.@-]{1,64}(?:[ ]/[ ]|[:/])"
    r"(?P<value>[^\s/:,;)\"']{6,128}+)(?=[\s,;.)]|\Z)"
)
_REPOSITORY = re.compile(
    r"(?:http-basic\.[\w.-]{1,128}+[ \x1f][^\s\x1f]{1,128}+|(?:git(?:hub|lab)-\w{5}|pypi-token)\.[\w.-]{1,128}+)[ \x1f]"
    r"[\"']?(?P<value>[^\s\"'\x1f]{6,256}+)"
)
"""As Composer and Poetry are told them."""
_AT_HOST = re.compile(
    r"(?<![\w/.:\\-])[\w./\\-]{1,64}+:(?P<value>(?=[^\s@]{0,64}\d)[^\s@:/\"'\x1f]{8,64}+)@(?!sha\d)[\w-]{1,64}",
    re.ASCII,
)
_SETTINGS = (
    (
        ("requirepass", "masterauth", "bindpw", "rootpw", "AUTH ", "SecureString", "assword ", "secret ", "key "),
        _SETTING,
    ),
    (("snmp-server",), _SETTING),
    (("se\u00f1a", "SE\u00d1A", "passe", "enha", "achtwoord", "s\u0142o", "senord", "arola"), _FOREIGN),
    (("\u0430\u0440\u043e\u043b\u044c", "\u5bc6\u7801", "\u5bc6\u78bc", "\u30d1\u30b9", "\ube44\ubc00"), _FOREIGN),
    (("@",), _AT_HOST),
    (("assword", "asswd"), _TAG),
    (("SETUSER", "setuser", " on >", " on #"), _REDIS_USER),
    (('AUTH"',), re.compile(r'"AUTH"(?:[ ]"[^"\n]{1,64}+")?[ ]"(?P<value>[^"\n]{1,256}+)"(?=\s|\Z)')),
    (("ecret", "ECRET"), _SECRET_ID),
    ((" code", " Code", "OTP"), _CODE),
    (("redential", "ogin"), _LOGIN),
    (("http-basic.", "-oauth.", "-token."), _REPOSITORY),
    *(((name,), re.compile(f"{name}(?<![A-Za-z]{name}){_DRAWN}")) for name in _DRAWN_NAMES),
)
_CREDENTIALS = (
    ("earer", re.compile(r"[Bb]earer[ \t\x1f]{1,8}(?P<value>[A-Za-z0-9._~+/=-]{8,}+)")),
    ("BEARER", re.compile(r"BEARER[ \t\x1f]{1,8}(?P<value>[A-Za-z0-9._~+/=-]{8,}+)")),
    ("asic", re.compile(r"[Bb]asic[ \t\x1f]{1,8}(?P<value>[A-Za-z0-9+/]{8,}+={0,2})")),
)
_WORD = re.compile(r"[a-z]{1,24}(?:[-./][a-z]{1,24}){0,3}\.?|[A-Z][a-z]{1,24}|[A-Z]{1,24}")


def urls(text: str) -> Iterator[Span]:
    """Finds what URLs hold: the password before the host, signatures and tokens in the query."""
    if ":\\/\\/" in text:  # as some write JSON; it stays as long
        text = text.replace(":\\/\\/", "  ://")
    if "://" in text:
        for found in _USERINFO.finditer(text):
            if found["password"] is not None:
                yield found.start("password"), found.end("password") - 1
        for found in _USER_ONLY.finditer(text):
            yield found.span("user")
    if "@" in text:
        for found in _ORACLE.finditer(text):
            if _ORACLE_USER.search(text, max(0, found.start() - 72), found.start()):
                yield found.span("value")
    for found in _QUERY.finditer(text):
        yield found.span("value")


def phrases(text: str) -> Iterator[Span]:
    """Finds what ``.pgpass``, ``.npmrc``, SQL and HTTP's authentication say in a form of their own."""
    for hints, rule in (*_SETTINGS, *_PHRASES):
        for hint in hints:
            if hint in text:
                for found in rule.finditer(text):
                    yield found.span("value")
                break


def credentials(text: str) -> Iterator[Span]:
    """Finds what stands behind ``Bearer`` and ``Basic``, with no header's name before it."""
    for hint, rule in _CREDENTIALS:
        if hint in text:
            for found in rule.finditer(text):
                if not _WORD.fullmatch(found["value"]):
                    yield found.span("value")
