"""Build the graph of an ONNX model: branches of If are flattened, constants are folded, and weights get their roles."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import count
from types import MappingProxyType

import onnx

from gradlint.errors import TargetError
from gradlint.frontends.onnx import constants
from gradlint.frontends.onnx.call import Call, Operand
from gradlint.frontends.onnx.constants import Constant, Folder, TensorType
from gradlint.frontends.onnx.folded import mark_folded
from gradlint.frontends.onnx.metadata import Provenance, provenance, state_kinds
from gradlint.frontends.onnx.names import assign_ids, input_id, subgraph_scope
from gradlint.frontends.onnx.patterns import recognize
from gradlint.frontends.onnx.roles import Weights, describe
from gradlint.frontends.onnx.schema import opsets_of, schema_violation
from gradlint.frontends.onnx.scope import Scope
from gradlint.frontends.onnx.shapes import declared_types, free_inputs, infer_shapes, tensor_type
from gradlint.frontends.onnx.skeleton import Skeleton
from gradlint.frontends.onnx.walk import captured, subgraphs
from gradlint.graph import Graph, Node, Ref, Weight

Values = Scope[Operand]
Types = Scope[TensorType]


def build_graph(skeleton: Skeleton, violation: str | None = None) -> tuple[Graph, str | None]:
    """Return the graph of a model whose local functions are inlined, and the reason if shapes could not be inferred.

    They are not inferred if there is a `violation` of a schema, because onnx can crash on it.

    Raises TargetError if a node reads a tensor that does not exist.
    """
    inferred, reason = (skeleton.proto, violation) if violation else infer_shapes(skeleton.proto, skeleton.limits)
    return _Builder(skeleton, inferred, lenient=violation is not None).build(), reason


def _only_rounds(node: onnx.NodeProto, operand: Operand) -> bool:
    """Return whether a node quantizes an activation, or is half of what rounds a float weight to a grid."""
    if node.op_type == "QuantizeLinear":
        return isinstance(operand, Ref) or (isinstance(operand, Constant) and operand.is_float)
    return node.op_type == "DequantizeLinear" and isinstance(operand, Constant) and operand.is_float


class _Builder:
    """Collects nodes in execution order while it walks a graph and its subgraphs."""

    def __init__(self, skeleton: Skeleton, inferred: onnx.ModelProto, *, lenient: bool = False) -> None:
        self._skeleton = skeleton
        self._graph = inferred.graph
        self._opsets = opsets_of(skeleton.proto)
        self._lenient = lenient  # nodes that their schema rejects are not understood
        self._folder = Folder(self._opsets, skeleton.label, skeleton.limits)
        self._kinds = state_kinds(skeleton.proto.graph)
        self._weights = Weights(dict(self._kinds))
        self._nodes: list[Node] = []
        self._named: set[str] = set()
        self._calls: Counter[tuple[str, str]] = Counter()

    def build(self) -> Graph:
        values: Values = Scope()
        for value in free_inputs(self._graph):
            dtype, shape = tensor_type(value.type) or (None, None)
            self._nodes.append(Node(input_id(value.name), "input", shape=shape, dtype=dtype))
            values[value.name] = Ref(input_id(value.name))
        outputs = self._walk(self._graph, values, Scope())
        train = any(node.attrs.get("training_mode") for node in self._nodes)
        try:
            refs = [ref for ref in outputs if ref is not None]
            nodes = mark_folded(recognize(self._nodes, refs), self._kinds)
            return Graph(nodes, refs, mode="train" if train else "eval")
        except ValueError as error:
            raise TargetError(f"{self._skeleton.label}: not a valid ONNX graph: {error}") from error

    def _walk(self, graph: onnx.GraphProto, values: Values, types: Types, scope: str = "") -> list[Ref | None]:
        """Add the nodes of a graph, and return its outputs; None for constant ones.

        `values` and `types` map the names of tensors to their values and types. They are extended. `scope` is the prefix of ids.
        """
        types.update(declared_types(graph))
        for tensor in graph.initializer:
            values[tensor.name] = constants.from_tensor(self._skeleton, tensor, self._unique(tensor.name, scope))
        for sparse in graph.sparse_initializer:
            name = sparse.values.name
            values[name] = constants.from_sparse(self._skeleton, sparse, self._unique(name, scope))
        for node, node_id in zip(graph.node, assign_ids(graph, scope), strict=True):
            operands = [self._find(name, values, node_id) for name in node.input]
            if operands and _only_rounds(node, operands[0]):  # rounding passes the gradient
                values.update(zip(node.output, operands[:1], strict=False))
                continue
            if subgraphs(node):
                operands += self._control(node, node_id, values, types)
                self._add(node, node_id, operands, values, types, inner=self._of_bodies(node, node_id, values, types))
                continue
            if node.op_type in {"Identity", "CastLike"} and operands and isinstance(operands[0], Ref):
                if node.op_type == "Identity":
                    values.update((name, operands[0]) for name in node.output)
                    continue
                operands[1:] = [None] * len(operands[1:])  # the second operand only gives the dtype
            results = self._constants(node, operands, types, scope)
            values.update(zip(node.output, results, strict=True))
            if None in results:
                self._add(node, node_id, operands, values, types)
        found = [self._find(output.name, values, scope or "the graph") for output in graph.output]
        return [operand if isinstance(operand, Ref) else None for operand in found]

    def _find(self, name: str, values: Values, reader: str) -> Operand:
        if not name:
            return None
        try:
            return values[name]
        except KeyError:
            raise TargetError(
                f"{self._skeleton.label}: {reader} reads {name!r}, which nothing before it makes",
                hint="check the file with onnx.checker.check_model, and export it again",
            ) from None

    def _unique(self, name: str, scope: str) -> str:
        """Return the name of a constant, prefixed with its scope if a constant of another graph has the same name."""
        unique = scope + name if name in self._named else name
        self._named.add(unique)
        return unique

    def _constants(self, node: onnx.NodeProto, operands: list[Operand], types: Types, scope: str) -> list[Constant | None]:
        """Return the constant values of a node's outputs; None for outputs that are not constant."""
        if any(isinstance(operand, Ref) for operand in operands):
            return [constants.from_types(node, operands[0], types)] if len(node.output) == 1 else [None] * len(node.output)
        if node.op_type == "Constant":
            return [constants.from_node(self._skeleton, node, self._unique(name, scope)) for name in node.output]
        inputs = [operand if isinstance(operand, Constant) else None for operand in operands]
        return self._folder.fold(node, inputs, [types.get(name) for name in node.output])

    def _control(self, node: onnx.NodeProto, node_id: str, values: Values, types: Types) -> Iterator[Operand]:
        """Yield the implicit operands of a control node: the outputs of both branches of If, or what a loop body captures."""
        for attribute in sorted(node.attribute, key=lambda a: a.name != "then_branch"):
            for graph in (attribute.g, *attribute.graphs):
                if node.op_type == "If":
                    yield from self._walk(graph, values.new_child(), types.new_child(), subgraph_scope(node_id, attribute.name))
                else:
                    yield from (values[name] for name in captured(graph) if isinstance(values.get(name), Ref))

    def _of_bodies(self, node: onnx.NodeProto, node_id: str, values: Values, types: Types) -> dict[str, Weight]:
        """Return the weights in the bodies of a loop, by node id and role. The nodes of the bodies are not added to the graph."""
        if node.op_type == "If":
            return {}
        found: dict[str, Weight] = {}
        nodes, calls = self._nodes, self._calls
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                scope = subgraph_scope(node_id, attribute.name)
                self._nodes, self._calls = [], Counter()
                inner = values.new_child({value.name: Ref(node_id) for value in graph.input})
                self._walk(graph, inner, types.new_child(), scope)
                for item in self._nodes:
                    found.update((f"{item.id.removeprefix(scope)}.{role}", weight) for role, weight in item.weights.items())
        self._nodes, self._calls = nodes, calls
        return found

    def _add(
        self,
        node: onnx.NodeProto,
        node_id: str,
        operands: list[Operand],
        values: Values,
        types: Types,
        *,
        inner: Mapping[str, Weight] = MappingProxyType({}),
    ) -> None:
        call = Call(node, operands, self._opsets.get(node.domain if node.domain != "ai.onnx" else "", 1), self._weights.make)
        if not self._lenient or schema_violation(node, self._opsets) is None:
            describe(call)
        origin: Provenance = provenance(node)
        first = next(filter(None, node.output), "")
        dtype, shape = types.get(first, (None, None))
        self._nodes.append(
            Node(
                node_id,
                call.op,
                tuple(operand if isinstance(operand, Ref) else None for operand in operands),
                {**call.weights, **inner},
                call.attrs,
                shape,
                dtype,
                origin.module,
                origin.module_class,
                self._calls[origin.module, call.op],
                origin.source,
                notes=origin.notes,
            )
        )
        self._calls[origin.module, call.op] += 1
        values.update((name, Ref(node_id, port)) for port, name in zip(count(), node.output) if name)
