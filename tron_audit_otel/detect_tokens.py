"""Secrets that are told by their form alone: what vendors issue with a prefix, tokens, cards, what looks random.

Each rule takes time linear in the text, whatever stands in it: a repeat is bounded or possessive, and where something
must follow it, a match can begin only where no other one could have begun before it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

Span = tuple[int, int]

_FORMS = (
    ("AKIA", r"AKIA[A-Z0-9]{16}"),
    ("ASIA", r"ASIA[A-Z0-9]{16}"),
    ("ABIA", r"ABIA[A-Z0-9]{16}"),
    ("ACCA", r"ACCA[A-Z0-9]{16}"),
    ("AIza", r"AIza[\w-]{35}"),
    ("AGE-SECRET-KEY-1", r"AGE-SECRET-KEY-1[A-Z0-9]{50,60}"),
    ("ATATT3", r"ATATT3[\w=-]{20,}+"),
    ("AKC", r"AKC(?<![A-Za-z0-9]AKC)[A-Za-z0-9]{10,}+"),
    ("AC", r"AC(?<![A-Za-z0-9]AC)[0-9a-f]{32}(?![0-9A-Za-z])"),
    ("AK", r"AK(?<![A-Za-z0-9]AK)[0-9a-f]{32}(?![0-9A-Za-z])"),
    ("SK", r"SK(?<![A-Za-z0-9]SK)[0-9a-f]{32}(?![0-9A-Za-z])"),
    ("GOCSPX-", r"GOCSPX-[\w-]{20,}+"),
    ("GR1348941", r"GR1348941[\w-]{20,}+"),
    ("LTAI", r"LTAI[A-Za-z0-9]{12,}+"),
    ("NR", r"NR(?:AK|JS|II|RA)-[\w-]{19,}+"),
    ("PMAK-", r"PMAK-[0-9a-f]{24}-[0-9a-f]{34}"),
    ("HRKU-", r"HRKU-[\w-]{30,}+"),
    ("SG.", r"SG\.[\w-]{16,32}\.[\w-]{20,}+"),
    ("dapi", r"dapi[0-9a-f]{32}(?:-\d{1,2})?"),
    ("dckr_", r"dckr_[a-z]{3}_[\w-]{20,}+"),
    ("_v1_", r"do[opr]_v1_[0-9a-f]{64}"),
    ("dp.", r"dp\.(?:pt|st|ct|sa|scim|audit)\.[\w.-]{30,}+"),
    ("eyJ", r"eyJ(?<![\w-]eyJ)[\w-]{6,}+\.[\w-]{2,}+(?:\.[\w-]*+){0,3}"),
    ("EAAA", r"EAAA[\w-]{60}"),
    ("fig", r"fig[dou]_[\w-]{20,}+"),
    ("fo1_", r"fo1_[\w+/=,-]{30,}+"),
    ("fm", r"fm[12][ar]?_[\w+/=,-]{30,}+"),
    ("gho_", r"gho_[A-Za-z0-9_.-]{30,}+"),
    ("ghp_", r"ghp_[A-Za-z0-9_.-]{30,}+"),
    ("ghr_", r"ghr_[A-Za-z0-9_.-]{30,}+"),
    ("ghs_", r"ghs_[A-Za-z0-9_.-]{30,}+"),
    ("ghu_", r"ghu_[A-Za-z0-9_.-]{30,}+"),
    ("github_pat_", r"github_pat_\w{22,}+"),
    ("gl", r"gl(?:agent|cbt|dt|ffct|ft|imt|oas|pat|ptt|rt|soat|wt)-[\w.-]{20,}+"),
    ("glsa_", r"glsa_\w{32,}+"),
    ("glc_", r"glc_[\w+/=]{32,}+"),
    ("hf_", r"hf_[A-Za-z0-9]{30,}+"),
    ("hv", r"hv[bsr]\.[\w-]{20,}+"),
    ("key-", r"key-(?<![A-Za-z0-9]key-)[0-9a-f]{32}"),
    ("lin_", r"lin_(?:api|oauth)_[A-Za-z0-9]{30,}+"),
    ("npm_", r"npm_[A-Za-z0-9]{30,}+"),
    ("ntn_", r"ntn_(?<![A-Za-z0-9]ntn_)[A-Za-z0-9]{40,}+"),
    ("pat", r"pat(?<![A-Za-z0-9]pat)[A-Za-z0-9]{14}\.[0-9a-f]{64}"),
    ("pscale_", r"pscale_(?:tkn|pw|oauth)_[\w.-]{30,}+"),
    ("pul-", r"pul-[0-9a-f]{40}"),
    ("pypi-", r"pypi-[\w-]{50,}+"),
    ("r8_", r"r8_(?<![A-Za-z0-9]r8_)[A-Za-z0-9]{30,}+"),
    ("rk_", r"rk_(?<![A-Za-z0-9]rk_)(?:live|test|prod|org)_[\w-]{10,}+"),
    ("sk_", r"sk_(?<![A-Za-z0-9]sk_)(?:live|test|prod|org)_[\w-]{10,}+"),
    ("rubygems_", r"rubygems_[0-9a-f]{48}"),
    ("s.", r"s\.(?<![A-Za-z0-9]s\.)[A-Za-z0-9]{24}(?![A-Za-z0-9])"),
    ("secret_", r"secret_(?<![A-Za-z0-9]secret_)[A-Za-z0-9]{40,}+"),
    ("sbp_", r"sbp_[0-9a-f]{40}"),
    ("shp", r"shp(?:at|ca|pa|ss)_[0-9A-Fa-f]{32}"),
    ("sk-", r"sk-(?<![A-Za-z0-9]sk-)[\w-]{20,}+"),
    ("sntry", r"sntry[su]_[\w+=.-]{40,}+"),
    ("sq0", r"sq0[a-z]{3}-[\w-]{22,}+"),
    ("whsec_", r"whsec_[A-Za-z0-9+=_-]{16,}+"),
    ("xox", r"xox[a-z](?:\.xox[a-z])?-[\w.-]{10,}+"),
    ("xapp-", r"xapp-[\w-]{20,}+"),
    ("xwfp-", r"xwfp-[\w-]{20,}+"),
    ("ya29.", r"ya29\.[\w.-]{20,}+"),
)
_FORM = tuple((hint, re.compile(form, re.ASCII)) for hint, form in _FORMS)

_MORE = ("0" * 64, "." + "0" * 64)
"""Completes nearly all of them."""

_LONG = re.compile(r"[\w.-]{13}", re.ASCII)
"""None of them is shorter; most paths have no such word."""

_OTHERS = (
    ("Q~", r"(?<![\w.~-])(?P<azure>[\w.~-]{3}\dQ~[\w.~-]{31,34})"),
    ("-us", r"(?<![0-9a-f])(?P<mailchimp>[0-9a-f]{32}-us\d{1,2})(?!\w)"),
    (".atlasv1.", r"(?P<hashicorp>[A-Za-z0-9]{14}\.atlasv1\.[\w=-]{60,}+)"),
    ("", r"(?P<discord>[MNO][\w-]{23,27}\.[\w-]{6}\.[\w-]{27,}+)"),
    ("*", r"(?<![\w*])\*(?P<mysql>[0-9A-F]{40})(?!\w)"),
    ("hooks.slack", r"hooks\.slack\.com/(?:services|workflows|triggers)/(?P<slack>[\w/+%=-]{16,}+)"),
    ("/webhooks/", r"discord(?:app)?\.com/api/webhooks/\d{1,24}/(?P<hook>[\w%=-]{16,}+)"),
)
_OTHER = tuple((hint, re.compile(form, re.ASCII)) for hint, form in _OTHERS)
_TELEGRAM = re.compile(r":(?<=\d{8}:)[\w-]{35}(?![\w-])", re.ASCII)

_HASH = re.compile(
    r"\$(?:[1567y]|2[abxy]|apr1|sha1|md5|argon2(?:id|i|d)|scrypt|7|gy|pbkdf2-sha(?:256|512)|pbkdf2)"
    r"(?P<hash>\$[A-Za-z0-9./+=,$*-]{20,}+)"
    r"|\{(?:SSHA|SHA|SMD5|CRYPT|PBKDF2|ARGON2)\d{0,3}\}(?P<ldap>[A-Za-z0-9+/=$.]{20,}+)"
)

_RANDOM = re.compile(r"[A-Za-z0-9+/_-]{32,}+={0,2}")
_CLASSES = str.maketrans(
    {
        **dict.fromkeys("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "U"),
        **dict.fromkeys("abcdefghijklmnopqrstuvwxyz", "l"),
        **dict.fromkeys("0123456789", "d"),
        **dict.fromkeys("+/=_-", "x"),
    }
)
_CLASS_RUN = re.compile(r"U+|l+|d+|x+")
_WORD = re.compile(r"Ul{3,}|l{4,}|U{4,}")
_RANDOM_CHARACTERS_MIN = 32
_CHANGES_MIN = 0.38
"""Of neighbours in base64 of random bytes, two thirds are of another class than the one before; in names, a third."""
_WORDS_MAX = 0.7
"""At most so much of it reads as words: of a thousand random ones, one does not pass."""
_HEX = re.compile(r"(?:0[xX])?[0-9A-Fa-f]+")
_DIGEST_BEGINS = re.compile(r"sha\d{3}[-_/]|h1[-_/]")
_DIGEST = re.compile(r"(?:(?i:sha\d{1,3}|md5|h1|blake\w{0,4}|integrity)[:=\-/\"\s]{1,4}|CN=|etag:? ?\"?)$")
_PUBLIC = (
    "AAAAB3NzaC1",
    "AAAAC3NzaC1",
    "AAAAE2Vj",
    "AAAAG",
    "AAAAInNr",
    "AAAAGnNr",
    "MIGf",
    "MIIB",
    "MIIC",
    "MIID",
    "MIIE",
    "MIIF",
)
_CERTIFICATE = re.compile(r"-----BEGIN (?!(?:[A-Z0-9]+ ){0,4}PRIVATE )[A-Z0-9 ]{3,40}-----[A-Za-z0-9+/=\s\\]{0,8192}")

_CARD = re.compile(
    r"\d{4}(?<![0-9A-Za-z.]\d{4})(?:\d{9,15}"
    r"|(?P<sep>[ -])(?:\d{6}(?P=sep)\d{4,5}|\d{4}(?P=sep)\d{4}(?P=sep)\d{1,4}(?:(?P=sep)\d{3})?))"
    r"(?![0-9A-Za-z]|\.\d|[ -]\d{4})",
    re.ASCII,
)
_ZEROS_MAX = 8
_ISSUERS = (
    (re.compile(r"4"), {13, 16, 19}),
    (re.compile(r"5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720"), {16}),
    (re.compile(r"3[47]"), {15}),
    (re.compile(r"6011|64[4-9]|65"), {16, 17, 18, 19}),
    (re.compile(r"35(?:2[89]|[3-8])"), {16, 17, 18, 19}),
    (re.compile(r"3(?:0[0-59]|6|[89])"), {14}),
    (re.compile(r"62|81"), {16, 17, 18, 19}),
    (re.compile(r"220[0-4]"), {16, 17, 18, 19}),
    (re.compile(r"50|5[6-8]|6(?:304|7)"), {13, 14, 15, 16, 17, 18, 19}),
)


def tokens(text: str) -> Iterator[Span]:
    """Finds what vendors issue with a prefix of their own, and JSON Web Tokens."""
    for hint, rule in _FORM:
        if hint in text:
            for found in rule.finditer(text):
                yield found.span()


def cut_tokens(text: str) -> Iterator[Span]:
    """Finds what would be one of :func:`tokens` if the text went on."""
    for more in _MORE:
        for start, end in tokens(text + more):
            if start < len(text) < end:
                yield start, len(text)


def may_hold_token(text: str) -> bool:
    """Tells in a microsecond of a short text whether :func:`tokens` is worth its time.

    Most paths have no capital letter, and of what is drawn at random only hexadecimal digits have none.
    """
    if text.islower():
        # Written out: a loop takes three times as long. These are the forms whose random part is hexadecimal.
        return (
            "key-" in text
            or "_v1_" in text
            or "dapi" in text
            or "pul-" in text
            or "rubygems_" in text
            or "sbp_" in text
            or "shp" in text
            or "sntry" in text
        )
    return _LONG.search(text) is not None


def forms(text: str) -> Iterator[Span]:
    """Finds every secret that its form tells."""
    yield from tokens(text)
    for hint, rule in _OTHER:
        if hint in text:
            for found in rule.finditer(text):
                yield found.span(1)
    for found in _TELEGRAM.finditer(text):
        number = text[max(0, found.start() - 12) : found.start()]
        yield found.start() - len(number) + len(number.rstrip("0123456789")), found.end()
    if "$" in text or "{S" in text:
        for found in _HASH.finditer(text):
            yield found.span(found.lastgroup or 0)
    yield from cards(text)
    yield from random(text)


def cards(text: str) -> Iterator[Span]:
    """Finds numbers of cards: with the issuer's prefix and length, and the check digit (ISO/IEC 7812)."""
    for found in _CARD.finditer(text):
        digits = found[0].replace(" ", "").replace("-", "")
        if digits.count("0") > _ZEROS_MAX:  # memory, shown in hexadecimal
            continue
        if any(prefix.match(digits) and len(digits) in lengths for prefix, lengths in _ISSUERS) and _checks(digits):
            yield found.span()


