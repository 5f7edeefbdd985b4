"""What is compared: one application, with and without audit, by their names in the results."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

BARE = "bare"


class Capture(StrEnum):
    """What the application does about audit."""

    NONE = "none"
    OURS = "ours"
    STOCK = "stock"
    POST = "post"


class Fault(StrEnum):
    """What the Collector does while the load runs."""

    ALIVE = "alive"
    DEAD = "dead"
    """Nothing listens at its address."""
    HUNG = "hung"
    """It accepts connections, and never answers."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to audit, and what happens to it."""

    name: str
    about: str
    capture: Capture = Capture.OURS
    commit: str = "batch"
    fault: Fault = Fault.ALIVE
    freezes: bool = False
    """The application calls `gc.freeze` once it has started."""


def _frozen(commit: str) -> Variant:
    about = f"instrument(app), AUDIT_LOG_COMMIT={commit}, and gc.freeze() at the application's start"
    return Variant(f"ours_{commit}_frozen", about, commit=commit, freezes=True)


def _ours(commit: str, fault: Fault) -> Variant:
    dead = fault is not Fault.ALIVE
    return Variant(
        f"ours_{commit}" + (f"_{fault}" if dead else ""),
        f"instrument(app), AUDIT_LOG_COMMIT={commit}, the Collector {fault}",
        commit=commit,
        fault=fault,
    )


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant(BARE, "FastAPI alone", Capture.NONE),
        *(_ours(commit, fault) for fault in Fault for commit in ("batch", "response")),
        *(_frozen(commit) for commit in ("batch", "response")),
        Variant("stock_otlp", "the SDK's Logger, batch processor and OTLP exporter as they come", Capture.STOCK),
        Variant("direct_post", "a new HTTP client and an awaited POST for each request, to VictoriaLogs", Capture.POST),
    )
}
"""In the order in which they are shown."""
