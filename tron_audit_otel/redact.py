"""Makes text from outside safe to keep: without secrets, one line, valid Unicode, bounded, cut visibly."""

from __future__ import annotations

import codecs
import hashlib
import hmac
import re
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Self

from tron_audit_otel.detect import secret_tokens, secret_tokens_of_head, secrets, secrets_of_command, secrets_of_header
from tron_audit_otel.detect_tokens import may_hold_token
from tron_audit_otel.event import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tron_audit_otel.config import AuditConfig
    from tron_audit_otel.detect import Span

LINE_CHARACTERS_MAX = 1024
"""For an actor, a resource, a path, a user agent. The longest e-mail address has 254, a usual path under 200."""

KEPT_MAX = LINE_CHARACTERS_MAX + 1
"""Of what becomes a line later, in characters or bytes: one more, so that the cut shows. Records may wait in memory in
thousands, and a path can have 64 KiB."""

EXEC_CHARACTERS_MAX = 4096
"""For a command, and for each output stream: the head is what an auditor reads, the hash proves the rest."""

CUT = "…"
"""Ends a line that was cut, so that nobody takes a prefix for the whole."""

_AHEAD_CHARACTERS = 4096
WINDOW_CHARACTERS = EXEC_CHARACTERS_MAX + _AHEAD_CHARACTERS
"""How much of a text is looked at: past what is kept, so that a secret that is cut there is seen whole."""

HEADER_VALUES_MAX = 8
"""Of one header, in a record."""

ARGUMENTS_MAX = 256
"""Of a command, in a record."""

MASK = "[masked]"
_MASK_DIGITS = 16
_PIECE_BYTES = 65_536
_WHOLE_CHARACTERS_MAX = len(MASK) + 1 + _MASK_DIGITS

_ESCAPE = r"[\\nrt]|x[0-9a-f]{2}|u[0-9a-f]{4}|U00(?:0[0-9a-f]|10)[0-9a-f]{4}"
_ESCAPED = re.compile(rf"\\(?:{_ESCAPE})")
_WHOLE = re.compile(rf"{_ESCAPED.pattern}|\[masked(?::[0-9a-f]{{{_MASK_DIGITS}}})?\]")
_TO_ESCAPE = re.compile(rf"\\(?={_ESCAPE})|\\?[^ -~]+")


def text(value: object) -> str:
    """Turns anything into text now: an object may change or expire before the record is written. Never raises.

    Bytes that are no UTF-8 become lone surrogates (PEP 383), from which ``encode("utf-8", "surrogateescape")`` makes
    the same bytes again.
    """
    try:
        found = value.decode("utf-8", "surrogateescape") if isinstance(value, (bytes, bytearray)) else str(value)
        return str.__str__(found)  # a subclass may do anything as well
    except Exception:  # noqa: BLE001 - str() of an application's object may do anything; the request goes on
        return f"<{type(value).__name__} that has no text>"  # `__class__` of a lazy proxy may raise as well


def escape(text: str, keep: str = "") -> str:
    r"""Shows what is not printable as Python's escapes: ``\n \r \t \xHH \uHHHH \UHHHHHHHH``.

    A backslash is doubled where it would read as the begin of one, so that :func:`unescape` gives back what was there.
    """
    if text.isprintable() and "\\" not in text:
        return text

    def shown(found: re.Match[str]) -> str:
        run = found[0]
        if run.isprintable():
            return r"\\" if run == "\\" else run
        escaped = printable(run, keep)
        # Where the backslash before it would be read with what is now an escape.
        return f"\\{escaped}" if escaped.startswith(r"\\") else escaped

    return _TO_ESCAPE.sub(shown, text)


