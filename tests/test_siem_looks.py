from __future__ import annotations

import json
import os
import stat
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from tron_audit_otel import siem_looks
from tron_audit_otel.archive import Span
from tron_audit_otel.collector_metrics import Collector, Siem
from tron_audit_otel.siem_looks import COLLECTORS_MAX, FILE, RECENT_SECONDS, Looks

if TYPE_CHECKING:
    from pathlib import Path

    from tron_audit_otel.siem_looks import Debt, Noted

STARTED = 1_790_000_000.0
URL = "http://collector:8888/metrics"
NS = 10**9


@dataclass
class World:
    """A Collector with one SIEM, looked at as time goes by."""

    path: Path
    now: float = STARTED
    started_at: float = STARTED
    instance: str = "0f8fad5b-d9cb-469f-a165-70867728950e"
    clock_back_s: float = 0

    @property
    def looks(self) -> Looks:
        return Looks(self.path)

    def collector(self, **of_siem: int) -> Collector:
        siem = Siem("splunk", "splunk_hec", 0, 0, 0, 0, 0, 1 << 30, 0)
        refused, archived, failed = (of_siem.pop(name, 0) for name in ("receiver_refused", "archived", "failed"))
        return Collector(
            url=URL,
            read_at=self.now - self.clock_back_s,
            uptime_s=self.now - self.started_at,
            instance=self.instance,
            accepted=archived,
            refused=refused,
            archived=archived,
            archive_failed=failed,
            siems=(replace(siem, **of_siem),),  # type: ignore[arg-type] # counters, all of them numbers
        )

    def note(self, at: float, **of_siem: int) -> Noted:
        self.now = STARTED + at
        return self.looks.note(self.collector(**of_siem))

    def look(self, at: float, **of_siem: int) -> Debt:
        noted = self.note(at, **of_siem)
        assert noted.trouble is None
        return noted.debts["splunk"]

    def restart(self, at: float) -> None:
        self.started_at = STARTED + at
        self.instance = str(uuid4())


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "state" / FILE)


def span(since: float, until: float) -> Span:
    return Span(int((STARTED + since) * NS), int((STARTED + until) * NS))


def at(debt: Debt) -> float:
    return debt.since - STARTED


def test_what_is_refused_before_the_first_look_is_owed_since_the_start(world: World) -> None:
    debt = world.look(100, refused=5)
    assert (debt.owed, at(debt), debt.clean) == (5, 0, False)


def test_what_is_refused_is_owed_since_the_last_look_that_saw_it_clean(world: World) -> None:
    world.look(100)
    world.look(200, waiting_bytes=9)
    world.look(300)
    world.look(400, waiting_bytes=9)  # what is refused later may wait since now
    debt = world.look(500, refused=5)
    assert (debt.owed, at(debt), debt.clean) == (5, 300, True)
    assert at(world.look(600, refused=5)) == 300


def test_a_queue_that_is_empty_before_its_last_records_are_counted_is_not_clean(world: World) -> None:
    world.look(100, taken=9, delivered=9)
    world.look(200, taken=20, delivered=9)
    debt = world.look(300, taken=20, delivered=9, refused=11)
    assert (debt.owed, at(debt)) == (11, 100)


def test_a_replay_of_the_span_mends_it_and_the_next_look_finds_it_clean(world: World) -> None:
    world.look(100)
    world.look(200, refused=5)
    assert world.looks.mended("splunk", span(100, 201), world.collector(refused=5)) == 5
    assert world.look(300, refused=5).owed == 0
    debt = world.look(400, refused=7)
    assert (debt.owed, at(debt)) == (2, 300)


def test_what_is_refused_while_a_replay_runs_stays_owed_since_the_same_look(world: World) -> None:
    world.look(100)
    world.look(200, refused=5)
    before = world.collector(refused=5)
    world.look(250, refused=8)  # somebody looks while it runs
    assert world.looks.mended("splunk", span(100, 201), before) == 5
    debt = world.look(300, refused=8)
    assert (debt.owed, at(debt)) == (3, 100)


@pytest.mark.parametrize(
    ("since", "until", "mends"),
    [(101, 201, 0), (100, 199, 0), (0, 1_000, 5), (100, 200, 5)],
    ids=["begins-too-late", "ends-too-early", "more-than-all", "just-all"],
)
def test_a_replay_of_less_mends_nothing(world: World, since: float, until: float, mends: int) -> None:
    world.look(100)
    world.look(200, refused=5)
    world.now += 50
    assert world.looks.mended("splunk", span(since, until), world.collector(refused=5)) == mends
    assert world.look(300, refused=5).owed == 5 - mends


