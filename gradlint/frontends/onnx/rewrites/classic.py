"""Operators of the domain ai.onnx.ml in terms of the standard ones, as onnxruntime computes them.

Converters of classic models write them: scalers before a network, a linear model as one node, labels and a map of scores behind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from gradlint.frontends.onnx.metadata import mark_buffers
from gradlint.frontends.onnx.schema import opsets_of
from gradlint.frontends.onnx.walk import leading_to

DOMAIN = "ai.onnx.ml"
_STABLE = 9  # the first opset with the operators that are used here
_AXES_ARE_OPERANDS = 18  # the first opset whose reductions take their axes as an operand


def needs_rewriting(proto: onnx.ModelProto) -> bool:
    """Return whether a model has nodes that `in_standard_operators` would replace."""
    return opsets_of(proto)[""] >= _STABLE and any(map(_is_classic, proto.graph.node))


def _is_classic(node: onnx.NodeProto) -> bool:
    return (node.domain == DOMAIN and node.op_type in (*_REWRITES, "ZipMap")) or node.op_type == "ImageScaler"


def in_standard_operators(graph: onnx.GraphProto, opset: int) -> None:
    """Replace, in place, the nodes of ai.onnx.ml that are made of standard operators, and leave out text and maps at the end.

    The output of a ZipMap becomes the tensor of scores that it reads. Text labels of a LinearClassifier become indices.
    """
    made = _Made(graph, opset)
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        rewrite = _REWRITES.get(node.op_type) if _is_classic(node) else None
        made.start(node)
        new = None
        if rewrite is not None:
            with suppress(IndexError, KeyError, TypeError, ValueError):  # a node that lacks what it needs stays as it is
                new = rewrite(made, node, {a.name: helper.get_attribute_value(a) for a in node.attribute})
        nodes += [node] if new is None else new
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
    mark_buffers(graph, made.buffers)
    _end_at_scores(graph)


class _Made:
    """Makes the nodes and the constants that replace one node at a time. Their names start with that of its first output."""

    def __init__(self, graph: onnx.GraphProto, opset: int) -> None:
        self._graph = graph
        self.opset = opset
        self._base = ""
        self._count = 0
        self.buffers: list[str] = []

    def start(self, node: onnx.NodeProto) -> None:
        """Make parts of this node from now on."""
        self._base, self._count = next(filter(None, node.output), node.name), 0

    def constant(self, role: str, values: Any, *, trained: bool = False) -> str:
        """Add a constant and return its name."""
        name = f"{self._base}.{role}"
        self._graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
        if not trained:
            self.buffers.append(name)
        return name

    def node(self, op_type: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> onnx.NodeProto:
        """Make a standard node; without `output`, its result gets a name of its own."""
        self._count += 1
        result = output or f"{self._base}.{self._count}"
        return helper.make_node(op_type, list(inputs), [result], f"{self._base}/{op_type}.{self._count}", **attributes)

    def floats(self, node: onnx.NodeProto) -> onnx.NodeProto:
        """Make the cast of a node's first input to float32, which these operators make themselves."""
        return self.node("Cast", [node.input[0]], to=TensorProto.FLOAT)


Rewrite = Callable[[_Made, onnx.NodeProto, dict[str, Any]], list[onnx.NodeProto] | None]


def _scaler(made: _Made, node: onnx.NodeProto, given: dict[str, Any]) -> list[onnx.NodeProto]:
    x = made.floats(node)
    offset = made.constant("offset", np.asarray(given.get("offset", [0.0]), np.float32))
    scale = made.constant("scale", np.asarray(given.get("scale", [1.0]), np.float32))
    centered = made.node("Sub", [x.output[0], offset])
    return [x, centered, made.node("Mul", [centered.output[0], scale], node.output[0])]


