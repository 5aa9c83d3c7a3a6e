"""Operators that sample at computed positions: GridSample, RoiAlign, DeformConv, Col2Im."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as nnf
from torch import Tensor

from gradlint.onnx_torch.registry import budget, ints, op


@op("GridSample")
def _grid_sample(x: Tensor, grid: Tensor, *, align_corners: int = 0, mode: str = "linear", padding_mode: str = "zeros") -> Tensor:
    method = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)
    return nnf.grid_sample(x, grid.to(x.dtype), method, padding_mode, bool(align_corners))


def _corners(y: Tensor, x: Tensor, height: int, width: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return row, column and bilinear weight of the four neighbors of each point (y, x)."""
    top, left = y.detach().floor(), x.detach().floor()
    down, right = y - top, x - left
    corners = []
    for row, row_weight in ((top, 1 - down), (top + 1, down)):
        for column, column_weight in ((left, 1 - right), (left + 1, right)):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            weight = torch.where(inside, row_weight * column_weight, torch.zeros_like(row_weight))
            corners.append((row.clamp(0, height - 1).long(), column.clamp(0, width - 1).long(), weight))
    return corners


@op("RoiAlign")
def _roi_align(
    x: Tensor,
    rois: Tensor,
    batch: Tensor,
    *,
    coordinate_transformation_mode: str = "half_pixel",
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> Tensor:
    half = coordinate_transformation_mode == "half_pixel"
    pooled = []
    for roi, image in zip(rois * spatial_scale - (0.5 if half else 0.0), x[batch.long()], strict=True):
        places, counts = [], []
        for low, high, bins in ((roi[1], roi[3], output_height), (roi[0], roi[2], output_width)):
            extent = high - low if half else (high - low).clamp(min=1.0)
            count = sampling_ratio if sampling_ratio > 0 else math.ceil(float(extent) / bins)
            places.append(low + (torch.arange(bins * count, dtype=x.dtype) + 0.5) * extent / (bins * count))
            counts.append(count)
        terms = _sampled(image, places[0], places[1])
        cells = terms.reshape(4, -1, output_height, counts[0], output_width, counts[1])
        pooled.append(cells.sum(0).mean((2, 4)) if mode == "avg" else cells.amax((0, 3, 5)))
    return torch.stack(pooled) if pooled else x.new_zeros(0, x.shape[1], output_height, output_width)


def _sampled(image: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Return the four weighted neighbors of each point of the grid with rows `y` and columns `x`.

    The shape is (4, channels, rows, columns). Points that are a pixel or more outside the image are 0.
    """
    height, width = image.shape[1:]
    inside = ((y >= -1) & (y <= height))[:, None] & ((x >= -1) & (x <= width))
    y, x = torch.meshgrid(y.clamp(0, height - 1), x.clamp(0, width - 1), indexing="ij")
    return torch.stack([image[:, row, column] * weight * inside for row, column, weight in _corners(y, x, height, width)])


@op("DeformConv")
def _deform_conv(
    x: Tensor,
    weight: Tensor,
    offset: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    dilations: Sequence[int] = (1, 1),
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    offset_group: int = 1,
    pads: Sequence[int] = (0, 0, 0, 0),
    strides: Sequence[int] = (1, 1),
) -> Tensor:
    kernel = list(kernel_shape or weight.shape[2:])
    n, channels, height, width = x.shape
    rows, columns = offset.shape[2:]
    taps = kernel[0] * kernel[1]
    shifts = offset.reshape(n, offset_group, taps, 2, rows, columns)
    tap_y, tap_x = torch.meshgrid(torch.arange(kernel[0]), torch.arange(kernel[1]), indexing="ij")
    base_y = torch.arange(rows)[:, None] * strides[0] - pads[0] + (tap_y * dilations[0]).reshape(-1, 1, 1)
    base_x = torch.arange(columns)[None, :] * strides[1] - pads[1] + (tap_x * dilations[1]).reshape(-1, 1, 1)
    image = x.reshape(n, offset_group, channels // offset_group, height * width)
    patches = torch.zeros((), dtype=x.dtype)
    for row, column, share in _corners(base_y + shifts[:, :, :, 0], base_x + shifts[:, :, :, 1], height, width):
        index = (row * width + column).reshape(n, offset_group, 1, -1).expand(-1, -1, image.shape[2], -1)
        patches = patches + image.gather(3, index).reshape(n, offset_group, -1, taps, rows, columns) * share[:, :, None]
    if mask is not None:
        patches = patches * mask.reshape(n, offset_group, 1, taps, rows, columns)
    patches = patches.reshape(n, group, channels // group * taps, rows * columns)
    y = weight.reshape(1, group, weight.shape[0] // group, -1) @ patches
    y = y.reshape(n, weight.shape[0], rows, columns)
    return y if bias is None else y + bias.reshape(-1, 1, 1)


@op("Col2Im")
def _col2im(
    x: Tensor,
    image_shape: Tensor,
    block_shape: Tensor,
    *,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    sizes, block = ints(image_shape), ints(block_shape)
    rank, taps = len(sizes), math.prod(block)
    steps, gaps, edges = strides or [1] * rank, dilations or [1] * rank, pads or [0] * 2 * rank
    padded = [size + edges[a] + edges[a + rank] for a, size in enumerate(sizes)]
    budget([*x.shape[:2], *padded])
    place = torch.zeros((), dtype=torch.int64)
    for a in range(rank):  # the position of tap t of window w along each axis, combined in row-major order
        windows = (padded[a] - gaps[a] * (block[a] - 1) - 1) // steps[a] + 1
        along = torch.arange(block[a])[:, None] * gaps[a] + torch.arange(windows) * steps[a]
        place = place[:, None, :, None] * padded[a] + along[None, :, None, :] if a else along
        place = place.reshape(-1, along.shape[1] if not a else place.shape[2] * along.shape[1])
    values = x.reshape(x.shape[0], -1, taps * x.shape[2])
    image = x.new_zeros(*values.shape[:2], math.prod(padded)).index_add(2, place.reshape(-1), values)
    image = image.reshape(*values.shape[:2], *padded)
    for a, size in enumerate(sizes):
        image = image.narrow(2 + a, edges[a], size)
    return image
