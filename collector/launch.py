"""Starts the OpenTelemetry Collector with the configuration files that the environment asks for.

    python3 -m collector.launch [--print] [--binary PATH] [--env-file FILE] [-- extra Collector arguments]

The base file always counts. Setting a SIEM's variables adds its file, setting a token or a certificate adds that of
the authentication or of TLS; a SIEM of which only some variables are set is an error. docker-compose.yaml does the same
by itself. Only the standard library is used: this runs before anything is installed.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import os
import re
import shlex
import shutil
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from collector import build

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

HERE = Path(__file__).resolve().parent
BASE = HERE.parent / "otel-collector-config.yaml"

# Without it the list `service.extensions` of one file replaces that of the file before, and an extension is missing.
FEATURE_GATES = "--feature-gates=confmap.enableMergeAppendOption"

# The upstream image of the version that builder-config.yaml builds. It has every exporter.
IMAGE = "otel/opentelemetry-collector-contrib:0.161.0"

DATA_DIR = "AUDIT_COLLECTOR_DATA"
DATA_DIR_DEFAULT = "/var/lib/tron-audit"
SIEM_TIMEOUT = "AUDIT_SIEM_TIMEOUT"
NAMESPACE = "AUDIT_COLLECTOR_NAMESPACE"

DATA_FREE_MIB_MIN = 64
"""What a queue needs to put back, while the Collector starts, the requests that were under way when it ended."""

# Variables that are ours alone: one that begins so and is unknown is a spelling mistake.
PREFIXES = ("AUDIT_COLLECTOR_", "AUDIT_SIEM_")

_VARIABLE = re.compile(r"\$\{env:(\w+)")
_SECONDS = re.compile(r"(\d+(?:\.\d+)?)s?")
_NAMESPACE = re.compile(r"[a-z0-9._]{1,100}")
_ENV_LINE = re.compile(r"(?:export\s+)?([A-Za-z_]\w*)=(.*)")


class LaunchError(Exception):
    """The operator must change a variable, a file or the binary; the message names it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """A configuration file beside the base, and the variables that turn it on."""

    name: str
    file: Path
    # Every entry must be set, each by one of its alternatives; one entry set turns the part on.
    needs: tuple[tuple[str, ...], ...]
    # Variables that promise something which does not hold without the ones above.
    promises: tuple[str, ...] = ()
    exporter: str = ""

    def wanted(self, environ: Mapping[str, str]) -> bool:
        """Tell whether the environment asks for this part; raise LaunchError when it does so only in part."""
        named = [*(name for entry in self.needs for name in entry), *self.promises]
        given = [name for name in named if environ.get(name)]
        missing = [" or ".join(entry) for entry in self.needs if not any(environ.get(name) for name in entry)]
        if given and missing:
            raise LaunchError(f"{given[0]} is set, so {', '.join(missing)} must be set too ({_shown(self.file)})")
        return bool(given)


def _siem(name: str, exporter: str, *needs: tuple[str, ...]) -> Part:
    return Part(name, HERE / "siem" / f"{name}.yaml", needs, exporter=exporter)


def _secret(name: str) -> tuple[str, str]:
    return (name, f"{name}_FILE")


SIEMS = (
    _siem("elasticsearch", "elasticsearch", ("ELASTICSEARCH_URL",), _secret("ELASTICSEARCH_API_KEY")),
    _siem("elastic-otlp", "otlp_http", ("ELASTIC_OTLP_URL",), _secret("ELASTIC_OTLP_API_KEY")),
    _siem("splunk", "splunk_hec", ("SPLUNK_HEC_URL",), _secret("SPLUNK_HEC_TOKEN")),
    _siem("datadog", "otlp_http", _secret("DD_API_KEY")),
    _siem("http", "otlp_http", ("AUDIT_SIEM_URL",), _secret("AUDIT_SIEM_TOKEN")),
)

OVERLAYS = (
    Part("auth", HERE / "auth.yaml", (_secret("AUDIT_COLLECTOR_TOKEN"),)),
    Part(
        "tls",
        HERE / "tls.yaml",
        (("AUDIT_COLLECTOR_TLS_CERT_FILE",), ("AUDIT_COLLECTOR_TLS_KEY_FILE",)),
        promises=("AUDIT_COLLECTOR_TLS_CLIENT_CA_FILE",),
    ),
)

PARTS = (*OVERLAYS, *SIEMS)
FILES = (BASE, *(part.file for part in PARTS))


def config_files(environ: Mapping[str, str]) -> list[Path]:
    """Return the configuration files that the environment asks for, the base first.

    Raises:
        LaunchError: a SIEM's variables are set only in part; the message names the missing one.
    """
    return [BASE, *(part.file for part in PARTS if part.wanted(environ))]


