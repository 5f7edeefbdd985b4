"""The cost of a record by the attributes that a policy adds to it."""

from __future__ import annotations

import json
import statistics
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from benchmarks.growth.app import EXTRA, ROUTE
from benchmarks.growth.sheet import Column, Micros, Sheet, median, per

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.growth.sheet import Say
    from benchmarks.growth.stage import Effort, Stage

COUNTS = (0, 1, 2, 4, 8)
RATE = 2_000
WARM_SECONDS = 0.5
SHORTER = 0.6
"""Rounds are shorter and more than elsewhere: small differences are looked for."""


@dataclass(frozen=True)
class Row:
    """Records with so many more attributes."""

    attributes: Annotated[int, Column("more attributes")]
    us_per_record: Micros
    more_us: Annotated[float, Column("more than with none, µs", "+.1f")]


@dataclass(frozen=True)
class Slope:
    """The line through all of these."""

    us_per_attribute: Annotated[float, Column("µs/attribute", ".2f")]


def policy(count: int) -> str:
    """Return a policy that records so many of the headers that every request has."""
    rule = {"name": "more", "match": {"route": ROUTE}, **({"headers": list(EXTRA)[:count]} if count else {})}
    return json.dumps({"rules": [rule]})  # JSON is YAML


def measure(stage: Stage, effort: Effort, say: Say) -> list[Sheet]:
    """Run a process for each count side by side, and give each its turn in every round."""
    with ExitStack() as stack:
        gateway = stack.enter_context(stage.gateway())
        emitters = {-1: stack.enter_context(stage.emitter())}
        for count in COUNTS:
            environ = stage.audited(gateway.url, AUDIT_LOG_POLICY_FILE=str(_file(stage, count)))
            emitters[count] = stack.enter_context(stage.emitter(environ))
        for emitter in emitters.values():
            emitter.emit(RATE, WARM_SECONDS)
        taken: dict[int, list[float]] = {count: [] for count in emitters}
        rounds = effort.rounds if effort.rounds == 1 else 2 * effort.rounds
        for number in range(rounds):
            say(f"{RATE:,} requests a second, 0 to {COUNTS[-1]} more attributes: round {number + 1} of {rounds}")
            for count, emitter in emitters.items():
                window = emitter.emit(RATE, effort.seconds * SHORTER)
                taken[count].append(per(window.cpu_s, window.records))
    cost = {count: median(taken[count]) - median(taken[-1]) for count in COUNTS}
    rows = tuple(Row(count, cost[count], cost[count] - cost[0]) for count in COUNTS)
    slope = statistics.linear_regression(COUNTS, list(cost.values())).slope
    return [
        Sheet("attributes", f"By additional attributes, at {RATE:,} requests/s", rows),
        Sheet("slope", "Each attribute", (Slope(slope),)),
    ]


def _file(stage: Stage, count: int) -> Path:
    file = stage.fresh("policy") / "policy.yaml"
    file.write_text(policy(count), encoding="utf-8")
    return file
