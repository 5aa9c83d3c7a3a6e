"""Plans: ONNX graphs with decoded attributes and resolved names. A plan is made once and run many times."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import onnx
from onnx import AttributeProto

from gradlint.errors import GradlintError, TargetError
from gradlint.frontends.onnx.names import assign_ids, subgraph_scope
from gradlint.frontends.user_code import described
from gradlint.onnx_torch.dtypes import Load, from_proto, from_sparse
from gradlint.onnx_torch.registry import KERNELS, Value

Opsets = Mapping[str, int]
STANDARD = ("", "ai.onnx")


@dataclass(frozen=True, slots=True)
class Step:
    """One node of a plan.

    `attrs` are the attributes as Python values; `node` is the original node. `last` are the names whose values are not used
    after this step. `needed` is the number of outputs that the step must produce: up to the last one that is read.
    """

    id: str
    op: str
    domain: str
    opset: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Any]
    node: onnx.NodeProto
    last: tuple[str, ...] = ()
    needed: int = 0

    @property
    def graphs(self) -> Iterator[Plan]:
        """The subgraphs among the attributes, as plans."""
        return (value for value in self.attrs.values() if isinstance(value, Plan))

    @property
    def reads(self) -> Iterator[str]:
        """The names of the inputs, and the names that the subgraphs capture."""
        yield from filter(None, self.inputs)
        for graph in self.graphs:
            yield from graph.captures


@dataclass(frozen=True, slots=True)
class Plan:
    """A planned graph or function body.

    `constants` maps a name in this graph to its key among the constants of the model. `captures` are the names that the graph
    reads from the enclosing graph.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: Mapping[str, str]
    steps: tuple[Step, ...]
    captures: frozenset[str]


class Planner:
    """Plans graphs and collects their constants in `constants`, by key. `load` reads the values of a TensorProto."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self.constants: dict[str, Value] = {}

    def graph(self, graph: onnx.GraphProto, opsets: Opsets, scope: str = "") -> Plan:
        """Plan a graph. Its steps have the ids of the nodes in the static graph. Raises TargetError if a part is not valid."""
        found: dict[str, str] = {}
        for tensor in graph.initializer:
            with _readable(f"weight {tensor.name!r}"):
                found[tensor.name] = self._keep(tensor.name, scope, from_proto(tensor, self._load))
        for sparse in graph.sparse_initializer:
            with _readable(f"sparse weight {sparse.values.name!r}"):
                found[sparse.values.name] = self._keep(sparse.values.name, scope, from_sparse(sparse, self._load))
        inputs = [value.name for value in graph.input if value.name not in found]
        outputs = [value.name for value in graph.output]
        return self._plan(
            zip(assign_ids(graph, scope), graph.node, strict=True), inputs, outputs, found=found, opsets=opsets, scope=scope
        )

    def function(self, body: onnx.FunctionProto, opsets: Opsets, scope: str, given: Mapping[str, AttributeProto]) -> Plan:
        """Plan a function body for one call, which has the attributes `given`."""
        ids = [f"{scope}{node.name or node.op_type}#{index}" for index, node in enumerate(body.node)]
        nodes = [_bound(node, given) for node in body.node]
        return self._plan(zip(ids, nodes, strict=True), list(body.input), list(body.output), found={}, opsets=opsets, scope=scope)

    def _plan(
        self,
        nodes: Iterable[tuple[str, onnx.NodeProto]],
        inputs: Sequence[str],
        outputs: Sequence[str],
        *,
        found: dict[str, str],
        opsets: Opsets,
        scope: str,
    ) -> Plan:
        steps = []
        for node_id, node in nodes:
            with _readable(f"{node.op_type} at {node_id}"):
                attrs = {a.name: self._attribute(a, opsets, subgraph_scope(node_id, a.name)) for a in node.attribute}
                if node.op_type == "Constant" and node.domain in STANDARD:
                    found[node.output[0]] = self._keep(node.output[0], scope, KERNELS["Constant"].function(**attrs))
                    continue
                domain = "" if node.domain in STANDARD else node.domain
                opset = opsets.get(domain, 1)
                steps.append(Step(node_id, node.op_type, domain, opset, tuple(node.input), tuple(node.output), attrs, node))
        bound = {*inputs, *found, *(name for step in steps for name in step.outputs)}
        read = {name for step in steps for name in step.reads}
        return Plan(
            tuple(inputs),
            tuple(outputs),
            found,
            tuple(_with_last(steps, outputs)),
            frozenset((read | set(outputs)) - bound),
        )

    def _keep(self, name: str, scope: str, value: Value) -> str:
        """Store a constant and return its key: its name, prefixed with its scope if another graph has the same name."""
        key = scope + name if name in self.constants else name
        self.constants[key] = value
        return key

    def _attribute(self, a: AttributeProto, opsets: Opsets, scope: str) -> Any:
        kind = AttributeProto
        if a.type == kind.GRAPH:
            return self.graph(a.g, opsets, scope)
        if a.type == kind.TENSOR:
            return from_proto(a.t, self._load)
        if a.type == kind.SPARSE_TENSOR:
            return from_sparse(a.sparse_tensor, self._load)
        value = onnx.helper.get_attribute_value(a)
        if a.type == kind.STRING:
            return value.decode("utf-8", "replace")
        if a.type == kind.STRINGS:
            return tuple(text.decode("utf-8", "replace") for text in value)
        return tuple(value) if a.type in (kind.INTS, kind.FLOATS) else value


@contextmanager
def _readable(what: str) -> Iterator[None]:
    """Convert any exception in the body of the context to a TargetError that names the part of the file, `what`."""
    try:
        yield
    except (GradlintError, MemoryError):
        raise
    except Exception as error:
        hint = "check the file with onnx.checker.check_model, and export it again"
        raise TargetError(f"{what} cannot be read: {described(error)}", hint=hint) from error


def _bound(node: onnx.NodeProto, given: Mapping[str, AttributeProto]) -> onnx.NodeProto:
    """Return a node of a function body with the caller's attributes in place of references.

    A reference to an attribute that the caller does not give is removed.
    """
    bound = onnx.NodeProto()
    bound.CopyFrom(node)
    del bound.attribute[:]
    for attribute in node.attribute:
        if attribute.ref_attr_name and attribute.ref_attr_name not in given:
            continue
        own = bound.attribute.add()
        own.CopyFrom(given[attribute.ref_attr_name] if attribute.ref_attr_name else attribute)
        own.name = attribute.name
        for graph in [own.g] if own.HasField("g") else []:
            nodes = [_bound(inner, given) for inner in graph.node]
            del graph.node[:]
            graph.node.extend(nodes)
    return bound


def _with_last(steps: Sequence[Step], outputs: Sequence[str]) -> Iterator[Step]:
    """Yield the steps with `last` and `needed` filled in."""
    results = set(outputs)
    wanted = {*results, *(name for step in steps for name in step.reads)}
    reader = {name: index for index, step in enumerate(steps) for name in (*step.outputs, *step.reads)}
    last: dict[int, list[str]] = {}
    for name, index in reader.items():
        if name and name not in results:
            last.setdefault(index, []).append(name)
    for index, step in enumerate(steps):
        needed = max((port for port, name in enumerate(step.outputs, 1) if name and name in wanted), default=0)
        yield replace(step, last=tuple(last.get(index, ())), needed=needed)
