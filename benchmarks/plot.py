"""The plot that the README shows. Its colours are read on white and on black: the page behind may be either."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.table import shown
from benchmarks.variants import BARE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from benchmarks.summary import Summary

_PANELS = {
    "throughput_ratio": "throughput, relative to bare\nmore is better",
    "p99_ratio": "p99 at saturation, relative to bare\nless is better",
    "audit_cpu_us": "CPU for audit, µs a request\nless is better",
}
_INK = "#808890"
_FAINT = "#80889055"
_BARE, _OURS, _OTHERS = "#808890", "#2f9e6e", "#d9822b"
_OFF_SCALE = 8
"""A value of so many times the median is cut, and told as a number: the others could not be read otherwise."""
_ROOM = 1.3
"""For the number at the end of the longest bar."""


def scale(values: Sequence[float]) -> float:
    """The end of a panel's axis: the largest value that leaves the others readable."""
    limit = _OFF_SCALE * median(map(abs, values))
    return max((value for value in values if value <= limit), default=0) or 1.0


def plot(summaries: Mapping[str, Summary], file: Path) -> None:
    """Draws the medians as bars, each with a line from the least to the most of all rounds."""
    with mpl.rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "bench",
            "font.family": "sans-serif",
            "font.size": 9,
            "text.color": _INK,
            "axes.labelcolor": _INK,
            "xtick.color": _INK,
            "ytick.color": _INK,
        }
    ):
        figure = Figure(figsize=(9.6, 0.34 * len(summaries) + 1.1), layout="constrained")
        panels = figure.subplots(1, len(_PANELS), sharey=True)
        for panel, (name, title) in zip(panels, _PANELS.items(), strict=True):
            _draw(panel, summaries, name, title)
        # The date would make every drawing another one.
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})


def _draw(panel: Axes, summaries: Mapping[str, Summary], name: str, title: str) -> None:
    end = scale([summary.medians[name] for summary in summaries.values()])
    for row, (variant, summary) in enumerate(summaries.items()):
        value, (least, most) = summary.medians[name], summary.spread[name]
        cut = value > end
        panel.barh(row, min(value, end * _ROOM), color=_colour(variant), alpha=0.9, height=0.66)
        if cut:
            panel.text(end * _ROOM, row, f"{shown(value)} →", ha="right", va="center", color="white", weight="bold")
        else:
            most = min(most, end * _ROOM)
            panel.plot((least, most), (row, row), color=_INK, linewidth=1)
            beside = min(max(value, most, 0) + end * 0.03, end * (_ROOM - 0.15))
            panel.text(beside, row - 0.02, shown(value), va="center")
    panel.set_yticks(range(len(summaries)), list(summaries))
    panel.set_ylim(len(summaries) - 0.4, -0.6)
    panel.set_xlim(0, end * _ROOM)
    panel.set_title(title, fontsize=9)
    panel.tick_params(length=0)
    panel.grid(visible=True, axis="x", color=_FAINT, linewidth=0.6)
    panel.set_axisbelow(True)
    panel.spines[:].set_visible(False)


def _colour(variant: str) -> str:
    if variant == BARE:
        return _BARE
    return _OURS if variant.startswith("ours") else _OTHERS
