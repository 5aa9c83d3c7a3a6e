"""Encode measurements and input specifications as JSON to send them between processes. Decoding runs no code from the data."""

from __future__ import annotations

import base64
import dataclasses
import io
import types
from collections.abc import Mapping
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

Data = TypeVar("Data")
_ARRAY = "npy"  # the key that marks an encoded array


def pack(value: Any) -> Any:
    """Convert a tree of dataclasses, tuples, sets, mappings and arrays to JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: pack(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): pack(item) for key, item in value.items()}
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, (tuple, list)):
        return [pack(item) for item in value]
    if type(value).__module__ == "numpy":
        return _pack_array(value)
    if isinstance(value, Path):
        return str(value)
    return value.value if isinstance(value, Enum) else value


def _pack_array(value: Any) -> Any:
    import numpy as np  # noqa: PLC0415 - the parent of a static check needs none

    if isinstance(value, np.ndarray):
        buffer = io.BytesIO()
        np.save(buffer, value, allow_pickle=False)
        return {_ARRAY: base64.b64encode(buffer.getvalue()).decode("ascii")}
    return value.item()


def unpack(kind: type[Data], data: Any) -> Data:
    """Convert the output of `pack` back to the dataclass `kind`. Raises TypeError, ValueError or KeyError if it does not fit."""
    return kind(**{name: _decode_field(kind, name, data[name]) for name in kind.__annotations__})


def _decode_field(kind: Any, name: str, data: Any) -> Any:
    return None if data is None else _decode(_hint(kind, name), data)


@cache
def _hint(kind: Any, name: str) -> Any:
    """Return the type of a field. What `result` imports for types alone is imported only if it is there."""
    holder = type("Holder", (), {"__annotations__": {name: kind.__annotations__[name]}, "__module__": kind.__module__})
    try:
        return get_type_hints(holder)[name]
    except NameError:
        from gradlint.theory.reading.attribution import Attribution  # noqa: PLC0415 - numpy
        from gradlint.theory.reading.stacks import Stack  # noqa: PLC0415

        return get_type_hints(holder, localns={"Attribution": Attribution, "Stack": Stack})[name]


def _decode(hint: Any, data: Any) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if data is None:
        return None
    if origin in {Union, types.UnionType}:
        return _decode(next(item for item in arguments if item is not type(None)), data)
    if origin is tuple:
        hints = [arguments[0]] * len(data) if arguments[-1] is Ellipsis else arguments
        return tuple(_decode(item, value) for item, value in zip(hints, data, strict=True))
    if origin is frozenset:
        return frozenset(data)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {key: _decode(arguments[1], value) for key, value in data.items()}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return unpack(hint, data)
    if isinstance(hint, type) and issubclass(hint, tuple):  # a named one
        return hint(*data)
    if isinstance(data, dict) and set(data) == {_ARRAY}:
        import numpy as np  # noqa: PLC0415

        return np.load(io.BytesIO(base64.b64decode(data[_ARRAY])), allow_pickle=False)
    return hint(data) if isinstance(hint, type) and issubclass(hint, (float, Enum, Path)) else data
