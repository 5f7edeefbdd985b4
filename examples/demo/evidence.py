"""Asks the destinations what they have, compares it with what was done, and shows it."""

from __future__ import annotations

import string
import time
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from examples.demo.stage import TENANTS
from examples.demo.traffic import NOBODY, Fact

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from examples.demo.stage import Stage

ARCHIVE = "archive"
ARRIVAL_SECONDS_MAX = 60.0
"""The API's batch waits 50 ms, an exporter's queue 1 s, and VictoriaLogs 1 s until it finds what it took."""
SETTLE_SECONDS = 1.5
"""How long to wait for a second copy once all have arrived: longer than an exporter's first wait before a retry."""
POLL_SECONDS = 0.2
NANOSECONDS = 1_000_000_000


@dataclass(frozen=True)
class Record:
    """A record as the archive has it."""

    id: str
    began_ns: int
    source: str
    fact: Fact


@dataclass(frozen=True)
class Evidence:
    """What was done, the records of it, and how often each destination has each of them."""

    expected: tuple[Fact, ...]
    records: tuple[Record, ...]
    found: Mapping[str, Counter[str]]
    """By the destination's name and the record's id."""

    def problems(self) -> list[str]:
        """Say what is missing, too much, or of unknown origin; empty when all is well."""
        return [*self._wrong_facts(), *self._wrong_counts()]

    def _wrong_facts(self) -> Iterator[str]:
        wanted = Counter(self.expected)
        known = Counter({record.id: record.fact for record in self.records}.values())
        for fact in sorted((wanted - known).elements()):
            yield f"no record says: {fact}"
        for fact in sorted((known - wanted).elements()):
            yield f"nothing that was done explains: {fact}"

    def _wrong_counts(self) -> Iterator[str]:
        facts = {record.id: record.fact for record in self.records}
        for name, counts in self.found.items():
            for record_id, fact in facts.items():
                if counts[record_id] != 1:
                    yield f"{name} has {counts[record_id]} instead of 1 of: {fact} ({record_id})"
            for other in sorted(counts.keys() - facts.keys()):
                yield f"{name} has a record that the archive lacks: {other}"


def collect(stage: Stage, expected: Iterable[Fact]) -> Evidence:
    """Ask the destinations until all that was done has arrived, and once more for second copies."""
    expected = tuple(expected)
    deadline = time.monotonic() + ARRIVAL_SECONDS_MAX
    evidence = _ask(stage, expected)
    while not _complete(evidence) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        evidence = _ask(stage, expected)
    time.sleep(SETTLE_SECONDS)
    return _ask(stage, expected)


def _complete(evidence: Evidence) -> bool:
    return all(counts.total() >= len(evidence.expected) for counts in evidence.found.values())


def _ask(stage: Stage, expected: tuple[Fact, ...]) -> Evidence:
    archived = tuple(_records(stage.archive()))
    records = {record.id: record for record in archived}
    found = {ARCHIVE: Counter(record.id for record in archived)}
    stage.store.flush()
    for siem in stage.siems:
        rows = stage.store.query("*", TENANTS[siem])
        found[siem] = Counter(_record_id(row, records.keys()) for row in rows)
    return Evidence(expected, tuple(records.values()), found)


def _record_id(row: Mapping[str, str], known: Iterable[str]) -> str:
    """Find a record's id in what a SIEM has of it. Each SIEM's own schema has another name for the field."""
    values = set(row.values())
    return next((record_id for record_id in known if record_id in values), row.get("_msg", "without a text"))


def _records(requests: Iterable[Mapping[str, Any]]) -> Iterator[Record]:
    for request in requests:
        for resource in request["resourceLogs"]:
            for scope in resource["scopeLogs"]:
                yield from map(_record, scope["logRecords"])


def _record(log_record: Mapping[str, Any]) -> Record:
    # OTLP/JSON has each value with its type: {"stringValue": "alice"}, {"intValue": "204"}.
    values = {each["key"]: next(iter(each["value"].values()), "") for each in log_record["attributes"]}
    actor = str(values.get("audit.actor.id", NOBODY))
    claimed = values.get("audit.actor.claimed")
    return Record(
        id=values["audit.record.id"],
        began_ns=int(log_record["timeUnixNano"]),
        source=values.get("client.address", ""),
        fact=Fact(
            actor=f"{actor} ({claimed}?)" if claimed else actor,
            action=values["audit.action"],
            resource=values["audit.resource"],
            status=str(values.get("http.response.status_code", "")),
            outcome=values["audit.outcome"],
        ),
    )


FACTS = ("time", "actor", "action", "resource", "status", "outcome", "source")
OUTCOME_STYLES = {"success": "green", "failure": "red", "unknown": "yellow"}
WIDE = 160
"""Characters of a line that has room for the destinations' names; below, they are letters."""
NARROW = 120
"""Characters of a line below which the facts share a column: cut into columns, nobody could read them."""


def table(evidence: Evidence, width: int, *, but: Iterable[Record] = ()) -> Table:
    """Show each record once, but for some, and how often each destination has it."""
    shown_before = {record.id for record in but}
    records = [record for record in evidence.records if record.id not in shown_before]
    names = tuple(evidence.found)
    letters = string.ascii_uppercase[: len(names)]
    legend = "" if width >= WIDE else ", ".join(f"{letter} {name}" for letter, name in zip(letters, names, strict=True))
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, caption=legend, caption_justify="right")
    for fact in FACTS if width >= NARROW else [" ".join(FACTS)]:
        shown.add_column(fact, overflow="fold")
    for name in names if width >= WIDE else letters:
        shown.add_column(name, justify="right", no_wrap=True)
    for record in sorted(records, key=lambda each: each.began_ns):
        cells = _cells(record)
        counts = (evidence.found[name][record.id] for name in names)
        shown.add_row(
            *(cells if width >= NARROW else [Text(" ").join(filter(None, cells))]),
            *(Text(str(count), style="green" if count == 1 else "bold red") for count in counts),
        )
    return shown


def _cells(record: Record) -> tuple[Text, ...]:
    """Text and not str throughout: rich would take square brackets in a resource for markup."""
    fact = record.fact
    clock = datetime.fromtimestamp(record.began_ns / NANOSECONDS, UTC)
    outcome = Text(fact.outcome, style=OUTCOME_STYLES[fact.outcome])
    return (
        Text(f"{clock:%H:%M:%S}"),
        Text(fact.actor),
        Text(fact.action),
        Text(fact.resource),
        Text(fact.status),
        outcome,
        Text(record.source),
    )
