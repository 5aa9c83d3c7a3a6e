"""The range of the values in a model, operators that may break, and what a format with fewer bits holds of the values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Range:
    """Smallest and largest value of the float outputs of a node, over all seeds."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Suspect:
    """An operator of the loss function whose argument may reach a point at which the operator breaks.

    Attributes:
        function: Name of the function.
        low: Lower bound of the argument by interval analysis.
        high: Upper bound of the argument by interval analysis.
        points: Arguments at which the operator breaks.
        seen_low: Smallest argument that was measured.
        seen_high: Largest argument that was measured.
        source: The line of code that calls it.
        overflows: Whether the result overflows there, rather than being undefined.
        slope: Whether only the derivative breaks there, and not the value.
        hit: Whether a measured argument was at a point or next to it.
        nearness: How close measured arguments came to a point, from 0 to 1; see `ranges.singularities.Singularity.nearness`.
    """

    function: str
    low: float
    high: float
    points: tuple[float, ...]
    seen_low: float
    seen_high: float
    source: str
    overflows: bool = False
    slope: bool = False
    hit: bool = False
    nearness: float = math.nan


@dataclass(frozen=True, slots=True)
class Levels:
    """The largest absolute activation and gradient of one tensor, for the unscaled loss, and what underflows of the gradient.

    `lost` is the share of nonzero gradient values that the format rounds to zero at the loss scale of the recipe. `saved` is
    that share at the largest loss scale that keeps the model's largest gradient in range.
    """

    activation: float | None
    gradient: float | None
    lost: float
    saved: float


@dataclass(frozen=True, slots=True)
class Headroom:
    """How a low-precision format holds the activations and gradients of one training step.

    Attributes:
        precision: The format, "fp16" or "fp8".
        forward: Largest finite number of the format of activations.
        backward: Largest finite number of the format of gradients.
        loss_scale: Loss scale of the recipe, or None.
        best_scale: Largest power of two as loss scale that keeps the largest gradient in range.
        nodes: Activations and gradients by node id.
        weights: Gradients of weights by name.
        lost: As in `Levels`, over the gradients of all weights.
        saved: As in `Levels`, over the gradients of all weights.
        stands_in: Description of the loss if the user gave none, else "".
    """

    precision: str
    forward: float
    backward: float
    loss_scale: float | None
    best_scale: float
    nodes: Mapping[str, Levels]
    weights: Mapping[str, Levels]
    lost: float
    saved: float
    stands_in: str = ""
