"""Each SIEM with each fault, through the real Collector: no other SIEM notices, and once mended each has every record.

The long form measures, and prints a table; `OUTAGE_MATRIX_JSON` names a file for the same rows.
"""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.integration.gateway import HASTE
from tests.integration.load import some
from tests.integration.matrix import (
    DROPPED,
    FAULTS,
    MIB,
    NAMES,
    Scene,
    Sender,
    Siem,
    Watch,
    mend,
    percentile,
    staged,
    status,
    within,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

OTHERS_SECONDS_MAX = 60
"""The fault stands all the while: what waits for it would wait for ever."""
RECOVERY_SECONDS_MAX = 120
"""The longest wait between two attempts is 30 s, and half as much again by chance."""
FLUSH_SECONDS = 1.5
"""The last batch of a load is not full, and waits for more as long as `flush_timeout` says: that is nobody's fault."""
FAULT_SECONDS_MIN = 1
"""So much later than it was due a record comes to a SIEM that fails, if at all; a slow one may have all in the end."""
SLOWER_MAX = 2.0
"""What a fault at one SIEM may do to the delay of the others at p99, times the undisturbed one."""


@dataclass(frozen=True)
class Size:
    rate: int
    fault_s: float
    """How long the fault lasts."""
    tail_s: float
    """How long records go on coming when it is mended: what has waited must not hold them up."""
    sample_s: float

    @property
    def records(self) -> int:
        return int(self.rate * (self.fault_s + self.tail_s))


SHORT = Size(rate=200, fault_s=1, tail_s=0.2, sample_s=0.2)
LONG = Size(rate=500, fault_s=60, tail_s=5, sample_s=1)


@dataclass(frozen=True)
class Row:
    """A cell's result. Times are in seconds."""

    siem: str
    fault: str
    sent: int
    delivered: int
    """Of these, at the SIEM when the fault was mended and nothing waited any more."""
    dropped: int
    """Given up by the Collector, by its own count."""
    after_replay: int
    lost: int
    duplicates: int
    others_p99_s: float
    """The worse one of the two others'."""
    others_slower: float
    """Times their own undisturbed p99."""
    queue_peak_bytes: float
    drain_s: float

    def cells(self) -> list[str]:
        return [
            self.siem,
            self.fault,
            f"{self.sent:,}",
            f"{self.delivered:,}",
            f"{self.dropped:,}",
            f"{self.after_replay:,}",
            str(self.lost),
            f"{self.duplicates:,}",
            f"{self.others_p99_s:.2f} s ({self.others_slower:.2f} x)",
            f"{self.queue_peak_bytes / MIB:.1f}",
            f"{self.drain_s:.1f}",
        ]


HEAD = ["SIEM", "fault", "sent", "delivered before replay", "dropped by the Collector", "after replay", "lost"]
HEAD += ["duplicates", "others' p99 (x undisturbed)"]
HEAD += ["queue at its peak, MiB", "drained in, s"]


def table(rows: list[Row]) -> str:
    lines = [HEAD, ["---"] * len(HEAD), *(row.cells() for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def p99(siem: Siem, sender: Sender, until_s: float = math.inf) -> float:
    """The delay from when a record was due to be sent, before then, to the SIEM's good answer."""
    arrived = siem.arrived()
    return percentile([arrived[each] - due for each, due in sender.due.items() if due < until_s], 99)


def last_batch_s(sender: Sender) -> float:
    """From when on records were due that may be in it."""
    return max(sender.due.values()) - FLUSH_SECONDS


@dataclass
class Outage:
    """What is left to see when the load is over and the SIEM is mended."""

    sender: Sender
    mended_s: float
    peak_bytes: float


def suffer(scene: Scene, name: str, fault: str, size: Size) -> Outage:
    """The SIEM fails under load; the others have every record while it does; then it is mended, and load goes on."""
    siem = scene.siems[name]
    siem.proxy.seen.clear()
    FAULTS[fault](siem.proxy)
    try:
        with Watch(scene, name, size.sample_s) as watch, Sender(scene.gateway.url, size.records, size.rate) as sender:
            sender.wait_for(int(size.rate * size.fault_s))
            before = set(sender.acknowledged)
            for other in scene.others(name):
                assert within(OTHERS_SECONDS_MAX, lambda: before <= other.arrived().keys()), (  # noqa: B023 - at once
                    f"{other.name} lacks {some(before - other.arrived().keys())} while {name} {fault}"
                )
            if fault in DROPPED:  # it was asked, and gave the answer
                assert within(OTHERS_SECONDS_MAX, siem.proxy.statuses), f"{name} was not asked"
            took = siem.arrived()
            late_s = max(took.get(each, math.inf) - sender.due[each] for each in before)
            assert late_s > FAULT_SECONDS_MIN, f"{name} has everything already: the fault did nothing"
            mended_s = time.monotonic()
            siem.proxy.mend()
    finally:
        siem.proxy.mend()
    assert sender.acknowledged == sender.ids
    assert set(sender.statuses) == {200}, f"the sender was answered {sender.statuses}"
    return Outage(sender, mended_s, watch.peak)


def outlast(scene: Scene, name: str, fault: str, size: Size, undisturbed: dict[str, float]) -> Row:
    """One cell: the outage, the recovery, the mending; every record is at every SIEM."""
    siem = scene.siems[name]
    dropped_before = scene.dropped(name)
    outage = suffer(scene, name, fault, size)
    sender = outage.sender

    def missing() -> set[str]:
        return sender.ids - siem.arrived().keys()

    def dropped() -> int:
        return scene.dropped(name) - dropped_before

    assert within(RECOVERY_SECONDS_MAX, lambda: not scene.queue(name)), f"{scene.queue(name)} bytes wait"
    drained_s = time.monotonic()
    settled = within(OTHERS_SECONDS_MAX, lambda: len(missing()) == dropped())
    assert settled, f"{some(missing())} are missing, and the Collector says that it dropped {dropped()}: silent loss"
    assert bool(missing()) == (fault in DROPPED), f"missing: {some(missing())}"
    row_dropped, delivered = dropped(), len(sender.ids - missing())
    if missing():
        assert sender.ids - set(siem.stored(sender.run)) == missing()
        mend(scene, name)
        assert within(RECOVERY_SECONDS_MAX, lambda: not missing()), f"not even after the replay: {some(missing())}"
        assert within(RECOVERY_SECONDS_MAX, lambda: not scene.queue(name))
        code, told = status(scene)
        assert code == 0, told
    for each in scene.siems.values():
        assert within(OTHERS_SECONDS_MAX, lambda: sender.ids <= each.arrived().keys()), each.name  # noqa: B023 - at once
        stored = each.stored(sender.run)
        assert set(stored) == sender.ids, f"{each.name} lacks {some(sender.ids - set(stored))}"
    stored = siem.stored(sender.run)
    others = scene.others(name)
    end_s = last_batch_s(sender) if undisturbed else math.inf
    delays = {other.name: p99(other, sender, until_s=end_s) for other in others}
    return Row(
        siem=name,
        fault=fault,
        sent=len(sender.ids),
        delivered=delivered,
        dropped=row_dropped,
        after_replay=len(set(stored)),
        lost=len(sender.ids - set(stored)),
        duplicates=len(stored) - len(set(stored)),
        others_p99_s=max(delays.values()),
        others_slower=max((p99_s / undisturbed[other] for other, p99_s in delays.items() if undisturbed), default=0),
        queue_peak_bytes=outage.peak_bytes,
        drain_s=drained_s - outage.mended_s,
    )


@pytest.fixture(scope="module")
def lasting(otelcol: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """One Collector and three SIEMs, through one fault after another."""
    with staged(otelcol, tmp_path_factory.mktemp("matrix"), exporter=HASTE) as scene:
        yield scene


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", NAMES)
def test_a_siem_that_fails_holds_up_no_other_and_gets_everything_in_the_end(
    lasting: Scene, name: str, fault: str
) -> None:
    outlast(lasting, name, fault, SHORT, {})


@pytest.fixture(scope="module")
def undisturbed(otelcol: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """The delay of each SIEM at p99 when all are well, in this run, on this machine."""
    with staged(otelcol, tmp_path_factory.mktemp("undisturbed")) as scene:
        with Sender(scene.gateway.url, LONG.records, LONG.rate) as sender:
            pass
        for siem in scene.siems.values():
            assert within(OTHERS_SECONDS_MAX, lambda: sender.ids <= siem.arrived().keys()), siem.name  # noqa: B023 - at once
        end_s = last_batch_s(sender)
        return {siem.name: p99(siem, sender, until_s=end_s) for siem in scene.siems.values()}


@pytest.fixture(scope="module")
def rows(undisturbed: dict[str, float]) -> Iterator[list[Row]]:
    made: list[Row] = []
    yield made
    print(f"\nundisturbed p99: {', '.join(f'{name} {p99_s:.2f} s' for name, p99_s in undisturbed.items())}")  # noqa: T201
    print(table(made))  # noqa: T201 - figures for the documentation
    if file := os.environ.get("OUTAGE_MATRIX_JSON"):
        result = {"undisturbed_p99_s": undisturbed, "rows": [asdict(row) for row in made]}
        Path(file).write_text(json.dumps(result, indent=2) + "\n")


@pytest.mark.soak
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", NAMES)
def test_a_siem_that_fails_for_a_minute(  # noqa: PLR0913, PLR0917 - fixtures
    otelcol: Path, tmp_path: Path, undisturbed: dict[str, float], rows: list[Row], name: str, fault: str
) -> None:
    with staged(otelcol, tmp_path) as scene:
        row = outlast(scene, name, fault, LONG, undisturbed)
    rows.append(row)
    print(*row.cells(), sep=" | ")  # noqa: T201 - figures for the documentation
    assert row.others_slower <= SLOWER_MAX, f"the others were {row.others_slower:.1f} times slower"
