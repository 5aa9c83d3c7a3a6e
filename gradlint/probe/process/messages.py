"""Encode measurements and input specifications as JSON to send them between processes. Decoding runs no code from the data."""

from __future__ import annotations

import base64
import dataclasses
import io
import types
from collections.abc import Mapping
from enum import Enum
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from gradlint.frontends.inputs import InputSpec

Data = TypeVar("Data")
_hints = cache(get_type_hints)
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
    if isinstance(value, np.ndarray):
        buffer = io.BytesIO()
        np.save(buffer, value, allow_pickle=False)
        return {_ARRAY: base64.b64encode(buffer.getvalue()).decode("ascii")}
    return value.value if isinstance(value, Enum) else value


def unpack(kind: type[Data], data: Any) -> Data:
    """Convert the output of `pack` back to the dataclass `kind`. Raises TypeError, ValueError or KeyError if it does not fit."""
    hashable: Any = kind
    return kind(**{name: _decode(hint, data[name]) for name, hint in _hints(hashable).items()})


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
    if isinstance(data, dict) and set(data) == {_ARRAY}:
        return np.load(io.BytesIO(base64.b64decode(data[_ARRAY])), allow_pickle=False)
    return hint(data) if isinstance(hint, type) and issubclass(hint, (float, Enum)) else data


def unpack_inputs(data: Any) -> tuple[InputSpec, ...]:
    """Convert packed input specifications back."""
    return tuple(unpack(InputSpec, item) for item in data)
