"""Scales that initialization schemes give to the branches of deep residual networks."""

from __future__ import annotations

from typing import NamedTuple


class Scales(NamedTuple):
    """A factor of the skip path, and the gain of the weights in the branch."""

    skip: float
    branch: float


def fixup(blocks: int, layers: int = 2) -> float:
    """Factor of the weights inside each branch but its last, which starts at 0: L^(-1/(2 m - 2)) (Zhang 2019, 1901.09321).

    `blocks` is L, `layers` the number m of weight layers of a branch, at least 2. Raises ValueError for fewer.
    """
    if blocks < 1 or layers < 2:
        raise ValueError(f"Fixup scales at least one branch of at least two layers, not {blocks} of {layers}")
    return float(blocks ** (-1.0 / (2 * layers - 2)))


def deepnet(layers: int) -> Scales:
    """Scales alpha and beta of a Post-LN stack of this many encoder or decoder layers on its own (Wang 2022, 2203.00555).

    A block is LayerNorm(alpha x + f(x)); beta is the Xavier gain of feed-forward, value and output weights. Raises ValueError
    when there are no layers.
    """
    if layers < 1:
        raise ValueError(f"DeepNet scales at least one layer, not {layers}")
    return Scales((2.0 * layers) ** 0.25, (8.0 * layers) ** -0.25)
