"""Headers that carry secrets, told by their names."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tron_audit_otel.detect_values import COOKIE_ATTRIBUTES, SCHEME, words

if TYPE_CHECKING:
    from collections.abc import Iterator

Span = tuple[int, int]

_PARTS = words(
    "auth authorization token tokens secret cookie cookie2 password passwd passphrase pwd pass signature sig "
    "credential credentials jwt csrf xsrf session sessionid sid key apikey authkey accesskey secretkey otp totp "
    "assertion authtoken accesstoken sessiontoken csrftoken xsrftoken idtoken bearer ticket nonce"
)
_ENDS = ("token", "tokens", "secret", "password", "passwd", "cookie", "apikey", "appkey", "masterkey", "credentials")
"""As in `X-RefreshToken`."""
_NO_SECRET = words(
    "idempotency-key sec-websocket-key surrogate-key cache-key x-cache-key signature-input public-key-pins "
    "public-key-pins-report-only accept-signature sec-token-binding x-amz-server-side-encryption-customer-key-md5 "
    "x-amz-server-side-encryption-aws-kms-key-id"
)
"""Public by their purpose. The client draws the first two at random: one to be found again by, one against caches."""
_PART = re.compile(r"[^-_.]+")
_COOKIE_NAME = re.compile(r"[ \t]*+[^=,\s\"']{1,256}+[ \t]?=[ \t]?(?!=*+\s*+\Z)")
"""Before a value: what stands before nothing, or only more of these signs, is base64 with its padding."""
_COOKIE_FLAGS = words("secure httponly partitioned")
_ATTRIBUTE = re.compile(
    r"[^=]*+=\s*+(?:[^=,\s]*+|[A-Za-z]{3,9}, \d\d[ -][A-Za-z]{3}[ -]\d{2,4} [\d:]{8} GMT)\s*+", re.ASCII
)
"""Behind a comma or a blank, other than in a date, stands another cookie."""


def is_secret(name: str) -> bool:
    """Tells whether a header's values are secret, whatever they are.

    >>> is_secret("X-Vault-Token"), is_secret("X-Request-Id")
    (True, False)
    """
    lower = name.lower()
    return lower not in _NO_SECRET and any(part in _PARTS or part.endswith(_ENDS) for part in _PART.findall(lower))


def secret_parts(name: str, value: str) -> Iterator[Span]:
    """Finds what is secret in a value of a secret header: all but a known scheme, or the cookies' names."""
    lower = name.lower()
    if "cookie" in lower:
        yield from _cookies(value, is_set="set-cookie" in lower)
        return
    scheme = SCHEME.match(value)
    start = scheme.end() if scheme is not None else len(value) - len(value.lstrip())
    end = len(value.rstrip())
    if start < end:
        yield start, end


def _cookies(value: str, *, is_set: bool) -> Iterator[Span]:
    """Finds all but the cookies' names, whatever a value holds; of Set-Cookie, all but the attributes as well."""
    start = 0
    for at, part in enumerate(value.split(";")):
        end, name = start + len(part), _COOKIE_NAME.match(part)
        told = part.partition("=")[0].strip().lower()
        known = _COOKIE_FLAGS if name is None else COOKIE_ATTRIBUTES
        if not (at and is_set and told in known and (name is None or _ATTRIBUTE.fullmatch(part))):
            first = start + (len(part) - len(part.lstrip()) if name is None else name.end())
            yield first, start + len(part.rstrip())
        start = end + 1
