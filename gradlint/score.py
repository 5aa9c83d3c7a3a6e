"""Compute the verdict of a model from its growth, its measurement and its findings, and what it allows of a score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gradlint.growth import LIMIT
from gradlint.growth.tracks import counted
from gradlint.measurements.learning import Learning
from gradlint.result import Confidence, Effect, Finding, Growth, Measurement, Severity, TargetReport, Verdict

_DOUBT = 49  # the highest score of a model that is not more likely to train than to fail


def worst_growth(measurement: Measurement) -> Growth:
    """Return the growth over the spine, or the growth along time if that exceeds `LIMIT` and is larger.

    Decay along time does not count here. Recurrences decay at initialization, which limits their memory but does not make
    training fail; it costs score, see `gradlint.calibration`, and rules report it.
    """
    recurrent = max((item.growth for item in measurement.time), key=lambda growth: growth.decades, default=None)
    if recurrent is not None and recurrent.decades >= LIMIT and recurrent.decades > abs(measurement.growth.decades):
        return recurrent
    return measurement.growth


def growth_with_claims(followed: Growth | None, findings: Sequence[Finding]) -> Growth | None:
    """Return the growth of a model that was not measured: the predicted growth, or the claim of an error if that is larger."""
    signs = {Effect.EXPLODES: 1.0, Effect.VANISHES: -1.0}
    errors = [finding for finding in findings if failing(finding, Severity.ERROR) and finding.effect in signs]
    claims = [finding.decades * signs[finding.effect] for finding in errors if finding.effect is not None]
    strongest = max(claims, key=abs, default=0.0)
    return Growth(strongest) if abs(strongest) > abs(followed.decades if followed else 0.0) else followed


@dataclass(frozen=True, slots=True)
class State:
    """What is known of a model besides its growth.

    Attributes:
        conclusive: Whether the growth is that of the whole model: the probe ran every weight layer or, without a probe, the
            predicted interval does not contain the limit. The score is below 50 if it is not. A measured growth beyond the
            limit decides the verdict in any case.
        broken_weight: Whether a weight of the model is not finite.
        idle: Whether the model has parameters and none of them can learn.
        trains: Whether the model has a parameter, trainable or frozen. Without one there is no score.
    """

    conclusive: bool = True
    broken_weight: bool = False
    idle: bool = False
    trains: bool = True


@dataclass(frozen=True, slots=True)
class Judgment:
    """The verdict, and the highest score that it allows; None where there is no score."""

    verdict: Verdict
    most: int | None = 100


def judge(
    measurement: Measurement | None,
    growth: Growth | None,
    findings: Sequence[Finding],
    state: State,
    learning: Learning | None = None,
) -> Judgment:
    """Return the verdict and the highest score that it allows.

    A rehearsal of the user's recipe that clearly learned overrules growth, and lifts every limit of the score but that of a pass
    that is not finite: the truth about a model is what training does with it.

    Args:
        measurement: What the probe measured, or None without a probe.
        growth: The growth that decides, in decades. None if it is unknown.
        findings: All findings. An error that is not refuted keeps the score below 50, and makes the verdict that its rule
            declares, if any.
        state: What else is known.
        learning: The gradients of weights, which bear the growth out or not. None if they are not known.
    """
    errors = [finding for finding in findings if failing(finding, Severity.ERROR)]
    made = {finding.verdict for finding in errors}
    if state.broken_weight or Verdict.NON_FINITE in made or (measurement is not None and _is_not_finite(measurement)):
        return Judgment(Verdict.NON_FINITE, 0)
    if not state.trains:
        return Judgment(Verdict.NOTHING_TO_TRAIN, None)
    rehearsed = measurement.rehearsal if measurement is not None else None
    learned = rehearsed is not None and rehearsed.learned
    if state.idle or (measurement is not None and _stops(measurement)):
        return Judgment(Verdict.UNTRAINABLE, 100 if learned else 0)
    doubt = 100 if learned else _DOUBT
    decades = counted(growth.decades, learning or Learning()) if growth is not None else 0.0
    if abs(decades) >= LIMIT and (state.conclusive or measurement is not None) and not learned:
        return Judgment(Verdict.EXPLODES if decades > 0 else Verdict.VANISHES, doubt)
    if Verdict.UNTRAINABLE in made:
        return Judgment(Verdict.UNTRAINABLE, doubt)
    if Verdict.UNSTABLE in made or (rehearsed is not None and rehearsed.is_certain):
        return Judgment(Verdict.UNSTABLE, doubt)
    known = state.conclusive and growth is not None
    return Judgment(Verdict.HEALTHY if known else Verdict.UNKNOWN, doubt if errors or not known else 100)


def _is_not_finite(measurement: Measurement) -> bool:
    """Return whether a forward or backward pass at the initial weights, of the model or the user's loss, is not finite."""
    loss, rehearsed = measurement.loss, measurement.rehearsal
    first = rehearsed.losses[:1] + rehearsed.gradient_norms[:1] if rehearsed is not None and not rehearsed.stands_in else ()
    seen = (loss.value, loss.gradient_norm, *first) if loss is not None else first
    return bool(measurement.nonfinite_forward or measurement.nonfinite_backward) or not all(map(math.isfinite, seen))


def _stops(measurement: Measurement) -> bool:
    """Return whether no weight can learn: every gradient is zero, that of the user's loss is, or a cut stops all of them."""
    is_flat = measurement.loss is not None and measurement.loss.is_flat
    return measurement.is_cut_off or is_flat


def failing(finding: Finding, fail_on: Severity) -> bool:
    """Return whether a finding has at least this severity and was not refuted."""
    return finding.confidence is not Confidence.REFUTED and finding.severity.rank <= fail_on.rank


def failed(report: TargetReport, fail_on: Severity | None, min_score: int | None) -> bool:
    """Return whether a report fails: it has a finding of at least severity `fail_on`, or a score below `min_score`.

    A criterion that is None never fails.
    """
    if min_score is not None and report.score is not None and report.score < min_score:
        return True
    return fail_on is not None and any(failing(finding, fail_on) for finding in report.findings)
