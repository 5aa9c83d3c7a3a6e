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
_DATA_TYPE, _RAW_DATA, _DATA_LOCATION = 2, 9, 14
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
    if message == "tensor":
        return _referring(data, span, location)
    parts: list[bytes] = []
    copied, end = span
    for number, wire, at, body, stop in _fields(data, copied, end):
        if wire != 2 or stop - body <= _INLINE or (child := _CHILDREN[message].get(number)) is None:
            continue
        smaller = without_large_tensors(data, (body, stop), child, location, depth + 1)
        if smaller is not None:
            parts += [data[copied:at], _delimited(number, smaller)]
            copied = stop
    return b"".join([*parts, data[copied:end]]) if parts else None


def _referring(data: Any, span: tuple[int, int], location: str) -> bytes | None:
    """Return a tensor with a reference in place of its values; None if it keeps them.

    The reference comes last, because the last of several values of a field counts: a file that was merged from external data
    states the location of each tensor anew.
    """
    held = _values(data, span)
    if held is None:
        return None
    at, body, stop = held
    return b"".join([data[span[0] : at], data[stop : span[1]], _reference(location, body, stop - body)])


def _values(data: Any, span: tuple[int, int]) -> tuple[int, int, int] | None:
    """Return start, start of the value, and end of the field that holds the values of a tensor as they are in memory.

    None if there is no such field or more than one, if it is small, or if the tensor says that its values are elsewhere.
    """
    found = list(_fields(data, *span))
    numbers = {_DATA_TYPE: 0, _DATA_LOCATION: onnx.TensorProto.DEFAULT}
    for number, wire, _, body, _ in found:
        if number in numbers and wire == 0:
            numbers[number] = _varint(data, body, span[1])[0]
    fields = [field for field in found if field[0] == _RAW_DATA or field[0] in _PACKED]
    if len(fields) != 1 or numbers[_DATA_LOCATION] == onnx.TensorProto.EXTERNAL:
        return None
    number, wire, at, body, stop = fields[0]
    if wire != 2 or stop - body <= _INLINE or (number != _RAW_DATA and _PACKED[number] != numbers[_DATA_TYPE]):
        return None
    return at, body, stop
