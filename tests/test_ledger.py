from __future__ import annotations

import threading

from hypothesis import given
from hypothesis import strategies as st

from tests.hostile import fuzzed
from tron_audit_otel.ledger import Counts, Ledger

STEPS = st.lists(st.sampled_from(["admit", "commit", "deliver", "dead_letter", "lose", "damage", "adopt", "reject"]))


def adds_up(counts: Counts) -> bool:
    settled = counts.delivered + counts.dead_lettered + sum(counts.dropped.values())
    return counts.emitted == settled + counts.pending and 0 <= counts.queued <= counts.pending


@fuzzed
@given(STEPS)
def test_whatever_happens_in_whatever_order_the_ledger_adds_up(steps: list[str]) -> None:
    ledger, queued, journaled = Ledger(), 0, 0
    for step in steps:
        if step == "admit":
            assert ledger.admit(2) == (queued < 2)
            if queued == 2:
                ledger.drop(1, "queue_full")
            else:
                queued += 1
        elif step == "commit" and queued:
            ledger.commit(1)
            queued, journaled = queued - 1, journaled + 1
        elif step == "lose" and queued:
            ledger.drop(1, "disk_full")
            queued -= 1
        elif step == "adopt":
            ledger.adopt(3)
            journaled += 3
        elif step == "reject":
            ledger.reject()
        elif step in ("deliver", "dead_letter") and journaled:
            getattr(ledger, step)(1)
            journaled -= 1
        elif step == "damage" and journaled:
            ledger.drop(1, "damaged", committed=True)
            journaled -= 1
        counts = ledger.counts()
        assert adds_up(counts)
        assert (counts.queued, counts.pending) == (queued, queued + journaled)
    assert ledger.counts().rejected == steps.count("reject")


def test_it_adds_up_while_many_threads_count() -> None:
    ledger, seen = Ledger(), []

    def work() -> None:
        for _ in range(2000):
            ledger.admit(10**9)
            ledger.commit(1)
            ledger.deliver(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        seen.append(ledger.counts())
    assert all(map(adds_up, seen))
    assert ledger.counts() == Counts(emitted=8000, delivered=8000)


def test_two_streams_add_up() -> None:
    one = Counts(emitted=5, delivered=1, dead_lettered=1, dropped={"a": 1}, pending=2, queued=1, rejected=1)
    two = Counts(emitted=3, dropped={"a": 1, "b": 2})
    assert one + two == Counts(
        emitted=8, delivered=1, dead_lettered=1, dropped={"a": 2, "b": 2}, pending=2, queued=1, rejected=1
    )
