from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tron_audit_otel import cli_time
from tron_audit_otel.archive import ALWAYS, Span
from tron_audit_otel.errors import ConfigError

NOW = datetime(2026, 11, 24, 14, 5, 6, 789_123, tzinfo=UTC)


def parsed(value: str) -> datetime:
    return datetime.fromtimestamp(cli_time.time_ns("--since", value, NOW) / 1e9, UTC)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2026-11-24", datetime(2026, 11, 24, tzinfo=UTC)),
        ("2026-11-24T14:05", datetime(2026, 11, 24, 14, 5, tzinfo=UTC)),
        ("2026-11-24 14:05:06.5", datetime(2026, 11, 24, 14, 5, 6, 500_000, tzinfo=UTC)),
        ("2026-11-24T14:05:06Z", datetime(2026, 11, 24, 14, 5, 6, tzinfo=UTC)),
        ("2026-11-24T14:05:06+02:00", datetime(2026, 11, 24, 12, 5, 6, tzinfo=UTC)),
        ("90s", NOW - timedelta(seconds=90)),
        ("15m ago", NOW - timedelta(minutes=15)),
        ("1.5h", NOW - timedelta(hours=1.5)),
        (" 7d ", NOW - timedelta(days=7)),
    ],
)
def test_times(value: str, expected: datetime) -> None:
    assert abs(parsed(value) - expected) < timedelta(microseconds=1)


@pytest.mark.parametrize(
    "value",
    ["", "yesterday", "15", "-5m", "5w", "2026-13-01", "14:05", "1959-01-01", "999999999d", "\u0661d", "9" * 99],
)
def test_what_is_no_time_is_named(value: str) -> None:
    with pytest.raises(ConfigError) as error:
        cli_time.time_ns("--until", value, NOW)
    assert str(error.value).startswith("--until must be ")
    assert repr(value) in str(error.value)


def test_spans() -> None:
    now_ns = cli_time.nanoseconds(NOW)
    assert cli_time.span(None, None, NOW) == ALWAYS
    assert cli_time.span("90s", "30s", NOW) == Span(now_ns - 90 * 10**9, now_ns - 30 * 10**9)
    assert cli_time.span("90s", None, NOW).until_ns == ALWAYS.until_ns, "clocks may be ahead of ours"
    assert cli_time.span("90s", "2030-01-01", NOW).since_ns == now_ns - 90 * 10**9


@pytest.mark.parametrize(
    ("since", "until", "message"),
    [
        ("2030-01-01", None, "--since 2030-01-01 has not come yet: it is 2026-11-24T14:05:06.789Z"),
        ("0s", None, "--since 0s has not come yet"),
        ("1h", "2h", "--until 2h must be after --since 1h"),
        ("1h", "1h", "--until 1h must be after --since 1h"),
        (None, "1970-01-01", "--until 1970-01-01 must be after 1970"),
    ],
)
def test_spans_that_hold_nothing(since: str | None, until: str | None, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        cli_time.span(since, until, NOW)
    assert message in str(error.value)


@given(st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001 - hypothesis adds it
def test_what_is_printed_can_be_typed(time: datetime) -> None:
    shown = cli_time.text(cli_time.nanoseconds(time))
    typed = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=cli_time.time_ns("--since", shown, NOW) // 1000)
    assert timedelta() <= time - typed < timedelta(milliseconds=1)


def test_a_time_that_no_calendar_has_is_printed() -> None:
    assert cli_time.text(2**64 - 1).startswith("2554-")
    assert cli_time.text(2**90) == f"{2**90} ns"
