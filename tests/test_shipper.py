from __future__ import annotations

import itertools
import logging
import re
import tempfile
import threading
import time
import tracemalloc
from collections import deque
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.message import DecodeError  # type: ignore[import-untyped] # protobuf ships no annotations
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_batch import NO_PROTOBUF, ids_of, request
from tron_audit_otel import batch, shipper
from tron_audit_otel import receiver as receivers
from tron_audit_otel.answer import Answer, Fate
from tron_audit_otel.dead_letter import DeadLetters
from tron_audit_otel.errors import JournalError
from tron_audit_otel.journal import Chunk, Frame, MemoryJournal, Position
from tron_audit_otel.ledger import Ledger
from tron_audit_otel.shipper import Shipper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WAIT_SECONDS = 60
"""For what takes milliseconds, on a machine that is busy with something else."""

PAUSE_SECONDS_MAX = 0.02
"""Between two attempts; half of it is the shortest."""

DOWN = Answer(Fate.RETRY, "HTTP 503")
DENIED = Answer(Fate.PARKED, "HTTP 401")
REFUSED = Answer(Fate.POISON, "HTTP 400")
TAKEN = Answer(Fate.DELIVERED)


class Receiver:
    """A transport and the receiver behind it: a fake, since no real one refuses, breaks and mends on demand."""

    def __init__(self) -> None:
        self.script: deque[Answer | BaseException] = deque()
        """Comes first; then all is taken but poison."""
        self.always: Answer | None = None
        self.poison: set[str] = set()
        self.takes_empty = True
        self.bytes_max = 1 << 30
        self.on_send: Callable[[], None] = lambda: None
        self.requests: list[bytes] = []
        self.taken: list[str] = []
        self.closed = threading.Event()

    def send(self, body: bytes) -> Answer:
        self.requests.append(body)
        self.on_send()
        if self.script:
            step = self.script.popleft()
            if isinstance(step, BaseException):
                raise step
            return step
        return self.always or self._judge(body)

    def _judge(self, body: bytes) -> Answer:
        try:
            ids = ids_of(body)
        except DecodeError:
            return REFUSED
        if self.poison & set(ids) or len(body) > self.bytes_max or not (ids or self.takes_empty):
            return REFUSED
        self.taken += ids
        return TAKEN

    def close(self) -> None:
        self.closed.set()


class FaultyJournal(MemoryJournal):
    """Raises as told: a fake, since no real disk does so on demand."""

    def __init__(self, name: str = "faulty") -> None:
        super().__init__(bytes_max=1 << 30)
        self.name = name
        self.faults: dict[str, deque[BaseException]] = {"read": deque(), "acknowledge": deque(), "close": deque()}
        self.is_closed = False

    def _fail(self, what: str) -> None:
        if self.faults[what]:
            raise self.faults[what].popleft()

    def read(self, bytes_max: int) -> Chunk | None:
        self._fail("read")
        return super().read(bytes_max)

    def acknowledge(self, chunk: Chunk) -> None:
        self._fail("acknowledge")
        super().acknowledge(chunk)

    def close(self) -> None:
        self._fail("close")
        self.is_closed = True


