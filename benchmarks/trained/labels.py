"""What a case came to: the rule, and its numbers.

A run is "diverged", "stuck", "trains" or "grey" (in between, or still on its way). A case is what its three runs agree on:
"trains" if all train; what more of them are if all fail, "diverged" or "stuck"; "grey" otherwise. README.md says where the cut
lines lie and how the runs are spread about them.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

TRAINS = 0.88  # at most this share of the floor is left, in the last tenth of the steps and on held-out rows
STUCK = 0.96  # at least this share of the floor is left, on average of both
LOST = 2.0  # times the floor or the first loss: worse than any constant
FAR = 10.0  # times the floor: exploded, even if it was never lower and still falls
LATE = 10  # index in `losses` of what the loss was when a fifth of the steps was left


def ending(run: dict[str, Any]) -> tuple[float, float, float]:
    """How much of the floor is left at the end of training and on held-out rows, and the floor (of a run that is not broken).

    The floor counts from zero. Where it is not over zero, the first loss takes its place.
    """
    if run["floor"] > 0 and run["held_out_floor"] > 0:
        return run["last"] / run["floor"], run["held_out"] / run["held_out_floor"], run["floor"]
    unit = abs(run["first"])
    return run["last"] / unit, run["held_out"] / unit, unit


def run_label(run: dict[str, Any]) -> str:
    """The label of one run of `train`."""
    if run["broken"] is not None:
        return "diverged"
    left, held, unit = ending(run)
    later = left - 2.5 * (run["losses"][LATE] - run["last"]) / unit  # half as many steps more at the pace of the last fifth
    if left <= TRAINS and held <= TRAINS:
        return "trains"
    if left > LOST:
        if left > FAR or left > LOST * run["first"] / unit or left > LOST * run["least"] / unit:
            return "diverged"
        return "grey" if later < LOST / 2 else "stuck"
    if (left + held) / 2 >= STUCK:
        return "grey" if later <= TRAINS else "stuck"
    return "grey"


def label(runs: list[dict[str, Any]]) -> str:
    """The label of a case from its runs, one for each seed."""
    counts = Counter(run_label(run) for run in runs)
    if counts["trains"] == len(runs):
        return "trains"
    if counts["trains"] or counts["grey"]:
        return "grey"
    return "diverged" if counts["diverged"] > counts["stuck"] else "stuck"