def test_a_replay_up_to_the_look_does_not_mend_what_was_refused_between_that_and_its_begin(world: World) -> None:
    world.look(100)
    world.look(200, refused=5)
    world.now += 50
    assert world.looks.mended("splunk", span(100, 201), world.collector(refused=9)) == 5
    debt = world.look(300, refused=9)
    assert (debt.owed, at(debt)) == (4, 100)


def test_a_debt_outlives_the_collector(world: World) -> None:
    world.look(100)
    world.look(200, refused=5)
    world.restart(300)
    debt = world.look(310)
    assert (debt.owed, at(debt)) == (5, 100)
    world.restart(400)
    assert world.look(410, refused=2).owed == 7
    assert world.looks.mended("splunk", span(100, 411), world.collector(refused=2)) == 7
    assert world.look(500, refused=2).owed == 0


def test_a_debt_from_before_a_start_is_mended_by_a_replay_after_it(world: World) -> None:
    world.look(100)
    world.look(200, refused=5)
    world.restart(300)
    world.now = STARTED + 310
    assert world.looks.mended("splunk", span(100, 201), world.collector()) == 5
    assert world.look(320).owed == 0


def test_a_replay_of_what_was_refused_before_a_start_mends_nothing_refused_after_it(world: World) -> None:
    world.look(100)
    world.look(200, refused=5)
    world.restart(300)
    world.now = STARTED + 310
    assert world.looks.mended("splunk", span(100, 201), world.collector(refused=2)) == 5
    assert world.look(320, refused=2).owed == 2


def test_a_start_between_two_looks_is_said_once(world: World) -> None:
    noted = world.note(100)
    assert (noted.unseen_since, noted.is_first) == (None, True)
    world.restart(300)
    noted = world.note(310)
    assert (noted.unseen_since, noted.is_first) == (STARTED + 100, False)
    assert world.note(320).unseen_since is None


def test_a_start_is_found_although_the_instance_has_a_name_of_its_own(world: World) -> None:
    world.instance = "gateway-1"
    world.look(100, refused=5)
    world.started_at = STARTED + 150
    assert world.look(900, refused=6).owed == 11


def test_a_clock_that_jumps_ahead_is_no_start(world: World) -> None:
    world.look(100, refused=5)
    world.clock_back_s = -9_000
    assert world.look(200, refused=5).owed == 5


def test_a_clock_that_was_set_back_hides_nothing(world: World) -> None:
    world.clock_back_s = -9_000
    world.look(100)
    world.clock_back_s = 0
    debt = world.look(200, refused=5)
    assert (debt.owed, at(debt), debt.clean) == (5, 0, False)
    assert world.looks.mended("splunk", span(0, 201), world.collector(refused=5)) == 5


def test_two_looks_that_cross_are_no_start(world: World) -> None:
    world.look(100)
    world.look(200, refused=5)
    noted = world.note(199, refused=4)
    assert (noted.debts["splunk"].owed, noted.unseen_since) == (5, None)
    assert world.note(210, refused=5).unseen_since is None


def test_a_siem_that_is_new_or_comes_back_is_no_fault(world: World) -> None:
    world.look(100, refused=5)
    world.restart(200)
    world.now = STARTED + 210
    assert world.looks.note(replace(world.collector(), siems=())).debts == {}
    assert world.looks.mended("datadog", span(0, 300), world.collector()) == 0
    world.restart(300)
    assert world.look(310).owed == 5


def test_it_is_seen_that_nothing_is_delivered(world: World) -> None:
    world.look(100)
    assert world.look(90_000, waiting_bytes=9).still_s == 0  # it has only just come
    debt = world.look(90_070, waiting_bytes=9)
    assert (debt.still_s, debt.grew) == (70, False)
    debt = world.look(90_100, waiting_bytes=9, delivered=3)
    assert (debt.still_s, debt.grew) == (0, True)
    assert world.look(90_200, delivered=3).still_s == 0


