"""The score: 100 x (1 - P), where P is the probability that training fails, as far as can be told from what is known."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from gradlint.calibration.features import features, unlearned
from gradlint.measurements.evidence import Evidence, Level, Score

_FILE = Path(__file__).with_name("coefficients.json")  # written by benchmarks/trained/fit.py, which says from what
_SHOWN = 0.5  # the least points that are told


@dataclass(frozen=True, slots=True)
class Coefficients:
    """Coefficients of a logistic function of features, all of them 0 or more; `offset` is that of a model without any."""

    offset: float
    weights: Mapping[str, float]

    def probability(self, values: Mapping[str, float]) -> float:
        """Return the probability that training fails, for features by name."""
        terms = sum(weight * values.get(name, 0.0) for name, weight in self.weights.items())
        return 1.0 / (1.0 + math.exp(-min(max(self.offset + terms, -700.0), 700.0)))


@cache
def coefficients() -> Mapping[Level, Coefficients]:
    """Return the coefficients of each level of knowledge."""
    levels = json.loads(_FILE.read_text(encoding="utf-8"))["levels"]
    return {Level(name): Coefficients(held["offset"], held["weights"]) for name, held in levels.items()}


def scored(evidence: Evidence, most: int = 100) -> Score:
    """Return the score of a model, at most `most`."""
    fitted, values = coefficients()[evidence.level], features(evidence)
    reached: dict[str, float] = {}
    before = best = 100.0 * (1.0 - fitted.probability({}))
    moved = []
    for name in sorted(fitted.weights, key=lambda name: -fitted.weights[name] * values[name]):
        reached[name] = values[name]
        after = 100.0 * (1.0 - fitted.probability(reached))
        moved.append((name, after - before))
        before = after
    forgotten = 1.0 - evidence.reach  # the share of tasks that a short memory costs, unless one was seen to be learned
    forgotten *= unlearned(evidence) if evidence.level is Level.RECIPE else 1.0
    moved.append(("reach", -forgotten * before))
    before *= 1.0 - forgotten
    told = tuple((name, round(points)) for name, points in moved if points <= -_SHOWN)
    return Score(min(round(before), most), round(best), told, most)
