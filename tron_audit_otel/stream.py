"""One process's stream of records, from its first to its last: the SDK's queue, the journal behind it, the counts."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from dataclasses import asdict
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk._logs import LoggerProvider, LogRecordLimits
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource

from tron_audit_otel import resource as resources
from tron_audit_otel.context import open_telemetry_context
from tron_audit_otel.event import (
    Action,
    Actor,
    ActorType,
    AuditEvent,
    EventName,
    Outcome,
    System,
    error_type,
    record_id,
)
from tron_audit_otel.exporter import JournalExporter, JournalProcessor, SequencedExporter, envelope
from tron_audit_otel.ledger import Ledger, Stats
from tron_audit_otel.log_record import SCOPE_NAME, to_log_record

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry._logs import LoggerProvider as APILoggerProvider
    from opentelemetry.sdk._logs.export import LogRecordExporter

    from tron_audit_otel.commitment import Commitment
    from tron_audit_otel.config import AuditConfig
    from tron_audit_otel.event import Fact
    from tron_audit_otel.outbox import Announce, Outbox

DISTRIBUTION = "tron-audit-otel"

SYSTEM_RECORDS_MAX = 64
"""Places in the queue that requests cannot take: what is said of a loss must not be lost itself."""

FRAMES_MIN = 4
"""Fit into a journal at least."""

LAST_SECONDS = 0.2
"""After the deadline, for a journal that refuses: to count what is lost with it."""

ACTOR = Actor("tron_audit_otel", ActorType.SYSTEM)

_logger = logging.getLogger(__name__)


class Stream:
    """Takes facts until it is shut down. Nothing here raises or waits but `flush` and `shutdown`."""

    def __init__(
        self,
        config: AuditConfig,
        *,
        make_outbox: Callable[[Announce], Outbox] | None,
        exporter: LogRecordExporter | None,
        logger_provider: APILoggerProvider | None,
        policy: str,
    ) -> None:
        """Starts the SDK's thread, and opens nothing: the first batch opens the journal.

        Args:
            config: The configuration.
            make_outbox: Makes the journal and the way from it to the Collector; None where there is something else.
            exporter: Gets the records in place of the journal.
            logger_provider: Gets the records in place of a provider of our own, and stays its owner's.
            policy: The policy's digest.
        """
        self._config = config
        self._policy = policy
        self._rejects = config.rejects
        self._committer: _Committer | None = None
        self._is_own = logger_provider is None
        self.outbox = make_outbox(self.announce) if make_outbox is not None else None
        self.ledger = self.outbox.ledger if self.outbox else Ledger()
        # The API's type lacks `force_flush`, which nearly every provider has.
        self._sdk: Any = None
        """What is flushed and shut down."""
        self._write: Callable[[Fact], None]
        if self.outbox is not None:
            self._sdk = _journaling(config, self.outbox)
            self._write = self._sdk.put
            self.outbox.start()
        else:
            self._sdk = (
                logger_provider if exporter is None else _provider(config, SequencedExporter(exporter, self.ledger))
            )
            logger = self._sdk.get_logger(SCOPE_NAME, _version())
            self._write = lambda fact: logger.emit(to_log_record(fact.event()))
        self.announce(Action.START, Outcome.SUCCESS, self._settings())

    def emit(self, fact: Fact) -> None:
        """Hands a fact to the SDK's queue. An error of ours is logged with the record's id."""
        # A request's own, where one without a place is refused. What is told besides must find room of its own.
        has_place = self._rejects and not isinstance(fact, AuditEvent)
        queued_max = self._config.queue_records_max + (SYSTEM_RECORDS_MAX if has_place else 0)
        self._emit(fact, queued_max, has_place=has_place)

    def commit(self, fact: Fact) -> Commitment | None:
        """Emits a fact whose request waits until it is on disk; None where there is no journal."""
        if self.outbox is None:
            self.emit(fact)
            return None
        if self._config.on_full == "drop" and self.outbox.obstacle is not None:
            self.emit(fact)
            return None
        commitment = self.outbox.commitments.promise(fact.record_id)
        self.emit(fact)
        try:
            if self._committer is None:
                self._committer = _Committer(self._sdk)
            self._committer.demand.set()
        except RuntimeError:  # no thread can be started; the batch delay has to do
            pass
        return commitment

    def _emit(self, fact: Fact, queued_max: int, *, has_place: bool = False) -> None:
        admitted = self.ledger.admit(queued_max, has_place=has_place)
        try:
            if admitted:
                self._write(fact)
                if not self._is_own:  # what becomes of it there is its owner's to know
                    self.ledger.commit(1)
                    self.ledger.deliver(1)
                return
            reason = (self.outbox and self.outbox.obstacle) or "queue_full"
        except Exception as error:  # noqa: BLE001 - a request is never broken by its audit
            # Neither the message nor a traceback: both may carry a client's data into the operational log.
            _logger.error("audit record %s is lost: %s", fact.record_id, error_type(error))  # noqa: TRY400 - as above
            reason = "failed"
        if self.outbox is not None:
            self.outbox.lose((fact.record_id,), reason)
        else:
            self.ledger.drop(1, reason)

    def announce(self, action: Action, outcome: Outcome, system: System) -> None:
        """Writes a record about the trail itself; where there is no journal, there is nothing to say."""
        if self.outbox is None:
            return
        event = AuditEvent(
            record_id=record_id(),
            name=EventName.SYSTEM,
            began_ns=time.time_ns(),
            duration_ns=0,
            actor=ACTOR,
            action=action,
            resource=resources.named("audit/trail"),
            outcome=outcome,
            context=open_telemetry_context(),
            system=system,
        )
        self._emit(event, self._config.queue_records_max + SYSTEM_RECORDS_MAX)

    def _settings(self) -> System:
        config = self._config
        believed = bool(config.trusted_proxies) or config.proxy_hops is not None
        return System(
            commit=config.commit,
            on_full=config.on_full_for(config.commit),
            trusted_proxies=config.trusted_proxies or None,
            proxy_hops=config.proxy_hops,
            proxy_header=config.proxy_header if believed else None,
            policy_sha256=self._policy,
        )

    def admit(self) -> Callable[[], None] | None:
        """Keeps a place for a request's record, and gives what lets go of it.

        Gives None, and counts it, for a request that must be refused because its record could not be written.
        """
        ledger, outbox = self.ledger, self.outbox
        if outbox is not None and outbox.obstacle is None and ledger.reserve(self._config.queue_records_max):
            return ledger.release
        if outbox is None:
            return _nothing
        ledger.reject()
        return None

    def stats(self) -> Stats:
        """Gives what became of the records so far."""
        return self.outbox.stats() if self.outbox is not None else Stats(**asdict(self.ledger.counts()))

    def flush(self) -> bool:
        """Commits what is queued, and waits for it within the configured deadline; tells whether that sufficed."""
        flush = getattr(self._sdk, "force_flush", None)
        return flush is None or self._in_time(_Call(flush), self._config.shutdown_seconds_max)

    def shutdown(self) -> bool:
        """Commits what is queued and delivers what it can, all within the configured deadline.

        What is not delivered stays in the journal, for the next process. Tells whether all of it is committed.
        """
        if not self._is_own:
            return self.flush()
        deadline = time.monotonic() + self._config.shutdown_seconds_max
        if self.outbox is not None:
            self.outbox.last_words()
        self.announce(Action.STOP, Outcome.SUCCESS, System())
        if self._committer is not None:
            self._committer.end()
        outbox = self.outbox
        if outbox is None:
            return self._in_time(_Call(self._sdk.shutdown), self._config.shutdown_seconds_max)
        call = _Call(self._sdk.shutdown, unthreaded=outbox.closing.set)
        done = call.ended(deadline - time.monotonic())
        outbox.closing.set()
        done = self._in_time(call, 0 if done else LAST_SECONDS)
        if done and (left := self.ledger.queued):
            self.ledger.drop(left, "shutdown")  # emitted while the SDK ended
            outbox.commitments.settle_all()
        outbox.drain(deadline - time.monotonic())
        last_s = max(LAST_SECONDS, deadline - time.monotonic())
        # In a thread: a disk that stalls keeps the journal's locks for as long as it likes.
        _Call(partial(outbox.close, last_s)).ended(last_s + LAST_SECONDS)
        if done and (left := self.ledger.queued):
            self.ledger.drop(left, "shutdown")  # what the shipper still had to say of an adoption
        return done

    def _in_time(self, call: _Call, seconds_max: float) -> bool:
        done = call.ended(seconds_max)
        if not done:
            _logger.warning(
                "%d audit records may be lost: the end took longer than AUDIT_LOG_SHUTDOWN_SECONDS_MAX (%g s)",
                self.ledger.queued,
                self._config.shutdown_seconds_max,
            )
        return done


def _nothing() -> None:
    """There is no place to let go of."""


class _Call:
    """A call of the SDK's in a thread of its own, since none of them keeps a deadline."""

    def __init__(self, call: Callable[[], object], unthreaded: Callable[[], object] = bool) -> None:
        self._thread = threading.Thread(target=call, name="tron-audit-end", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # Python 3.12.0 and 3.12.1 start no thread at exit: nothing in it may wait, then
            unthreaded()
            call()

    def ended(self, seconds_max: float) -> bool:
        """Waits for its end, and tells whether it came."""
        if self._thread.ident is not None:
            self._thread.join(max(0, seconds_max))
        return not self._thread.is_alive()


class _Committer:
    """Commits at once what requests wait for, and what has gathered meanwhile with it."""

    def __init__(self, processor: JournalProcessor) -> None:
        self.demand = threading.Event()
        self._processor = processor
        self._ended = False
        threading.Thread(target=self._run, name="tron-audit-commit", daemon=True).start()

    def _run(self) -> None:
        while not self._ended:
            self.demand.wait()
            self.demand.clear()
            self._processor.force_flush()

    def end(self) -> None:
        """Ends the thread."""
        self._ended = True
        self.demand.set()


def _journaling(config: AuditConfig, outbox: Outbox) -> JournalProcessor:
    # A frame is never most of a journal: it could not be written while another one waits.
    bytes_max = min(config.request_bytes_max, config.journal_bytes_max // FRAMES_MIN)
    around = envelope(_resource(config), SCOPE_NAME, _version())
    return JournalProcessor(JournalExporter(outbox, around, bytes_max), **_batching(config))


def _provider(config: AuditConfig, exporter: LogRecordExporter) -> LoggerProvider:
    provider = LoggerProvider(
        _resource(config),
        shutdown_on_exit=False,  # `shutdown` has a deadline, and this has not
        # Explicit, because the environment's limits are meant for telemetry and would cut an audit record.
        log_record_limits=LogRecordLimits(
            max_log_record_attributes=LogRecordLimits.UNSET,
            max_log_record_attribute_length=LogRecordLimits.UNSET,
        ),
    )
    provider.add_log_record_processor(BatchLogRecordProcessor(exporter, **_batching(config)))
    return provider


def _resource(config: AuditConfig) -> Resource:
    attributes: dict[str, str] = dict(config.resource_attributes)
    if config.service_name is not None:
        attributes[SERVICE_NAME] = config.service_name
    # One stream a process, whatever the operator says of the deployment: sequence numbers count within it.
    attributes[SERVICE_INSTANCE_ID] = str(uuid.uuid4())
    return Resource.create(attributes)


def _batching(config: AuditConfig) -> dict[str, Any]:
    return {
        "schedule_delay_millis": config.batch_delay_ms,
        "max_export_batch_size": min(config.batch_records_max, config.queue_records_max),
        # The ledger admits less than that, so that the SDK itself never drops: it would not say what.
        "max_queue_size": config.queue_records_max + 2 * SYSTEM_RECORDS_MAX,
    }


def _version() -> str:
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:  # vendored, or frozen into one file
        return ""