def test_a_siem_that_is_down_stays_so_when_the_collector_starts_anew(world: World) -> None:
    world.look(100, waiting_bytes=9, delivered=3)
    world.restart(150)
    assert world.look(200, waiting_bytes=9).still_s == 100
    assert world.look(300, waiting_bytes=9, delivered=1).still_s == 0


def test_counters_that_grow_are_told_for_a_while(world: World) -> None:
    noted = world.note(100, receiver_refused=2, failed=1, turned_away=3)
    assert (noted.refused_lately, noted.archive_failed_lately) == (True, True)
    assert noted.debts["splunk"].turned_away_lately
    later = 100 + RECENT_SECONDS
    assert world.note(later - 1, receiver_refused=2, failed=1, turned_away=3).refused_lately
    noted = world.note(later, receiver_refused=2, failed=1, turned_away=3)
    assert (noted.refused_lately, noted.archive_failed_lately) == (False, False)
    assert not noted.debts["splunk"].turned_away_lately
    assert world.note(later + 9, receiver_refused=3).refused_lately


def test_it_is_known_how_many_records_came_since_it_was_clean(world: World) -> None:
    assert world.look(100, refused=1, archived=40).arrived == 40
    assert world.looks.mended("splunk", span(0, 101), world.collector(refused=1, archived=40)) == 1
    assert world.look(200, refused=1, archived=50).arrived == 0
    assert world.look(300, refused=3, archived=90).arrived == 40
    world.restart(400)
    assert world.look(500, archived=7).arrived == 47


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\x00", b"[]", b'{"collectors": 1}', b'{"collectors": {"%s": {}}}' % URL.encode(), b"[" * 99_999],
    ids=["empty", "binary", "a-list", "another-type", "no-fields", "too-deep"],
)
def test_a_file_that_is_damaged_costs_the_history_alone(world: World, content: bytes) -> None:
    world.look(100)
    world.path.write_bytes(content)
    noted = world.note(200, refused=5)
    assert noted.trouble == f"{world.path} was damaged, and is begun anew"
    debt = noted.debts["splunk"]
    assert (debt.owed, at(debt), debt.clean) == (5, 0, False)
    assert world.note(300, refused=5).trouble is None


def test_a_number_that_no_counter_has_is_damage(world: World) -> None:
    world.look(100)
    content = json.loads(world.path.read_text())
    content["collectors"][URL]["siems"]["splunk"]["mended"] = -9
    world.path.write_text(json.dumps(content))
    assert world.note(200).trouble is not None


def test_a_file_that_cannot_be_written_costs_the_history_alone(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file where the directory should be")
    world = World(tmp_path / "state" / FILE)
    for _ in range(2):
        noted = world.note(100, refused=5)
        assert noted.trouble is not None
        assert str(world.path) in noted.trouble
        assert noted.debts["splunk"].owed == 5
    assert world.looks.mended("splunk", span(0, 200), world.collector(refused=5)) == 5


def test_a_file_that_cannot_be_replaced_keeps_what_was_known(world: World) -> None:
    world.look(100)
    (world.path.parent / f"{FILE}.new").mkdir()
    noted = world.note(200, refused=5)
    assert noted.trouble == f"{world.path} cannot be kept: Is a directory"
    debt = noted.debts["splunk"]
    assert (debt.owed, at(debt), debt.clean) == (5, 100, True)


def test_a_link_in_its_place_is_not_followed(world: World, tmp_path: Path) -> None:
    (tmp_path / "other").write_text("{}")
    world.path.parent.mkdir()
    world.path.symlink_to(tmp_path / "other")
    assert world.note(100).trouble is not None
    assert (tmp_path / "other").read_text() == "{}"


def test_the_file_is_for_its_owner_alone(world: World) -> None:
    before = os.umask(0)
    try:
        world.look(100)
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (world.path, world.path.parent)]
    assert modes == [0o600, 0o700]


