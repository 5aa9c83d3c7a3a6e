"""dtypes and shapes of the tensors of an ONNX graph: declared, or inferred by onnx if that is safe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper, shape_inference

from gradlint.frontends.onnx.constants import TensorType
from gradlint.frontends.onnx.limits import Limits
from gradlint.frontends.onnx.ranks import too_many_axes
from gradlint.frontends.onnx.schema import STANDARD, opsets_of, signature_of
from gradlint.frontends.onnx.skeleton import dtype_name
from gradlint.frontends.onnx.walk import graphs_of, subgraphs
from gradlint.ops import Kind, by_onnx

_LARGEST = 1 << 24  # an integer in the file that is larger than this could be the length of a huge vector
_INITIALIZERS_ARE_NO_INPUTS = 4  # the first version of the format in which onnx sees them without an input of that name
_FUSED = {  # operators of com.microsoft, and the layer that has the same shapes
    "FusedConv": "Conv",
    "FusedGemm": "Gemm",
    "FusedMatMul": "MatMul",
    "TransposeMatMul": "MatMul",
}
_KEEP_SHAPE = {
    Kind.ACTIVATION,
    Kind.ADD,
    Kind.ATTENTION,
    Kind.DROPOUT,
    Kind.MATH,
    Kind.MUL,
    Kind.NORM,
    Kind.SOFTMAX,
    Kind.UNKNOWN,
}
_FLOATS = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16}
_INTEGERS = {onnx.TensorProto.INT32, onnx.TensorProto.INT64}


def tensor_type(value: onnx.TypeProto) -> TensorType | None:
    """Return the dtype and the shape of a type; None if it is not the type of a tensor."""
    if not value.HasField("tensor_type"):
        return None
    tensor = value.tensor_type
    shape = None
    if tensor.HasField("shape"):
        shape = tuple(d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else None for d in tensor.shape.dim)
    return dtype_name(tensor.elem_type), shape


def declared_types(graph: onnx.GraphProto) -> dict[str, TensorType]:
    """Return the types that a graph declares for its tensors, without those of its subgraphs."""
    stated = ((value.name, tensor_type(value.type)) for value in (*graph.value_info, *graph.input, *graph.output))
    return {name: kind for name, kind in stated if kind is not None}


def free_inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """Return the inputs that a caller must provide: those without an initializer."""
    held = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in held]


def infer_shapes(proto: onnx.ModelProto, limits: Limits) -> tuple[onnx.ModelProto, str | None]:
    """Return the model with inferred types, or the unchanged model and the reason why types cannot be inferred.

    Sizes are propagated through shape arithmetic only if that is cheap, because onnx allocates an object for each element of
    the vectors involved, and a small file can declare vectors of any length. The nodes must fit their schemas.
    """
    reason = too_many_axes(proto.graph, limits)
    if reason is not None:
        return proto, reason
    known = _with_known_operators(proto)
    try:
        plain = shape_inference.infer_shapes(known)
        cheap = not (_has_long_vector(plain, limits.vector) or _has_large_number(plain))
        found = shape_inference.infer_shapes(known, data_prop=True) if cheap else plain
    except Exception as error:  # noqa: BLE001 - onnx raises plain RuntimeError and ValueError; shapes are optional
        return proto, str(error).strip().partition("\n")[0]
    return (found if known is proto else _with_types_of(proto, found)), None


def _with_known_operators(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model of which onnx infers more: it stops at operators without a schema, and overlooks initializers in old files.

    A fused layer counts as the layer. Any other operator without a schema counts as one that keeps the shape of its first
    operand, so that the layers behind it have their widths. The model itself is returned if nothing changes.
    """
    opsets = opsets_of(proto)
    types = {value.name: value.type.tensor_type.elem_type for value in proto.graph.input}
    types |= {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    foreign = [index for index, node in enumerate(proto.graph.node) if _is_foreign(node, opsets, types)]
    if not foreign and proto.ir_version >= _INITIALIZERS_ARE_NO_INPUTS:
        return proto
    found = onnx.ModelProto()
    found.CopyFrom(proto)
    found.ir_version = max(proto.ir_version, _INITIALIZERS_ARE_NO_INPUTS)
    for index in foreign:
        node = found.graph.node[index]
        kind = _FUSED.get(node.op_type, "Identity")
        signature = signature_of(kind, "", opsets[""])
        kept = [a for a in node.attribute if signature is not None and a.name in signature.types and kind != "Identity"]
        inputs = list(node.input)[: 1 if signature is None or kind == "Identity" else signature.inputs[1]]
        outputs = list(node.output)[:1]
        kept = [onnx.AttributeProto.FromString(attribute.SerializeToString()) for attribute in kept]
        node.CopyFrom(onnx.helper.make_node(kind, inputs, outputs, node.name))
        node.attribute.extend(kept)
    return found


def _is_foreign(node: onnx.NodeProto, opsets: Mapping[str, int], types: Mapping[str, int]) -> bool:
    """Return whether onnx has no schema of an operator that may keep the shape of its first operand, or that is a fused layer."""
    if node.domain in STANDARD or not node.output or not node.input or not node.input[0]:
        return False
    if node.op_type not in _FUSED and by_onnx(node.op_type).kind not in _KEEP_SHAPE:
        return False
    if types.get(node.input[0], onnx.TensorProto.FLOAT) not in _FLOATS:
        return False
    return signature_of(node.op_type, node.domain, opsets.get(node.domain, 1)) is None and not subgraphs(node)


def _with_types_of(proto: onnx.ModelProto, found: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of a model with the types that were inferred for its tensors."""
    typed = onnx.ModelProto()
    typed.CopyFrom(proto)
    for own, other in zip(graphs_of(typed.graph), graphs_of(found.graph), strict=True):
        for values, inferred in ((own.value_info, other.value_info), (own.output, other.output)):
            del values[:]
            values.extend(onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in inferred)
    return typed


def _has_long_vector(proto: onnx.ModelProto, longest: int) -> bool:
    for graph in graphs_of(proto.graph):
        for value in (*graph.value_info, *graph.input, *graph.output):
            dims = value.type.tensor_type.shape.dim
            if len(dims) == 1 and dims[0].dim_value > longest:
                return True
    return False


def _has_large_number(proto: onnx.ModelProto) -> bool:
    """Return whether an integer in the file could be the length of a huge vector.

    The bounds of slices, which often are 2**63 - 1, cannot and do not count.
    """
    graphs = list(graphs_of(proto.graph))
    ends = {name for graph in graphs for node in graph.node if node.op_type == "Slice" for name in node.input[1:]}
    literals = (pair for graph in graphs for pair in _literals(graph) if pair[0] not in ends)
    return any(np.abs(values.astype(np.float64)).max(initial=0) > _LARGEST for _, values in literals)


def _literals(graph: onnx.GraphProto) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the names and the values of the integer tensors that are stored in the graph itself."""
    held = [(tensor.name, tensor) for tensor in graph.initializer]
    for node in graph.node:
        for attribute in node.attribute if node.op_type == "Constant" and node.output else ():
            if attribute.HasField("t"):
                held.append((node.output[0], attribute.t))
            elif attribute.HasField("i") or attribute.ints:
                yield node.output[0], np.asarray([attribute.i, *attribute.ints])
    for name, tensor in held:
        if tensor.data_type in _INTEGERS and tensor.data_location != onnx.TensorProto.EXTERNAL:
            yield name, numpy_helper.to_array(tensor)
