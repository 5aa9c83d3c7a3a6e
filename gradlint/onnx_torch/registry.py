"""The operator table: what a kernel is and how one is registered.

A kernel is a function whose positional parameters are the ONNX inputs, None for one that was left out, and whose
keyword-only parameters are the ONNX attributes with the defaults of the specification. A trailing underscore in a name is
dropped, so that `max_` stands for the attribute `max`. A first parameter called `ctx` receives the `Context`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])
Value = Any  # Tensor, list of tensors for an ONNX sequence, or None for an optional value that is absent

MAX_ELEMENTS = 1 << 28  # 1 GiB of float32: an untrusted file may ask for any size
MAX_TRIPS = 100_000


class BudgetError(ValueError):
    """An operator asks for more elements, or a loop for more trips, than any sensible model does."""


class SubGraph(Protocol):
    """A planned graph attribute, such as a branch of If."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the formal inputs."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the results."""


@dataclass(frozen=True, slots=True)
class Context:
    """What a few kernels need besides inputs and attributes.

    `outputs` are the names of the results asked for, "" where one is not wanted. `run(graph, arguments, observed)` runs a
    sub-graph; its nodes are shown to the observer only if `observed`.
    """

    op: str
    opset: int
    outputs: tuple[str, ...]
    run: Callable[[SubGraph, Sequence[Value], bool], tuple[Value, ...]]

    def wants(self, port: int) -> bool:
        """Whether somebody reads output `port`."""
        return port < len(self.outputs) and bool(self.outputs[port])


@dataclass(frozen=True, slots=True)
class Kernel:
    """A registered operator.

    `attributes` maps ONNX names to parameter names, `required` are those of the latter without a default, `arity` is its
    number of inputs, None: any.
    """

    function: Callable[..., Any]
    attributes: Mapping[str, str]
    wants_context: bool
    arity: int | None
    required: frozenset[str] = frozenset()

    def named(self, attributes: Mapping[str, Any]) -> dict[str, Any]:
        """Attributes of a node as keyword arguments; raises KeyError for one that the kernel does not know."""
        return {self.attributes[name]: value for name, value in attributes.items() if name not in RELICS}


RELICS = frozenset({"consumed_inputs"})  # attributes of early opsets that never meant anything to a result
KERNELS: dict[str, Kernel] = {}  # by operator, "domain::operator" outside the default domain


def op(*names: str, like: Callable[..., Any] | None = None) -> Callable[[F], F]:
    """Register the decorated function as the kernel of `names`; it hands its attributes on to `like`, when that is given."""

    def register(function: F) -> F:
        parameters = inspect.signature(function).parameters
        named = [p for p in inspect.signature(like or function).parameters.values() if p.kind is p.KEYWORD_ONLY]
        attributes = {p.name.rstrip("_"): p.name for p in named}
        required = frozenset(p.name for p in named if p.default is p.empty)
        wants_context = next(iter(parameters), "") == "ctx"
        kinds = [p.kind for p in parameters.values()]
        places = kinds.count(inspect.Parameter.POSITIONAL_OR_KEYWORD) - wants_context
        arity = None if inspect.Parameter.VAR_POSITIONAL in kinds else places
        kernel = Kernel(function, attributes, wants_context, arity, required)
        KERNELS.update(dict.fromkeys(names, kernel))
        return function

    return register


def plain(table: Mapping[str, Callable[..., Any]], arity: int | None = None) -> None:
    """Register functions that take no attributes, such as those of torch itself."""
    KERNELS.update({name: Kernel(function, {}, wants_context=False, arity=arity) for name, function in table.items()})


def ints(value: Tensor | Iterable[int]) -> tuple[int, ...]:
    """A small integer tensor, or an attribute, as Python integers."""
    return tuple(int(v) for v in (value.reshape(-1).tolist() if isinstance(value, Tensor) else value))


def budget(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape itself; raises BudgetError when it holds more than MAX_ELEMENTS elements."""
    if math.prod(shape) > MAX_ELEMENTS:
        raise BudgetError(f"it asks for a tensor of shape {list(shape)}, more than {MAX_ELEMENTS} elements")
    return tuple(shape)