def test_looks_at_once_lose_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(siem_looks, "LOCK_SECONDS_MAX", 60)  # whoever holds it may be stalled
    world.look(100)

    def look(number: int) -> None:
        for each in range(20):
            collector = replace(world.collector(), url=f"http://{number}", read_at=world.now + each)
            assert world.looks.note(collector).trouble is None

    threads = [threading.Thread(target=look, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(json.loads(world.path.read_text())["collectors"]) == {URL, *(f"http://{each}" for each in range(4))}


def test_the_file_does_not_grow_for_ever(world: World) -> None:
    for number in range(COLLECTORS_MAX + 3):
        collector = replace(world.collector(), url=f"http://{number}", read_at=STARTED + number)
        world.looks.note(collector)
    kept = json.loads(world.path.read_text())["collectors"]
    assert set(kept) == {f"http://{number}" for number in range(3, COLLECTORS_MAX + 3)}


@pytest.mark.parametrize("name", ["since", "refused_at", "stuck_since"])
@pytest.mark.parametrize("time", [1e308, -1.0, 4e12])
def test_a_time_that_cannot_be_is_damage(world: World, name: str, time: float) -> None:
    world.look(100)
    content = json.loads(world.path.read_text())
    content["collectors"][URL]["siems"]["splunk"][name] = time
    world.path.write_text(json.dumps(content))
    assert "was damaged" in str(world.note(200).trouble)


def test_nobody_can_have_mended_more_than_was_refused(world: World) -> None:
    world.look(100, refused=5)
    content = json.loads(world.path.read_text())
    content["collectors"][URL]["siems"]["splunk"]["mended"] = 7
    world.path.write_text(json.dumps(content))
    assert world.look(200, refused=6).owed == 0
    world.restart(300)
    assert world.look(400, refused=2).owed == 2


def test_when_it_was_last_looked_at(world: World) -> None:
    assert world.looks.seen_at(URL) is None
    assert not world.path.parent.exists(), "to ask leaves a trace"
    world.look(100)
    assert world.looks.seen_at(URL) == STARTED + 100
    assert world.looks.seen_at("http://another") is None
    world.path.write_text("{")
    assert world.looks.seen_at(URL) is None


class TestWhatTheCollectorMayHaveLost:
    """Killed while it starts, or on a full disk, it loses what waits, and counts nothing."""

    def test_what_waited_before_a_start_is_in_doubt_since_the_look_that_saw_all_well(self, world: World) -> None:
        world.look(100)
        assert world.look(200, waiting_bytes=5_000).doubt is None
        world.restart(300)
        assert world.look(310, waiting_bytes=4_000).doubt == STARTED + 100
        assert world.look(400).doubt == STARTED + 100, "an empty queue tells nothing of what was lost"

    def test_nothing_is_in_doubt_where_nothing_waited(self, world: World) -> None:
        world.look(100)
        world.restart(300)
        assert world.look(310).doubt is None

    def test_a_second_start_keeps_the_older_doubt(self, world: World) -> None:
        world.look(100)
        world.look(200, waiting_bytes=5_000)
        world.restart(300)
        world.look(310)
        world.look(320, waiting_bytes=5_000)
        world.restart(400)
        assert world.look(410).doubt == STARTED + 100

    @pytest.mark.parametrize(("since", "until", "left"), [(100, 310, False), (101, 310, True), (100, 299, True)])
    def test_a_replay_settles_it_if_it_covers_all_until_the_start(
        self, world: World, since: float, until: float, *, left: bool
    ) -> None:
        world.look(100)
        world.look(200, waiting_bytes=5_000)
        world.restart(300)
        world.look(310)
        world.looks.mended("splunk", span(since, until), world.collector())
        assert (world.look(320).doubt is not None) is left

    def test_what_nobody_can_account_for_is_told_until_it_is_settled_and_once_more_when_it_grows(
        self, world: World
    ) -> None:
        world.look(100, taken=50, delivered=50)
        lost = {"taken": 90, "delivered": 60, "refused": 0}
        assert world.look(200, **lost).unaccounted == 30
        assert world.look(210, **lost, waiting_bytes=7).unaccounted == 0, "it may wait"
        world.now = STARTED + 220
        world.looks.mended("splunk", span(100, 220), world.collector(**lost))
        assert world.look(230, **lost).unaccounted == 0
        assert world.look(240, **lost).since == STARTED + 240, "it counts as clean again"
        assert world.look(250, taken=95, delivered=60).unaccounted == 5
        world.restart(300)
        assert world.look(310, taken=3, delivered=1).unaccounted == 2

    def test_a_file_of_an_earlier_version_is_read(self, world: World) -> None:
        world.look(100, refused=3)
        content = json.loads(world.path.read_text())
        for siem in content["collectors"][URL]["siems"].values():
            for name in ("waited", "doubt", "settled"):
                del siem[name]
        world.path.write_text(json.dumps(content))
        assert world.look(200, refused=3).owed == 3
