"""Nothing that a client writes changes a field that is not its own."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings, strategies

from tests import hostile, injection
from tests.hostile import fuzzed
from tests.injection import PLACES, PLAIN, Ask
from tests.injection_oracle import problems
from tron_audit_otel.config import AuditConfig
from tron_audit_otel.testing import Captured, capture

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from opentelemetry._logs import LogRecord

CLIENT = "192.0.2.7"
ANEW = frozenset({"audit.record.id", "audit.sequence.number", "audit.duration_ms"})
"""What is different in each record, whatever the request."""
EXAMPLES = 60

pieces = strategies.sampled_from(sorted({text for texts in hostile.CLASSES.values() for text in texts}))
texts = hostile.text | strategies.lists(pieces, min_size=1, max_size=4).map("".join)
raws = (
    strategies.binary()
    | strategies.sampled_from(hostile.NOT_UTF_8)
    | texts.map(lambda text: text.encode("utf-8", "surrogatepass"))
)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Ask], LogRecord]]:
    """Serves a request, and gives its one record."""
    policy = tmp_path_factory.mktemp("injection") / "policy.yaml"
    policy.write_text(injection.POLICY)
    app = injection.application()

    with capture(app, AuditConfig(enabled=True, policy_file=policy)) as trail, asyncio.Runner() as runner:
        yield lambda ask: only_one(trail, runner.run(injection.serve(app, ask, CLIENT)))


def only_one(trail: Captured, error: BaseException | None) -> LogRecord:
    [record] = trail.log_records
    trail.clear()
    assert error is None
    return record


def attributes(record: LogRecord) -> dict[str, Any]:
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in (record.attributes or {}).items()
    }


@pytest.mark.parametrize("name", PLACES)
def test_a_hostile_request_changes_its_own_fields_alone_and_can_be_had_back_from_them(
    recorded: Callable[[Ask], LogRecord], name: str
) -> None:
    place = PLACES[name]
    plain = recorded(PLAIN[place.sort])

    @settings(fuzzed, max_examples=EXAMPLES)
    @given(texts, raws)
    def check(text: str, raw: bytes) -> None:
        ask = place.put(PLAIN[place.sort], text, raw)
        record = recorded(ask)
        found, without = attributes(record), attributes(plain)
        changed = {key for key in found.keys() | without.keys() if found.get(key) != without.get(key)}
        assert changed <= place.own | ANEW
        assert (record.event_name, record.context) == (plain.event_name, plain.context)
        assert list(problems(ask, CLIENT, str(record.event_name), str(record.body), found)) == []

    check()


def test_the_ten_thousand_cases_leave_no_place_and_no_harm_out() -> None:
    cases = injection.cases(random.Random(7), 10_000)  # noqa: S311 - the same in each run
    hostile_at = Counter(name for case in cases for name in set(case.places))
    assert min(hostile_at[name] for name in PLACES) > 150
    written = "".join(str(replace(case.ask, headers=case.ask.headers[:2])) for case in cases)
    lacking = [text for texts in hostile.CLASSES.values() for text in texts if repr(text)[1:-1] not in written]
    assert lacking == []
