"""``tron-audit``: for operators."""

from __future__ import annotations

import argparse
import json
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING

from tron_audit_otel import policy_file
from tron_audit_otel.config import AuditConfig, variables
from tron_audit_otel.errors import ConfigError
from tron_audit_otel.pipeline import DISTRIBUTION
from tron_audit_otel.redact import MASK

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

EXIT_OK = 0
EXIT_CONFIG = 2


def main(arguments: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> int:
    """Runs a command; gives the exit code: 0, or 2 for a setting that must be mended."""
    parser = argparse.ArgumentParser(
        prog="tron-audit", description="Tools for the audit trail of FastAPI applications."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {version(DISTRIBUTION)}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    check = commands.add_parser(
        "check",
        help="check the environment and the policy file as an application would at its start",
        description="Reads AUDIT_LOG_* and OTEL_* as an application would at its start, and prints what is in force. "
        "Exit code 0 when all is well, 2 when a setting or the policy file must be mended.",
    )
    check.add_argument("--json", action="store_true", help="print one JSON object")
    return _check(environ, as_json=parser.parse_args(arguments).json)


def _check(environ: Mapping[str, str] | None, *, as_json: bool) -> int:
    try:
        config = AuditConfig.from_env(environ)
        rules = policy_file.load(config.policy_file) if config.policy_file else None
    except ConfigError as error:
        print(json.dumps({"ok": False, "error": str(error)}) if as_json else f"tron-audit: {error}", file=sys.stderr)
        return EXIT_CONFIG
    settings = {
        env.names[0]: MASK if env.secret and getattr(config, field) else getattr(config, field)
        for field, env in variables().items()
    }
    names = [rule.name for rule in rules.rules] if rules else []
    if as_json:
        print(json.dumps({"ok": True, "enabled": config.enabled, "settings": settings, "rules": names}, default=str))
        return EXIT_OK
    if not config.enabled:
        print("Audit is off: AUDIT_LOG_ENABLED is not true. Nothing else was checked.")
        return EXIT_OK
    width = max(map(len, settings))
    for name, value in settings.items():
        print(f"{name:{width}}  {'-' if value in (None, ()) else value}")
    print(f"\nRecords go to {config.endpoint}")
    if rules is None or rules.default_rules:
        names.append(f"{'then' if names else 'only'} the default rules")
    print(f"Policy: {', '.join(names)}")
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
