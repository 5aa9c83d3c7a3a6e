"""Hands a module and the process back as they were."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_SEED = 0


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """A context after which module and process are as before it, also when its body raises.

    Of the module: parameters, buffers, `.grad`, `requires_grad`, train/eval mode, hooks and attributes of every submodule. Of
    the process: the random states of torch, Python and numpy, warning filters, default dtype and grad mode. Inside, `.grad` is
    None everywhere and the random states are seeded, so that two runs of the body agree.
    """
    with ExitStack() as stack:
        stack.enter_context(same_process())
        stack.callback(_restored_attributes(module))  # runs last of the two: tensors go back into their own places
        stack.callback(_restored_tensors(module))
        yield


@contextmanager
def same_process() -> Iterator[None]:
    """The part of `untouched` that is about the process."""
    restore = _restored_process()
    try:
        with warnings.catch_warnings():
            random.seed(_SEED)
            np.random.seed(_SEED)  # noqa: NPY002 - user code draws from the global state
            torch.manual_seed(_SEED)
            yield
    finally:
        restore()


def _restored_process() -> Callable[[], None]:
    on_gpu = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    cuda = torch.cuda.get_rng_state_all() if on_gpu else None
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    dtype, grad = torch.get_default_dtype(), torch.is_grad_enabled()

    def restore() -> None:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])  # noqa: NPY002
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)

    return restore


def _restored_tensors(module: nn.Module) -> Callable[[], None]:
    tensors = {id(t): t for t in (*module.parameters(), *module.buffers()) if not t.is_meta}.values()
    kept = [(t, t.detach().clone(), t.requires_grad, t.grad if t.is_leaf else None) for t in tensors]
    for tensor, *_, grad in kept:
        if grad is not None:
            tensor.grad = None

    def restore() -> None:
        with torch.no_grad():
            for tensor, values, requires_grad, grad in kept:
                if not same(tensor, values):
                    tensor.data.copy_(values)  # not `copy_`, whose version count would forbid a backward pass of the user's
                if tensor.requires_grad != requires_grad:
                    tensor.requires_grad_(requires_grad)
                if tensor.is_leaf:
                    tensor.grad = grad

    return restore


def same(tensor: Tensor, values: Tensor) -> bool:
    """Whether two tensors hold the same values; False where that cannot be told."""
    try:
        return torch.equal(tensor, values)
    except (NotImplementedError, RuntimeError):  # layouts without a comparison are always written back
        return False


def _restored_attributes(module: nn.Module) -> Callable[[], None]:
    """What each submodule holds: attributes by reference, and the tables of parameters, buffers, children and hooks."""
    kept: list[tuple[nn.Module, dict[str, Any], dict[str, dict[str, Any]]]] = []
    for child in module.modules():
        if isinstance(child, torch.jit.ScriptModule):
            kept.append((child, {"training": child.training}, {}))
            continue
        attributes = dict(vars(child))
        tables = {key: dict(value) for key, value in attributes.items() if key.startswith("_") and isinstance(value, dict)}
        kept.append((child, attributes, tables))

    def restore() -> None:
        for child, attributes, tables in kept:
            if isinstance(child, torch.jit.ScriptModule):
                child.training = attributes["training"]
                continue
            vars(child).clear()
            vars(child).update(attributes)
            for key, table in tables.items():
                attributes[key].clear()
                attributes[key].update(table)

    return restore
