"""Growth with other draws of the initial weights."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Redraws:
    """Growth of the same model, in decades, after its modules' `reset_parameters` drew the weights again."""

    growths: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median growth in decades."""
        return median(self.growths)

    @property
    def spread(self) -> float:
        """Largest deviation from the median, in decades."""
        return max(abs(growth - self.median) for growth in self.growths)
