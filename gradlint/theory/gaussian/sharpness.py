"""Softmax over Gaussian logits: how concentrated its weights are, and how much gradient passes through it."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

_ROWS = 256  # number of sampled rows, for a relative error of 2 %
_LONGEST = 512  # largest number of entries of a sampled row; a longer row is extrapolated from two shorter ones


class Sharpness(NamedTuple):
    """Concentration of softmax weights A with Jacobian J = diag(A) - A A^T.

    `squares` is E sum A^2, the inverse participation ratio. `passed` is E |J^T g|^2 / E |g|^2 for a cotangent g with independent
    entries.
    """

    squares: float
    passed: float


def sharpness(variance: float, count: int) -> Sharpness:
    """Return the concentration of a softmax over `count` independent Gaussian logits of this variance.

    E sum A^2 is 1 / count for a small variance and 1 if one logit dominates. There is no closed form in between (the random
    energy model, Derrida 1981), so the result is a mean over fixed samples. At a large variance gradients pass only at rare
    ties, which samples miss as a batch does.
    """
    if count <= 1:
        return Sharpness(1.0, 0.0)
    deviation = round(math.sqrt(max(variance, 0.0)), 3)
    if deviation == 0.0:
        return Sharpness(1.0 / count, (1.0 - 1.0 / count) / count**2)
    if count <= _LONGEST:
        return _sampled(float(f"{deviation:.3g}"), count)
    long, short = (_sampled(float(f"{deviation:.3g}"), size) for size in (_LONGEST, _LONGEST // 2))
    doublings = math.log2(count / _LONGEST)
    return Sharpness(*(max(a * (a / max(b, 1e-300)) ** doublings, 1e-300) for a, b in zip(long, short, strict=True)))


@lru_cache(maxsize=1024)
def _sampled(deviation: float, count: int) -> Sharpness:
    logits = deviation * np.random.default_rng(0).standard_normal((_ROWS, count))
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    squares, cubes = (weights**2).sum(axis=1), (weights**3).sum(axis=1)
    return Sharpness(float(squares.mean()), float((squares - 2.0 * cubes + squares**2).mean()) / count)
