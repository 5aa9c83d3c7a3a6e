"""Matrix products and convolutions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as nnf
from torch import Tensor

from gradlint.onnx_torch.registry import BudgetError, budget, op, plain

plain({"MatMul": torch.matmul})
_LONGEST_STRIDE = 4096  # oneDNN aborts the process at four times this value


@op("Gemm")
def _gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,  # noqa: N803 - the name of the ONNX attribute
    transB: int = 0,  # noqa: N803
    broadcast: int = 0,
) -> Tensor:
    del broadcast  # the broadcasting of torch includes that of opset 1
    product = (a.T if transA else a) @ (b.T if transB else b)
    product = product if alpha == 1.0 else alpha * product
    if c is None:
        return product
    return product + (c if beta == 1.0 else beta * c)


@op("Einsum")
def _einsum(*xs: Tensor, equation: str) -> Tensor:
    return torch.einsum(equation.replace(" ", ""), *xs)


def same_pads(total: Sequence[int], auto_pad: str) -> tuple[list[int], list[int]]:
    """Divide the total padding of each axis into the padding before and after it.

    If the total is odd, the additional element comes after the axis, except for SAME_LOWER.
    """
    small = [t // 2 for t in total]
    large = [t - s for t, s in zip(total, small, strict=True)]
    return (large, small) if auto_pad == "SAME_LOWER" else (small, large)


def window_pads(
    sizes: Sequence[int], extent: Sequence[int], strides: Sequence[int], pads: Sequence[int] | None, auto_pad: str
) -> tuple[list[int], list[int]]:
    """Return the padding before and after each axis, for windows of `extent` elements on axes of `sizes` elements."""
    if auto_pad.startswith("SAME"):
        steps = [-(-size // stride) for size, stride in zip(sizes, strides, strict=True)]
        total = [max((n - 1) * s + e - size, 0) for n, s, e, size in zip(steps, strides, extent, sizes, strict=True)]
        return same_pads(total, auto_pad)
    if pads is None or auto_pad == "VALID":
        return [0] * len(sizes), [0] * len(sizes)
    return list(pads[: len(sizes)]), list(pads[len(sizes) :])


def interleave(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """Return paddings in the order that `torch.nn.functional.pad` takes: last axis first."""
    return [amount for pair in zip(reversed(before), reversed(after), strict=True) for amount in pair]


@op("Conv")
def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """Compute a convolution with the inputs and attributes of the ONNX operator Conv."""
    kernel = kernel_shape or weight.shape[2:]
    ones = [1] * len(kernel)
    stride, dilation = list(strides or ones), list(dilations or ones)
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    before, after = window_pads(x.shape[2:], extent, stride, pads, auto_pad)
    if before != after:
        x, before = nnf.pad(x, interleave(before, after)), [0] * len(kernel)
    return torch.convolution(x, weight, bias, stride, before, dilation, False, [0] * len(kernel), group)


@op("ConvTranspose")
def _conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    output_padding: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    kernel, sizes = kernel_shape or weight.shape[2:], x.shape[2:]
    rank = len(kernel)
    stride, dilation, extra = list(strides or [1] * rank), list(dilations or [1] * rank), list(output_padding or [0] * rank)
    full = [(n - 1) * s + (k - 1) * d + 1 for n, s, k, d in zip(sizes, stride, kernel, dilation, strict=True)]
    wanted = output_shape[-rank:] if output_shape else None
    if wanted is None and auto_pad.startswith("SAME"):
        wanted = [n * s for n, s in zip(sizes, stride, strict=True)]
    if wanted is not None:
        total = [f + e - w for f, e, w in zip(full, extra, wanted, strict=True)]
        before, after = same_pads(total, "SAME_UPPER" if auto_pad == "SAME_UPPER" else "SAME_LOWER")
    else:
        before, after = window_pads(sizes, kernel, stride, pads, auto_pad)
    budget([x.shape[0], weight.shape[1] * group, *full])
    if max(stride, default=1) > _LONGEST_STRIDE:
        raise BudgetError(f"it asks for strides of {stride}, more than {_LONGEST_STRIDE}")
    y = torch.convolution(x, weight, None, stride, [0] * rank, dilation, True, [0] * rank, group)
    y = nnf.pad(y, interleave([-b for b in before], [e - a for e, a in zip(extra, after, strict=True)]))
    return y if bias is None else y + bias.reshape(-1, *[1] * rank)
