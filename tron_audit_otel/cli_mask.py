"""``tron-audit mask``: what a record would show of a text, and under which mask a secret is found in records."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from tron_audit_otel import redact
from tron_audit_otel.cli_text import EXIT_OK, Answer
from tron_audit_otel.errors import ConfigError
from tron_audit_otel.redact import Redactor

if TYPE_CHECKING:
    import argparse

    from tron_audit_otel.config import AuditConfig

INPUT_BYTES_MAX = 1_048_576


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument(
        "--secret", action="store_true", help="take standard input as one secret, and print the mask to search for"
    )


def run(options: argparse.Namespace, config: AuditConfig) -> Answer:
    """Masks what standard input holds.

    Raises:
        ConfigError: There is too much, or no secret, or no key.
    """
    if sys.stdin.isatty():
        sys.stderr.write("reading standard input, up to Ctrl-D\n")
    raw = sys.stdin.buffer.read(INPUT_BYTES_MAX + 1)
    if len(raw) > INPUT_BYTES_MAX:
        raise ConfigError("standard input must have at most 1 MiB")
    redactor, text = Redactor.of(config), redact.text(raw)
    if not options.secret:
        masked, count = redactor.masked(text)
        data: dict[str, object] = {"ok": True, "masked": count, "text": redact.escape(masked, "\n\t")}
        return Answer(EXIT_OK, data, masked.removesuffix("\n").split("\n"))
    secret = text.removesuffix("\n").removesuffix("\r")
    if not secret:
        raise ConfigError("--secret: standard input holds no secret")
    if config.hash_key is None:
        raise ConfigError(
            "AUDIT_LOG_HASH_KEY is not set: without a key all masks are the same, and none can be searched"
        )
    mask = redactor.mask(secret)
    return Answer(EXIT_OK, {"ok": True, "mask": mask}, [mask])
