"""What was seen of single units: those that pass no gradient, and weights whose gradient is zero by construction."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Units:
    """The units (features or channels) of one activation, each over the whole batch and all positions.

    `dead` is the share of units with slope zero for every sample, median over seeds; `always` that of units dead in every seed;
    `constant` that of units which had one value throughout, dead ones included. `samples` is how many values each unit took.
    """

    node: str
    count: int
    samples: int
    dead: float
    always: float
    constant: float


@dataclass(frozen=True, slots=True)
class ZeroGradient:
    """Weights whose gradient is zero by construction, not for want of a signal, and the operator that is the reason.

    `cause` is "zero-initialised branch" and "zero-initialised head", which learn from the second update on, or "bias before a
    norm", which has no effect at all.
    """

    node: str
    cause: str
    weights: tuple[str, ...]
