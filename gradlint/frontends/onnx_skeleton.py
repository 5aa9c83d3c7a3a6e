"""ONNX files read without their weights: large tensors stay on disk and are mapped one at a time.

A file is walked in the protobuf wire format (https://protobuf.dev/programming-guides/encoding/). What is small is copied,
`raw_data` of a large tensor becomes a reference to its bytes in the same file, in the form that ONNX gives to external data.
"""

from __future__ import annotations

import math
import mmap
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnx import numpy_helper

from gradlint.errors import TargetError, UnsafeFileError

_INLINE = 1024  # bytes up to which a tensor stays in the skeleton: shape inference needs the small ones
_NESTING = 100  # protobuf's own limit
_RAW_DATA = 9
_CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "function": {7: "node"},
    "graph": {1: "node", 5: "tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph"},
}
_SCALAR_NAMES = {"float": "float32", "double": "float64"}


class _BrokenError(Exception):
    """The bytes are not a protobuf message."""


def _varint(data: Any, at: int, end: int) -> tuple[int, int]:
    """The number at `at` and the position behind it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise _BrokenError
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise _BrokenError


def _fields(data: Any, at: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Number, wire type, start, start of the value and end of every field of the message in `data[at:end]`."""
    while at < end:
        key, body = _varint(data, at, end)
        number, wire = key >> 3, key & 7
        if wire == 0:
            stop = _varint(data, body, end)[1]
        elif wire == 2:
            length, body = _varint(data, body, end)
            stop = body + length
        elif wire in {1, 5}:
            stop = body + (8 if wire == 1 else 4)
        else:
            raise _BrokenError
        if number == 0 or stop > end:
            raise _BrokenError
        yield number, wire, at, body, stop
        at = stop


def _delimited(number: int, body: bytes) -> bytes:
    """`body` as the length-delimited field `number`."""
    parts = bytearray()
    for value in (number << 3 | 2, len(body)):
        rest = value
        while rest > 0x7F:
            parts.append(rest & 0x7F | 0x80)
            rest >>= 7
        parts.append(rest)
    return bytes(parts) + body


