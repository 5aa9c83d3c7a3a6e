"""ONNX activation functions, including softmax. The rows of `gradlint.ops` name the function of torch for most of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from operator import attrgetter

import torch
import torch.nn.functional as nnf
from torch import Tensor

from gradlint.onnx_torch.elementwise import align
from gradlint.onnx_torch.registry import Context, op, plain
from gradlint.ops import OPERATORS

for _row in OPERATORS.values():
    for _name, _kernel in _row.kernels.items():
        if isinstance(_kernel, str):
            plain({_name: attrgetter(_kernel)(torch)}, arity=1)
        else:
            op(_name)(partial(_kernel, torch))


@op("PRelu")
def _prelu(ctx: Context, x: Tensor, slope: Tensor) -> Tensor:
    if ctx.opset < 7 and slope.dim() == 1 and x.dim() > 1:
        slope = align(x, slope, 1)
    return torch.where(x >= 0, x, slope * x)


@op("Selu")
def _selu(
    ctx: Context,
    x: Tensor,
    *,
    alpha: float | None = None,
    gamma: float | None = None,
) -> Tensor:
    # opset 6 gave the default values more digits
    default_alpha, default_gamma = (1.6732, 1.0507) if ctx.opset < 6 else (1.6732632423543772, 1.0507009873554805)
    alpha, gamma = default_alpha if alpha is None else alpha, default_gamma if gamma is None else gamma
    return gamma * nnf.elu(x, alpha)


def _along_axis(name: str, function: Callable[[Tensor, int], Tensor]) -> None:
    @op(name)
    def kernel(ctx: Context, x: Tensor, *, axis: int | None = None) -> Tensor:
        if ctx.opset >= 13:
            return function(x, -1 if axis is None else axis)
        start = 1 if axis is None else axis % x.dim()  # before opset 13, one softmax spans all axes from this one on
        return function(x.flatten(start) if start < x.dim() else x.unsqueeze(-1), start).reshape(x.shape)


def _hardmax(x: Tensor, axis: int) -> Tensor:
    return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1.0)


_along_axis("Softmax", torch.softmax)
_along_axis("LogSoftmax", torch.log_softmax)
_along_axis("Hardmax", _hardmax)
