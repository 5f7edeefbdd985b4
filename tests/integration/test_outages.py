"""A Collector that is dead, dies, hangs, is slow or refuses: nothing is lost, and what it never takes is set aside."""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from tests.integration import faulty
from tests.integration.faulty import Faulty
from tests.integration.gateway import Gateway
from tests.integration.load import Archive, Load, audited, letters, pending, some, stats, until, waiting
from tests.integration.test_processes import UVICORN, Api

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

RATE = 1_000
USUAL_SECONDS_MAX = 0.5
"""Of an answer; one that waits for the Collector takes its time-out, which is a second here."""
STOP_SECONDS_MAX = 20
"""The end's own bound is two seconds and one time-out of the Collector; without it the end would never come."""


@dataclass
class Scene:
    """The API, the real Collector, and between them the proxy. The Collector does not run yet."""

    gateway: Gateway
    proxy: Faulty
    api: Api
    journal: Path
    archive: Archive = field(init=False)
    requests: int = 0

    def __post_init__(self) -> None:
        self.archive = Archive(self.gateway.data)

    def load(self, requests: int, during: Callable[[Load], None] = lambda _: None) -> None:
        """Lets clients make requests, and something happen meanwhile. Every one of them is answered as ever."""
        with Load(self.api.url, range(self.requests, self.requests + requests), rate=RATE) as load:
            during(load)
        assert load.statuses() == {200: requests}
        assert load.usual_seconds() < USUAL_SECONDS_MAX, f"half of the answers took {load.usual_seconds():.1f} s"
        self.requests += requests

    def settle(self) -> None:
        """Waits until the Collector has what waited."""
        until(lambda: not pending(self.api.url, self.journal), lambda: f"records wait: {stats(self.api.url)}")

    def check(self, poison: AbstractSet[int] = frozenset()) -> None:
        """Everything is in the archive or, what is poison, among the dead letters, and the ledger says so."""
        aside = letters(self.journal)
        refused = {int(faulty.attribute(record, "audit.target.id")) for record in aside}
        assert refused == poison, f"dead letters, too many: {some(refused - poison)}, lost: {some(poison - refused)}"
        expected = set(range(self.requests)) - poison
        there = self.archive.items()
        assert there == expected, f"lost: {some(expected - there)}, too many: {some(there - expected)}"
        assert self.archive.problems({faulty.number(record, "audit.sequence.number") for record in aside}) == []
        until(lambda: self._delivered() == len(self.archive.ids()), self._disagreement)
        found = stats(self.api.url)
        assert found["dead_lettered"] + found["adopted"]["dead_lettered"] == len(poison), found
        assert not any({**found["dropped"], **found["adopted"]["dropped"]}.values()), found

    def _delivered(self) -> int:
        found = stats(self.api.url)
        return int(found["delivered"] + found["adopted"]["delivered"])

    def _disagreement(self) -> str:
        return f"the ledger is {stats(self.api.url)}, and {len(self.archive.ids())} records are in the archive"


@contextmanager
def staged(otelcol: Path, directory: Path) -> Iterator[Scene]:
    gateway = Gateway(otelcol, directory, {})
    with ExitStack() as stack:
        stack.callback(gateway.__exit__)
        proxy = stack.enter_context(Faulty(gateway.url))
        api = stack.enter_context(Api(UVICORN, audited(proxy.url, directory, OTEL_EXPORTER_OTLP_TIMEOUT="1")))
        yield Scene(gateway, proxy, api, directory / "journal")


