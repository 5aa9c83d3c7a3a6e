"""From what a user hands over to a module with its arguments and its task."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from gradlint.errors import GradlintError, TargetError
from gradlint.frontends.targets import Target, as_recipe, called
from gradlint.frontends.torch import source


def resolve(obj: Any, name: str = "the target") -> Target:
    """Return the module that `obj` denotes, with its arguments and its task.

    `obj` is a module, a method of a module that takes arguments, a class or function without required arguments,
    `(module, args)`, `(module, args, kwargs)`, or an object with `.module`, `.args` and `.kwargs`. `args` may be a single tensor.
    With arguments, the module may be any function that modules are reachable from: see `as_module`. `name` names the object in
    error messages. Raises TargetError for any other object, if a factory requires arguments or raises, and for a module that
    nothing says how to call.
    """
    if inspect.isfunction(obj) and _takes_arguments(obj, required=True) and _reached(obj):
        return Target(as_module(obj, name))
    if not isinstance(obj, (nn.Module, Target)) and callable(obj) and not _is_method(obj):
        with source.recorded_construction():
            obj = called(obj, getattr(obj, "__name__", name))
    if _is_method(obj):
        obj = as_module(obj, name)
    if isinstance(obj, nn.Module):
        return Target(_with_forward(obj, name))
    if isinstance(obj, tuple) and len(obj) in {2, 3} and callable(obj[0]):
        obj = Target(*obj)
    module, args, kwargs = getattr(obj, "module", None), getattr(obj, "args", ()), getattr(obj, "kwargs", {})
    if inspect.isclass(module) or (callable(module) and not isinstance(module, nn.Module) and not _takes_arguments(module)):
        module = resolve(module, name).module
    if not callable(module):
        raise TargetError(
            f"{name} is of type {type(obj).__name__}, not a torch.nn.Module",
            hint="name a module, a class, or a function that returns module, (module, args) or (module, args, kwargs)",
        )
    module = _with_forward(module, name) if isinstance(module, nn.Module) else as_module(module, name)
    asked = (getattr(obj, key, None) for key in ("loss", "target", "recipe"))
    return Target(module, tuple(args) if isinstance(args, (tuple, list)) else (args,), dict(kwargs), *asked)


def as_module(function: Callable[..., Any], name: str = "the target") -> nn.Module:
    """Return a module that calls `function`.

    For a method of a module, that is the module itself with another forward: one object with the same state. Otherwise it holds
    the modules that the function reaches: the ones in its closure, its bound arguments, its owner and the globals that it reads.
    Raises TargetError if there are none.
    """
    if _is_method(function):
        assert isinstance(function, MethodType)
        assert isinstance(function.__self__, nn.Module)
        owner, method = function.__self__, function.__func__

        @functools.wraps(method)
        def forward(_self: Any, *args: Any, **kwargs: Any) -> Any:
            return method(owner, *args, **kwargs)  # on the module itself, whose own forward it may call

        return _seen_through(owner, forward)
    held = {str(index): module for index, module in enumerate(_reached(function))}
    if not held:
        raise TargetError(f"{name} is a function that reaches no module", hint="hand over the module whose weights are trained")
    return _Function(function, held)


def training(module: nn.Module) -> Target | None:
    """Return a module of Lightning's kind as it is trained, or None for others.

    The forward of what is returned takes a batch and returns the loss of `training_step`. The recipe is that of
    `configure_optimizers`, if gradlint knows the optimizer.
    """
    step = getattr(type(module), "training_step", None)
    if not inspect.isfunction(step) or not callable(getattr(module, "configure_optimizers", None)):
        return None
    own: Callable[..., Any] = step
    takes_index = len(inspect.signature(own).parameters) > 2

    def forward(_self: Any, batch: Any) -> Any:
        outcome = own(module, batch, 0) if takes_index else own(module, batch)  # which may call the forward of the module itself
        return outcome.get("loss") if isinstance(outcome, Mapping) else outcome

    return Target(_seen_through(module, forward), loss=_as_it_is, recipe=optimizer_of(module))


def optimizer_of(module: nn.Module) -> Any:
    """Return the recipe of the optimizers that `configure_optimizers` returns, or None if it raises or returns none."""
    configure = getattr(module, "configure_optimizers", None)
    try:
        found = configure() if callable(configure) and not inspect.signature(configure).parameters else None
        each = _optimizers(found)
        return as_recipe(each) if each else None
    except (GradlintError, Exception):  # noqa: BLE001 - the module can be examined without its recipe
        return None


def _optimizers(found: Any) -> list[Any]:
    """Return the optimizers in what `configure_optimizers` returned: one, a dict with one, a list, or two lists."""
    if isinstance(found, Mapping):
        found = found.get("optimizer")
    if isinstance(found, (tuple, list)):
        return [optimizer for one in found for optimizer in _optimizers(one)]
    return [found] if hasattr(found, "param_groups") else []


def _as_it_is(output: Tensor, _target: Any) -> Tensor:
    """Return the loss that the model returned."""
    return output


def _is_method(obj: Any) -> bool:
    """Return whether `obj` is a method of a module that needs arguments, which cannot be a factory."""
    return isinstance(obj, MethodType) and isinstance(obj.__self__, nn.Module) and _takes_arguments(obj, required=True)


def _takes_arguments(function: Callable[..., Any], *, required: bool = False) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a builtin
        return True
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return any(not required or (p.default is p.empty and p.kind not in kinds) for p in parameters)


def _seen_through(module: nn.Module, forward: Callable[..., Any]) -> nn.Module:
    """Return a module that shares its whole state with `module` and has another forward."""
    kind = type(module)
    view: nn.Module = object.__new__(type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__}))
    view.__dict__ = module.__dict__
    return view


def _with_forward(module: nn.Module, name: str) -> nn.Module:
    """Return the module if it has a forward. Raises TargetError, which names its methods, if nothing says how to call it."""
    if isinstance(module, torch.jit.ScriptModule) or "forward" in vars(module):
        return module
    if type(module).forward is not nn.Module.forward or training(module) is not None:
        return module
    kind = type(module).__name__
    users = vars(type(module)).items() if not type(module).__module__.startswith("torch.") else ()
    own = [key for key, value in users if inspect.isfunction(value) and not key.startswith("_")]
    where = name if ":" in name else f"FILE.py:{kind}"
    hint = f"name the method that is called, as in {where}.{own[0]}" if own else "write a function that calls what it holds"
    raise TargetError(f"{name}: {kind} has no forward", hint=hint)


def _reached(function: Any) -> list[nn.Module]:
    """Return the modules that a function reaches by its closure, bound arguments, owner and globals, each once."""
    found: list[Any] = []
    while isinstance(function, functools.partial):
        found += [*function.args, *function.keywords.values()]
        function = function.func
    owner = getattr(function, "__self__", None)
    found += [owner, *(vars(owner).values() if hasattr(owner, "__dict__") else ())]
    if not inspect.isroutine(function):
        found += [function, *(vars(function).values() if hasattr(function, "__dict__") else ())]
    inner = inspect.unwrap(getattr(function, "__func__", function))
    for cell in getattr(inner, "__closure__", None) or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:  # a name that was never bound
            continue
    names = getattr(getattr(inner, "__code__", None), "co_names", ())
    found += [inner.__globals__[name] for name in names if name in getattr(inner, "__globals__", {})]
    modules = [item for value in found for item in (value if isinstance(value, (tuple, list)) else (value,))]
    return list({id(module): module for module in modules if isinstance(module, nn.Module)}.values())


class _Function(nn.Module):
    """A function, with the modules that it reaches."""

    def __init__(self, function: Callable[..., Any], held: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self._function = function
        for name, module in held.items():
            self.add_module(name, module)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return self._function(*args, **kwargs)
