"""Mutations of ONNX files: of their structure (shapes, dtypes, operators, attributes, names, edges, references) and of bytes."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable

import onnx
from onnx import AttributeProto, TensorProto, helper

NUMBERS = (0, 1, -1, 2, 3, 7, 64, 65, 1000, 1 << 16, 1 << 31, (1 << 31) - 1, 1 << 40, (1 << 63) - 1, -(1 << 63))
NAMES = ("", "x", "x", "w", "y", "a" * 500, "\u0000", "../x", "input:x", "caf\u00e9", "n#2")
OPERATORS = sorted({schema.name for schema in onnx.defs.get_all_schemas()})
DTYPES = [*TensorProto.DataType.values(), 99, -1]

Mutation = Callable[[random.Random, onnx.ModelProto], None]


def _graphs(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    inner = [sub for node in graph.node for a in node.attribute for sub in (a.g, *a.graphs) if sub.node]
    return [graph, *(found for sub in inner for found in _graphs(sub))]


def _graph(rng: random.Random, model: onnx.ModelProto) -> onnx.GraphProto:
    return rng.choice(_graphs(model.graph))


def _node(rng: random.Random, model: onnx.ModelProto) -> onnx.NodeProto:
    nodes = [*_graph(rng, model).node, *(node for function in model.functions for node in function.node)]
    return rng.choice(nodes) if nodes else onnx.NodeProto()


def _tensor(rng: random.Random, model: onnx.ModelProto) -> onnx.TensorProto:
    graph = _graph(rng, model)
    found = [*graph.initializer, *(a.t for node in graph.node for a in node.attribute if a.HasField("t"))]
    found += [part for sparse in graph.sparse_initializer for part in (sparse.values, sparse.indices)]
    return rng.choice(found) if found else onnx.TensorProto()


def _value(rng: random.Random, model: onnx.ModelProto) -> onnx.ValueInfoProto:
    graph = _graph(rng, model)
    values = [*graph.input, *graph.output, *graph.value_info]
    return rng.choice(values) if values else onnx.ValueInfoProto()


def _tensor_dims(rng: random.Random, model: onnx.ModelProto) -> None:
    dims = _tensor(rng, model).dims
    action = rng.randrange(3)
    if action == 0 or not dims:
        dims.append(rng.choice(NUMBERS))
    elif action == 1:
        dims[rng.randrange(len(dims))] = rng.choice(NUMBERS)
    else:
        del dims[rng.randrange(len(dims))]


def _tensor_type(rng: random.Random, model: onnx.ModelProto) -> None:
    _tensor(rng, model).data_type = rng.choice(DTYPES)


def _tensor_data(rng: random.Random, model: onnx.ModelProto) -> None:
    tensor = _tensor(rng, model)
    action = rng.randrange(4)
    if action == 0:
        tensor.raw_data = tensor.raw_data[: rng.randrange(len(tensor.raw_data) + 1)]
    elif action == 1:
        tensor.float_data.extend([1.0, float("nan"), float("inf")])
    elif action == 2:
        tensor.int64_data.extend(rng.choices(NUMBERS, k=3))
    else:
        tensor.ClearField("raw_data")


def _external(rng: random.Random, model: onnx.ModelProto) -> None:
    tensor = _tensor(rng, model)
    tensor.data_location = TensorProto.EXTERNAL
    key = rng.choice(["location", "offset", "length", "checksum", ""])
    places = ["w.bin", "../w.bin", "/etc/hosts", "", ".", "case.onnx", "w.bin\u0000", "a/../w.bin", "w" * 5000]
    tensor.external_data.add(key=key, value=rng.choice(places) if key == "location" else str(rng.choice(NUMBERS)))


def _value_shape(rng: random.Random, model: onnx.ModelProto) -> None:
    value = _value(rng, model)
    shape = value.type.tensor_type.shape
    action = rng.randrange(5)
    if action == 0:
        value.ClearField("type")
    elif action == 1:
        value.type.tensor_type.ClearField("shape")
    elif action == 2 and shape.dim:
        rng.choice(shape.dim).dim_value = rng.choice(NUMBERS)
    elif action == 3 and shape.dim:
        rng.choice(shape.dim).dim_param = rng.choice(NAMES)
    else:
        for _ in range(rng.choice([1, 2, 100, 5000])):
            shape.dim.add(dim_value=rng.choice(NUMBERS))


def _value_type(rng: random.Random, model: onnx.ModelProto) -> None:
    value = _value(rng, model)
    if rng.random() < 0.7:
        value.type.tensor_type.elem_type = rng.choice(DTYPES)
    else:
        value.type.sequence_type.elem_type.tensor_type.elem_type = rng.choice(DTYPES)


def _operator(rng: random.Random, model: onnx.ModelProto) -> None:
    _node(rng, model).op_type = rng.choice([*OPERATORS, "Nonsense", ""])


def _domain(rng: random.Random, model: onnx.ModelProto) -> None:
    _node(rng, model).domain = rng.choice(["", "ai.onnx", "ai.onnx.ml", "com.microsoft", "local", "?"])


def _edge(rng: random.Random, model: onnx.ModelProto) -> None:
    graph = _graph(rng, model)
    names = [name for node in graph.node for name in (*node.input, *node.output)] + [t.name for t in graph.initializer]
    node = _node(rng, model)
    side = rng.choice([node.input, node.input, node.output])
    if side and rng.random() < 0.8:
        side[rng.randrange(len(side))] = rng.choice([*names, *NAMES])
    else:
        side.append(rng.choice([*names, *NAMES]))


def _rename(rng: random.Random, model: onnx.ModelProto) -> None:
    item = rng.choice([_node(rng, model), _tensor(rng, model), _value(rng, model)])
    item.name = rng.choice(NAMES)


def _attribute(rng: random.Random, model: onnx.ModelProto) -> None:
    node = _node(rng, model)
    action = rng.randrange(5)
    if action == 0 and node.attribute:
        del node.attribute[rng.randrange(len(node.attribute))]
    elif action == 1 and node.attribute:
        attribute = rng.choice(node.attribute)
        attribute.i, attribute.f, attribute.s = rng.choice(NUMBERS), rng.choice([0.0, -1.0, float("nan"), 1e38]), b"\xff"
        if attribute.ints:
            attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(NUMBERS)
    elif action == 2 and node.attribute:
        rng.choice(node.attribute).type = rng.choice(AttributeProto.AttributeType.values())
    else:
        names = ["axis", "axes", "perm", "to", "keepdims", "epsilon", "group", "direction", "activations", "value", "equation"]
        values = [rng.choice(NUMBERS), [rng.choice(NUMBERS)] * rng.choice([1, 2, 70]), "reverse", ["Tanh", "?"], 0.5]
        node.attribute.append(helper.make_attribute(rng.choice([*names, "hidden_size", "shape"]), rng.choice(values)))


def _nodes(rng: random.Random, model: onnx.ModelProto) -> None:
    nodes = _graph(rng, model).node
    if not nodes:
        return
    action, index = rng.randrange(4), rng.randrange(len(nodes))
    if action == 0:
        del nodes[index]
    elif action == 1:
        nodes.append(nodes[index])
    elif action == 2:
        moved = onnx.NodeProto()
        moved.CopyFrom(nodes[index])
        del nodes[index]
        nodes.insert(rng.randrange(len(nodes) + 1), moved)
    else:
        nodes[index].CopyFrom(rng.choice(nodes))


def _opset(rng: random.Random, model: onnx.ModelProto) -> None:
    if rng.random() < 0.3 and model.opset_import:
        del model.opset_import[0]
    else:
        model.opset_import.add(domain=rng.choice(["", "ai.onnx", "local"]), version=rng.choice([*NUMBERS, 7, 13, 21, 25]))


def _nest(rng: random.Random, model: onnx.ModelProto) -> None:
    graph = onnx.GraphProto()
    graph.CopyFrom(model.graph)
    node = _node(rng, model)
    node.op_type = rng.choice(["If", "Loop", "Scan", "SequenceMap"])
    for name in rng.sample(["then_branch", "else_branch", "body"], 2):
        node.attribute.append(helper.make_attribute(name, graph))


def _function(rng: random.Random, model: onnx.ModelProto) -> None:
    if model.functions:
        function = rng.choice(model.functions)
        rng.choice(function.node).op_type = rng.choice([function.name, *(other.name for other in model.functions)])
        rng.choice(function.node).domain = "local"


def _lists(rng: random.Random, model: onnx.ModelProto) -> None:
    graph = _graph(rng, model)
    side = rng.choice([graph.input, graph.output, graph.value_info, graph.initializer, graph.sparse_initializer])
    if side and rng.random() < 0.6:
        del side[rng.randrange(len(side))]
    elif side:
        side.append(rng.choice(side))


MUTATIONS: tuple[Mutation, ...] = (
    _tensor_dims, _tensor_type, _tensor_data, _external, _value_shape, _value_type, _operator, _operator, _domain, _edge, _edge,
    _rename, _attribute, _attribute, _nodes, _opset, _nest, _function, _lists,
)  # fmt: skip


def _bytes(rng: random.Random, data: bytearray) -> bytes:
    """Some bytes changed, put in, taken out, repeated or cut off."""
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        at, length = rng.randrange(len(data) + 1), rng.choice([1, 1, 2, 8, 50])
        action = rng.randrange(6)
        if action == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif action == 1 and at < len(data):
            data[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF])
        elif action == 2:
            data[at:at] = rng.randbytes(length)
        elif action == 3:
            del data[at : at + length]
        elif action == 4:
            data[at:at] = data[at : at + length]
        elif rng.random() < 0.2:
            del data[at:]
    return bytes(data)


def make_case(seeds: list[bytes], number: int, seed: int) -> bytes:
    """The file of case `number`."""
    rng = random.Random(f"{seed}:{number}")  # noqa: S311 - no secret
    data = rng.choice(seeds)
    if rng.random() < 0.3:
        return _bytes(rng, bytearray(data))
    model = onnx.ModelProto.FromString(data)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 6])):
        with contextlib.suppress(ValueError, TypeError, AttributeError, IndexError, onnx.checker.ValidationError):
            rng.choice(MUTATIONS)(rng, model)
    try:
        return bytes(model.SerializeToString())
    except ValueError:  # a name that is not text
        return data
