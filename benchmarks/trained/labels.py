"""What a case came to: the rule, and its numbers.

A run is "diverged", "stuck", "trains" or "grey" (in between, or still on its way). A case is what its three runs agree on: "trains"
if all train; what more of them are if all fail, "diverged" or "stuck"; "grey" otherwise. README.md says where the cut lines lie and
how the runs are spread about them.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

TRAINS = 0.88  # at most this share of the floor is left, in the last tenth of the steps and on held-out rows
STUCK = 0.96  # at least this share of the floor is left
FALLING = 0.03  # of the floor in the second half of the steps: such a run is slow, not stuck
LOST = 2.0  # times the floor or the first loss: worse than any constant
FAR = 10.0  # times the floor: exploded, even if it was never lower and still falls
HALF_WAY = 7  # index of the middle of the run in `losses`


def run_label(run: dict[str, Any]) -> str:
    """The label of one run of `train`.

    The floor counts from zero. Where it is under zero or none is known, it is replaced by the first loss.
    """
    if run["broken"] is not None:
        return "diverged"
    first, last, floor = run["first"], run["last"], run["floor"]
    unit = floor if floor is not None and floor > 0 else abs(first)
    left, held = last / unit, run["held_out"] / unit
    fell = (run["losses"][HALF_WAY] - last) / unit
    if left <= TRAINS and held <= TRAINS:
        return "trains"
    if left > LOST:
        if left > LOST * first / unit or left > LOST * run["least"] / unit:
            return "diverged"
        if left > FAR:
            return "diverged"
        return "grey" if fell > left / 2 else "stuck"
    if left >= STUCK and held >= STUCK:
        return "grey" if fell > FALLING else "stuck"
    return "grey"


def label(runs: list[dict[str, Any]]) -> str:
    """The label of a case from its runs, one for each seed."""
    counts = Counter(run_label(run) for run in runs)
    if counts["trains"] == len(runs):
        return "trains"
    if counts["trains"] or counts["grey"]:
        return "grey"
    return "diverged" if counts["diverged"] > counts["stuck"] else "stuck"
