"""Weights from `.safetensors` files, which are data alone: a header in JSON, and the bytes of the tensors."""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Mapping
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
_LONGEST_HEADER = 100 << 20
_SHOWN = 5


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a `.safetensors` file by name. Their memory is that of the file, mapped and never written.

    Raises TargetError if the file cannot be read or is damaged, and UnsafeFileError for another kind of file.
    """
    if path.suffix.lower() != ".safetensors":
        hint = "save the weights with safetensors.torch.save_file(model.state_dict(), 'model.safetensors')"
        raise UnsafeFileError(f"{path}: weights are read from .safetensors alone, since a pickle runs code", hint=hint)
    try:
        with path.open("rb") as file:
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        raise TargetError(f"{path}: cannot read it: {getattr(error, 'strerror', None) or error}") from error
    try:
        size, header = _header(memory)
        return {name: _tensor(memory, 8 + size, entry) for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, RuntimeError) as error:
        raise TargetError(f"{path}: it is no .safetensors file, or damaged: {error}") from error


def _header(memory: mmap.mmap) -> tuple[int, Any]:
    size = int.from_bytes(memory[:8], "little")
    if not 0 < size <= min(_LONGEST_HEADER, len(memory) - 8):
        raise ValueError(f"its header is said to have {size} bytes")
    return size, json.loads(memory[8 : 8 + size])


def _tensor(memory: mmap.mmap, start: int, entry: Mapping[str, Any]) -> Tensor:
    dtype, shape, (begin, end) = _DTYPES[entry["dtype"]], [int(size) for size in entry["shape"]], entry["data_offsets"]
    count = math.prod(shape)
    if min(shape, default=0) < 0 or not 0 <= begin <= end <= len(memory) - start or end - begin != count * dtype.itemsize:
        raise ValueError(f"a tensor of shape {shape} does not lie in the file")
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
