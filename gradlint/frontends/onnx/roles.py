"""Translate one ONNX node: its canonical operator, its attributes as plain values, and its weights by role."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx import helper

from gradlint.frontends.onnx import contrib
from gradlint.frontends.onnx.call import Call
from gradlint.frontends.onnx.constants import Constant
from gradlint.frontends.onnx.schema import STANDARD, Signature, attribute_fits, signature_of
from gradlint.graph import Weight
from gradlint.ops import OPERATORS, by_onnx

_KNOWN_DOMAINS = (*STANDARD, contrib.MICROSOFT, "ai.onnx.ml")
_LAST = 1 << 16  # an axis that `add_weight` clips to the last one
_PLAIN = 16  # the most elements of a constant operand that is repeated as an attribute
_NORM = ((1, "scale", 0), (2, "bias", 0))
_SLOTS: dict[str, tuple[tuple[int, str, int], ...]] = {  # (input slot, role, axis of output units)
    "Conv": ((1, "weight", 0), (2, "bias", 0)),
    "DeformConv": ((1, "weight", 0), (3, "bias", 0)),
    "ConvTranspose": ((1, "weight", 1), (2, "bias", 0)),
    "BatchNormalization": (*_NORM, (3, "running_mean", 0), (4, "running_var", 0)),
    "LayerNormalization": _NORM,
    "GroupNormalization": _NORM,
    "InstanceNormalization": _NORM,
    "RMSNormalization": ((1, "scale", 0),),
    "SimplifiedLayerNormalization": ((1, "scale", 0),),
    "SkipLayerNormalization": ((2, "scale", 0), (3, "bias", 0)),
    "PRelu": ((1, "slope", 0),),
}
_FACTORS = ("Gemm", "FusedGemm", "GemmFloat8", "MatMul", "RNN", "GRU", "LSTM")
_BINARY = {"Add": "bias", "Sub": "bias", "Mul": "scale", "Div": "scale", "Sum": "bias"}
_POINTWISE = (*_BINARY, "Pow", "Max", "Min", "Mod", "Mean")
_GATES = {"RNN": "h", "GRU": "zrh", "LSTM": "iofc"}


def describe(call: Call) -> None:
    """Fill in `op`, `attrs` and `weights` of a call."""
    kind = call.node.op_type
    call.op = by_onnx(kind).name if call.node.domain in _KNOWN_DOMAINS else "unknown"
    signature = signature_of(call.node.op_type, call.node.domain, call.version)
    call.attrs = _attributes(call.node, signature)
    if kind in _POINTWISE:
        _pointwise(call)
    else:
        slots = contrib.SLOTS.get(kind) if call.node.domain == contrib.MICROSOFT else None
        slots = _SLOTS.get(kind) if slots is None else slots
        for slot, role, out_axis in slots or ():
            call.add_weight(role, call.float_constant(slot), out_axis)
        if slots is None and kind not in _FACTORS:
            _arguments(call, signature)
    for special in _specials(call):
        special(call)


def _specials(call: Call) -> Sequence[Callable[[Call], None]]:
    """Return the functions that complete the translation of a call, in order."""
    kind = call.node.op_type
    if call.op == "unknown":
        return ()
    if call.node.domain == contrib.MICROSOFT and kind in _CONTRIB:
        return _CONTRIB[kind]
    return (_SPECIAL[kind],) if kind in _SPECIAL else ()


def _attributes(node: onnx.NodeProto, signature: Signature | None) -> dict[str, Any]:
    """Return the attributes as Python values, with the defaults of the schema, but without tensors and graphs."""
    found: dict[str, Any] = {"name": f"{node.domain}::{node.op_type}" if node.domain not in STANDARD else node.op_type}
    defaults, types = (signature.defaults, signature.types) if signature is not None else ({}, {})
    given = {a.name: a for a in node.attribute if attribute_fits(a, types.get(a.name))}
    for name, attribute in {**defaults, **given}.items():
        if attribute.type in _READABLE:
            found[name] = _plain(helper.get_attribute_value(attribute))
    return found


_TYPE = onnx.AttributeProto
_READABLE = {_TYPE.INT, _TYPE.INTS, _TYPE.FLOAT, _TYPE.FLOATS, _TYPE.STRING, _TYPE.STRINGS}


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, (str, int)):
        return value
    return float(value) if isinstance(value, float) else tuple(map(_plain, value))


def _arguments(call: Call, signature: Signature | None) -> None:
    """Repeat small constant operands as attributes, except the first operand: axes, shape, min, max, ratio, ..."""
    for slot, name in enumerate(() if signature is None else signature.operands):
        constant = call.constant(slot)
        if slot and constant is not None and constant.size <= _PLAIN and constant.dtype != "string":
            call.attrs.setdefault(name, constant.plain())


def _pointwise(call: Call) -> None:
    role = _BINARY.get(call.node.op_type)
    for slot in range(len(call.operands)):
        constant = call.constant(slot)
        value = np.asarray(constant.load()).item() if constant is not None and constant.size == 1 else None
        is_factor = constant is not None and constant.is_float and call.node.op_type == "Mul"
        gain = is_factor and value == 0.0  # it starts at zero: nobody multiplies by a constant of zero
        if value is not None and not gain:
            call.attrs["constant"] = value
        elif role is not None:
            call.add_weight(role, constant if gain else call.float_constant(slot), _LAST)


def _gemm(call: Call) -> None:
    """Translate Y = alpha A' B' + beta C. Either factor can be the weight."""
    left, right = call.float_constant(0), call.float_constant(1)
    if right is not None:
        call.add_weight("weight", right, 0 if call.attrs.get("transB") else 1)
    else:
        call.add_weight("weight", left, 1 if call.attrs.get("transA") else 0)
    if not call.weights:
        call.op = "matmul"
    call.add_weight("bias", call.float_constant(2))


def _matmul(call: Call) -> None:
    """Translate a MatMul. A constant factor is the weight, and the node is a linear layer unless it is a batch of matrices."""
    left, right = call.float_constant(0), call.float_constant(1)
    constant = left if right is None else right
    if constant is None:
        return
    if len(constant.shape) == 1:
        constant, axis = constant.transformed(lambda vector: vector.reshape(-1, 1), (*constant.shape, 1)), 1
    else:
        axis = len(constant.shape) - (2 if right is None else 1)
    call.add_weight("weight", constant, axis)
    if all(size == 1 for size in constant.shape[:-2]):
        call.op = "linear"


def _einsum(call: Call) -> None:
    """Translate an Einsum of two operands. It is a linear layer if one operand is constant and no axis is a batch axis.

    The weight then has the shape (fan_in, fan_out): the summed axes, then the others.
    """
    inputs, _, result = call.attrs.get("equation", "").replace(" ", "").partition("->")
    terms = inputs.split(",")
    sides = [slot for slot in (0, 1) if call.float_constant(slot) is not None]
    if len(terms) != 2 or len(sides) != 1 or not result or "." in inputs:
        return
    constant, own, other = call.float_constant(sides[0]), terms[sides[0]], terms[1 - sides[0]]
    summed = [axis for axis, letter in enumerate(own) if letter in other and letter not in result]
    kept = [axis for axis, letter in enumerate(own) if letter in result and letter not in other]
    if constant is None or not summed or len(own) != len(constant.shape) or len(summed) + len(kept) != len(own):
        return
    shape = tuple(math.prod(constant.shape[axis] for axis in axes) for axes in (summed, kept))
    call.add_weight("weight", constant.transformed(lambda w: w.transpose(*summed, *kept).reshape(shape), shape), 1)
    call.op = "linear"


def _gather(call: Call) -> None:
    table = call.float_constant(0)
    if table is not None and len(table.shape) == 2 and call.attrs.get("axis", 0) == 0:
        call.add_weight("weight", table, 1)
        call.op = "embedding"


def _rnn(call: Call) -> None:
    """Translate RNN, GRU and LSTM.

    The roles are those of the torch front end: "weight_l0", "recurrent_l0", "bias_l0" and "recurrent_bias_l0", with "_reverse"
    for the second direction. "weight" and "recurrent" are those of the first direction. The rows keep the order of gates of
    ONNX, which is `attrs["gate_order"]`.
    """
    kind = call.node.op_type
    directions = 2 if call.attrs.get("direction", "forward") == "bidirectional" else 1
    for direction in range(directions):
        end = "_l0" if direction == 0 else "_l0_reverse"
        call.add_weight("weight" + end, _part(call.float_constant(1), direction, directions))
        call.add_weight("recurrent" + end, _part(call.float_constant(2), direction, directions))
        for half, role in enumerate(("bias", "recurrent_bias")):
            call.add_weight(role + end, _part(call.float_constant(3), 2 * direction + half, 2 * directions))
    first = {role: call.weights[f"{role}_l0"] for role in ("weight", "recurrent") if f"{role}_l0" in call.weights}
    call.weights = first | call.weights
    default = {"RNN": ("Tanh",), "GRU": ("Sigmoid", "Tanh"), "LSTM": ("Sigmoid", "Tanh", "Tanh")}[kind] * directions
    activations = call.attrs.setdefault("activations", default)
    batch_first = call.attrs.get("layout", 0) == 1
    call.attrs |= {
        "num_directions": directions,
        "gate_order": _GATES[kind],
        "batch_first": batch_first,
        "time_axis": 1 if batch_first else 0,
    }
    if kind == "RNN" and activations:
        call.attrs["nonlinearity"] = activations[0].lower()
        call.attrs |= {name: given[0] for name in ("alpha", "beta") if (given := call.attrs.get(f"activation_{name}"))}


def _part(constant: Constant | None, index: int, parts: int) -> Constant | None:
    """Return part `index` of `parts` equal parts of a constant, or None if it cannot be divided.

    The parts are those of the first axis, or of the flattened values if there are only two axes (biases). A part has the name
    of its own initializer if the constant was concatenated from `parts` initializers.
    """
    if constant is None or len(constant.shape) < 2:
        return None
    shape = constant.shape[1:] if len(constant.shape) > 2 else (constant.size // parts,)
    if math.prod(shape) * parts != constant.size:
        return None
    own = len(constant.roots) == parts
    name = constant.roots[index] if own else f"{constant.name}[{index}]" if index else constant.name
    part = constant.transformed(lambda values: values.reshape(parts, *shape)[index], shape)
    return replace(part, name=name, roots=(name,) if own else constant.roots)


def _prelu(call: Call) -> None:
    if "slope" in call.weights:
        call.attrs["negative_slope"] = call.weights["slope"].statistics.mean


def _clip(call: Call) -> None:
    limits = call.attrs.get("min"), call.attrs.get("max")
    call.op = next((row.name for row in OPERATORS.values() if row.clip == limits), call.op)


def _equal(call: Call) -> None:
    """Translate Equal. A comparison with a vector of integers is how an exporter decomposes one-hot encoding."""
    constant = call.constant(1) or call.constant(0)
    if constant is not None and constant.size > 1:
        call.attrs["classes"] = constant.size


def _one_hot(call: Call) -> None:
    depth = np.asarray(call.attrs.get("depth", ()))
    if depth.size == 1 and depth.dtype.kind in "iuf" and np.isfinite(depth).all():
        call.attrs["classes"] = int(depth.item())


def _batch_norm(call: Call) -> None:
    if len({weight.size for weight in call.weights.values()}) > 1:  # not a valid BatchNormalization
        call.op, call.weights = "unknown", {}
    if call.version < 14:  # before opset 14, several outputs meant training mode
        call.attrs["training_mode"] = int(sum(map(bool, call.node.output)) > 1)
    _set_training(call, bool(call.attrs.get("training_mode", 0)))


def _dropout(call: Call) -> None:
    call.attrs["p"] = call.attrs.get("ratio", 0.5)
    _set_training(call, call.version >= 12 and bool(call.attrs.get("training_mode", False)))


def _set_training(call: Call, training: bool) -> None:
    call.attrs |= {"training_mode": training, "training": training}  # the names in ONNX and in torch


_SPECIAL: dict[str, Callable[[Call], None]] = {
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Einsum": _einsum,
    "Gather": _gather,
    "PRelu": _prelu,
    "RNN": _rnn,
    "GRU": _rnn,
    "LSTM": _rnn,
    "Clip": _clip,
    "Equal": _equal,
    "OneHot": _one_hot,
    "BatchNormalization": _batch_norm,
    "Dropout": _dropout,
}
_CONTRIB = contrib.SPECIAL | dict.fromkeys(("FusedGemm", "GemmFloat8"), (_gemm, contrib.fused))


class Weights:
    """Makes `Weight` objects. Equal arguments give the same object, so that its statistics are computed once.

    `kinds` is the kind of each tensor in the exported module's state: buffers are not trainable.
    """

    def __init__(self, kinds: dict[str, str]) -> None:
        self._kinds = kinds
        self._known: dict[tuple[Constant, int, bool], Weight] = {}

    def make(self, constant: Constant, out_axis: int, trained: bool) -> Weight:
        """Return the weight with the values of `constant`, whose axis `out_axis` indexes output units."""
        key = (constant, out_axis, trained)
        if key not in self._known:
            kinds = {self._kinds.get(root, "PARAMETER") for root in constant.roots}
            self._known[key] = Weight(
                constant.name,
                constant.shape,
                constant.dtype,
                constant.load,
                out_axis=out_axis,
                trainable=trained and not constant.quantized and (not kinds or "PARAMETER" in kinds),
            )
        return self._known[key]
