"""Translate one torch function call: its canonical operator, weights by role, activations by slot, and attributes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket

from gradlint.frontends.torch.lineage import Lineage, Origin, View, dtype_name
from gradlint.graph import Weight
from gradlint.ops import by_torch

_SCALAR_OPERANDS = frozenset({"add", "sub", "mul", "div", "pow", "maximum", "remainder"})
_RECURRENT = frozenset({"rnn", "lstm", "gru"})
_CELLS = frozenset({"rnn_cell", "lstm_cell", "gru_cell"})
_NORMS = frozenset({"batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm"})
_PRODUCTS = frozenset({"linear", "matmul"})
_HIDDEN_ATTRS = frozenset({"inplace", "has_biases", "train", "cudnn_enabled", "memory_format", "non_blocking", "copy"})
_SCALAR_OPTIONS = frozenset({"alpha", "value", "rounding_mode"})
_CELL_ROLES = {"w_ih": "weight", "w_hh": "recurrent", "b_ih": "bias", "b_hh": "recurrent_bias"}


@dataclass(frozen=True, slots=True)
class Call:
    """One traced call. `operands` are its tensors in order, `origins` the origin of each."""

    name: str
    function: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    operands: tuple[Tensor, ...]
    origins: tuple[Origin, ...]

    def is_weight(self, index: int) -> bool:
        """Return whether the operand at `index` is a weight or is computed from weights only."""
        return index < len(self.origins) and bool(self.origins[index].weights)

    def is_activation(self, index: int) -> bool:
        """Return whether the operand at `index` depends on an input."""
        return index < len(self.origins) and self.origins[index].ref is not None


def function_name(function: Any) -> str:
    """Return the name of a torch function: "relu_", "__add__", "T" for a property, "data_get" for reading `.data`."""
    if isinstance(function, OpOverload):
        return str(function._schema.name.rpartition("::")[2])  # noqa: SLF001
    name = getattr(function, "__name__", type(function).__name__)
    if name != "__get__":
        return str(name)
    read = str(function.__self__.__name__)
    return "data_get" if read == "data" else read


def canonical(call: Call) -> str:
    """Return the canonical operator of a call. A product is "linear" if one factor is a weight matrix, otherwise "matmul"."""
    op = by_torch(call.name).name
    if op == "slice" and call.is_weight(0) and call.is_activation(1) and not call.operands[1].is_floating_point():
        return "embedding"  # the input selects rows of a table
    if op not in _PRODUCTS or call.name == "bilinear":
        return op
    if call.name == "linear":
        return "linear" if call.is_weight(1) else "matmul"
    if call.name == "einsum":
        return "linear" if _einsum_layout(call) else "matmul"
    left = _left_factor(call)
    weights = [index for index in (left, left + 1) if call.is_weight(index)]
    return "linear" if len(weights) == 1 and call.operands[weights[0]].ndim <= 2 else "matmul"


def slots(call: Call, op: str) -> Iterator[int | None]:
    """Yield the operand index of each slot of `Node.inputs`; None for a scalar operand.

    The operands of a reversed method such as `__rsub__` are put in their mathematical order.
    """
    if op in _RECURRENT or op in _CELLS or op == "multi_head_attention":
        yield from (index for index in range(len(call.operands)) if not call.is_weight(index))
        return
    if op == "embedding":  # `table[ids]` and `embedding(ids, table)` alike
        yield from sorted(range(len(call.operands)), key=lambda index: not call.is_activation(index))
        return
    if op not in _SCALAR_OPERANDS:
        first = _left_factor(call) if op in _PRODUCTS else 0
        yield from (*range(first, len(call.operands)), *range(first))  # the summand of addmm comes last
        return
    pair = list(islice([*call.args, *call.kwargs.values()], 2))
    order: list[int | None] = []
    for value in pair:
        order.append(sum(slot is not None for slot in order) if isinstance(value, Tensor) else None)
    yield from reversed(order) if is_reversed(call.name) else order
    yield from range(sum(slot is not None for slot in order), len(call.operands))


def is_reversed(name: str) -> bool:
    """Return whether the second argument is the left operand, as in `__rsub__` and `rsub`."""
    return name == "rsub" or (name.startswith("__r") and name not in {"__rshift__", "__repr__", "__reversed__"})


def bound(call: Call) -> dict[str, Any]:
    """Return the arguments by name, from the Python signature or from the schema of the aten operator of that name."""
    code = getattr(call.function, "__code__", None)
    if code is not None and code.co_argcount >= len(call.args):
        return {**dict(zip(code.co_varnames, call.args, strict=False)), **call.kwargs}
    args = call.args
    names = _schema_names(call.function, call.name, tuple(map(_kind, args)))
    if names is None and len(args) > 2:  # x.permute(0, 2, 1) is x.permute((0, 2, 1))
        args = (args[0], args[1:])
        names = _schema_names(call.function, call.name, tuple(map(_kind, args)))
    if names is None:
        names = ("self", *(f"arg{index}" for index in range(1, len(args))))
    return {**dict(zip(names, args, strict=False)), **call.kwargs}


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return "Tensor"
    if isinstance(value, torch.dtype):
        return "dtype"
    if isinstance(value, (list, tuple)):
        return f"List[{_kind(value[0])}]" if value else "List[int]"
    return "None" if value is None else type(value).__name__


_FITS = {
    "int": ("int", "number", "float", "List[int]"),  # a kernel of 3 is one of (3, 3)
    "float": ("float", "number"),
    "bool": ("bool",),
    "str": ("str",),
    "dtype": ("int",),
    "List[bool]": ("List[bool]",),
    "NoneType": ("Optional",),
}


def _fits(kind: str, argument: Any) -> bool:
    declared = str(argument.type)
    if kind == "None":
        return declared.startswith("Optional")
    if (kind == "dtype") != (argument.name == "dtype"):
        return False
    inner = declared.removeprefix("Optional[").removesuffix("]") if declared.startswith("Optional[") else declared
    return inner in _FITS.get(kind, (kind, kind.replace("List[Tensor]", "List[Optional[Tensor]]")))


@cache
def _schema_names(function: Any, name: str, kinds: tuple[str, ...]) -> tuple[str, ...] | None:
    if isinstance(function, OpOverload):
        return tuple(argument.name for argument in function._schema.arguments)  # noqa: SLF001
    found = (getattr(torch.ops.aten, candidate, None) for candidate in (name, name.strip("_")))
    packet = next((each for each in found if isinstance(each, OpOverloadPacket)), None)
    overloads: list[str] = packet.overloads() if packet is not None else []  # type: ignore[no-untyped-call]
    for overload in overloads:
        arguments = getattr(packet, overload)._schema.arguments  # noqa: SLF001
        positional = [argument for argument in arguments if not argument.kwarg_only]
        if len(kinds) <= len(positional) and all(map(_fits, kinds, positional)):
            return tuple(argument.name for argument in positional)
    return None


def weights(call: Call, op: str, named: Mapping[str, Any], lineage: Lineage) -> dict[str, Weight]:
    """Return the weights of a call by role: "weight", "bias", "scale", "recurrent", "recurrent_bias", ...

    `op` is the canonical operator, `named` are the arguments by name. Roles of a recurrence end in the layer and the direction,
    as in "recurrent_l1_reverse"; "weight" and "recurrent" alone are those of the first layer.
    """
    if not any(origin.weights for origin in call.origins):
        return {}
    if op in _RECURRENT:
        return _recurrent_weights(named, lineage)
    if op in _PRODUCTS and call.name not in {"linear", "bilinear"}:
        return _factor_weights(call, op, lineage)
    roles: dict[str, Weight] = {}
    for argument, value in named.items():
        for tensor in _weight_tensors(call, value):
            role = _role(op, argument, lineage.origin(tensor).weights[0])
            axis = 1 if (op, role) in {("conv_transpose", "weight"), ("embedding", "weight")} else 0
            roles.setdefault(role, lineage.weight(tensor, out_axis=axis))
    if op in _CELLS:
        roles |= {f"{role}_l0": weight for role, weight in roles.items()}
    return roles


def _weight_tensors(call: Call, value: Any) -> Iterator[Tensor]:
    candidates = value if isinstance(value, (list, tuple)) else (value,)
    owned = {id(tensor) for tensor, origin in zip(call.operands, call.origins, strict=True) if origin.weights}
    return (tensor for tensor in candidates if isinstance(tensor, Tensor) and id(tensor) in owned)


def _role(op: str, argument: str, name: str) -> str:
    if op in _CELLS:
        return _CELL_ROLES.get(argument, argument)
    if op in _NORMS:
        return {"weight": "scale"}.get(argument, argument)
    if op == "multi_head_attention":
        return argument.removesuffix("_weight")
    if op in {"add", "sub"}:
        return "bias"
    if op in {"mul", "div"}:
        return "scale"
    if op == "embedding":
        return "weight"
    return argument if argument in {"weight", "bias"} else name.rpartition(".")[2]


def _recurrent_weights(named: Mapping[str, Any], lineage: Lineage) -> dict[str, Weight]:
    params: Sequence[Tensor] = named.get("params", ())
    both = bool(named.get("bidirectional"))
    directions = ["", "_reverse"] if both else [""]
    cells = int(named.get("num_layers", 1)) * len(directions)
    kinds = ["weight", "recurrent", *(["bias", "recurrent_bias"] if named.get("has_biases") else [])]
    size = len(params) // max(cells, 1)
    kinds += ["projection"] * (size - len(kinds))
    roles = {
        f"{kind}_l{cell // len(directions)}{directions[cell % len(directions)]}": lineage.weight(tensor)
        for cell in range(cells)
        for kind, tensor in zip(kinds, params[cell * size : (cell + 1) * size], strict=True)
    }
    plain = {kind: roles[f"{kind}_l0"] for kind in ("weight", "recurrent") if f"{kind}_l0" in roles}
    return plain | roles


def _left_factor(call: Call) -> int:
    """Return the operand index of the left factor of a product. The summand of `addmm` and similar functions comes first."""
    return 1 if call.name.strip("_").startswith(("addmm", "addmv", "baddbmm", "addbmm", "addr")) else 0


def _factor_weights(call: Call, op: str, lineage: Lineage) -> dict[str, Weight]:
    left = _left_factor(call)
    roles = {"bias": lineage.weight(call.operands[0])} if left and call.is_weight(0) else {}
    for index in (left, left + 1):
        if not call.is_weight(index):
            continue
        tensor = call.operands[index]
        on_left = (index == left) != is_reversed(call.name)
        axis = 0 if on_left else tensor.ndim - 1
        view: View | None = None
        if tensor.ndim == 1:
            axis, view = 1, _as_column
        if op == "linear" and call.name == "einsum":
            axis, view = 1, _einsum_layout(call)
        roles["weight"] = lineage.weight(tensor, out_axis=axis, view=view)
    return roles


def _as_column(vector: Tensor) -> Tensor:
    return vector.reshape(-1, 1)


def _einsum_layout(call: Call) -> View | None:
    """Return a view that reshapes the weight of a two-operand einsum to (fan_in, fan_out); None if it is no linear layer."""
    equation = call.args[0] if call.args and isinstance(call.args[0], str) else ""
    inputs, _, result = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    sides = [index for index in (0, 1) if call.is_weight(index)]
    if len(terms) != 2 or len(sides) != 1 or not result or len(call.operands) != 2:
        return None
    weight, other = terms[sides[0]], terms[1 - sides[0]]
    summed = [axis for axis, letter in enumerate(weight) if letter not in result]
    kept = [axis for axis, letter in enumerate(weight) if letter in result]
    if "." in weight or not summed or not set(weight) & set(other) or any(weight[axis] in other for axis in kept):
        return None
    return _matrix_view(tuple(summed), tuple(kept))


def _matrix_view(summed: tuple[int, ...], kept: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    def view(tensor: Tensor) -> Tensor:
        fan_in = 1
        for axis in summed:
            fan_in *= tensor.shape[axis]
        return tensor.permute(*summed, *kept).reshape(fan_in, -1)

    return view


def attributes(call: Call, op: str, named: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes of a node: the arguments that are plain Python values.

    "constant" is the scalar operand of a binary operator, and "name" is torch's name of the function if it differs from `op`.
    """
    bare = call.name.strip("_")
    found = {key: _plain(value) for key, value in named.items() if key not in _HIDDEN_ATTRS and not key.startswith("_")}
    attrs = {key: value for key, value in found.items() if value is not None}
    if op in _SCALAR_OPERANDS:
        attrs = {key: value for key, value in attrs.items() if key in _SCALAR_OPTIONS}
    if bare != op:
        attrs["name"] = bare
    if bare == "getitem" and len(call.args) > 1:
        attrs |= {"index": _index(call.args[1])}
    if op in _SCALAR_OPERANDS:
        attrs |= _constant(call, bare)
    if op in _RECURRENT:
        attrs |= _recurrence(named)
    if op in {"rnn", "rnn_cell"}:
        attrs["nonlinearity"] = "relu" if "relu" in bare else "tanh"
    return attrs


