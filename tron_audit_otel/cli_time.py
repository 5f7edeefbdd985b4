"""Times and spans as an operator types them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from tron_audit_otel.archive import ALWAYS, Span
from tron_audit_otel.errors import ConfigError

WHEN = "such as 2026-11-24T14:05:00Z (UTC without a zone), 2026-11-24, or 90s, 15m, 2h, 7d ago"

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_AGO = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)([smhd])(?: ago)?", re.ASCII)


def span(since: str | None, until: str | None, now: datetime) -> Span:
    """Reads ``--since`` and ``--until``; without the one it begins with 1970, without the other it has no end.

    Raises:
        ConfigError: One is no time, the span is empty, or it has not begun; the message names the argument.
    """
    since_ns = ALWAYS.since_ns if since is None else time_ns("--since", since, now)
    until_ns = ALWAYS.until_ns if until is None else time_ns("--until", until, now)
    if since is not None and since_ns >= nanoseconds(now):
        raise ConfigError(f"--since {since} has not come yet: it is {text(nanoseconds(now))}")
    if since_ns >= until_ns:
        began = f"--since {since}" if since is not None else "1970"
        raise ConfigError(f"--until {until} must be after {began}")
    return Span(since_ns, until_ns)


def time_ns(argument: str, value: str, now: datetime) -> int:
    """Reads a time, to the microsecond, into nanoseconds since 1970.

    Raises:
        ConfigError: It is none, or before 1970; the message names the argument.
    """
    try:
        found = _ago(value.strip(), now) or datetime.fromisoformat(value.strip())
        when = nanoseconds(found if found.tzinfo else found.replace(tzinfo=UTC))
    except (ValueError, OverflowError):
        raise ConfigError(f"{argument} must be a time {WHEN}; not {value!r}") from None
    if when < 0:
        raise ConfigError(f"{argument} must be after 1970, not {value!r}")
    return when


def nanoseconds(time: datetime) -> int:
    """Gives nanoseconds since 1970, without the error of a float."""
    return (time - datetime.fromtimestamp(0, UTC)) // timedelta(microseconds=1) * 1000


def text(time_ns: int) -> str:
    """Gives a time as ISO 8601 in UTC, to the millisecond.

    >>> text(1_790_000_000_123_456_789)
    '2026-09-21T14:13:20.123Z'
    """
    try:
        time = datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=time_ns // 1_000_000)
    except OverflowError:  # of a record whose sender wrote nonsense
        return f"{time_ns} ns"
    return f"{time:%Y-%m-%dT%H:%M:%S}.{time.microsecond // 1000:03}Z"


def _ago(value: str, now: datetime) -> datetime | None:
    match = _AGO.fullmatch(value)
    return now - timedelta(**{_UNITS[match[2]]: float(match[1])}) if match else None
