"""``tron-audit reconcile``: what a SIEM lacks of the archive, and just that sent again."""

from __future__ import annotations

import argparse
import logging
import math
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from tron_audit_otel import archive, cli_replay, cli_time, collector_metrics, reconcile, search, siem_looks
from tron_audit_otel.cli_queue import required
from tron_audit_otel.cli_stop import EXIT_SIGNAL
from tron_audit_otel.cli_text import EXIT_OK, EXIT_WORK, Answer, Progress, count, duration, logged
from tron_audit_otel.errors import AuditError, CollectorError, ConfigError, SearchError
from tron_audit_otel.tool_config import ToolConfig, metrics_url

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tron_audit_otel.collector_metrics import Collector, Siem
    from tron_audit_otel.reconcile import Lacking
    from tron_audit_otel.search import Search

RECENT_SECONDS = 60
"""The last minute is on its way: to the Collector, from there to the SIEM, and into the SIEM's index."""

PAUSE_SECONDS = 10
"""Before what was not found is asked for again: a SIEM's search shows a record some seconds after it took it."""

WAIT_SECONDS = 120
"""For what waits at the Collector to be worked off, and for what was sent again to be found."""

_LISTED = 20


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    kinds = ", ".join(search.KINDS)
    parser.add_argument(
        "--siem", required=True, metavar="SIEM", help="the SIEM, by the name of its file in collector/siem"
    )
    parser.add_argument(
        "--since",
        required=True,
        metavar="TIME",
        help=f"records that happened or came to the Collector since then, {cli_time.WHEN}",
    )
    parser.add_argument(
        "--until",
        metavar="TIME",
        help=f"no record of that time or later; by default {RECENT_SECONDS} seconds ago, since newer ones are on their "
        "way",
    )
    parser.add_argument("--search", metavar="KIND", help=f"how to ask it, if not by its own search: {kinds}")
    parser.add_argument(
        "--archive", type=Path, metavar="DIR", help="the archive; by default AUDIT_COLLECTOR_DATA/archive"
    )
    parser.add_argument(
        "--collector", type=metrics_url, metavar="URL", help="the Collector's metrics, if not where the settings say"
    )
    parser.add_argument("--missing-to", type=Path, metavar="FILE", help="write the missing ids there, one a line")
    parser.add_argument(
        "--rate", type=_number, default=0, metavar="N", help="records a second at most; by default as many as it takes"
    )
    parser.add_argument(
        "--pause",
        type=_number,
        default=PAUSE_SECONDS,
        metavar="SECONDS",
        help="before what was not found is asked for again (%(default)s): so long may it take until the SIEM's search "
        "shows what it took",
    )
    parser.add_argument(
        "--wait",
        type=_number,
        default=WAIT_SECONDS,
        metavar="SECONDS",
        help="for what waits at the Collector to get through, and then for what was sent again to be found "
        "(%(default)s)",
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what is missing")
    parser.add_argument(
        "--force",
        action="store_true",
        help="send what is missing again although it may still wait at the Collector, or nobody can tell",
    )


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> Answer:
    """Compares, sends what is missing, and asks again.

    The exit code tells how it stands at the end: what was missing and is there now needs nobody. A script that wants to
    know whether something was missing reads ``missing`` of ``--json``.

    Raises:
        ConfigError: An argument or a setting must be mended; the Collector has no such SIEM.
        ArchiveError: The archive cannot be read.
        SearchError: The SIEM does not answer, or not as it should.
    """
    now = datetime.now(UTC)
    span = _span(options, now)
    tools = ToolConfig.from_env(environ)
    kind = _kind(options)
    metrics = options.collector or tools.metrics_url
    run = _Run(
        options=options,
        settings=environ,
        span=span,
        kind=kind,
        directory=(options.archive or tools.archive).absolute(),
        search=search.make(kind, options.siem, tools),
        metrics=metrics,
    )
    try:
        with logged(run.progress, logging.getLogger("tron_audit_otel")):
            return run.run()
    finally:
        run.progress.end()


def _number(text: str) -> float:
    number = float(text)
    if not 0 <= number < math.inf:
        raise ValueError(text)
    return number


_number.__name__ = "number"  # argparse names it so when it is none


def _span(options: argparse.Namespace, now: datetime) -> archive.Span:
    span = cli_time.span(options.since, options.until, now)
    if options.until is not None:
        return span
    until_ns = cli_time.nanoseconds(now - timedelta(seconds=RECENT_SECONDS))
    if span.since_ns >= until_ns:
        raise ConfigError(
            f"--since {options.since} is less than {RECENT_SECONDS} seconds ago: what came since then is on its way"
        )
    return archive.Span(span.since_ns, until_ns)


def _kind(options: argparse.Namespace) -> str:
    kind = options.search or search.USUAL.get(options.siem)
    if kind is None:
        raise ConfigError(f"--search must say how {options.siem} is searched: {', '.join(search.KINDS)}")
    return str(kind)


@dataclass
class _Run:
    options: argparse.Namespace
    settings: Mapping[str, str]
    span: archive.Span
    kind: str
    directory: Path
    search: Search
    metrics: str
    progress: Progress = field(default_factory=Progress)
    reading: archive.Reading = field(default_factory=archive.Reading)
    comparison: reconcile.Comparison = field(default_factory=reconcile.Comparison)
    began_s: float = field(default_factory=time.monotonic)
    missing: dict[str, Lacking] = field(default_factory=dict)
    """Now; what was missing at first is in the comparison."""
    obstacle: str | None = None
    """Why nothing was sent, or cannot be told whether it arrived."""
    replayed: Answer | None = None
    is_silent: bool = False
    """The Collector's metrics cannot be read."""
    mended: int = 0
    percent: float = 0.0

    def run(self) -> Answer:
        collector = self._collector()
        self._compare()
        self._write_missing()
        if self.missing and not self.options.dry_run:
            self._send()
        if collector is not None and not self.options.dry_run and self._has_all():
            self.mended = siem_looks.kept().mended(self.options.siem, self.span, collector)
        return self._answer()

    def _has_all(self) -> bool:
        """Tells whether the SIEM is known to have all there was. With nothing in the archive nobody can tell."""
        unknown = self.missing or self.comparison.unasked or self.reading.removed
        return bool(self.comparison.archived) and not unknown

    # --- compare

    def _compare(self) -> None:
        requests = archive.read(self.directory, self.span, on_read=self._on_read, reading=self.reading, late=True)
        self.comparison = reconcile.compare(requests, self.search, self.span, self._show)
        self.missing = self.comparison.missing
        if not self.missing:
            return
        # Before it is believed: it may have been on its way, or not yet in the SIEM's index.
        self.obstacle = self._obstacle(0 if self.options.dry_run else self.options.wait)
        self.progress.show(f"{count(len(self.missing))} not found; asked for again in {self.options.pause:g} s")
        time.sleep(self.options.pause)
        self.missing = self.comparison.missing = reconcile.ask_again(self.missing, self.search, self.span)

    def _on_read(self, bytes_read: int, bytes_all: int) -> None:
        self.percent = 100 * bytes_read / bytes_all if bytes_all else 100.0

    def _show(self, comparison: reconcile.Comparison) -> None:
        elapsed_s = time.monotonic() - self.began_s
        rate = f", {comparison.archived / elapsed_s:,.0f} a second" if elapsed_s else ""
        read = f"{self.percent:.0f} % of the archive read"
        self.progress.show(
            f"{read}, {count(comparison.archived)} asked for{rate}, {len(comparison.missing):,} not found"
        )

    def _write_missing(self) -> None:
        path = self.options.missing_to
        if path is None:
            return
        try:
            path.write_text(_lines(self.missing), "utf-8")
        except OSError as error:
            raise ConfigError(f"--missing-to {path} cannot be written: {error.strerror}") from error

    # --- what the Collector says

    def _collector(self) -> Collector | None:
        """Asks the Collector before anything else: what it has refused by now was in the archive by now."""
        try:
            collector = collector_metrics.read(self.metrics)
        except CollectorError:
            return None
        self._siem(collector)
        return collector

    def _siem(self, collector: Collector) -> Siem:
        return required(collector, self.options.siem, "--siem")

    def _obstacle(self, seconds_max: float) -> str | None:
        self.progress.show(f"{count(len(self.missing))} not found; waiting for what waits at the Collector")
        try:
            if reconcile.worked_off(lambda: self._siem(collector_metrics.read(self.metrics)), seconds_max):
                return None
        except CollectorError as error:
            self.is_silent = True
            return f"whether they still wait at the Collector nobody can tell: {error}"
        return f"records wait for {self.options.siem} at the Collector, and these may be among them"

    # --- send

    def _send(self) -> None:
        if self.obstacle is not None and not self.options.force:
            self.obstacle += ". Run it again when nothing waits (see `tron-audit status`), or with --force."
            return
        self.obstacle = None
        self.progress.end()
        with _id_file(self.missing) as file:
            try:
                self.replayed = cli_replay.run(self._replay_options(file), self.settings)
            except AuditError as error:  # what is missing is worth telling all the same
                self.obstacle = str(error)
                return
        if self.replayed.code >= EXIT_SIGNAL:
            return
        deadline_s = time.monotonic() + self.options.wait
        try:
            while self.missing:
                self.progress.show(f"{count(len(self.missing))} sent again and not found yet")
                time.sleep(self.options.pause)
                self.missing = reconcile.ask_again(self.missing, self.search, self.span)
                if time.monotonic() >= deadline_s:
                    break
        except SearchError as error:
            self.obstacle = f"whether they have arrived nobody can tell: {error}"

    def _replay_options(self, ids: Path) -> argparse.Namespace:
        """Gives the options of a replay of just these, as if they were typed."""
        parser = argparse.ArgumentParser()
        cli_replay.add(parser)
        typed = ["--to", self.options.siem, "--ids", str(ids), f"--rate={self.options.rate}"]
        typed += ["--since", _iso(self.span.since_ns), "--until", _iso(self.span.until_ns)]
        typed += ["--archive", str(self.directory), "--collector", self.metrics]
        if self.is_silent:  # and it was to be forced
            typed.append("--force")
        return parser.parse_args(typed)

    # --- tell

    def _answer(self) -> Answer:
        comparison, replayed = self.comparison, self.replayed
        missing = comparison.missing
        code = EXIT_WORK if self.missing or self.reading.damaged_in_all or self.reading.removed else EXIT_OK
        if replayed is not None and replayed.code >= EXIT_SIGNAL:
            code = replayed.code
        data: dict[str, object] = {
            "ok": code == EXIT_OK,
            "siem": self.options.siem,
            "search": self.kind,
            "archive": str(self.directory),
            "since": cli_time.text(self.span.since_ns),
            "until": cli_time.text(self.span.until_ns),
            "archived": comparison.archived,
            "found": comparison.found,
            "missing": len(missing),
            "missing_ids": sorted(missing),
            "first": [_described(lacking) for lacking in reconcile.first(missing, _LISTED)],
            "unasked": comparison.unasked,
            "damaged": self.reading.damaged_in_all,
            "files_removed": self.reading.removed,
            "seconds": round(time.monotonic() - self.began_s, 3),
            "dry_run": self.options.dry_run,
            "obstacle": self.obstacle,
            "replay": replayed.data if replayed else None,
            "still_missing": len(self.missing),
            "still_missing_ids": sorted(self.missing),
            "mended": self.mended,
        }
        return Answer(code, data, [*self._compared(), *self._sent(), *self._remarks()])

    def _compared(self) -> Iterator[str]:
        comparison, missing = self.comparison, self.comparison.missing
        yield (
            f"{self.options.siem}, asked by {self.kind}, from {cli_time.text(self.span.since_ns)} to "
            f"{cli_time.text(self.span.until_ns)}:"
        )
        yield (
            f"  {count(comparison.archived)} in the archive, {comparison.found:,} of them at the SIEM, "
            f"{len(missing):,} missing"
        )
        for lacking in reconcile.first(missing, _LISTED):
            deed = f"{lacking.actor or '-'} {lacking.action or '-'}"
            yield f"  {lacking.id}  {cli_time.text(lacking.time_ns)}  {deed}"
        if len(missing) > _LISTED:
            yield f"  and {len(missing) - _LISTED:,} more; --missing-to FILE has all"
        if missing and not comparison.found:
            yield (
                "It has none at all. If that cannot be so, the search looks in the wrong place: see its address, its "
                "tenant or index, and what its key may read."
            )

    def _sent(self) -> Iterator[str]:
        missing, left = self.comparison.missing, self.missing
        if not missing:
            yield "Nothing is missing."
        elif self.options.dry_run:
            yield "Nothing was sent: --dry-run." + (f" Mind that {self.obstacle}." if self.obstacle else "")
        elif self.replayed is None:
            yield f"Nothing was sent: {self.obstacle}"
        else:
            yield from self.replayed.lines
            if self.replayed.code >= EXIT_SIGNAL:
                return
            if self.obstacle is not None:
                yield f"Asked for again: {self.obstacle}"
            elif left:
                yield (
                    f"Found since: {len(missing) - len(left):,}; not found {duration(self.options.wait)} later: "
                    f"{len(left):,}. See `tron-audit status` whether they wait or were refused, and run it again."
                )
            else:
                yield f"Found since: all {len(missing):,}. Nothing is missing any more."

    def _remarks(self) -> Iterator[str]:
        if self.comparison.unasked:
            yield f"Not compared, for want of an id that can be asked for: {count(self.comparison.unasked)}"
        if self.reading.damaged_in_all:
            yield f"Cannot be read in the archive: {count(self.reading.damaged_in_all, 'line')} or records"
        if self.reading.removed:
            yield f"Removed before they could be read: {count(len(self.reading.removed), 'file')}"
        if self.mended:
            yield f"Mended: `tron-audit status` holds {count(self.mended)} no longer against {self.options.siem}."


def _described(lacking: Lacking) -> dict[str, object]:
    time_text = cli_time.text(lacking.time_ns)
    return {"id": lacking.id, "time": time_text, "actor": lacking.actor, "action": lacking.action}


def _lines(ids: Mapping[str, Lacking]) -> str:
    return "".join(f"{text}\n" for text in sorted(ids))


@contextmanager
def _id_file(ids: Mapping[str, Lacking]) -> Iterator[Path]:
    with ExitStack() as stack:
        try:
            file = stack.enter_context(tempfile.NamedTemporaryFile("w", encoding="utf-8", prefix="tron-audit-ids-"))
            file.write(_lines(ids))
            file.flush()
        except OSError as error:
            raise ConfigError(f"TMPDIR: the missing ids cannot be written to a file: {error.strerror}") from error
        yield Path(file.name)


def _iso(time_ns: int) -> str:
    """Gives a time as it is typed, to the microsecond, which is as exact as it was typed."""
    return (datetime.fromtimestamp(0, UTC) + timedelta(microseconds=time_ns // 1000)).isoformat()
