"""Operators of the domain com.microsoft, which onnxruntime writes when it optimizes or quantizes a model."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as nnf
from torch import Tensor

from gradlint.onnx_torch.quantize import dequantize, rounded, subtract_zero_point
from gradlint.onnx_torch.registry import Context, op


@op("com.microsoft::FusedMatMul")
def _fused_matmul(
    a: Tensor,
    b: Tensor,
    *,
    alpha: float = 1.0,
    transA: int = 0,  # noqa: N803 - as onnxruntime spells it
    transB: int = 0,  # noqa: N803
) -> Tensor:
    return alpha * ((a.mT if transA else a) @ (b.mT if transB else b))


@op("com.microsoft::SkipLayerNormalization")
def _skip_layer_norm(
    x: Tensor,
    skip: Tensor,
    scale: Tensor,
    shift: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    epsilon: float = 1e-12,
) -> tuple[Tensor | None, ...]:
    total = x + skip if bias is None else x + skip + bias
    return nnf.layer_norm(total, total.shape[-1:], scale, shift, epsilon), None, None, total


@op("SimplifiedLayerNormalization", "com.microsoft::SimplifiedLayerNormalization")
def _simplified_layer_norm(x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1) -> Tensor:
    del stash_type
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    axes = tuple(range(axis % x.dim(), x.dim()))
    return (wide * torch.rsqrt(wide.square().mean(axes, keepdim=True) + epsilon)).to(x.dtype) * scale


@op("com.microsoft::SkipSimplifiedLayerNormalization")
def _skip_simplified_layer_norm(
    x: Tensor, skip: Tensor, scale: Tensor, bias: Tensor | None = None, *, epsilon: float = 1e-5
) -> tuple[Tensor | None, ...]:
    total = x + skip if bias is None else x + skip + bias
    return _simplified_layer_norm(total, scale, epsilon=epsilon), None, None, total


@op("com.microsoft::EmbedLayerNormalization")
def _embed_layer_norm(  # noqa: PLR0917 - one parameter per input of the operator
    words: Tensor,
    segments: Tensor | None,
    word_table: Tensor,
    position_table: Tensor,
    segment_table: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    mask: Tensor | None = None,
    positions: Tensor | None = None,
    *,
    epsilon: float = 1e-12,
    mask_index_type: int = 0,
) -> tuple[Tensor, ...]:
    del mask_index_type
    places = torch.arange(words.shape[1]) if positions is None else positions.long()
    total = word_table[words.long()] + position_table[places]
    if segments is not None and segment_table is not None:
        total = total + segment_table[segments.long()]
    lengths = torch.zeros(words.shape[0], dtype=torch.int32) if mask is None else mask.sum(1, dtype=torch.int32)
    return nnf.layer_norm(total, total.shape[-1:], scale, shift, epsilon), lengths, total


def _attend(parts: Sequence[Tensor], heads: int, mask: Tensor | None, scale: float | None) -> Tensor:
    """Return the attention of query, key and value, each of shape (batch, time, heads x size). `mask` is added to the scores."""
    query, key, value = (x.reshape(*x.shape[:2], heads, -1).transpose(1, 2) for x in parts)
    scores = query @ key.mT * (scale or 1 / math.sqrt(query.shape[-1]))
    weights = torch.softmax(scores if mask is None else scores + mask, -1)
    return (weights @ value).transpose(1, 2).flatten(2)


def _mask_scores(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """Convert a mask to scores that are added: a mask (batch, keys) of ones and zeros, or the number of keys (batch,)."""
    if mask is None:
        return None
    if mask.dim() == 1:
        mask = torch.arange(like.shape[1]) < mask[:, None]
    return torch.where(mask.bool(), 0.0, torch.finfo(like.dtype).min).to(like.dtype)[:, None, None]


@op("com.microsoft::Attention")
def _attention(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    num_heads: int,
    mask_filter_value: float = -10000.0,
    qkv_hidden_sizes: Sequence[int] | None = None,
    scale: float | None = None,
    unidirectional: int = 0,
) -> Tensor:
    del mask_filter_value  # masked weights are zero with either value
    joint = x @ weight if bias is None else x @ weight + bias
    parts = torch.split_with_sizes(joint, list(qkv_hidden_sizes or [joint.shape[-1] // 3] * 3), -1)
    scores = _mask_scores(mask, x)
    if unidirectional:
        ahead = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        causal = torch.zeros(ahead.shape, dtype=x.dtype).masked_fill(ahead, torch.finfo(x.dtype).min)
        scores = causal if scores is None else torch.minimum(scores, causal)
    return _attend(parts, num_heads, scores, scale)


@op("com.microsoft::MultiHeadAttention")
def _multi_head_attention(  # noqa: PLR0917 - one parameter per input of the operator
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    added: Tensor | None = None,
    *,
    num_heads: int,
    mask_filter_value: float = -10000.0,
    scale: float | None = None,
) -> Tensor:
    del mask_filter_value
    parts = (query, key, value)
    if bias is not None:
        biases = torch.split_with_sizes(bias, [part.shape[-1] for part in parts])
        parts = (query + biases[0], key + biases[1], value + biases[2])
    scores = _mask_scores(mask, key)
    scores = added if scores is None else scores if added is None else scores + added
    return _attend(parts, num_heads, scores, scale)


def _requantized(y: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
    return rounded(y / scale, zero, torch.uint8 if zero is None else zero.dtype)


@op("com.microsoft::QLinearAdd", "com.microsoft::QLinearMul")
def _qlinear_pair(  # noqa: PLR0917 - one parameter per input of the operator
    ctx: Context,
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor | None,
    scale: Tensor,
    zero: Tensor | None = None,
) -> Tensor:
    left, right = dequantize(a, a_scale, a_zero), dequantize(b, b_scale, b_zero)
    return _requantized(left + right if ctx.op == "QLinearAdd" else left * right, scale, zero)


@op("com.microsoft::QLinearSigmoid")
def _qlinear_sigmoid(x: Tensor, x_scale: Tensor, x_zero: Tensor | None, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    return _requantized(torch.sigmoid(dequantize(x, x_scale, x_zero)), scale, zero)


@op("com.microsoft::QLinearLeakyRelu")
def _qlinear_leaky_relu(
    x: Tensor, x_scale: Tensor, x_zero: Tensor | None, scale: Tensor, zero: Tensor | None = None, *, alpha: float = 0.01
) -> Tensor:
    return _requantized(nnf.leaky_relu(dequantize(x, x_scale, x_zero), alpha), scale, zero)


@op("com.microsoft::QLinearGlobalAveragePool")
def _qlinear_global_average_pool(
    x: Tensor, x_scale: Tensor, x_zero: Tensor | None, scale: Tensor, zero: Tensor | None = None, *, channels_last: int = 0
) -> Tensor:
    axes = tuple(range(1, x.dim() - 1)) if channels_last else tuple(range(2, x.dim()))
    return _requantized(dequantize(x, x_scale, x_zero).mean(axes, keepdim=True), scale, zero)


@op("com.microsoft::QLinearConcat")
def _qlinear_concat(scale: Tensor, zero: Tensor, *parts: Tensor, axis: int) -> Tensor:
    real = [dequantize(*parts[k : k + 3]) for k in range(0, len(parts), 3)]
    return _requantized(torch.cat(real, axis), scale, zero)


@op("com.microsoft::QGemm")
def _qgemm(  # noqa: PLR0917 - one parameter per input of the operator
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    zero: Tensor | None = None,
    *,
    alpha: float = 1.0,
    transA: int = 0,  # noqa: N803
    transB: int = 0,  # noqa: N803
) -> Tensor:
    left, right = subtract_zero_point(a, a_zero), subtract_zero_point(b, b_zero, 0 if transB else 1)
    y = (left.mT if transA else left) @ (right.mT if transB else right)
    y = alpha * a_scale * b_scale * (y if bias is None else y + bias)
    return y.to(a_scale.dtype) if scale is None else _requantized(y, scale, zero)
