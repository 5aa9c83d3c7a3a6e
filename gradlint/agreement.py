"""Explain measured growth by theory, with its attribution and its phase, if prediction and measurement agree."""

from __future__ import annotations

import math

from gradlint.growth import JUMP
from gradlint.result import Growth
from gradlint.subject import Subject
from gradlint.theory.reading.attribution import Attribution, attribute, interval, is_within
from gradlint.theory.reading.stacks import Stack, stack


def attribution(subject: Subject, growth: Growth | None) -> Attribution | None:
    """Return the operators that a growth along the spine is made of.

    Returns None for a growth under JUMP decades, or where theory predicts another growth or none.
    """
    if growth is None or growth.start is None or growth.end is None or not JUMP <= abs(growth.decades) < math.inf:
        return None
    start, end = growth.start.node, growth.end.node
    bounds = interval(subject.prediction, start, end)
    if bounds is None or min(bounds) * max(bounds) <= 0.0 or not _agrees(subject, start, end):
        return None
    found = attribute(subject.structure, subject.steps, start, end)
    return found if found is not None and found.decades * growth.decades > 0.0 else None


def repeated_stack(subject: Subject) -> Stack | None:
    """Return the model's stack of one repeated layer with its phase, or None if the probe measured another growth."""
    found = stack(subject.structure, subject.steps)
    return found if found is not None and _agrees(subject, found.start, found.end) else None


def _agrees(subject: Subject, start: str, end: str) -> bool:
    """Return whether growth between two nodes is as predicted, within the spread over seeds. True without a measurement."""
    measurement = subject.measurement
    if measurement is None:
        return True
    gains = measurement.spine_gains
    before, behind = (gains[node].backward if node in gains else None for node in (start, end))
    if before is None or behind is None:
        return False
    spread = measurement.growth.spread or 0.0
    spread = spread if math.isfinite(spread) else 0.0
    return is_within(subject.structure, subject.prediction, start, end, measured=before - behind, spread=spread)
