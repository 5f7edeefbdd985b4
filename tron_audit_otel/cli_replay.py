"""``tron-audit replay``: sends a span of the archive again, to one SIEM alone."""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from tron_audit_otel import archive, cli_time, collector_metrics, replay, siem_looks, transport
from tron_audit_otel.cli_queue import Queue, find, required
from tron_audit_otel.cli_source import LISTED, Source, StoppedError, some
from tron_audit_otel.cli_stop import EXIT_SIGNAL, stopped
from tron_audit_otel.cli_text import EXIT_CONFIG, EXIT_OK, EXIT_WORK, Answer, Progress, count, duration, size
from tron_audit_otel.config import REPLAY_TO, AuditConfig
from tron_audit_otel.errors import ArchiveError, AuditError, CollectorError, ConfigError, ReplayError
from tron_audit_otel.tool_config import ToolConfig, metrics_url

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping

    from tron_audit_otel.collector_metrics import Collector

SETTLE_SECONDS = 10.0
"""A SIEM that works takes the last batch in two or three; one that refuses it is known by then."""
RATE_MIN = 0.001
"""Records a second: one in a quarter of an hour."""


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument(
        "--to", required=True, metavar="SIEM", help="the SIEM, by the name of its file in collector/siem"
    )
    parser.add_argument(
        "--since", metavar="TIME", help=f"records that happened or came to the Collector since then, {cli_time.WHEN}"
    )
    parser.add_argument("--until", metavar="TIME", help="records that happened before then; by default all there are")
    parser.add_argument(
        "--ids",
        metavar="FILE",
        help="only the records with these ids, one a line; `-` reads them from standard input. Without --since the "
        "whole archive is searched",
    )
    parser.add_argument(
        "--archive", type=Path, metavar="DIR", help="the archive; by default AUDIT_COLLECTOR_DATA/archive"
    )
    parser.add_argument(
        "--collector",
        type=metrics_url,
        metavar="URL",
        help="where the Collector shows its metrics; by default AUDIT_COLLECTOR_METRICS_HOST and _PORT say so",
    )
    parser.add_argument(
        "--rate", type=_rate, default=0.0, metavar="N", help="records a second at most; by default as many as it takes"
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be sent")
    parser.add_argument(
        "--force",
        action="store_true",
        help="do without the Collector's metrics: neither is it asked whether it has this SIEM, in which case all that "
        "is sent would go nowhere, nor how full the SIEM's queue is",
    )


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> Answer:
    """Sends the records, or with ``--dry-run`` counts them.

    Raises:
        ConfigError: An argument or a setting must be mended; the Collector has no such SIEM.
        ArchiveError: The archive cannot be read.
        CollectorError: The Collector's metrics cannot be read.
    """
    now = datetime.now(UTC)
    if options.since is None and options.ids is None:
        raise ConfigError(f"--since or --ids must be given; a time is {cli_time.WHEN}")
    span = cli_time.span(options.since, options.until, now)
    wanted = None if options.ids is None else _ids(options.ids)
    tools = ToolConfig.of_collector(environ)
    config = AuditConfig.from_env({**environ, "AUDIT_LOG_ENABLED": "true"})
    where = options.collector or tools.metrics_url
    # Before the archive is read: what was refused by now is in it.
    collector = None if options.force else _collector(where, options.to)
    directory = (options.archive or tools.archive).absolute()
    progress = Progress()
    with stopped() as stop:
        source = Source(directory, span, wanted, progress, stop)
        try:
            if options.dry_run:
                return _dry_run(source, options.to)
            return _Sending(source, options, config, collector).run()
        finally:
            progress.end()


def _rate(text: str) -> float:
    rate = float(text)
    if rate and not RATE_MIN <= rate < math.inf:
        raise ValueError(text)
    return rate


_rate.__name__ = "number of records a second"  # argparse names it so when it is none


def _ids(name: str) -> set[str]:
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"--ids {name} cannot be read: {reason}") from error
    ids = {line.strip() for line in text.split("\n")} - {""}
    if not ids:
        raise ConfigError(f"--ids {name} holds no id")
    return ids


