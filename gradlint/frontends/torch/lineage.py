"""The origin of every tensor in one run: the node that produced it, or the weights that it was computed from."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from gradlint.graph import Ref, Statistics, Weight

View = Callable[[Tensor], Tensor]
_NAMES_SHOWN = 4


class _Made(NamedTuple):
    tensor: weakref.ref[Tensor]
    ref: Ref | None  # None for a constant
    version: int


class Origin(NamedTuple):
    """The origin of a tensor: a node output (`ref`) or `weights`; a constant has neither. `version` counts in-place writes."""

    ref: Ref | None
    weights: tuple[str, ...]
    version: int


def tensors(value: Any) -> Iterator[Tensor]:
    """Yield every tensor in nested lists, tuples, slices and mappings, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, slice):
        yield from tensors((value.start, value.stop, value.step))


def replaced(value: Any, new: Iterator[Tensor]) -> Any:
    """Return a copy of `value` with its tensors replaced by those of `new`, in the order of `tensors`.

    Lists, tuples and named tuples keep their type. The copy contains any other object unchanged.
    """
    if isinstance(value, Tensor):
        return next(new)
    if isinstance(value, (list, tuple)):
        items = [replaced(item, new) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, dict):
        return {key: replaced(item, new) for key, item in value.items()}
    return value


def unwrapped(tensor: Tensor) -> Tensor:
    """Return the tensor inside the wrappers of functorch (`vmap`, `grad`, ...)."""
    functorch = getattr(torch._C, "_functorch", None)  # noqa: SLF001 - there is no public way to unwrap a batched tensor
    while functorch is not None and functorch.is_functorch_wrapped_tensor(tensor):
        tensor = functorch.get_unwrapped(tensor)
    return tensor


def version(tensor: Tensor) -> int:
    """Return how often the memory of `tensor` was written in place; 0 for tensors made in inference mode, which do not count."""
    return 0 if tensor.is_inference() else tensor._version  # noqa: SLF001 - a counter that aliases share


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype, "float32" for `torch.float32`."""
    return str(dtype).removeprefix("torch.")


def to_numpy(tensor: Tensor) -> np.ndarray[Any, Any]:
    """Return the values as an array. dtypes that numpy lacks become float32."""
    tensor = tensor.detach().cpu()
    tensor = (tensor if tensor.layout is torch.strided else tensor.to_dense()).resolve_conj()
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    if tensor.dtype is torch.bfloat16 or "float8" in str(tensor.dtype):
        tensor = tensor.float()
    return tensor.numpy()


class Initial(Protocol):
    """The values of weights that have none, or none at all times; see `blocks.Blocks`."""

    def holds(self, tensor: Tensor) -> bool:
        """Return whether the values of a tensor have to be asked for."""

    def statistics(self, tensor: Tensor) -> Statistics | None:
        """Return the statistics of its values, if they are known."""

    def values(self, tensor: Tensor) -> Tensor:
        """Return the values of a tensor that is held."""


class Lineage:
    """The origins of all tensors in one run.

    Tensors are identified by object identity. The version counter, which aliases share, reveals writes through an alias: if the
    memory of a view was written after the view was made, then the view has the origin of its base.
    """

    def __init__(self, weights: Mapping[str, Tensor], initial: Initial | None = None) -> None:
        self._initial = initial
        self._made: dict[int, _Made] = {}
        self._weights: dict[int, tuple[Any, tuple[str, ...]]] = {}
        self._parameters = {name for name, tensor in weights.items() if isinstance(tensor, nn.Parameter)}
        self._seen: dict[tuple[int, int], tuple[Tensor, Weight]] = {}
        for name, tensor in weights.items():
            self._weights.setdefault(id(tensor), (lambda kept=tensor: kept, (name,)))

    def made(self, tensor: Tensor, ref: Ref | None) -> None:
        """Record that `tensor` now holds the node output `ref`, or a constant if None."""
        tensor = unwrapped(tensor)
        self._made[id(tensor)] = _Made(weakref.ref(tensor), ref, version(tensor))

    def derived(self, tensor: Tensor, names: tuple[str, ...]) -> None:
        """Record that `tensor` was computed from the weights `names` and from no input."""
        tensor = unwrapped(tensor)
        if id(tensor) not in self._weights or self._weights[id(tensor)][0]() is not tensor:
            self._weights[id(tensor)] = (weakref.ref(tensor), names)

    def knows(self, tensor: Tensor) -> bool:
        """Return whether `tensor` itself is recorded or a weight. Its base, if it is a view, does not count."""
        made = self._made.get(id(tensor))
        owner = self._weights.get(id(tensor), (None, ()))[0]
        return (made is not None and made.tensor() is tensor) or (owner is not None and owner() is tensor)

    def origin(self, tensor: Tensor) -> Origin:
        """Return the origin of `tensor`. A view that is not recorded itself has the origin of its base."""
        tensor = unwrapped(tensor)
        now = version(tensor)
        made = self._made.get(id(tensor))
        ref = made.ref if made is not None and made.tensor() is tensor else None
        if made is not None and ref is not None and made.version == now:
            return Origin(ref, (), now)
        base = tensor._base  # noqa: SLF001 - the only link from a view to its base
        if base is not None and (of_base := self.origin(base)).ref is not None:
            return Origin(of_base.ref, (), now)
        if ref is not None:
            return Origin(ref, (), now)
        owner, names = self._weights.get(id(tensor), (None, ()))
        if owner is not None and owner() is tensor:
            return Origin(None, names, now)
        return Origin(None, self.origin(base).weights if base is not None else (), now)

    def _valued(self, tensor: Tensor, view: View | None) -> Tensor:
        """Return the values of a weight; of one that has none, those that it will start with."""
        values = self._initial.values(tensor) if self._initial is not None and self._initial.holds(tensor) else tensor.detach()
        return view(values) if view else values

    def weight(self, tensor: Tensor, *, out_axis: int = 0, view: View | None = None) -> Weight:
        """Return a parameter, a buffer, or a tensor computed from them as a `Weight` of the graph.

        `view`, if given, changes the layout of the values. A tensor that was computed from several weights has their names,
        joined by "+"; buffers are left out of the name if there are parameters.
        """
        names = self.origin(tensor).weights or ("constant",)
        names = tuple(name for name in names if name in self._parameters) or names  # prefer the trainable ones
        tensor = unwrapped(tensor)
        values = view(tensor.detach()) if view else tensor.detach()
        more = f"+{len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
        name = "+".join(names[:_NAMES_SHOWN]) + more
        own = view is None and id(tensor) in self._weights and not tensor.grad_fn
        if own and (id(tensor), out_axis) in self._seen:
            return self._seen[id(tensor), out_axis][1]
        weight = Weight(
            name,
            tuple(values.shape),
            dtype_name(values.dtype),
            lambda: to_numpy(self._valued(tensor, view)),
            out_axis=min(out_axis, max(values.ndim - 1, 0)),
            trainable=tensor.requires_grad,
            statistics=self._initial.statistics(tensor)
            if self._initial is not None and values.numel() == tensor.numel()
            else None,
        )
        if own:
            self._seen[id(tensor), out_axis] = tensor, weight  # keep the tensor, so that no other one gets its id
        return weight
