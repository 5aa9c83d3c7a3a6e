"""Read ONNX files without their large weights, which stay on disk and are memory-mapped one at a time."""

from __future__ import annotations

import math
import mmap
import re
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnx import numpy_helper

from gradlint.errors import TargetError, UnsafeFileError
from gradlint.frontends.onnx.external import external_file, offset_and_length
from gradlint.frontends.onnx.limits import DEFAULT, Limits, check_size, too_large
from gradlint.frontends.onnx.walk import has_garbled_names, sparse_tensors, tensors
from gradlint.frontends.onnx.wire import BrokenError, without_large_tensors

_SCALAR_NAMES = {"float": "float32", "double": "float64"}
ITSELF = "\0"
"""The external location that denotes the file itself. No file has this name, so that a model cannot ask for another one."""

_MAPPED = 1 << 20  # bytes from which a tensor is mapped: to read a smaller one is faster


@lru_cache(maxsize=256)
def dtype_name(elem_type: int) -> str:
    """Return torch's name of an ONNX element type: "float32", "bfloat16", "int64"; "unknown" if ONNX has no such type."""
    try:
        name = str(onnx.TensorProto.DataType.Name(elem_type)).lower()
    except ValueError:
        return "unknown"
    return _SCALAR_NAMES.get(name, name)


@dataclass(frozen=True, eq=False)
class Skeleton:
    """A model whose large weights are still in their file.

    Attributes:
        proto: The model, with references in place of its large weights.
        origin: The file, or its bytes if the model was in memory.
        label: The name of the model in messages.
        limits: The limits under which it was read.
    """

    proto: onnx.ModelProto
    origin: Path | bytes
    label: str
    limits: Limits = DEFAULT

    @property
    def path(self) -> Path | None:
        """The path of the file; None for a model in memory."""
        return self.origin if isinstance(self.origin, Path) else None

    def array(self, tensor: onnx.TensorProto) -> NDArray[Any]:
        """Return the values of a tensor of this model, with shape `tensor.dims`. Large ones are a read-only memory map.

        Raises TargetError if the bytes do not fit the shape, UnsafeFileError if they are outside the model's folder.
        """
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            return self._decode(tensor)
        source, offset, length = self._place(tensor)
        dtype, shape = _numpy_dtype(tensor.data_type), tuple(tensor.dims)
        if length and dtype is not None:
            if isinstance(source, bytes):
                return np.frombuffer(source, dtype, math.prod(shape), offset).reshape(shape)
            if length >= _MAPPED:
                return np.memmap(source, dtype, "r", offset, (math.prod(shape),)).reshape(shape)
            with source.open("rb", buffering=0) as file:
                file.seek(offset)
                return np.frombuffer(file.read(length), dtype, math.prod(shape)).reshape(shape)
        with _opened(source) as data:
            raw = data[offset : offset + length]
        return self._decode(onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=shape, raw_data=raw))

    def dense(self, sparse: onnx.SparseTensorProto) -> NDArray[Any]:
        """Return a sparse tensor as a dense array. Raises TargetError if its indices do not fit its shape."""
        values, indices, shape = self.array(sparse.values), self.array(sparse.indices), tuple(sparse.dims)
        found = np.zeros(shape, values.dtype)
        try:
            found[np.unravel_index(indices, shape) if indices.ndim == 1 else tuple(indices.T)] = values
        except (IndexError, ValueError, TypeError) as error:
            raise TargetError(f"{self.label}: sparse weight {sparse.values.name!r} cannot be decoded: {error}") from error
        return found

    def check(self, tensor: onnx.TensorProto) -> None:
        """Raise the errors that `array` would raise for the place and size of the values, without reading them."""
        if len(tensor.dims) > self.limits.rank:
            raise too_large(self.label, f"weight {tensor.name!r} has {len(tensor.dims)} axes, more than {self.limits.rank}")
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            self._place(tensor)
        elif tensor.HasField("raw_data"):
            self._expect(tensor, len(tensor.raw_data))

    def _decode(self, tensor: onnx.TensorProto) -> NDArray[Any]:
        try:
            return np.asarray(numpy_helper.to_array(tensor))
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raise TargetError(f"{self.label}: weight {tensor.name!r} cannot be decoded: {error}") from error

    def _expect(self, tensor: onnx.TensorProto, available: int) -> int:
        """Return the number of bytes that the values of `tensor` need. Raises TargetError if fewer are available."""
        bits, shape = _bits(tensor.data_type), tuple(tensor.dims)
        if bits is None or min(shape, default=0) < 0:
            raise TargetError(f"{self.label}: weight {tensor.name!r} has no valid type and shape")
        needed: int = -(-math.prod(shape) * bits // 8)
        if needed > available:
            raise TargetError(
                f"{self.label}: weight {tensor.name!r} has {available} bytes where its shape {list(tensor.dims)} needs {needed}",
                hint="the file is damaged or incomplete; export or download it again",
            )
        return needed

    def _place(self, tensor: onnx.TensorProto) -> tuple[Path | bytes, int, int]:
        """Return the place of an external tensor's values: the file or the bytes, offset, and length in bytes."""
        entries = {entry.key: entry.value for entry in tensor.external_data}
        what, location = f"{self.label}: weight {tensor.name!r}", entries.get("location", "")
        if not all(isinstance(value, str) for value in entries.values()):
            raise UnsafeFileError(f"{what} lies in a file whose name is not UTF-8 text")
        source = self.origin if location == ITSELF else self._external(tensor.name, location)
        total = len(source) if isinstance(source, bytes) else source.stat().st_size
        offset, available = offset_and_length(entries, total, what)
        return source, offset, self._expect(tensor, available)

    def _external(self, name: str, location: str) -> Path:
        if self.path is None:
            raise TargetError(
                f"{self.label}: weight {name!r} is kept in the separate file {location!r}, which has no folder here",
                hint="give the path of the .onnx file, or load the model with its external data",
            )
        return external_file(self.path, self.label, name, location)


@lru_cache(maxsize=256)
def _bits(elem_type: int) -> int | None:
    """Return how many bits an element of an ONNX type takes; None if its name does not say."""
    bits = re.search(r"\d+", dtype_name(elem_type).replace("bool", "8"))
    return None if bits is None else int(bits[0])


@lru_cache(maxsize=256)
def _numpy_dtype(elem_type: int) -> np.dtype[Any] | None:
    """Return the numpy dtype with the memory layout of the raw bytes; None if there is none (packed, or a big-endian CPU)."""
    try:
        dtype: np.dtype[Any] = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(elem_type))
    except (KeyError, TypeError, ValueError):
        return None
    return dtype if _bits(elem_type) == 8 * dtype.itemsize and sys.byteorder == "little" else None


