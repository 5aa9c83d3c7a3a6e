"""Collect the evidence of one check."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Any

from gradlint.measurements.evidence import Evidence, Level
from gradlint.measurements.learning import Learning
from gradlint.measurements.reach import shortest_reach
from gradlint.recipe import Task
from gradlint.result import Confidence, Finding, Measurement, Severity


def evidence(
    measurement: Measurement | None,
    findings: Sequence[Finding],
    *,
    growth: float | None,
    conclusive: bool,
    learning: Learning,
    task: Task,
) -> Evidence:
    """Collect the evidence of one check. `growth` is the growth that counts, in decades, or None if it is unknown."""
    held = [finding for finding in findings if finding.confidence is not Confidence.REFUTED]
    reach = shortest_reach(measurement.time if measurement is not None else (), findings)
    known: dict[str, Any] = {
        "conclusive": conclusive,
        "growth": growth,
        "spread": learning.spread,
        "tangent": learning.tangent,
        "output": learning.output,
        "reach": reach.share if reach is not None else 1.0,
        "errors": tuple(sorted({finding.rule for finding in held if finding.severity is Severity.ERROR})),
        "warnings": tuple(sorted({finding.rule for finding in held if finding.severity is Severity.WARNING})),
    }
    if measurement is None:
        return Evidence(Level.STATIC, **known)
    known |= {
        "along": max((item.growth.decades for item in measurement.time), default=0.0),
        "silent": max((units.always for units in measurement.units), default=0.0),
        "inputs": max((_decades(facts.rms) for facts in measurement.inputs), default=0.0),
    }
    known |= _of_loss(measurement) | _of_rehearsal(measurement, task)
    rehearsed = measurement.rehearsal is not None and not measurement.rehearsal.is_surrogate
    level = Level.RECIPE if rehearsed else Level.LOSS if measurement.loss is not None else Level.MODEL
    return Evidence(level, **known)


def _decades(level: float) -> float:
    return abs(math.log10(level)) if 0.0 < level < math.inf else 0.0


def _of_loss(measurement: Measurement) -> dict[str, Any]:
    loss = measurement.loss
    if loss is None:
        return {}
    return {
        "value": loss.value,
        "constant": loss.chance,
        "neutral": loss.neutral,
        "ratio": loss.from_zero,
        "gradient": loss.gradient_norm,
        "magnitude": loss.output,
        "target": loss.target,
    }


def _of_rehearsal(measurement: Measurement, task: Task) -> dict[str, Any]:
    found, curvature, recipe = measurement.rehearsal, measurement.curvature, task.recipe
    told: dict[str, Any] = {}
    if recipe is not None and curvature is not None and not curvature.is_surrogate and 0.0 < curvature.limit < math.inf:
        told["rate"] = recipe.first_rate / curvature.limit
    if found is None or found.is_surrogate:
        return told
    finite = [loss for loss in found.losses if math.isfinite(loss)]
    return told | {
        "first": found.first,
        "last": found.last,
        "peak": max(finite, default=math.nan),
        "steps": found.steps,
        "late": found.longer,
        "diverged": found.diverged_at is not None,
        "outlook": str(found.outlook or ""),
        "broken": found.dead is not None or found.breaks,
        "behind": found.behind,
        "stalled": found.stalled,
        "moved": median(found.changes) if found.changes else None,
        "skipped": found.skipped / max(found.steps, 1),
    }
