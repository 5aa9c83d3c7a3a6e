"""The Jacobian of one segment of a model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Segment:
    """J = d end / d start, over the whole batch: `inside` values at the start, `outside` at the end.

    `frobenius` is its Frobenius norm, `largest` its largest singular value. `condition` is the ratio of that to the smallest one
    seen: a lower bound, exact where `steps` reaches the smaller side. `by_differences` tells that products with J were taken by
    finite differences, for want of a second derivative.
    """

    start: str
    end: str
    inside: int
    outside: int
    frobenius: float
    largest: float
    condition: float
    steps: int
    by_differences: bool = False

    @property
    def stable_rank(self) -> float:
        """How many directions share the gain: squared Frobenius norm over squared largest singular value."""
        return (self.frobenius / self.largest) ** 2 if self.largest else 0.0
