"""Inputs of a torch module as a feed: those that the user gave, by name and by position."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

from gradlint.errors import InputError
from gradlint.frontends.inputs import InputSpec, merge_given
from gradlint.frontends.torch.lineage import dtype_name, to_numpy


@dataclass(frozen=True, slots=True)
class Feed:
    """The arguments of a forward call, with an `InputSpec` in place of every tensor."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


def parameters(module: nn.Module) -> list[inspect.Parameter]:
    """Return the parameters of `module.forward` without `self`; an empty list if it has no signature."""
    if isinstance(module, torch.jit.ScriptModule):
        forward: Any = module.forward
        names = [argument.name for argument in forward.schema.arguments[1:]]
        return [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    try:
        return list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):
        return []


class _Packed:
    """A packed sequence in a tree whose tensors may be replaced: the values are the one leaf."""

    def __init__(self, data: Any, rest: tuple[Any, ...]) -> None:
        self.data = data
        self.rest = rest

    @staticmethod
    def whole(leaves: Iterable[Any], rest: tuple[Any, ...]) -> Any:
        """Return the packed sequence again once its values are a tensor."""
        (data,) = leaves
        return PackedSequence(data, *rest) if isinstance(data, Tensor) else _Packed(data, rest)


pytree.register_pytree_node(
    _Packed,
    lambda packed: ([packed.data], packed.rest),
    _Packed.whole,
    flatten_with_keys_fn=lambda packed: ([(pytree.GetAttrKey("data"), packed.data)], packed.rest),
)


def _opened(leaf: Any) -> Any:
    return _Packed(leaf.data, tuple(leaf)[1:]) if isinstance(leaf, PackedSequence) else leaf


def as_spec(name: str | None, tensor: Tensor) -> InputSpec:
    """Return the specification of an input whose values are those of `tensor`. Raises InputError if it has none."""
    if tensor.is_meta:
        hint = "make it on the CPU: with torch.device('cpu'): ..."
        raise InputError(f"input {name or 0!r} is on the meta device and has no values", hint=hint)
    try:
        return InputSpec(name, dtype_name(tensor.dtype), tuple(tensor.shape), value=to_numpy(tensor), given=True)
    except RuntimeError as error:  # nested tensors, and other tensors that have no array
        hint = "give a padded tensor: torch.nested.to_padded_tensor(x, 0.0)" if tensor.is_nested else "give a dense tensor"
        raise InputError(
            f"input {name!r} is a {'nested ' if tensor.is_nested else ''}tensor that cannot be copied", hint=hint
        ) from error


def feed_values(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], given: tuple[InputSpec, ...]) -> Feed:
    """Return the feed for the given arguments, with tensors replaced by those of `given`, by name or by position.

    The name of a tensor is that of its argument, followed by indices and keys if it is nested: "x", "x.0", "batch.mask". Raises
    InputError if a name in `given` does not exist.
    """
    taken = [p.name for p in parameters(module) if p.kind in {p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD}]
    specs: dict[str, InputSpec] = {}

    def name(path: tuple[Any, ...], leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        keys = [_key(entry) for entry in path]
        if keys[0] == 0:
            keys[1] = taken[keys[1]] if keys[1] < len(taken) else f"args.{keys[1] - len(taken)}"
        spec = as_spec(".".join(map(str, keys[1:])), leaf)
        return specs.setdefault(str(spec.name), spec)

    pack = partial(pytree.tree_map, _opened, is_leaf=lambda item: isinstance(item, PackedSequence))
    tree = pytree.tree_map_with_path(name, pack((args, dict(kwargs))))
    merged = {spec.name: spec for spec in merge_given(tuple(specs.values()), given)}
    args, kwargs = pytree.tree_map(lambda leaf: merged[leaf.name] if isinstance(leaf, InputSpec) else leaf, tree)
    return Feed(args, kwargs)


def _key(entry: Any) -> Any:
    """Return the index, key or attribute of one entry in the path to a nested tensor."""
    return next(value for kind in ("idx", "key", "name") if (value := getattr(entry, kind, None)) is not None)


def feed_given(module: nn.Module, given: tuple[InputSpec, ...]) -> Feed | None:
    """Return the feed that consists of the given inputs, or None if a required argument is missing.

    Raises InputError if the forward does not take an input of that name, or not as many inputs.
    """
    taken = parameters(module)
    kinds = {parameter.kind for parameter in taken}
    named = [p for p in taken if p.kind in {p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY}]
    names = [parameter.name for parameter in named]
    extra: list[InputSpec] = []
    by_name: dict[str, InputSpec] = {}
    for spec in given:
        free = next((name for name in names if name not in by_name), None) if spec.name is None else spec.name
        if free in names or (spec.name is not None and inspect.Parameter.VAR_KEYWORD in kinds):
            by_name[str(free)] = replace(spec, name=free)
        elif spec.name is None and inspect.Parameter.VAR_POSITIONAL in kinds:
            extra.append(replace(spec, name=f"args.{len(extra)}"))
        else:
            what = f"the model has no input {spec.name!r}" if spec.name else f"the model takes only {len(names)} inputs"
            raise InputError(what, hint=f"its inputs are {', '.join(names) or 'none'}")
    if any(p.default is p.empty and p.name not in by_name for p in named):
        return None
    return feed(taken, by_name, extra)


def feed(taken: list[inspect.Parameter], by_name: Mapping[str, Any], extra: list[InputSpec] | None = None) -> Feed:
    """Pass arguments by position up to the first missing one, and the others by keyword."""
    by_position: list[str] = []
    for parameter in taken:
        if parameter.kind not in {parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD} or parameter.name not in by_name:
            break
        by_position.append(parameter.name)
    kwargs = {name: value for name, value in by_name.items() if name not in by_position}
    return Feed((*(by_name[name] for name in by_position), *(extra or ())), kwargs)
