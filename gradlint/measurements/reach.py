"""How many steps back the gradient of a recurrence reaches, and what a short reach costs.

`benchmarks/recurrent_memory.py` trains 170 small recurrences. Where the last state alone is read, the first of all tokens is
learned by 20 of 24 over up to one reach, by 6 of 15 over up to two (`MEMORY`), and by 1 of 29 over more; a token of two steps
before by 10 of 12 there. The score is multiplied by the share of tasks that are learned, if half are near and the others ask
for something at any distance in the sequence. With a result for every step, the first token is learned by 11 of 12 over more than
two reaches if it is asked for at every step, and by none of 12 if at the last one: the cost is half. Pooled states, where 12 of
12 learn it, cost nothing: every step has a gradient of its own. No decay is an error, for near tasks are learned in spite of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradlint.result import Finding, TimeGrowth

MEMORY = 2.0
"""Reaches over which a recurrence that is read at its last state may learn to remember."""

_SAID = 0.9  # a lower share is explained in the headline
_COSTS = {"last": 0.5, "every": 0.25}  # share of the tasks that only far steps tell


@dataclass(frozen=True, slots=True)
class Reach:
    """The steps (`horizon`) over which the gradient loses three decades, of all `steps`; `reads` is as in `TimeGrowth`."""

    horizon: float
    steps: int
    reads: str

    @property
    def share(self) -> float:
        """The share of tasks that are learned, from 0 to 1."""
        cost = _COSTS.get(self.reads, 0.0)
        return 1.0 - cost * (1.0 - min(1.0, MEMORY * self.horizon / max(self.steps, 1)))

    @property
    def is_short(self) -> bool:
        """Whether the decay belongs in the verdict."""
        return self.share < _SAID

    def __str__(self) -> str:
        return f"shrinks 1000-fold within {max(round(self.horizon), 1)} of {self.steps} steps"


def reach_of(time: TimeGrowth) -> Reach | None:
    """Return the measured reach; None where the gradient does not decay, and for a loop that reads no sequence."""
    fades = time.axis is not None and time.slope is not None and time.slope < 0.0 and bool(time.horizon)
    return Reach(time.horizon or 0.0, time.steps, time.reads) if fades else None


def shortest_reach(measured: Iterable[TimeGrowth], findings: Iterable[Finding] = ()) -> Reach | None:
    """Return the reach that costs most: of the measured recurrences, or, without any, of those that findings predict."""
    found = [reach for reach in map(reach_of, measured) if reach is not None]
    for finding in () if found else findings:
        told = finding.evidence
        if {"horizon", "steps", "reads"} <= told.keys():
            found.append(Reach(float(told["horizon"]), int(told["steps"]), str(told["reads"])))
    return min(found, key=lambda reach: reach.share, default=None)