def _collector(where: str, name: str) -> Collector:
    """Asks the Collector, and makes sure that it has the SIEM: else the records would be taken and go nowhere."""
    try:
        found = collector_metrics.read(where)
    except CollectorError as error:
        raise CollectorError(
            f"{error}. Without it nobody can tell whether this Collector sends to {name}, or how full the queue is; "
            "--force does without"
        ) from error
    required(found, name, "--to")
    return found


def _dry_run(source: Source, to: str) -> Answer:
    first_ns, last_ns = archive.ALWAYS.until_ns, 0
    deeds: Counter[tuple[str, str]] = Counter()
    stopped_by = 0
    try:
        for request in source.requests():
            for record in archive.log_records(request):
                source.records += 1
                time_ns = archive.record_time_ns(record)
                first_ns, last_ns = min(first_ns, time_ns), max(last_ns, time_ns)
                deeds[archive.deed(record)] += 1
    except StoppedError:
        stopped_by = source.stop.signal
    common = deeds.most_common(LISTED)
    first, last = (cli_time.text(first_ns), cli_time.text(last_ns)) if source.records else (None, None)
    code = EXIT_SIGNAL + stopped_by if stopped_by else EXIT_OK if source.is_whole else EXIT_WORK
    data = {
        "ok": code == EXIT_OK,
        "dry_run": True,
        "to": to,
        "records": source.records,
        "first": first,
        "last": last,
        "deeds": [{"actor": actor, "action": action, "records": records} for (actor, action), records in common],
        **source.data(),
    }
    files = [f"  {name}  {count(records)}" for name, records in source.reading.files.items() if records]
    lines = [
        f"Would be sent to {to}: {count(source.records)}" + (f", from {first} to {last}" if first else ""),
        *(["From:", *files] if files else []),
        *(["By:"] if common else []),
        *(f"  {actor or '-'} {action or '-'}  {count(records)}" for (actor, action), records in common),
        *([f"  and {len(deeds) - LISTED:,} more"] if len(deeds) > LISTED else []),
        *source.remarks(),
    ]
    return Answer(code, data, lines)


