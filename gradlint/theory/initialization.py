"""Tests of whether weights look randomly initialized. Mean-field theory assumes random weights; training correlates them."""

from __future__ import annotations

import math
from collections.abc import Iterable

from gradlint.graph import Weight
from gradlint.signal_path import is_weight_layer
from gradlint.structure import Structure

_DEVIATIONS = 4.0  # standard errors of a mean that one in 16 000 random layers exceeds
_TAIL = 1e-3  # probability of so large a maximum of n normal draws below which a tail counts as heavier than normal
_SHARE = 0.9  # share of the layers that must look randomly initialized


def looks_initialized(weights: Iterable[Weight]) -> bool:
    """Return whether at least nine in ten of the weights look randomly initialized; True for no weights."""
    looks = [looks_drawn(weight) for weight in weights]
    return sum(looks) >= _SHARE * len(looks)


def is_initialized(structure: Structure, nodes: Iterable[str]) -> bool:
    """Return whether the weight matrices of these nodes look untrained. Those of attention do not count: they may be masks."""
    graph = structure.graph
    return looks_initialized(
        weight
        for node in nodes
        if is_weight_layer(graph[node]) and graph[node].op != "attention"
        for role, weight in graph[node].weights.items()
        if len(weight.shape) > 1 and "bias" not in role
    )


def looks_drawn(weight: Weight) -> bool:
    """Return whether a weight looks like n independent draws around zero with tails no heavier than normal.

    The mean of n draws of variance s^2 has variance s^2 / n, and P(max |w| > t s) <= n erfc(t / sqrt(2)) for normal draws.
    Uniform, truncated normal and orthogonal weights have lighter tails. Weights of all zeros, identities, and weights whose mean
    exceeds their standard deviation (torch.rand) also count as drawn, because training does not produce them.
    """
    found = weight.statistics
    if found.mean_square == 0.0 or abs(found.mean) >= found.std > 0.0 or is_identity(weight):
        return True
    if found.std == 0.0 or abs(found.mean) * math.sqrt(weight.size) > _DEVIATIONS * found.std:
        return False
    return weight.size * math.erfc(found.max_abs / found.std / math.sqrt(2.0)) >= _TAIL


def is_constant(weight: Weight) -> bool:
    """Return whether all elements are equal, up to rounding errors of the accumulated moments."""
    found = weight.statistics
    return found.finite and found.mean_square - found.mean * found.mean <= 1e-12 * found.mean_square


def is_identity(weight: Weight) -> bool:
    """Return whether each row of a matrix has one nonzero element of the same value, as in a multiple of the identity.

    For f columns and a = max |w|, the conditions |mean| = a / f and mean square = a^2 / f hold for no other matrix.
    """
    found, columns = weight.statistics, weight.size // max(weight.shape[0], 1) if weight.shape else 0
    if columns < 2 or not found.finite or found.max_abs == 0.0:
        return False
    first, second = abs(found.mean) * columns / found.max_abs, found.mean_square * columns / found.max_abs**2
    return abs(first - 1.0) < 1e-6 and abs(second - 1.0) < 1e-6


def is_torch_default(weight: Weight) -> bool:
    """Return whether a weight has the default initialization of `torch.nn.Linear` and `torch.nn.Conv2d`.

    That is kaiming_uniform(a=sqrt(5)), U(-b, b) with b^2 = 1 / fan_in. The mean square of n such draws is b^2 / 3 with relative
    standard deviation sqrt(4/5) / sqrt(n). Their maximum is at most b and rarely below b (1 - 20/n). A tolerance of 1 % allows
    for half precision.
    """
    found, bound = weight.statistics, 1.0 / math.sqrt(max(weight.fan_in, 1))
    share = 3.0 * found.mean_square / bound**2
    near = abs(share - 1.0) <= 5.0 * math.sqrt(0.8 / max(weight.size, 1)) + 0.01
    return near and bound * (0.99 - 20.0 / max(weight.size, 1)) <= found.max_abs <= 1.01 * bound
