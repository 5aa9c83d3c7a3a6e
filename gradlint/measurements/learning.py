"""Gradients of the weights, for a random cotangent on the trunk output: they decide, gradients of activations explain."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

SPREAD = 2.2
"""Decades by which gradients of like weights may drift apart: 1.7 in a ResNet-152 that trains, 3.3 where BatchNorm explodes."""

LOUD = 1.0
"""Decades of the output that bear out an explosion: healthy models stay under 0.7, mis-scaled ones start at 3."""

BLOWN = 2.25
"""Decades of the output of a drawn model that explodes along its layers, at which it is as likely to fail as not. With 100
updates of Adam, 4 of 4 towers whose output is at 1.9 to 2.23 get below the best constant, and 2 of 12 at 2.25 to 2.6; see
benchmarks/planted_faults.py."""

FAINT = -2.0
"""Decades of the gradients of all weight matrices together, below which they vanish: healthy models stay above -0.8."""


@dataclass(frozen=True, slots=True)
class Learning:
    """What of a model learns, and how strongly; the median over seeds, in decades.

    The matrices together are the neural tangent kernel (Jacot et al. 2018, arXiv 1806.07572): half of log10 of its mean diagonal.

    Attributes:
        levels: log10 of the root mean square of d out / d W by weight name, for a cotangent v of unit norm; -inf for a gradient
            of exactly zero. A weight that no gradient reaches is missing.
        tangent: N = 1/2 log10(sum |J_W^T v|^2 / |v|^2) over all weights. None if no weight has a gradient.
        matrices: The same over weights of two and more axes: a bias of the last layer hides what becomes of all others.
        output: F, the root mean square of the trunk output. None if there is none.
        spread: S, sustained growth of `levels` over like weights towards the input, negative if they fall. None if there are
            too few of them.
        run: The layers of the run that makes `spread`, from the input to the output.
        drawn: Whether the weights look randomly initialized; only looked at if the output is loud. A trained model may have
            outputs of any size.
        alike: Names of matrices of equal elements that a gradient leaves so: their units learn the same.
    """

    levels: Mapping[str, float] = field(default_factory=dict)
    tangent: float | None = None
    matrices: float | None = None
    output: float | None = None
    spread: float | None = None
    run: tuple[str, ...] = ()
    drawn: bool = False
    alike: tuple[str, ...] = ()

    def learns(self, weight: str) -> bool:
        """Return whether the gradient of a weight, by name, is not zero."""
        return self.levels.get(weight, -math.inf) > -math.inf

    @property
    def drifts(self) -> bool:
        """Whether the gradients of like weights drift apart by `SPREAD` or more."""
        return self.spread is not None and abs(self.spread) >= SPREAD

    def bears_out(self, decades: float) -> bool:
        """Return whether the gradients of weights bear out that the gradients of activations grow (or shrink) by so many decades.

        What is not known does not speak against it.
        """
        if self.spread is None:
            return True
        if self.drifts:
            return self.spread * decades > 0.0
        if decades > 0.0:
            return self.output is None or self.output >= LOUD
        return self.matrices is None or self.matrices <= FAINT
