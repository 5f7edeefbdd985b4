"""The ledger as OpenTelemetry metrics, for whatever meter provider the application has.

Names are those of OpenTelemetry's draft Audit Logging signal (OTEP 0267); what it lacks has a name in their manner.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakMethod

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tron_audit_otel.answer import Fate
    from tron_audit_otel.ledger import Counts
    from tron_audit_otel.outbox import Stats

METER = "tron_audit_otel"


class Metrics:
    """Observes one pipeline for as long as it lives."""

    def __init__(self, stats: Callable[[], Stats]) -> None:
        """Takes the bound method that gives the counts; it is not kept alive."""
        weak = WeakMethod(stats)

        def observe(value: Callable[[Counts], int]) -> Callable[[CallbackOptions], Iterable[Observation]]:
            def callback(_: CallbackOptions) -> Iterable[Observation]:
                if (found := weak()) is None:
                    return []
                seen = found()
                return [
                    Observation(value(seen), {"audit.stream": "own"}),
                    Observation(value(seen.adopted), {"audit.stream": "adopted"}),
                ]

            return callback

        def dropped(_: CallbackOptions) -> Iterable[Observation]:
            if (found := weak()) is None:
                return []
            seen = found()
            return [
                Observation(records, {"audit.stream": stream, "reason": reason})
                for stream, counts in (("own", seen), ("adopted", seen.adopted))
                for reason, records in counts.dropped.items()
            ]

        meter = metrics.get_meter(METER)
        unit = "{record}"
        meter.create_observable_counter(
            "audit.records.emitted", [observe(lambda counts: counts.emitted)], unit, "Records made, or adopted."
        )
        meter.create_observable_counter(
            "audit.records.exported",
            [observe(lambda counts: counts.delivered)],
            unit,
            "Records that the Collector has.",
        )
        meter.create_observable_counter(
            "audit.records.dead_lettered",
            [observe(lambda counts: counts.dead_lettered)],
            unit,
            "Records that the Collector will never take, set aside.",
        )
        meter.create_observable_counter("audit.records.dropped", [dropped], unit, "Records lost, by reason.")
        meter.create_observable_counter(
            "audit.requests.rejected",
            [observe(lambda counts: counts.rejected)],
            "{request}",
            "Requests refused because no record could be written.",
        )
        meter.create_observable_gauge(
            "audit.queue.depth", [observe(lambda counts: counts.pending)], unit, "Records in memory and in the journal."
        )
        self._duration = meter.create_histogram("audit.export.duration", "s", "One attempt to deliver.")

    def sent(self, seconds: float, fate: Fate) -> None:
        """Counts an attempt to deliver."""
        self._duration.record(seconds, {"outcome": fate.name.lower()})
