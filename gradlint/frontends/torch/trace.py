"""Trace a run of a torch module: function calls, aten operators, module calls, custom functions and checkpoints."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint
from torch.utils._python_dispatch import TorchDispatchMode

from gradlint.frontends.torch.ops import function_name
from gradlint.frontends.torch.record import OpaqueCall, Recorder

_jit: Any = torch.jit  # partly untyped
_PROPERTIES = frozenset({"T", "mT", "H", "mH", "data", "real", "imag"})  # they return a tensor with the tensor's values
_QUERY_NAMES = (  # functions that compute no tensor: they return a property, or a value that is no tensor
    "size dim ndimension stride storage_offset numel nelement element_size is_contiguous is_floating_point is_complex is_signed "
    "data_ptr untyped_storage storage register_hook register_post_accumulate_grad_hook retain_grad requires_grad_ backward "
    "get_device is_same_size has_names is_inference is_nonzero is_pinned is_shared share_memory_ __set__ __len__ __repr__ "
    "__format__ __hash__ __bool__ __int__ __float__ __index__ __contains__ __delete__ item tolist numpy __array__ __reduce_ex__ "
    "__deepcopy__ _set_grad_enabled set_grad_enabled result_type can_cast is_tensor is_storage set_ resize_ resize_as_"
)
_QUERIES = frozenset(_QUERY_NAMES.split())
_BOOKKEEPING = frozenset({"detach", "alias", "lift_fresh", "lift_fresh_copy"})  # operators that autograd itself calls


class FunctionTracer(TorchFunctionMode):
    """A function mode that records every torch function that the user's code or a torch module calls."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func` and record it, unless it runs inside a recorded call or computes no tensor."""
        kwargs = kwargs or {}
        recorder = self.recorder
        if recorder.depth or recorder.failure is not None:
            return func(*args, **kwargs)
        if _is_query(func):
            return None if _asks_for_grad(func, args) else func(*args, **kwargs)
        name = function_name(func)
        if recorder.writes_view(name, args, kwargs):
            return recorder.write(name, func, args, kwargs)
        return recorder.call(name, func, args, kwargs, lambda: func(*args, **kwargs))


class GapTracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A dispatch mode that records the operators that run outside any recorded function, as TorchScript's do."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recorder = recorder

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the aten operator `func` and record it, unless it runs inside a recorded call."""
        kwargs = kwargs or {}
        recorder = self.recorder
        if recorder.depth or recorder.failure is not None:
            return func(*args, **kwargs)
        name = function_name(func)
        if name in _BOOKKEEPING:
            with recorder.paused():
                return func(*args, **kwargs)
        return recorder.call(name, func, args, kwargs, lambda: func(*args, **kwargs), gap=True)


def _is_query(func: Any) -> bool:
    name = getattr(func, "__name__", "")
    return (func.__self__.__name__ not in _PROPERTIES) if name == "__get__" else name in _QUERIES


def _asks_for_grad(func: Any, args: Any) -> bool:
    """Return whether this is `x.requires_grad = ...` on a tensor that is no leaf.

    User code may do this to its inputs, which are leaves. The recorder passes clones of leaves, on which torch would raise.
    """
    return getattr(func, "__name__", "") == "__set__" and func.__self__.__name__ == "requires_grad" and not args[0].is_leaf


@contextmanager
def recording(recorder: Recorder, *, functions: bool = True, gaps: bool = True) -> Iterator[None]:
    """Record what runs in the body of the context.

    Module calls are always recorded. `functions` also records torch functions; without it, every module that has no children
    becomes one node. `gaps` also records aten operators that run outside any recorded function.
    """
    with ExitStack() as stack:
        stack.enter_context(eager(recorder))
        stack.enter_context(_custom_functions(recorder) if functions else nullcontext())
        stack.enter_context(_module_hooks(recorder, leaves=not functions))
        if gaps:
            stack.enter_context(GapTracer(recorder))
        if functions:
            stack.enter_context(FunctionTracer(recorder))
        yield


@contextmanager
def _module_hooks(recorder: Recorder, *, leaves: bool) -> Iterator[None]:
    def before(module: nn.Module, _args: Any) -> None:
        recorder.enter(module)

    def after(module: nn.Module, args: Any, outcome: Any) -> Any:
        changed = recorder.module(module, args, outcome) if leaves and not any(module.children()) else None
        recorder.leave(module, args, outcome)
        return changed

    handles = [register_module_forward_pre_hook(before), register_module_forward_hook(after, always_call=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def eager(recorder: Recorder | None = None) -> Iterator[None]:
    """Run compiled code eagerly, checkpointed code only once, and TorchScript without optimizations; ignore warnings."""
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        if "torch._dynamo" in sys.modules:
            stack.enter_context(_uncompiled())
        stack.enter_context(_jit.optimized_execution(False))
        stack.enter_context(_checkpoints(recorder))
        yield


def _uncompiled() -> AbstractContextManager[Any]:
    """Run what torch.compile wraps as plain Python."""
    if hasattr(torch.compiler, "set_stance"):  # since torch 2.6
        return torch.compiler.set_stance("force_eager")
    frames: Any = sys.modules["torch._dynamo.eval_frame"]
    unset: Any = frames.set_eval_frame
    return _replaced(frames, "set_eval_frame", lambda _: unset(None))


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    own = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)


@contextmanager
def _checkpoints(recorder: Recorder | None) -> Iterator[None]:
    """Make checkpointed regions keep their activations instead of running again in the backward pass.

    The second run would be neither recorded nor edited. The gradient is the same.
    """

    def once(*_args: Any, **_kwargs: Any) -> Iterator[None]:
        with _checkpointed(recorder):
            yield

    name = "_checkpoint_without_reentrant_generator"  # a private name; if it is missing, the region runs again
    with _replaced(checkpoint, name, once) if hasattr(checkpoint, name) else nullcontext():
        yield


@contextmanager
def _checkpointed(recorder: Recorder | None) -> Iterator[None]:
    if recorder is not None:
        recorder.checkpoints += 1
    try:
        yield
    finally:
        if recorder is not None:
            recorder.checkpoints -= 1


@contextmanager
def _custom_functions(recorder: Recorder) -> Iterator[None]:
    """Record each call of an `autograd.Function` as one node, because its backward does not differentiate what it runs."""
    base = getattr(torch.autograd.function, "_SingleLevelFunction", None)  # `Function.apply` calls `super().apply` on it
    if base is None or "apply" in vars(base):
        yield
        return

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        def run() -> Any:
            return super(base, cls).apply(*args, **kwargs)

        if recorder.depth or recorder.failure is not None:
            return run()
        if cls is checkpoint.CheckpointFunction:
            return _reentrant(recorder, *args)
        named = (None, *args) if cls.forward.__code__.co_argcount == len(args) + 1 else args  # the first argument is the context
        note = f"custom-function:{cls.__name__}"
        return recorder.call(cls.__name__, cls.forward, named, kwargs, run, opaque=OpaqueCall("unknown"), note=note)

    with _replaced(base, "apply", classmethod(apply)):
        yield


def _reentrant(recorder: Recorder, function: Callable[..., Any], _preserve_rng: bool, *args: Any) -> Any:
    """Run a reentrant checkpoint once. Like torch's, it passes no gradient if no argument requires grad."""
    alive = any(isinstance(arg, Tensor) and arg.requires_grad for arg in args)
    with _checkpointed(recorder), nullcontext() if alive else torch.no_grad():
        return function(*args)
