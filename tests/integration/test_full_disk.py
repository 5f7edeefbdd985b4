"""A disk that is full in the middle of a run, then free again: answers never fail or never lie, and the sums agree."""

from __future__ import annotations

import resource
import subprocess
import threading
import time
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

import pytest

from tests.integration.gateway import Gateway
from tests.integration.load import Archive, Load, audited, pending, ran, some, stats, until, waiting
from tests.integration.test_processes import UVICORN, Api
from tron_audit_otel.journal_dir import inspect

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 2**20
DISK_BYTES = 4 * MIB


class Disk(Protocol):
    """A disk of the API's that can be filled."""

    def __init__(self, directory: Path) -> None: ...

    command: list[str | Path]

    def journal(self, api: Api) -> Path:
        """The journal, as we see it."""

    def full(self, api: Api) -> None: ...

    def free(self, api: Api) -> None: ...


@dataclass
class Limited:
    """No file of the process may grow past a size: a write is cut short there, and the next one fails (EFBIG).

    Needs no root, and is the kernel's own refusal; that it is no full disk shows in the error number only.
    """

    directory: Path
    command = UVICORN

    def journal(self, api: Api) -> Path:  # noqa: ARG002 - the interface's
        return self.directory / "journal"

    def full(self, api: Api) -> None:
        """A little above what the largest segment has by now: the next batch is torn."""
        sizes = [size for state in inspect(self.journal(api)) for _, size, _ in state.segments]
        self._limit(api, max(sizes, default=0) + 100)
        time.sleep(0.2)
        self._limit(api, 0)  # and now no file takes anything, a new one neither

    def free(self, api: Api) -> None:
        self._limit(api, resource.RLIM_INFINITY)

    def _limit(self, api: Api, size: int) -> None:
        _, hard = resource.prlimit(api.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(api.pid, resource.RLIMIT_FSIZE, (size, hard))


@dataclass
class Small:
    """A file system of a few MiB in memory, in a mount namespace of the API's own: a real ENOSPC."""

    directory: Path

    def __post_init__(self) -> None:
        mount = f"mount -t tmpfs -o size={DISK_BYTES} tmpfs '{self.directory / 'journal'}' && exec \"$@\""
        self.command = ["/usr/bin/unshare", "-Urm", "/bin/sh", "-c", mount, "sh", *UVICORN]
        (self.directory / "journal").mkdir()

    def journal(self, api: Api) -> Path:
        # The mount can be seen through the process alone.
        return Path(f"/proc/{api.pid}/root{self.directory / 'journal'}")

    def full(self, api: Api) -> None:
        """Takes what room there is, and what the journal gives back of its own: others fill a disk as well."""
        self.freed = threading.Event()
        self.filling = threading.Thread(target=self._fill, args=(self.journal(api) / "filler",), daemon=True)
        self.filling.start()

    def _fill(self, file: Path) -> None:
        with file.open("wb", buffering=0) as filler:
            while not self.freed.is_set():
                try:
                    filler.write(bytes(4096))
                except OSError:
                    self.freed.wait(0.002)
        file.unlink()

    def free(self, api: Api) -> None:  # noqa: ARG002 - the interface's
        self.freed.set()
        self.filling.join()


KINDS = [pytest.param(Limited, id="limit"), pytest.param(Small, id="small disk", marks=pytest.mark.soak)]
REQUESTS = 650
"""At least, each time: before the disk is full, while it is, and after that."""
RATE = 1_000


class Traffic:
    """Requests at a rate, until it is told that they are enough."""

    def __init__(self, api: Api) -> None:
        self._over = False
        self.load = Load(api.url, self._numbers(), rate=RATE)

    def __enter__(self) -> Self:
        self.load.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._over = True
        self.load.__exit__(*error)

    def go_on(self) -> None:
        """Waits until so many more have ended."""
        assert self.load.wait_for(len(self.load.answers) + len(self.load.broken) + REQUESTS), "the load has ended"

    def _numbers(self) -> Iterator[int]:
        yield from takewhile(lambda _: not self._over, count())


def wait_until_blocked(api: Api) -> None:
    until(lambda: stats(api.url)["blocked"], lambda: f"the disk is not full: {stats(api.url)}")


def wait_until_free(api: Api) -> None:
    until(lambda: not stats(api.url)["blocked"], lambda: f"the disk is full still: {stats(api.url)}")


@contextmanager
def run(otelcol: Path, directory: Path, kind: type[Disk], **settings: str) -> Iterator[Run]:
    """Requests all the while, the disk is full for some of them; everything that waited has been sent."""
    if kind is Small and (refused := namespace_refused()):
        pytest.skip(f"this system allows no mount namespace: {refused}")
    disk = kind(directory)
    with Gateway(otelcol, directory, {}) as gateway:
        environ = audited(gateway.url, directory, AUDIT_LOG_COMMIT_SECONDS_MAX="1", **settings)
        with Api(disk.command, environ) as api:
            with Traffic(api) as traffic:
                traffic.go_on()
                disk.full(api)
                wait_until_blocked(api)
                traffic.go_on()
                disk.free(api)
                wait_until_free(api)
                traffic.go_on()
            made = Run(traffic.load, Archive(gateway.data), api)
            until(made.is_settled, lambda: f"records wait: {stats(api.url)}; {waiting(disk.journal(api))} on disk")
            yield made


@dataclass
class Run:
    load: Load
    archive: Archive
    api: Api

    def is_settled(self) -> bool:
        """Nothing waits, and every loss was announced."""
        own = stats(self.api.url)
        announced = self.announced()
        return not (
            own["pending"]
            or own["blocked"]
            or any(announced.get(reason, 0) != records for reason, records in own["dropped"].items())
            or announced.get("request_refused", 0) != own["rejected"]
        )

    def announced(self) -> dict[str, int]:
        """What the system records say was lost or refused, by reason."""
        sums: dict[str, int] = defaultdict(int)
        for record in self.archive.system():
            if record.attributes["audit.action"] == "LOSS":
                sums[record.attributes["audit.system.reason"]] += record.attributes["audit.system.records"]
        return dict(sums)

    def check_sums(self) -> None:
        """The ledger is what the archive and the clients say."""
        own = stats(self.api.url)
        there = len(self.archive.ids())
        assert own["delivered"] == there, f"{there} records are in the archive; {own}"
        of_requests = own["emitted"] - len(self.archive.system())
        assert of_requests == len(ran(self.api.url)), f"{len(ran(self.api.url))} handlers ran; {own}"
        assert self.archive.problems() == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("commit", ["batch", pytest.param("response", marks=pytest.mark.soak)])
def test_with_drop_no_answer_fails_and_each_loss_is_counted(
    otelcol: Path, tmp_path: Path, kind: type[Disk], commit: str
) -> None:
    # A short queue, that it overflows while the disk is full.
    settings = {"AUDIT_LOG_COMMIT": commit, "AUDIT_LOG_ON_FULL": "drop", "AUDIT_LOG_QUEUE_RECORDS_MAX": "200"}
    with run(otelcol, tmp_path, kind, **settings) as made:
        assert set(made.load.statuses()) == {200}
        assert not made.load.broken
        lost = made.load.answered() - made.archive.items()
        assert lost, "the disk was never full"
        dropped = stats(made.api.url)["dropped"]
        assert sum(dropped.values()) == len(lost), f"lost: {some(lost)}; counted: {dropped}"
        made.check_sums()


@pytest.mark.parametrize("kind", KINDS)
def test_with_reject_and_response_no_answer_lies(otelcol: Path, tmp_path: Path, kind: type[Disk]) -> None:
    with run(otelcol, tmp_path, kind, AUDIT_LOG_COMMIT="response", AUDIT_LOG_ON_FULL="reject") as made:
        check_refusals(made)
        lies = made.load.answered() - made.archive.items()
        assert not lies, f"answered with 200, and not on record: {some(lies)}"
        made.check_sums()


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
def test_with_reject_and_batch_the_ledger_names_what_was_answered_before_the_disk_was_known_to_be_full(
    otelcol: Path, tmp_path: Path, kind: type[Disk]
) -> None:
    with run(otelcol, tmp_path, kind, AUDIT_LOG_ON_FULL="reject") as made:
        check_refusals(made)
        lost = made.load.answered() - made.archive.items()
        dropped = stats(made.api.url)["dropped"]
        assert sum(dropped.values()) == len(lost), f"lost: {some(lost)}; counted: {dropped}"
        made.check_sums()


def test_killed_while_the_disk_is_full_no_answer_has_lied(otelcol: Path, tmp_path: Path) -> None:
    disk = Limited(tmp_path)
    settings = {"AUDIT_LOG_COMMIT": "response", "AUDIT_LOG_COMMIT_SECONDS_MAX": "1"}
    with Gateway(otelcol, tmp_path, {}) as gateway:
        archive = Archive(gateway.data)
        with Api(disk.command, audited(gateway.url, tmp_path, **settings)) as api:
            with Traffic(api) as traffic:
                traffic.go_on()
                disk.full(api)
                wait_until_blocked(api)
                traffic.go_on()
                api.kill()  # what was in memory is gone
                api.start()  # and the limit with the process
                traffic.go_on()
            load = traffic.load
            until(lambda: not pending(api.url, tmp_path / "journal"), lambda: f"records wait: {stats(api.url)}")
        assert load.answered(503), "nothing was refused"
        lies = load.answered() - archive.items()
        assert not lies, f"answered with 200, and not on record: {some(lies)}"
        assert archive.problems() == []


def check_refusals(made: Run) -> None:
    """Requests were refused, their handlers did not run, the ledger has their number, and later ones were served."""
    assert set(made.load.statuses()) == {200, 503}
    assert not made.load.broken
    refused = made.load.answered(503) - ran(made.api.url)
    assert refused, "the disk was never full"
    assert not refused & made.archive.items(), f"refused, and on record: {some(refused & made.archive.items())}"
    assert stats(made.api.url)["rejected"] == len(refused)
    assert max(made.load.answers) in made.load.answered(), "the disk is free again, and requests are refused"


def namespace_refused() -> str:
    """Why this system lets nobody mount in a namespace of his own; empty where it does."""
    try:
        tried = subprocess.run(["/usr/bin/unshare", "-Urm", "true"], capture_output=True, text=True, check=False)
    except FileNotFoundError as missing:
        return str(missing)
    return tried.stderr.strip()
