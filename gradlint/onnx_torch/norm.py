"""Normalization operators."""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import Tensor

from gradlint.onnx_torch.registry import Context, op


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    """Reshape values, one per channel or one per position of each channel, so that they broadcast to `x`."""
    return values.reshape(*values.shape, *(1,) * (x.dim() - 1 - values.dim()))


@op("BatchNormalization")
def _batch_norm(  # noqa: PLR0917 - ONNX has five inputs
    ctx: Context,
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
    is_test: int = 0,
    spatial: int = 1,
) -> tuple[Tensor, ...]:
    training = not is_test if ctx.opset < 7 else bool(training_mode) or (ctx.opset < 14 and ctx.wants(1))
    wide = x.to(scale.dtype)  # half-precision inputs with float32 parameters are allowed
    frozen = not (training or mean.requires_grad or var.requires_grad)  # torch's kernel does not differentiate statistics
    if frozen and spatial:
        y = nnf.batch_norm(wide, mean.to(scale.dtype), var.to(scale.dtype), scale, bias, training=False, eps=epsilon)
        return (y.to(x.dtype),)
    axes = tuple(a for a in range(x.dim()) if a != 1) if spatial else (0,)  # before opset 9 also per position
    batch_var, batch_mean = torch.var_mean(wide, axes, correction=0) if training else (var, mean)
    centered = (wide - _per_channel(batch_mean, x)) * _per_channel(torch.rsqrt(batch_var + epsilon), x)
    y = centered * _per_channel(scale, x) + _per_channel(bias, x)
    if not training:
        return (y.to(x.dtype),)
    running = [old * momentum + new.to(old.dtype) * (1 - momentum) for old, new in ((mean, batch_mean), (var, batch_var))]
    return (y.to(x.dtype), *running, batch_mean, batch_var)


@op("InstanceNormalization")
def _instance_norm(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    return nnf.group_norm(x, x.shape[1], scale, bias, epsilon)  # unlike instance_norm, it accepts a single position


@op("GroupNormalization")
def _group_norm(x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1) -> Tensor:
    del stash_type  # torch accumulates in at least float32
    repeat = x.shape[1] // scale.numel()  # one scale per group before opset 21, one per channel since then
    return nnf.group_norm(x, num_groups, scale.repeat_interleave(repeat), bias.repeat_interleave(repeat), epsilon)


@op("LayerNormalization")
def _layer_norm(
    ctx: Context,
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> tuple[Tensor, ...]:
    wide = x.float() if stash_type == 1 and x.dtype in (torch.float16, torch.bfloat16) else x
    normalized = nnf.layer_norm(wide, x.shape[axis:], eps=epsilon).to(x.dtype)
    y = normalized * scale if bias is None else normalized * scale + bias
    if not (ctx.wants(1) or ctx.wants(2)):
        return (y,)
    axes = tuple(range(axis % x.dim(), x.dim()))
    var, mean = torch.var_mean(wide, axes, correction=0, keepdim=True)
    return y, mean, torch.rsqrt(var + epsilon)


@op("LRN")
def _lrn(x: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> Tensor:
    ends = [0, 0] * (x.dim() - 2) + [(size - 1) // 2, size // 2]
    squares = nnf.pad(x.square(), ends).unfold(1, size, 1).sum(-1)
    return x * (bias + alpha / size * squares) ** -beta


@op("LpNormalization")
def _lp_norm(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    norm = torch.linalg.vector_norm(x, ord=p, dim=axis, keepdim=True)
    return x / torch.where(norm == 0, torch.ones_like(norm), norm)  # a zero vector stays zero and has a finite gradient
