"""Load for the proofs, and what they compare afterwards: the answers that a client read, and the records that arrived.

with Load(api.url, range(10_000)) as load:
    load.wait_for(500)
    api.kill()
    api.start()
lost = load.answered() - archive.items()
"""

from __future__ import annotations

import asyncio
import json
import statistics
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

import httpx
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from collector import servers
from tests.integration import faulty
from tests.integration.gateway import records_of
from tests.integration.test_processes import settings
from tron_audit_otel.dead_letter import DeadLetters
from tron_audit_otel.journal_dir import inspect

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator, Mapping
    from pathlib import Path

    from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

CONNECT_SECONDS_MAX = 60
ANSWER_SECONDS_MAX = 60
REQUESTS_PER_CONNECTION = 100
SHOWN = 20

# Of what a proof asks for its own sake there is no record.
POLICY = """
rules:
  - name: harness
    match: {path: [/harness/**, /ready]}
    level: none
  - name: kept
    match: {route: "/kept/{item}"}
    commit: response
"""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that was read to its last byte; when it was, and when it had been asked for (monotonic seconds)."""

    status: int
    body: bytes
    sent_s: float
    read_s: float


class Load:
    """Clients on a thread of their own: one request for each number, each number once, whatever becomes of it.

    A raw client on asyncio's streams, because httpx takes longer for a request than the server does. A server that is
    killed is waited for.
    """

    def __init__(
        self,
        url: str,
        numbers: Iterable[int],
        *,
        path: Callable[[int], str] = "/items/{}".format,
        connections: int = 32,
        rate: float = 0,
    ) -> None:
        """Takes what to ask for.

        Args:
            url: The application.
            numbers: The numbers.
            path: A number's path.
            connections: How many there are at a time; each is renewed from time to time, for new workers to get some.
            rate: Requests a second, evenly spread; 0 is as many as there are answers.
        """
        parts = urlsplit(url)
        self._host, self._port, self._path = parts.hostname or "", parts.port or 80, path
        self._numbers: Iterator[tuple[int, int]] = iter(enumerate(numbers))
        self._connections = connections
        self._rate = rate
        self._began = 0.0
        self.answers: dict[int, Answer] = {}
        self.broken: set[int] = set()
        """Their answers were never read whole: whether they have a record is open."""
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="load")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:  # the test has failed already: no more requests
            self._numbers = iter(())
        self._thread.join()
        if self.error is not None:
            raise self.error

    def wait_for(self, count: int) -> bool:
        """Waits until so many requests have ended; tells whether any are left to do."""
        while self._thread.is_alive() and len(self.answers) + len(self.broken) < count:
            time.sleep(0.001)
        return self._thread.is_alive()

    def answered(self, status: int = 200) -> set[int]:
        """The numbers whose answer was read whole, with that status."""
        return {number for number, answer in self.answers.items() if answer.status == status}

    def usual_seconds(self) -> float:
        """How long the half of the answers took that took longest, at least: no pause of a machine shows in it."""
        return statistics.median(answer.read_s - answer.sent_s for answer in self.answers.values())

    def statuses(self) -> dict[int, int]:
        """How often each status was answered."""
        return dict(Counter(answer.status for answer in self.answers.values()))

    def _run(self) -> None:
        self._began = time.monotonic()
        try:
            asyncio.run(self._all())
        except BaseException as error:  # noqa: BLE001 - raised where the load is waited for
            self.error = error

    async def _all(self) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(self._connections):
                group.create_task(self._client())

    async def _client(self) -> None:
        writer: asyncio.StreamWriter | None = None
        left = REQUESTS_PER_CONNECTION
        for index, number in self._numbers:
            if self._rate:
                await asyncio.sleep(self._began + index / self._rate - time.monotonic())
            if writer is None:
                reader, writer = await self._connect()
                left = REQUESTS_PER_CONNECTION
            left -= 1
            try:
                async with asyncio.timeout(ANSWER_SECONDS_MAX):
                    sent_s = time.monotonic()
                    writer.write(f"GET {self._path(number)} HTTP/1.1\r\nHost: {self._host}\r\n\r\n".encode())
                    status, body, keep = await _answer(reader)
            except (OSError, EOFError):
                self.broken.add(number)
                keep = False
            else:
                self.answers[number] = Answer(status, body, sent_s, time.monotonic())
            if not keep or not left:
                writer.close()
                writer = None
        if writer is not None:
            writer.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        deadline = time.monotonic() + CONNECT_SECONDS_MAX
        while True:
            try:
                return await asyncio.open_connection(self._host, self._port)
            except OSError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.02)


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes, bool]:
    """Reads an answer to its last byte: status, body, whether the connection can be used again."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
    if not length:
        raise ValueError(f"an answer without Content-Length: {head!r}")
    return int(head.split(b" ", 2)[1]), await reader.readexactly(int(length)), b"connection: close" not in head


@dataclass(frozen=True, slots=True)
class Record:
    """A record in the Collector's archive."""

    stream: str
    event: str
    attributes: Mapping[str, Any]

    @property
    def id(self) -> str:
        return str(self.attributes["audit.record.id"])

    @property
    def sequence(self) -> int:
        return int(self.attributes["audit.sequence.number"])

    @property
    def item(self) -> int | None:
        """The number of the request that it is of."""
        route = self.attributes.get("http.route")
        return int(self.attributes["audit.target.id"]) if route in ("/items/{item}", "/kept/{item}") else None


