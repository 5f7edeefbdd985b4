"""``tron-audit reconcile``: what a SIEM lacks of the archive, and just that sent again."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from tron_audit_otel.cli_text import Answer


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> Answer:
    """Runs it."""
    raise NotImplementedError
