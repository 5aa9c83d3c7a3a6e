"""Moments of single channels, which are propagated for trained weights because these make channels unequal.

The model is a diagonal Gaussian: channel i is N(m_i, v_i), and channels are independent. A layer needs two products with its
weight, W m and W^2 v, and one more for the cotangent.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from gradlint.ops import with_slope
from gradlint.theory.initialization import looks_drawn

if TYPE_CHECKING:
    from gradlint.graph import Weight
    from gradlint.ops.pointwise import Function
    from gradlint.theory.gaussian.pointwise_of_gaussian import Array

_LARGEST = 1 << 23  # largest number of elements of a weight that is multiplied with channel moments
_TAIL = 1e-3  # probability of so large a maximum below which a weight counts as trained; see `theory.initialization`
_POINTS = 64  # grid points per channel; errors at the kinks of activations average out over channels


@cache
def _grid() -> tuple[Array, Array]:
    z = np.linspace(-5.0, 5.0, 2 * _POINTS + 1)[1::2]
    weights = np.exp(-0.5 * z * z)
    return z, weights / weights.sum()


def is_trained(weight: Weight) -> bool:
    """Return whether a weight does not look randomly initialized, around any mean, and is not too large to multiply."""
    found = weight.statistics
    if weight.size > _LARGEST or not found.finite or found.std == 0.0 or looks_drawn(weight):
        return False
    farthest = (found.max_abs - abs(found.mean)) / found.std
    return weight.size * math.erfc(farthest / math.sqrt(2.0)) < _TAIL


class Rows:
    """A weight summed over its kernel: `means[o, i]` sums elements and `squares[o, i]` their squares; groups are stacked in o."""

    def __init__(self, weight: Weight, groups: int) -> None:
        values = np.asarray(weight.array(), dtype=np.float32)
        values = np.moveaxis(values, weight.out_axis, 0) if groups == 1 or weight.out_axis == 0 else values
        flat = values.reshape(values.shape[0], values.shape[1], -1)
        self.groups = groups
        self.means = np.einsum("oik->oi", flat).astype(np.float64)
        self.squares = np.einsum("oik,oik->oi", flat, flat).astype(np.float64)

    def forward(self, matrix: Array, values: Array) -> Array:
        """Return matrix @ values, the sum over the inputs of each output, group by group."""
        if self.groups == 1:
            return np.asarray(matrix @ values)
        parts = values.reshape(self.groups, -1)
        blocks = matrix.reshape(self.groups, -1, matrix.shape[1])
        return np.asarray(np.einsum("goi,gi->go", blocks, parts).reshape(-1))

    def backward(self, values: Array) -> Array:
        """Return values @ squares, the sum over the outputs of each input, group by group."""
        if self.groups == 1:
            return np.asarray(values @ self.squares)
        blocks = self.squares.reshape(self.groups, -1, self.squares.shape[1])
        return np.asarray(np.einsum("goi,go->gi", blocks, values.reshape(self.groups, -1)).reshape(-1))

    @property
    def inputs(self) -> int:
        """Number of input channels."""
        return int(self.squares.shape[1]) * self.groups


def mapped(function: Function, means: Array, variances: Array) -> tuple[Array, Array, Array] | None:
    """Return E f, E f^2 and E f'^2 for each channel, given the means and variances of its argument; None if not finite."""
    z, weights = _grid()
    points = means[:, None] + np.sqrt(np.maximum(variances, 0.0))[:, None] * z[None, :]
    with np.errstate(all="ignore"):
        values, slopes = (np.asarray(item).reshape(points.shape) for item in with_slope(function, points.reshape(-1)))
        found = values @ weights, np.square(values) @ weights, np.square(slopes) @ weights
    return found if all(np.isfinite(item).all() for item in found) else None
