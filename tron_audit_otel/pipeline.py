"""What the applications of a process record with: one stream at a time, begun when it is needed, anew after a fork."""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import os
import threading
from functools import partial
from multiprocessing.util import Finalize
from typing import TYPE_CHECKING
from weakref import WeakSet

from tron_audit_otel import transport
from tron_audit_otel.event import error_type
from tron_audit_otel.metrics import Metrics
from tron_audit_otel.outbox import Outbox, Stats
from tron_audit_otel.stream import Stream

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import LogRecordExporter

    from tron_audit_otel.commitment import Commitment
    from tron_audit_otel.config import AuditConfig
    from tron_audit_otel.event import AuditEvent

_logger = logging.getLogger(__name__)


class Pipeline:
    """Takes events, never raises, never waits.

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
        self._exporter = exporter
        self._provider = logger_provider
        self._policy = policy
        self._metrics = Metrics(self.stats)
        self._make_outbox = (
            partial(Outbox, config, make_transport=transport.maker(config), sent=self._metrics.sent, policy=policy)
            if exporter is None and logger_provider is None
            else None
        )
        self._starting = threading.Lock()
        self._stream: Stream | None = None
        self._ended = Stats()
        _pipelines.add(self)

    def start(self) -> Stream:
        """Begins the stream, if there is none. The first event would do so, and wait for the resource's detectors."""
        with self._starting:
            if self._stream is None:
                self._stream = Stream(
                    self._config,
                    make_outbox=self._make_outbox,
                    exporter=self._exporter,
                    logger_provider=self._provider,
                    policy=self._policy,
                )
                self._register()
            return self._stream

    def _register(self) -> None:
        """Sees to the end of a program without a lifespan."""
        atexit.register(self.shutdown)
        if multiprocessing.parent_process() is not None:  # which ends without `atexit`, before Python 3.13
            Finalize(None, self.shutdown, exitpriority=0)

    def emit(self, event: AuditEvent) -> None:
        """Hands an event on. An error of ours is logged with the record's id, and never raised."""
        try:
            (self._stream or self.start()).emit(event)
        except Exception as error:  # noqa: BLE001 - a request is never broken by its audit
            _lost(event, error)

    def commit(self, event: AuditEvent) -> Commitment | None:
        """Hands an event on whose request waits until it is on disk; None where there is no journal. May raise."""
        return (self._stream or self.start()).commit(event)

    def admit(self) -> Callable[[], None] | None:
        """Keeps a place for a request's record, and gives what lets go of it; None for one that must be refused."""
        return (self._stream or self.start()).admit()

    def stats(self) -> Stats:
        """Gives what became of the stream's records; after its end, of the last one's."""
        return self._stream.stats() if self._stream is not None else self._ended

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
        if stream is None:
            return True
        done = stream.shutdown()
        self._ended = stream.stats()
        return done

    def forked(self) -> None:
        """Begins anew in a forked process: what its parent had queued stays the parent's."""
        # Another thread of the parent may have held the lock; nobody would ever release it here.
        self._starting = threading.Lock()
        self._stream = None
        self._ended = Stats()


def every() -> list[Pipeline]:
    """Gives those that this process has, whether their applications still exist or not."""
    return list(_pipelines)


def _lost(event: AuditEvent, error: Exception) -> None:
    # Neither the message nor a traceback: both may carry a client's data into the operational log.
    _logger.error("audit record %s is lost: %s", event.record_id, error_type(error))


_pipelines: WeakSet[Pipeline] = WeakSet()


def _forked() -> None:
    for pipeline in list(_pipelines):
        pipeline.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
