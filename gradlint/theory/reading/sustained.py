"""Sustained growth along a chain of gains: the run of steps with the largest sum, without its one largest step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Run:
    """A run of consecutive steps from chain index `start` to `end`, whose sum without its largest step is `decades`."""

    decades: float
    start: int
    end: int


def largest_run(backward: Sequence[float]) -> Run:
    """Return the run of steps d_i = B_i - B_(i+1) with the largest sum, where each sum leaves out its one largest step.

    A single large step is a head, a stem or the first norm after a small embedding, whereas growth is shared by many steps. For
    each step taken as the largest of its run, the best run around it follows from extremes of B. The cost is O(n log n).

    Args:
        backward: Backward gains along a chain, in decades. All must be finite.
    """
    levels = np.asarray(backward, dtype=np.float64)
    steps = levels[:-1] - levels[1:]
    if steps.size == 0:
        return Run(0.0, 0, 0)
    left, right = _spans(steps)
    highest, lowest = _Extremes(levels), _Extremes(-levels)
    best = Run(0.0, 0, 0)
    for index, step in enumerate(steps):
        start = highest.argmax(int(left[index]), index)
        end = lowest.argmax(index + 1, int(right[index]))
        total = float(levels[start] - levels[end] - step)
        if total > best.decades:
            best = Run(total, start, end)
    return best


def _spans(steps: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return, for each step, the first and last chain index of the widest run in which no step is larger."""
    count = steps.size
    left, right = np.zeros(count, dtype=np.int64), np.full(count, count, dtype=np.int64)
    stack: list[int] = []
    for index in range(count):
        while stack and steps[stack[-1]] < steps[index]:
            right[stack.pop()] = index
        left[index] = stack[-1] + 1 if stack else 0
        stack.append(index)
    return left, right


class _Extremes:
    """A sparse table that finds the index of the largest value in a range in constant time, after O(n log n) set-up."""

    def __init__(self, values: NDArray[np.float64]) -> None:
        self._values = values
        self._table = [np.arange(values.size)]
        width = 1
        while 2 * width <= values.size:
            below = self._table[-1]
            first, second = below[:-width], below[width:]
            self._table.append(np.where(values[first] >= values[second], first, second))
            width *= 2

    def argmax(self, low: int, high: int) -> int:
        """Return the index of the largest value from index `low` to `high`, both included."""
        level = (high - low + 1).bit_length() - 1
        row = self._table[level]
        first, second = int(row[low]), int(row[high - (1 << level) + 1])
        return first if self._values[first] >= self._values[second] else second
