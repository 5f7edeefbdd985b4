"""From an event to OpenTelemetry's SDK: the composition root of everything behind the middleware."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import uuid
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING
from weakref import WeakSet

from opentelemetry.sdk._logs import LoggerProvider, LogRecordLimits
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource

from tron_audit_otel.event import error_type
from tron_audit_otel.exporter import SequencedExporter, otlp_exporter
from tron_audit_otel.log_record import SCOPE_NAME, to_log_record

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry._logs import Logger
    from opentelemetry._logs import LoggerProvider as APILoggerProvider
    from opentelemetry.sdk._logs.export import LogRecordExporter

    from tron_audit_otel.config import AuditConfig
    from tron_audit_otel.event import AuditEvent

DISTRIBUTION = "tron-audit-otel"

_logger = logging.getLogger(__name__)


class Pipeline:
    """Takes events, never raises, never waits.

    The thread starts with the application's lifespan, or with the first event, and the socket with the first batch: an
    application server may load the application in one process and fork the workers from it. After a fork the SDK
    starts its thread and its stream anew.
    """

    def __init__(
        self,
        config: AuditConfig,
        *,
        exporter: LogRecordExporter | None = None,
        logger_provider: APILoggerProvider | None = None,
    ) -> None:
        """Takes the parts; by default records go by OTLP to the configured endpoint.

        Args:
            config: The configuration.
            exporter: Gets the records in place of the OTLP exporter.
            logger_provider: Gets the records in place of a provider of our own. It belongs to the caller: it is
                flushed, and never shut down.
        """
        self._config = config
        self._make_exporter: Callable[[], LogRecordExporter] = (
            (lambda: exporter) if exporter is not None else partial(otlp_exporter, config)
        )
        self._given_provider = logger_provider
        self._provider: APILoggerProvider | None = None
        self._logger: Logger | None = None
        self._starting = threading.Lock()
        _pipelines.add(self)

    def emit(self, event: AuditEvent) -> None:
        """Hands an event to the SDK's queue. An error of ours is logged with the record's id, and never raised."""
        try:
            (self._logger or self.start()).emit(to_log_record(event))
        except Exception as error:  # noqa: BLE001 - a request is never broken by its audit
            # Neither the message nor a traceback: both may carry a client's data into the operational log.
            _logger.error("audit record %s is lost: %s", event.record_id, error_type(error))  # noqa: TRY400 - as above

    def start(self) -> Logger:
        """Starts the thread, if it does not run. The first event would do so, and wait for the resource's detectors."""
        with self._starting:
            if self._logger is None:
                self._provider = self._given_provider or self._own_provider()
                self._logger = self._provider.get_logger(SCOPE_NAME, _version())
                atexit.register(self.shutdown)  # for a program without a lifespan
            return self._logger

    def _own_provider(self) -> LoggerProvider:
        config = self._config
        attributes: dict[str, str] = dict(config.resource_attributes)
        if config.service_name is not None:
            attributes[SERVICE_NAME] = config.service_name
        # One stream a process, whatever the operator says of the deployment: sequence numbers count within it.
        attributes[SERVICE_INSTANCE_ID] = str(uuid.uuid4())
        provider = LoggerProvider(
            Resource.create(attributes),
            shutdown_on_exit=False,  # `shutdown` has a deadline, and this has not
            # Explicit, because the environment's limits are meant for telemetry and would cut an audit record.
            log_record_limits=LogRecordLimits(
                max_log_record_attributes=LogRecordLimits.UNSET,
                max_log_record_attribute_length=LogRecordLimits.UNSET,
            ),
        )
        provider.add_log_record_processor(
            BatchLogRecordProcessor(
                SequencedExporter(self._make_exporter),
                schedule_delay_millis=config.batch_delay_ms,
                max_export_batch_size=min(config.batch_records_max, config.queue_records_max),
                max_queue_size=config.queue_records_max,
            )
        )
        return provider

    def flush(self) -> bool:
        """Exports what is queued, and waits for it within the configured deadline; tells whether that sufficed."""
        return self._within_deadline("force_flush")

    def shutdown(self) -> bool:
        """Flushes, then ends the thread and the connection, all within the configured deadline.

        The next event would start them anew.
        """
        atexit.unregister(self.shutdown)
        done = self.flush() if self._given_provider is not None else self._within_deadline("shutdown")
        self._logger = self._provider = None
        return done

    def _within_deadline(self, method: str) -> bool:
        call = getattr(self._provider, method, None)
        if call is None:
            return True
        # The SDK keeps no deadline of its own here: its flush waits as long as the exporter does.
        worker = threading.Thread(target=call, name=f"tron-audit-{method}", daemon=True)
        try:
            worker.start()
        except (
            RuntimeError
        ):  # Python 3.12.0 and 3.12.1 start no thread at exit; the exporter's own time-out bounds this
            call()
            return True
        worker.join(self._config.shutdown_seconds_max)
        if worker.is_alive():
            _logger.warning(
                "audit records may be lost: %s took longer than AUDIT_LOG_SHUTDOWN_SECONDS_MAX (%g s)",
                method,
                self._config.shutdown_seconds_max,
            )
        return not worker.is_alive()


_pipelines: WeakSet[Pipeline] = WeakSet()


def _renew_locks() -> None:
    """Another thread of the parent may have held one at the fork; nobody would ever release it in the child."""
    for pipeline in _pipelines:
        pipeline._starting = threading.Lock()  # noqa: SLF001 - the class's own business, for all its objects


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)


def _version() -> str:
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:  # vendored, or frozen into one file
        return ""
