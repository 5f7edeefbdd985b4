"""One process's journal, and its way to the Collector: opened late, adopted, shipped, closed within a deadline."""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
from collections import Counter
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Protocol

from tron_audit_otel.commitment import Commitments
from tron_audit_otel.dead_letter import DeadLetters
from tron_audit_otel.disk_journal import DiskJournal, adopt
from tron_audit_otel.errors import JournalError
from tron_audit_otel.event import Action, Outcome, System, error_type
from tron_audit_otel.journal import MemoryJournal
from tron_audit_otel.journal_dir import DEAD_LETTERS, swap
from tron_audit_otel.ledger import Ledger, Stats
from tron_audit_otel.receiver import Log
from tron_audit_otel.shipper import Shipper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tron_audit_otel.answer import Fate, Transport
    from tron_audit_otel.config import AuditConfig
    from tron_audit_otel.journal import Journal

ADOPTED_MAX = 16
"""Journals held at once that others left: each takes descriptors, and a crash loop leaves any number."""

ADOPT_SECONDS = 30
"""Between two looks for journals whose owners are gone: a worker that is not started again leaves one too."""

RETRY_SECONDS_FIRST = 0.05
RETRY_SECONDS_MAX = 1.0
"""Between two attempts to write to a journal that refused: a full disk may be free again soon."""

TELLING_SECONDS_MAX = 0.5


POLICY_CHARACTERS_MAX = 64

REFUSED = "request_refused"
"""Of a system record: its number is that of requests that were refused before their handler ran."""

_logger = logging.getLogger(__name__)


class Announce(Protocol):
    """Writes a system record."""

    def __call__(self, action: Action, outcome: Outcome, system: System) -> None:
        """Takes what happened to the trail."""


