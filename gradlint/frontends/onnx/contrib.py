"""Operators of the domain com.microsoft, which onnxruntime writes: their canonical operator, and their weights by role.

The weight of a layer with a fused activation has the role "fused_weight", because its gain is not that of the whole operator.
Weights that are quantized in blocks are dequantized, and count as not trainable.
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
_LARGEST = 1 << 26  # elements: a larger quantized weight would take too much memory when it is dequantized
_PACKED = (2, 4, 8)  # possible bits per number in a uint8 array
_SILU = 1e-3  # QuickGelu whose alpha differs from 1 by less than this is SiLU


def fused(call: Call) -> None:
    """Translate a layer that may have a fused activation."""
    activation = call.attrs.get("activation", "FastGelu" if call.node.op_type == "GemmFastGelu" else "")
    if activation and "weight" in call.weights:
        call.weights["fused_weight"] = call.weights.pop("weight")


def matmul(call: Call) -> None:
    """Translate Y = alpha A' B'. It is a linear layer if either factor is a constant matrix."""
    batches = any(call.attrs.get(name) for name in ("transBatchA", "transBatchB"))
    left, right = call.float_constant(0), call.float_constant(1)
    constant = left if right is None else right
    if constant is None or batches or len(constant.shape) < 2 or any(size != 1 for size in constant.shape[:-2]):
        return
    alpha = _number(call.attrs.get("alpha"), 1.0)
    turned = bool(call.attrs.get("transA" if right is None else "transB"))
    seen = constant if alpha == 1.0 else constant.transformed(lambda values: values * values.dtype.type(alpha), constant.shape)
    call.add_weight("weight", seen, len(constant.shape) - (2 if turned is (right is not None) else 1))
    call.op = "linear"
    fused(call)


def attention(call: Call) -> None:
    """Translate attention that includes the projection of its input."""
    call.op = "multi_head_attention"


def bias_dropout(call: Call) -> None:
    """Translate dropout(x + bias) + residual."""
    call.attrs |= {"training": False, "training_mode": False}
    if len(call.operands) > 2 and call.operands[2] is not None:
        call.op = "add"


def quick_gelu(call: Call) -> None:
    """Translate x sigmoid(alpha x)."""
    if abs(_number(call.attrs.get("alpha"), 1.702) - 1.0) < _SILU:
        call.op = "silu"


def embed(call: Call) -> None:
    """Translate the normalized sum of word, position and segment embeddings.

    The operands are put in the order of a Gather: the table, then the ids.
    """
    if call.float_constant(2) is None or len(call.operands) < 3:
        return
    for slot, role, axis in _TABLES:
        call.add_weight(role, call.float_constant(slot), axis)
    call.op = "embedding"
    words, segments, table, *rest = call.operands
    call.operands[:] = (table, words, segments, *rest)


def table(call: Call) -> None:
    """Translate the lookup in a table that is not quantized."""
    weight = call.float_constant(0)
    if weight is not None and len(weight.shape) == 2:
        call.add_weight("weight", weight, 1)
        call.op = "embedding"


def quantized_table(call: Call) -> None:
    """Translate the lookup in a table whose rows are quantized in blocks."""
    data, attrs = call.constant(0), call.attrs
    if data is None or len(data.shape) != 2 or attrs.get("gather_axis", 0) != 0 or attrs.get("quantize_axis", 1) not in {1, -1}:
        return
    packed = data.dtype == "uint8"
    bits = _integer(attrs.get("bits", 4))
    columns = data.shape[1] * 8 // bits if packed and bits in _PACKED else data.shape[1]
    middle = 2 ** (bits - 1) if packed and bits in _PACKED else 0
    blocks = _Blocks(
        data, call.constant(2), call.constant(3), data.shape[0], columns, _integer(attrs.get("block_size", 128)), middle
    )
    if (packed and bits not in _PACKED) or not (packed or data.dtype in {"int4", "uint4", "int8"}):
        return
    _add(call, replace(blocks, bits=bits if packed else None), 1, "embedding")


def n_bits(call: Call) -> None:
    """Translate a linear layer whose weight, N rows of K numbers, is quantized in blocks along the rows."""
    rows, columns, bits, block = (_integer(call.attrs.get(name, default)) for name, default in _N_BITS)
    data, order = call.constant(1), call.constant(4)
    if data is None or data.dtype != "uint8" or order is not None or bits not in _PACKED or call.attrs.get("weight_prepacked"):
        return
    _add(call, _Blocks(data, call.constant(2), call.constant(3), rows, columns, block, 2 ** (bits - 1), bits), 0, "linear")
    call.add_weight("bias", call.float_constant(5))


def _number(value: Any, default: float) -> float:
    """Return an attribute that should be a number, or the default if it is none: onnx does not check those of this domain."""
    return float(value) if isinstance(value, (int, float)) else default


def _integer(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _add(call: Call, blocks: _Blocks, out_axis: int, op: str) -> None:
    """Add the quantized weight and the operator to a call if the sizes of the arrays fit together."""
    if blocks.fits:
        call.weights["weight"] = call.make_weight(blocks.constant, out_axis, False)
        call.op = op


@dataclass(frozen=True)
class _Blocks:
    """A matrix of shape (rows, columns) with elements (code - zero) x scale.

    Each block of `block` columns in a row has one scale and one zero point. If `bits` is given, codes and zero points are packed
    into bytes, low bits first. Without `zeros`, every zero point is `middle`.
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
        """Whether every array has the number of elements that the sizes require, and the matrix is not too large."""
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
        """The dequantized matrix, which is only computed when it is read."""
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
        """Repeat the value of each block for every column of the block."""
        return np.repeat(values.astype(np.float32), self.block, axis=1)[:, : self.columns]


def _unpacked(values: NDArray[Any], bits: int | None) -> NDArray[Any]:
    """Unpack numbers of `bits` bits from bytes, along the last axis."""
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
