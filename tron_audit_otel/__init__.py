"""OpenTelemetry audit instrumentation for FastAPI: who did what, to which resource, from where, and did it work.

>>> import tron_audit_otel as audit
>>> audit.instrument(app)  # doctest: +SKIP
"""

from __future__ import annotations

from tron_audit_otel.config import AuditConfig
from tron_audit_otel.context import annotate, claim_actor, execution, record, set_actor
from tron_audit_otel.errors import AuditError, ConfigError, JournalError
from tron_audit_otel.event import Action, ActorType, Outcome
from tron_audit_otel.instrumentation import AuditInstrumentor, instrument, stats, uninstrument
from tron_audit_otel.ledger import Counts, Stats
from tron_audit_otel.run import Run

__all__ = [
    "Action",
    "ActorType",
    "AuditConfig",
    "AuditError",
    "AuditInstrumentor",
    "ConfigError",
    "Counts",
    "JournalError",
    "Outcome",
    "Run",
    "Stats",
    "annotate",
    "claim_actor",
    "execution",
    "instrument",
    "record",
    "set_actor",
    "stats",
    "uninstrument",
]
