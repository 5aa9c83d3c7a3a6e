"""The results of the experiments as text, one line for each."""

from __future__ import annotations

import math
from collections.abc import Iterator

from gradlint.growth import LIMIT
from gradlint.measurements.curvature import Curvature
from gradlint.measurements.loss import LossFacts
from gradlint.measurements.rehearsal import Rehearsal
from gradlint.measurements.trainability import Trainability
from gradlint.report.scoring import scoring
from gradlint.report.wording import count
from gradlint.result import TargetReport, TimeGrowth, Track

_SHOWN = 3  # recurrences that are listed


def remarks(report: TargetReport) -> Iterator[tuple[str, str]]:
    """Yield label and text of each result that is shown whether or not a rule reports it."""
    found = report.observed
    if text := scoring(report):
        yield "score", text
    if report.trainability is not None and (text := _trainability(report.trainability)):
        yield "learns", text
    for track in report.tracks:
        if abs(track.growth.decades) >= LIMIT and report.weights.bears_out(track.growth.decades):
            yield "beside it", _track(track)
    if report.recipe is not None:
        yield "recipe", report.recipe.text + _limit(found.get("curvature"))
    if timed := [time for time in report.time if time.slope is not None and time.horizon is not None]:
        yield "time", "; ".join(map(_time, timed[:_SHOWN])) + (f"; {len(timed) - _SHOWN} more" if len(timed) > _SHOWN else "")
    if (loss := found.get("loss")) is not None:
        yield "loss", _loss(loss)
    if (rehearsed := found.get("rehearsal")) is not None:
        yield "rehearsal", _rehearsal(rehearsed)


def _trainability(found: Trainability) -> str:
    """Describe how many parameters learn, and what becomes of the others."""
    total = sum(found.sizes.values()) + found.frozen
    if not total:
        return ""
    rest = {
        "frozen": found.frozen,
        f"after {count(max(found.opened.values(), default=0), 'virtual step')}": found.size(tuple(found.opened)),
        "without a gradient": found.size(found.stuck),
        "unused": found.size(found.unused),
    }
    others = [f"{number:,} {what}" for what, number in rest.items() if number]
    return ", ".join([f"{found.learning:,} of {total:,} parameters", *others])


def _track(track: Track) -> str:
    ends = [track.growth.start, track.growth.end]
    named = " to ".join(place.module or place.node for place in ends if place is not None)
    return f"the gradient {'grows' if track.growth.decades > 0.0 else 'shrinks to'} 10^{track.growth.decades:.1f} from {named}"


def _time(time: TimeGrowth) -> str:
    """Describe how fast the gradient of one recurrence changes per step, and what that makes over the whole sequence."""
    slope, horizon = time.slope or 0.0, time.horizon or math.inf
    back = " (backwards)" if time.direction == "reverse" else ""
    pace = f"{time.node}{back}: the gradient {'grows' if slope > 0.0 else 'fades'} x{10**slope:.3g} a step"
    what = "gains" if slope > 0.0 else "loses"
    if horizon > time.steps:
        change = abs(slope) * max(time.steps - 1, 0)
        return f"{pace}, {what} {change:.1f} decades over all its {time.steps} steps" if math.isfinite(horizon) else pace
    return f"{pace}, {what} three decades in {horizon:.0f} of {time.steps}"


def _limit(curvature: Curvature | None) -> str:
    if curvature is None or not curvature.gradient_norm:
        return ""
    if not math.isfinite(curvature.limit):
        return "; the loss curves upwards nowhere"
    return f"; at the start stable up to lr {curvature.limit:.2g} (sharpness {curvature.sharpness:.3g})"


def _loss(loss: LossFacts) -> str:
    chance = f", {loss.chance:.4g} by chance" if loss.chance is not None else ""
    return f"{loss.value:.4g} before any update{chance}; its gradient has norm {loss.gradient_norm:.3g}"


def _rehearsal(rehearsed: Rehearsal) -> str:
    parts = [f"{count(rehearsed.steps, 'update')}, loss {rehearsed.first:.3g} -> {rehearsed.last:.3g}"]
    if rehearsed.stands_in:
        parts.append(rehearsed.stands_in)
    if rehearsed.stopped:
        parts.append(rehearsed.stopped)
    return "; ".join(parts)