class Letters(DeadLetters):
    """Raises as told, as `FaultyJournal` does."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.faults: deque[BaseException] = deque()
        self.on_put: Callable[[], None] = lambda: None

    def put(self, record_id: str, request: bytes, *, reason: str, sentence: str) -> None:
        if self.faults:
            raise self.faults.popleft()
        super().put(record_id, request, reason=reason, sentence=sentence)
        self.on_put()

    @property
    def ids(self) -> list[str]:
        return sorted(letter.id for letter in self.letters())


class Rig:
    """A shipper with all that it needs; the books are looked at when the test ends."""

    def __init__(self, letters: Letters | None, bytes_max: int = 1 << 20) -> None:
        self.receiver = Receiver()
        self.letters = letters
        self._others = shipping_threads()
        self.ticks = 0
        self.sent: list[Fate] = []
        self.books: list[tuple[Any, Ledger]] = []
        self.make_faults: deque[BaseException] = deque()
        self.shipper = Shipper(
            make_transport=self.make,
            dead_letters=letters,
            request_bytes_max=bytes_max,
            retry_seconds_max=PAUSE_SECONDS_MAX,
            tick=self.tick,
            on_sent=lambda _, fate: self.sent.append(fate),
        )
        self.journal, self.ledger = self.add(MemoryJournal(bytes_max=1 << 30))

    def make(self) -> Receiver:
        if self.make_faults:
            raise self.make_faults.popleft()
        return self.receiver

    def tick(self) -> None:
        self.ticks += 1

    def threads(self) -> set[threading.Thread]:
        return shipping_threads() - self._others

    def add(self, journal: Any, done: Callable[[], None] | None = None) -> tuple[Any, Ledger]:
        ledger = Ledger()
        ledger.adopt(journal.records)
        self.books.append((journal, ledger))
        self.shipper.add(journal, ledger, done=done)
        return journal, ledger

    def put(self, *ids: str, padding: int = 0) -> None:
        self.put_frame(Frame(request(ids, padding=padding), len(ids)))

    def put_frame(self, frame: Frame) -> None:
        self.ledger.adopt(frame.records)
        self.journal.append(frame.payload, frame.records)
        self.shipper.wake()

    def has_taken(self, record_id: str) -> bool:
        return record_id in self.receiver.taken

    def wait(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"did not come; {self.shipper.status}"
            time.sleep(0.002)

    def wait_until_empty(self) -> None:
        """As `drain`, but patient with failures."""
        self.wait(lambda: self.shipper.drain(WAIT_SECONDS))

    def end(self) -> None:
        self.shipper.stop()
        assert self.shipper.join(WAIT_SECONDS)

    def check_books(self) -> None:
        for journal, ledger in self.books:
            counts = ledger.counts()
            assert counts.emitted == (
                counts.delivered + counts.dead_lettered + sum(counts.dropped.values()) + journal.records
            )


def shipping_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "tron-audit-shipper"}


@contextmanager
def rigged(letters: Letters | None, bytes_max: int = 1 << 20) -> Iterator[Rig]:
    rig = Rig(letters, bytes_max)
    try:
        yield rig
    finally:
        rig.end()
    rig.check_books()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with rigged(Letters(tmp_path / "dead-letter")) as rig:
        yield rig


def adopted(*ids: str, name: str = "adopted") -> FaultyJournal:
    journal = FaultyJournal(name)
    for record_id in ids:
        journal.append(request([record_id]), 1)
    return journal


def lines(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == level]


@pytest.fixture(autouse=True)
def log_everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tron_audit_otel")


# --- the way of all records


def test_waiting_frames_go_in_one_request_and_in_order(rig: Rig) -> None:
    rig.put("a", "b")
    rig.put("c")
    rig.shipper.start()
    assert rig.shipper.drain(WAIT_SECONDS)
    assert rig.receiver.taken == ["a", "b", "c"]
    assert (len(rig.receiver.requests), rig.sent) == (1, [Fate.DELIVERED])
    assert rig.ledger.counts().delivered == 3
    rig.wait(lambda: rig.shipper.status.state == "idle")


def test_a_backlog_goes_in_requests_below_the_limit(tmp_path: Path) -> None:
    with rigged(Letters(tmp_path), bytes_max=4000) as rig:
        for number in range(50):
            rig.put(str(number), padding=900)
        began = time.monotonic()
        rig.shipper.start()
        assert rig.shipper.drain(WAIT_SECONDS)
        assert rig.receiver.taken == [str(number) for number in range(50)]
        assert max(map(len, rig.receiver.requests)) <= 4000
        assert rig.ticks <= 1 + (time.monotonic() - began)  # not one a request


def test_nothing_is_missed_that_comes_just_before_the_thread_waits(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipper, "TICK_SECONDS", 3600)
    look = rig.journal.read
    late = iter(["late"])

    def read(bytes_max: int) -> Chunk | None:
        chunk: Chunk | None = look(bytes_max)
        if chunk is None:
            for record_id in late:
                rig.put(record_id)
        return chunk

    monkeypatch.setattr(rig.journal, "read", read)
    rig.shipper.start()
    rig.wait(lambda: rig.receiver.taken == ["late"])


def test_journals_are_added_while_it_runs_and_all_are_emptied(rig: Rig) -> None:
    rig.shipper.start()
    done: list[str] = []

    def add(first: str) -> None:
        for number in range(20):
            name = f"{first}{number}"
            rig.add(adopted(f"{name}-1", f"{name}-2", name=name), partial(done.append, name))

    threads = [threading.Thread(target=add, args=(first,)) for first in "abc"]
    for thread in threads:
        thread.start()
    for number in range(50):
        rig.put(f"own{number}")
    for thread in threads:
        thread.join()
    assert rig.shipper.drain(WAIT_SECONDS)
    assert len(rig.receiver.taken) == len(set(rig.receiver.taken)) == 50 + 3 * 20 * 2
    assert len(done) == 60
    assert all(journal.is_closed for journal, _ in rig.books[1:])


def test_no_journal_waits_for_another_ones_backlog(tmp_path: Path) -> None:
    with rigged(Letters(tmp_path), bytes_max=300) as rig:
        for number in range(20):
            rig.put(f"own{number}")
        rig.add(adopted("theirs"), lambda: None)
        rig.shipper.start()
        assert rig.shipper.drain(WAIT_SECONDS)
        assert rig.receiver.taken.index("theirs") <= 3


class Backlog:
    """A journal of any length that takes no memory; a fake, since one on disk takes minutes to fill."""

    name = "backlog"

    def __init__(self, chunks: int, frames: int, frame: Frame) -> None:
        self.frames = frames
        self.frame = frame
        self.chunks = chunks

    @property
    def records(self) -> int:
        return self.chunks * self.frames * self.frame.records

    def read(self, _: int) -> Chunk | None:
        if not self.chunks:
            return None
        frames = tuple(Frame(bytes(bytearray(self.frame.payload)), self.frame.records) for _ in range(self.frames))
        return Chunk(frames, Position(0, 0, 0))

    def acknowledge(self, _: Chunk) -> None:
        self.chunks -= 1

    def close(self) -> None: ...


def test_a_backlog_of_a_million_records_takes_the_memory_of_a_chunk(tmp_path: Path) -> None:
    frame = Frame(request([str(number) for number in range(500)]), 500)
    with rigged(Letters(tmp_path), bytes_max=10 * len(frame.payload)) as rig:
        backlog, ledger = rig.add(Backlog(200, 10, frame))
        assert backlog.records == 1_000_000
        rig.receiver.send = lambda body: TAKEN if body else REFUSED  # type: ignore[method-assign] # keeps nothing
        tracemalloc.start()
        try:
            rig.shipper.start()
            assert rig.shipper.drain(WAIT_SECONDS)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert ledger.counts().delivered == 1_000_000
    assert peak < 4 * 10 * len(backlog.frame.payload)


def test_an_outage_keeps_one_chunk_in_memory_and_not_one_of_each_journal(rig: Rig) -> None:
    for number in range(5):
        rig.add(adopted("a", name=str(number)), lambda: None)
    rig.receiver.always = DOWN
    rig.shipper.start()
    rig.wait(lambda: len(rig.receiver.requests) > 5)
    assert sum(stream.shipment is not None for stream in rig.shipper._all()) == 1


# --- outages


def test_an_outage_is_waited_for_and_said_once(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.receiver.script.extend([DOWN] * 5)
    rig.put("a")
    rig.shipper.start()
    rig.wait_until_empty()
    assert rig.receiver.taken == ["a"]
    assert rig.sent == [Fate.RETRY] * 5 + [Fate.DELIVERED]
    assert lines(caplog, logging.WARNING) == ["audit records wait: HTTP 503"]
    [line] = lines(caplog, logging.INFO)
    assert re.fullmatch(r"audit records are taken again, after \d+ s", line)
    assert not lines(caplog, logging.ERROR)


def test_a_receiver_that_denies_is_an_alert_until_it_is_mended(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.receiver.always = DENIED
    before = time.time()
    rig.put("a")
    rig.shipper.start()
    rig.wait(lambda: len(rig.receiver.requests) > 5)
    status = rig.shipper.status
    assert (status.state, status.reason) == ("parked", "HTTP 401")
    assert before <= status.since_epoch_s <= time.time()
    assert rig.ledger.counts().pending == 1
    rig.receiver.always = None
    rig.wait_until_empty()
    rig.wait(lambda: rig.shipper.status.state == "idle")
    assert rig.shipper.status.reason is None
    assert lines(caplog, logging.ERROR) == ["audit records wait until an operator mends this: HTTP 401"]
    assert len(lines(caplog, logging.INFO)) == 1


def test_a_receiver_that_comes_and_goes_does_not_fill_the_log(
    rig: Rig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipper, "GATHER_SECONDS", 0)
    rig.shipper.start()
    for number in range(30):
        rig.receiver.script.append(DOWN)
        rig.put(str(number))
        rig.wait_until_empty()
    assert rig.sent.count(Fate.RETRY) == 30
    assert len(caplog.records) == 2


def test_an_outage_that_was_not_said_at_once_is_said_later(
    rig: Rig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.receiver.script.append(DOWN)
    rig.shipper.start()
    rig.put("a")
    rig.wait_until_empty()
    rig.receiver.always = Answer(Fate.RETRY, "HTTP 429")
    rig.put("b")
    rig.wait(lambda: rig.sent.count(Fate.RETRY) > 3)
    assert lines(caplog, logging.WARNING) == ["audit records wait: HTTP 503"]
    monkeypatch.setattr(receivers, "LOG_SECONDS_MIN", 0)
    rig.wait(lambda: lines(caplog, logging.WARNING)[1:] == ["audit records wait: HTTP 429"])


def receiver(transport: Receiver, seconds_max: float) -> receivers.Receiver:
    return receivers.Receiver(lambda: transport, lambda *_: None, receivers.Backoff(seconds_max), receivers.Log())


@pytest.fixture
def _no_time_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receivers, "time", SimpleNamespace(monotonic=lambda: 1000.0))


@pytest.mark.usefixtures("_no_time_passes")
@pytest.mark.parametrize(
    ("asked_s", "seconds_min", "seconds_max"),
    [
        (None, 0.0, 0.02),
        (0.0, 0.0, 0.02),
        (-5.0, 0.0, 0.02),
        (float("nan"), 0.0, 0.02),
        (7.0, 6.0, 7.02),
        (1e9, 3599.0, 3600.02),
        (float("inf"), 3599.0, 3600.02),
    ],
)
def test_a_pause_that_the_receiver_asks_for_is_kept_within_reason(
    asked_s: float | None, seconds_min: float, seconds_max: float
) -> None:
    transport = Receiver()
    transport.always = Answer(Fate.RETRY, "HTTP 429", asked_s)
    end = receiver(transport, 0.02)
    end.send(b"")
    assert seconds_min <= end.pause_s <= seconds_max


def test_pauses_grow_to_the_longest_and_begin_anew_after_success() -> None:
    backoff = receivers.Backoff(1.0)
    pauses = [backoff.next_s() for _ in range(100)]
    assert 0.05 <= pauses[0] <= 0.1 <= pauses[2] <= 0.4
    assert all(0.5 <= pause <= 1.0 for pause in pauses[4:])
    assert len(set(pauses[4:])) > 1  # or all processes would come at once
    backoff.reset()
    assert backoff.next_s() <= 0.1


@pytest.mark.usefixtures("_no_time_passes")
def test_the_first_pause_of_an_outage_is_short_whatever_was_before() -> None:
    transport = Receiver()
    transport.script.extend([*[DOWN] * 9, TAKEN, DOWN])
    end = receiver(transport, 30)
    for _ in range(9):
        end.send(b"")
    assert end.pause_s > 1
    end.send(b"")
    assert end.pause_s == 0
    end.send(b"")
    assert 0 < end.pause_s <= 0.1


def test_a_pause_of_an_hour_does_not_delay_the_end(rig: Rig) -> None:
    rig.receiver.always = Answer(Fate.RETRY, "HTTP 429", 3600.0)
    rig.put("a")
    rig.shipper.start()
    rig.wait(lambda: rig.shipper.status.state == "retrying")
    rig.end()
    assert len(rig.receiver.requests) == 1


def test_a_clock_that_is_set_back_does_not_hold_anything_up(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(2_000_000_000, -1000)
    monkeypatch.setattr(time, "time", lambda: next(clock))
    rig.receiver.script.extend([DOWN] * 3)
    rig.put("a")
    rig.shipper.start()
    rig.wait_until_empty()


# --- records that are never taken


def test_one_poison_record_in_a_thousand_is_set_aside_for_few_requests(rig: Rig) -> None:
    ids = [str(number) for number in range(1000)]
    rig.receiver.poison = {"777"}
    for number in range(0, 1000, 50):
        rig.put(*ids[number : number + 50])
    rig.shipper.start()
    assert rig.shipper.drain(WAIT_SECONDS)
    assert rig.letters
    assert rig.letters.ids == ["777"]
    letter = rig.letters.read("777")
    assert (letter.reason, letter.sentence) == ("HTTP 400", "alice DELETE 777")
    assert ids_of(letter.request or b"") == ["777"]
    assert sorted(rig.receiver.taken) == sorted(set(ids) - {"777"})
    assert len(rig.receiver.requests) <= 24
    assert (rig.ledger.counts().delivered, rig.ledger.counts().dead_lettered) == (999, 1)


@settings(max_examples=25)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=6),
    poison=st.sets(st.integers(0, 35), max_size=8),
    down=st.sets(st.integers(0, 40), max_size=5),
)
def test_exactly_the_poison_is_set_aside_whatever_outages_come_between(
    sizes: list[int], poison: set[int], down: set[int]
) -> None:
    ids = [str(number) for number in range(sum(sizes))]
    bad = {str(number) for number in poison} & set(ids)
    with tempfile.TemporaryDirectory() as directory, rigged(Letters(Path(directory) / "letters")) as rig:
        send = rig.receiver.send
        numbers = itertools.count()
        rig.receiver.send = lambda body: DOWN if next(numbers) in down else send(body)  # type: ignore[method-assign] # outages
        rig.receiver.poison = bad
        left = iter(ids)
        for size in sizes:
            rig.put(*itertools.islice(left, size))
        rig.shipper.start()
        rig.wait_until_empty()
        assert rig.letters
        assert rig.letters.ids == sorted(bad)
        assert sorted(rig.receiver.taken) == sorted(set(ids) - bad)
        counts = rig.ledger.counts()
        assert (counts.delivered, counts.dead_lettered) == (len(ids) - len(bad), len(bad))


def test_a_request_that_is_too_large_for_the_receiver_is_no_poison(rig: Rig) -> None:
    rig.receiver.bytes_max = 3000
    rig.put(*"abcdefgh", padding=1000)
    rig.shipper.start()
    assert rig.shipper.drain(WAIT_SECONDS)
    assert sorted(rig.receiver.taken) == list("abcdefgh")
    assert rig.ledger.counts().delivered == 8


def test_what_was_taken_before_an_outage_is_not_sent_again(rig: Rig) -> None:
    send = rig.receiver.send
    answered = itertools.count()
    # Each second answer is an outage, in the middle of the search for the poison.
    rig.receiver.send = lambda body: DOWN if next(answered) % 2 else send(body)  # type: ignore[method-assign] # as said
    rig.receiver.poison = {"3", "40"}
    rig.put(*[str(number) for number in range(64)])
    rig.shipper.start()
    rig.wait_until_empty()
    assert len(rig.receiver.taken) == len(set(rig.receiver.taken)) == 62
    assert rig.ledger.counts().dead_lettered == 2


def test_a_search_for_poison_goes_on_after_a_stop_where_it_was(rig: Rig) -> None:
    rig.receiver.poison = {"5"}
    rig.put(*[str(number) for number in range(64)])
    sent = itertools.count()
    rig.receiver.on_send = lambda: rig.shipper.stop() if next(sent) == 5 else None
    rig.shipper.start()
    rig.wait(lambda: rig.shipper.join(1))
    assert 0 < len(rig.receiver.taken) < 63
    assert rig.journal.records == 64
    assert rig.ledger.counts().pending == 64
    assert not rig.shipper.drain(WAIT_SECONDS)
    rig.shipper.start()
    assert rig.shipper.drain(WAIT_SECONDS)
    assert len(rig.receiver.taken) == len(set(rig.receiver.taken)) == 63
    assert rig.letters
    assert rig.letters.ids == ["5"]


@pytest.mark.parametrize("records", [1, 100])
def test_a_receiver_that_refuses_everything_is_an_alert_and_costs_no_record(
    rig: Rig, caplog: pytest.LogCaptureFixture, records: int
) -> None:
    rig.receiver.always = REFUSED
    states: list[str] = []
    rig.receiver.on_send = lambda: states.append(rig.shipper.status.state)
    rig.put(*[str(number) for number in range(records)])
    rig.shipper.start()
    rig.wait(lambda: rig.shipper.status.state == "parked")
    assert states.count("shipping") <= 2 * batch.UNPROVEN_REFUSALS_MAX
    rig.wait(lambda: len(rig.receiver.requests) > 3 * batch.UNPROVEN_REFUSALS_MAX)
    assert lines(caplog, logging.ERROR) == [
        "audit records wait until an operator mends this: it refuses everything, an empty request, too: HTTP 400"
    ]
    assert rig.letters
    assert rig.letters.ids == []
    rig.receiver.always = None
    rig.wait_until_empty()
    assert rig.ledger.counts().delivered == records


def test_a_receiver_that_takes_only_the_empty_request_gets_the_rest_set_aside_with_one_line(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    ids = [str(number) for number in range(40)]
    rig.receiver.poison = set(ids)
    for record_id in ids:
        rig.put(record_id)
    rig.shipper.start()
    assert rig.shipper.drain(WAIT_SECONDS)
    assert rig.ledger.counts().dead_lettered == 40
    rig.wait(lambda: caplog.records)
    assert caplog.messages == ["40 audit records were refused by the receiver and are kept as dead letters"]


def test_without_a_place_for_dead_letters_poison_is_lost_and_the_log_names_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with rigged(None) as rig:
        rig.receiver.poison = {"2", "3"}
        rig.put(*"1234")
        rig.shipper.start()
        assert rig.shipper.drain(WAIT_SECONDS)
        assert rig.ledger.counts().dropped == {"rejected": 2}
        assert sorted(rig.receiver.taken) == ["1", "4"]
    assert caplog.messages == ["2 audit records are lost, because the receiver refuses them (HTTP 400): 2, 3"]


def test_a_frame_that_cannot_be_decoded_is_set_aside_whole(rig: Rig) -> None:
    rig.put("a", "b")
    rig.put_frame(Frame(NO_PROTOBUF, 5))
    rig.put("c")
    rig.shipper.start()
    assert rig.shipper.drain(WAIT_SECONDS)
    assert rig.letters
    (record_id,) = rig.letters.ids
    assert record_id.startswith("sha256-")
    assert rig.letters.read(record_id).request == NO_PROTOBUF
    assert sorted(rig.receiver.taken) == ["a", "b", "c"]
    assert rig.ledger.counts().dead_lettered == 5


def test_a_dead_letter_that_cannot_be_written_waits_and_holds_up_only_its_journal(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    assert rig.letters
    rig.letters.faults.extend([JournalError("cannot keep a dead letter: no space", "disk_full")] * 5)
    rig.receiver.poison = {"bad"}
    rig.put("a", "bad")
    journal, ledger = rig.add(adopted("b"), lambda: None)
    rig.shipper.start()
    rig.wait(lambda: ledger.counts().delivered == 1)
    rig.wait_until_empty()
    assert rig.letters.ids == ["bad"]
    assert sorted(rig.receiver.taken) == ["a", "b"]  # nothing twice
    assert journal.is_closed
    assert lines(caplog, logging.ERROR)[0] == (
        "audit records of journal memory wait: cannot keep a dead letter: no space"
    )
    assert len(lines(caplog, logging.ERROR)) <= 2


def test_a_stop_does_not_wait_for_all_dead_letters(rig: Rig) -> None:
    assert rig.letters
    rig.letters.on_put = rig.shipper.stop
    rig.receiver.poison = {"1", "2", "3"}
    rig.put(*"1234")
    rig.shipper.start()
    rig.wait(lambda: rig.shipper.join(1))
    assert len(rig.letters.ids) == 1
    assert rig.ledger.counts().pending == 4
    rig.letters.on_put = lambda: None
    rig.shipper.start()
    assert rig.shipper.drain(WAIT_SECONDS)
    assert rig.letters.ids == ["1", "2", "3"]
    assert rig.receiver.taken == ["4"]


# --- what may go wrong around it


@pytest.mark.parametrize("error", [ValueError("s3cret"), SystemExit(), MemoryError(), KeyboardInterrupt()])
def test_a_transport_that_raises_is_an_outage(rig: Rig, error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    rig.receiver.script.extend([error] * 3)
    rig.put("a")
    rig.shipper.start()
    rig.wait_until_empty()
    assert rig.receiver.taken == ["a"]
    assert lines(caplog, logging.WARNING) == [f"audit records wait: {type(error).__name__}"]
    assert rig.receiver.closed.is_set()  # another one may be in better health


def test_a_transport_that_cannot_be_made_is_an_alert_and_made_later(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.make_faults.extend([FileNotFoundError("/secret/certificate")] * 3)
    rig.put("a")
    rig.shipper.start()
    rig.wait_until_empty()
    assert lines(caplog, logging.ERROR) == [
        "audit records wait until an operator mends this: no transport can be made: FileNotFoundError"
    ]


@pytest.mark.parametrize("error", [ValueError("s3cret"), SystemExit(), MemoryError()])
@pytest.mark.parametrize("where", ["read", "acknowledge"])
def test_a_journal_that_raises_is_tried_again_and_counted_once(
    rig: Rig, where: str, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    journal = adopted("a", "b")
    journal.faults[where].extend([error] * 3)
    rig.shipper.start()
    _, ledger = rig.add(journal, lambda: None)
    rig.wait_until_empty()
    assert rig.receiver.taken == ["a", "b"]  # nothing twice
    assert ledger.counts().delivered == 2
    assert lines(caplog, logging.ERROR) == [f"audit records of journal adopted wait: {type(error).__name__}"]


def test_a_journal_that_cannot_be_read_holds_up_no_other(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    broken = adopted("x")
    broken.faults["read"].extend([JournalError("segment 3 cannot be read", "disk_failed")] * 100_000)
    rig.add(broken, lambda: None)
    began = time.monotonic()
    rig.shipper.start()
    for number in range(20):
        rig.put(str(number))
        rig.wait(partial(rig.has_taken, str(number)))
    assert (rig.shipper.status.state, rig.shipper.status.reason) == ("retrying", "segment 3 cannot be read")
    drained = time.monotonic()
    assert not rig.shipper.drain(WAIT_SECONDS)  # what is left cannot be read
    assert time.monotonic() - drained < WAIT_SECONDS / 2
    reads = 100_000 - len(broken.faults["read"])
    assert reads <= rounds_max(time.monotonic() - began)  # no spinning
    broken.faults["read"].clear()
    rig.wait_until_empty()
    assert "x" in rig.receiver.taken
    assert lines(caplog, logging.ERROR) == ["audit records of journal adopted wait: segment 3 cannot be read"]


def rounds_max(seconds: float) -> float:
    """How often can be tried what fails each time."""
    return 1 + seconds / (PAUSE_SECONDS_MAX / 2)


@pytest.mark.parametrize("where", ["close", "done"])
def test_an_empty_journal_is_forgotten_whatever_its_end_raises(rig: Rig, where: str) -> None:
    ended = threading.Event()

    def done() -> None:
        ended.set()
        if where == "done":
            raise SystemExit

    journal = adopted("a")
    if where == "close":
        journal.faults["close"].append(OSError())
    rig.add(journal, done)
    rig.put("b")
    rig.shipper.start()
    assert rig.shipper.drain(WAIT_SECONDS)
    assert ended.is_set()
    rig.wait(lambda: len(rig.shipper._all()) == 1)


def test_damage_is_counted_though_there_is_nothing_to_send(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.put("a", "b", "c")
    look = rig.journal.read

    def read(bytes_max: int) -> Chunk | None:
        chunk: Chunk | None = look(bytes_max)
        return Chunk((), chunk.end, damaged=3) if chunk else None

    monkeypatch.setattr(rig.journal, "read", read)
    rig.shipper.start()
    assert rig.shipper.drain(WAIT_SECONDS)
    assert rig.receiver.requests == []
    assert rig.ledger.counts().dropped == {"damaged": 3}


def test_an_error_of_ours_in_the_middle_of_a_search_begins_it_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = batch.Delivery.refused, itertools.count()

    def refused(delivery: batch.Delivery, reason: str) -> None:
        if next(calls) < 2:
            delivery._left.clear()  # half done
            raise MemoryError
        real(delivery, reason)

    monkeypatch.setattr(batch.Delivery, "refused", refused)
    rig.receiver.poison = {"3"}
    rig.put(*"12345678")
    rig.shipper.start()
    rig.wait_until_empty()
    assert sorted(rig.receiver.taken) == list("1245678")
    counts = rig.ledger.counts()
    assert (counts.delivered, counts.dead_lettered) == (7, 1)


def test_callbacks_and_log_handlers_that_raise_end_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise SystemExit

    monkeypatch.setattr(shipper, "TICK_SECONDS", 0.0)
    monkeypatch.setattr(rig.shipper, "_tick", fail)
    monkeypatch.setattr(rig.shipper._receiver, "_on_sent", fail)
    monkeypatch.setattr(receivers._logger, "log", fail)
    rig.receiver.script.extend([DOWN, DENIED])
    rig.put("a")
    rig.shipper.start()
    rig.wait_until_empty()
    assert rig.receiver.taken == ["a"]


def test_an_error_anywhere_else_is_waited_out(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rounds: list[threading.Event] = []

    def fail(stop: threading.Event) -> None:
        rounds.append(stop)
        raise GeneratorExit

    rig.put("a")
    with monkeypatch.context() as patch:
        patch.setattr(rig.shipper, "_round", fail)
        began = time.monotonic()
        rig.shipper.start()
        rig.wait(lambda: len(rounds) > 10)  # not given up
        done = len(rounds)
        assert done <= rounds_max(time.monotonic() - began)  # and not spinning
    assert rig.shipper.drain(WAIT_SECONDS)
    assert caplog.messages == ["shipping of audit records goes on after GeneratorExit"]


def test_housekeeping_is_done_while_there_is_nothing_to_ship_and_in_an_outage(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipper, "TICK_SECONDS", 0.01)
    rig.shipper.start()
    rig.wait(lambda: rig.ticks > 3)
    rig.receiver.always = Answer(Fate.RETRY, "HTTP 429", 3600.0)
    rig.put("a")
    rig.wait(lambda: rig.shipper.status.state == "retrying")
    seen = rig.ticks
    rig.wait(lambda: rig.ticks > seen + 3)


# --- begin and end


def assert_set(event: threading.Event) -> None:
    assert event.wait(WAIT_SECONDS)


def test_starting_twice_makes_one_thread(rig: Rig) -> None:
    rig.shipper.start()
    rig.shipper.start()
    assert len(rig.threads()) == 1


def test_a_new_start_waits_for_the_end_of_the_one_before(rig: Rig) -> None:
    go_on, at_once, most = threading.Event(), itertools.count(), []
    sending = threading.Semaphore(1)

    def on_send() -> None:
        most.append(sending.acquire(blocking=False))  # False: two are sending
        if next(at_once) == 0:
            go_on.wait(WAIT_SECONDS)
        sending.release()

    rig.receiver.on_send = on_send
    rig.put("a")
    rig.shipper.start()
    rig.wait(lambda: rig.receiver.requests)
    rig.shipper.stop()
    rig.shipper.start()
    rig.put("b")
    assert len(rig.threads()) == 2
    go_on.set()
    assert rig.shipper.drain(WAIT_SECONDS)
    assert rig.receiver.taken == ["a", "b"]
    assert most == [True, True]
    assert len(rig.threads()) == 1


def test_a_request_that_hangs_is_cut_off_at_the_end_of_the_time_to_stop_in(rig: Rig) -> None:
    cut: list[bool] = []
    rig.receiver.on_send = lambda: cut.append(rig.receiver.closed.wait(WAIT_SECONDS))
    rig.receiver.always = DOWN
    rig.put("a")
    rig.shipper.start()
    rig.wait(lambda: rig.receiver.requests)
    rig.shipper.stop()
    assert not rig.receiver.closed.is_set()
    rig.wait(lambda: rig.shipper.join(0.2))
    assert cut == [True]
    assert rig.ledger.counts().pending == 1


def test_a_thread_that_cannot_be_started_is_started_later(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(
            threading.Thread, "start", lambda _: (_ for _ in ()).throw(RuntimeError("can't start new thread"))
        )
        rig.shipper.start()
        rig.put("a")
    assert caplog.messages == ["audit records wait: can't start new thread"]
    rig.put("b")
    assert rig.shipper.drain(WAIT_SECONDS)
    assert rig.receiver.taken == ["a", "b"]


def test_drain_gives_up_when_nothing_is_taken(rig: Rig) -> None:
    rig.receiver.always = DOWN
    rig.put("a")
    rig.shipper.start()
    began = time.monotonic()
    assert not rig.shipper.drain(WAIT_SECONDS)
    assert time.monotonic() - began < WAIT_SECONDS / 2


def test_drain_gives_up_when_its_time_is_over(rig: Rig) -> None:
    go_on = threading.Event()
    rig.receiver.on_send = lambda: assert_set(go_on)
    rig.put("a")
    rig.shipper.start()
    assert not rig.shipper.drain(0.1)
    go_on.set()
    assert rig.shipper.drain(WAIT_SECONDS)


def test_drain_looks_for_what_nobody_told_of(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipper, "TICK_SECONDS", 3600)
    rig.shipper.start()
    rig.wait(lambda: not rig.shipper._wake.is_set())
    time.sleep(0.05)
    rig.ledger.adopt(1)
    rig.journal.append(request(["a"]), 1)
    assert rig.shipper.drain(WAIT_SECONDS)


def test_drain_does_not_wait_for_a_thread_that_is_not_there(rig: Rig) -> None:
    assert rig.shipper.drain(WAIT_SECONDS)
    rig.put("a")
    began = time.monotonic()
    assert not rig.shipper.drain(WAIT_SECONDS)
    assert time.monotonic() - began < WAIT_SECONDS / 2
