"""Features of evidence: numbers that are 0 for a sound model and larger the more speaks against it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from gradlint.measurements.evidence import Evidence, Level
from gradlint.measurements.rehearsal import LEARNED_CLEARLY

QUIET, STRONG = -0.8, 2.7  # decades between which the gradients of all weights together lie in 101 healthy trained models
USUAL = 100.0  # a gradient norm of the loss; larger ones are the usual sign of trouble
FAINT = 1e-2  # a gradient norm of the loss; smaller ones are faint


def _capped(value: float | None, most: float, least: float = 0.0) -> float:
    """Return how far a value is above `least`, from 0 to `most`; 0 for an unknown value, `most` for one that is not finite."""
    if value is None:
        return 0.0
    return min(max(value - least, 0.0), most) if math.isfinite(value) else most


def _decades(value: float | None) -> float:
    """Return log10 of a positive number, infinity for one that is not finite, and minus infinity for 0 and less."""
    if value is None or value <= 0.0:
        return -math.inf
    return math.log10(value) if math.isfinite(value) else math.inf


def _outside(evidence: Evidence) -> float:
    tangent = evidence.tangent
    return 0.0 if tangent is None else max(_capped(tangent, 6.0, STRONG), _capped(-tangent, 6.0, -QUIET))


def _over(value: float | None, evidence: Evidence) -> float:
    """Return by how many decades a loss is above the floor, from 0 to 6."""
    floor = evidence.floor
    if value is None or floor is None or floor <= 0.0 or value <= 0.0:
        return 0.0 if value is None or math.isfinite(value) else 6.0
    return _capped(_decades(value / floor), 6.0)


def unlearned(evidence: Evidence) -> float:
    """Return 1 for a rehearsal that ends at the floor or above, and 0 for one that ends `LEARNED_CLEARLY` below it."""
    last, floor = evidence.last, evidence.floor
    if last is None or floor is None:
        return 0.0
    if not math.isfinite(last):
        return 1.0
    return 1.0 - min(max((floor - last) / max(LEARNED_CLEARLY * abs(floor), 1e-12), 0.0), 1.0)


MODEL: Mapping[str, Callable[[Evidence], float]] = {
    "growth": lambda e: _capped(abs(e.growth or 0.0), 6.0, 1.0),
    "spread": lambda e: _capped(abs(e.spread or 0.0), 6.0),
    "output": lambda e: _capped(abs(e.output or 0.0), 6.0),
    "tangent": _outside,
    "along": lambda e: _capped(e.along, 6.0),
    "silent": lambda e: e.silent,
    "errors": lambda e: min(len(e.errors), 2),
    "warnings": lambda e: min(len(e.warnings), 3),
    "unknown": lambda e: float(not e.conclusive),
    "inputs": lambda e: _capped(e.inputs, 4.0, 0.5),
}
LOSS: Mapping[str, Callable[[Evidence], float]] = {
    "excess": lambda e: _over(e.value, e) if e.ratio else 0.0,
    "gradient": lambda e: _capped(_decades(e.gradient), 6.0, math.log10(USUAL)) if e.gradient else 0.0,
    "faint": lambda e: _capped(-_decades(e.gradient), 6.0, -math.log10(FAINT)) if e.gradient is not None else 0.0,
}
RECIPE: Mapping[str, Callable[[Evidence], float]] = {
    "unlearned": unlearned,
    "late": lambda e: float(e.late),
    "above": lambda e: _over(e.last, e),
    "peak": lambda e: _capped(_decades(e.peak / abs(e.first)), 4.0, 0.5) if e.peak and e.first else 0.0,
    "diverged": lambda e: float(e.diverged),
    "lost": lambda e: float(e.outlook not in {"", "open"}),
    "open": lambda e: float(e.outlook == "open"),
    "broken": lambda e: float(e.broken),
    "behind": lambda e: float(e.behind or e.stalled),
    "rate": lambda e: _capped(_decades(e.rate), 3.0) if e.rate else 0.0,
}
FEATURES: Mapping[Level, Mapping[str, Callable[[Evidence], float]]] = {
    Level.STATIC: {name: MODEL[name] for name in ("growth", "spread", "output", "errors", "warnings", "unknown")},
    Level.MODEL: MODEL,
    Level.LOSS: {**MODEL, **LOSS},
    Level.RECIPE: {**MODEL, **LOSS, **RECIPE},
}


def features(evidence: Evidence, level: Level | None = None) -> dict[str, float]:
    """Return the features of a level, by name; that of the evidence if none is given."""
    return {name: float(value(evidence)) for name, value in FEATURES[level or evidence.level].items()}
