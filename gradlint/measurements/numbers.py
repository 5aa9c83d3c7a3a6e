"""How large the numbers of a model are: what operators were seen to make, and what fewer bits would hold of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Range:
    """Smallest and largest value of a node's float outputs, over all seeds."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Suspect:
    """An operator of the loss function that may break: its argument lies in [low, high], and was seen in [seen_low, seen_high].

    `points` are where it breaks; `slope` says that its derivative does, and not its value. `source` is the line that calls it,
    `nearness` the part of the way to the point that what was seen has gone (see `theory.singularities.Singularity.nearness`).
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
    """Absolute values of one tensor in training: the largest one, of activation and gradient, for the loss as it is.

    `lost` is the share of gradient values, of those that are not zero, that the type rounds to zero at the loss scale of the
    recipe; `saved` the same at the largest loss scale that leaves the model's largest gradient in range.
    """

    activation: float | None
    gradient: float | None
    lost: float
    saved: float


@dataclass(frozen=True, slots=True)
class Headroom:
    """What a number format with few bits holds of a training step: `nodes` by node, `weights` the gradients of weights by name.

    `forward` and `backward` are the largest numbers of the formats of activations and gradients, `stands_in` says what the loss
    is where none was given. `lost` and `saved` are over the gradients of all weights; see `Levels`.
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
