"""The measured Jacobian of one segment of a model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Segment:
    """The Jacobian J = d end / d start over the whole batch.

    Attributes:
        start: Id of the node at the start.
        end: Id of the node at the end.
        inside: Number of values at the start, the columns of J.
        outside: Number of values at the end, the rows of J.
        frobenius: Frobenius norm of J.
        largest: Largest singular value of J.
        condition: Largest singular value over the smallest one found, a lower bound of the condition number. It is exact if
            `steps` reaches the smaller dimension of J.
        steps: Number of steps of the Golub-Kahan bidiagonalization.
        by_differences: Whether products with J are finite differences, because the model has no second derivative.
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
        """Squared Frobenius norm over squared largest singular value: the number of directions that share the gain."""
        return (self.frobenius / self.largest) ** 2 if self.largest else 0.0
