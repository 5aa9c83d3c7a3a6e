"""Operators on boxes that are given by coordinates: NonMaxSuppression and MaxRoiPool."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gradlint.onnx_torch.registry import op


@op("NonMaxSuppression")
def _non_max_suppression(
    boxes: Tensor,
    scores: Tensor,
    most: Tensor | None = None,
    overlap: Tensor | None = None,
    threshold: Tensor | None = None,
    *,
    center_point_box: int = 0,
) -> Tensor:
    """Return the indices (batch, class, box) of the selected boxes, of shape (count, 3). They have no gradient."""
    limit, largest = (0 if most is None else int(most)), (0.0 if overlap is None else float(overlap))
    picked = []
    for batch, (image, classes) in enumerate(zip(boxes.detach(), scores.detach(), strict=True)):
        corners = _corners(image, centered=bool(center_point_box))
        for label, row in enumerate(classes):
            order = row.argsort(descending=True, stable=True)
            order = order if threshold is None else order[row[order] > float(threshold)]
            picked += [(batch, label, box) for box in _greedy(corners, order, limit, largest)]
    return torch.tensor(picked, dtype=torch.int64).reshape(-1, 3)


def _corners(boxes: Tensor, *, centered: bool) -> Tensor:
    """Return the lower and the upper corner of boxes.

    Boxes are given by two opposite corners, or by center, width and height if `centered`.
    """
    if centered:
        x, y, width, height = boxes.unbind(-1)
        boxes = torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], -1)
    first, second = boxes[:, :2], boxes[:, 2:]
    return torch.cat([torch.minimum(first, second), torch.maximum(first, second)], -1)


def _greedy(corners: Tensor, order: Tensor, limit: int, largest: float) -> Iterator[int]:
    """Yield up to `limit` boxes, the best first, without boxes whose IoU with a yielded one exceeds `largest`."""
    areas = (corners[:, 2:] - corners[:, :2]).prod(-1)
    for _ in range(limit):
        if not len(order):
            return
        best, order = order[0], order[1:]
        yield int(best)
        low = torch.maximum(corners[best, :2], corners[order, :2])
        high = torch.minimum(corners[best, 2:], corners[order, 2:])
        shared = (high - low).clamp(min=0).prod(-1)
        order = order[shared <= largest * (areas[best] + areas[order] - shared)]


@op("MaxRoiPool")
def _max_roi_pool(x: Tensor, rois: Tensor, *, pooled_shape: Sequence[int], spatial_scale: float = 1.0) -> Tensor:
    height, width = x.shape[2:]
    pooled = []
    for batch, *edges in rois.detach().tolist():
        left, top, right, bottom = (math.floor(edge * spatial_scale + 0.5) for edge in edges)
        rows, columns = _bins(top, bottom, pooled_shape[0], height), _bins(left, right, pooled_shape[1], width)
        cells = [_largest(x[int(batch), :, row, column]) for row in rows for column in columns]
        pooled.append(torch.stack(cells, -1).reshape(-1, *pooled_shape))
    return torch.stack(pooled) if pooled else x.new_zeros(0, x.shape[1], *pooled_shape)


def _bins(first: int, last: int, count: int, size: int) -> list[slice]:
    """Divide the range from `first` to `last`, inclusive, of an axis with `size` elements into `count` slices.

    Neighboring slices may overlap.
    """
    step = max(last - first + 1, 1) / count
    edges = [(first + math.floor(k * step), first + math.ceil((k + 1) * step)) for k in range(count)]
    return [slice(*(min(max(edge, 0), size) for edge in pair)) for pair in edges]


def _largest(cell: Tensor) -> Tensor:
    return cell.amax((1, 2)) if cell.numel() else cell.new_zeros(cell.shape[0])