def flags(files: Sequence[Path]) -> list[str]:
    """Return the Collector's arguments that merge these files."""
    return [FEATURE_GATES, *(f"--config={file}" for file in files)]


def variables(files: Sequence[Path]) -> set[str]:
    """Return the names of the environment variables that these files read."""
    return {name for file in files for name in _VARIABLE.findall(_uncommented(file))}


def collector_environ(environ: Mapping[str, str], files: Sequence[Path]) -> dict[str, str]:
    """Return the environment that the Collector reads these files with.

    A variable that is set but empty counts as not set, as in docker compose: the Collector would take the empty text
    instead of the default. AUDIT_SIEM_TIMEOUT may be `5` or `5s`; the Collector is given the plain number.

    Raises:
        LaunchError: AUDIT_SIEM_TIMEOUT is neither, or AUDIT_COLLECTOR_NAMESPACE can be no part of a data stream's name.
    """
    ours = variables(files)
    result = {name: value for name, value in environ.items() if value or name not in ours}
    if SIEM_TIMEOUT in ours and SIEM_TIMEOUT in result:
        match = _SECONDS.fullmatch(result[SIEM_TIMEOUT].strip())
        if match is None or float(match[1]) == 0:
            raise LaunchError(
                f"{SIEM_TIMEOUT} must be a number of seconds above 0, such as 5 or 5s, not {environ[SIEM_TIMEOUT]!r}"
            )
        result[SIEM_TIMEOUT] = match[1]
    if NAMESPACE in ours and not _NAMESPACE.fullmatch(namespace := result.get(NAMESPACE, "default")):
        raise LaunchError(
            f"{NAMESPACE} must be of small letters, digits, dots and underscores, at most 100, as it becomes part of a "
            f"data stream's name; not {namespace!r}"
        )
    return result


def unavailable(binary: Path) -> list[tuple[str, str]]:
    """Return the SIEMs that this Collector cannot run, each with the reason."""
    exporters = build.components(binary)["exporters"]
    return [(siem.name, _lacks(siem)) for siem in SIEMS if siem.exporter not in exporters]


def require_exporters(binary: Path, files: Sequence[Path]) -> None:
    """Raise LaunchError unless this Collector has the exporter of every SIEM file among these."""
    lacking = dict(unavailable(binary))
    for siem in SIEMS:
        if siem.file in files and siem.name in lacking:
            raise LaunchError(f"{_shown(siem.file)} cannot be used: {binary} {lacking[siem.name]}")


