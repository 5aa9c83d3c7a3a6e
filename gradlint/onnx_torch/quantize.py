"""Quantization to integers and back; its rounding cuts the gradient, as it does in the file."""

from __future__ import annotations

import torch
from torch import Tensor

from gradlint.onnx_torch.dtypes import torch_dtype
from gradlint.onnx_torch.registry import op


def _spread(values: Tensor, x: Tensor, axis: int, block: int) -> Tensor:
    """Scales or zero points, one a tensor, a channel of `axis` or a block of `block` elements, to multiply `x`."""
    if values.numel() == 1:
        return values.reshape(())
    if values.dim() == 1 and not block:
        return values.reshape([-1 if a == axis % x.dim() else 1 for a in range(x.dim())])
    return values.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])


@op("QuantizeLinear")
def _quantize(
    x: Tensor,
    scale: Tensor,
    zero: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
    saturate: int = 1,
) -> Tensor:
    del precision, saturate
    dtype = torch_dtype(output_dtype) if output_dtype else torch.uint8 if zero is None else zero.dtype
    scaled = x / _spread(scale, x, axis, block_size)
    if dtype.is_floating_point:
        return scaled.to(dtype)
    shift = 0.0 if zero is None else _spread(zero, x, axis, block_size).to(scaled.dtype)
    limits = torch.iinfo(dtype)
    return (scaled.round() + shift).clamp(limits.min, limits.max).to(dtype)


@op("DequantizeLinear")
def _dequantize(
    x: Tensor, scale: Tensor, zero: Tensor | None = None, *, axis: int = 1, block_size: int = 0, output_dtype: int = 0
) -> Tensor:
    wide = x.to(scale.dtype)
    if zero is not None:
        wide = wide - _spread(zero, x, axis, block_size).to(scale.dtype)
    y = wide * _spread(scale, x, axis, block_size)
    return y.to(torch_dtype(output_dtype)) if output_dtype else y
