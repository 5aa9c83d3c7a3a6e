"""Pooling operators."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor

from gradlint.onnx_torch.nn import interleave, window_pads
from gradlint.onnx_torch.registry import Context, op


@dataclass(frozen=True, slots=True)
class _Windows:
    """The windows of a pooling operator, one entry per spatial axis.

    `before` and `after` are the padding. `extra` are the cells that `ceil_mode` adds after the padding.
    """

    kernel: list[int]
    stride: list[int]
    dilation: list[int]
    before: list[int]
    after: list[int]
    extra: list[int]

    @classmethod
    def of(
        cls,
        x: Tensor,
        kernel_shape: Sequence[int],
        *,
        strides: Sequence[int] | None,
        dilations: Sequence[int] | None,
        pads: Sequence[int] | None,
        auto_pad: str,
        ceil_mode: int,
    ) -> _Windows:
        ones = [1] * len(kernel_shape)
        stride, dilation = list(strides or ones), list(dilations or ones)
        extent = [(k - 1) * d + 1 for k, d in zip(kernel_shape, dilation, strict=True)]
        before, after = window_pads(x.shape[2:], extent, stride, pads, auto_pad)
        extra = []
        for size, e, s, b, a in zip(x.shape[2:], extent, stride, before, after, strict=True):
            rest = size + b + a - e
            steps = -(-rest // s) if ceil_mode else rest // s
            if steps * s >= size + b:  # the last window would begin in the padding
                steps -= ceil_mode
            extra.append(max(steps * s - rest, 0))
        return cls(list(kernel_shape), stride, dilation, before, after, extra)

    def pad(self, x: Tensor, inside: float, outside: float) -> Tensor:
        """Pad `x` with the value `inside`, and with the value `outside` in the cells that `ceil_mode` adds."""
        x = nnf.pad(x, interleave(self.before, self.after), value=inside)
        return nnf.pad(x, interleave([0] * len(self.extra), self.extra), value=outside)

    def sum(self, x: Tensor) -> Tensor:
        """Return the sum over each window of the padded `x`."""
        rank = len(self.kernel)
        for axis, (k, s, d) in enumerate(zip(self.kernel, self.stride, self.dilation, strict=True)):
            x = x.unfold(2 + axis, (k - 1) * d + 1, s)[..., ::d]
        return x.sum(tuple(range(-rank, 0)))


@op("AveragePool")
def _average_pool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    windows = _Windows.of(
        x, kernel_shape, strides=strides, dilations=dilations, pads=pads, auto_pad=auto_pad, ceil_mode=ceil_mode
    )
    count = windows.sum(windows.pad(torch.ones_like(x[:1, :1]), float(count_include_pad), 0.0))
    return windows.sum(windows.pad(x, 0.0, 0.0)) / count


@op("LpPool")
def _lp_pool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    p: float = 2.0,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    windows = _Windows.of(
        x, kernel_shape, strides=strides, dilations=dilations, pads=pads, auto_pad=auto_pad, ceil_mode=ceil_mode
    )
    return windows.sum(windows.pad(x.abs() ** p, 0.0, 0.0)) ** (1 / p)


_MAX_POOL = {1: nnf.max_pool1d_with_indices, 2: nnf.max_pool2d_with_indices, 3: nnf.max_pool3d_with_indices}


@op("MaxPool")
def _max_pool(
    ctx: Context,
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    storage_order: int = 0,
    strides: Sequence[int] | None = None,
) -> tuple[Tensor, ...]:
    windows = _Windows.of(
        x, kernel_shape, strides=strides, dilations=dilations, pads=pads, auto_pad=auto_pad, ceil_mode=ceil_mode
    )
    signal = x if x.is_floating_point() else x.float()
    padded = windows.pad(signal, -torch.inf, -torch.inf)
    pool = _MAX_POOL[len(kernel_shape)]
    y, index = pool(padded, windows.kernel, windows.stride, [0] * len(kernel_shape), windows.dilation)
    if not ctx.wants(1):
        return (y.to(x.dtype),)
    return y.to(x.dtype), _unpadded(index, x, padded, windows.before, column_major=bool(storage_order))


def _unpadded(index: Tensor, x: Tensor, padded: Tensor, before: Sequence[int], *, column_major: bool) -> Tensor:
    """Convert indices into each flattened map of `padded` to indices into the flattened `x`."""
    sizes = x.shape[2:]
    flat, stride = torch.zeros_like(index), 1
    places = []
    for size in reversed(padded.shape[2:]):
        places.append(index % size)
        index = index // size
    places = [p - b for p, b in zip(reversed(places), before, strict=True)]
    order = range(len(sizes)) if column_major else reversed(range(len(sizes)))
    for axis in order:
        flat, stride = flat + places[axis] * stride, stride * sizes[axis]
    maps = torch.arange(x.shape[0] * x.shape[1]).reshape(x.shape[0], x.shape[1], *(1,) * len(sizes))
    return flat + maps * stride


@op("MaxUnpool")
def _max_unpool(
    x: Tensor,
    index: Tensor,
    output_shape: Tensor | None = None,
    *,
    kernel_shape: Sequence[int],
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    rank = len(kernel_shape)
    edges, steps = list(pads or [0] * 2 * rank), list(strides or [1] * rank)
    natural = [
        (n - 1) * s + k - edges[a] - edges[a + rank]
        for a, (n, s, k) in enumerate(zip(x.shape[2:], steps, kernel_shape, strict=True))
    ]
    # the indices refer to the natural shape; a larger output_shape only appends cells to it
    shape = (*x.shape[:2], *natural)
    y = x.new_zeros(math.prod(shape)).scatter(0, index.reshape(-1), x.reshape(-1)).reshape(shape)
    if output_shape is None:
        return y
    room = [int(want) - have for want, have in zip(output_shape.tolist()[2:], natural, strict=True)]
    return nnf.pad(y, interleave([0] * rank, room))


def _spatial(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.dim()))


@op("GlobalAveragePool")
def _global_average_pool(x: Tensor) -> Tensor:
    return x.mean(_spatial(x), keepdim=True)


@op("GlobalMaxPool")
def _global_max_pool(x: Tensor) -> Tensor:
    return x.amax(_spatial(x), keepdim=True)


@op("GlobalLpPool")
def _global_lp_pool(x: Tensor, *, p: float = 2.0) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x, ord=p, dim=_spatial(x), keepdim=True)
    return norm
