"""The Collector in trouble, with a dead SIEM behind it: killed, its queue full, its disk full."""

from __future__ import annotations

import contextlib
import random
import resource
import signal
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import pytest

from collector import servers
from tests.integration.gateway import HASTE
from tests.integration.load import some
from tests.integration.matrix import (
    FAULTS,
    MIB,
    Scene,
    Sender,
    Siem,
    SmallDisk,
    archived,
    reconcile,
    staged,
    within,
)
from tests.integration.test_full_disk import namespace_refused

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DEAD = "datadog"
SECONDS_MAX = 60


@dataclass(frozen=True)
class Size:
    records: int
    rate: int
    kills: int


KILLS = [
    pytest.param("refuses connections", Size(750, 500, 1), id="short"),
    *(
        pytest.param(fault, Size(7_500, 500, 5), id=f"long, {fault}", marks=pytest.mark.soak)
        for fault in ("refuses connections", "503", "accepts and hangs")
    ),
]
TIMEOUT = {"timeout": "3s"}
"""So long may the Collector wait for a SIEM that hangs before it stops."""
# Written anew by the drain of a MiB already, so that a kill may meet that as well.
COMPACTED = {
    "compaction": {"rebound_needed_threshold_mib": 1, "rebound_trigger_threshold_mib": 1, "check_interval": "500ms"}
}


def check_everything_is_everywhere(scene: Scene, sender: Sender) -> None:
    """Every record is acknowledged, in the archive, and at every SIEM once by id."""
    assert sender.acknowledged == sender.ids
    for siem in scene.siems.values():
        assert within(SECONDS_MAX, lambda: sender.ids <= siem.arrived().keys()), (  # noqa: B023 - at once
            f"{siem.name} lacks {some(sender.ids - siem.arrived().keys())}"
        )
        assert set(siem.stored(sender.run)) == sender.ids, siem.name
    assert set(archived(scene.gateway.data, sender.run)) == sender.ids


