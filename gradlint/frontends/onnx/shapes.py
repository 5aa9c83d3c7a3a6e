"""dtypes and shapes of the tensors of an ONNX graph: declared, or inferred by onnx if that is safe."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper, shape_inference

from gradlint.frontends.onnx.constants import TensorType
from gradlint.frontends.onnx.limits import Limits
from gradlint.frontends.onnx.ranks import too_many_axes
from gradlint.frontends.onnx.schema import opsets_of, schema_violation
from gradlint.frontends.onnx.skeleton import dtype_name
from gradlint.frontends.onnx.walk import graphs_of

_LARGEST = 1 << 24  # an integer in the file that is larger than this could be the length of a huge vector
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
    the vectors involved, and a small file can declare vectors of any length.
    """
    reason = too_many_axes(proto.graph, limits) or _first_violation(proto)
    if reason is not None:
        return proto, reason
    try:
        plain = shape_inference.infer_shapes(proto)
        cheap = not (_has_long_vector(plain, limits.vector) or _has_large_number(plain))
        return (shape_inference.infer_shapes(proto, data_prop=True) if cheap else plain), None
    except Exception as error:  # noqa: BLE001 - onnx raises plain RuntimeError and ValueError; shapes are optional
        return proto, str(error).strip().partition("\n")[0]


def _first_violation(proto: onnx.ModelProto) -> str | None:
    opsets = opsets_of(proto)
    found = (schema_violation(node, opsets) for graph in graphs_of(proto.graph) for node in graph.node)
    return next((reason for reason in found if reason is not None), None)


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