def _reference(location: str, offset: int, length: int) -> bytes:
    """Fields of a TensorProto whose values are `length` bytes at `offset` of the file `location`."""
    tensor = onnx.TensorProto(data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    return bytes(tensor.SerializeToString())


def _slim(data: Any, span: tuple[int, int], message: str, location: str, depth: int = 0) -> bytes | None:
    """The message in the bytes `span` of `data` with references for large tensors; None when it has none."""
    if depth > _NESTING:
        raise _BrokenError
    parts: list[bytes] = []
    copied, end = span
    for number, wire, at, body, stop in _fields(data, copied, end):
        if wire != 2 or stop - body <= _INLINE:
            continue
        replacement = None
        if message == "tensor":
            if number == _RAW_DATA:
                replacement = _reference(location, body, stop - body)
        elif (child := _CHILDREN[message].get(number)) is not None:
            smaller = _slim(data, (body, stop), child, location, depth + 1)
            replacement = None if smaller is None else _delimited(number, smaller)
        if replacement is not None:
            parts += [data[copied:at], replacement]
            copied = stop
    return b"".join([*parts, data[copied:end]]) if parts else None


def dtype_name(elem_type: int) -> str:
    """What torch calls an ONNX element type: "float32", "bfloat16", "int64"; "unknown" for a number ONNX does not have."""
    try:
        name = str(onnx.TensorProto.DataType.Name(elem_type)).lower()
    except ValueError:
        return "unknown"
    return _SCALAR_NAMES.get(name, name)


def tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model: initializers and attributes, those of subgraphs and functions included."""
    yield from _graph_tensors(proto.graph)
    for function in proto.functions:
        yield from _node_tensors(function.node)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    yield from _node_tensors(graph.node)


def _has_garbled_names(proto: onnx.ModelProto) -> bool:
    """Whether a name is not UTF-8; protobuf then hands out bytes."""
    functions = proto.functions
    names = [(f.domain, f.name, *f.input, *f.output) for f in functions] + [(o.domain,) for o in proto.opset_import]
    return (
        any(not isinstance(name, str) for group in names for name in group)
        or _is_garbled(proto.graph)
        or any(_is_garbled(function) for function in functions)
    )


def _is_garbled(graph: onnx.GraphProto | onnx.FunctionProto) -> bool:
    if isinstance(graph, onnx.GraphProto):
        values = (*graph.input, *graph.output, *graph.value_info, *graph.initializer)
        if not all(isinstance(value.name, str) for value in values):
            return True
        dims = (dim for value in graph.input for dim in value.type.tensor_type.shape.dim)
        if not all(isinstance(dim.dim_param, str) for dim in dims):
            return True
    for node in graph.node:
        if not all(isinstance(name, str) for name in (node.name, node.op_type, node.domain, *node.input, *node.output)):
            return True
        for attribute in node.attribute:
            if not isinstance(attribute.name, str) or any(map(_is_garbled, (attribute.g, *attribute.graphs))):
                return True
    return False


def _node_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for graph in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                yield from _graph_tensors(graph)


@dataclass(frozen=True, eq=False)
class Skeleton:
    """A model whose large weights are still where they came from.

    `origin` is the file, or the bytes for a model that was in memory; `location` is the external location that stands for
    `origin` itself. `label` names the model in messages.
    """

    proto: onnx.ModelProto
    origin: Path | bytes
    location: str
    label: str

    @property
    def path(self) -> Path | None:
        """The file, None for a model in memory."""
        return self.origin if isinstance(self.origin, Path) else None

    def array(self, tensor: onnx.TensorProto) -> NDArray[Any]:
        """The values of a tensor of this model, of the shape `tensor.dims`: a read-only memory map where they are large.

        Raises TargetError when the bytes do not fit the shape, UnsafeFileError when they would lie outside the folder.
        """
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            return self._decode(tensor)
        source, offset, length = self._place(tensor)
        dtype, shape = _numpy_dtype(tensor), tuple(tensor.dims)
        if length and dtype is not None:
            if isinstance(source, bytes):
                return np.frombuffer(source, dtype, math.prod(shape), offset).reshape(shape)
            return np.memmap(source, dtype, "r", offset, (math.prod(shape),)).reshape(shape)
        with _opened(source) as data:
            raw = data[offset : offset + length]
        return self._decode(onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=shape, raw_data=raw))

    def check(self, tensor: onnx.TensorProto) -> None:
        """Raise what `array` would raise, without reading large values."""
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
        """The number of bytes that the values of `tensor` take; raises TargetError when fewer are there."""
        bits = re.search(r"\d+", dtype_name(tensor.data_type).replace("bool", "8"))
        if bits is None or any(size < 0 for size in tensor.dims):
            raise TargetError(f"{self.label}: weight {tensor.name!r} has no valid type and shape")
        needed = int(-(-math.prod(tensor.dims) * int(bits[0]) // 8))
        if needed > available:
            raise TargetError(
                f"{self.label}: weight {tensor.name!r} has {available} bytes where its shape {list(tensor.dims)} needs {needed}",
                hint="the file is damaged or incomplete; export or download it again",
            )
        return needed

    def _place(self, tensor: onnx.TensorProto) -> tuple[Path | bytes, int, int]:
        """Where the values of an external tensor lie: file or bytes, offset, and length in bytes."""
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        try:
            offset, length = int(entries.get("offset") or 0), int(entries.get("length") or -1)
        except ValueError:
            offset = length = -1
        if offset < 0:
            raise TargetError(f"{self.label}: weight {tensor.name!r} has an external reference that is not a number")
        source = self.origin if location == self.location else self._external(tensor.name, location)
        total = len(source) if isinstance(source, bytes) else source.stat().st_size
        rest = max(total - offset, 0)
        return source, offset, self._expect(tensor, rest if length < 0 else min(length, rest))

    def _external(self, name: str, location: str) -> Path:
        """The file that holds external data; raises UnsafeFileError unless it lies in the model's folder."""
        if self.path is None:
            raise TargetError(
                f"{self.label}: weight {name!r} is kept in the separate file {location!r}, which has no folder here",
                hint="give the path of the .onnx file, or load the model with its external data",
            )
        folder = self.path.parent.resolve()
        try:
            target = (folder / location).resolve()
            inside = bool(location) and not Path(location).is_absolute() and ".." not in Path(location).parts
            if not (inside and target.is_relative_to(folder)):
                raise UnsafeFileError(
                    f"{self.label}: weight {name!r} points at {location!r}, outside the model's folder",
                    hint="external data must be a file in or below the folder of the model, and no link out of it",
                )
            found = target.is_file()
        except (OSError, ValueError):  # a name that no file can have
            found = False
        if not found:
            raise TargetError(
                f"{self.label}: the external data file {location!r} of weight {name!r} is missing",
                hint=f"put it beside the model, in {self.path.parent}",
            )
        return target


def _numpy_dtype(tensor: onnx.TensorProto) -> np.dtype[Any] | None:
    """The dtype whose memory layout is that of the raw bytes, None where numpy has none (packed or big-endian)."""
    bits = re.search(r"\d+", dtype_name(tensor.data_type).replace("bool", "8"))
    try:
        dtype: np.dtype[Any] = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
    except (KeyError, TypeError, ValueError):
        return None
    same = bits is not None and int(bits[0]) == 8 * dtype.itemsize and sys.byteorder == "little"
    return dtype if same else None


class _opened:  # noqa: N801 - reads as a function
    """The bytes of a file or of a buffer, for slicing."""

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


def load_skeleton(source: str | Path | bytes | onnx.ModelProto) -> Skeleton:
    """Read a file, the bytes of one, or a model in memory, and check where every weight lies.

    Raises TargetError when it is missing, not ONNX, cut short or without nodes, UnsafeFileError when it reaches outside
    its folder.
    """
    origin: Path | bytes
    if isinstance(source, onnx.ModelProto):
        origin, location, label = _serialized(source), "", "the ONNX model"
    elif isinstance(source, bytes):
        origin, location, label = source, "", "standard input"
    else:
        origin = Path(source)
        location, label = origin.name.encode("utf-8", "replace").decode(), str(source)
    skeleton = Skeleton(_parse(origin, location, label), origin, location, label)
    for tensor in tensors(skeleton.proto):
        skeleton.check(tensor)
    return skeleton


def _serialized(proto: onnx.ModelProto) -> bytes:
    try:
        return bytes(proto.SerializeToString())
    except (ValueError, EncodeError) as error:  # over 2 GiB
        raise TargetError(
            f"the ONNX model in memory cannot be serialized: {error}",
            hint="save it to a file with external data, and give the path",
        ) from error


def _parse(origin: Path | bytes, location: str, label: str) -> onnx.ModelProto:
    damaged = "the file is empty, cut short or of another kind; export or download it again"
    try:
        if not (len(origin) if isinstance(origin, bytes) else origin.stat().st_size):
            raise TargetError(f"{label}: the file is empty", hint="export or download it again")
        with _opened(origin) as data:
            if data[:23] == b"version https://git-lfs":
                raise TargetError(f"{label}: this is a Git LFS pointer, not the model", hint="fetch the file with `git lfs pull`")
            slim = _slim(data, (0, len(data)), "model", location)
            proto = onnx.ModelProto.FromString(data[:] if slim is None else slim)
    except OSError as error:
        raise TargetError(f"{label}: cannot be read: {error.strerror or error}") from error
    except (_BrokenError, DecodeError) as error:
        raise TargetError(f"{label}: not an ONNX file, or cut short", hint=damaged) from error
    if _has_garbled_names(proto):
        raise TargetError(f"{label}: a name in the file is not UTF-8 text", hint=damaged)
    if not proto.HasField("graph") or not proto.graph.node:
        raise TargetError(f"{label}: holds no ONNX graph with nodes", hint=damaged)
    return proto
