"""What experiments saw, one line of text for each."""

from __future__ import annotations

import math
from collections.abc import Iterator

from gradlint.observed.curvature import Curvature
from gradlint.observed.loss import LossFacts
from gradlint.observed.rehearsal import Rehearsal
from gradlint.report.wording import count
from gradlint.result import TargetReport


def remarks(report: TargetReport) -> Iterator[tuple[str, str]]:
    """Label and text of what a reader should know whether or not a rule complains."""
    found = report.observed
    if report.recipe is not None:
        yield "recipe", report.recipe.text + _limit(found.get("curvature"))
    if (loss := found.get("loss")) is not None:
        yield "loss", _loss(loss)
    if (rehearsed := found.get("rehearsal")) is not None:
        yield "rehearsal", _rehearsal(rehearsed)


def _limit(curvature: Curvature | None) -> str:
    if curvature is None:
        return ""
    if not math.isfinite(curvature.limit):
        return "; the loss curves upwards nowhere"
    return f"; unstable from lr {curvature.limit:.2g} on (sharpness {curvature.sharpness:.3g})"


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
