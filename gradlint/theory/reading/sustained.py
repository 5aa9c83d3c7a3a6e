"""Growth along a chain of gains: the largest run of steps, its one largest step left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Run:
    """A run of consecutive steps: it starts at chain index `start`, ends at `end` and sums to `decades`."""

    decades: float
    start: int
    end: int


def largest_run(backward: Sequence[float]) -> Run:
    """The run of steps d_i = B_i - B_(i+1) with the largest sum, after its one largest step is left out (DESIGN section 5).

    One step is a head, a stem or the first norm after a small embedding; growth is what many steps share. For every step
    taken as the largest of its run, the best run around it is read from extremes of B; O(n log n). All values must be finite.
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
    """For each step, first and last chain index of the widest run in which no step is larger."""
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
    """Index of the largest value in a range, in constant time after n log n work (a sparse table)."""

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
        """Index of the largest value in low..high, both included."""
        level = (high - low + 1).bit_length() - 1
        row = self._table[level]
        first, second = int(row[low]), int(row[high - (1 << level) + 1])
        return first if self._values[first] >= self._values[second] else second
