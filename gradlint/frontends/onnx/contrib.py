"""Operators of com.microsoft, which onnxruntime writes: their operator in the vocabulary, and their weights by role.

A layer with an activation fused into it keeps its weight under "fused_weight": the gain of the weight alone says nothing of it.
Weights that are quantized in blocks are seen as the real numbers that they stand for, and are not trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


from gradlint.frontends.onnx.call import Call
from gradlint.frontends.onnx.constants import Constant

MICROSOFT = "com.microsoft"
SLOTS: dict[str, tuple[tuple[int, str, int], ...]] = {  # (input slot, role, axis of output units)
    "Attention": ((1, "in_proj", 1), (2, "in_proj_bias", 0)),
    "BiasAdd": ((1, "bias", 0),),
    "BiasDropout": ((1, "bias", 0),),
    "BiasGelu": ((1, "bias", 0),),
    "BiasSplitGelu": ((1, "bias", 0),),
    "BitmaskBiasDropout": ((1, "bias", 0),),
    "ConvTransposeWithDynamicPads": ((1, "weight", 1), (3, "bias", 0)),
    "DecoderAttention": ((2, "q_proj", 1), (3, "kv_proj", 1), (4, "in_proj_bias", 0)),
    "DecoderMaskedSelfAttention": ((1, "in_proj", 1), (2, "in_proj_bias", 0)),
    "FastGelu": ((1, "bias", 0),),
    "FusedConv": ((1, "weight", 0), (2, "bias", 0)),
    "GatedRMSNorm": ((1, "scale", 0),),
    "GemmFastGelu": ((1, "weight", 1), (2, "bias", 0)),
    "GroupNorm": ((1, "scale", 0), (2, "bias", 0)),
    "LongformerAttention": ((1, "in_proj", 1), (2, "in_proj_bias", 0), (4, "global_proj", 1), (5, "global_proj_bias", 0)),
    "NhwcConv": ((1, "weight", 0), (2, "bias", 0)),
    "NhwcFusedConv": ((1, "weight", 0), (2, "bias", 0)),
    "PackedAttention": ((1, "in_proj", 1), (2, "in_proj_bias", 0)),
    "SkipGroupNorm": ((1, "scale", 0), (2, "bias", 0)),
    "SkipSimplifiedLayerNormalization": ((2, "scale", 0),),
}
_TABLES = ((2, "weight", 1), (3, "position", 1), (4, "segment", 1), (5, "scale", 0), (6, "bias", 0))
_N_BITS = (("N", 0), ("K", 0), ("bits", 4), ("block_size", 0))  # attributes and their defaults
_LARGEST = 1 << 26  # elements: a larger quantized weight would fill the memory when it is seen as real numbers
_PACKED = (2, 4, 8)  # bits of one number in a uint8 array
_SILU = 1e-3  # QuickGelu with an alpha so near to 1 is SiLU


def fused(call: Call) -> None:
    """A layer with an activation, or without one."""
    activation = call.attrs.get("activation", "FastGelu" if call.node.op_type == "GemmFastGelu" else "")
    if activation and "weight" in call.weights:
        call.weights["fused_weight"] = call.weights.pop("weight")


def matmul(call: Call) -> None:
    """Y = alpha A' B'; a constant matrix on either side makes a linear layer."""
    batches = any(call.attrs.get(name) for name in ("transBatchA", "transBatchB"))
    left, right = call.matrix(0), call.matrix(1)
    constant = left if right is None else right
    if constant is None or batches or len(constant.shape) < 2 or any(size != 1 for size in constant.shape[:-2]):
        return
    alpha = _real(call.attrs.get("alpha"), 1.0)
    turned = bool(call.attrs.get("transA" if right is None else "transB"))
    seen = constant if alpha == 1.0 else constant.seen(lambda values: values * values.dtype.type(alpha), constant.shape)
    call.add_weight("weight", seen, len(constant.shape) - (2 if turned is (right is not None) else 1))
    call.op = "linear"
    fused(call)


def attention(call: Call) -> None:
    """Attention that projects its input by itself."""
    call.op = "multi_head_attention"


def bias_dropout(call: Call) -> None:
    """dropout(x + bias) + residual."""
    call.attrs |= {"training": False, "training_mode": False}
    if len(call.operands) > 2 and call.operands[2] is not None:
        call.op = "add"


def quick_gelu(call: Call) -> None:
    """A sigmoid of alpha x, times x."""
    if abs(_real(call.attrs.get("alpha"), 1.702) - 1.0) < _SILU:
        call.op = "silu"


def embed(call: Call) -> None:
    """Words, positions and segments looked up, added and normalised; operands as a Gather has them: the table, then the ids."""
    if call.matrix(2) is None or len(call.operands) < 3:
        return
    for slot, role, axis in _TABLES:
        call.add_weight(role, call.matrix(slot), axis)
    call.op = "embedding"
    words, segments, table, *rest = call.operands
    call.operands[:] = (table, words, segments, *rest)


def table(call: Call) -> None:
    """A lookup in a table that is not quantized."""
    weight = call.matrix(0)
    if weight is not None and len(weight.shape) == 2:
        call.add_weight("weight", weight, 1)
        call.op = "embedding"


def quantized_table(call: Call) -> None:
    """A lookup in a table that is quantized in blocks along its rows."""
    data, attrs = call.constant(0), call.attrs
    if data is None or len(data.shape) != 2 or attrs.get("gather_axis", 0) != 0 or attrs.get("quantize_axis", 1) not in {1, -1}:
        return
    packed = data.dtype == "uint8"
    bits = _whole(attrs.get("bits", 4))
    columns = data.shape[1] * 8 // bits if packed and bits in _PACKED else data.shape[1]
    middle = 2 ** (bits - 1) if packed and bits in _PACKED else 0
    blocks = _Blocks(
        data, call.constant(2), call.constant(3), data.shape[0], columns, _whole(attrs.get("block_size", 128)), middle
    )
    if (packed and bits not in _PACKED) or not (packed or data.dtype in {"int4", "uint4", "int8"}):
        return
    _add(call, replace(blocks, bits=bits if packed else None), 1, "embedding")


def n_bits(call: Call) -> None:
    """A linear layer whose weight is quantized in blocks of its inputs: N rows of K numbers."""
    rows, columns, bits, block = (_whole(call.attrs.get(name, default)) for name, default in _N_BITS)
    data, order = call.constant(1), call.constant(4)
    if data is None or data.dtype != "uint8" or order is not None or bits not in _PACKED or call.attrs.get("weight_prepacked"):
        return
    _add(call, _Blocks(data, call.constant(2), call.constant(3), rows, columns, block, 2 ** (bits - 1), bits), 0, "linear")
    call.add_weight("bias", call.matrix(5))


def _real(value: Any, default: float) -> float:
    """An attribute that should be a number; nothing checks those of a foreign domain."""
    return float(value) if isinstance(value, (int, float)) else default


def _whole(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _add(call: Call, blocks: _Blocks, out_axis: int, op: str) -> None:
    """Give a call its quantized weight and its operator, when the sizes of what it is made of fit."""
    if blocks.fits:
        call.weights["weight"] = call.make_weight(blocks.constant, out_axis, False)
        call.op = op


@dataclass(frozen=True)
class _Blocks:
    """A matrix (rows, columns) as (code - zero) x scale, one scale and one zero a block of `block` columns.

    Codes and zeros are packed into bytes where `bits` says so, low bits first; without `zeros` every zero is `middle`.
    """

    codes: Constant
    scales: Constant | None
    zeros: Constant | None
    rows: int
    columns: int
    block: int
    middle: int
    bits: int | None = None

    @property
    def fits(self) -> bool:
        """Whether every array has as many elements as the sizes ask for, and the matrix is not too large."""
        if self.scales is None or min(self.rows, self.columns, self.block) < 1 or self.rows * self.columns > _LARGEST:
            return False
        each = 8 // self.bits if self.bits else 1
        whole = self.codes.size * each in {self.rows * self.columns, self.rows * self._count * self.block}
        zeros = self.zeros is None or self.zeros.size in {self._count * self.rows, self.rows * math.ceil(self._count / each)}
        return whole and zeros and self.scales.size == self.rows * self._count and self.scales.is_float

    @property
    def _count(self) -> int:
        return math.ceil(self.columns / self.block)

    @property
    def constant(self) -> Constant:
        """The matrix, computed when somebody looks."""
        return replace(self.codes, shape=(self.rows, self.columns), dtype="float32", load=self._load)

    def _load(self) -> NDArray[Any]:
        assert self.scales is not None
        codes = _unpacked(self.codes.load(), self.bits).reshape(self.rows, -1)[:, : self.columns]
        zeros: NDArray[Any] | float = float(self.middle)
        if self.zeros is not None:
            bits = self.bits if self.zeros.dtype == "uint8" else None
            zeros = self._spread(_unpacked(self.zeros.load(), bits).reshape(self.rows, -1)[:, : self._count])
        values: NDArray[Any] = (codes.astype(np.float32) - zeros) * self._spread(self.scales.load().reshape(self.rows, -1))
        return values

    def _spread(self, values: NDArray[Any]) -> NDArray[Any]:
        """One value a block, repeated for each of its columns."""
        return np.repeat(values.astype(np.float32), self.block, axis=1)[:, : self.columns]


def _unpacked(values: NDArray[Any], bits: int | None) -> NDArray[Any]:
    """The numbers that bytes hold, `bits` each, along the last axis."""
    if bits is None or bits == 8:
        return values
    parts = values[..., None] >> np.arange(0, 8, bits, dtype=np.uint8) & np.uint8(2**bits - 1)
    return parts.reshape(*values.shape[:-1], -1)


SPECIAL: dict[str, Sequence[Callable[[Call], None]]] = {
    "Attention": (attention,),
    "BiasDropout": (bias_dropout,),
    "BitmaskBiasDropout": (bias_dropout,),
    "BitmaskDropout": (bias_dropout,),
    "EmbedLayerNormalization": (embed,),
    "FusedConv": (fused,),
    "FusedMatMul": (matmul,),
    "FusedMatMulActivation": (matmul,),
    "GatherBlockQuantized": (quantized_table,),
    "GemmFastGelu": (fused,),
    "MatMulNBits": (n_bits,),
    "NhwcFusedConv": (fused,),
    "QuickGelu": (quick_gelu,),
    "TorchEmbedding": (table,),
    "TransposeMatMul": (matmul,),
}
