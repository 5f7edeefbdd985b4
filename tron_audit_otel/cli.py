"""``tron-audit``: for operators."""

from __future__ import annotations

import argparse
import json
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING

from tron_audit_otel import policy_file
from tron_audit_otel.config import AuditConfig, environment, variables
from tron_audit_otel.errors import ConfigError
from tron_audit_otel.stream import DISTRIBUTION
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
    return _check(environment() if environ is None else environ, as_json=parser.parse_args(arguments).json)


def _check(environ: Mapping[str, str], *, as_json: bool) -> int:
    try:
        enabled = AuditConfig.from_env({"AUDIT_LOG_ENABLED": environ.get("AUDIT_LOG_ENABLED", "")}).enabled
        # Checked as it would be with audit on: a misspelt switch must not pass as "off".
        config = AuditConfig.from_env({**environ, "AUDIT_LOG_ENABLED": "true"})
        rules = policy_file.load(config.policy_file)
    except ConfigError as error:
        print(json.dumps({"ok": False, "error": str(error)}) if as_json else f"tron-audit: {error}", file=sys.stderr)
        return EXIT_CONFIG
    settings = _settings(config, environ) | {"AUDIT_LOG_ENABLED": enabled}
    names = [rule.name for rule in rules.rules]
    if as_json:
        print(json.dumps({"ok": True, "enabled": enabled, "settings": settings, "rules": names}, default=str))
        return EXIT_OK
    width = max(map(len, settings))
    for name, value in settings.items():
        origin = "" if environ.get(name, "").strip() else "  (default)"
        print(f"{name:{width}}  {_shown(value)}{origin}")
    if rules.default_rules:
        names.append(f"{'then' if names else 'only'} the default rules")
    print(f"\nPolicy: {', '.join(names)}")
    print(f"Records go to {config.endpoint}" if enabled else "Audit is off: AUDIT_LOG_ENABLED is not true.")
    return EXIT_OK


def _settings(config: AuditConfig, environ: Mapping[str, str]) -> dict[str, object]:
    """Gives each setting as it is in force, under the variable that it comes from."""
    found: dict[str, object] = {}
    for field, env in variables().items():
        value = config.endpoint if field == "otlp_endpoint" else getattr(config, field)
        name = next((name for name in env.names if environ.get(name, "").strip()), env.names[-1])
        found[name] = MASK if env.secret and value else value
    return found


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(f"{key}={item}" for key, item in value) or "-"
    return "-" if value is None else str(value)


if __name__ == "__main__":
    sys.exit(main())
