"""The outlook of a run that ended no better than the best constant: whether more steps would have brought it below."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradlint.measurements.rehearsal import Outlook, below
from gradlint.probe.experiments.training import Run
from gradlint.recipe import Recipe

PLANNED = 1e5  # steps of a long run: published ones of small models take 1e3 to 1e5 (ResNet on CIFAR-10: 6.4e4)
FEWEST = 20  # steps from which a trend is read
ERRORS = 2.0  # standard errors of a slope that count as chance
GROWING = 1.1  # a fall that is so many times as fast in the last quarter as in the one before is leaving a plateau
SEEN = 1e-5  # of the loss in a quarter: a hundred times the resolution of float32
REWRITTEN = 1.0  # sum of the relative changes of a matrix in half a run: long enough to replace what was drawn
OVERWRITTEN = 10.0  # the same over the whole run, for long steps after which units are dead and nothing changes any more
NEAR = 0.2  # of the best constant: a loss that levels off does so there, and one that is higher still falls towards it
FAR = 1000.0  # times the best constant: a first loss over it is not that of a model at a usual scale
DOWN = 10.0  # times the best constant: such a loss has come down if it ends lower


@dataclass(frozen=True)
class _Trend:
    """A line through losses: how much they fall in one step, and the standard error of that."""

    fall: float
    error: float

    @classmethod
    def of(cls, losses: Sequence[float]) -> _Trend:
        """Fit a line by least squares. The error includes the resolution of float32, in which losses are computed."""
        values = np.asarray(losses, np.float64)
        steps = np.arange(len(values)) - (len(values) - 1) / 2.0
        spread = float(steps @ steps)
        slope = float(steps @ values) / spread
        rest = values - values.mean() - slope * steps
        noise = math.sqrt(float(rest @ rest) / max(len(values) - 2, 1))
        rounding = float(np.finfo(np.float32).eps) * float(np.abs(values).max())
        return cls(-slope, math.hypot(noise, rounding) / math.sqrt(spread))


def outlook(run: Run, recipe: Recipe, last: float, chance: float, *, varies: bool) -> Outlook | None:
    """Return what more steps would have done, or None if the loss fell below the best constant or falls steadily towards it.

    The loss is extrapolated along a straight line through the second half of the run, at the learning rate after the warm-up. A
    line is fair to slow recipes: gradient descent at a small rate follows it, and a model that leaves a plateau is faster. What
    the line brings down within PLANNED steps is never stuck if the line is certain. If it is not:

    - SLOW: even the steepest line that the noise allows needs more than PLANNED steps.
    - STUCK: the updates together were as long as the weights, so that the recipe had its chance, and the loss shows no trend.
    - OPEN: neither, so that the run was too short to tell.

    Args:
        run: The record of a run that did not end early.
        recipe: The recipe of the run.
        last: The loss at its end.
        chance: The loss of the best constant.
        varies: Whether the steps have different batches, whose losses are noisy and are fitted later than that of one batch.
    """
    bar = below(chance)
    steps = len(run.losses) - 1
    if last < bar or steps < FEWEST:
        return None
    if chance > 0.0 and run.losses[0] > FAR * chance and last > DOWN * chance:
        return Outlook.SCALE
    trend = _Trend.of(run.losses[steps // 2 :])
    share = _rate_share(recipe, steps)
    before, after = _Trend.of(run.losses[steps // 2 : 3 * steps // 4 + 1]), _Trend.of(run.losses[3 * steps // 4 :])
    if _accelerates(before, after, SEEN * abs(last) / (steps // 4)):
        return None
    if _needed(last - bar, (trend.fall + ERRORS * trend.error) / share) > PLANNED:
        return Outlook.SLOW
    steady = trend.fall > ERRORS * trend.error and _needed(last - bar, trend.fall / share) <= PLANNED
    if steady and (last - bar > NEAR * abs(chance) or not _levels_off(before, after, steps // 4, last - bar)):
        return None
    rewritten = sum(run.changes[steps // 2 :]) >= REWRITTEN or sum(run.changes) >= OVERWRITTEN
    return Outlook.STUCK if rewritten and not varies else Outlook.OPEN


def _accelerates(before: _Trend, after: _Trend, least: float) -> bool:
    """Return whether a loss falls clearly faster than before, and by more than `least` in a step."""
    gain = after.fall - before.fall
    return after.fall > max(GROWING * before.fall, least) and gain > ERRORS * math.hypot(before.error, after.error)


def _levels_off(before: _Trend, after: _Trend, quarter: int, way: float) -> bool:
    """Return whether a fall that slows down like a geometric series ends before it has gone a way, noise put in its favor."""
    fall = after.fall + ERRORS * after.error
    if fall >= before.fall:
        return False
    ratio = fall / before.fall
    return ratio <= 0.0 or quarter * fall * ratio / (1.0 - ratio) < way


def _needed(way: float, fall: float) -> float:
    return way / fall if fall > 0.0 else math.inf


def _rate_share(recipe: Recipe, steps: int) -> float:
    """Return the mean learning rate of the second half of a run, as a share of that after the warm-up."""
    return float(np.mean([recipe.share_at(step) for step in range(steps // 2, steps)]))
