"""What to change in the arguments of a forward, from where and how a trial failed."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gradlint.frontends.inputs import InputSpec
from gradlint.frontends.torch.infer.case import Case, Draft, fit, resized, with_rank
from gradlint.frontends.torch.infer.layouts import BATCH, LARGE, LENGTH, ROUND, entries, hinted_sizes, integer, layouts
from gradlint.frontends.torch.infer.parts import instead_of_none, mask, planned
from gradlint.frontends.torch.inputs import parameters

_PRODUCTS = frozenset({"linear", "matmul", "__matmul__", "mm", "bmm", "addmm", "baddbmm", "mv", "__rmatmul__", "dot"})
_INDEXED = frozenset({"embedding", "gather", "index_select", "take_along_dim", "__getitem__", "scatter", "scatter_", "one_hot"})
_LOGICAL = frozenset({"masked_fill", "masked_fill_", "where", "bitwise_not", "__invert__", "masked_select", "logical_not"})
_RANK = re.compile(r"values to unpack \(expected (\d+)|[Ee]xpected (\d+) dims|must be (\d)-?D|[Ee]xpected (\d)D")
_UNPACKED = re.compile(r"values to unpack \(expected (\d+)")
_SMALL = re.compile(r"[Kk]ernel size can't be greater|too small|should be greater|at least|less than (the )?input")
_NUMBER = re.compile(r"\d+")


def repaired(case: Case) -> Iterator[Draft]:
    """Yield drafts with one thing changed, the likeliest to help first, and then in all inputs that are alike."""
    repairs = _REPAIRS if case.trial.calls or case.trial.function else _EARLY
    for repair in repairs:
        for draft in repair(case):
            yield draft
            yield from _alike(case, draft)


def _alike(case: Case, draft: Draft) -> Iterator[Draft]:
    """Yield a draft in which the inputs that had the layout of the one that was changed are changed with it."""
    after = replace(case, draft=draft).specs
    changed = [name for name, spec in case.specs.items() if name in after and after[name].text != spec.text]
    if len(changed) == 1:
        before, new = case.specs[changed[0]], after[changed[0]]
        others = [name for name, spec in after.items() if not spec.given and spec.text == before.text]
        if others:
            for name in others:
                draft = replace(case, draft=draft).with_spec(name, dtype=new.dtype, shape=new.shape, below=new.below, value=None)
            yield draft


def _of_layer(case: Case) -> Iterator[Draft]:
    """What a layer was given directly takes the layouts of that layer; what was computed takes the width of its weight."""
    if not case.trial.layers:
        return
    layer, args = case.trial.layers[-1]
    known = layouts(layer)
    if not known or not args or not isinstance(args[0], Tensor):
        return
    tensor = args[0]
    name = case.direct(tensor)
    if name is not None and not case.specs[name].given:
        for dtype, shape, below in known:
            yield case.with_spec(name, dtype=dtype, shape=shape, below=below, value=None)
        return
    dtype, shape, below = known[0]
    if dtype == "int64":
        yield from _as_indices(case, tensor, below)
        return
    image = len(shape) > 2 and not isinstance(layer, (nn.RNNBase, nn.MultiheadAttention))
    if image and tensor.ndim != len(shape):
        yield from with_rank(case, tensor, len(shape))
    elif tensor.ndim > 1 and tensor.shape[axis := 1 if image else -1] != shape[axis]:
        yield from fit(case, tensor, axis, shape[axis])


def _of_product(case: Case) -> Iterator[Draft]:
    """The inner sizes of a product agree."""
    operands = [value for value in case.trial.args if isinstance(value, Tensor)]
    if case.trial.function not in _PRODUCTS or len(operands) < 2:
        return
    left, right = operands[-2:] if case.trial.function in {"addmm", "baddbmm"} else operands[:2]
    inner = -1 if case.trial.function == "linear" or right.ndim < 2 else -2
    if left.ndim and right.ndim and left.shape[-1] != right.shape[inner]:
        yield from fit(case, left, -1, right.shape[inner])
        yield from fit(case, right, inner, left.shape[-1])
    for one, other in ((left, right), (right, left)):
        if one.ndim > 2 and other.ndim > 2 and one.shape[0] != other.shape[0]:
            yield from fit(case, one, 0, other.shape[0])
        if one.ndim != other.ndim and other.ndim > 1:
            yield from with_rank(case, one, other.ndim)


def _of_broadcast(case: Case) -> Iterator[Draft]:
    """Operands of one operator, and tensors that are joined or compared, agree in their sizes."""
    operands = [value for value in pytree.tree_leaves(list(case.trial.args)) if isinstance(value, Tensor)]
    if case.trial.function in _PRODUCTS | {"", *_INDEXED} or re.search("conv|pool", case.trial.function):
        operands = case.trial.asked[-2:] if not case.trial.function else []
    if len(operands) < 2 or case.error is None:
        return
    pairs = [(operands[0], other) for other in operands[1:]]
    for one, other in [*pairs, *((other, one) for one, other in pairs)]:
        if case.direct(one) and one.ndim != other.ndim:
            yield from with_rank(case, one, other.ndim)
        for axis in range(1, min(one.ndim, other.ndim) + 1):
            if one.shape[-axis] != other.shape[-axis]:
                yield from fit(case, one, -axis, other.shape[-axis])


def _of_view(case: Case) -> Iterator[Draft]:
    """A view to fixed sizes says how many values a sample has."""
    if case.error is None and case.trial.mixed is not None:
        tensor, row = case.trial.mixed
        yield from _with_values(case, tensor, row)
    elif case.trial.function in {"view", "reshape", "unflatten"} and isinstance(case.trial.args[0], Tensor):
        sizes = [size for size in map(integer, pytree.tree_leaves(list(case.trial.args[1:]))) if size is not None]
        row = 1
        for size in sizes[1:]:
            row *= size if size > 0 else 1
        yield from _with_values(case, case.trial.args[0], row)


def _with_values(case: Case, tensor: Tensor, row: int) -> Iterator[Draft]:
    """Bring a sample of a tensor to `row` values by the sizes of the inputs that it comes from."""
    values = tensor.numel() / max(tensor.shape[0], 1)
    for name in case.movable(tensor):
        yield from resized(case, name, row / max(values, 1.0))
        if len(case.specs[name].shape) == 2 and case.direct(tensor):
            yield case.with_spec(name, shape=(BATCH, row))


def _of_indices(case: Case) -> Iterator[Draft]:
    """Indices are integers under the size of what they index."""
    function, args = case.trial.function, case.trial.args
    if function not in _INDEXED or not args:
        return
    if function == "embedding":
        yield from _as_indices(case, args[0], int(args[1].shape[0]))
    elif function == "one_hot":
        yield from _as_indices(case, args[0], next((size for size in map(integer, args[1:]) if size), None))
    elif isinstance(args[0], Tensor):
        dim = next((size for size in map(integer, args[1:2]) if size is not None), 0)
        for index in pytree.tree_leaves(list(args[1:])):
            if isinstance(index, Tensor) and args[0].ndim:
                yield from _as_indices(case, index, int(args[0].shape[dim if abs(dim) < args[0].ndim else 0]))


def _as_indices(case: Case, tensor: Any, below: int | None) -> Iterator[Draft]:
    for name in case.movable(tensor):
        spec = case.specs[name]
        if spec.dtype == "int64" and spec.below == below and below and "out of range" in case.text:
            for fraction in (2, 5, 10):  # an offset is added to the index
                yield case.with_spec(name, below=max(below // fraction, 1))
        elif spec.dtype != "int64" or spec.below != below:
            table = spec.dtype == "float32" and len(spec.shape) > 1 and case.trial.function != "one_hot"
            for shape in ((BATCH, LENGTH), (BATCH,)) if table else (spec.shape, (BATCH,)):
                yield case.with_spec(name, dtype="int64", below=below, shape=shape, value=None)


def _of_dtype(case: Case) -> Iterator[Draft]:
    """Conditions are booleans, and what is multiplied with weights is of their kind."""
    names = [name for value in case.trial.args for name in case.movable(value)]
    for name in dict.fromkeys(names):
        spec = case.specs[name]
        if (
            case.trial.function in _LOGICAL
            and spec.dtype != "bool"
            and not ("where" in case.trial.function and "index" in case.text)
        ):
            yield case.with_spec(name, dtype="bool", below=None, value=mask(name, spec.shape).value)
        if re.search(r"dtype|scalar type|[Tt]ype|Long|Int", case.text) and spec.dtype.startswith(("int", "bool")):
            yield case.with_spec(name, dtype="float32", below=None, value=None)
            if len(spec.shape) == 2:
                yield case.with_spec(name, dtype="float32", below=None, shape=(BATCH,), value=None)


def _of_target(case: Case) -> Iterator[Draft]:
    """The second argument of a loss follows from the first."""
    if "loss" not in case.trial.function and "entropy" not in case.trial.function:
        return
    tensors = [value for value in case.trial.args if isinstance(value, Tensor)]
    if len(tensors) < 2:
        return
    output = tensors[0]
    for name in case.movable(tensors[1]):
        classes = (output.shape[0], *output.shape[2:])
        kinds: list[tuple[str, tuple[int, ...], int | None]] = [("int64", classes, output.shape[1])] if output.ndim > 1 else []
        for dtype, shape, below in (*kinds, ("float32", tuple(output.shape), None)):
            yield case.with_spec(name, dtype=dtype, shape=shape, below=below, value=None)


def _of_rank(case: Case) -> Iterator[Draft]:
    """A shape that is unpacked says how many axes there are; so do an index and an error."""
    rank = next((int(size) for size in (_RANK.search(case.text) or re.match("", "")).groups() if size), None)  # type: ignore[union-attr]
    asked = [*reversed(case.trial.asked), *(value for value in case.trial.args if isinstance(value, Tensor))]
    if case.trial.function == "__getitem__":
        tensor, index = case.trial.args[0], case.trial.args[1]
        count = sum(part is not None and part is not Ellipsis for part in index) if isinstance(index, tuple) else 1
        if isinstance(index, str):
            yield from _as_dict(case, tensor, index)
        elif count > tensor.ndim:
            yield from with_rank(case, tensor, count)
    elif case.trial.function in {"permute", "transpose", "movedim"} or "Dimension out of range" in case.text:
        sizes = [size for size in map(integer, pytree.tree_leaves(list(case.trial.args[1:]))) if size is not None]
        for tensor in asked[-1:]:
            wanted = len(sizes) if case.trial.function == "permute" else 1 + max((abs(size) for size in sizes), default=2)
            yield from with_rank(case, tensor, max(wanted, 2))
    if rank is not None:
        for tensor in asked[:2]:
            yield from with_rank(case, tensor, rank + ("dims must" in case.text))


def _as_dict(case: Case, tensor: Any, key: str) -> Iterator[Draft]:
    for name in case.movable(tensor):
        if name in case.draft:
            yield case.with_argument(name, {key: _under(case, f"{name}.{key}", key, case.specs[name])})


def _under(case: Case, name: str, key: str, other: InputSpec) -> InputSpec:
    """Return the specification of an entry of a mapping: by its key if that tells its part, or else as that of another one."""
    plan = planned(case.module, inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY))
    return replace(plan if isinstance(plan, InputSpec) else other, name=name)


def _of_structure(case: Case) -> Iterator[Draft]:
    """What is unpacked is a tuple, what is looked up by a key is a mapping, and what counts is a number."""
    unpacked = _UNPACKED.search(case.text)
    for name, value in case.draft.items():
        if isinstance(value, InputSpec) and not value.given:
            if unpacked and not value.name.endswith("mask"):  # type: ignore[union-attr]
                count = int(unpacked[1])
                yield case.with_argument(name, tuple(replace(value, name=f"{name}.{index}") for index in range(count)))
            if re.search(r"interpreted as an integer|converted to an index|slice indices must be integers", case.text):
                yield case.with_argument(name, 1)
            if "must be tuple of Tensors" in case.text or "expected a non-empty list" in case.text:
                yield case.with_argument(name, [replace(value, name=f"{name}.0")])
        elif isinstance(value, list) and "list index out of range" in case.text:
            for each in entries(case.module):
                yield case.with_argument(name, [*value, InputSpec(f"{name}.{len(value)}", *each[0])])
        elif isinstance(value, dict) and isinstance(case.error, KeyError) and isinstance(case.error.args[0], str) and value:
            key, first = case.error.args[0], next(iter(value.values()))
            if isinstance(first, InputSpec) and key not in value:
                yield case.with_argument(name, {**value, key: _under(case, f"{name}.{key}", key, first)})


def _of_open_arguments(case: Case) -> Iterator[Draft]:
    """What is looked up in `*args` or `**kwargs` is passed there."""
    taken = parameters(case.module)
    kinds = {parameter.kind for parameter in taken}
    key = case.error.args[0] if isinstance(case.error, KeyError) and case.error.args else None
    if isinstance(key, str) and inspect.Parameter.VAR_KEYWORD in kinds and key not in case.draft:
        plan = planned(case.module, inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY))
        named = [] if plan is inspect.Parameter.empty else [plan]
        for value in (*named, *(InputSpec(key, *each[0]) for each in entries(case.module))):
            yield case.with_argument(key, value)
    if inspect.Parameter.VAR_POSITIONAL in kinds and re.search(r"tuple index out of range|not enough values", case.text):
        for each in entries(case.module):
            name = f"args.{len(case.draft)}"
            yield case.with_argument(name, InputSpec(name, *each[0]))


def _of_none(case: Case) -> Iterator[Draft]:
    """What was left out by None is needed after all."""
    shapes = [spec.shape for spec in case.specs.values() if spec.shape]
    batch = shapes[0][0] if shapes else BATCH
    length = next((shape[1] for shape in shapes if len(shape) > 1), LENGTH)
    tokens = any(spec.dtype == "int64" and len(spec.shape) == 2 for spec in case.specs.values())
    absent = [name for name, value in case.draft.items() if value is None and "mask" not in name]
    if len(absent) > 1 and case.error is not None:
        for others in zip(*(instead_of_none(case.module, name, batch, length, tokens=tokens) for name in absent), strict=False):
            yield {**case.draft, **dict(zip(absent, others, strict=True))}
    for name, value in case.draft.items():
        if value is None and ("None" in case.text or case.error is not None):
            for other in instead_of_none(case.module, name, batch, length, tokens=tokens):
                yield case.with_argument(name, other)


def _of_asserted(case: Case) -> Iterator[Draft]:
    """Sizes that the error or the module names, and adjacency matrices and masks of more axes."""
    if case.error is None:
        return
    numbers = [int(number) for number in _NUMBER.findall(str(case.error)) if 4 <= int(number) <= 1024]
    for name, spec in case.specs.items():
        if spec.given:
            continue
        if spec.value is not None and len(spec.shape) == 2 and spec.shape[0] == spec.shape[1]:
            for index in ((..., None), (None, ...), (slice(None), slice(None), None)):
                yield case.with_spec(name, value=spec.value[index], shape=spec.value[index].shape)
        if len(spec.shape) > 2 and spec.dtype.startswith(("float", "bfloat")):
            fixed = spec.shape[:2]
            least = spec.shape[-1] if _SMALL.search(case.text) else 0
            sizes = (*hinted_sizes(case.module), *(() if least else numbers), *(LARGE if least else ROUND))
            for size in dict.fromkeys(size for size in sizes if size > least):
                yield case.with_spec(name, shape=(*fixed, *(size,) * (len(spec.shape) - 2)))
        if len(spec.shape) == 2 and _SMALL.search(case.text):
            for size in (1024, 16000):
                yield case.with_spec(name, shape=(spec.shape[0], size))
        if len(spec.shape) == 3 or (len(spec.shape) == 2 and spec.dtype == "int64"):
            for size in dict.fromkeys((*hinted_sizes(case.module), *numbers)):
                yield case.with_spec(name, shape=(spec.shape[0], size, *spec.shape[2:]))
    if isinstance(case.error, AssertionError):
        for tensor in case.trial.asked[-1:]:
            for rank in (2, 3, 4):
                yield from with_rank(case, tensor, rank)


def _of_anything(case: Case) -> Iterator[Draft]:
    """Other layouts that a layer of the module can read, for one argument at a time."""
    for name, spec in case.specs.items():
        if not spec.given and case.error is not None and spec.dtype != "bool":
            for each in entries(case.module):
                dtype, shape, below = each[0]
                yield case.with_spec(name, dtype=dtype, shape=shape, below=below, value=None)


# what Python itself raised before any function ran
_EARLY = (_of_structure, _of_open_arguments, _of_none, _of_rank, _of_anything)
_REPAIRS: tuple[Callable[[Case], Iterator[Draft]], ...] = (
    _of_view,
    _of_layer,
    _of_target,
    _of_indices,
    _of_product,
    _of_dtype,
    _of_rank,
    _of_broadcast,
    _of_structure,
    _of_open_arguments,
    _of_none,
    _of_asserted,
    _of_anything,
)