class Outbox:
    """Takes serialized records, keeps them on disk until the Collector has them, and counts what becomes of each."""

    def __init__(
        self,
        config: AuditConfig,
        announce: Announce,
        *,
        make_transport: Callable[[], Transport],
        sent: Callable[[float, Fate], None],
        policy: str,
    ) -> None:
        """Opens nothing yet.

        Args:
            config: The configuration.
            announce: Writes system records.
            make_transport: Makes the way to the Collector.
            sent: Told of each attempt to deliver, with its duration in seconds.
            policy: The policy's digest.
        """
        self.ledger = Ledger()
        self.commitments = Commitments()
        self.closing = threading.Event()
        """Set, it ends all attempts to write to a journal that refuses."""
        self.blocked: str | None = None
        self._config = config
        self._announce = announce
        self._policy = policy
        self._journal: Journal | None = None
        self._adopted = Ledger()
        self._held: list[Journal] = []
        """Adopted, and not empty yet."""
        self._announced: Counter[tuple[str, str]] = Counter()
        self._committing_since: float | None = None
        self._adopt_at = 0.0
        self._log = Log()
        self._said_blocked = False
        self._telling = threading.Lock()
        self._told_all = False
        self._started_at = time.time()
        on_disk = config.journal == "disk"
        self._shipper = Shipper(
            make_transport=make_transport,
            dead_letters=DeadLetters(config.journal_path / DEAD_LETTERS) if on_disk else None,
            request_bytes_max=config.request_bytes_max,
            retry_seconds_max=config.retry_seconds_max,
            tick=self._tick,
            on_sent=sent,
        )

    # --- in the exporter's thread

    def put(self, payload: bytes, record_ids: Sequence[str]) -> None:
        """Commits records to the journal; tries for as long as it refuses, until `closing` is set."""
        delay = RETRY_SECONDS_FIRST
        self._committing_since = time.monotonic()
        while (refusal := self._commit(payload, len(record_ids))) is not None:
            self._block(refusal)
            if self.closing.wait(delay):
                self._committing_since = None
                self.lose(record_ids, refusal.reason)
                return
            delay = min(delay * 2, RETRY_SECONDS_MAX)
        self._committing_since = None
        self.ledger.commit(len(record_ids))
        self.commitments.settle(record_ids, kept=True)
        self._shipper.wake()
        if self.blocked is not None:
            self.blocked = None
            if self._said_blocked:
                self._said_blocked = False
                _logger.info("the audit journal can be written again")

    def lose(self, record_ids: Sequence[str], reason: str) -> None:
        """Counts records as lost from memory."""
        self.ledger.drop(len(record_ids), reason)
        self.commitments.settle(record_ids, kept=False)

    def _commit(self, payload: bytes, records: int) -> JournalError | None:
        try:
            self._opened().append(payload, records)
        except JournalError as refusal:
            return refusal
        except BaseException as error:  # noqa: BLE001 - anything that passes would end the SDK's thread without a word
            return JournalError(error_type(error), "disk_failed")
        return None

    def _opened(self) -> Journal:
        if self._journal is None:
            config = self._config
            self._journal = (
                MemoryJournal(bytes_max=config.journal_bytes_max)
                if config.journal == "memory"
                else DiskJournal.create(config.journal_path, bytes_max=config.journal_bytes_max, fsync=config.fsync)
            )
            self._shipper.add(self._journal, self.ledger)
        return self._journal

    def _block(self, refusal: JournalError) -> None:
        if self.blocked != refusal.reason:
            what = "no audit record can be written, and up to AUDIT_LOG_QUEUE_RECORDS_MAX wait in memory: %s"
            self._said_blocked |= self._log.say("blocked", logging.ERROR, what, refusal)
        self.blocked = refusal.reason

    # --- in any thread

    def start(self) -> None:
        """Starts the shipping, and with it the search for what others left; the first record opens the journal."""
        self._shipper.start()

    @property
    def obstacle(self) -> str | None:
        """Why no further record can be written at present: the ledger's word for it; nothing here waits."""
        since = self._committing_since
        if self.blocked is not None:
            return self.blocked
        if since is not None and time.monotonic() - since > self._config.commit_seconds_max:
            return "disk_stalled"
        return "queue_full" if self.ledger.queued >= self._config.queue_records_max else None

    @property
    def journal_name(self) -> str | None:
        """The name of the journal's directory, once there is one."""
        return self._journal.name if self._journal else None

    def stats(self) -> Stats:
        """Gives the counts as they are now."""
        shipping = self._shipper.status
        return Stats(
            **asdict(self.ledger.counts()),
            adopted=self._adopted.counts(),
            journal=self.journal_name,
            shipping=shipping.state,
            reason=shipping.reason,
            blocked=self.obstacle,
        )

    def last_words(self) -> None:
        """Announces what is lost so far, and nothing after it: there would be nobody to write it any more."""
        is_first, self._told_all = not self._told_all, True
        # The shipper's thread holds the lock while it adopts, which a disk can make long; what it says is counted.
        if is_first and self._telling.acquire(timeout=TELLING_SECONDS_MAX):
            self._announce_losses()
            self._telling.release()

    def drain(self, seconds_max: float) -> bool:
        """Waits until everything is delivered, unless the Collector takes nothing; tells whether it is."""
        return self._shipper.drain(seconds_max)

    def close(self, seconds_max: float) -> None:
        """Ends the shipping and lets go of the journal; what is not delivered stays for the next process."""
        self._shipper.stop()
        has_ended = self._shipper.join(seconds_max)
        self._note()
        for journal in filter(None, (self._journal, *self._held)):  # adopted ones, too, where no own one could be made
            journal.close()
        # If the thread has not ended, what it sends may arrive yet: then nobody knows.
        if has_ended and isinstance(self._journal, MemoryJournal) and (left := self._journal.records):
            self.ledger.drop(left, "shutdown", committed=True)
        for _ in self._log_losses():  # none of them can be on record any more
            pass

    # --- in the shipper's thread, about once a second

    def _tick(self) -> None:
        with self._telling:
            if not self._told_all:
                self._tell()
        self._note()

    def _tell(self) -> None:
        if self._config.journal == "disk" and time.monotonic() >= self._adopt_at:
            self._adopt_at = time.monotonic() + ADOPT_SECONDS
            self._adopt()
            self._note_policy()
        self._announce_losses()

    def _note_policy(self) -> None:
        """Tells of a policy that is not that of the process that started before."""
        if not self._policy:
            return
        policy, self._policy = self._policy, ""
        # Services that share a directory have policies of their own.
        service = re.sub("[^a-z0-9]", "-", (self._config.service_name or "default").lower())
        before = swap(self._config.journal_path, f"policy-{service}"[:POLICY_CHARACTERS_MAX], policy)
        if before is not None and before != policy:
            changed = System(policy_sha256=policy, policy_previous_sha256=before)
            self._announce(Action.POLICY_CHANGE, Outcome.SUCCESS, changed)

    def _adopt(self) -> None:
        if (room := ADOPTED_MAX - len(self._held)) < 1:
            return
        for journal in adopt(self._config.journal_path, room):
            self._adopted.adopt(journal.records)
            self._announce(
                Action.ADOPT,
                Outcome.SUCCESS,
                System(journal=journal.name, records=journal.records, clean_stop=journal.clean),
            )
            self._held.append(journal)
            self._shipper.add(journal, self._adopted, done=partial(self._let_go, journal))

    def _let_go(self, journal: Journal) -> None:
        self._held.remove(journal)
        self._adopt_at = 0.0  # there may be more than could be held at once

    def _announce_losses(self) -> None:
        if self.blocked is None:
            for reason, lost in self._log_losses():
                self._announce(Action.LOSS, Outcome.FAILURE, System(records=lost, reason=reason))

    def _log_losses(self) -> Iterator[tuple[str, int]]:
        """Gives what was lost since it was asked for the last time, by reason."""
        for whose, ledger in (("own", self.ledger), ("adopted", self._adopted)):
            counts = ledger.counts()
            for reason, records in (*counts.dropped.items(), (REFUSED, counts.rejected)):
                lost = records - self._announced[whose, reason]
                if lost:
                    self._announced[whose, reason] = records
                    if reason == REFUSED:
                        _logger.error("%d requests were refused with 503: no audit record could be written", lost)
                    else:
                        _logger.error("%d audit records are lost: %s", lost, reason)
                    yield reason, lost

    def _note(self) -> None:
        """Leaves the counts where ``tron-audit status`` finds them."""
        if self._journal is None:
            return
        note = {
            "pid": os.getpid(),
            "service": self._config.service_name,
            "endpoint": self._config.endpoint,
            "started_at": self._started_at,
            "noted_at": time.time(),
            "held": [journal.name for journal in self._held],  # a journal that was taken over is no process
            **asdict(self.stats()),
        }
        self._journal.note(json.dumps(note).encode())
