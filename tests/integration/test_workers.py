"""Four worker processes under load, two of them killed: each has a stream of its own, and the counts are exact."""

from __future__ import annotations

import os
import signal
import time
from collections import defaultdict
from typing import TYPE_CHECKING

import pytest

from tests.integration.gateway import Gateway
from tests.integration.load import Archive, Load, audited, some, until, waiting
from tests.integration.test_kills import BATCH_SECONDS, NOISE_SECONDS, seconds_before
from tests.integration.test_processes import UVICORN, Api, processes

if TYPE_CHECKING:
    from pathlib import Path

WORKERS = 4
KILLS = 2


def kill_workers(load: Load, requests: int) -> dict[int, float]:
    """Kills some of the workers that answer, one after the other; gives the times of the kills."""
    killed: dict[int, float] = {}
    for kill in range(KILLS):
        load.wait_for((kill + 1) * requests // (KILLS + 2))
        latest = list(load.answers.values())[-100:]
        victim = next(pid for answer in latest if (pid := int(answer.body)) not in killed)
        killed[victim] = time.monotonic()
        os.kill(victim, signal.SIGKILL)
    return killed


@pytest.mark.parametrize(
    "requests", [pytest.param(4_000, id="short"), pytest.param(40_000, id="long", marks=pytest.mark.soak)]
)
@pytest.mark.parametrize("commit", ["response", pytest.param("batch", marks=pytest.mark.soak)])
def test_killed_workers_leave_exact_counts(otelcol: Path, tmp_path: Path, commit: str, requests: int) -> None:
    journal = tmp_path / "journal"
    with Gateway(otelcol, tmp_path, {}) as gateway:
        archive = Archive(gateway.data)
        environ = audited(gateway.url, tmp_path, AUDIT_LOG_COMMIT=commit)
        with Api([*UVICORN, "--workers", str(WORKERS)], environ) as api:
            until(lambda: len(processes(journal)) == WORKERS, lambda: f"only {processes(journal)} have begun")
            with Load(api.url, range(requests), connections=64) as load:
                killed = kill_workers(load, requests)
            time.sleep(BATCH_SECONDS + NOISE_SECONDS)  # what the workers have in memory cannot be asked for
            until(lambda: not waiting(journal), lambda: f"{waiting(journal)} records wait")
    assert load.statuses() == {200: requests - len(load.broken)}
    assert len(load.broken) <= KILLS * 64, f"answers of workers that live are broken: {some(load.broken)}"
    lost = load.answered() - archive.items()
    excused = {number for number in lost if commit == "batch" and just_before(load, number, killed)}
    assert not lost - excused, f"lost: {some(lost - excused)} of {len(load.answered())}"
    spurious = archive.items() - load.answered() - load.broken
    assert not spurious, f"never asked for, and on record: {some(spurious)}"
    assert archive.problems() == []
    check_streams(load, archive)


def just_before(load: Load, number: int, killed: dict[int, float]) -> bool:
    """Whether a worker answered it that was killed right then."""
    answer = load.answers[number]
    kill = killed.get(int(answer.body))
    return kill is not None and seconds_before([kill], answer.read_s) < BATCH_SECONDS + NOISE_SECONDS


def check_streams(load: Load, archive: Archive) -> None:
    """The records of what one process answered are in one stream, and in no other's."""
    streams_of: dict[int, set[str]] = defaultdict(set)
    pids_of: dict[str, set[int]] = defaultdict(set)
    for stream, records in archive.streams().items():
        for record in records:
            if record.item is not None and (answer := load.answers.get(record.item)):
                streams_of[int(answer.body)].add(stream)
                pids_of[stream].add(int(answer.body))
    assert all(len(streams) == 1 for streams in streams_of.values()), f"several streams a process: {dict(streams_of)}"
    assert all(len(pids) == 1 for pids in pids_of.values()), f"several processes a stream: {dict(pids_of)}"
    # The killed ones, and whoever came after them: how the others share the load is the system's affair.
    assert len(streams_of) > KILLS, f"only {len(streams_of)} workers answered"
