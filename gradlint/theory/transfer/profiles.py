"""How a second moment spreads along the axes of a tensor: one array of mean 1 per axis along which it is not even.

A tensor's profile is the product of those of its axes. Channels of unlike size meet in a BatchNorm, a class token beside patches
in a LayerNorm, the rim of an image under zero padding.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from gradlint.theory.gaussian.pointwise_of_gaussian import Array

    Profile = Mapping[int, Array]

FLAT: Profile = MappingProxyType({})
"""The profile of a tensor that is even along every axis."""


def flat() -> Profile:
    """FLAT, for dataclasses, which take no default that cannot be hashed."""
    return FLAT


_EVEN = 1e-4  # relative deviation of an axis that counts as even
_LONGEST = 1 << 14  # elements of an axis whose profile is followed


def along(axis: int, values: Array) -> Profile:
    """A profile along one axis, of mean 1; FLAT for values that are even, have no sum, or are too many to follow."""
    if not 1 < values.size <= _LONGEST:
        return FLAT
    mean = float(values.sum()) / values.size
    if not 0.0 < mean < np.inf:
        return FLAT
    even = float(np.abs(values - mean).max()) <= _EVEN * mean
    return FLAT if even else {axis: values / mean}


def values_along(profile: Profile, axis: int, size: int) -> Array:
    """The values along an axis of this length: ones where the profile is even, or is that of another length."""
    own = profile.get(axis)
    return own if own is not None and own.size == size else np.ones(size)


def replaced(profile: Profile, axis: int, values: Array) -> Profile:
    """The profile with other values along one axis."""
    return {**without(profile, (axis,)), **along(axis, values)}


def mean_product(profile: Profile, axis: int, values: Array | float) -> float:
    """Mean along an axis of values times the profile."""
    if not isinstance(values, np.ndarray):
        return values
    own = profile.get(axis)
    product = own * values if own is not None and own.shape == values.shape else values
    return float(product.sum()) / max(product.size, 1)


def times(profile: Profile, axis: int, values: Array | float) -> Profile:
    """The profile with one axis multiplied by values; one number for all leaves it as it is."""
    if not isinstance(values, np.ndarray):
        return profile
    own = profile.get(axis)
    fits = own is not None and own.shape == values.shape
    return replaced(profile, axis, own * values if fits and own is not None else values)


def without(profile: Profile, axes: Collection[int]) -> Profile:
    """The profile without some axes."""
    return {axis: values for axis, values in profile.items() if axis not in axes} if profile else FLAT


def renumbered(profile: Profile, to: Callable[[int], int | None]) -> Profile:
    """The profile with its axes renumbered; None drops one."""
    if not profile:
        return FLAT
    pairs = ((to(axis), values) for axis, values in profile.items())
    return {axis: values for axis, values in pairs if axis is not None}


def mixed(parts: Sequence[tuple[float, Profile]]) -> Profile:
    """The profile of a sum of independent tensors, each with its share of the second moment."""
    if len(parts) == 1:
        return parts[0][1]
    found: dict[int, Array] = {}
    for axis in {axis for _, profile in parts for axis in profile}:
        uneven = [share * profile[axis] for share, profile in parts if axis in profile]
        even = sum(share for share, profile in parts if axis not in profile)
        if all(values.size == uneven[0].size for values in uneven):
            found |= along(axis, sum(uneven[1:], uneven[0] + even))
    return found


def both(left: Profile, right: Profile) -> Profile:
    """The profile of a product of independent tensors."""
    found: Profile = left
    for axis, values in right.items():
        found = times(found, axis, values)
    return found


def power(profile: Profile, exponent: float) -> Profile:
    """The profile of a function that follows a power of its input."""
    if not profile or exponent == 1.0:
        return profile
    found: dict[int, Array] = {}
    for axis, values in profile.items():
        found |= along(axis, np.power(np.maximum(values, 1e-12), exponent))
    return found
