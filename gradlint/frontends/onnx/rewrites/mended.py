"""Put a model into the form that the rest expects: nodes in order, and no casts that do nothing to quantized values.

The standard wants nodes sorted, and onnxruntime sorts them itself; converters and its own optimizer rely on that.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import replace

import onnx

from gradlint.frontends.onnx.rewrites.classic import in_standard_operators, needs_rewriting
from gradlint.frontends.onnx.schema import STANDARD, opsets_of
from gradlint.frontends.onnx.skeleton import Skeleton
from gradlint.frontends.onnx.walk import captured_by, graphs_of

_KEEPS_CODES = frozenset({"Identity", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Clip"})  # operators on codes


def mended(skeleton: Skeleton) -> Skeleton:
    """Return the model with the nodes of every graph in an order in which they can run, and without idle casts of codes.

    Nodes that wait for one another in a circle stay where they are. The model itself is not changed.
    """
    if needs_rewriting(skeleton.proto):
        proto = onnx.ModelProto()
        proto.CopyFrom(skeleton.proto)
        in_standard_operators(proto.graph, opsets_of(proto)[""])
        skeleton = replace(skeleton, proto=proto)
    graphs = list(graphs_of(skeleton.proto.graph))
    orders = [order_of(graph.node) for graph in graphs]
    idle = [_idle_casts(graph) for graph in graphs]
    if not any(orders) and not any(idle):
        return skeleton
    proto = onnx.ModelProto()
    proto.CopyFrom(skeleton.proto)
    for graph, order, casts in reversed(list(zip(graphs_of(proto.graph), orders, idle, strict=True))):  # inner graphs first
        for index in casts:
            graph.node[index].op_type = "Identity"
            graph.node[index].domain = ""
            del graph.node[index].attribute[:]
        if order:
            nodes = [onnx.NodeProto.FromString(graph.node[index].SerializeToString()) for index in order]
            del graph.node[:]
            graph.node.extend(nodes)
    return replace(skeleton, proto=proto)


def order_of(nodes: Sequence[onnx.NodeProto]) -> list[int] | None:
    """Return the indices of nodes in an order in which each reads what others made before; None if they stand in one.

    Nodes keep their places where they can. Those of a circle come last.
    """
    maker = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    needs = [
        {maker[name] for name in (*node.input, *captured_by(node)) if name in maker and maker[name] != index}
        for index, node in enumerate(nodes)
    ]
    if all(before < index for index, needed in enumerate(needs) for before in needed):
        return None
    readers: dict[int, list[int]] = {}
    for index, needed in enumerate(needs):
        for before in needed:
            readers.setdefault(before, []).append(index)
    waiting = [len(needed) for needed in needs]
    ready = [index for index, count in enumerate(waiting) if not count]
    order = []
    while ready:
        index = heapq.heappop(ready)
        order.append(index)
        for reader in readers.get(index, ()):
            waiting[reader] -= 1
            if not waiting[reader]:
                heapq.heappush(ready, reader)
    return order + [index for index, count in enumerate(waiting) if count]


def _idle_casts(graph: onnx.GraphProto) -> list[int]:
    """Return the indices of casts of quantized values to the integer type that they have.

    Exporters of quantized torch models put such a cast between QuantizeLinear and DequantizeLinear.
    """
    if not any(node.op_type == "QuantizeLinear" for node in graph.node):
        return []
    dtypes = _zero_point_dtypes(graph)
    codes: dict[str, int] = {}
    found = []
    for index, node in enumerate(graph.node):
        if node.domain not in STANDARD or not node.input or not node.output:
            continue
        if node.op_type == "QuantizeLinear":
            zero = node.input[2] if len(node.input) > 2 else ""
            codes[node.output[0]] = dtypes.get(zero, 0) if zero else _number(node, "output_dtype") or onnx.TensorProto.UINT8
        elif node.op_type == "Cast" and codes.get(node.input[0]) == _number(node, "to"):
            codes[node.output[0]] = codes[node.input[0]]
            found.append(index)
        elif node.op_type in _KEEPS_CODES and codes.get(node.input[0]):
            codes[node.output[0]] = codes[node.input[0]]
    return found


def _number(node: onnx.NodeProto, name: str) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), 0)


def _zero_point_dtypes(graph: onnx.GraphProto) -> dict[str, int]:
    """Return the element type of each stored tensor, of each constant, and of what is cast to a type."""
    found = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.output:
            found.update((node.output[0], a.t.data_type) for a in node.attribute if a.HasField("t"))
        elif node.op_type == "Cast" and node.output:
            found[node.output[0]] = _number(node, "to")
        elif node.op_type in {"Identity", "Squeeze", "Reshape"} and node.output and node.input:
            found[node.output[0]] = found.get(node.input[0], 0)
    return {name: kind for name, kind in found.items() if kind}
