"""Verdict and score. The one place where growth becomes a judgement."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gradlint.growth import HEALTHY, LIMIT
from gradlint.result import Confidence, Effect, Finding, Growth, Measurement, Severity, TargetReport, Verdict

# P(trouble) is a logistic function of sustained growth: 1/2 at the limit, 2 % where 90 % of healthy architectures stay below.
_SLOPE = math.log(49.0) / (LIMIT - HEALTHY)
_DOUBT = 49  # the best score of a model that trains no more likely than not


def worst_growth(measurement: Measurement) -> Growth:
    """Growth over the spine, or along time where that explodes further.

    Fading along time is what recurrences do at initialization; it costs memory, not training, and is left to rules.
    """
    recurrent = max((item.growth for item in measurement.time), key=lambda growth: growth.decades, default=None)
    if recurrent is not None and recurrent.decades >= LIMIT and recurrent.decades > abs(measurement.growth.decades):
        return recurrent
    return measurement.growth


def growth_with_claims(followed: Growth | None, findings: Sequence[Finding]) -> Growth | None:
    """Growth without a measurement: what theory followed along the spine, or what an error claims where that is more."""
    signs = {Effect.EXPLODES: 1.0, Effect.VANISHES: -1.0}
    errors = [finding for finding in findings if failing(finding, Severity.ERROR) and finding.effect in signs]
    claims = [finding.decades * signs[finding.effect] for finding in errors if finding.effect is not None]
    strongest = max(claims, key=abs, default=0.0)
    return Growth(strongest) if abs(strongest) > abs(followed.decades if followed else 0.0) else followed


def judge(
    measurement: Measurement | None, growth: Growth | None, findings: Sequence[Finding], *, conclusive: bool, broken_weight: bool
) -> tuple[Verdict, int]:
    """Verdict and score from 0 to 100, falling as growth rises.

    `conclusive` says whether the growth is that of the whole model: whether the probe ran every weight layer or, without a
    measurement, theory is sure on which side of the limit it lies. A measured fault is a fault also where it is not. An error
    of a rule that declares a verdict makes that verdict, whatever the growth. An error alone is likely to make training fail,
    so it caps the score; so does not knowing.
    """
    made = {finding.verdict for finding in findings if failing(finding, Severity.ERROR)}
    if broken_weight or Verdict.NON_FINITE in made or (measurement is not None and _is_not_finite(measurement)):
        return Verdict.NON_FINITE, 0
    if Verdict.VANISHES in made or (measurement is not None and _stops(measurement)):
        return Verdict.VANISHES, 0
    rehearsed = measurement.rehearsal if measurement is not None else None
    decades = growth.decades if growth is not None else 0.0
    if rehearsed is not None and rehearsed.is_certain and abs(decades) < LIMIT:
        return (Verdict.VANISHES if rehearsed.dead and rehearsed.diverged_at is None else Verdict.EXPLODES), 0
    score = round(100.0 / (1.0 + math.exp(min(_SLOPE * (abs(decades) - LIMIT), 700.0))))
    if abs(decades) >= LIMIT and (conclusive or measurement is not None):
        return (Verdict.EXPLODES if decades > 0 else Verdict.VANISHES), score
    known = conclusive and growth is not None
    error = any(failing(finding, Severity.ERROR) for finding in findings)
    return (Verdict.HEALTHY if known else Verdict.UNKNOWN), min(score, _DOUBT) if error or not known else score


def _is_not_finite(measurement: Measurement) -> bool:
    """Whether a pass is not finite at the weights as they are: in the model, or in the user's loss."""
    loss, rehearsed = measurement.loss, measurement.rehearsal
    first = rehearsed.losses[:1] + rehearsed.gradient_norms[:1] if rehearsed is not None and not rehearsed.stands_in else ()
    seen = (loss.value, loss.gradient_norm, *first) if loss is not None else first
    return bool(measurement.nonfinite_forward or measurement.nonfinite_backward) or not all(map(math.isfinite, seen))


def _stops(measurement: Measurement) -> bool:
    """Whether nothing can learn: no weight gets a gradient, the user's loss moves with no weight, or a cut stops everything."""
    is_flat = measurement.loss is not None and measurement.loss.is_flat
    return measurement.dead or is_flat or any(cut.stops_all for cut in measurement.cuts)


def failing(finding: Finding, fail_on: Severity) -> bool:
    """Whether a finding is at or above a severity and not refuted."""
    return finding.confidence is not Confidence.REFUTED and finding.severity.rank <= fail_on.rank


def failed(report: TargetReport, fail_on: Severity | None, min_score: int | None) -> bool:
    """Whether a report fails a check: a finding at or above `fail_on` (None: never), or a score under `min_score`."""
    if min_score is not None and report.score < min_score:
        return True
    return fail_on is not None and any(failing(finding, fail_on) for finding in report.findings)