def _image_scaler(made: _Made, node: onnx.NodeProto, given: dict[str, Any]) -> list[onnx.NodeProto]:
    bias = made.constant("bias", np.asarray(given.get("bias", [0.0]), np.float32).reshape(1, -1, 1, 1))
    scaled = made.node("Mul", [node.input[0], made.constant("scale", np.float32(given.get("scale", 1.0)))])
    return [scaled, made.node("Add", [scaled.output[0], bias], node.output[0])]


def _normalizer(made: _Made, node: onnx.NodeProto, given: dict[str, Any]) -> list[onnx.NodeProto] | None:
    norm = given.get("norm", b"MAX").decode()
    reduction = {"MAX": "ReduceMax", "L1": "ReduceL1", "L2": "ReduceL2"}.get(norm)
    if reduction is None:
        return None
    x = made.floats(node)
    if made.opset < _AXES_ARE_OPERANDS:
        length = made.node(reduction, [x.output[0]], axes=[-1], keepdims=1)
    else:
        length = made.node(reduction, [x.output[0], made.constant("axis", np.asarray([-1], np.int64))], keepdims=1)
    zero = made.node("Equal", [length.output[0], made.constant("zero", np.float32(0.0))])
    safe = made.node("Where", [zero.output[0], made.constant("one", np.float32(1.0)), length.output[0]])
    return [x, length, zero, safe, made.node("Div", [x.output[0], safe.output[0]], node.output[0])]


def _imputer(made: _Made, node: onnx.NodeProto, given: dict[str, Any]) -> list[onnx.NodeProto]:
    floats = "imputed_value_floats" in given
    dtype = np.float32 if floats else np.int64
    put = made.constant("imputed", np.asarray(given["imputed_value_floats" if floats else "imputed_value_int64s"], dtype))
    replaced = given.get("replaced_value_float", 0.0) if floats else given.get("replaced_value_int64", 0)
    missing = (
        made.node("IsNaN", [node.input[0]])
        if np.isnan(replaced)
        else made.node("Equal", [node.input[0], made.constant("replaced", dtype(replaced))])
    )
    return [missing, made.node("Where", [missing.output[0], put, node.input[0]], node.output[0])]


def _vectorizer(made: _Made, node: onnx.NodeProto, given: dict[str, Any]) -> list[onnx.NodeProto]:
    del given
    parts = [made.node("Cast", [name], to=TensorProto.FLOAT) for name in node.input]
    return [*parts, made.node("Concat", [part.output[0] for part in parts], node.output[0], axis=-1)]


def _extractor(made: _Made, node: onnx.NodeProto, given: dict[str, Any]) -> list[onnx.NodeProto]:
    del given
    flat = made.node("Reshape", [node.input[1], made.constant("flat", np.asarray([-1], np.int64))])
    return [flat, made.node("Gather", [node.input[0], flat.output[0]], node.output[0], axis=-1)]


def _binarizer(made: _Made, node: onnx.NodeProto, given: dict[str, Any]) -> list[onnx.NodeProto]:
    above = made.node("Greater", [node.input[0], made.constant("threshold", np.float32(given.get("threshold", 0.0)))])
    return [above, made.node("Cast", [above.output[0]], node.output[0], to=TensorProto.FLOAT)]


def _product(made: _Made, node: onnx.NodeProto, given: dict[str, Any], rows: int, output: str = "") -> list[onnx.NodeProto]:
    """Make the scores of `rows` linear functions."""
    x = made.floats(node)
    weight = np.asarray(given["coefficients"], np.float32).reshape(rows, -1)
    operands = [x.output[0], made.constant("coefficients", weight, trained=True)]
    if given.get("intercepts"):
        operands.append(made.constant("intercepts", np.asarray(given["intercepts"], np.float32), trained=True))
    else:
        operands.append(made.constant("intercepts", np.zeros(rows, np.float32)))
    return [x, made.node("Gemm", operands, output, transB=1)]


