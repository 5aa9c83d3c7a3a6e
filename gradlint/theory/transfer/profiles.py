"""Profiles: how the second moment of a tensor varies along its axes.

A profile has one array of mean 1 for each axis along which the second moment is not uniform, and the second moment is
proportional to their product. Examples are channels of unequal size before a BatchNorm, a class token beside patches before a
LayerNorm, and the border of an image after zero padding.
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
"""The profile of a tensor whose second moment is uniform along every axis."""


def flat() -> Profile:
    """Return `FLAT`, as a default factory for dataclasses, whose defaults must be hashable."""
    return FLAT


_EVEN = 1e-4  # relative deviation below which values along an axis count as uniform
_LONGEST = 1 << 14  # largest length of an axis whose profile is kept


def along(axis: int, values: Array) -> Profile:
    """Return a profile along one axis; `FLAT` for uniform values, a sum that is not positive and finite, or a long axis."""
    if not 1 < values.size <= _LONGEST:
        return FLAT
    mean = float(values.sum()) / values.size
    if not 0.0 < mean < np.inf:
        return FLAT
    even = float(np.abs(values - mean).max()) <= _EVEN * mean
    return FLAT if even else {axis: values / mean}


def values_along(profile: Profile, axis: int, size: int) -> Array:
    """Return the values of a profile along an axis of this length; ones if it is uniform or has another length."""
    own = profile.get(axis)
    return own if own is not None and own.size == size else np.ones(size)


def replaced(profile: Profile, axis: int, values: Array) -> Profile:
    """Return the profile with other values along one axis."""
    return {**without(profile, (axis,)), **along(axis, values)}


def mean_product(profile: Profile, axis: int, values: Array | float) -> float:
    """Return the mean along an axis of values times the profile."""
    if not isinstance(values, np.ndarray):
        return values
    own = profile.get(axis)
    product = own * values if own is not None and own.shape == values.shape else values
    return float(product.sum()) / max(product.size, 1)


def times(profile: Profile, axis: int, values: Array | float) -> Profile:
    """Return the profile multiplied by values along one axis; a single number does not change it."""
    if not isinstance(values, np.ndarray):
        return profile
    own = profile.get(axis)
    fits = own is not None and own.shape == values.shape
    return replaced(profile, axis, own * values if fits and own is not None else values)


def without(profile: Profile, axes: Collection[int]) -> Profile:
    """Return the profile without some axes."""
    return {axis: values for axis, values in profile.items() if axis not in axes} if profile else FLAT


def renumbered(profile: Profile, to: Callable[[int], int | None]) -> Profile:
    """Return the profile with its axes renumbered by a function, which returns None to drop an axis."""
    if not profile:
        return FLAT
    pairs = ((to(axis), values) for axis, values in profile.items())
    return {axis: values for axis, values in pairs if axis is not None}


def mixed(parts: Sequence[tuple[float, Profile]]) -> Profile:
    """Return the profile of a sum of independent tensors, given the share of the second moment and the profile of each."""
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
    """Return the profile of a product of independent tensors."""
    found: Profile = left
    for axis, values in right.items():
        found = times(found, axis, values)
    return found


def power(profile: Profile, exponent: float) -> Profile:
    """Return the profile of a function that scales as a power of its input's second moment."""
    if not profile or exponent == 1.0:
        return profile
    found: dict[int, Array] = {}
    for axis, values in profile.items():
        found |= along(axis, np.power(np.maximum(values, 1e-12), exponent))
    return found