def _index(index: Any) -> tuple[Any, ...]:
    """Return an index in plain values: integers, slices as (start, stop, step), "..."; "?" for tensors, masks and new axes."""
    items = index if isinstance(index, tuple) else (index,)
    return tuple(map(_index_item, items))


def _index_item(item: Any) -> Any:
    if item is Ellipsis:
        return "..."
    if isinstance(item, slice):
        bounds = (item.start, item.stop, item.step)
        return bounds if all(bound is None or type(bound) is int for bound in bounds) else "?"
    return item if type(item) is int else "?"


def _recurrence(named: Mapping[str, Any]) -> dict[str, Any]:
    sizes = named.get("batch_sizes")
    packed = sizes is not None
    batch_first = bool(named.get("batch_first")) and not packed
    attrs = {"batch_first": batch_first, "time_axis": int(batch_first), "training": bool(named.get("train"))}
    if params := named.get("params"):
        attrs["hidden_size"] = int(params[1].shape[1])
    return attrs | ({"packed": True, "batch_sizes": tuple(sizes.tolist())} if sizes is not None else {})


def _constant(call: Call, bare: str) -> dict[str, Any]:
    if bare == "square":
        return {"constant": 2.0}
    for value in islice([*call.args, *call.kwargs.values()], 2):
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return {"constant": float(value)}
    for tensor, origin in zip(call.operands, call.origins, strict=True):
        if origin.ref is None and not origin.weights and tensor.numel() == 1 and not tensor.is_meta and not tensor.is_complex():
            return {"constant": float(tensor)}
    return {}


def of_module(module: torch.nn.Module) -> tuple[str, str]:
    """Return the canonical operator and the functional name of a module, ("batch_norm", "batch_norm2d") for `BatchNorm2d`."""
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", type(module).__name__).lower()
    operators = (by_torch(candidate).name for candidate in (name, re.sub(r"_?\dd$", "", name)))
    return next((op for op in operators if op != "unknown"), "unknown"), name


def module_weights(module: torch.nn.Module, op: str, lineage: Lineage) -> dict[str, Weight]:
    """Return the parameters of a module by role, without those of its children."""
    axis = 1 if op in {"conv_transpose", "embedding"} else 0
    own = module.named_parameters(recurse=False)
    return {_role(op, name, name): lineage.weight(tensor, out_axis=axis) for name, tensor in own}


def _plain(value: Any) -> Any:
    """Convert a value to plain Python types. None if that is not possible."""
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, torch.dtype):
        return dtype_name(value)
    if isinstance(value, (list, tuple)) and value and all(isinstance(item, (bool, int, float, str)) for item in value):
        return tuple(value)
    return None
