"""Quantization, dequantization, and products of quantized tensors.

A quantized tensor is held as floats with integer values, so that it can be differentiated. The gradient of rounding is that of
the identity inside the range of the integer type, and zero outside: the straight-through estimator of Bengio, Leonard and
Courville (2013), arXiv:1308.3432. Outputs of the graph have the dtype that the file declares.
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
"""Operators whose results are integers on a scale of their own, so that their gradients cannot be compared with others."""


def spread(values: Tensor, x: Tensor, axis: int, block: int = 0) -> Tensor:
    """Reshape scales or zero points so that they broadcast to `x`.

    There is one for the whole tensor, one per channel along `axis`, or one per block of `block` elements along `axis`.
    """
    if values.numel() == 1:
        return values.reshape(())
    if values.dim() == 1 and not block:
        return values.reshape([-1 if a == axis % x.dim() else 1 for a in range(x.dim())])
    return values.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis]) if block else values


def rounded(x: Tensor, zero: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Add the zero point to `x`, saturate it to the range of `dtype`, and round it.

    The gradient is that of the saturation: rounding passes it on unchanged.
    """
    if dtype.is_floating_point:
        return saturated(x.detach(), dtype).to(x.dtype) + (x - x.detach())
    shift = x.new_zeros(()) if zero is None else zero.to(x.dtype)
    limits = torch.iinfo(dtype)
    inside = x.clamp(limits.min - shift, limits.max - shift)  # saturate first, because infinity minus infinity is NaN
    return inside.detach().round() + shift + (inside - inside.detach())


def subtract_zero_point(x: Tensor, zero: Tensor | None, axis: int = 1) -> Tensor:
    """Return quantized values minus their zero point, in float64, in which sums of products of 8-bit integers are exact."""
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
    """Return (x - zero) x scale, the real numbers that quantized values represent."""
    wide = x.to(scale.dtype)
    if zero is not None:
        wide = wide - spread(zero, x, axis, block_size).to(scale.dtype)
    y = wide * spread(scale, x, axis, block_size)
    return y.to(torch_dtype(output_dtype)) if output_dtype else y


@op("DynamicQuantizeLinear")
def dynamic_quantize(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes of 8 bits without sign for the range of all values and zero, their scale, and their zero point."""
    low, high = x.detach().amin().clamp(max=0.0), x.detach().amax().clamp(min=0.0)
    scale = (high - low) / 255
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = (-low / scale).round().clamp(0, 255).to(torch.uint8)
    scaled = x / scale
    # the range is that of x, so that values saturate only because the zero point is rounded
    return rounded(scaled.detach(), zero, torch.uint8) + (scaled - scaled.detach()), scale, zero


@op("MatMulInteger")
def _matmul_integer(a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None) -> Tensor:
    return subtract_zero_point(a, a_zero, -2) @ subtract_zero_point(b, b_zero, -1)


@op("ConvInteger", like=convolve)
def _conv_integer(
    x: Tensor, weight: Tensor, x_zero: Tensor | None = None, weight_zero: Tensor | None = None, **attributes: Any
) -> Tensor:
    return convolve(subtract_zero_point(x, x_zero), subtract_zero_point(weight, weight_zero, 0), None, **attributes)


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
    a_real = subtract_zero_point(a, a_zero, -2) * spread(a_scale, a, -2).double()
    y = a_real @ (subtract_zero_point(b, b_zero, -1) * spread(b_scale, b, -1).double())
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
    y = convolve(
        subtract_zero_point(x, x_zero),
        subtract_zero_point(weight, weight_zero, 0),
        None if bias is None else bias.double(),
        **attributes,
    )
    factor = spread(x_scale.double() * weight_scale.double(), y, 1) / y_scale.double()
    return rounded(y * factor, y_zero, y_zero.dtype)