def _checks(digits: str) -> bool:
    return sum(sum(divmod(int(digit) * (1 + at % 2), 10)) for at, digit in enumerate(reversed(digits))) % 10 == 0


def random(text: str) -> Iterator[Span]:
    """Finds strings that look drawn at random, and are no digest and no public key."""
    public = None
    for found in _RANDOM.finditer(text):
        start, end = found.span()
        if not _is_random(found[0]):
            for part in re.finditer(r"[^/]{32,}+", found[0]):
                if _is_random(part[0]) and not _DIGEST.search(text[max(0, start - 12) : start]):
                    yield start + part.start(), start + part.end()
            continue
        if (
            found[0].startswith(_PUBLIC)
            or _DIGEST_BEGINS.match(found[0])
            or _DIGEST.search(text[max(0, start - 12) : start])
        ):
            continue
        if public is None:
            public = [each.span() for each in _CERTIFICATE.finditer(text)]
        if not any(first <= start < last for first, last in public):
            yield start, end


def _is_random(text: str) -> bool:
    classes = text.translate(_CLASSES)
    if not ("U" in classes and "l" in classes and "d" in classes) or len(classes) < _RANDOM_CHARACTERS_MIN:
        return False
    if _HEX.fullmatch(text):
        return False
    words = sum(len(word) for word in _WORD.findall(classes))
    return len(_CLASS_RUN.findall(classes)) >= _CHANGES_MIN * len(classes) and words <= _WORDS_MAX * len(classes)
