"""The operator table: what a kernel is, and how to register one.

A kernel is a function. Its positional parameters are the ONNX inputs, which are None if they are left out. Its keyword-only
parameters are the ONNX attributes, with the defaults of the specification. A trailing underscore in a name is dropped: `max_`
is the attribute `max`. If the first parameter is called `ctx`, it receives a `Context`.
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

MAX_ELEMENTS = 1 << 28  # 1 GiB of float32; an untrusted file may request any size
MAX_TRIPS = 100_000


class BudgetError(ValueError):
    """An operator requests more than `MAX_ELEMENTS` elements, or a loop more than `MAX_TRIPS` iterations."""


class SubGraph(Protocol):
    """A planned graph attribute, such as a branch of If."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the formal inputs."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the results."""


@dataclass(frozen=True, slots=True)
class Context:
    """What some kernels need besides inputs and attributes.

    `op` is the operator, `opset` the opset version of its domain. `outputs` are the names of the node's outputs, "" for one that
    is not used. `run(graph, arguments, observed)` runs a subgraph; the observer sees its nodes only if `observed`.
    """

    op: str
    opset: int
    outputs: tuple[str, ...]
    run: Callable[[SubGraph, Sequence[Value], bool], tuple[Value, ...]]

    def wants(self, port: int) -> bool:
        """Return whether output `port` is used."""
        return port < len(self.outputs) and bool(self.outputs[port])


@dataclass(frozen=True, slots=True)
class Kernel:
    """A registered operator.

    `attributes` maps the names of ONNX attributes to those of parameters. `required` are the parameters without a default.
    `arity` is the largest number of inputs; None for any number.
    """

    function: Callable[..., Any]
    attributes: Mapping[str, str]
    wants_context: bool
    arity: int | None
    required: frozenset[str] = frozenset()

    def named(self, attributes: Mapping[str, Any]) -> dict[str, Any]:
        """Return the attributes of a node as keyword arguments. Raises KeyError if the kernel does not support one."""
        return {self.attributes[name]: value for name, value in attributes.items() if name not in IGNORED_ATTRIBUTES}


IGNORED_ATTRIBUTES = frozenset({"consumed_inputs"})  # attributes of early opsets that do not affect the result
KERNELS: dict[str, Kernel] = {}  # by operator, or "domain::operator" outside the default domain


def op(*names: str, like: Callable[..., Any] | None = None) -> Callable[[F], F]:
    """Register the decorated function as the kernel of the operators `names`.

    If `like` is given, the kernel has the attributes of `like`, to which it passes them on.
    """

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
    """Register functions that take no attributes, such as functions of torch, with at most `arity` inputs (None: any)."""
    KERNELS.update({name: Kernel(function, {}, wants_context=False, arity=arity) for name, function in table.items()})


def ints(value: Tensor | Iterable[int]) -> tuple[int, ...]:
    """Convert a small integer tensor, or an attribute, to Python integers."""
    return tuple(int(v) for v in (value.reshape(-1).tolist() if isinstance(value, Tensor) else value))


def budget(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape itself. Raises BudgetError if it has more than `MAX_ELEMENTS` elements."""
    if math.prod(shape) > MAX_ELEMENTS:
        raise BudgetError(f"it asks for a tensor of shape {list(shape)}, more than {MAX_ELEMENTS} elements")
    return tuple(shape)
