"""``tron-audit``: for operators."""

from __future__ import annotations

import io
import json
import logging
import math
import os
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING

from tron_audit_otel import (
    cli_journal,
    cli_mask,
    cli_reconcile,
    cli_replay,
    cli_ship,
    cli_status,
    journal_dir,
    policy_file,
)
from tron_audit_otel.cli_text import EXIT_CONFIG, EXIT_OK, Answer, Parser, Progress, lines, logged
from tron_audit_otel.config import AuditConfig
from tron_audit_otel.errors import AuditError
from tron_audit_otel.policy import Match
from tron_audit_otel.redact import MASK
from tron_audit_otel.settings import environment, variables
from tron_audit_otel.stream import DISTRIBUTION

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping, Sequence

    Run = Callable[[argparse.Namespace, Mapping[str, str]], Answer]

EXIT_INTERRUPTED = 130
"""As shells have it."""

ENVIRONMENT = (
    "Run it as the application's user and with its environment: AUDIT_LOG_JOURNAL_DIR, or by default that user and "
    "OTEL_SERVICE_NAME, say where the journal is. Whether audit is on does not matter."
)


def main(arguments: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> int:
    """Runs a command; gives the exit code: 0, 1 for work to be done, 2 for a setting that must be mended."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal may lack a character
            stream.reconfigure(errors="backslashreplace")
    options = _parser().parse_args(arguments)
    run: Run = options.run
    try:
        with logged(Progress(), logging.getLogger()):
            answer = run(options, environment() if environ is None else environ)
    except AuditError as error:
        said = f"tron-audit: {error}".split("\n")
        print(_json({"ok": False, "error": str(error)}) if options.json else lines(said), file=sys.stderr)
        return EXIT_CONFIG
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    _print(_json(answer.data) if options.json else lines(answer.lines))
    return answer.code


def _json(data: Mapping[str, object]) -> str:
    """Is printable ASCII: JSON escapes all else."""
    return json.dumps(data, default=str)


def _print(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # `| head` has seen enough; and Python's own flush at the end must not fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> Parser:
    parser = Parser(
        prog="tron-audit",
        description="Tools for the audit trail of FastAPI applications.",
        epilog="Exit codes: 0 all is well; 1 there is something to do; 2 a setting must be mended, or the journal "
        "cannot be read.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {version(DISTRIBUTION)}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add(
        commands,
        "check",
        lambda _, environ: _check(environ),
        "check the environment and the policy file as an application would at its start",
        "Reads AUDIT_LOG_* and OTEL_* as an application would at its start, and prints what is in force. "
        "Exit code 0 when all is well, 2 when a setting or the policy file must be mended.",
    )
    cli_status.add(
        _add(
            commands,
            "status",
            cli_status.run,
            "say what became of the records, and what an operator has to do",
            "Shows each process that has a journal, what became of its records, what waits, and what is wrong. Where a "
            "Collector runs it shows each SIEM as well: what it took, what waits for it, what it refused, and the "
            "command that sends that again. It changes nothing but a small file of its own, and may be run at any "
            f"time. {ENVIRONMENT} "
            "Exit code 0 when all is well; 1 when something waits for an operator: an endpoint that must be mended, a "
            "journal that cannot be written, dead letters, damage, losses, records that nobody ships, a process that "
            "says nothing, a SIEM that refuses or takes nothing; 2 when a setting must be mended or the journal cannot "
            "be read.",
        )
    )
    cli_replay.add(
        _add(
            commands,
            "replay",
            cli_replay.run,
            "send a span of the Collector's archive again, to one SIEM alone",
            "Sends records of the archive again through the Collector, to the SIEM that is named and to no other. "
            "They keep their ids. Run it where the Collector runs, with its `.env` and the OTEL_EXPORTER_OTLP_* by "
            "which an application reaches it. "
            "Exit code 0 when the Collector has taken all, 1 when it has not, 2 when a setting must be mended or the "
            "archive cannot be read, 130 after Ctrl-C.",
        )
    )
    cli_reconcile.add(
        _add(
            commands,
            "reconcile",
            cli_reconcile.run,
            "find what a SIEM lacks of the archive, and send just that again",
            "Compares the ids of the archive's records with those that the SIEM's own search returns, names what is "
            "missing, and sends just that again. Run it where the Collector runs, with its `.env`. "
            "Exit code 0 when nothing is missing, or not any more; 1 when something still is, or was not sent; 2 when "
            "a setting must be mended, the archive cannot be read or the SIEM does not answer; 130 after Ctrl-C.",
        )
    )
    cli_mask.add(
        _add(
            commands,
            "mask",
            lambda options, environ: cli_mask.run(options, _config(environ)),
            "show what a record would show of a text; give the mask under which a secret is found",
            "Reads standard input, at most 1 MiB, and prints it without the secrets that the library would mask in a "
            "record. With --secret it takes all of it as one secret, and prints the mask that stands for it in records "
            "made with the same AUDIT_LOG_HASH_KEY: a search for it finds each place where that secret was used. "
            "Exit code 2 when there is too much to read, or no key for --secret.",
        )
    )
    journal = commands.add_parser(
        "journal",
        help="look into the journal on disk, ship it by hand, see what was refused",
        description="Looks into the journal on disk, ships it by hand, and shows what the receiver refused.",
    ).add_subparsers(dest="journal_command", required=True, metavar="COMMAND")
    _add_journal(journal)
    return parser


def _add_journal(commands: argparse._SubParsersAction[Parser]) -> None:
    _add(
        commands,
        "list",
        lambda _, environ: cli_journal.listed(_config(environ)),
        "list the streams of records and their segments",
        "Lists each process's stream of records, with its segments: their size, and the records in them that wait. "
        f"It only reads. {ENVIRONMENT}",
    )
    ship = _add(
        commands,
        "ship",
        lambda options, environ: cli_ship.ship(_config(environ), Progress(), options.seconds),
        "deliver what processes that are gone have left",
        "Takes over what processes that are gone have left, and delivers it to the configured endpoint. It ends when "
        "nothing is left, after --seconds, or by Ctrl-C; what is left then stays on disk for the next process. "
        "Journals of processes that are alive are left alone: those ship them themselves. "
        f"{ENVIRONMENT} "
        "Exit code 0 when all is delivered, 1 when something is left, lost or refused, 2 when a setting must be mended "
        "or the journal cannot be read, 130 after Ctrl-C.",
    )
    ship.add_argument(
        "--seconds", type=_seconds, metavar="N", help="end after N seconds; by default it takes as long as it takes"
    )
    letters = _add(
        commands,
        "dead-letters",
        _dead_letters,
        "list the records that the receiver refuses, show one, or send them again",
        "Lists the records that the receiver said it will never take, and why. They stay until somebody has looked at "
        f"them. {ENVIRONMENT} "
        "Exit code 0 when there is none, or the one to show was shown; 1 when there are some; 2 when a setting must be "
        "mended, the journal cannot be read, or there is none with that id.",
    )
    action = letters.add_mutually_exclusive_group()
    action.add_argument("--show", metavar="ID", help="print one as OTLP/JSON, as a receiver takes it")
    action.add_argument(
        "--retry",
        action="store_true",
        help="send each again to the configured endpoint, and remove what it takes; ends when it takes nothing",
    )


def _add(commands: argparse._SubParsersAction[Parser], name: str, run: Run, summary: str, description: str) -> Parser:
    command = commands.add_parser(name, help=summary, description=description)
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.set_defaults(run=run)
    return command


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < math.inf:
        raise ValueError(text)
    return seconds


_seconds.__name__ = "number of seconds"  # argparse names it so when it is none


def _config(environ: Mapping[str, str]) -> AuditConfig:
    """Reads it as with audit on: a misspelt switch must not pass as "off"."""
    return AuditConfig.from_env({**environ, "AUDIT_LOG_ENABLED": "true"})


def _dead_letters(options: argparse.Namespace, environ: Mapping[str, str]) -> Answer:
    config = _config(environ)
    if options.show is not None:
        return cli_journal.show(config, options.show)
    return cli_journal.retry(config) if options.retry else cli_journal.dead_letters(config)


def _check(environ: Mapping[str, str]) -> Answer:
    enabled = AuditConfig.from_env({"AUDIT_LOG_ENABLED": environ.get("AUDIT_LOG_ENABLED", "")}).enabled
    config = _config(environ)
    rules = policy_file.load(config.policy_file)
    policy_file.check_commits(rules.rules, config)
    if config.journal == "disk":
        journal_dir.foresee(config.journal_path)
    settings = _settings(config, environ) | {"AUDIT_LOG_ENABLED": enabled}
    names = [rule.name for rule in rules.rules]
    blanket = [rule for rule in rules.rules if rule.level == "none" and rule.match == Match()]
    data: dict[str, object] = {"ok": True, "enabled": enabled, "settings": settings, "rules": [*names]}
    width = max(map(len, settings))
    where = config.journal_path if config.journal == "disk" else "memory"
    told = [
        f"{name:{width}}  {_shown(value)}{'' if environ.get(name, '').strip() else '  (default)'}"
        for name, value in settings.items()
    ]
    if rules.default_rules:
        names.append(f"{'then' if names else 'only'} the default rules")
    route = f"Records go to {where}, and from there to {config.endpoint}"
    end = route if enabled else "Audit is off: AUDIT_LOG_ENABLED is not true."
    policy = [f"Policy: {', '.join(names)}"]
    policy += [f"Rule {rule.name!r} leaves out every request that no rule before it matches." for rule in blanket]
    return Answer(EXIT_OK, data, [*told, "", *policy, end])


def _settings(config: AuditConfig, environ: Mapping[str, str]) -> dict[str, object]:
    """Gives each setting as it is in force, under the variable that it comes from."""
    resolved = {
        "otlp_endpoint": config.endpoint,
        "journal_dir": config.journal_path,
        "journal_max_bytes": config.journal_bytes_max,
        "on_full": config.on_full_for(config.commit),
    }
    found: dict[str, object] = {}
    for field, env in variables(AuditConfig).items():
        value = resolved.get(field, getattr(config, field))
        name = next((name for name in env.names if environ.get(name, "").strip()), env.names[-1])
        found[name] = MASK if env.secret and value else value
    return found


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(item if isinstance(item, str) else "=".join(item) for item in value) or "-"
    return "-" if value is None else str(value)


if __name__ == "__main__":
    sys.exit(main())
