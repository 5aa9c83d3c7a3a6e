"""Constants of an ONNX graph, and constant folding by onnx's reference operators."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, helper

from gradlint.errors import TargetError
from gradlint.frontends.onnx.limits import DEFAULT, Limits
from gradlint.frontends.onnx.skeleton import Skeleton, dtype_name
from gradlint.ops import by_onnx

_SMALL = 4096  # a folded value with at most this many elements is computed at once and kept
_ROOTS = 4  # the most initializers that the name of a folded value lists
_KEEPERS = (  # an activation keeps the size too; the vocabulary knows them
    "ArgMax ArgMin Cast CastLike Ceil Clip Concat Cos CumSum DequantizeLinear Exp Flatten Floor GatherElements "
    "Identity Log Neg Not Reciprocal ReduceL2 ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare "
    "Reshape Round ScatterElements ScatterND Shape Sign Sin Size Slice Softmax Split Sqrt Squeeze "
    "Transpose Trilu Unsqueeze"
)
_NO_LARGER = frozenset(_KEEPERS.split())  # operators whose outputs have at most as many elements as all inputs together
_BINARY = "Add And Div Equal Greater GreaterOrEqual Less LessOrEqual Max Min Mod Mul Or Pow Sub Sum Where Xor"
_BROADCASTING = frozenset(_BINARY.split())
_SINCE_19 = [helper.make_opsetid("", 19)]  # the first DequantizeLinear that onnx can compute; older ones mean the same

_NUMPY = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool")
_NUMBERS = (AttributeProto.FLOAT, AttributeProto.FLOATS, AttributeProto.INT, AttributeProto.INTS)

Shape = tuple[int | None, ...]
TensorType = tuple[str, Shape | None]
"""The dtype and the shape of a tensor. None stands for an unknown rank or an unknown dimension."""


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor that depends on no input. Its values are only read or computed when `load` is called.

    Attributes:
        name: The name of the initializer, which a transpose or a slice of it keeps.
        shape: The shape.
        dtype: The dtype, as torch calls it.
        load: Return the values as an array of shape `shape`.
        roots: The names of all initializers that the value depends on.
        steps: The number of operators that `load` computes.
        quantized: Whether the values are made from integers, so that no training changes them.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    load: Callable[[], NDArray[Any]]
    roots: tuple[str, ...] = ()
    steps: int = 0
    quantized: bool = False

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def is_float(self) -> bool:
        """Whether the dtype is a float type, so that this can be a weight that is not quantized."""
        return self.dtype.startswith(("float", "bfloat"))

    def transformed(self, view: Callable[[NDArray[Any]], NDArray[Any]], shape: tuple[int, ...]) -> Constant:
        """Return the constant `view(values)`, which has the shape `shape`, under the same name."""
        return replace(self, shape=shape, load=lambda: view(self.load()))

    def plain(self) -> Any:
        """Return the values as a Python number or as nested tuples of numbers."""
        return _tuples(np.asarray(self.load()).tolist())


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def from_tensor(skeleton: Skeleton, tensor: onnx.TensorProto, name: str) -> Constant:
    """Return a tensor of the file as a constant with the name `name`."""
    return Constant(name, tuple(tensor.dims), dtype_name(tensor.data_type), lambda: skeleton.array(tensor), (name,))


def from_sparse(skeleton: Skeleton, sparse: onnx.SparseTensorProto, name: str) -> Constant:
    """Return a sparse tensor of the file as a (dense) constant with the name `name`."""
    dtype = dtype_name(sparse.values.data_type)
    return Constant(name, tuple(sparse.dims), dtype, lambda: skeleton.dense(sparse), (name,))


def from_node(skeleton: Skeleton, node: onnx.NodeProto, name: str) -> Constant | None:
    """Return the value of a Constant node as a constant with the name `name`. None if the value is text."""
    for attribute in node.attribute:
        if attribute.name == "sparse_value" and attribute.HasField("sparse_tensor"):
            return from_sparse(skeleton, attribute.sparse_tensor, name)
        if attribute.name == "value" and attribute.HasField("t"):
            return from_tensor(skeleton, attribute.t, name)
        if attribute.type in _NUMBERS and attribute.name.startswith("value_"):
            dtype = np.float32 if attribute.type in _NUMBERS[:2] else np.int64
            return from_array(name, np.asarray(helper.get_attribute_value(attribute), dtype), (name,))
    return None


def from_array(name: str, values: NDArray[Any], roots: tuple[str, ...]) -> Constant:
    """Return `values` as a constant."""
    return Constant(name, values.shape, str(values.dtype), lambda: values, roots)


def from_types(node: onnx.NodeProto, operand: object, types: Mapping[str, TensorType]) -> Constant | None:
    """Return the value of a node that depends only on the dtype or on the known shape of an activation; otherwise None."""
    name = node.output[0]
    if node.op_type == "CastLike" and isinstance(operand, Constant):
        known = types.get(name) or types.get(node.input[1])
        dtype = known[0] if known is not None else operand.dtype
        return replace(operand, dtype=dtype, load=lambda: operand.load().astype(_numpy_dtype(dtype, operand)))
    shape = types.get(node.input[0], ("", None))[1] if node.op_type in {"Shape", "Size"} else None
    if shape is None or None in shape:
        return None
    ends = {attribute.name: attribute.i for attribute in node.attribute}
    sizes = np.asarray(shape[slice(ends.get("start"), ends.get("end"))], np.int64)
    return from_array(name, sizes if node.op_type == "Shape" else np.asarray(sizes.prod()), ())


def _numpy_dtype(dtype: str, operand: Constant) -> np.dtype[Any]:
    """Return the numpy dtype of that name, or the dtype of the operand if numpy has none."""
    return np.dtype(dtype if dtype in _NUMPY else operand.load().dtype)


class Folder:
    """Constant folding: compute nodes whose inputs are all constant. Equal nodes with the same inputs share their results."""

    def __init__(self, opsets: Mapping[str, int], label: str, limits: Limits) -> None:
        self._opsets = [helper.make_opsetid(domain, version) for domain, version in opsets.items()]
        self._version = opsets.get("", 1)
        self._label = label
        self._limits = limits
        self._known: dict[tuple[object, ...], tuple[Sequence[Constant | None], list[Constant | None]]] = {}

    def fold(
        self, node: onnx.NodeProto, inputs: Sequence[Constant | None], types: Sequence[TensorType | None]
    ) -> list[Constant | None]:
        """Return one constant for each output of `node`; None for an output that is not folded.

        `types` are the inferred types of the outputs. Large values of known type are only computed when they are read.
        """
        key = (node.domain, node.op_type, len(types), *map(id, inputs), *(a.SerializeToString() for a in node.attribute))
        if key not in self._known:
            self._known[key] = (inputs, self._fold(node, inputs, types))  # keep the inputs, so that their ids stay unique
        return self._known[key][1]

    def _fold(
        self, node: onnx.NodeProto, inputs: Sequence[Constant | None], types: Sequence[TensorType | None]
    ) -> list[Constant | None]:
        given = {id(constant): constant for constant in inputs if constant is not None}.values()
        nothing: list[Constant | None] = [None] * len(types)
        if node.domain not in {"", "ai.onnx"} or not given or not all(node.output):
            return nothing
        size, steps = largest_output(node, inputs), 1 + sum(constant.steps for constant in given)
        grown = size > max(self._limits.grown, sum(constant.size for constant in given))
        if grown or size > self._limits.elements or steps > self._limits.steps:
            return nothing
        quantized = node.op_type == "DequantizeLinear" or any(constant.quantized for constant in given)
        roots = tuple(dict.fromkeys(root for constant in given if constant.is_float for root in constant.roots))
        names = ["+".join(roots)] * len(types) if 0 < len(roots) <= _ROOTS else list(node.output)
        if quantized and inputs[0] is not None:  # its scale is the only float
            names = [inputs[0].name] * len(types)
        known = [kind for kind in types if kind is not None and kind[1] is not None and None not in kind[1]]
        if len(known) < len(types) or all(constant.size <= _SMALL for constant in given):
            try:
                values = self._run(node, inputs)
            except TargetError:
                return nothing
            if all(value.size <= _SMALL for value in values):
                made = (from_array(name, value, roots) for name, value in zip(names, values, strict=True))
                return [replace(constant, quantized=quantized) for constant in made]
            known = [(str(value.dtype), value.shape) for value in values]
        return [
            Constant(names[port], shape, dtype, partial(self._read, node, inputs, port, shape), roots, steps, quantized)
            for port, (dtype, shape) in enumerate((dtype, tuple(size or 0 for size in shape or ())) for dtype, shape in known)
        ]

    def _read(self, node: onnx.NodeProto, inputs: Sequence[Constant | None], port: int, shape: tuple[int, ...]) -> NDArray[Any]:
        values = self._run(node, inputs)[port]
        if values.shape != shape:
            raise TargetError(f"{self._label}: {node.output[port]!r} is declared {list(shape)} but is {list(values.shape)}")
        return values

    def _run(self, node: onnx.NodeProto, inputs: Sequence[Constant | None]) -> list[NDArray[Any]]:
        """Compute the outputs of `node`. Raises TargetError if onnx cannot compute them."""
        from onnx.reference import ReferenceEvaluator  # noqa: PLC0415 - slow to import, and most files fold nothing

        loaded = {id(c): c.load() for c in {id(c): c for c in inputs if c is not None}.values()}  # load each one once
        feeds = {name: loaded[id(c)] for name, c in zip(node.input, inputs, strict=True) if c is not None}
        values = [onnx.ValueInfoProto(name=name) for name in (*feeds, *filter(None, node.output))]
        graph = helper.make_graph([node], "fold", values[: len(feeds)], values[len(feeds) :])
        try:
            older = node.op_type == "DequantizeLinear" and self._version < 19
            model = helper.make_model(graph, opset_imports=_SINCE_19 if older else self._opsets)
            with np.errstate(all="ignore"):
                return [np.asarray(value) for value in ReferenceEvaluator(model).run(None, feeds)]
        except Exception as error:  # the reference operators raise what numpy raises
            raise TargetError(f"{self._label}: constant {node.output[0]!r} cannot be computed: {error}") from error


def largest_output(node: onnx.NodeProto, inputs: Sequence[Constant | None]) -> float:
    """Return an upper bound for the number of elements of an output; infinity for operators that are not folded."""
    given = [constant for constant in inputs if constant is not None]
    sizes = [constant.size for constant in given]
    if node.op_type in _NO_LARGER or by_onnx(node.op_type).function is not None:
        return sum(sizes)
    try:
        if node.op_type in _BROADCASTING:
            return math.prod(np.broadcast_shapes(*(constant.shape for constant in given)))
        if node.op_type == "Gather":
            data, indices = given
            axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
            return data.size // max(data.shape[axis], 1) * indices.size
        if node.op_type in {"ConstantOfShape", "Expand", "Tile"} and sizes[-1] <= DEFAULT.rank:
            return float(math.prod(sizes[:-1]) * math.prod(given[-1].plain()))
        if node.op_type == "Range":
            start, limit, delta = (float(constant.plain()) for constant in given)
            return abs((limit - start) / delta)
    except (ArithmeticError, LookupError, TypeError, ValueError):
        pass
    return math.inf
