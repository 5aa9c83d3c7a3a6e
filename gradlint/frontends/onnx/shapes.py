"""Types of the tensors of an ONNX graph, as far as onnx can infer them from a file that is not trusted."""

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
from gradlint.frontends.onnx.schema import misfit, opsets_of
from gradlint.frontends.onnx.skeleton import dtype_name
from gradlint.frontends.onnx.walk import graphs_of

_LARGEST = 1 << 24  # whole numbers in the file from which such a vector may be made
_INTEGERS = {onnx.TensorProto.INT32, onnx.TensorProto.INT64}


def tensor_type(value: onnx.TypeProto) -> TensorType | None:
    """Dtype and shape of a type, None when it is not that of a tensor."""
    if not value.HasField("tensor_type"):
        return None
    tensor = value.tensor_type
    shape = None
    if tensor.HasField("shape"):
        shape = tuple(d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else None for d in tensor.shape.dim)
    return dtype_name(tensor.elem_type), shape


def declared_types(graph: onnx.GraphProto) -> dict[str, TensorType]:
    """The types that a graph states for its tensors, those of its subgraphs left out."""
    stated = ((value.name, tensor_type(value.type)) for value in (*graph.value_info, *graph.input, *graph.output))
    return {name: kind for name, kind in stated if kind is not None}


def free_inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """The inputs that a caller has to give: those that no initializer sets."""
    held = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in held]


def infer_shapes(proto: onnx.ModelProto, limits: Limits) -> tuple[onnx.ModelProto, str | None]:
    """The model with the types that onnx can infer, or as it is together with the reason why it cannot.

    Sizes are followed through the arithmetic of shapes only where that is cheap: onnx spends an object on each element of a
    vector that takes part, and a small file can ask for any number of them.
    """
    reason = too_many_axes(proto.graph, limits) or _first_misfit(proto)
    if reason is not None:
        return proto, reason
    try:
        plain = shape_inference.infer_shapes(proto)
        cheap = not (_has_long_vector(plain, limits.vector) or _has_large_number(plain))
        return (shape_inference.infer_shapes(proto, data_prop=True) if cheap else plain), None
    except Exception as error:  # noqa: BLE001 - onnx raises bare RuntimeError and ValueError, shapes are a help, not a need
        return proto, str(error).strip().partition("\n")[0]


def _first_misfit(proto: onnx.ModelProto) -> str | None:
    opsets = opsets_of(proto)
    found = (misfit(node, opsets) for graph in graphs_of(proto.graph) for node in graph.node)
    return next((reason for reason in found if reason is not None), None)


def _has_long_vector(proto: onnx.ModelProto, longest: int) -> bool:
    shapes = (shape for graph in graphs_of(proto.graph) for _, shape in declared_types(graph).values() if shape is not None)
    return any(len(shape) == 1 and (shape[0] or 0) > longest for shape in shapes)


def _has_large_number(proto: onnx.ModelProto) -> bool:
    """Whether a whole number in the file could make a long vector; the ends of slices, often 2**63 - 1, cannot."""
    graphs = list(graphs_of(proto.graph))
    ends = {name for graph in graphs for node in graph.node if node.op_type == "Slice" for name in node.input[1:]}
    literals = (pair for graph in graphs for pair in _literals(graph) if pair[0] not in ends)
    return any(np.abs(values.astype(np.float64)).max(initial=0) > _LARGEST for _, values in literals)


def _literals(graph: onnx.GraphProto) -> Iterator[tuple[str, NDArray[Any]]]:
    """The names and values of the small integer tensors of a graph."""
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
