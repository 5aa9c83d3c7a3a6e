"""Reductions, and cumulative sums and products."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gradlint.onnx_torch.registry import ints, op

Reduction = Callable[[Tensor, tuple[int, ...], bool], Tensor]


def _reduction(name: str, function: Reduction, empty: float | None = None) -> None:
    """Register `function(x, axes, keepdim)`. `empty` is the result for an empty tensor, if torch defines none."""

    @op(name)
    def kernel(
        x: Tensor,
        axes_input: Tensor | None = None,
        *,
        axes: Sequence[int] | None = None,
        keepdims: int = 1,
        noop_with_empty_axes: int = 0,
    ) -> Tensor:
        given = ints(axes_input if axes_input is not None else axes or ())
        if not given and noop_with_empty_axes:  # only the elementwise part
            return function(x.unsqueeze(-1), (-1,), False).to(x.dtype)
        where = tuple(axis % x.dim() for axis in given) if given else tuple(range(x.dim()))
        if empty is not None and x.numel() == 0:
            sizes = [1 if a in where else size for a, size in enumerate(x.shape) if keepdims or a not in where]
            return torch.full(sizes, _bound(x.dtype, empty), dtype=x.dtype)
        return function(x, where, bool(keepdims)).to(x.dtype)


def _bound(dtype: torch.dtype, infinity: float) -> float:
    if dtype.is_floating_point:
        return infinity
    limits = torch.iinfo(dtype) if dtype != torch.bool else None
    low, high = (limits.min, limits.max) if limits else (0, 1)
    return high if infinity > 0 else low


def _prod(x: Tensor, axes: tuple[int, ...], keepdim: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keepdim=keepdim)
    return x


def _mean(x: Tensor, axes: tuple[int, ...], keepdim: bool) -> Tensor:
    return (x if x.is_floating_point() else x.double()).mean(axes, keepdim)


_reduction("ReduceSum", lambda x, axes, keepdim: x.sum(axes, keepdim))
_reduction("ReduceMean", _mean)
_reduction("ReduceProd", _prod)
_reduction("ReduceMax", lambda x, axes, keepdim: x.amax(axes, keepdim), empty=-torch.inf)
_reduction("ReduceMin", lambda x, axes, keepdim: x.amin(axes, keepdim), empty=torch.inf)
_reduction("ReduceL1", lambda x, axes, keepdim: x.abs().sum(axes, keepdim))
_reduction("ReduceL2", lambda x, axes, keepdim: torch.linalg.vector_norm(x, dim=axes, keepdim=keepdim))
_reduction("ReduceSumSquare", lambda x, axes, keepdim: x.square().sum(axes, keepdim))
_reduction("ReduceLogSum", lambda x, axes, keepdim: x.sum(axes, keepdim).log())
_reduction("ReduceLogSumExp", torch.logsumexp)


def _running(name: str, function: Callable[[Tensor, int], Tensor], start: float) -> None:
    @op(name)
    def kernel(x: Tensor, axis_input: Tensor, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
        axis = int(axis_input)
        x = x.flip(axis) if reverse else x
        if exclusive:  # exclude the element itself: shift by one
            x = torch.cat([torch.full_like(x.narrow(axis, 0, 1), start), x.narrow(axis, 0, x.shape[axis] - 1)], axis)
        y = function(x, axis).to(x.dtype)
        return y.flip(axis) if reverse else y


_running("CumSum", torch.cumsum, 0.0)
_running("CumProd", torch.cumprod, 1.0)
