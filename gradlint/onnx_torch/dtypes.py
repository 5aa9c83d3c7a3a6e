"""Convert ONNX element types and tensors to torch dtypes and tensors."""

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
_NARROW = {  # dtypes that torch lacks, and numpy dtypes that can hold their values
    **dict.fromkeys(("int2", "int4", "uint2", "uint4"), np.int8),
    **dict.fromkeys(("float4_e2m1fn", "float8_e8m0fnu"), np.float32),
}


_WIDENED = frozenset({  # before version 1.19, onnx reads them as float32
    TensorProto.BFLOAT16, TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E4M3FNUZ, TensorProto.FLOAT8E5M2, TensorProto.FLOAT8E5M2FNUZ
})  # fmt: skip


class DtypeError(TypeError):
    """Torch has no dtype for the values."""


def torch_dtype(code: int) -> torch.dtype:
    """Return the torch dtype of an ONNX element type. Raises DtypeError if torch has none."""
    if code not in TORCH:
        raise DtypeError(f"torch has no dtype for the ONNX element type {TensorProto.DataType.Name(code)}")
    return TORCH[code]


def is_float8(dtype: torch.dtype) -> bool:
    """Return whether `dtype` is a float of one byte, which torch can store but not compute with."""
    return dtype.is_floating_point and dtype.itemsize == 1


def saturated(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast `x` to a float8 dtype. Values beyond its range become its largest or smallest finite number."""
    most = torch.finfo(dtype).max
    return x.clamp(-most, most).to(dtype)


def from_numpy(array: NDArray[Any]) -> Tensor:
    """Return a writable tensor with the values of `array`, which may be bfloat16 or float8. It shares memory if that is safe.

    A memory-mapped file is mapped again, copy-on-write: no bytes are read, and writes do not reach the file. Other read-only
    arrays are copied, and so are misaligned ones. Raises DtypeError if torch has no dtype for the values.
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
    """Return the same values as a writable, aligned and contiguous array: a copy-on-write memory map, or a copy."""
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
    """Return the tensor of a TensorProto, which `load` reads. Text, and other dtypes that torch lacks, stay numpy arrays."""
    array = np.asanyarray(load(proto))
    try:
        tensor = from_numpy(array)
    except DtypeError:
        return array
    return tensor.to(TORCH[proto.data_type]) if proto.data_type in _WIDENED else tensor


def from_sparse(proto: Any, load: Load) -> Tensor:
    """Return the dense tensor of a SparseTensorProto."""
    values, indices = from_proto(proto.values, load), from_proto(proto.indices, load)
    dims = tuple(proto.dims)
    if indices.dim() == 2:
        indices = torch.from_numpy(np.ravel_multi_index(tuple(indices.T.numpy()), dims))
    dense: Tensor = values.new_zeros(dims).reshape(-1).index_put((indices,), values)
    return dense.reshape(dims)


def type_bytes(value: Any) -> bytes:
    """Return the serialized TypeProto of a runtime value; an empty one for an absent value."""
    proto = TypeProto()
    if isinstance(value, Tensor):
        proto.tensor_type.elem_type = ONNX[value.dtype]
        proto.tensor_type.shape.SetInParent()
        for size in value.shape:
            proto.tensor_type.shape.dim.add().dim_value = size
    elif isinstance(value, list) and value:
        proto.sequence_type.elem_type.ParseFromString(type_bytes(value[0]))
    return bytes(proto.SerializeToString())
