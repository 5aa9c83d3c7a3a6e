"""Replace large tensors by references in the bytes of a protobuf message, before the message is parsed.

The wire format is described at https://protobuf.dev/programming-guides/encoding/. The values of a large tensor are replaced by
a reference to their bytes in the same file, in the format of ONNX external data. Everything else is copied.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx

_INLINE = 1024  # bytes: a tensor that is no larger stays in the skeleton, because shape inference needs small ones
_NESTING = 100  # protobuf's own limit
_DATA_TYPE, _RAW_DATA = 2, 9
_PACKED = {4: onnx.TensorProto.FLOAT, 10: onnx.TensorProto.DOUBLE}  # float_data and double_data have the same bytes as raw_data
_CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "node": {5: "attribute"},
    "attribute": {
        5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor", 23: "sparse tensor",
    },
    "sparse tensor": {1: "tensor", 2: "tensor"},
}  # fmt: skip


class BrokenError(Exception):
    """The bytes are not a protobuf message."""


def _varint(data: Any, at: int, end: int) -> tuple[int, int]:
    """Return the varint at position `at` and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise BrokenError
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise BrokenError


def _fields(data: Any, at: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield number, wire type, start, start of the value, and end of every field of the message in `data[at:end]`."""
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
            raise BrokenError
        if number == 0 or stop > end:
            raise BrokenError
        yield number, wire, at, body, stop
        at = stop


def _delimited(number: int, body: bytes) -> bytes:
    """Encode `body` as the length-delimited field `number`."""
    parts = bytearray()
    for value in (number << 3 | 2, len(body)):
        rest = value
        while rest > 0x7F:
            parts.append(rest & 0x7F | 0x80)
            rest >>= 7
        parts.append(rest)
    return bytes(parts) + body


def _reference(location: str, offset: int, length: int) -> bytes:
    """Encode the fields of a TensorProto whose values are the `length` bytes at `offset` of the file `location`."""
    tensor = onnx.TensorProto(data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    return bytes(tensor.SerializeToString())


def without_large_tensors(data: Any, span: tuple[int, int], message: str, location: str, depth: int = 0) -> bytes | None:
    """Return the message in the bytes `span` of `data` with references in place of large tensors; None if it has none.

    `message` is the type of the message, a key of `_CHILDREN` or "tensor", and `location` the file that the references name.
    Raises BrokenError if the bytes are not a message.
    """
    if depth > _NESTING:
        raise BrokenError
    parts: list[bytes] = []
    copied, end = span
    values = _values(data, span) if message == "tensor" else None
    for number, wire, at, body, stop in _fields(data, copied, end):
        if wire != 2 or stop - body <= _INLINE:
            continue
        replacement = None
        if message == "tensor":
            if number == values:
                replacement = _reference(location, body, stop - body)
        elif (child := _CHILDREN[message].get(number)) is not None:
            smaller = without_large_tensors(data, (body, stop), child, location, depth + 1)
            replacement = None if smaller is None else _delimited(number, smaller)
        if replacement is not None:
            parts += [data[copied:at], replacement]
            copied = stop
    return b"".join([*parts, data[copied:end]]) if parts else None


def _values(data: Any, span: tuple[int, int]) -> int | None:
    """Return the number of the field that holds the values of a tensor as they are in memory.

    None if there is no such field, or more than one.
    """
    found = [(number, wire, body) for number, wire, _, body, _ in _fields(data, *span)]
    kinds = [_varint(data, body, span[1])[0] for number, wire, body in found if (number, wire) == (_DATA_TYPE, 0)]
    fields = [number for number, _, _ in found if number == _RAW_DATA or number in _PACKED]
    if len(fields) != 1 or (fields[0] != _RAW_DATA and _PACKED[fields[0]] not in kinds[-1:]):
        return None
    return fields[0]
