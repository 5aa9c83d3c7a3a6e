"""Trace a run of a torch module: function calls, aten operators, module calls, custom functions and checkpoints."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint
from torch.utils._python_dispatch import TorchDispatchMode

from gradlint.frontends.torch.ops import function_name
from gradlint.frontends.torch.record import OpaqueCall, Recorder
from gradlint.frontends.turns import own_thread, silent

_jit: Any = torch.jit  # partly untyped
_CHECKPOINTS = ("_checkpoint_without_reentrant_generator_impl", "_checkpoint_without_reentrant_generator")  # private names
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

    Only this thread is recorded; others may run modules of their own meanwhile. Module calls are always recorded. `functions`
    also records torch functions; without it, every module that has no children becomes one node. `gaps` also records aten
    operators that run outside any recorded function.
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
    mine = own_thread()

    def before(module: nn.Module, _args: Any) -> None:
        if mine():
            recorder.enter(module)

    def after(module: nn.Module, args: Any, outcome: Any) -> Any:
        if not mine():
            return None
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
        stack.enter_context(silent())
        if "torch._dynamo" in sys.modules:
            stack.enter_context(_uncompiled())
        stack.enter_context(_jit.optimized_execution(False))
        stack.enter_context(_checkpoints(recorder))
        yield


def _uncompiled() -> AbstractContextManager[Any]:
    """Run what torch.compile wraps as plain Python."""
    compiler: Any = torch.compiler
    if hasattr(compiler, "set_stance"):  # since torch 2.6
        stance: AbstractContextManager[Any] = compiler.set_stance("force_eager")
        return stance
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
    found = next((name for name in _CHECKPOINTS if hasattr(checkpoint, name)), None)  # if none is there, the region runs again
    usual, mine = getattr(checkpoint, found or "", None), own_thread()

    def once(*args: Any, **kwargs: Any) -> Iterator[None]:
        if mine():
            with _checkpointed(recorder):
                yield
        elif usual is not None:
            yield from usual(*args, **kwargs)

    with _replaced(checkpoint, found, once) if found else nullcontext():
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
    functions = torch.autograd.function
    base = getattr(functions, "_SingleLevelFunction", None)  # before torch 2.14, `Function.apply` calls `super().apply` on it
    builtin = not inspect.ismethod(functions.Function.apply)
    owner: Any = functions.Function if builtin else base
    if owner is None or ("apply" in vars(owner)) != builtin:
        yield
        return
    original, mine = vars(owner).get("apply"), own_thread()

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        def run() -> Any:
            return (super(owner, cls).apply if original is None else original.__get__(None, cls))(*args, **kwargs)

        if not mine() or recorder.depth or recorder.failure is not None:
            return run()
        if cls is checkpoint.CheckpointFunction:
            return _reentrant(recorder, *args)
        forward = type.__getattribute__(cls, "forward")
        named = (None, *args) if forward.__code__.co_argcount == len(args) + 1 else args  # the first argument is the context
        return recorder.call(cls.__name__, forward, named, kwargs, run, **_as_one_node(cls))

    with _replaced(owner, "apply", classmethod(apply)), _bound_early(recorder) if builtin else nullcontext():
        yield


@contextmanager
def _bound_early(recorder: Recorder) -> Iterator[None]:
    """Record the calls of a builtin `apply` that was read from its class before the run, which no patch of `apply` reaches.

    The builtin reads `_backward_cls` from the class to make the context, and then `forward`, which is wrapped.
    """
    calls: list[tuple[Any, bool]] = []
    usual, mine = torch.autograd.Function.setup_context, own_thread()

    def read(cls: Any, name: str) -> Any:
        value = type.__getattribute__(cls, name)
        if not mine() or recorder.depth or recorder.failure is not None:
            return value
        if name == "_backward_cls":
            calls[:] = [(cls, torch.is_grad_enabled())]
        elif name == "forward" and calls and calls[0][0] is cls:
            return partial(forward, cls, value, alive=calls.pop()[1])
        elif name == "setup_context" and value is not usual:  # the builtin compares them too
            return partial(unrecorded, value)
        return value

    def unrecorded(function: Any, *args: Any) -> Any:
        with recorder.paused():
            return function(*args)

    def forward(cls: Any, function: Any, *args: Any, alive: bool) -> Any:
        def run() -> Any:
            with torch.set_grad_enabled(inside):
                return function(*args)

        inside = torch.is_grad_enabled()  # the builtin has turned gradients off
        with torch.set_grad_enabled(alive):
            named = tuple(None if isinstance(arg, torch.autograd.function.BackwardCFunction) else arg for arg in args)
            return recorder.call(cls.__name__, function, named, {}, run, gap=True, **_as_one_node(cls))

    with _replaced(torch.autograd.function.FunctionMeta, "__getattribute__", read):
        yield


def _as_one_node(cls: Any) -> Any:
    return {"opaque": OpaqueCall("unknown"), "note": f"custom-function:{cls.__name__}"}


def _reentrant(recorder: Recorder, function: Callable[..., Any], _preserve_rng: bool, *args: Any) -> Any:
    """Run a reentrant checkpoint once. Like torch's, it passes no gradient if no argument requires grad."""
    alive = any(isinstance(arg, Tensor) and arg.requires_grad for arg in args)
    with _checkpointed(recorder), nullcontext() if alive else torch.no_grad():
        return function(*args)
