"""Facts about the given batch, and about the loss on it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from gradlint.measurements.rehearsal import NonFiniteUpdate


@dataclass(frozen=True, slots=True)
class InputFacts:
    """Statistics of the finite values of one float input that was given.

    Attributes:
        node: Id of the input node.
        mean: Mean.
        deviation: Standard deviation.
        rms: Root mean square.
        low: Smallest value.
        high: Largest value.
        columns: Decades between the largest root mean square of a column (an index of the last axis of a matrix) and the median
            one. None for an input without columns.
        column: Index of the column with the largest root mean square.
    """

    node: str
    mean: float
    deviation: float
    rms: float
    low: float
    high: float
    columns: float | None = None
    column: int | None = None


@dataclass(frozen=True, slots=True)
class LossFacts:
    """The loss of the first batch, before any update. A fact that is not known is None.

    Attributes:
        value: Value of the loss.
        gradient_norm: Norm of the gradient over all weights.
        gradients: Norm of the gradient of each weight, by name.
        chance: Loss of the best constant: the lowest that a prediction reaches which is the same for every sample.
        neutral: Loss of zeros or of equal probabilities, if the loss is a known one.
        from_zero: Whether the loss is zero for a perfect prediction, so that ratios of it have a meaning.
        repeated: Loss of the batch concatenated with itself, over the loss of the batch: 2 for a sum, 1 for a mean.
        batch: Length of the batch axis.
        terms: Number of values in the target.
        output: Root mean square of the output.
        target: Root mean square of a float target with as many elements as the output.
        breach: The first operator that is not finite, of the model or of the loss, if the loss or its gradient is not.
    """

    value: float
    gradient_norm: float
    gradients: Mapping[str, float] = field(default_factory=dict)
    chance: float | None = None
    neutral: float | None = None
    from_zero: bool = False
    repeated: float | None = None
    batch: int | None = None
    terms: int | None = None
    output: float | None = None
    target: float | None = None
    breach: NonFiniteUpdate | None = None

    @property
    def is_flat(self) -> bool:
        """Whether the loss is finite and not zero but its gradient is exactly zero at every weight."""
        return bool(self.gradients) and self.gradient_norm == 0.0 and self.value != 0.0 and math.isfinite(self.value)

    @property
    def over_chance(self) -> float | None:
        """The loss as a multiple of that of the best constant; None if this is unknown or has no meaning."""
        return self.value / self.chance if self.from_zero and self.chance is not None and self.chance > 0.0 else None

    @property
    def is_sum(self) -> bool:
        """Whether the loss is a sum over the batch."""
        return self.repeated is not None and abs(self.repeated - 2.0) < 1e-3
