"""ONNX element types and tensors as torch ones."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import TensorProto, TypeProto
from torch import Tensor

TORCH: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.UINT8: torch.uint8,
    TensorProto.INT8: torch.int8,
    TensorProto.UINT16: torch.uint16,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.BOOL: torch.bool,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.UINT32: torch.uint32,
    TensorProto.UINT64: torch.uint64,
    TensorProto.COMPLEX64: torch.complex64,
    TensorProto.COMPLEX128: torch.complex128,
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.FLOAT8E4M3FN: torch.float8_e4m3fn,
    TensorProto.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz,
    TensorProto.FLOAT8E5M2: torch.float8_e5m2,
    TensorProto.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
}
ONNX = {dtype: code for code, dtype in TORCH.items()}
_BY_NAME = {str(dtype).removeprefix("torch."): dtype for dtype in TORCH.values()}
_NARROW = {  # what torch cannot hold, and what can hold it
    **dict.fromkeys(("int2", "int4", "uint2", "uint4"), np.int8),
    **dict.fromkeys(("float4_e2m1fn", "float8_e8m0fnu"), np.float32),
}


class DtypeError(TypeError):
    """Torch has no such dtype."""


def torch_dtype(code: int) -> torch.dtype:
    """The torch dtype of an ONNX element type; raises DtypeError where torch has none."""
    if code not in TORCH:
        raise DtypeError(f"torch has no dtype for the ONNX element type {TensorProto.DataType.Name(code)}")
    return TORCH[code]


def is_float8(dtype: torch.dtype) -> bool:
    """Whether the dtype is a float of one byte, which torch stores but does not compute with."""
    return dtype.is_floating_point and dtype.itemsize == 1


def saturated(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x` in a float8 dtype, the largest number of which stands for what is larger."""
    most = torch.finfo(dtype).max
    return x.clamp(-most, most).to(dtype)


def from_numpy(array: NDArray[Any]) -> Tensor:
    """A writable tensor of the values, bfloat16 and float8 included; it shares memory where that is safe.

    A memory-mapped file is mapped again, copy-on-write: no bytes are read, and writing does not reach the file. Other
    read-only arrays are copied, as are misaligned ones. Raises DtypeError for what torch has no dtype for.
    """
    if not (array.flags.writeable and array.flags.aligned and array.flags.c_contiguous):
        array = _private(array)
    dtype = _BY_NAME.get(array.dtype.name)
    if array.dtype.isbuiltin == 1 and dtype is not None:
        return torch.from_numpy(array)
    if dtype is None and array.dtype.name in _NARROW:
        return torch.from_numpy(array.astype(_NARROW[array.dtype.name]))
    if dtype is None:
        raise DtypeError(f"torch has no dtype for {array.dtype.name}")
    return torch.from_numpy(array.view(np.int16 if array.dtype.itemsize == 2 else np.uint8)).view(dtype)


def _private(array: NDArray[Any]) -> NDArray[Any]:
    """The same values where writing is safe and torch may read."""
    owner: Any = array.base if isinstance(array.base, np.memmap) else array
    source: Any = owner.base
    if isinstance(owner, np.memmap) and isinstance(source, mmap.mmap) and owner.filename is not None:
        whole = owner.ctypes.data == array.ctypes.data and array.flags.c_contiguous and array.flags.aligned
        if whole and array.size:
            return np.memmap(owner.filename, array.dtype, "c", owner.offset, array.shape)
    return np.array(array, order="C")


Value = Any
Load = Callable[[TensorProto], NDArray[Any]]


def from_proto(proto: TensorProto, load: Load) -> Value:
    """The tensor of a TensorProto, as `load` reads it; the array itself for strings and what else torch does not know."""
    array = np.asanyarray(load(proto))
    try:
        return from_numpy(array)
    except DtypeError:
        return array


def from_sparse(proto: Any, load: Load) -> Tensor:
    """The dense tensor of a SparseTensorProto."""
    values, indices = from_proto(proto.values, load), from_proto(proto.indices, load)
    dims = tuple(proto.dims)
    if indices.dim() == 2:
        indices = torch.from_numpy(np.ravel_multi_index(tuple(indices.T.numpy()), dims))
    dense: Tensor = values.new_zeros(dims).reshape(-1).index_put((indices,), values)
    return dense.reshape(dims)


def type_bytes(value: Any) -> bytes:
    """The serialized TypeProto of a runtime value; empty for one that is absent."""
    proto = TypeProto()
    if isinstance(value, Tensor):
        proto.tensor_type.elem_type = ONNX[value.dtype]
        proto.tensor_type.shape.SetInParent()
        for size in value.shape:
            proto.tensor_type.shape.dim.add().dim_value = size
    elif isinstance(value, list) and value:
        proto.sequence_type.elem_type.ParseFromString(type_bytes(value[0]))
    return bytes(proto.SerializeToString())
