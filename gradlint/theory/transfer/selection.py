"""Read which elements a slice selects from its attributes: torch indexing, `select`, `narrow`, ONNX Slice and Gather."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gradlint.graph import Node

Taken = int | slice


def taken(node: Node, sizes: Sequence[int]) -> list[Taken] | None:
    """Return the index or slice that an operator takes along each axis of its operand, or None if that is unknown."""
    attrs, rank = node.attrs, len(sizes)
    if isinstance(attrs.get("index"), tuple):
        return _indexed(attrs["index"], rank)
    axis = next((attrs[key] for key in ("dim", "axis") if isinstance(attrs.get(key), int)), 0)
    whole: list[Taken] = [slice(None)] * rank
    if not -rank <= axis < rank:
        return None
    picked = next((attrs[key] for key in ("index", "indices") if isinstance(attrs.get(key), int)), None)
    if picked is not None:
        whole[axis] = int(picked)
        return whole
    if isinstance(attrs.get("start"), int) and isinstance(attrs.get("length"), int):
        whole[axis] = slice(attrs["start"], attrs["start"] + attrs["length"])
        return whole
    return _onnx_slice(attrs, rank)


def _indexed(index: tuple[Any, ...], rank: int) -> list[Taken] | None:
    """Read basic indexing as the front end writes it: integers, (start, stop, step) and "..."; return None for others."""
    missing = rank - sum(item != "..." for item in index)
    found: list[Taken] = []
    for item in index:
        if item == "...":
            found += [slice(None)] * missing
        elif isinstance(item, tuple) and len(item) == 3:
            found.append(slice(*item))
        elif isinstance(item, int) and not isinstance(item, bool):
            found.append(item)
        else:
            return None
    found += [slice(None)] * (rank - len(found))
    return found if len(found) == rank else None


def _onnx_slice(attrs: Any, rank: int) -> list[Taken] | None:
    starts, ends = (_numbers(attrs.get(key)) for key in ("starts", "ends"))
    if starts is None or ends is None or len(starts) != len(ends):
        return None
    axes = _numbers(attrs.get("axes")) or list(range(len(starts)))
    steps = _numbers(attrs.get("steps")) or [1] * len(starts)
    if not len(axes) == len(steps) == len(starts) or any(not -rank <= axis < rank for axis in axes):
        return None
    found: list[Taken] = [slice(None)] * rank
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        found[axis] = slice(start, None if end <= -(1 << 31) else end, step or 1)
    return found


def _numbers(value: Any) -> list[int] | None:
    if isinstance(value, int):
        return [value]
    return list(value) if isinstance(value, (tuple, list)) and all(isinstance(item, int) for item in value) else None


def padding(node: Node, rank: int) -> list[int] | None:
    """Return the number of zeros that a constant padding adds before each axis, or None for any other operator."""
    attrs = node.attrs
    mode = str(attrs.get("mode", "constant"))
    value = attrs.get("value", attrs.get("constant_value", 0.0)) or 0.0
    pads = _numbers(attrs.get("pad", attrs.get("pads")))
    if pads is None or mode != "constant" or value != 0.0 or any(pad < 0 for pad in pads):
        return None
    if "pads" in attrs:  # ONNX: all beginnings, then all ends
        axes = _numbers(attrs.get("axes")) or list(range(rank))
        begins = dict(zip(axes, pads[: len(pads) // 2], strict=False))
    else:  # torch: pairs from the last axis on
        begins = {rank - 1 - index: pads[2 * index] for index in range(len(pads) // 2)}
    return [begins.get(axis, begins.get(axis - rank, 0)) for axis in range(rank)]