@pytest.fixture
def scene(otelcol: Path, tmp_path: Path) -> Iterator[Scene]:
    with staged(otelcol, tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def lasting(otelcol: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """One API and one Collector that runs, through one fault after another."""
    with staged(otelcol, tmp_path_factory.mktemp("outages")) as made:
        made.gateway.server.start()
        yield made


@dataclass(frozen=True)
class Size:
    requests: int
    kills: int = 0


SIZES = [pytest.param(Size(1_500, 3), id="short"), pytest.param(Size(20_000, 10), id="long", marks=pytest.mark.soak)]


@pytest.mark.parametrize("size", SIZES)
def test_a_collector_that_is_dead_from_the_start_gets_everything_when_it_lives(scene: Scene, size: Size) -> None:
    scene.load(size.requests)
    until(lambda: waiting(scene.journal) >= size.requests, lambda: f"only {waiting(scene.journal)} records are on disk")
    scene.gateway.server.start()
    scene.settle()
    scene.check()


@pytest.mark.parametrize("size", SIZES)
def test_a_collector_that_is_killed_again_and_again(scene: Scene, size: Size) -> None:
    scene.gateway.server.start()

    def kills(load: Load) -> None:
        for kill in range(size.kills):
            load.wait_for((kill + 1) * size.requests // (size.kills + 1))
            scene.gateway.server.kill()
            time.sleep(0.2)
            scene.gateway.server.start()

    scene.load(size.requests, kills)
    scene.settle()
    scene.check()


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_collector_that_hangs(otelcol: Path, tmp_path: Path, protocol: str) -> None:
    # The real one, stopped by a signal: it accepts, by the system's hand, and never answers.
    with Gateway(otelcol, tmp_path, {}) as gateway, Faulty(gateway.url) as unused:
        url = gateway.url if protocol == "http/protobuf" else f"http://{gateway.grpc}"
        environ = audited(url, tmp_path, OTEL_EXPORTER_OTLP_LOGS_PROTOCOL=protocol, OTEL_EXPORTER_OTLP_TIMEOUT="1")
        with Api(UVICORN, environ) as api:
            scene = Scene(gateway, unused, api, tmp_path / "journal")

            def hang(load: Load) -> None:
                load.wait_for(300)
                os.kill(gateway.server.pid, signal.SIGSTOP)

            try:
                scene.load(1_000, hang)
                scene.load(100)  # however soon the others were delivered
                until(lambda: waiting(scene.journal) > 0, lambda: "nothing waits: the Collector did not hang")
            finally:
                os.kill(gateway.server.pid, signal.SIGCONT)
            scene.settle()
            scene.check()


FAULTS: dict[str, faulty.Fault] = {
    "breaks connections": faulty.reset,
    "answers late": faulty.slow(0.5),
    "answers too late": faulty.slow(1.5),
    "drips its answer": faulty.drip(0.2),
    "429 for a second": faulty.status(429, Retry_After="1"),
    "503": faulty.status(503),
    "401": faulty.status(401),
    "redirects": faulty.status(307, Location="http://127.0.0.1:1/v1/logs"),
    "is no receiver": lambda _: faulty.Reply(200, {"Content-Type": "text/html"}, b"<html>Log in</html>"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_collector_that_fails_for_a_while(lasting: Scene, fault: str) -> None:
    lasting.proxy.seen.clear()
    lasting.proxy.fault = FAULTS[fault]
    began = time.monotonic()
    try:
        lasting.load(600)
        until(lambda: lasting.proxy.seen, lambda: "the proxy was not asked")
        if fault != "answers late":
            assert waiting(lasting.journal), "nothing waits: the fault did nothing"
            # Backing off means: fewer attempts than there were batches, of which there are twenty a second.
            attempts, seconds = len(lasting.proxy.seen), time.monotonic() - began
            assert attempts < 10 + 2 * seconds, f"{attempts} attempts within {seconds:.1f} s"
    finally:
        lasting.proxy.fault = faulty.passing
    lasting.settle()
    lasting.check()


def test_an_answer_that_asks_for_an_hour_is_heard_and_loses_nothing(scene: Scene) -> None:
    scene.proxy.fault = faulty.status(429, Retry_After="3600")
    scene.gateway.server.start()
    scene.load(600)
    until(lambda: 429 in scene.proxy.statuses(), lambda: "the proxy was not asked")
    time.sleep(2)  # an attempt in spite of the answer would come now: the longest wait is set to a second
    assert scene.proxy.statuses()[-1] == 429
    assert scene.proxy.statuses().count(429) == 1, scene.proxy.statuses()
    scene.api.stop(seconds=STOP_SECONDS_MAX)
    assert waiting(scene.journal) >= 600
    scene.proxy.fault = faulty.passing
    scene.api.start()
    scene.settle()
    scene.check()


def is_poison(record: LogRecord) -> bool:
    number = faulty.attribute(record, "audit.target.id")
    return number.isdigit() and int(number) % 1_000 == 7


@pytest.mark.parametrize("fault", [faulty.poison, faulty.partial], ids=["400", "partial success"])
@pytest.mark.parametrize(
    "requests", [pytest.param(2_000, id="short"), pytest.param(20_000, id="long", marks=pytest.mark.soak)]
)
def test_one_record_in_a_thousand_that_is_refused(
    scene: Scene, fault: Callable[[Callable[[LogRecord], bool]], faulty.Fault], requests: int
) -> None:
    scene.gateway.server.start()
    scene.proxy.fault = fault(is_poison)
    scene.load(requests)
    scene.settle()
    scene.check(set(range(7, requests, 1_000)))


def test_with_a_collector_that_hangs_the_end_comes_soon_and_leaves_the_records(scene: Scene) -> None:
    scene.proxy.fault = faulty.hang
    scene.load(500)
    scene.api.stop(seconds=STOP_SECONDS_MAX)
    scene.gateway.server.start()
    scene.proxy.fault = faulty.passing
    scene.api.start()
    scene.settle()
    scene.check()
