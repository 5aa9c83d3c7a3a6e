"""How growth depends on the draw of the weights."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Redraws:
    """Growth, in decades, of the same model with weights drawn anew by its own `reset_parameters`."""

    growths: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle of them."""
        return median(self.growths)

    @property
    def spread(self) -> float:
        """The largest deviation from the middle."""
        return max(abs(growth - self.median) for growth in self.growths)