@pytest.mark.parametrize(("fault", "size"), KILLS)
@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGKILL])
def test_a_collector_that_is_killed_while_a_siem_is_dead(
    otelcol: Path, tmp_path: Path, fault: str, sig: signal.Signals, size: Size
) -> None:
    seed = time.time_ns()
    chance = random.Random(seed)  # noqa: S311 - no secret; a failure names the seed
    with staged(otelcol, tmp_path, exporter={**HASTE, **TIMEOUT}, storage=COMPACTED) as scene:
        FAULTS[fault](scene.siems[DEAD].proxy)
        server = scene.gateway.server
        stops = []
        with Sender(scene.gateway.url, size.records, size.rate) as sender:
            for moment in sorted(chance.sample(range(size.records // 5, size.records * 4 // 5), size.kills)):
                sender.wait_for(moment)
                time.sleep(chance.uniform(0, 0.1))
                began = time.monotonic()
                server.stop(sig)
                stops.append(time.monotonic() - began)
                server.start()
        assert sender.statuses[0], "no kill was noticed"
        scene.siems[DEAD].proxy.mend()
        check_everything_is_everywhere(scene, sender)
        again = {siem.name: len(siem.stored(sender.run)) - len(sender.ids) for siem in scene.siems.values()}
    print(f"{sig.name}, {fault}, seed {seed}: stopped within {max(stops):.1f} s; duplicates {again}")  # noqa: T201


def test_a_collector_that_is_killed_while_its_queue_drains(otelcol: Path, tmp_path: Path) -> None:
    # The file of the queue is written anew as it empties: a kill may meet that.
    with staged(otelcol, tmp_path, exporter=HASTE, storage=COMPACTED) as scene:
        dead = scene.siems[DEAD]
        dead.proxy.refuse()
        [file] = (scene.gateway.data / "queue" / DEAD).iterdir()
        with Sender(scene.gateway.url, 3_000, 2_000) as sender:
            sender.wait_for(2_500)
            grown = file.stat().st_size
            dead.proxy.mend()
            assert within(SECONDS_MAX, lambda: len(dead.arrived()) > 500)
            scene.gateway.server.kill()
            scene.gateway.server.start()
        check_everything_is_everywhere(scene, sender)
        assert within(SECONDS_MAX, lambda: file.stat().st_size < grown / 2), (
            f"the queue is empty, and its file as large as before: {file.stat().st_size} bytes, {grown} before"
        )


def test_a_queue_that_is_full_stops_the_senders_and_loses_nothing(otelcol: Path, tmp_path: Path) -> None:
    # Of half a MiB, where operators have 20 GiB.
    settings = {"AUDIT_COLLECTOR_QUEUE_BYTES": str(MIB // 2)}
    with staged(otelcol, tmp_path, exporter=HASTE, settings=settings) as scene:
        scene.siems[DEAD].proxy.refuse()
        with Sender(scene.gateway.url, 1_000, 500) as sender:
            assert within(SECONDS_MAX, lambda: sender.statuses[503] > 5), "the queue was never full"
            taken = set(sender.acknowledged)
            assert scene.queue(DEAD) <= MIB / 2
            assert scene.metric("otelcol_exporter_enqueue_failed_log_records", DEAD) > 0
            for other in scene.others(DEAD):
                assert within(SECONDS_MAX, lambda: taken < other.arrived().keys()), other.name  # noqa: B023 - at once
                # They have what the sender was refused as well, and get it again with each of its attempts.
                refused = other.arrived().keys() - sender.acknowledged
                assert refused, f"{other.name} has nothing but what was acknowledged"
            assert sender.running
            scene.siems[DEAD].proxy.mend()
        check_everything_is_everywhere(scene, sender)
        rows = {siem.name: siem.stored(sender.run) for siem in scene.siems.values()}
        archive = archived(scene.gateway.data, sender.run)
    assert set(sender.statuses) == {200, 503}, sender.statuses
    for other in scene.others(DEAD):
        assert len(rows[other.name]) > len(sender.ids), f"{other.name} has no record twice"
    assert len(archive) > len(set(archive)) == len(sender.ids)


class Limit:
    """No file of the Collector's may grow past two MiB: the kernel's own refusal, and only its number is another's."""

    def __init__(self, queue: Path) -> None:
        self._file = queue.parents[2] / "limit"
        self._file.write_text(str(2 * MIB // 1024))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def program(self, binary: Path, file: Path) -> Path:
        """Writes a program that runs the binary under the limit of that moment."""
        # The soft limit alone, in KiB; bash, since not every sh has them.
        file.write_text(f'#!/bin/bash\nulimit -S -f "$(<{self._file})"\nexec {binary} "$@"\n')
        file.chmod(0o755)
        return file

    def make_room(self, scene: Scene | None = None) -> None:
        """For the Collector that runs, if one does, and for every later one."""
        self._file.write_text("unlimited")
        if scene is not None:
            pid = scene.gateway.server.pid
            _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))


class Small(SmallDisk):
    """A disk of two MiB for the queue alone: a real ENOSPC."""

    def __init__(self, queue: Path) -> None:
        if refused := namespace_refused():
            pytest.skip(f"this system allows no mount namespace: {refused}")
        super().__init__(queue, 2 * MIB)

    def make_room(self, _: Scene | None = None) -> None:
        self.grow(64 * MIB)


DISKS = [pytest.param(Limit, id="limit"), pytest.param(Small, id="small disk", marks=pytest.mark.soak)]
RECORDS = 2_000
"""Their requests take more than two MiB of a queue's file."""


@dataclass
class Full:
    """The queue of a dead SIEM has filled its disk, and the sender is refused."""

    scene: Scene
    disk: Limit | Small
    sender: Sender

    @property
    def dead(self) -> Siem:
        return self.scene.siems[DEAD]


@pytest.fixture
def full(otelcol: Path, tmp_path: Path, kind: type[Limit | Small]) -> Iterator[Full]:
    with kind(tmp_path / "data" / "queue" / DEAD) as disk:
        program = disk.program(otelcol, tmp_path / "otelcol")
        # The archive's files stay below the limit.
        settings = {"AUDIT_COLLECTOR_ARCHIVE_FILE_MB": "1"}
        with staged(otelcol, tmp_path, exporter=HASTE, settings=settings, command=program) as scene:
            scene.siems[DEAD].proxy.refuse()
            # Four requests a second, as a shipper makes them that has a backlog.
            with Sender(scene.gateway.url, RECORDS, 1_000, requests_per_second=4) as sender:
                assert within(SECONDS_MAX, lambda: sender.statuses[503] > 5), "the disk was never full"
                assert scene.metric("otelcol_exporter_enqueue_failed_log_records", DEAD) > 0
                taken = set(sender.acknowledged)
                for other in scene.others(DEAD):
                    assert within(SECONDS_MAX, lambda: taken <= other.arrived().keys()), other.name  # noqa: B023 - at once
                yield Full(scene, disk, sender)
            assert set(sender.statuses) <= {0, 200, 503}, sender.statuses
            check_everything_is_everywhere(scene, sender)
            assert within(SECONDS_MAX, lambda: not scene.queue(DEAD)), f"{scene.queue(DEAD)} bytes wait, it says"


@pytest.mark.parametrize("kind", DISKS)
def test_a_full_disk_loses_nothing_when_room_is_made_before_its_siem_is_back(full: Full) -> None:
    full.disk.make_room(full.scene)
    full.sender.wait_for(RECORDS)
    full.dead.proxy.mend()


# What follows may cost the dead SIEM records, and no counter of the Collector's names them: its queue deletes what it
# cannot note as given out, and at a start takes out what was under way before it puts that back. The archive has all.


def mended_from_the_archive(scene: Scene, sender: Sender, about: str) -> int:
    """Waits until nothing waits; then has sent from the archive what the Collector lost. Tells how much that was."""
    assert within(SECONDS_MAX, lambda: not sender.running)
    assert within(SECONDS_MAX, lambda: not scene.queue(DEAD)), f"{scene.queue(DEAD)} bytes wait, it says"
    lost = len(sender.ids - scene.siems[DEAD].arrived().keys())
    assert scene.dropped(DEAD) == 0
    assert reconcile(scene, DEAD) == lost
    print(f"{about}: the Collector lost {lost} of {len(sender.ids)} acknowledged records")  # noqa: T201
    return lost


@pytest.mark.parametrize("kind", DISKS)
def test_a_siem_that_is_back_while_the_disk_is_full_gets_everything_by_reconcile(full: Full) -> None:
    full.dead.proxy.mend()
    time.sleep(2)  # It gives out what waits, and deletes what it cannot note on the disk as given out.
    full.disk.make_room(full.scene)
    assert within(SECONDS_MAX, lambda: not full.sender.running)
    assert within(SECONDS_MAX, lambda: not full.scene.queue(DEAD))
    unaccounted = full.scene.unaccounted(DEAD)
    # No counter names them, yet the counters do not add up without them.
    assert mended_from_the_archive(full.scene, full.sender, "SIEM back, disk full") == unaccounted


@pytest.mark.parametrize("kind", DISKS)
@pytest.mark.parametrize("sig", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.soak)])
def test_a_collector_that_stops_on_a_full_disk_gives_everything_by_reconcile(full: Full, sig: signal.Signals) -> None:
    full.scene.gateway.server.stop(sig)
    full.disk.make_room()
    full.scene.gateway.server.start()
    full.dead.proxy.mend()
    mended_from_the_archive(full.scene, full.sender, f"{sig.name}, stopped on a full disk")


@pytest.mark.parametrize("kind", DISKS)
@pytest.mark.parametrize("sig", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.soak)])
def test_a_collector_that_starts_on_a_full_disk_gives_everything_by_reconcile(full: Full, sig: signal.Signals) -> None:
    full.scene.gateway.server.restart(sig)
    full.disk.make_room(full.scene)
    full.dead.proxy.mend()
    mended_from_the_archive(full.scene, full.sender, f"{sig.name}, started on a full disk")


@pytest.mark.parametrize("kills", [pytest.param(1, id="short"), pytest.param(5, id="long", marks=pytest.mark.soak)])
def test_a_collector_that_is_killed_while_it_starts_gives_everything_by_reconcile(
    otelcol: Path, tmp_path: Path, kills: int
) -> None:
    with staged(otelcol, tmp_path, exporter=HASTE) as scene:
        scene.siems[DEAD].proxy.refuse()
        with Sender(scene.gateway.url, RECORDS, 2_000, requests_per_second=100) as sender:
            pass
        # What is under way to a healthy SIEM would be lost likewise.
        for other in scene.others(DEAD):
            assert within(SECONDS_MAX, lambda: not scene.queue(other.name))  # noqa: B023 - at once
        for _ in range(kills):
            scene.gateway.server.kill()
            kill_while_it_starts(scene.gateway.server)
            scene.gateway.server.start()
        scene.siems[DEAD].proxy.mend()
        # A queue that has lost all says that bytes wait, until the next record has passed through it.
        with Sender(scene.gateway.url, 20, 200):
            pass
        mended_from_the_archive(scene, sender, f"{kills} kills at the start")
        check_everything_is_everywhere(scene, sender)


def kill_while_it_starts(server: servers.Server) -> None:
    """Kills it when it has begun to put back what was under way at its end."""
    begun = "Fetching items left for dispatch"
    before, dead = server.log().count(begun), server.pid

    def kill() -> None:
        while server.log().count(begun) == before or server.pid == dead:
            time.sleep(0.001)
        time.sleep(random.uniform(0, 0.03))  # noqa: S311 - each request that is put back takes a sync of the disk
        server.kill()

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    with contextlib.suppress(servers.ServerError):  # it ended while starting; or just after, where the disk is fast
        server.start()
    killer.join(SECONDS_MAX)
    assert not killer.is_alive(), "nothing was under way when it was killed"
