"""What the applications of a process record with: one stream at a time, begun when it is needed, anew after a fork."""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import os
import threading
from dataclasses import asdict
from functools import partial
from multiprocessing.util import Finalize
from typing import TYPE_CHECKING
from weakref import WeakSet

from tron_audit_otel import metrics, transport
from tron_audit_otel.context import Recorder
from tron_audit_otel.event import error_type
from tron_audit_otel.ledger import Counts, Ledger, Stats, total
from tron_audit_otel.outbox import Outbox
from tron_audit_otel.receiver import Log
from tron_audit_otel.redact import Redactor
from tron_audit_otel.source_ip import Proxies
from tron_audit_otel.stream import Stream

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import LogRecordExporter

    from tron_audit_otel.commitment import Commitment
    from tron_audit_otel.config import AuditConfig
    from tron_audit_otel.event import Fact


class Pipeline:
    """Takes facts, and never waits; nothing but `commit` and `admit` raises.

    Its stream begins with the application's lifespan, or with the first event: an application server may load the
    application in one process and fork the workers from it.
    """

    def __init__(
        self,
        config: AuditConfig,
        *,
        exporter: LogRecordExporter | None = None,
        logger_provider: LoggerProvider | None = None,
        policy: str = "",
    ) -> None:
        """Takes the parts; by default records go to the journal, and from there to the configured endpoint.

        Args:
            config: The configuration.
            exporter: Gets the records in place of the journal.
            logger_provider: Gets the records in place of a provider of our own. It belongs to the caller: it is
                flushed, and never shut down.
            policy: The policy's digest, for the records of its changes.
        """
        self._config = config
        self._proxies = Proxies.of(config)
        self._redactor = Redactor.of(config)
        self._exporter = exporter
        self._provider = logger_provider
        self._policy = policy
        self._make_outbox = (
            partial(Outbox, config, make_transport=transport.maker(config), sent=metrics.sent, policy=policy)
            if exporter is None and logger_provider is None
            else None
        )
        self._stream: Stream | None = None
        self._last: Stream | None = None
        """The one before, until another one begins."""
        self._past = (Counts(), Counts())
        """Of the streams before that one: its own records, and adopted ones."""
        self._is_starting = False
        self.forked()
        _pipelines.add(self)
        metrics.watch(self.seen)

    @property
    def recorder(self) -> Recorder:
        """What facts become records with; it holds the pipeline, and not the other way round."""
        return Recorder(self.emit, self._proxies, self._redactor)

    def start(self) -> Stream:
        """Begins the stream, if there is none. The first event would do so, and wait for the resource's detectors."""
        with self._starting:
            if self._stream is None:
                if self._is_starting:
                    raise RuntimeError("a signal's handler recorded something while the stream began")
                self._is_starting = True
                try:
                    self._stream = self._begin()
                finally:
                    self._is_starting = False
            return self._stream

    def _begin(self) -> Stream:
        stream = Stream(
            self._config,
            make_outbox=self._make_outbox,
            exporter=self._exporter,
            logger_provider=self._provider,
            policy=self._policy,
        )
        if self._last is not None:
            last = self._last.stats()
            self._past = (self._past[0] + settled(last), self._past[1] + settled(last.adopted))
            self._last = None
        self._register()
        return stream

    def _register(self) -> None:
        """Sees to the end of a program without a lifespan."""
        atexit.register(self.shutdown)
        if multiprocessing.parent_process() is not None:  # which ends without `atexit`, before Python 3.13
            Finalize(None, self.shutdown, exitpriority=0)

    def emit(self, fact: Fact) -> None:
        """Hands a fact on. An error of ours is logged with the record's id, and never raised."""
        try:
            (self._stream or self.start()).emit(fact)
        except Exception as error:  # noqa: BLE001 - a request is never broken by its audit
            self.lose()
            # Neither the message nor a traceback: both may carry a client's data into the operational log.
            self._log.say("lost", logging.ERROR, "audit record %s is lost: %s", fact.record_id, error_type(error))

    def lose(self) -> None:
        """Counts a record that no stream has seen."""
        self._unbegun.admit(0)
        self._unbegun.drop(1, "failed")

    def commit(self, fact: Fact) -> Commitment | None:
        """Hands a fact on whose request waits until it is on disk; None where there is no journal. May raise."""
        return (self._stream or self.start()).commit(fact)

    def admit(self) -> Callable[[], None] | None:
        """Keeps a place for a request's record, and gives what lets go of it; None for one that must be refused."""
        return (self._stream or self.start()).admit()

    def stats(self) -> Stats:
        """Gives what became of the stream's records; after its end, of the last one's."""
        stream = self._stream or self._last
        stats = stream.stats() if stream is not None else Stats()
        lost = self._unbegun.counts()
        return total([stats, Stats(**asdict(lost))]) if lost.emitted else stats

    def seen(self) -> metrics.Seen:
        """Gives the sums over all streams that there were: they never go down."""
        stats = self.stats()
        return self._past[0] + stats, self._past[1] + stats.adopted

    def flush(self) -> bool:
        """Commits what is queued, and waits for it within the configured deadline; tells whether that sufficed."""
        return self._stream is None or self._stream.flush()

    def shutdown(self) -> bool:
        """Ends the stream within the configured deadline; tells whether all its records are committed.

        The next event would begin another one.
        """
        atexit.unregister(self.shutdown)
        with self._starting:
            stream, self._stream = self._stream, None
            self._last = stream or self._last
        return stream is None or stream.shutdown()

    def forked(self) -> None:
        """Begins anew, in a forked process too: what its parent had queued stays the parent's."""
        # Another thread of the parent may have held the lock; nobody would ever release it here.
        self._starting = threading.RLock()
        self._is_starting = False
        self._stream = self._last = None
        self._past = (Counts(), Counts())
        self._unbegun = Ledger()
        self._log = Log()


def every() -> list[Pipeline]:
    """Gives those that this process has, whether their applications still exist or not."""
    return list(_pipelines)


def settled(counts: Counts) -> Counts:
    """Leaves out what waits: once its stream has ended, it is the next one's to deliver."""
    return Counts(
        emitted=counts.emitted,
        delivered=counts.delivered,
        dead_lettered=counts.dead_lettered,
        dropped=counts.dropped,
        rejected=counts.rejected,
    )


_pipelines: WeakSet[Pipeline] = WeakSet()


def _forked() -> None:
    for pipeline in list(_pipelines):
        pipeline.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
