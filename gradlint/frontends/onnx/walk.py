"""Iterate over all graphs, tensors and names of an ONNX model, including subgraphs and local functions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import onnx


def subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """Return the graphs in the attributes of a node."""
    found: list[onnx.GraphProto] = []
    for attribute in node.attribute:
        if attribute.HasField("g"):
            found.append(attribute.g)
        if attribute.graphs:
            found.extend(attribute.graphs)
    return found


def tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor of a model: initializers and attributes, including those of subgraphs, functions and sparse tensors."""
    yield from _graph_tensors(proto.graph)
    for function in proto.functions:
        yield from _node_tensors(function.node)
        yield from _attribute_tensors(function.attribute_proto)


def sparse_tensors(proto: onnx.ModelProto) -> Iterator[onnx.SparseTensorProto]:
    """Yield every sparse tensor of a model."""
    functions = [graph for function in proto.functions for graph in graphs_of(function)]
    for graph in (*graphs_of(proto.graph), *functions):
        if isinstance(graph, onnx.GraphProto):
            yield from graph.sparse_initializer
        for node in graph.node:
            for attribute in node.attribute:
                yield from _sparse_of(attribute)


def graphs_of(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[Any]:
    """Yield a graph or a function, and then the subgraphs of its nodes at any depth."""
    yield graph
    for node in graph.node:
        for inner in subgraphs(node):
            yield from graphs_of(inner)


def captured(graph: onnx.GraphProto) -> Iterable[str]:
    """Return the names that a subgraph reads from the enclosing graphs, in the order of first use."""
    own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    found: dict[str, None] = {}
    for node in graph.node:
        for name in (*node.input, *captured_by(node)):
            if name and name not in own:
                found[name] = None
        own.update(node.output)
    found.update((value.name, None) for value in graph.output if value.name not in own)
    return found


def captured_by(node: onnx.NodeProto) -> list[str]:
    """Return the names that the subgraphs of a node read from the graph around it."""
    return [name for graph in subgraphs(node) for name in captured(graph)]


def leading_to(nodes: Sequence[onnx.NodeProto], needed: set[str]) -> list[onnx.NodeProto]:
    """Return copies of the nodes, of a graph in order, that make what is needed, and extend that by what they read."""
    found = []
    for node in reversed(nodes):
        if needed & set(node.output):
            needed.update(node.input, captured_by(node))
            found.append(onnx.NodeProto.FromString(node.SerializeToString()))
    return found[::-1]


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def has_garbled_names(proto: onnx.ModelProto) -> bool:
    """Return whether a name is not UTF-8. protobuf then returns bytes."""
    functions = proto.functions
    names = [(f.domain, f.name, *f.input, *f.output) for f in functions] + [(o.domain,) for o in proto.opset_import]
    return not all(map(_are_text, names)) or _is_garbled(proto.graph) or any(_is_garbled(function) for function in functions)


def _are_text(names: Iterable[str]) -> bool:
    return set(map(type, names)) <= {str}


def _is_garbled(graph: onnx.GraphProto | onnx.FunctionProto) -> bool:
    if isinstance(graph, onnx.GraphProto):
        values = (*graph.input, *graph.output, *graph.value_info, *graph.initializer)
        dims = (dim for value in graph.input for dim in value.type.tensor_type.shape.dim)
        if not (_are_text(value.name for value in values) and _are_text(dim.dim_param for dim in dims)):
            return True
    for node in graph.node:
        attributes = node.attribute
        if not _are_text((node.name, node.op_type, node.domain, *node.input, *node.output, *(a.name for a in attributes))):
            return True
        if any(map(_is_garbled, subgraphs(node))):
            return True
    return False


def _node_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        yield from _attribute_tensors(node.attribute)


def _attribute_tensors(attributes: Iterable[onnx.AttributeProto]) -> Iterator[onnx.TensorProto]:
    for attribute in attributes:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for sparse in _sparse_of(attribute):
            yield from (sparse.values, sparse.indices)
        if attribute.HasField("g"):
            yield from _graph_tensors(attribute.g)
        for graph in attribute.graphs:
            yield from _graph_tensors(graph)


def _sparse_of(attribute: onnx.AttributeProto) -> Iterator[onnx.SparseTensorProto]:
    if attribute.HasField("sparse_tensor"):
        yield attribute.sparse_tensor
    yield from attribute.sparse_tensors
