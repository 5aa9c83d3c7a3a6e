"""Failures of training that were published, rebuilt small from their reports, each with its published fix.

`CASES` holds them all. `tests/test_published_failures_are_real.py` trains both halves of every pair in plain torch;
`tests/test_published_failures.py` asks gradlint about them.
"""

from __future__ import annotations

from tests.published import depth, handwritten_losses, optimization, recurrent, scales, singularities
from tests.published.case import Case, Fails, Setup

__all__ = ["CASES", "Case", "Fails", "Setup"]

CASES: tuple[Case, ...] = tuple(
    value
    for module in (singularities, handwritten_losses, recurrent, scales, optimization, depth)
    for value in vars(module).values()
    if isinstance(value, Case)
)
