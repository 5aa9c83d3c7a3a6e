"""Say how a score came about: what moved it, and how much it can know."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from gradlint.measurements.evidence import Evidence, Level, Score
from gradlint.measurements.rehearsal import below
from gradlint.report.wording import count
from gradlint.result import TargetReport

_SHOWN = 3  # the most causes that are told
_UNSURE = 90  # a lower best score is explained

_MISSING = {
    Level.STATIC: "the model was not run",
    Level.MODEL: "the loss and the recipe are not known",
    Level.LOSS: "the recipe is not known",
}
_WORDS: Mapping[str, Callable[[Evidence], str]] = {
    "growth": lambda e: f"growth of {abs(e.growth or 0.0):.1f} decades",
    "spread": lambda e: f"gradients of like weights {abs(e.spread or 0.0):.1f} decades apart",
    "output": lambda e: f"an output at 10^{e.output or 0.0:.1f}",
    "tangent": lambda e: f"gradients of all weights at 10^{e.tangent or 0.0:.1f}",
    "along": lambda e: f"growth of {e.along:.1f} decades along time",
    "reach": lambda _: "a short memory",
    "silent": lambda e: f"{e.silent:.0%} of the units of a layer silent",
    "errors": lambda e: count(len(e.errors), "error"),
    "warnings": lambda e: count(len(e.warnings), "warning"),
    "unknown": lambda _: "parts that were not followed",
    "excess": lambda e: f"a first loss {_times(e.value, e.floor)} that of the best constant",
    "gradient": lambda e: f"a gradient norm of {e.gradient or 0.0:.2g}",
    "faint": lambda e: f"a gradient norm of {e.gradient or 0.0:.2g}",
    "inputs": lambda e: f"inputs {e.inputs:.1f} decades from 1",
    "unlearned": lambda e: "the rehearsal ends where a constant does" if _at_constant(e) else "the rehearsal learns little",
    "above": lambda e: f"the rehearsal ends at {_times(e.last, e.floor)} chance",
    "late": lambda e: f"nothing learned in the first of {e.steps} updates",
    "peak": lambda e: f"its loss rises {_times(e.peak, e.first)} on the way",
    "diverged": lambda _: "the rehearsal diverges",
    "lost": lambda _: "more steps would not help",
    "open": lambda _: "the rehearsal is too short to tell",
    "broken": lambda _: "a layer or a weight breaks in the rehearsal",
    "behind": lambda _: "the loss does not come down",
    "rate": lambda e: f"a learning rate {e.rate or 0.0:.2g} times the stability limit",
}


def scoring(report: TargetReport) -> str:
    """Return what moved the score of a report, as in "97 at best; growth of 6.1 decades -30"; "" if there is nothing to say."""
    made, evidence = report.made, report.evidence
    if made is None or evidence is None:
        return ""
    parts = []
    if made.best < _UNSURE and evidence.level in _MISSING:
        parts.append(f"{made.best} at best, as {_MISSING[evidence.level]}: {100 - made.best} in 100 such models fail by it")
    elif made.moved:
        parts.append(f"{made.best} at best")
    parts += _moves(made, evidence)
    return "; ".join(parts)


def _moves(made: Score, evidence: Evidence) -> list[str]:
    told = [f"{_WORDS[name](evidence)} {points:+d}" for name, points in made.moved[:_SHOWN]]
    return [*told, *([f"and {len(made.moved) - _SHOWN} more"] if len(made.moved) > _SHOWN else [])]


def _at_constant(evidence: Evidence) -> bool:
    last, floor = evidence.last, evidence.floor
    return last is None or floor is None or not last < below(floor)


def _times(value: float | None, unit: float | None) -> str:
    ratio = abs(value / unit) if value is not None and unit else math.inf
    return f"{ratio:.2g} times" if math.isfinite(ratio) else "beyond measure"
