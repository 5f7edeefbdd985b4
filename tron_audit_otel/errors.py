"""What this library raises, split by who must act.

Nothing here is ever raised into a request: these errors stop a start, or answer a caller of a tool.
"""

from __future__ import annotations


class AuditError(Exception):
    """Base of every error of this library."""


class ConfigError(AuditError):
    """The operator must mend a setting or the policy file; the message names it, and its value unless it is secret."""


class ArchiveError(AuditError):
    """The Collector's archive cannot be read; the message names the file."""


class ReplayError(AuditError):
    """The Collector does not take what is sent again, and asking again would not help."""


class CollectorError(AuditError):
    """The Collector's own metrics cannot be read; the message names their address."""


class SearchError(AuditError):
    """A SIEM's search does not answer, or not as it should; the message names its address."""


class JournalError(AuditError):
    """The disk refused; ``reason`` is the word under which the ledger counts what that costs."""

    def __init__(self, message: str, reason: str) -> None:
        """Takes what happened, and ``disk_full``, ``journal_full`` or ``disk_failed``."""
        super().__init__(message)
        self.reason = reason
