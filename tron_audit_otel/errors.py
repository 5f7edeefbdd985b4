"""What this library raises, split by who must act.

Nothing here is ever raised into a request: these errors stop a start, or answer a caller of a tool.
"""

from __future__ import annotations


class AuditError(Exception):
    """Base of every error of this library."""


class ConfigError(AuditError):
    """The operator must mend a setting or the policy file; the message names it, and its value unless it is secret."""


class JournalError(AuditError):
    """The disk refused; ``reason`` is the word under which the ledger counts what that costs."""

    def __init__(self, message: str, reason: str) -> None:
        """Takes what happened, and ``disk_full``, ``journal_full`` or ``disk_failed``."""
        super().__init__(message)
        self.reason = reason
