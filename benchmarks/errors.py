"""What stops a run: the message says what was measured, what went wrong, and what to do about it."""

from __future__ import annotations


class BenchError(Exception):
    """The run cannot go on, and its figures would mean nothing."""