def _linear_regressor(made: _Made, node: onnx.NodeProto, given: dict[str, Any]) -> list[onnx.NodeProto] | None:
    rows, transform = int(given.get("targets", 1)), given.get("post_transform", b"NONE").decode()
    if transform not in _TRANSFORMS or not given.get("coefficients"):
        return None
    if rows == 1 or transform == "NONE":  # onnxruntime transforms only several targets
        return _product(made, node, given, rows, node.output[0])
    found = _product(made, node, given, rows)
    return [*found, _transformed(made, transform, found[-1].output[0], node.output[0])]


_TRANSFORMS = {"NONE": "Identity", "LOGISTIC": "Sigmoid", "SOFTMAX": "Softmax", "SOFTMAX_ZERO": "Softmax"}
"""SOFTMAX_ZERO differs from SOFTMAX only for scores of exactly zero, which stay zero."""


def _transformed(made: _Made, transform: str, scores: str, output: str = "") -> onnx.NodeProto:
    kind = _TRANSFORMS[transform]
    return made.node(kind, [scores], output, **({"axis": 1} if kind == "Softmax" else {}))


def _linear_classifier(made: _Made, node: onnx.NodeProto, given: dict[str, Any]) -> list[onnx.NodeProto] | None:
    transform, rows = given.get("post_transform", b"NONE").decode(), len(given.get("intercepts", ()))
    labels = given.get("classlabels_ints") or range(len(given.get("classlabels_strings", ())))
    if transform not in _TRANSFORMS or not rows or len(given.get("coefficients", ())) % rows or len(node.output) != 2:
        return None
    found = _product(made, node, given, rows)
    raw = found[-1].output[0]
    if rows == 1 and len(labels) == 2:  # one score of two classes
        found.append(_transformed(made, transform if transform == "LOGISTIC" else "NONE", raw))
        second = found[-1].output[0]
        first = made.node("Sub", [made.constant("one", np.float32(1.0)), second])
        above = made.node("Greater", [raw, made.constant("zero", np.float32(0.0))])
        index = made.node("Cast", [above.output[0]], to=TensorProto.INT64)
        row = made.node("Reshape", [index.output[0], made.constant("flat", np.asarray([-1], np.int64))])
        scores = made.node("Concat", [first.output[0], second], node.output[1], axis=1)
        found += [first, above, index, row, scores]
    else:
        row = made.node("ArgMax", [raw], axis=1, keepdims=0)
        found += [row, _transformed(made, transform, raw, node.output[1])]
    table = made.constant("labels", np.asarray(list(labels), np.int64))
    found.append(made.node("Gather", [table, row.output[0]], node.output[0], axis=0))
    return found


_REWRITES: dict[str, Rewrite] = {
    "ArrayFeatureExtractor": _extractor,
    "Binarizer": _binarizer,
    "FeatureVectorizer": _vectorizer,
    "ImageScaler": _image_scaler,
    "Imputer": _imputer,
    "LinearClassifier": _linear_classifier,
    "LinearRegressor": _linear_regressor,
    "Normalizer": _normalizer,
    "Scaler": _scaler,
}


def _end_at_scores(graph: onnx.GraphProto) -> None:
    """Let outputs that a ZipMap makes be its input, and leave out outputs of text, and what only they need."""
    zips = (node for node in graph.node if node.domain == DOMAIN and node.op_type == "ZipMap")
    maps = {node.output[0]: node.input[0] for node in zips if node.input and node.output}
    text = {value.name for value in graph.output if value.type.tensor_type.elem_type == TensorProto.STRING}
    outputs = [
        helper.make_empty_tensor_value_info(maps[value.name]) if value.name in maps else value
        for value in graph.output
        if value.name not in text
    ]
    if not outputs or not (maps or text):
        return
    kept = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in outputs]
    del graph.output[:]
    graph.output.extend(kept)
    nodes = leading_to(graph.node, {value.name for value in graph.output})
    del graph.node[:]
    graph.node.extend(nodes)
