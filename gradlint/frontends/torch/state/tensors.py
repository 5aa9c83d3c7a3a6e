"""Keep the values, the shape and the gradient of tensors, and put them back where they changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")
_FACTS = 4  # entries of a layout that all tensors have
_versions: Any = torch._C._autograd._unsafe_set_version_counter  # noqa: SLF001 - there is no public way


def kept_tensor(tensor: Tensor) -> Callable[[], None]:
    """Save a tensor, take its `.grad` away, and return the function that restores it in place.

    Its memory, shape, strides and dtype are those that it had. Its version is too, which autograd compares: a graph that was
    recorded before can still be differentiated.
    """
    grad = tensor.grad if tensor.is_leaf and not tensor.is_inference() else None
    if grad is not None:
        tensor.grad = None
    requires_grad, leaf = tensor.requires_grad, tensor.is_leaf
    version = None if tensor.is_inference() else tensor._version  # noqa: SLF001
    layout = _layout(tensor)
    hooks = _hooks_of(tensor)
    with torch.no_grad():
        alias = tensor.detach()
        values = _core(alias).clone() if not tensor.is_meta else None

    def restore() -> None:
        with torch.no_grad():
            if _layout(tensor) != layout:
                _give_back_memory(tensor, alias, layout)
            if values is not None and not same(_core(tensor.detach()), values):
                # not `tensor.copy_`, which raises the version: a later backward pass of the user would fail
                if tensor.layout is torch.strided:
                    _core(tensor.detach() if tensor.is_inference() else tensor.data).copy_(values)
                else:
                    tensor.data = values
        for name, (table, entries) in hooks.items():
            if getattr(tensor, name) is not table:
                setattr(tensor, name, table)
            if table is not None and dict(table) != entries:
                table.clear()
                table.update(entries)
        if leaf and tensor.requires_grad != requires_grad:
            tensor.requires_grad_(requires_grad)
        if leaf and not tensor.is_inference() and tensor.grad is not grad:
            tensor.grad = grad
        if version is not None and tensor._version != version:  # noqa: SLF001
            _set_version(tensor, version)

    return restore


def _hooks_of(tensor: Tensor) -> dict[str, tuple[Any, dict[Any, Any]]]:
    """Return the tables of the hooks of a tensor, None where there is none, each with a copy of its entries."""
    tables = {name: getattr(tensor, name, None) for name in _HOOKS if hasattr(tensor, name)}
    return {name: (table, dict(table or {})) for name, table in tables.items()}


def has_memory(tensor: Tensor) -> bool:
    """Return whether the values of a tensor exist: a forward may free the memory of a buffer, and torch crashes on reading it."""
    if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_nested or not tensor.numel():
        return True
    try:
        there = tensor.untyped_storage().nbytes()
    except (NotImplementedError, RuntimeError):  # a subclass without memory of its own
        return True
    last = tensor.storage_offset() + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size() <= there


def same(tensor: Tensor, values: Tensor) -> bool:
    """Return whether two tensors hold the same values. False if torch cannot compare them."""
    try:
        return torch.equal(tensor, values)
    except (NotImplementedError, RuntimeError):  # layouts that torch cannot compare are always written back
        return False


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    """Return where and how a tensor lies in memory: dtype, device, shape and, if it is dense, strides and memory."""
    facts = tensor.dtype, tensor.device, tensor.layout, tensor.is_nested or tuple(tensor.shape)
    if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_nested:
        return facts
    try:
        memory = tensor.untyped_storage()
        return *facts, tensor.stride(), tensor.storage_offset(), memory.data_ptr(), memory.nbytes()
    except (NotImplementedError, RuntimeError):  # a subclass without memory of its own
        return facts


def _give_back_memory(tensor: Tensor, alias: Tensor, layout: tuple[Any, ...]) -> None:
    """Let `tensor` have the memory of `alias` again, which was of `layout` and may have been resized since."""
    *_, size = layout
    if len(layout) == len(_layout(alias)) > _FACTS and alias.untyped_storage().nbytes() != size:
        alias.untyped_storage().resize_(size)
    tensor.data = alias


def _core(tensor: Tensor) -> Tensor:
    """Return the part of a tensor without the repetitions of an expanded one, which cannot be written."""
    if tensor.layout is not torch.strided or tensor.is_nested or 0 not in tensor.stride():
        return tensor
    for axis, (stride, size) in enumerate(zip(tensor.stride(), tensor.shape, strict=True)):
        if stride == 0 and size > 1:
            tensor = tensor.narrow(axis, 0, 1)
    return tensor


def _set_version(tensor: Tensor, version: int) -> None:
    try:
        _versions((tensor,), (version,))
    except TypeError:  # before torch 2.6 it took one tensor
        _versions(tensor, version)