class _Sending:
    """One replay."""

    def __init__(
        self, source: Source, options: argparse.Namespace, config: AuditConfig, collector: Collector | None
    ) -> None:
        self._source = source
        self._to: str = options.to
        self._rate: float = options.rate
        self._config = config
        self._collector = collector
        siem = find(collector, self._to) if collector is not None else None
        self._queue = (
            Queue(collector, siem, source.stop, source.progress, source.show)
            if collector is not None and siem is not None
            else None
        )
        self._failure: AuditError | None = None
        self._not_taken: list[str] = []
        """Records that the Collector will never take: the id of each, and why."""

    def run(self) -> Answer:
        source, queue = self._source, self._queue
        source.doing = "sent"
        bytes_max = self._config.request_bytes_max
        pace = replay.Pace(
            min(bytes_max, queue.request_bytes_max) if queue else bytes_max, self._config.retry_seconds_max
        )
        with closing(transport.make(self._config)) as sender:
            try:
                replay.replay(
                    source.requests(),
                    self._to,
                    sender,
                    records_per_second=self._rate,
                    pace=pace,
                    on_sent=self._on_sent,
                    before_send=queue.make_room if queue else lambda _: None,
                    on_wait=lambda reason: source.show(f"waiting: {reason}"),
                    on_refused=lambda each, reason: self._not_taken.append(f"{each or 'one without an id'}: {reason}"),
                    stop=source.stop,
                )
            except StoppedError:
                pass
            except (ReplayError, ArchiveError) as error:
                if isinstance(error, ArchiveError) and not source.records:
                    raise
                self._failure = error
        took = queue.took() if queue and source.records and not source.stop.signal else None
        if self._failure is None and took is not None and took < source.records:
            self._failure = self._gone_elsewhere(took)
        mended = self._mended()
        if queue and took is not None:
            source.show(f"{self._to} is given {SETTLE_SECONDS:.0f} s to take what waits")
            queue.settle(SETTLE_SECONDS)
        return self._answer(mended)

    def _on_sent(self, records: int) -> None:
        self._source.records += records
        self._source.show()

    def _gone_elsewhere(self, took: int) -> ReplayError:
        """Says that what was sent is not in the SIEM's queue, which no answer to a sender would."""
        return ReplayError(
            f"only {took:,} of {count(self._source.records)} came to {self._to}'s queue. Either the OTLP endpoint "
            f"{self._config.endpoint} is not of the Collector whose metrics were asked, or that one drops them: the "
            f"processor filter/{self._to} of its configuration must let pass what is marked {REPLAY_TO}={self._to}"
        )

    def _mended(self) -> int | None:
        source = self._source
        is_part = source.wanted is not None or self._failure or source.stop.signal or source.reading.removed
        if self._collector is None or is_part or not source.records:
            return None
        # What cannot be read is in the answer, and no replay could mend it.
        return siem_looks.kept().mended(self._to, source.span, self._collector)

    def _answer(self, mended: int | None) -> Answer:
        source, queue, failure = self._source, self._queue, self._failure
        refused, waiting = (queue.refused, queue.waiting_bytes) if queue else (0, 0)
        # More than once refused, or in the archive no longer.
        absent = max(0, (mended or 0) - source.records - source.reading.repeated)
        seconds = time.monotonic() - source.began_s
        if source.stop.signal:
            code = EXIT_SIGNAL + source.stop.signal
        elif isinstance(failure, ArchiveError):
            code = EXIT_CONFIG
        else:
            is_well = failure is None and source.is_whole and not (refused or self._not_taken or absent)
            code = EXIT_OK if is_well else EXIT_WORK
        data = {
            "ok": code == EXIT_OK,
            "dry_run": False,
            "to": self._to,
            "sent": source.records,
            "seconds": round(seconds, 3),
            "refused_meanwhile": refused,
            "waiting_bytes": waiting,
            "not_taken": self._not_taken,
            "collector_restarted": queue is not None and queue.has_restarted,
            "mended": mended,
            "absent": absent,
            "error": None if failure is None else str(failure),
            "signal": source.stop.signal or None,
            **source.data(),
        }
        first = f"Sent to the Collector for {self._to}: {count(source.records)}, in {duration(seconds)}."
        return Answer(code, data, [first, *self._end(), *self._queued(absent), *source.remarks()])

    def _end(self) -> Iterator[str]:
        source, failure = self._source, self._failure
        if source.is_read and not any(source.reading.files.values()):
            yield "The archive holds nothing of that span."
        if failure is not None:
            yield f"Not all was sent: {failure}"
        if source.stop.signal:
            yield "Interrupted before all was sent."
        if failure is not None or source.stop.signal:
            yield "The same command sends all of it again, under the same ids."
        if self._not_taken:
            yield f"The Collector will never take {count(len(self._not_taken))}: {some(self._not_taken)}"

    def _queued(self, absent: int) -> Iterator[str]:
        to, queue = self._to, self._queue
        if queue and queue.refused:
            yield (
                f"Meanwhile {to} refused {count(queue.refused)} for good: see `tron-audit status`, mend it, and send "
                "them again."
            )
        if queue and queue.has_restarted:
            yield (
                f"The Collector has started anew meanwhile: what {to} refused shortly before is counted nowhere. "
                "`tron-audit reconcile` finds it."
            )
        if queue and queue.waiting_bytes:
            waiting = size(queue.waiting_bytes)
            yield f"In {to}'s queue at the Collector: {waiting}. `tron-audit status` says what becomes of it"
        if absent:
            yield (
                f"`tron-audit status` held {count(absent)} more against {to} than the archive has of that span: they "
                "were refused more than once, or are in the archive no longer. `tron-audit reconcile` tells."
            )
