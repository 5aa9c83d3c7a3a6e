"""What was seen of the batch that was given, and of the loss on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class InputFacts:
    """One float input that was given. `rms` is the root mean square of all finite values.

    `columns` are decades between the largest root mean square of a column (last axis of a matrix) and the median one, None where
    the input has no columns; `column` is the index of that largest one.
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
    """The loss of the first batch, before any update.

    `chance` is the loss of a prediction that says nothing (equal probabilities, zeros). `gradient_norm` is the norm over all
    weights together, `gradients` that of each. `repeated` is the loss of the batch taken twice over that of the batch: 2 for a
    sum, 1 for a mean. `terms` is the number of values in the target, `output` and `target` are root mean squares, the target's
    where it holds floats in the shape of the output. None where it is not known.
    """

    value: float
    gradient_norm: float
    gradients: Mapping[str, float] = field(default_factory=dict)
    chance: float | None = None
    repeated: float | None = None
    batch: int | None = None
    terms: int | None = None
    output: float | None = None
    target: float | None = None

    @property
    def is_flat(self) -> bool:
        """Whether the loss, which is not zero, has a gradient of exactly zero at every weight."""
        return bool(self.gradients) and self.gradient_norm == 0.0 and self.value != 0.0

    @property
    def is_sum(self) -> bool:
        """Whether the loss adds up over the batch."""
        return self.repeated is not None and abs(self.repeated - 2.0) < 1e-3
