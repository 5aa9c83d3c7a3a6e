"""Save and restore the state of a module and of the process."""

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
    """Restore the module and the process on exit, also if the body of the context raises.

    The state of the module consists of the parameters, buffers, `.grad`, `requires_grad`, train/eval mode, hooks and attributes
    of every submodule. The state of the process consists of the random states of torch, Python and numpy, the warning filters,
    the default dtype and the grad mode. While the body runs, every `.grad` is None at first and the random states are seeded,
    so that two runs of the body give the same result.
    """
    with ExitStack() as stack:
        stack.enter_context(untouched_process())
        stack.callback(_restored_attributes(module))  # runs after the tensors are restored, and puts them back in place
        stack.callback(_restored_tensors(module))
        yield


@contextmanager
def untouched_process() -> Iterator[None]:
    """Restore only the state of the process on exit, and seed the random states; see `untouched`."""
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
                if tensor.shape != values.shape:
                    tensor.data = values  # a buffer that the forward resized, as observers of a quantization do
                elif not same(tensor, values):
                    # not `tensor.copy_`, which raises the version counter: a later backward pass of the user would fail
                    tensor.data.copy_(values)
                if tensor.requires_grad != requires_grad:
                    tensor.requires_grad_(requires_grad)
                if tensor.is_leaf:
                    tensor.grad = grad

    return restore


def same(tensor: Tensor, values: Tensor) -> bool:
    """Return whether two tensors hold the same values. False if torch cannot compare them."""
    try:
        return torch.equal(tensor, values)
    except (NotImplementedError, RuntimeError):  # layouts that torch cannot compare are always written back
        return False


def _restored_attributes(module: nn.Module) -> Callable[[], None]:
    """Save the attributes of each submodule by reference, and copies of its tables of parameters, buffers, children and hooks.

    Return the function that restores them.
    """
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