class Archive:
    """The Collector's archive of one service, with its rotated files, read on from where it was left."""

    def __init__(self, data: Path, service: str = "served") -> None:
        """Takes the Collector's data directory."""
        self._directory = data / "archive"
        self._service = service
        self._read: dict[int, int] = {}
        self._records: list[Record] = []

    def records(self) -> list[Record]:
        """Every record that is there by now, as often as it is there."""
        for file in sorted(self._directory.glob("audit*.jsonl")):
            with file.open("rb") as lines:
                inode = file.stat().st_ino  # rotation gives the file another name
                lines.seek(self._read.get(inode, 0))
                whole, _, _ = lines.read().rpartition(b"\n")
                if whole:
                    self._read[inode] = self._read.get(inode, 0) + len(whole) + 1
                    self._records += self._of_service(map(json.loads, whole.split(b"\n")))
        return self._records

    def _of_service(self, requests: Iterable[dict[str, Any]]) -> Iterator[Record]:
        for around, record in records_of(requests):
            if around["resource"]["service.name"] == self._service:
                stream = around["resource"]["service.instance.id"]
                yield Record(stream, record.get("eventName", ""), record["attributes"])

    def items(self) -> set[int]:
        """The numbers of the requests that have a record."""
        return {record.item for record in self.records() if record.item is not None}

    def ids(self) -> set[str]:
        return {record.id for record in self.records()}

    def streams(self) -> dict[str, list[Record]]:
        """The records of each process, each record once, in their order."""
        found: dict[str, dict[int, Record]] = defaultdict(dict)
        for record in self.records():
            found[record.stream][record.sequence] = record
        return {stream: [by_number[number] for number in sorted(by_number)] for stream, by_number in found.items()}

    def problems(self, aside: Container[int] = ()) -> list[str]:
        """What no fault excuses: one request under two ids, two records under one id or number, a gap.

        `aside` are the sequence numbers of records that are known to be elsewhere.
        """
        problems: list[str] = []
        ids: dict[int, set[str]] = defaultdict(set)
        by_id: dict[str, Record] = {}
        numbers: dict[tuple[str, int], set[str]] = defaultdict(set)
        for record in self.records():
            if record.item is not None:
                ids[record.item].add(record.id)
            if by_id.setdefault(record.id, record) != record:
                problems.append(f"record {record.id} arrived again with another content")
            numbers[record.stream, record.sequence].add(record.id)
        problems += [f"request {item} has several records: {sorted(of)}" for item, of in ids.items() if len(of) > 1]
        problems += [
            f"stream {stream} has several records number {n}" for (stream, n), of in numbers.items() if len(of) > 1
        ]
        for stream, records in self.streams().items():
            there = {record.sequence for record in records}
            missing = [n for n in range(1, records[-1].sequence + 1) if n not in there and n not in aside]
            if missing:
                problems.append(f"stream {stream} lacks its numbers {some(missing)}")
        return problems

    def duplicates(self) -> int:
        """How many records are there more than once; a kill may repeat what it interrupted."""
        return len(self.records()) - len(self.ids())

    def system(self) -> list[Record]:
        """The records that the library has written of itself."""
        return [record for record in self.records() if record.event == "tron.audit.system"]


def some(numbers: Iterable[int] | Iterable[str]) -> str:
    """A few of them, and how many there are, for a failure's message."""
    ordered = sorted(numbers)
    more = ", …" if len(ordered) > SHOWN else ""
    return f"{len(ordered)} ({', '.join(map(str, ordered[:SHOWN]))}{more})"


def until(found: Callable[[], object], what: Callable[[], str], seconds: float = 60) -> None:
    """Waits until `found` returns something true; `what` says what is missing when it does not."""
    deadline = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what()}"
        time.sleep(0.1)


def audited(url: str, directory: Path, **more: str) -> dict[str, str]:
    """The environment of the served application: its journal and its policy below `directory`.

    However long a machine that is busy with other things takes for a commit, it is waited for.
    """
    policy = directory / "policy.yaml"
    policy.write_text(POLICY)
    ours = {"AUDIT_LOG_JOURNAL_DIR": str(directory / "journal"), "AUDIT_LOG_POLICY_FILE": str(policy)}
    usual = {"AUDIT_LOG_RETRY_SECONDS_MAX": "1", "AUDIT_LOG_COMMIT_SECONDS_MAX": str(ANSWER_SECONDS_MAX)}
    return settings(url, **{**ours, **usual, **more})


def waiting(root: Path) -> int:
    """The records in every process's journal, living or dead."""
    return sum(state.records for state in inspect(root))


def letters(root: Path) -> list[LogRecord]:
    """The records that were set aside."""
    found: list[LogRecord] = []
    directory = DeadLetters(root / "dead-letter")
    for letter in directory.letters():
        request = directory.read(letter.id).request
        assert request is not None, f"an unreadable letter: {letter}"
        found += faulty.records(ExportLogsServiceRequest.FromString(request))
    return found


def stats(api_url: str) -> dict[str, Any]:
    """What became of the records of the process that answers, and of those that it adopted; the sums are checked."""
    answer = httpx.get(f"{api_url}/harness/stats", timeout=30, verify=servers.TLS, trust_env=False)
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    for counts in (found, found["adopted"]):
        fates = [*counts["dropped"].values(), *(counts[fate] for fate in ("delivered", "dead_lettered", "pending"))]
        assert counts["emitted"] == sum(fates), found
        assert min(fates) >= 0, found
        assert 0 <= counts["queued"] <= counts["pending"], found
    return found


def pending(api_url: str, root: Path) -> int:
    """The records on their way: in the memory of the process that answers, and on disk whoever wrote them."""
    return int(stats(api_url)["queued"]) + waiting(root)


def ran(api_url: str) -> set[int]:
    """The numbers of the requests whose handler ran in the process that answers."""
    return set(map(int, httpx.get(f"{api_url}/harness/ran", timeout=30, verify=servers.TLS, trust_env=False).json()))
