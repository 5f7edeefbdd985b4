"""The ledger as OpenTelemetry metrics, for whatever meter provider the application has.

Names are those of OpenTelemetry's draft Audit Logging signal (OTEP 0267); what it lacks has a name in their manner.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING
from weakref import WeakMethod

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation

from tron_audit_otel.ledger import Counts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from opentelemetry.metrics import Histogram

    from tron_audit_otel.answer import Fate

METER = "tron_audit_otel"

SECONDS_BOUNDARIES = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
"""Those of OpenTelemetry's conventions for durations; an SDK's own are for milliseconds."""

Seen = tuple[Counts, Counts]
"""What a pipeline has seen of its own records and of adopted ones, since its process began."""

_watched: list[WeakMethod[Callable[[], Seen]]] = []


def watch(seen: Callable[[], Seen]) -> None:
    """Adds what a bound method gives to the metrics of this process, for as long as its object lives."""
    _watched[:] = [each for each in _watched if each() is not None]
    _watched.append(WeakMethod(seen))
    duration()


def sent(seconds: float, fate: Fate) -> None:
    """Counts an attempt to deliver."""
    duration().record(seconds, {"outcome": fate.name.lower()})


@cache
def duration() -> Histogram:
    """Makes the instruments, once a process: an SDK heeds the callbacks of the first one of a name, and no others."""
    meter = metrics.get_meter(METER)

    def counter(name: str, value: Callable[[Counts], int], unit: str, description: str) -> None:
        meter.create_observable_counter(name, [_observing(value)], unit, description)

    record = "{record}"
    counter("audit.records.emitted", lambda counts: counts.emitted, record, "Records made, or adopted.")
    counter("audit.records.exported", lambda counts: counts.delivered, record, "Records that the Collector has.")
    counter(
        "audit.records.dead_lettered",
        lambda counts: counts.dead_lettered,
        record,
        "Records that the Collector will never take, set aside.",
    )
    counter(
        "audit.requests.rejected",
        lambda counts: counts.rejected,
        "{request}",
        "Requests refused because no record could be written.",
    )
    meter.create_observable_counter("audit.records.dropped", [_dropped], record, "Records lost, by reason.")
    meter.create_observable_gauge(
        "audit.queue.depth",
        [_observing(lambda counts: counts.pending)],
        record,
        "Records that wait, in memory and in the journal.",
    )
    return meter.create_histogram(
        "audit.export.duration",
        "s",
        "One attempt to deliver.",
        explicit_bucket_boundaries_advisory=SECONDS_BOUNDARIES,
    )


def _streams() -> Iterable[tuple[str, Counts]]:
    """Gives the sums over all pipelines, under the name that tells them apart."""
    seen = [found() for each in list(_watched) if (found := each()) is not None]
    return (
        ("own", sum((own for own, _ in seen), Counts())),
        ("adopted", sum((adopted for _, adopted in seen), Counts())),
    )


def _observing(value: Callable[[Counts], int]) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observe(_: CallbackOptions) -> Iterable[Observation]:
        return [Observation(value(counts), {"audit.stream": stream}) for stream, counts in _streams()]

    return observe


def _dropped(_: CallbackOptions) -> Iterable[Observation]:
    return [
        Observation(records, {"audit.stream": stream, "reason": reason})
        for stream, counts in _streams()
        for reason, records in counts.dropped.items()
    ]
