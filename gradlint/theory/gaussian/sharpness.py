"""A softmax over Gaussian logits: how much of the weight the largest take, and how much gradient comes through."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

_ROWS = 256  # sampled rows: the means below are right to 2 %
_LONGEST = 512  # entries of a row; a longer one is scaled from two shorter ones


class Sharpness(NamedTuple):
    """E sum A^2, and E |J^T g|^2 / E |g|^2 for independent g, of softmax weights A with Jacobian J = diag A - A A^T."""

    squares: float
    passed: float


def sharpness(variance: float, count: int) -> Sharpness:
    """Of `count` logits with this variance: 1/T where it is small, 1 where one logit wins.

    No closed form holds in between (the random energy model; Derrida 1981), so fixed samples are averaged. Where logits lie so
    far apart that gradients come through rare ties alone, samples show none, as a batch does.
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
