"""Gaussian integrals of activations: what a layer of random weights does to a signal."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gradlint.ops.activations import activation, derivative

if TYPE_CHECKING:
    from numpy.typing import NDArray

_POINTS = 2000  # an even number of midpoints: no sample falls on a kink at 0, where the rule is then exact
_WIDTH = 10.0  # standard deviations; the tail beyond weighs 1e-23
_COARSE = 300  # points per axis of the two-dimensional integral
_SHARED = 1e-12  # of q: a smaller shared part is rounding


class Moments(NamedTuple):
    """E phi(z), E phi(z)^2 and E phi'(z)^2 for z ~ N(0, q)."""

    mean: float
    second: float
    slope: float


def _grid(points: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    z = np.linspace(-_WIDTH, _WIDTH, 2 * points + 1)[1::2]
    weights = np.exp(-0.5 * z * z)
    weights /= weights.sum()
    return z, weights


def parameters(attrs: Mapping[str, Any]) -> tuple[tuple[str, float], ...]:
    """The attributes that an activation's function depends on, as the `key` of `chi` and `critical_gain`."""
    names = ("alpha", "negative_slope")
    return tuple((name, float(attrs[name])) for name in names if isinstance(attrs.get(name), (int, float)))


def moments(op: str, q: float, attrs: Mapping[str, Any]) -> Moments | None:
    """Moments of an activation on pre-activations of variance q; None when `op` is not an activation with a known function."""
    return _moments(op, float(f"{q:.6g}"), parameters(attrs))


@lru_cache(maxsize=4096)
def _moments(op: str, q: float, key: tuple[tuple[str, float], ...]) -> Moments | None:
    phi = activation(op, dict(key))
    if phi is None:
        return None
    z, weights = _grid(_POINTS)
    points = z * np.sqrt(q)
    values, slopes = phi(points), derivative(phi)(points)
    return Moments(float(weights @ values), float(weights @ values**2), float(weights @ slopes**2))


def shared_moment(op: str, q: float, c: float, attrs: Mapping[str, Any]) -> float | None:
    """E phi(z_a) phi(z_b) for two inputs whose pre-activations have variance q and covariance c (Poole 2016).

    It is E_s[(E_t phi(s + t))^2] with the shared part s ~ N(0, c) and the private part t ~ N(0, q - c); without one of the two
    it is a moment of one input.
    """
    found = moments(op, q, attrs)
    if found is None or not _SHARED * q < c < q:
        return None if found is None else found.second if c >= q else found.mean * found.mean
    return _shared(op, float(f"{q:.5g}"), float(f"{min(max(c, 0.0), q):.5g}"), parameters(attrs))


@lru_cache(maxsize=4096)
def _shared(op: str, q: float, c: float, key: tuple[tuple[str, float], ...]) -> float | None:
    phi = activation(op, dict(key))
    if phi is None:
        return None
    z, weights = _grid(_COARSE)
    private = phi(np.sqrt(c) * z[:, None] + np.sqrt(max(q - c, 0.0)) * z[None, :]) @ weights
    return float(weights @ private**2)


@lru_cache(maxsize=256)
def critical_gain(op: str, key: tuple[tuple[str, float], ...] = ()) -> float:
    """The weight gain sigma_w at which gradients neither grow nor shrink: chi = sigma_w^2 E phi'(z)^2 = 1 (Schoenholz 2017).

    z has the variance that the layer itself settles at, without bias. Where that is zero, as for tanh, the gain is 1/|phi'(0)|;
    else the smallest gain with chi >= 1 is found by bisection. 1 for an operator that is not a known activation.
    """
    slope = _slope_at_zero(op, key)
    if slope is not None:
        return 1.0 / slope
    low, high = 0.05, 20.0
    if chi(op, high, key) < 1.0:
        return 1.0
    for _ in range(22):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if chi(op, middle, key) < 1.0 else (low, middle)
    return 0.5 * (low + high)


def _slope_at_zero(op: str, key: tuple[tuple[str, float], ...]) -> float | None:
    """|phi'(0)| of a smooth activation through the origin that weakens signals of every size; None for others."""
    phi, found = activation(op, dict(key)), _moments(op, 1.0, key)
    if phi is None or found is None:
        return None
    below, middle, above = (float(value) for value in phi(np.array([-1e-4, 0.0, 1e-4])))
    smooth = middle == 0.0 and abs(above + below) < 1e-6
    slope = abs(above - below) / 2e-4
    return slope if smooth and slope > 0.0 and found.second <= slope**2 else None


@lru_cache(maxsize=4096)
def chi(op: str, gain: float, key: tuple[tuple[str, float], ...] = (), bias: float = 0.0) -> float:
    """Squared gradient factor of one layer at the fixed point of its own variance map, from unit variance on.

    `bias` is the variance of the biases. A variance that runs away is stopped at 1e6.
    """
    if _moments(op, 1.0, key) is None:
        return gain * gain
    q = 1.0
    for _ in range(200):
        found = _moments(op, float(f"{q:.6g}"), key)
        assert found is not None
        after = min(max(gain * gain * found.second + bias, 1e-12), 1e6)
        if abs(after - q) < 1e-6 * q:
            break
        q = after
    found = _moments(op, float(f"{q:.6g}"), key)
    assert found is not None
    return gain * gain * found.slope
