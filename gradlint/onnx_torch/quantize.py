"""Quantization to integers and back, and the products of integers between.

A quantized tensor is held as floats that are whole numbers, so that gradients pass through it. Rounding is the identity to
them within the range of the integer type, and a constant outside it: the straight-through estimator of Bengio, Leonard and
Courville (2013), arXiv:1308.3432. Outputs of the graph get the type that the file declares.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradlint.onnx_torch.dtypes import saturated, torch_dtype
from gradlint.onnx_torch.nn import convolve
from gradlint.onnx_torch.registry import op

INTEGERS = frozenset({"DynamicQuantizeLinear", "ConvInteger", "MatMulInteger", "QLinearMatMul", "QLinearConv", "QGemm"}) | {
    "QLinearAdd",
    "QLinearConcat",
    "QLinearGlobalAveragePool",
    "QLinearLeakyRelu",
    "QLinearMul",
    "QLinearSigmoid",
}
"""Operators whose results stand for real numbers of another scale, in which no gradient can be compared with those around."""


def spread(values: Tensor, x: Tensor, axis: int, block: int = 0) -> Tensor:
    """Scales or zero points, one a tensor, a channel of `axis` or a block of `block` elements, to combine with `x`."""
    if values.numel() == 1:
        return values.reshape(())
    if values.dim() == 1 and not block:
        return values.reshape([-1 if a == axis % x.dim() else 1 for a in range(x.dim())])
    return values.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis]) if block else values


def rounded(x: Tensor, zero: Tensor | None, dtype: torch.dtype) -> Tensor:
    """`x` shifted by the zero point, saturated and rounded to what `dtype` can hold, with the gradient of the saturation."""
    if dtype.is_floating_point:
        return saturated(x.detach(), dtype).to(x.dtype) + (x - x.detach())
    shift = x.new_zeros(()) if zero is None else zero.to(x.dtype)
    limits = torch.iinfo(dtype)
    inside = x.clamp(limits.min - shift, limits.max - shift)  # before rounding: infinity less infinity would be NaN
    return inside.detach().round() + shift + (inside - inside.detach())


def centred(x: Tensor, zero: Tensor | None, axis: int = 1) -> Tensor:
    """Quantized values less their zero point, in float64: products of 8-bit numbers sum beyond what float32 holds."""
    return x.double() if zero is None else x.double() - spread(zero, x, axis).double()


@op("QuantizeLinear", "com.microsoft::QuantizeLinear")
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
    x = x if x.is_floating_point() else x.to(scale.dtype)
    return rounded(x / spread(scale, x, axis, block_size), None if zero is None else spread(zero, x, axis, block_size), dtype)


@op("DequantizeLinear", "com.microsoft::DequantizeLinear")
def dequantize(
    x: Tensor, scale: Tensor, zero: Tensor | None = None, *, axis: int = 1, block_size: int = 0, output_dtype: int = 0
) -> Tensor:
    """The real numbers that quantized ones stand for."""
    wide = x.to(scale.dtype)
    if zero is not None:
        wide = wide - spread(zero, x, axis, block_size).to(scale.dtype)
    y = wide * spread(scale, x, axis, block_size)
    return y.to(torch_dtype(output_dtype)) if output_dtype else y


@op("DynamicQuantizeLinear")
def _dynamic_quantize(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    low, high = x.detach().amin().clamp(max=0.0), x.detach().amax().clamp(min=0.0)
    scale = (high - low) / 255
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = (-low / scale).round().clamp(0, 255).to(torch.uint8)
    scaled = x / scale
    # the range is that of x, so that nothing saturates but by the rounding of the zero point
    return rounded(scaled.detach(), zero, torch.uint8) + (scaled - scaled.detach()), scale, zero


@op("MatMulInteger")
def _matmul_integer(a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None) -> Tensor:
    return centred(a, a_zero, -2) @ centred(b, b_zero, -1)


@op("ConvInteger", like=convolve)
def _conv_integer(
    x: Tensor, weight: Tensor, x_zero: Tensor | None = None, weight_zero: Tensor | None = None, **attributes: Any
) -> Tensor:
    return convolve(centred(x, x_zero), centred(weight, weight_zero, 0), None, **attributes)


@op("QLinearMatMul")
def _qlinear_matmul(  # noqa: PLR0917 - ONNX has eight inputs
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
) -> Tensor:
    a_real = centred(a, a_zero, -2) * spread(a_scale, a, -2).double()
    y = a_real @ (centred(b, b_zero, -1) * spread(b_scale, b, -1).double())
    return rounded(y / spread(y_scale, y, -2).double(), spread(y_zero, y, -2), y_zero.dtype)


@op("QLinearConv", like=convolve)
def _qlinear_conv(  # noqa: PLR0917 - ONNX has nine inputs
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    weight_zero: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
    bias: Tensor | None = None,
    **attributes: Any,
) -> Tensor:
    y = convolve(centred(x, x_zero), centred(weight, weight_zero, 0), None if bias is None else bias.double(), **attributes)
    factor = spread(x_scale.double() * weight_scale.double(), y, 1) / y_scale.double()
    return rounded(y * factor, y_zero, y_zero.dtype)
