"""Operators that rearrange, copy or create elements without computing with them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor

from gradlint.onnx_torch.dtypes import torch_dtype
from gradlint.onnx_torch.registry import Context, budget, ints, op


@op("Shape")
def _shape(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    return torch.tensor(tuple(x.shape)[start:end], dtype=torch.int64)


@op("Size")
def _size(x: Tensor) -> Tensor:
    return torch.tensor(x.numel())


@op("Reshape")
def _reshape(x: Tensor, shape_input: Tensor | None = None, *, shape: Sequence[int] = (), allowzero: int = 0) -> Tensor:
    sizes = ints(shape if shape_input is None else shape_input)
    if not allowzero:  # a zero copies the size of that axis
        sizes = tuple(x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes))
    return x.reshape(sizes)


@op("Flatten")
def _flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    axis = axis + x.dim() if axis < 0 else axis
    return x.reshape(int(np.prod(x.shape[:axis])), int(np.prod(x.shape[axis:])))


@op("Transpose")
def _transpose(x: Tensor, *, perm: Sequence[int] | None = None) -> Tensor:
    return x.permute(tuple(reversed(range(x.dim()))) if perm is None else tuple(perm))


@op("Squeeze")
def _squeeze(x: Tensor, axes_input: Tensor | None = None, *, axes: Sequence[int] | None = None) -> Tensor:
    if axes_input is None and axes is None:
        return x.squeeze()
    dims = {axis % x.dim() for axis in ints(axes_input if axes_input is not None else axes or ())}
    for axis in dims:
        if x.shape[axis] != 1:
            raise ValueError(f"axis {axis} of shape {list(x.shape)} is not 1")
    return x.reshape([size for axis, size in enumerate(x.shape) if axis not in dims])


@op("Unsqueeze")
def _unsqueeze(x: Tensor, axes_input: Tensor | None = None, *, axes: Sequence[int] = ()) -> Tensor:
    new = ints(axes if axes_input is None else axes_input)
    rank = x.dim() + len(new)
    for axis in sorted(axis % rank for axis in new):
        x = x.unsqueeze(axis)
    return x


@op("Expand")
def _expand(x: Tensor, shape: Tensor) -> Tensor:
    return x.expand(budget(np.broadcast_shapes(tuple(x.shape), ints(shape))))


@op("Tile")
def _tile(ctx: Context, x: Tensor, repeats: Tensor, axis: Tensor | None = None) -> Tensor:
    counts = list(ints(repeats))
    if ctx.opset < 6 and axis is not None:
        counts = [counts[0] if a == int(axis) % x.dim() else 1 for a in range(x.dim())]
    budget([size * count for size, count in zip(x.shape, counts, strict=True)])
    return x.repeat(counts)


@op("Concat")
def _concat(*xs: Tensor, axis: int = 1) -> Tensor:
    return torch.cat(xs, axis)


@op("Split")
def _split(
    ctx: Context,
    x: Tensor,
    split_input: Tensor | None = None,
    *,
    axis: int = 0,
    split: Sequence[int] | None = None,
    num_outputs: int | None = None,
) -> tuple[Tensor, ...]:
    if split_input is not None or split is not None:
        return torch.split(x, list(ints(split_input if split_input is not None else split or ())), axis)
    del num_outputs  # the number of outputs, which a file may misstate
    count = len(ctx.outputs)
    chunk = -(-x.shape[axis] // count)  # the last part may be smaller
    bounds = [min(index * chunk, x.shape[axis]) for index in range(count + 1)]
    return torch.split(x, [high - low for low, high in pairwise(bounds)], axis)


@op("Slice")
def _slice(
    x: Tensor,
    starts_input: Tensor | None = None,
    ends_input: Tensor | None = None,
    axes_input: Tensor | None = None,
    steps_input: Tensor | None = None,
    *,
    starts: Sequence[int] = (),
    ends: Sequence[int] = (),
    axes: Sequence[int] | None = None,
) -> Tensor:
    first = ints(starts if starts_input is None else starts_input)
    last = ints(ends if ends_input is None else ends_input)
    where = ints(axes_input) if axes_input is not None else tuple(axes or range(len(first)))
    steps = (1,) * len(first) if steps_input is None else ints(steps_input)
    for start, end, axis, step in zip(first, last, where, steps, strict=True):
        low, high, _ = slice(start, end, step).indices(x.shape[axis])
        if step == 1:
            x = x.narrow(axis, low, max(high - low, 0))
        else:  # torch has no negative steps
            x = x.index_select(axis, torch.arange(low, high, step) if (high - low) * step > 0 else torch.zeros(0).long())
    return x


@op("Pad")
def _pad(
    x: Tensor,
    pads_input: Tensor | None = None,
    value_input: Tensor | None = None,
    axes: Tensor | None = None,
    *,
    mode: str = "constant",
    pads: Sequence[int] = (),
    paddings: Sequence[int] = (),
    value: float = 0.0,
) -> Tensor:
    amounts = ints(pads or paddings if pads_input is None else pads_input)
    where = range(x.dim()) if axes is None else [axis % x.dim() for axis in ints(axes)]
    begin, end = dict.fromkeys(range(x.dim()), 0), dict.fromkeys(range(x.dim()), 0)
    half = len(amounts) // 2
    begin.update(zip(where, amounts[:half], strict=True))
    end.update(zip(where, amounts[half:], strict=True))
    budget([max(size + begin[a] + end[a], 0) for a, size in enumerate(x.shape)])
    if mode == "constant":
        fill = value if value_input is None else value_input.item()
        return nnf.pad(x, [side[a] for a in reversed(range(x.dim())) for side in (begin, end)], value=fill)
    for axis, size in enumerate(x.shape):
        if begin[axis] or end[axis]:
            x = x.index_select(axis, _padded_index(size, begin[axis], end[axis], mode))
    return x


def _padded_index(size: int, begin: int, end: int, mode: str) -> Tensor:
    """Return the index of the element at each position of a padded axis. Negative amounts crop the axis."""
    index = np.arange(max(-begin, 0), size - max(-end, 0))
    kind: Any = mode  # numpy's literal types
    return torch.from_numpy(np.pad(index, (max(begin, 0), max(end, 0)), mode=kind))


@op("DepthToSpace")
def _depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    n, c, h, w = x.shape
    b = blocksize
    if mode == "DCR":
        parts = x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        parts = x.reshape(n, c // b**2, b, b, h, w).permute(0, 1, 4, 2, 5, 3)
    return parts.reshape(n, c // b**2, h * b, w * b)


@op("SpaceToDepth")
def _space_to_depth(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    n, c, h, w = x.shape
    b = blocksize
    parts = x.reshape(n, c, h // b, b, w // b, b)
    order = (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4)
    return parts.permute(order).reshape(n, c * b**2, h // b, w // b)


@op("ConstantOfShape")
def _constant_of_shape(shape: Tensor, *, value: Tensor | None = None) -> Tensor:
    fill = torch.zeros(1) if value is None else value
    return fill.reshape(()).expand(budget(ints(shape))).clone()


@op("Constant")
def _constant(
    *,
    value: Any = None,
    value_float: float | None = None,
    value_floats: Sequence[float] | None = None,
    value_int: int | None = None,
    value_ints: Sequence[int] | None = None,
    value_string: str | None = None,
    value_strings: Sequence[str] | None = None,
    sparse_value: Tensor | None = None,
) -> Any:
    if value is not None or sparse_value is not None:
        return sparse_value if value is None else value
    if value_string is not None or value_strings is not None:
        return np.array(value_string if value_strings is None else value_strings, dtype=object)
    floats = value_float if value_floats is None else value_floats
    if floats is not None:
        return torch.tensor(floats, dtype=torch.float32)
    return torch.tensor(value_int if value_ints is None else value_ints, dtype=torch.int64)


@op("Range")
def _range(start: Tensor, limit: Tensor, delta: Tensor, *, stash_type: int = 1) -> Tensor:
    del stash_type  # the steps are computed in float64
    count = max(int(torch.ceil((limit.double() - start.double()) / delta.double())), 0)
    steps = torch.arange(budget([count])[0], dtype=start.dtype if not start.dtype.is_floating_point else torch.float64)
    return (start + steps * delta).to(start.dtype)


@op("EyeLike")
def _eye_like(x: Tensor, *, dtype: int | None = None, k: int = 0) -> Tensor:
    rows, columns = torch.arange(x.shape[0])[:, None], torch.arange(x.shape[1])
    return (columns - rows == k).to(x.dtype if dtype is None else torch_dtype(dtype))


@op("Trilu")
def _trilu(x: Tensor, k: Tensor | None = None, *, upper: int = 1) -> Tensor:
    diagonal = 0 if k is None else int(k)
    return torch.triu(x, diagonal) if upper else torch.tril(x, diagonal)


@op("ReverseSequence")
def _reverse_sequence(x: Tensor, lengths: Tensor, *, batch_axis: int = 1, time_axis: int = 0) -> Tensor:
    moved = x.movedim((time_axis, batch_axis), (0, 1))
    steps = torch.arange(moved.shape[0])[:, None]
    index = torch.where(steps < lengths, lengths - 1 - steps, steps)
    return moved[index, torch.arange(moved.shape[1])].movedim((0, 1), (time_axis, batch_axis))
