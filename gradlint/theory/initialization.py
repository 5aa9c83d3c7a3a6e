"""Whether weights are still as an initialiser drew them. Predictions are about random weights; training correlates them."""

from __future__ import annotations

import math
from collections.abc import Iterable

from gradlint.graph import Weight

_DEVIATIONS = 4.0  # of the mean of n draws: one drawn layer in 16 000 lies beyond
_TAIL = 1e-3  # chance that n normal draws have so large a maximum; heavier tails come from training
_SHARE = 0.9  # of the layers that must look drawn


def looks_initialised(weights: Iterable[Weight]) -> bool:
    """Whether at least nine in ten of the weights look drawn; True when there is none."""
    looks = [looks_drawn(weight) for weight in weights]
    return sum(looks) >= _SHARE * len(looks)


def looks_drawn(weight: Weight) -> bool:
    """Whether a weight can be n independent draws around zero, from a distribution with tails no heavier than the normal.

    The mean of n draws of variance s^2 has variance s^2/n, and P(max |w| > t s) <= n erfc(t / sqrt 2) for the normal; uniform,
    truncated normal and orthogonal weights have lighter tails. A mean as large as the deviation (torch.rand) is the choice of
    an initialiser: training shifts means by less. So are identities; weights that are all zero count as drawn.
    """
    found = weight.statistics
    if found.mean_square == 0.0 or abs(found.mean) >= found.std > 0.0 or is_identity(weight):
        return True
    if found.std == 0.0 or abs(found.mean) * math.sqrt(weight.size) > _DEVIATIONS * found.std:
        return False
    return weight.size * math.erfc(found.max_abs / found.std / math.sqrt(2.0)) >= _TAIL


def is_constant(weight: Weight) -> bool:
    """Whether all elements are equal, up to the rounding of the accumulated moments."""
    found = weight.statistics
    return found.finite and found.mean_square - found.mean * found.mean <= 1e-12 * found.mean_square


def is_identity(weight: Weight) -> bool:
    """Whether a matrix has one element per row that is not zero, and the same one: an identity times a number, or several.

    With f columns, mean = a/f and mean square = a^2/f for the largest |w| = a hold of no other matrix.
    """
    found, columns = weight.statistics, weight.size // max(weight.shape[0], 1) if weight.shape else 0
    if columns < 2 or not found.finite or found.max_abs == 0.0:
        return False
    first, second = abs(found.mean) * columns / found.max_abs, found.mean_square * columns / found.max_abs**2
    return abs(first - 1.0) < 1e-6 and abs(second - 1.0) < 1e-6


def is_torch_default(weight: Weight) -> bool:
    """Whether a weight is drawn as `torch.nn.Linear` and `Conv2d` do it: kaiming_uniform(a=sqrt 5), U(-b, b), b^2 = 1/fan_in.

    The mean square of n such draws is b^2/3 with relative deviation sqrt(4/5)/sqrt(n), their maximum at most b and rarely
    under b (1 - 20/n); 1 % is left for half precision.
    """
    found, bound = weight.statistics, 1.0 / math.sqrt(max(weight.fan_in, 1))
    share = 3.0 * found.mean_square / bound**2
    near = abs(share - 1.0) <= 5.0 * math.sqrt(0.8 / max(weight.size, 1)) + 0.01
    return near and bound * (0.99 - 20.0 / max(weight.size, 1)) <= found.max_abs <= 1.01 * bound