class _opened:  # noqa: N801 - used like a function
    """A context manager that gives the bytes of a file or of a buffer, for slicing."""

    def __init__(self, source: Path | bytes) -> None:
        self._source = source

    def __enter__(self) -> Any:
        if isinstance(self._source, bytes):
            return self._source
        with self._source.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._map

    def __exit__(self, *exc: object) -> None:
        if not isinstance(self._source, bytes):
            self._map.close()


def load_skeleton(source: str | Path | bytes | onnx.ModelProto, limits: Limits = DEFAULT) -> Skeleton:
    """Read a model from a path, from the bytes of a file, or from memory, and check the place and size of every weight.

    Raises TargetError if the file is missing, truncated, not an ONNX file, without nodes, or exceeds `limits`. Raises
    UnsafeFileError if it refers to a file outside its folder.
    """
    origin: Path | bytes
    if isinstance(source, onnx.ModelProto):
        origin, label = _serialized(source), "the ONNX model"
    elif isinstance(source, bytes):
        origin, label = source, "standard input"
    else:
        origin, label = Path(source), str(source)
    skeleton = Skeleton(_parse(origin, label, limits), origin, label, limits)
    check_size(label, skeleton.proto, limits)
    for tensor in tensors(skeleton.proto):
        skeleton.check(tensor)
    for sparse in sparse_tensors(skeleton.proto):
        if any(size < 0 for size in sparse.dims) or math.prod(sparse.dims) > limits.grown:
            raise too_large(label, f"the sparse weight {sparse.values.name!r} of shape {list(sparse.dims)} is too large")
    return skeleton


def _serialized(proto: onnx.ModelProto) -> bytes:
    try:
        return bytes(proto.SerializeToString())
    except (ValueError, EncodeError) as error:  # over 2 GiB
        raise TargetError(
            f"the ONNX model in memory cannot be serialized: {error}",
            hint="save it to a file with external data, and give the path",
        ) from error


def _parse(origin: Path | bytes, label: str, limits: Limits) -> onnx.ModelProto:
    damaged = "the file is empty, cut short or of another kind; export or download it again"
    try:
        if not (len(origin) if isinstance(origin, bytes) else origin.stat().st_size):
            raise TargetError(f"{label}: the file is empty", hint="export or download it again")
        with _opened(origin) as data:
            if data[:23] == b"version https://git-lfs":
                raise TargetError(f"{label}: this is a Git LFS pointer, not the model", hint="fetch the file with `git lfs pull`")
            small = without_large_tensors(data, (0, len(data)), "model", ITSELF)
            size = len(data) if small is None else len(small)
            if size > limits.skeleton:
                raise too_large(label, f"has {size} bytes beside its weights, more than {limits.skeleton}")
            proto = onnx.ModelProto.FromString(data[:] if small is None else small)
    except OSError as error:
        raise TargetError(f"{label}: cannot be read: {error.strerror or error}") from error
    except (BrokenError, DecodeError) as error:
        raise TargetError(f"{label}: not an ONNX file, or cut short", hint=damaged) from error
    if has_garbled_names(proto):
        raise TargetError(f"{label}: a name in the file is not UTF-8 text", hint=damaged)
    if not proto.HasField("graph") or not proto.graph.node:
        raise TargetError(f"{label}: holds no ONNX graph with nodes", hint=damaged)
    return proto
