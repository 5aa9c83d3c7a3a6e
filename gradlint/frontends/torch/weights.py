"""Weights from `.safetensors` files, which are data alone: a header in JSON, and the bytes of the tensors."""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gradlint.errors import TargetError, UnsafeFileError

_DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_LONGEST_HEADER = 16 << 20  # bytes: those of 100 000 tensors
_LONGEST_NAME, _MOST_AXES, _LARGEST, _ENDS = 1 << 13, 64, 1 << 62, 2
_SHOWN = 5


def read_safetensors(path: Path, label: Path | None = None) -> dict[str, Tensor]:
    """Return the tensors of a `.safetensors` file by name. Their memory is that of the file, mapped and never written.

    Messages call the file `label`. Raises TargetError if the file cannot be read or is damaged, and UnsafeFileError for another
    kind of file.
    """
    label = label or path
    if label.suffix.lower() != ".safetensors":
        hint = "save the weights with safetensors.torch.save_file(model.state_dict(), 'model.safetensors')"
        raise UnsafeFileError(f"{label}: weights are read from .safetensors alone, since a pickle runs code", hint=hint)
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise TargetError(f"{label}: it is no file")
        with path.open("rb") as file:
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        raise TargetError(f"{label}: cannot read it: {getattr(error, 'strerror', None) or error}") from error
    try:
        size, header = _header(memory)
        _check_places(header, len(memory) - 8 - size)
        return {name: _tensor(memory, 8 + size, entry) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, RuntimeError, OverflowError) as error:
        raise TargetError(f"{label}: it is no .safetensors file, or damaged: {error!s:.200}") from error


def _header(memory: mmap.mmap) -> tuple[int, dict[str, Any]]:
    size = int.from_bytes(memory[:8], "little")
    if not 0 < size <= min(_LONGEST_HEADER, len(memory) - 8):
        raise ValueError(f"its header is said to have {size} bytes")
    header = json.loads(memory[8 : 8 + size].decode("utf-8"), object_pairs_hook=unique_names)
    if not isinstance(header, dict):
        raise TypeError("its header is no JSON object")
    header.pop("__metadata__", None)
    return size, header


def unique_names(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs of a JSON object as a dict. Raises ValueError if a name stands there twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands there twice")
    return found


def _check_places(header: Mapping[str, Any], total: int) -> None:
    """Raise ValueError unless the tensors lie one behind another and fill the `total` bytes of the file."""
    longest = max(map(len, header), default=0)
    if longest > _LONGEST_NAME:
        raise ValueError(f"a name has {longest} characters")
    places = []
    for entry in header.values():
        if not isinstance(entry, dict) or entry.get("dtype") not in _DTYPES:
            raise ValueError(f"a tensor has the dtype {entry.get('dtype') if isinstance(entry, dict) else None!r:.40}")
        numbers = [*entry["shape"], *entry["data_offsets"]]
        if not isinstance(entry["shape"], list) or len(entry["shape"]) > _MOST_AXES or len(entry["data_offsets"]) != _ENDS:
            raise ValueError("a tensor has no shape and place")
        if any(type(number) is not int or not 0 <= number <= _LARGEST for number in numbers):
            raise ValueError("a size is no number of elements or bytes")
        places.append(tuple(entry["data_offsets"]))
    end = 0
    for start, stop in sorted(places):
        if start != end or stop < start:
            raise ValueError(f"bytes {min(start, end)} to {max(start, end)} belong to two tensors or to none")
        end = stop
    if end != total:
        raise ValueError(f"its tensors take {end} bytes, and {total} are there")


def _tensor(memory: mmap.mmap, start: int, entry: Mapping[str, Any]) -> Tensor:
    dtype, shape, (begin, end) = _DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
    count = math.prod(shape)
    if end - begin != count * dtype.itemsize:
        raise ValueError(f"a tensor of shape {shape} does not take {end - begin} bytes")
    if not count:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(memory, dtype=dtype, count=count, offset=start + begin).reshape(shape)


def load_weights(module: nn.Module, path: Path, name: str) -> None:
    """Copy the weights of a `.safetensors` file into `module`, which messages call `name`.

    Names and shapes must be those of `module.state_dict()`; of tensors that share memory, one is enough. Raises TargetError
    that names the missing and the unexpected keys otherwise.
    """
    given = read_safetensors(path)
    own = {key: tensor for key, tensor in module.state_dict(keep_vars=True).items() if isinstance(tensor, Tensor)}
    shared: dict[Any, list[str]] = {}
    for key, tensor in own.items():
        shared.setdefault((tensor.data_ptr(), tensor.shape) if tensor.numel() and not tensor.is_meta else id(tensor), []).append(
            key
        )
    there = {key for keys in shared.values() if any(key in given for key in keys) for key in keys}
    troubles = {
        "missing": [key for key in own if key not in there],
        "unexpected": [key for key in given if key not in own],
        "of another shape": [
            f"{key} ({tuple(given[key].shape)} for {tuple(own[key].shape)})"
            for key in own
            if key in given and given[key].shape != own[key].shape
        ],
    }
    found = [f"{what}: {_listed(keys)}" for what, keys in troubles.items() if keys]
    if found:
        hint = "give the weights of this very model, or a factory that builds the one that they were saved from"
        raise TargetError(f"{path}: these are not the weights of {name}; {'; '.join(found)}", hint=hint)
    assign = any(tensor.is_meta for tensor in own.values())
    values = {key: tensor.clone() for key, tensor in given.items()} if assign else given
    with torch.no_grad():
        module.load_state_dict(values, strict=False, assign=assign)
    tie = getattr(module, "tie_weights", None)
    if assign and callable(tie):
        tie()


def _listed(keys: list[str]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(keys[:_SHOWN]) + more
