"""The order of the runs, and what each is compared with: what the machine does meanwhile shall meet all alike."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from benchmarks.variants import BARE

if TYPE_CHECKING:
    from collections.abc import Sequence

BETWEEN_BARE_MAX = 3
"""So many variants stand at most between two runs of the bare application."""


def order(names: Sequence[str], rounds: int, seed: int) -> list[tuple[int, str]]:
    """Tells what to run, each with its round: shuffled anew in each, the bare application first, last and between."""
    chance = random.Random(seed)  # noqa: S311 - nothing to guess
    steps = [(1, BARE)]
    for number in range(1, rounds + 1):
        shuffled = chance.sample(names, len(names))
        for begin in range(0, len(shuffled), BETWEEN_BARE_MAX):
            steps += [(number, name) for name in shuffled[begin : begin + BETWEEN_BARE_MAX]]
            steps.append((number, BARE))
    return steps if names else [(number, BARE) for number in range(1, rounds + 1)]


def neighbours(names: Sequence[str], index: int) -> list[int]:
    """Finds the runs of the bare application before and after a run, of those there are."""
    before = next((i for i in range(index - 1, -1, -1) if names[i] == BARE), None)
    after = next((i for i in range(index + 1, len(names)) if names[i] == BARE), None)
    return [i for i in (before, after) if i is not None]
