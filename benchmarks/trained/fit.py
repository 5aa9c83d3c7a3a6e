"""Fit the coefficients of the score to the cases of the families for fitting, and say how it does on those held out.

    python -m benchmarks.trained.fit [--write]

Nothing is trained and nothing checked here: labels come from `models.jsonl.gz`, evidence from `evidence.jsonl.gz`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.trained import evidence, kept
from benchmarks.trained.evidence import Known, known
from gradlint.calibration.features import FEATURES, features
from gradlint.calibration.score import Coefficients
from gradlint.measurements.evidence import Level

COEFFICIENTS = Path(__file__).parents[2] / "gradlint" / "calibration" / "coefficients.json"
RIDGE = 5.0  # of the penalty on squared coefficients of standardized features; with families left out, 2 to 10 do as well
LEAST = 0.02  # coefficients under it, of standardized features, are left out
ALARMS = 0.05  # share of false alarms at which recall is told
BINS = 10
Values = NDArray[np.float64]


def auc(scores: Values, fails: NDArray[np.bool_]) -> float:
    """The area under the ROC curve: the share of pairs in the right order, ties counting half."""
    order = np.concatenate([scores[fails], scores[~fails]])
    ranks = np.empty(len(order))
    unique, inverse, counts = np.unique(order, return_inverse=True, return_counts=True)
    del unique
    ends = counts.cumsum()
    ranks = (ends - (counts - 1) / 2.0)[inverse]
    positive = int(fails.sum())
    return float((ranks[:positive].sum() - positive * (positive + 1) / 2.0) / (positive * (len(order) - positive)))


def recall(scores: Values, fails: NDArray[np.bool_], alarms: float = ALARMS) -> float:
    """The share of failures with a score above that which at most the share `alarms` of sound cases exceed."""
    sound = np.sort(scores[~fails])[::-1]
    bar = sound[min(int(alarms * len(sound)), len(sound) - 1)]
    return float((scores[fails] > bar).mean())


def calibration_error(probabilities: Values, fails: NDArray[np.bool_], bins: int = BINS) -> float:
    """The mean distance of probability and frequency over equally wide bins (expected calibration error)."""
    which = np.minimum((probabilities * bins).astype(int), bins - 1)
    gaps = [abs(probabilities[which == i].sum() - fails[which == i].sum()) for i in range(bins)]
    return float(sum(gaps) / len(fails))


def fit(table: Mapping[str, Values], fails: NDArray[np.bool_], ridge: float = RIDGE) -> Coefficients:
    """Fit coefficients of 0 and more by projected gradient descent with momentum, which ends at the one optimum."""
    names = [name for name, column in table.items() if column.std() > 0.0]
    scale = np.array([table[name].std() for name in names])
    design = np.stack([table[name] for name in names], 1) / scale
    goal = fails.astype(np.float64)
    weights, ahead, offset, offset_ahead = np.zeros(len(names)), np.zeros(len(names)), 0.0, 0.0
    step = 4.0 / (np.linalg.norm(np.column_stack([design, np.ones(len(goal))]), 2) ** 2 + 4.0 * ridge)
    for index in range(1, 20001):
        pull = 1.0 / (1.0 + np.exp(-(design @ ahead + offset_ahead))) - goal
        after = np.maximum(ahead - step * (design.T @ pull + ridge * ahead), 0.0)
        offset_after = offset_ahead - step * pull.sum()
        share = (index - 1.0) / (index + 2.0)
        ahead, offset_ahead = after + share * (after - weights), offset_after + share * (offset_after - offset)
        moved = np.abs(after - weights).max(initial=0.0) + abs(offset_after - offset)
        weights, offset = after, offset_after
        if moved < 1e-9:
            break
    kept = {name: float(w / s) for name, w, s in zip(names, weights, scale, strict=True) if w >= LEAST}
    return Coefficients(float(offset), kept)


def table_of(cases: Sequence[Known], level: Level) -> dict[str, Values]:
    """The features of some cases, a column for each."""
    return {name: np.array([value(case.evidence) for case in cases], float) for name, value in FEATURES[level].items()}


def chances_of(cases: Sequence[Known], level: Level, fitted: Coefficients) -> Values:
    """The probabilities of failing, at least those that the verdicts allow."""
    return np.array([max(fitted.probability(features(case.evidence, level)), case.least) for case in cases])


def fit_to(cases: Sequence[Known], level: Level) -> Coefficients:
    """Fit the coefficients of a level to the cases that a verdict does not decide."""
    open_ones = [case for case in cases if not case.is_certain]
    return fit(table_of(open_ones, level), np.array([case.fails for case in open_ones]))


def held_out(cases: Sequence[Known], level: Level) -> Values:
    """The probabilities of some cases, each by a fit to all families but its own."""
    families = sorted({case.case.spec.family for case in cases})
    chances = np.zeros(len(cases))
    for family in families:
        fitted = fit_to([case for case in cases if case.case.spec.family != family], level)
        own = [index for index, case in enumerate(cases) if case.case.spec.family == family]
        chances[own] = chances_of([cases[index] for index in own], level, fitted)
    return chances


def row(name: str, cases: Sequence[Known], chances: Values) -> str:
    """One line of figures."""
    fails = np.array([case.fails for case in cases])
    diverged = np.array([case.label == "diverged" for case in cases])
    rest = diverged | ~fails
    return (
        f"{name:24} {len(cases):5} {auc(chances[rest], diverged[rest]):8.3f} {auc(chances, fails):8.3f} "
        f"{recall(chances, fails):8.3f} {calibration_error(chances, fails):8.3f}"
    )


def main() -> None:
    """Fit every level, print the figures of both sides, and write the coefficients if told."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the coefficients into the package")
    parser.add_argument("--quick", action="store_true", help="accepted as everywhere; fitting takes seconds")
    parser.add_argument("--cases", type=Path, default=kept.FILE, help="the trained cases")
    parser.add_argument("--evidence", type=Path, default=evidence.FILE, help="what gradlint knows of them")
    options = parser.parse_args()
    print(f"{'level, side':24} {'cases':>5} {'diverged':>8} {'fails':>8} {'recall':>8} {'ECE':>8}")
    levels = {}
    for level in Level:
        cases = known(level, options.evidence, options.cases)
        sides = {side: [case for case in cases if case.split == side] for side in ("fit", "test")}
        if not all(sides.values()):
            continue
        fitted = fit_to(sides["fit"], level)
        levels[str(level)] = {"offset": round(fitted.offset, 4), "weights": {k: round(v, 4) for k, v in fitted.weights.items()}}
        print(row(f"{level}, family left out", sides["fit"], held_out(sides["fit"], level)), flush=True)
        for side, some in sides.items():
            print(row(f"{level}, {side}", some, chances_of(some, level, fitted)), flush=True)
        seen = [case for case in sides["test"] if case.visible_at(level)]
        print(row(f"{level}, visible", seen, chances_of(seen, level, fitted)), flush=True)
        print("   ", levels[str(level)])
    if options.write:
        provenance = "benchmarks/trained/fit.py on the families for fitting of benchmarks/trained/models.jsonl.gz"
        COEFFICIENTS.write_text(json.dumps({"from": provenance, "levels": levels}, indent=1) + "\n")


if __name__ == "__main__":
    main()
