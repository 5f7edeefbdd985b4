"""All runs, summed up by variant: medians, the least and the most, and ratios to the bare application beside them."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import dataclass
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from benchmarks.order import neighbours
from benchmarks.run import HALF_LOAD
from benchmarks.variants import BARE, VARIANTS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from benchmarks.run import Run

_COMPARED = {
    "throughput_ratio": "throughput_rps",
    "p50_ratio": "p50_ms",
    "p99_ratio": "p99_ms",
    "p999_ratio": "p999_ms",
    "loop_lag_p99_ratio": "loop_lag_p99_ms",
}
RATIOS = {
    **_COMPARED,
    **{HALF_LOAD + ratio: HALF_LOAD + figure for ratio, figure in _COMPARED.items() if ratio != "throughput_ratio"},
}
"""Each ratio, and the figure that it is of."""

AUDIT_CPU = "audit_cpu_us"
"""What a request costs beyond the bare application, on all threads of the process."""

KEPT_MIN = 0.97
_DIGITS = 4


@dataclass(frozen=True, slots=True)
class Summary:
    """One variant over all rounds."""

    medians: dict[str, float]
    spread: dict[str, tuple[float, float]]
    """The least and the most."""
    requests: int
    delivered: int
    lost: int
    kept_rate: bool
    """Whether it did what was asked of it in the second phase. If not, that phase was a saturation as well."""

    def plain(self) -> dict[str, Any]:
        """What the file of results has."""
        return {
            **{name: _rounded(value) for name, value in self.medians.items()},
            "requests": self.requests,
            "delivered": self.delivered,
            "lost": self.lost,
            "half_load_kept": self.kept_rate,
            "spread": {name: [_rounded(least), _rounded(most)] for name, (least, most) in self.spread.items()},
        }


def summed_up(runs: Sequence[Run], half_rps: float) -> dict[str, Summary]:
    """Sums up every variant that was run, in the order in which they are shown.

    Args:
        runs: In the order in which they were made.
        half_rps: The rate that was asked for in the second phase.
    """
    figures: dict[str, list[Mapping[str, float]]] = defaultdict(list)
    for index, run in enumerate(runs):
        figures[run.variant].append({**run.figures, **_compared(runs, index)})
    found = {}
    for name in VARIANTS:
        mine = [run for run in runs if run.variant == name]
        if not mine:
            continue
        values = {key: [each[key] for each in figures[name]] for key in figures[name][0]}
        medians = {key: median(each) for key, each in values.items()}
        requests, delivered = sum(run.requests for run in mine), sum(run.delivered for run in mine)
        found[name] = Summary(
            medians=medians,
            spread={key: (min(each), max(each)) for key, each in values.items()},
            requests=requests,
            delivered=delivered,
            lost=0 if name == BARE else requests - delivered,
            kept_rate=medians[f"{HALF_LOAD}throughput_rps"] >= KEPT_MIN * half_rps,
        )
    return found


def _compared(runs: Sequence[Run], index: int) -> dict[str, float]:
    """Compares a run with the bare ones beside it, and a bare one with all of them, which shows how steady they are."""
    run, names = runs[index], [each.variant for each in runs]
    if run.variant == BARE:
        against = [each.figures for each in runs if each.variant == BARE]
        middle: Callable[[list[float]], float] = median
    else:
        against = [runs[i].figures for i in neighbours(names, index)]
        middle = fmean

    def bare(figure: str) -> float:
        return middle([each[figure] for each in against])

    ratios = {name: run.figures[figure] / (bare(figure) or math.inf) for name, figure in RATIOS.items()}
    return {**ratios, AUDIT_CPU: run.figures["cpu_us"] - bare("cpu_us")}


def results(
    summaries: Mapping[str, Summary], machine: Mapping[str, object], versions: Mapping[str, str]
) -> dict[str, Any]:
    """What the file of results holds."""
    variants = {name: summary.plain() for name, summary in summaries.items()}
    return {"variants": variants, "machine": dict(machine), "versions": dict(versions)}


def as_json(found: Mapping[str, Any]) -> str:
    """The file's text."""
    return json.dumps(found, indent=2) + "\n"


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
