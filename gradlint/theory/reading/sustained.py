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
    index = np.arange(steps.size)
    starts = _Extremes(levels).argmax(left, index)
    ends = _Extremes(-levels).argmax(index + 1, right)
    totals = levels[starts] - levels[ends] - steps
    best = int(totals.argmax())
    return Run(float(totals[best]), int(starts[best]), int(ends[best])) if totals[best] > 0.0 else Run(0.0, 0, 0)


def _spans(steps: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return, for each step, the first and last chain index of the widest run in which no step is larger."""
    count = steps.size
    left, right = [0] * count, [count] * count
    sizes = steps.tolist()
    stack: list[int] = []
    for index, size in enumerate(sizes):
        while stack and sizes[stack[-1]] < size:
            right[stack.pop()] = index
        left[index] = stack[-1] + 1 if stack else 0
        stack.append(index)
    return np.array(left, dtype=np.int64), np.array(right, dtype=np.int64)


class _Extremes:
    """A sparse table that finds the indices of the largest values in ranges in constant time, after O(n log n) set-up."""

    def __init__(self, values: NDArray[np.float64]) -> None:
        self._values = values
        self._table = [np.arange(values.size)]
        width = 1
        while 2 * width <= values.size:
            below = self._table[-1]
            first, second = below[:-width], below[width:]
            self._table.append(np.where(values[first] >= values[second], first, second))
            width *= 2

    def argmax(self, low: NDArray[np.int64], high: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the index of the largest value from each index in `low` to that in `high`, both included."""
        levels = np.frexp(high - low + 1)[1] - 1  # the bit length minus one
        found = np.empty_like(low)
        for level, row in enumerate(self._table):
            own = np.flatnonzero(levels == level)
            first, second = row[low[own]], row[high[own] - (1 << level) + 1]
            found[own] = np.where(self._values[first] >= self._values[second], first, second)
        return found
