"""Operators that read or write elements by index."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradlint.onnx_torch.registry import budget, op


def _positive(index: Tensor, size: int) -> Tensor:
    index = index.long()
    return torch.where(index < 0, index + size, index)


@op("Gather")
def _gather(x: Tensor, index: Tensor, *, axis: int = 0) -> Tensor:
    axis %= x.dim()
    picked = x.index_select(axis, _positive(index, x.shape[axis]).reshape(-1))
    return picked.reshape(x.shape[:axis] + index.shape + x.shape[axis + 1 :])


@op("GatherElements")
def _gather_elements(x: Tensor, index: Tensor, *, axis: int = 0) -> Tensor:
    return x.gather(axis, _positive(index, x.shape[axis]))


@op("GatherND")
def _gather_nd(x: Tensor, index: Tensor, *, batch_dims: int = 0) -> Tensor:
    batch = x.shape[:batch_dims]
    flat = x.reshape(-1, *x.shape[batch_dims:])
    places = index.long().reshape(flat.shape[0], -1, index.shape[-1])
    rows = torch.arange(flat.shape[0])[:, None].expand(places.shape[:2])
    picked = flat[(rows, *(_positive(places[..., k], flat.shape[k + 1]) for k in range(places.shape[-1])))]
    return picked.reshape(batch + index.shape[batch_dims:-1] + flat.shape[1 + index.shape[-1] :])


_REDUCE = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@op("Scatter", "ScatterElements")
def _scatter_elements(x: Tensor, index: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none") -> Tensor:
    places = _positive(index, x.shape[axis])
    if reduction == "none":
        return x.scatter(axis, places, updates)
    return x.scatter_reduce(axis, places, updates, _REDUCE[reduction])


@op("ScatterND")
def _scatter_nd(x: Tensor, index: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    depth = index.shape[-1]
    flat = x.reshape(-1, *x.shape[depth:])
    row = torch.zeros(index.shape[:-1], dtype=torch.int64)
    for k in range(depth):
        row = row * x.shape[k] + _positive(index[..., k], x.shape[k])
    updates = updates.reshape(-1, *x.shape[depth:])
    if reduction == "none":
        return flat.index_put((row.reshape(-1),), updates).reshape(x.shape)
    places = row.reshape(-1, *(1,) * (flat.dim() - 1)).expand_as(updates)
    return flat.scatter_reduce(0, places, updates, _REDUCE[reduction]).reshape(x.shape)


@op("TensorScatter")
def _tensor_scatter(past: Tensor, update: Tensor, write: Tensor | None = None, *, axis: int = -2, mode: str = "linear") -> Tensor:
    axis %= past.dim()
    start = torch.zeros(past.shape[0], dtype=torch.int64) if write is None else write.long()
    places = start[:, None] + torch.arange(update.shape[axis])  # (batch, length)
    if mode == "circular":
        places = places % past.shape[axis]
    places = places.reshape([*places.shape[:1], *(places.shape[1] if a == axis else 1 for a in range(1, past.dim()))])
    return past.scatter(axis, places.expand_as(update), update)


@op("OneHot")
def _one_hot(index: Tensor, depth: Tensor, values: Tensor, *, axis: int = -1) -> Tensor:
    size = int(depth)
    budget([index.numel(), size])
    axis %= index.dim() + 1
    wanted = torch.where(index < 0, index + size, index).unsqueeze(axis)
    classes = torch.arange(size).reshape([size if a == axis else 1 for a in range(index.dim() + 1)])
    return torch.where(wanted == classes, values[1], values[0])


@op("TopK")
def _top_k(
    x: Tensor, k_input: Tensor | None = None, *, k: int | None = None, axis: int = -1, largest: int = 1, sorted_: int = 1
) -> tuple[Tensor, Tensor]:
    del sorted_  # sorted output is always allowed
    count = int(k_input) if k_input is not None else int(k or 0)
    values, index = torch.sort(x, dim=axis, descending=bool(largest), stable=True)  # the lower index wins a tie
    return values.narrow(axis, 0, count), index.narrow(axis, 0, count)


def _arg(x: Tensor, axis: int, keepdims: int, last: int, *, largest: bool) -> Tensor:
    best = x.amax(axis, keepdim=True) if largest else x.amin(axis, keepdim=True)
    hits = (x == best).flip(axis) if last else x == best
    index = hits.int().argmax(axis, keepdim=True)
    index = x.shape[axis] - 1 - index if last else index
    return index if keepdims else index.squeeze(axis)


@op("ArgMax")
def _arg_max(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    return _arg(x, axis, keepdims, select_last_index, largest=True)


@op("ArgMin")
def _arg_min(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    return _arg(x, axis, keepdims, select_last_index, largest=False)


@op("NonZero")
def _non_zero(x: Tensor) -> Tensor:
    return (x if x.dim() else x.reshape(1)).nonzero().T


@op("Compress")
def _compress(x: Tensor, condition: Tensor, *, axis: int | None = None) -> Tensor:
    if axis is None:
        x, axis = x.reshape(-1), 0
    return x.index_select(axis, condition.nonzero().reshape(-1))


@op("Unique")
def _unique(x: Tensor, *, axis: int | None = None, sorted_: int = 1) -> tuple[Tensor, ...]:
    if axis is None:
        x, axis = x.reshape(-1), 0
    _, inverse, counts = torch.unique(x.detach(), dim=axis, return_inverse=True, return_counts=True)
    positions = torch.arange(inverse.numel())
    first = torch.full((counts.numel(),), inverse.numel()).scatter_reduce(0, inverse, positions, "amin")
    order: Any = torch.arange(first.numel()) if sorted_ else first.argsort()
    rank = torch.empty_like(order).scatter(0, order, torch.arange(order.numel()))
    return x.index_select(axis, first[order]), first[order], rank[inverse], counts[order]
