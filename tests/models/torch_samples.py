"""Runs a module through the torch front end and keeps what there is to look at."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradlint.frontends.torch.module import TorchRunnable
from gradlint.graph import Graph, Node, Ref
from gradlint.ops import operator


@dataclass
class Run:
    """One run: the tensors that the tap saw, by node, and what came out."""

    runnable: TorchRunnable
    seen: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)
    fed: dict[str, tuple[Tensor | None, ...]] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    outputs: tuple[Any, ...] = ()

    @property
    def graph(self) -> Graph:
        return self.runnable.graph

    def nodes(self, op: str) -> list[Node]:
        return [node for node in self.graph if node.op == op]

    def node(self, op: str) -> Node:
        (node,) = self.nodes(op)
        return node

    def tap(self, node: str, outputs: tuple[Any, ...], inputs: tuple[Any, ...]) -> None:
        self.order.append(node)
        self.seen[node], self.fed[node] = outputs, inputs
        self.versions[node] = 0 if outputs[0].is_inference() else outputs[0]._version


def arrays(runnable: TorchRunnable, seed: int = 0) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [spec.draw(rng) for spec in runnable.inputs]


def run(module: nn.Module, *args: Any, **options: Any) -> Run:
    """Trace once, `args` being the positional arguments of the forward."""
    result = Run(TorchRunnable(module, args=args, **options))
    with result.runnable.untouched():
        result.outputs = result.runnable.forward(arrays(result.runnable), result.tap)
    return result


def again(first: Run) -> Run:
    """The second, cheaper run of the same model."""
    result = Run(first.runnable)
    with first.runnable.untouched():
        result.outputs = first.runnable.forward(arrays(first.runnable), result.tap)
    return result


def sources(node: Node) -> list[str | None]:
    """Ids of the nodes that a node reads."""
    return [ref.node if isinstance(ref, Ref) else None for ref in node.inputs]


def owners(result: Run) -> set[str]:
    """Names of all parameters and buffers that nodes mention, those of derived weights taken apart."""
    return {name for node in result.graph for weight in node.weights.values() for name in weight.name.split("+")}


def reachable(module: nn.Module, outputs: tuple[Any, ...]) -> dict[str, Tensor]:
    """Parameters that torch says a gradient flows to."""
    params = {name: p for name, p in module.named_parameters() if p.requires_grad}
    total = sum(out.float().square().sum() for out in outputs)
    assert isinstance(total, Tensor)
    grads = torch.autograd.grad(total, list(params.values()), retain_graph=True, allow_unused=True)
    return {name: p for (name, p), grad in zip(params.items(), grads, strict=True) if grad is not None}


def check_sound(result: Run, module: nn.Module) -> None:
    """What must hold for every model: stable ids, a graph that says what autograd says, every trained weight in it."""
    second = again(result)
    assert second.order == [node.id for node in result.graph]
    assert len(result.outputs) == len(result.graph.outputs) > 0
    reached = reachable(module, result.outputs)
    names = owners(result)
    aliases: dict[int, set[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        aliases.setdefault(id(parameter), set()).add(name)
    assert [name for name, parameter in reached.items() if not aliases[id(parameter)] & names] == []
    cuts = any(node.notes & {"no-grad"} or operator(node.op).cuts for node in result.graph)
    total = sum(out.float().square().sum() for out in result.outputs)
    upstream = _upstream(result.graph)
    for node in result.graph:
        tensor = result.seen[node.id][0]
        if not tensor.requires_grad or tensor._version != result.versions[node.id]:
            continue  # written since: it stands for a later node
        (grad,) = torch.autograd.grad(total, [tensor], retain_graph=True, allow_unused=True)
        assert grad is None or node.id in upstream, f"{node.id}: gradient without a path"
        assert grad is not None or cuts or node.id not in upstream, f"{node.id}: a path without gradient"


def _upstream(graph: Graph) -> set[str]:
    found: set[str] = set()
    stack = [ref.node for ref in graph.outputs]
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            stack += [source for source in sources(graph[node]) if source]
    return found