def printable(text: str, keep: str = "") -> str:
    r"""Escapes what would break a line or steer a terminal, and leaves backslashes as they are.

    Unlike with :func:`escape`, what is escaped already stays so: this is to be looked at, not to be read back.

    >>> printable("\x1b[2Jalice\nbob")
    '\\x1b[2Jalice\\nbob'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode("ascii") for c in text)


def unescape(text: str) -> str:
    r"""Gives back what :func:`line` and :func:`block` were given, as far as they did not cut or mask it.

    >>> unescape(r"alice\nbob")
    'alice\nbob'
    """
    return _ESCAPED.sub(lambda found: found[0].encode("ascii").decode("unicode_escape"), text)


def line(text: str, characters_max: int = LINE_CHARACTERS_MAX) -> str:
    r"""Gives text as one line of printable characters, at most ``characters_max`` long.

    Control characters, line separators, bidirectional overrides and lone surrogates become backslash escapes, so
    that no value can break a line, hide behind a terminal sequence, or make a whole batch impossible to encode.

    >>> line("alice\nbob")
    'alice\\nbob'
    """
    if len(text) <= characters_max and text.isprintable() and "\\" not in text:
        return text
    # One character can become ten; nothing past this head can survive the cut below.
    return clipped(escape(text[: characters_max + 1]), characters_max)


def clipped(text: str, characters_max: int) -> str:
    """Cuts what was escaped, visibly."""
    return text if len(text) <= characters_max else whole_head(text, characters_max - len(CUT)) + CUT


def whole_head(escaped: str, characters_max: int) -> str:
    """Cuts what was escaped, but no escape and no mask in two: half of one would read as something else."""
    if len(escaped) <= characters_max:
        return escaped
    for found in _WHOLE.finditer(escaped, 0, characters_max + _WHOLE_CHARACTERS_MAX):
        if found.end() > characters_max:
            return escaped[: min(characters_max, found.start())]
    return escaped[:characters_max]


def _spans(find: Callable[[str], list[Span]], text: str) -> list[Span]:
    try:
        return find(text)
    except Exception:  # noqa: BLE001 - whatever breaks a rule, nothing may pass that it did not look at
        return [(0, len(text))]


class Command(NamedTuple):
    """A command as it may be kept."""

    arguments: tuple[str, ...]
    truncated: bool
    masked: int
    """How many secrets were in it."""


class Redactor:
    """Makes what may hold secrets safe to keep: masks them first, then escapes and cuts. Immutable.

    With a key, a mask tells equal secrets from others: it has 64 bits of an HMAC-SHA-256. Nothing here raises: where
    a rule breaks, the whole text is masked.
    """

    def __init__(self, key: str | None = None) -> None:
        """Takes the key by which a masked secret can be found again; None: it cannot."""
        self._key = key.encode("utf-8", "surrogatepass") if key else None

    @classmethod
    def of(cls, config: AuditConfig) -> Self:
        """Takes what is configured."""
        return cls(config.hash_key)

    def mask(self, secret: str) -> str:
        """Gives what stands in a secret's place.

        >>> Redactor().mask("hunter2")
        '[masked]'
        """
        if self._key is None:
            return MASK
        digest = hmac.digest(self._key, secret.encode("utf-8", "surrogatepass"), "sha256")
        return f"{MASK[:-1]}:{digest.hex()[:_MASK_DIGITS]}]"

    def keyed_hash(self) -> hmac.HMAC | None:
        """Begins a keyed hash of something whole."""
        return None if self._key is None else hmac.new(self._key, digestmod="sha256")

    def masked(self, text: str) -> tuple[str, int]:
        """Masks the secrets in a text, and tells how many there were."""
        return self._without(text, _spans(secrets, text))

    def line(self, text: str, characters_max: int = LINE_CHARACTERS_MAX) -> str:
        """Gives text as :func:`line` does, without its secrets."""
        head = text[: characters_max + _AHEAD_CHARACTERS]
        return line(self._without(head, _spans(secrets, head), characters_max + 1)[0], characters_max)

    def tokens(self, text: str) -> str:
        """Masks only what its form alone tells to be a token. Takes a microsecond of a short text without any."""
        if len(text) > LINE_CHARACTERS_MAX or text.endswith(CUT):
            return self._tokens_of_head(text)
        if not may_hold_token(text):
            return text
        return self._without(text, _spans(secret_tokens, text))[0]

    def _tokens_of_head(self, text: str) -> str:
        head = text.removesuffix(CUT)
        spans = _spans(secret_tokens_of_head, head)
        return clipped(self._without(head, spans)[0] + CUT, LINE_CHARACTERS_MAX) if spans else text

    def block(self, text: str | bytes, characters_max: int = EXEC_CHARACTERS_MAX) -> Text:
        """Keeps the head of a text of many lines."""
        output = Output(self)
        output.write(text)
        return output.text(characters_max)

    def command(self, arguments: Iterable[str], characters_max: int = EXEC_CHARACTERS_MAX) -> Command:
        """Keeps as many arguments as fit into ``characters_max``, each as one line."""
        heads: list[str] = []
        left, truncated = characters_max, False
        for argument in arguments:
            if left <= 0 or len(heads) == ARGUMENTS_MAX:
                truncated = True
                break
            heads.append(argument[:WINDOW_CHARACTERS])
            left -= len(argument) + 1
        try:
            spans = secrets_of_command(heads)
        except Exception:  # noqa: BLE001 - as with `_spans`
            spans = [[(0, len(head))] for head in heads]
        kept: list[str] = []
        left, masked = characters_max, 0
        for head, found in zip(heads, spans, strict=True):
            if left <= 0:
                truncated = True
                break
            shown, count = self._without(head, found, left + 1)
            shown = escape(shown)
            kept.append(clipped(shown, left))
            masked += count
            truncated |= len(shown) > left
            left -= len(shown) + 1
        return Command(tuple(kept), truncated, masked)

    def header(self, name: str, values: Iterable[str]) -> tuple[str, ...]:
        """Gives a header's values as lines, at most eight, without their secrets.

        Where the name tells that the value is one, only a known scheme and the names of cookies stay.
        """
        kept: list[str] = []
        find = partial(secrets_of_header, name)
        for value in values:
            if len(kept) == HEADER_VALUES_MAX:
                kept[-1] = CUT
                break
            head = value[: 2 * LINE_CHARACTERS_MAX]
            kept.append(line(self._without(head, _spans(find, head), KEPT_MAX)[0]))
        return tuple(kept)

    def _without(self, text: str, spans: Iterable[Span], characters_max: int | None = None) -> tuple[str, int]:
        """Masks the spans in the first ``characters_max`` characters; a secret that ends past them is one of these."""
        end = len(text) if characters_max is None else min(characters_max, len(text))
        parts: list[str] = []
        at = count = 0
        for start, stop in spans:
            if start >= end:
                break
            parts += (text[at:start], self.mask(text[start:stop]))
            at = stop
            count += 1
        return "".join((*parts, text[at:end])), count


class Output:
    """What a command wrote, in pieces of any size: keeps a window of it, counts and hashes the rest."""

    def __init__(self, redactor: Redactor) -> None:
        """Begins with nothing."""
        self._redactor = redactor
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._window: list[str] = []
        self._room = WINDOW_CHARACTERS
        self._length = 0
        self._sha256 = hashlib.sha256()
        self._hmac = redactor.keyed_hash()

    def write(self, piece: str | bytes) -> None:
        """Takes a piece. Of bytes, a character may begin in one and end in the next."""
        if isinstance(piece, str):
            self._keep(self._decoder.decode(b"", final=True))
            raw = piece.encode("utf-8", "surrogatepass")
            self._keep(piece)
        else:
            raw = bytes(piece)
            for at in range(0, len(raw), _PIECE_BYTES):
                self._keep(self._decoder.decode(raw[at : at + _PIECE_BYTES]))
        self._sha256.update(raw)
        if self._hmac is not None:
            self._hmac.update(raw)

    def _keep(self, text: str) -> None:
        self._length += len(text)
        if self._room > 0 and text:
            self._window.append(text[: self._room])
            self._room -= len(text)

    def text(self, characters_max: int = EXEC_CHARACTERS_MAX) -> Text:
        """Gives its head, without its secrets, with what tells of the whole."""
        self._keep(self._decoder.decode(b"", final=True))
        window = "".join(self._window)
        spans = _spans(secrets, window)
        shown, masked = self._redactor._without(window, spans, characters_max)  # noqa: SLF001 - of this module
        head = escape(shown, keep="\n\t")
        return Text(
            head=whole_head(head, characters_max),
            length=self._length,
            truncated=self._length > characters_max or len(head) > characters_max,
            sha256=None if spans else self._sha256.hexdigest(),
            hmac_sha256=self._hmac.hexdigest() if spans and self._hmac is not None else None,
            masked=masked,
        )


NO_KEY = Redactor()
"""Masks for good."""
