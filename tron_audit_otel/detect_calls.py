"""Secrets that calls in source code take by their position: ``login("bob", "…")``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

Span = tuple[int, int]

_OPENS = re.compile(r"""\((?<=[\w=]\()\s{0,8}(?=[bfru]?\\?["'])""")
_CALLED = re.compile(r"(\w{1,48})[ ]?=?\Z")
_TEXT_VALUE = r"[bfru]?\\?[\"'](?P<value>[^\"'\\\n]{3,256}+)\\?[\"']"
_COMMA = re.compile(r"(?:,\s{0,8}\d{1,6})?,\s{0,8}")
_ANY_TEXT = re.compile(r"[bfru]?\\?[\"'](?P<value>[^\"'\\\n]{0,256}+)\\?[\"']\s{0,8}")
_FIRST = (
    "hashpw hash hashsync hexdigest b64encode bcrypt crypt encryptstring sha1 sha256 sha512 sha2 md5 new cookieparser"
    " fernet"
)
_SECOND = (
    "login auth authenticate create_user createuser changeuserpassword basicauth httpbasicauth credentials createhmac"
    " withcredentials usernamepasswordcredentials networkcredential hash_hmac twilio"
)
_THIRD = (
    "connect connection getconnection pdo __construct mysqli mysqli_connect create_superuser createsuperuser"
    " set_password ftp newinstance"
)
"""Those whose first text is a password, whose second, whose third."""
_POSITIONS = {name: at for at, names in enumerate((_FIRST, _SECOND, _THIRD)) for name in names.split()}
_ALGORITHM = re.compile(r"(?i:sha-?\d{1,3}|md5|bcrypt)")
_KEY_BEHIND = re.compile(
    r"(?:jwt\.(?:sign|verify|encode|decode)|(?i:aes_(?:en|de)crypt|pgp_sym_(?:en|de)crypt))"
    rf"\((?:[^\n\"'{{}},()]{{0,64}}|\{{[^{{}}\n]{{0,256}}\}}),\s{{0,8}}{_TEXT_VALUE}"
)
"""Those whose key stands behind what is no text."""


def calls(text: str) -> Iterator[Span]:
    """Finds passwords that calls in source code take by their position."""
    for found in _OPENS.finditer(text):
        name = _CALLED.search(text[max(0, found.start() - 48) : found.start()])
        position = -1 if name is None else _POSITIONS.get(name[1].lower(), -1)
        at = found.end()
        while position >= 0 and (each := _ANY_TEXT.match(text, at)) is not None:
            if not _ALGORITHM.fullmatch(each["value"]):
                position -= 1
            if position < 0:
                yield each.span("value")
            after = _COMMA.match(text, each.end())
            at = len(text) if after is None else after.end()
    if any(hint in text for hint in ("jwt.", "crypt(", "CRYPT(")):
        for found in _KEY_BEHIND.finditer(text):
            yield found.span("value")
