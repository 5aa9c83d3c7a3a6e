"""Operators of the domain com.microsoft, which onnxruntime writes when it optimizes or quantizes a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

from gradlint.onnx_torch.quantize import dequantize, dynamic_quantize, rounded, subtract_zero_point
from gradlint.onnx_torch.registry import Context, op
from gradlint.onnx_torch.rnn import lstm


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


def _heads(x: Tensor, heads: int) -> Tensor:
    """Reshape (batch, time, heads x size) to (batch, heads, time, size)."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def _attend(query: Tensor, key: Tensor, value: Tensor, added: Sequence[Tensor | None], scale: float | None) -> Tensor:
    """Return the attention of tensors of shape (batch, heads, time, size), as (batch, time, heads x size).

    `added` are added to the scores before the softmax.
    """
    scores = query @ key.mT * (scale or 1 / math.sqrt(query.shape[-1]))
    for term in added:
        scores = scores if term is None else (scores + term).clamp_min(torch.finfo(scores.dtype).min)
    return (torch.softmax(scores, -1) @ value).transpose(1, 2).flatten(2)


def _mask_scores(mask: Tensor | None, query: Tensor, key: Tensor, low: float) -> Tensor | None:
    """Convert a mask to scores that are added: 0 where a key is seen, `low` where it is not.

    It is one of ones and zeros, of shape (batch, keys), (batch, queries, keys) or (batch, 1, most, most), or has the numbers of
    keys (batch,), or these and the first keys (2 x batch,).
    """
    if mask is None:
        return None
    batch, queries, keys = query.shape[0], query.shape[2], key.shape[2]
    if mask.dim() == 1:
        places = torch.arange(keys)
        seen = places < mask[:batch, None]
        seen = seen & (places >= mask[batch : 2 * batch, None]) if len(mask) == 2 * batch else seen
    elif mask.dim() == 4:
        seen = mask[:, :, keys - queries : keys, :keys] > 0
    else:
        seen = mask > 0
    seen = seen[:, None, None] if seen.dim() == 2 else seen[:, None] if seen.dim() == 3 else seen
    return torch.where(seen, 0.0, low).to(query.dtype)


def _causal_scores(query: Tensor, key: Tensor) -> Tensor:
    """Return scores that hide the keys after a query; the last query stands at the last key."""
    queries, keys = query.shape[2], key.shape[2]
    ahead = torch.ones(queries, keys, dtype=torch.bool).triu(1 + keys - queries)
    return torch.zeros(ahead.shape, dtype=query.dtype).masked_fill(ahead, torch.finfo(query.dtype).min)


def _joined(past: Tensor | None, new: Tensor) -> Tensor:
    """Append keys or values to those of earlier calls, along time."""
    return new if past is None else torch.cat([past, new], 2)


@op("com.microsoft::Attention")
def _attention(  # noqa: PLR0917 - one parameter per input of the operator
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    past: Tensor | None = None,
    added: Tensor | None = None,
    *,
    num_heads: int,
    do_rotary: int = 0,
    mask_filter_value: float = -10000.0,
    past_present_share_buffer: int = 0,
    qkv_hidden_sizes: Sequence[int] | None = None,
    rotary_embedding_dim: int = 0,
    scale: float | None = None,
    unidirectional: int = 0,
) -> tuple[Tensor, Tensor]:
    del rotary_embedding_dim
    if do_rotary or past_present_share_buffer:
        raise NotImplementedError("rotary embeddings and shared buffers of keys are not supported")
    joint = x @ weight if bias is None else x @ weight + bias
    parts = torch.split_with_sizes(joint, list(qkv_hidden_sizes or [joint.shape[-1] // 3] * 3), -1)
    query, key, value = (_heads(part, num_heads) for part in parts)
    before = (None, None) if past is None else (past[0], past[1])
    key, value = _joined(before[0], key), _joined(before[1], value)
    causal = _causal_scores(query, key) if unidirectional else None
    present = torch.stack([key, value]) if key.shape == value.shape else key
    return _attend(query, key, value, (_mask_scores(mask, query, key, mask_filter_value), added, causal), scale), present


@op("com.microsoft::MultiHeadAttention")
def _multi_head_attention(  # noqa: PLR0917 - one parameter per input of the operator
    query: Tensor,
    key: Tensor | None = None,
    value: Tensor | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    added: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    *,
    num_heads: int,
    mask_filter_value: float = -10000.0,
    scale: float | None = None,
    unidirectional: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    parts = _unpacked(query, key, value, num_heads)
    if bias is not None:
        apart = key is not None and key.dim() == 4  # keys of another sequence were projected before
        sizes = [part.shape[1] * part.shape[3] for part in parts]
        biases = torch.split_with_sizes(bias, sizes) if len(bias) == sum(sizes) else (bias, None, None)
        used = (biases[0], None, None) if apart else biases
        parts = tuple(
            part if own is None else part + own.reshape(num_heads, 1, -1) for part, own in zip(parts, used, strict=True)
        )
    keys, values = _joined(past_key, parts[1]), _joined(past_value, parts[2])
    causal = _causal_scores(parts[0], keys) if unidirectional else None
    terms = (_mask_scores(mask, parts[0], keys, mask_filter_value), added, causal)
    return _attend(parts[0], keys, values, terms, scale), keys, values


def _unpacked(query: Tensor, key: Tensor | None, value: Tensor | None, heads: int) -> tuple[Tensor, ...]:
    """Return query, key and value as (batch, heads, time, size), also of tensors that hold two or three of them."""
    if query.dim() == 5:  # (batch, time, heads, 3, size)
        return tuple(part.transpose(1, 2) for part in query.unbind(3))
    if key is None:
        raise ValueError("the keys are left out")
    if key.dim() == 5:  # (batch, time, heads, 2, size)
        return (_heads(query, heads), *(part.transpose(1, 2) for part in key.unbind(3)))
    if value is None:
        raise ValueError("the values are left out")
    return (_heads(query, heads), *(part if part.dim() == 4 else _heads(part, heads) for part in (key, value)))


@op("com.microsoft::DynamicQuantizeLSTM", like=lstm)
def _dynamic_quantize_lstm(  # noqa: PLR0917 - one parameter per input of the operator
    x: Tensor,
    weight: Tensor,
    recurrent: Tensor,
    bias: Tensor | None,
    lengths: Tensor | None,
    initial_h: Tensor | None,
    initial_c: Tensor | None,
    peephole: Tensor | None,
    weight_scale: Tensor,
    weight_zero: Tensor,
    recurrent_scale: Tensor,
    recurrent_zero: Tensor,
    **attributes: Any,
) -> tuple[Tensor, ...]:
    matrices = (_dequantized(weight, weight_scale, weight_zero), _dequantized(recurrent, recurrent_scale, recurrent_zero))
    return lstm(_coarse(x), *matrices, bias, lengths, (initial_h, initial_c), peephole, _coarse, **attributes)


def _dequantized(weight: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """Return weights of shape (directions, inputs, gates) as (directions, gates, inputs), of one scale for all or each gate."""
    scale, zero = (value.to(scale.dtype).reshape(weight.shape[0], 1, -1) for value in (scale, zero))
    return ((weight.to(scale.dtype) - zero) * scale).mT


def _coarse(x: Tensor) -> Tensor:
    """Round to 256 levels over the range of all values; the gradient passes straight through."""
    codes, scale, zero = dynamic_quantize(x)
    return dequantize(codes, scale, zero)


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