def read_env_file(path: Path) -> dict[str, str]:
    """Read `NAME=value` lines; blank lines and lines that begin with # are passed over.

    Quotes around a whole value are taken off. Nothing is interpolated, and a # after a value belongs to the value.

    Raises:
        LaunchError: the file cannot be read, or a line is none of these.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise LaunchError(f"--env-file {path}: {error.strerror}") from error
    found = {}
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        match = _ENV_LINE.fullmatch(text)
        if match is None:
            # The line itself may hold a secret, so only its number is told.
            raise LaunchError(f"--env-file {path}, line {number}: must be NAME=value")
        found[match[1]] = _unquoted(match[2].strip())
    return found


def require_files(environ: Mapping[str, str], files: Sequence[Path]) -> None:
    """Raise LaunchError unless every file that a `*_FILE` variable of these configuration files names can be used.

    The Collector itself would start, and be refused by every SIEM, or refuse every sender.
    """
    for name in sorted(variables(files)):
        if name.endswith("_FILE") and (value := environ.get(name)):
            try:
                content = Path(value).read_bytes()
            except OSError as error:
                raise LaunchError(f"{name}: {value} cannot be read: {error.strerror}") from None
            if not content.strip():
                raise LaunchError(f"{name}: {value} is empty")


def require_known(environ: Mapping[str, str]) -> None:
    """Raise LaunchError for a variable that begins like ours and that no configuration file reads."""
    known = variables(FILES)
    for name in sorted(environ):
        if name.startswith(PREFIXES) and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise LaunchError(f"{name} is read by no configuration file{hint}")


def runnable(binary: Path) -> Path:
    """Return the path; raise LaunchError unless it can be run."""
    if not os.access(binary, os.X_OK):
        raise LaunchError(f"--binary {binary} cannot be run")
    return binary


def require_data_dir(environ: Mapping[str, str]) -> None:
    """Raise LaunchError unless archive and queues can be written, and have room, where AUDIT_COLLECTOR_DATA says."""
    directory = Path(environ.get(DATA_DIR) or DATA_DIR_DEFAULT).absolute()
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise LaunchError(
            f"{DATA_DIR}: {directory} cannot be written; set it to a directory that can, for archive and queues"
        )
    _require_private(directory)
    free_mib = shutil.disk_usage(existing).free >> 20
    if free_mib < DATA_FREE_MIB_MIN:
        raise LaunchError(
            f"{DATA_DIR}: {directory} has {free_mib} MiB free, and {DATA_FREE_MIB_MIN} are needed: a Collector that "
            "starts on a full disk loses records that wait for a SIEM. Make room first; senders keep theirs"
        )


def _require_private(directory: Path) -> None:
    """Raise LaunchError unless only this user can reach what is there already.

    The Collector's `directory_permissions` count when it makes a directory. Its archive files have mode 0644 whatever
    the umask (its `file` exporter sets that itself), so nothing but their directory guards them.
    """
    queues = directory / "queue"
    below = [directory / "archive", queues, *(sorted(queues.iterdir()) if queues.is_dir() else ())]
    _refuse_others(directory, stat.S_IWGRP | stat.S_IWOTH, owners={os.geteuid(), 0})
    for path in below:
        _refuse_others(path, stat.S_IRWXG | stat.S_IRWXO, owners={os.geteuid()})


def _refuse_others(path: Path, bits: int, owners: Collection[int]) -> None:
    try:
        state = path.lstat()
    except FileNotFoundError:
        return
    if stat.S_ISLNK(state.st_mode):
        raise LaunchError(f"{DATA_DIR}: {path} is a symbolic link, and none is followed; put a directory in its place")
    if state.st_uid not in owners:
        chown = f"chown -R {os.geteuid()} {shlex.quote(str(path))}"
        raise LaunchError(f"{DATA_DIR}: {path} belongs to user {state.st_uid}, not to {os.geteuid()}: {chown}")
    if stat.S_ISDIR(state.st_mode) and state.st_mode & bits:
        mode, chmod = stat.S_IMODE(state.st_mode), f"chmod go{'-w' if not bits & stat.S_IROTH else '='}"
        raise LaunchError(
            f"{DATA_DIR}: {path} has mode {mode:04o}, so that others can reach what is in it: "
            f"{chmod} {shlex.quote(str(path))}"
        )


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> int:
    """Run the command line; replaces this process by the Collector, or returns an exit code."""
    arguments = _parser().parse_args(argv)
    try:
        given = {**(read_env_file(arguments.env_file) if arguments.env_file else {}), **environ}
        require_known(given)
        files = config_files(given)
        settings = collector_environ(given, files)
        require_files(settings, files)
        if arguments.print:
            sys.stdout.writelines(f"{argument}\n" for argument in (*flags(files), *arguments.extra))
            return 0
        require_data_dir(settings)
        binary = runnable(arguments.binary) if arguments.binary else build.otelcol()
        require_exporters(binary, files)
    except (LaunchError, build.BuildError) as error:
        sys.stderr.write(f"collector.launch: {error}\n")
        return 2
    return _execute(binary, [*flags(files), *arguments.extra], settings)


def _execute(binary: Path, arguments: Sequence[str], environ: Mapping[str, str]) -> NoReturn:
    os.umask(0o077)
    os.execve(binary, [str(binary), *arguments], dict(environ))  # noqa: S606 - no shell is wanted


def _parser() -> argparse.ArgumentParser:
    lines = [f"  {part.name:<14} {', '.join(' or '.join(entry) for entry in part.needs)}" for part in PARTS]
    parser = argparse.ArgumentParser(
        prog="python3 -m collector.launch",
        description="Start the OpenTelemetry Collector with the files that the environment asks for.",
        epilog="\n".join(["what turns a file on:", *lines, "", "every variable: .env.example"]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--print", action="store_true", help="print the Collector's arguments, one a line, and stop")
    parser.add_argument(
        "--binary", type=Path, metavar="PATH", help="the Collector to run (default: the one built here)"
    )
    parser.add_argument(
        "--env-file",
        type=Path,
        metavar="FILE",
        help="read NAME=value lines first; the environment wins",
    )
    parser.add_argument("extra", nargs="*", help="after --: passed on to the Collector")
    return parser


def _lacks(siem: Part) -> str:
    return f"has no exporter `{siem.exporter}`; the image {IMAGE} has it"


def _shown(file: Path) -> str:
    return str(file.relative_to(BASE.parent))


def _uncommented(file: Path) -> str:
    lines = file.read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if not line.lstrip().startswith("#"))


def _unquoted(value: str) -> str:
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "\"'"
    return value[1:-1] if quoted else value


if __name__ == "__main__":
    sys.exit(main())
