"""Activation functions, softmax among them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as nnf
from torch import Tensor

from gradlint.onnx_torch.elementwise import align
from gradlint.onnx_torch.registry import Context, op, plain

plain({"Softplus": nnf.softplus, "Softsign": nnf.softsign, "Mish": nnf.mish, "HardSwish": nnf.hardswish})


@op("LeakyRelu")
def _leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    return nnf.leaky_relu(x, alpha)


@op("PRelu")
def _prelu(ctx: Context, x: Tensor, slope: Tensor) -> Tensor:
    if ctx.opset < 7 and slope.dim() == 1 and x.dim() > 1:
        slope = align(x, slope, 1)
    return torch.where(x >= 0, x, slope * x)


@op("Elu")
def _elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return nnf.elu(x, alpha)


@op("Selu")
def _selu(
    ctx: Context,
    x: Tensor,
    *,
    alpha: float | None = None,
    gamma: float | None = None,
) -> Tensor:
    default_alpha, default_gamma = (1.6732, 1.0507) if ctx.opset < 6 else (1.6732632423543772, 1.0507009873554805)
    alpha, gamma = default_alpha if alpha is None else alpha, default_gamma if gamma is None else gamma
    return gamma * nnf.elu(x, alpha)


@op("Celu")
def _celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return nnf.celu(x, alpha)


@op("Gelu")
def _gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    return nnf.gelu(x, approximate=approximate)


@op("Swish")
def _swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return x * torch.sigmoid(alpha * x)


@op("HardSigmoid")
def _hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    return torch.clamp(alpha * x + beta, 0.0, 1.0)


@op("ThresholdedRelu")
def _thresholded_relu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return nnf.threshold(x, alpha, 0.0)


@op("Shrink")
def _shrink(x: Tensor, *, bias: float = 0.0, lambd: float = 0.5) -> Tensor:
    shrunk = torch.where(x > lambd, x - bias, torch.zeros_like(x))
    return torch.where(x < -lambd, x + bias, shrunk)


def _along_axis(name: str, function: Callable[[Tensor, int], Tensor]) -> None:
    @op(name)
    def kernel(ctx: Context, x: Tensor, *, axis: int | None = None) -> Tensor:
        if ctx.opset >= 13:
            return function(x, -1 if axis is None else axis)
        start = 1 if axis is None else axis % x.dim()  # before opset 13 all axes from this one on are one
        return function(x.flatten(start) if start < x.dim() else x.unsqueeze(-1), start).reshape(x.shape)


def _hardmax(x: Tensor, axis: int) -> Tensor:
    return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1.0)


_along_axis("Softmax", torch.softmax)
_along_axis("LogSoftmax", torch.log_softmax)
_along_axis("Hardmax", _hardmax)
