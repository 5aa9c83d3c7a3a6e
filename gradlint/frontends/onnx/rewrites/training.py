"""Graphs for on-device training and stateless exports: their weights are graph inputs, and gradients are among their outputs.

The values of such weights are not in the file. They are drawn as at initialization, so that the model can be judged as it starts.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from gradlint.frontends.onnx.schema import STANDARD
from gradlint.frontends.onnx.shapes import free_inputs
from gradlint.frontends.onnx.skeleton import Skeleton
from gradlint.frontends.onnx.walk import graphs_of, leading_to

_MOST = 1 << 26  # elements that are drawn in all
_NAME = re.compile(
    r"(^|[._/:])(weight|kernel|bias|gamma|beta|embedding|running_(mean|var)|(weight|bias)_(ih|hh)_l\d+\w*)s?$", re.IGNORECASE
)
_GRADIENT = re.compile(r"Grad(ient)?(V\d)?$|^InPlaceAccumulator|^(AdamW|SGD|Adam)Optimizer")
_LOSS = "SoftmaxCrossEntropyLossInternal"
_RECTIFIERS = frozenset({"Relu", "LeakyRelu", "Clip", "PRelu"})
_NORMS = {1: "one", 2: "zero", 3: "zero", 4: "one"}
_SLOTS: Mapping[str, Mapping[int, str]] = {  # the operands that are weights by convention, and how they start
    "Conv": {1: "matrix", 2: "zero"},
    "ConvTranspose": {1: "transposed", 2: "zero"},
    "Gemm": {1: "matrix", 2: "zero"},
    "BatchNormalization": _NORMS,
    "LayerNormalization": _NORMS,
    "GroupNormalization": _NORMS,
    "InstanceNormalization": _NORMS,
    "PRelu": {1: "slope"},
    "RNN": {1: "recurrent", 2: "recurrent", 3: "zero"},
    "GRU": {1: "recurrent", 2: "recurrent", 3: "zero"},
    "LSTM": {1: "recurrent", 2: "recurrent", 3: "zero"},
}
_NAMED: Mapping[str, Mapping[int, str]] = {  # operands that are weights only if their name says so
    "MatMul": {0: "right", 1: "right"},
    "Gather": {0: "table"},
    "Add": {0: "zero", 1: "zero"},
    "Mul": {0: "one", 1: "one"},
    "Transpose": {0: "matrix"},
}


def with_drawn_weights(skeleton: Skeleton, kept: Collection[str]) -> tuple[Skeleton, str | None]:
    """Return the model with values for the weights that are graph inputs, without outputs that are gradients, and a note.

    Inputs in `kept` stay inputs. The note is None if nothing changed.
    """
    starts = {name: start for name, start in _weights(skeleton.proto.graph).items() if name not in kept}
    shapes = {value.name: _shape(value) for value in free_inputs(skeleton.proto.graph) if value.name in starts}
    if not starts or sum(math.prod(shape or ()) for shape in shapes.values()) > _MOST:
        return skeleton, None
    proto = onnx.ModelProto()
    proto.CopyFrom(skeleton.proto)
    _leave_out_gradients(proto.graph)
    rectified = any(node.op_type in _RECTIFIERS for graph in graphs_of(proto.graph) for node in graph.node)
    types = {value.name: value.type.tensor_type.elem_type for value in proto.graph.input}
    for name, shape in shapes.items():
        values = _drawn(name, shape or (), starts[name], 2.0 if rectified else 1.0)
        dtype = helper.tensor_dtype_to_np_dtype(types[name])
        proto.graph.initializer.append(numpy_helper.from_array(values.astype(dtype), name))
    many = (
        f"{len(shapes)} graph inputs are weights without values"
        if len(shapes) > 1
        else "a graph input is a weight without values"
    )
    return replace(
        skeleton, proto=proto
    ), f"{many}: drawn as at initialization ({', '.join(list(shapes)[:3])}{', ...' * (len(shapes) > 3)})"


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...] | None:
    """Return the shape of an input if it is fixed; None otherwise."""
    dims = value.type.tensor_type.shape.dim
    shape = tuple(int(dim.dim_value) for dim in dims)
    return shape if shape and min(shape) > 0 else None


def _weights(graph: onnx.GraphProto) -> dict[str, str]:
    """Return the free inputs that are weights, each with how it starts. One input at least has to be left for the data."""
    floats = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16}
    free = free_inputs(graph)
    fixed = {v.name for v in free if v.type.tensor_type.elem_type in floats and _shape(v) is not None}
    found: dict[str, str] = {}
    for node in graph.node:
        if node.domain not in STANDARD:
            continue
        for slot, name in enumerate(node.input):
            start = _SLOTS.get(node.op_type, {}).get(slot)
            if start is None and _NAME.search(name):
                start = _NAMED.get(node.op_type, {}).get(slot)
            if start is not None and name in fixed:
                found.setdefault(name, start)
    return found if len(found) < len(free) else {}


def _drawn(name: str, shape: tuple[int, ...], start: str, squared_gain: float) -> NDArray[Any]:
    """Return the values of a weight at initialization: variance gain^2 / fan_in of matrices, ones of gains, zeros of biases."""
    if start in {"zero", "one"}:
        return np.full(shape, float(start == "one"))
    if start == "slope":
        return np.full(shape, 0.25)
    if start == "recurrent":
        squared_gain = 1.0
    fan_in = {"table": 1, "right": shape[0], "recurrent": shape[-1], "transposed": shape[0] * math.prod(shape[2:])}
    scale = math.sqrt((1.0 if start == "table" else squared_gain) / fan_in.get(start, math.prod(shape[1:])))
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape) * scale


def _leave_out_gradients(graph: onnx.GraphProto) -> None:
    """Leave out the outputs that gradients lead to and what only they need, if others are left. Losses become standard ones."""
    tainted: set[str] = set()
    for node in graph.node:
        if _GRADIENT.search(node.op_type) or tainted & set(node.input):
            tainted.update(filter(None, node.output))
    kept = [onnx.ValueInfoProto.FromString(v.SerializeToString()) for v in graph.output if v.name not in tainted]
    if not tainted or not kept:
        return
    del graph.output[:]
    graph.output.extend(kept)
    nodes = [_standard(node) for node in leading_to(graph.node, {value.name for value in kept})]
    del graph.node[:]
    graph.node.extend(nodes)
    read = {name for node in graph.node for name in node.input}
    inputs = [onnx.ValueInfoProto.FromString(v.SerializeToString()) for v in graph.input if v.name in read]
    del graph.input[:]
    graph.input.extend(inputs)


def _standard(node: onnx.NodeProto) -> onnx.NodeProto:
    if node.op_type == _LOSS:
        kept = [attribute for attribute in node.attribute if attribute.name == "reduction"]
        node.op_type, node.domain = "SoftmaxCrossEntropyLoss", ""
        del node.attribute[:]
        node.attribute.extend(kept)
        del node.input[3:]
    return node
