"""Sustained growth along a chain of gains: the run of steps with the largest sum, without its one largest step."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Run:
    """A run of consecutive steps from chain index `start` to `end`, whose sum without its largest step is `decades`."""

    decades: float
    start: int
    end: int


def largest_run(backward: Sequence[float]) -> Run:
    """Return the run of steps d_i = B_i - B_(i+1) with the largest sum, where each sum leaves out its one largest step.

    A single large step is a head, a stem or the first norm after a small embedding, whereas growth is shared by many steps. For
    each step taken as the largest of its run, the best run around it follows from extremes of B. The cost is O(n).

    Args:
        backward: Backward gains along a chain, in decades. All must be finite.
    """
    levels = [float(level) for level in backward]
    steps = [above - below for above, below in itertools.pairwise(levels)]
    best = Run(0.0, 0, 0)
    for step, start, end in zip(steps, _starts(levels, steps), _ends(levels, steps), strict=True):
        total = levels[start] - levels[end] - step
        if total > best.decades:
            best = Run(total, start, end)
    return best


def _starts(levels: Sequence[float], steps: Sequence[float]) -> list[int]:
    """Return, for each step, the first index of the highest level in the widest run that ends there and has no larger step."""
    found = list(range(len(steps)))
    waiting: list[int] = []
    for index, step in enumerate(steps):
        while waiting and steps[waiting[-1]] < step:
            start = found[waiting.pop()]
            if levels[start] >= levels[found[index]]:
                found[index] = start
        waiting.append(index)
    return found


def _ends(levels: Sequence[float], steps: Sequence[float]) -> list[int]:
    """Return, for each step, the first index of the lowest level in the widest run that begins there and has no larger step."""
    found = list(range(1, len(steps) + 1))
    waiting: list[int] = []
    for index in reversed(range(len(steps))):
        while waiting and steps[waiting[-1]] <= steps[index]:
            end = found[waiting.pop()]
            if levels[end] < levels[found[index]]:
                found[index] = end
        waiting.append(index)
    return found
