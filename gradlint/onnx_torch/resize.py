"""Resize and Upsample. One axis is resized at a time: each output is a weighted sum of a few inputs along the axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradlint.onnx_torch.registry import Context, budget, ints, op

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Axis:
    """One resized axis: `size` inputs become `length` outputs. `low` and `high` are the bounds of the region of interest."""

    size: int
    length: int
    scale: float
    low: float = 0.0
    high: float = 1.0

    def coordinates(self, mode: str) -> Array:
        """Return the coordinate of each output among the inputs, by the formulas in the specification of the ONNX operator."""
        y = np.arange(self.length, dtype=np.float64)
        width = self.scale * self.size
        if mode == "half_pixel" or (mode == "pytorch_half_pixel" and width > 1):
            return (y + 0.5) / self.scale - 0.5
        if mode == "pytorch_half_pixel":
            return np.full_like(y, -0.5)
        if mode == "half_pixel_symmetric":
            return self.size / 2 * (1 - self.length / width) + (y + 0.5) / self.scale - 0.5
        if mode == "asymmetric":
            return y / self.scale
        if mode == "tf_half_pixel_for_nn":
            return (y + 0.5) / self.scale
        if mode == "align_corners":
            return y * (self.size - 1) / (width - 1) if width != 1 else np.zeros(self.length)
        if mode == "tf_crop_and_resize":
            span = (self.high - self.low) * (self.size - 1)
            inner = y * span / (width - 1) if width != 1 else np.full(self.length, span / 2)
            return np.asarray(inner + self.low * (self.size - 1))
        raise ValueError(f"unknown coordinate_transformation_mode {mode!r}")


def _triangle(distance: Array) -> Array:
    height: Array = np.maximum(1 - np.abs(distance), 0.0)
    return height


def _cubic(a: float) -> Callable[[Array], Array]:
    def kernel(distance: Array) -> Array:
        d = np.abs(distance)
        inner = ((a + 2) * d - (a + 3)) * d * d + 1
        outer = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        return np.where(d <= 1, inner, np.where(d < 2, outer, 0.0))

    return kernel


_ROUND: dict[str, Callable[[Array], Array]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


@dataclass(frozen=True, slots=True)
class _Method:
    """How an axis is resized, from the attributes of the operator."""

    mode: str
    coordinates: str
    nearest: str
    cubic_a: float
    antialias: bool
    exclude_outside: bool
    extrapolation: float

    def taps(self, axis: _Axis, x: Array) -> tuple[Array, Array]:
        """Return input positions and their weights, each of shape (outputs, taps), for the coordinates `x`."""
        if self.mode == "nearest":
            return _ROUND[self.nearest](x)[:, None], np.ones((len(x), 1))
        kernel, radius = (_cubic(self.cubic_a), 2) if self.mode == "cubic" else (_triangle, 1)
        shrink = min(axis.scale, 1.0) if self.antialias else 1.0  # downsampling widens the kernel
        reach = math.ceil(radius / shrink)
        position = np.floor(x)[:, None] + np.arange(1 - reach, reach + 1, dtype=np.float64)
        weight = kernel((position - x[:, None]) * shrink)
        if self.exclude_outside:
            weight = np.where((position >= 0) & (position < axis.size), weight, 0.0)
        return position, weight / weight.sum(1, keepdims=True)

    def apply(self, x: Tensor, dim: int, axis: _Axis) -> Tensor:
        """Resize dimension `dim` of `x`."""
        where = axis.coordinates(self.coordinates)
        position, weight = self.taps(axis, where)
        index = torch.from_numpy(np.clip(position, 0, axis.size - 1).astype(np.int64))
        along = [-1 if d == dim else 1 for d in range(x.dim())]
        if self.mode == "nearest":
            y = x.index_select(dim, index[:, 0])
        else:
            factors = torch.from_numpy(weight).to(x.dtype)
            parts = (x.index_select(dim, index[:, k]) * factors[:, k].reshape(along) for k in range(index.shape[1]))
            y = sum(parts, start=torch.zeros((), dtype=x.dtype))
        if self.coordinates != "tf_crop_and_resize":
            return y
        outside = torch.from_numpy((where < 0) | (where > axis.size - 1)).reshape(along)
        return torch.where(outside, torch.tensor(self.extrapolation, dtype=x.dtype), y)


def _scales_for(sizes: Sequence[int], shape: Sequence[int], policy: str) -> tuple[list[float], list[int]]:
    """Return the scales and the output lengths for the requested `sizes` of the axes of `shape`."""
    scales = [want / have for want, have in zip(sizes, shape, strict=True)]
    if policy == "stretch":
        return scales, list(sizes)
    common = min(scales) if policy == "not_larger" else max(scales)
    return [common] * len(scales), [math.floor(common * have + 0.5) for have in shape]


@op("Resize", "Upsample")
def _resize(
    ctx: Context,
    x: Tensor,
    second: Tensor | None = None,
    third: Tensor | None = None,
    sizes_input: Tensor | None = None,
    *,
    antialias: int = 0,
    axes: Sequence[int] | None = None,
    coordinate_transformation_mode: str | None = None,
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    height_scale: float | None = None,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str | None = None,
    scales: Sequence[float] | None = None,
    width_scale: float | None = None,
) -> Tensor:
    if height_scale is not None and width_scale is not None:  # Upsample of opset 1
        scales = (1.0, 1.0, height_scale, width_scale)
    early = ctx.opset < 11  # Resize-10 and Upsample have no region of interest, and other defaults
    roi, scale_input = (None, second) if early else (second, third)
    dims = [axis % x.dim() for axis in axes] if axes is not None else list(range(x.dim()))
    shape = [x.shape[d] for d in dims]
    if sizes_input is not None and sizes_input.numel():
        factors, lengths = _scales_for(ints(sizes_input), shape, keep_aspect_ratio_policy)
    else:
        factors = [float(s) for s in (scale_input.tolist() if scale_input is not None else scales or ())]
        lengths = [math.floor(size * factor) for size, factor in zip(shape, factors, strict=True)]
    budget([*(size for d, size in enumerate(x.shape) if d not in dims), *lengths])
    region = [0.0] * len(dims) + [1.0] * len(dims) if roi is None or not roi.numel() else roi.tolist()
    method = _Method(
        mode={"bilinear": "linear", "trilinear": "linear"}.get(mode, mode),
        coordinates=coordinate_transformation_mode or ("asymmetric" if early else "half_pixel"),
        nearest=nearest_mode or ("floor" if early else "round_prefer_floor"),
        cubic_a=cubic_coeff_a,
        antialias=bool(antialias),
        exclude_outside=bool(exclude_outside),
        extrapolation=extrapolation_value,
    )
    for k, dim in enumerate(dims):
        if lengths[k] != shape[k] or factors[k] != 1.0 or method.coordinates == "tf_crop_and_resize":
            axis = _Axis(shape[k], lengths[k], factors[k], region[k], region[k + len(dims)])
            x = method.apply(x, dim, axis)
    return x
