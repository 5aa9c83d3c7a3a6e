"""Residual branches: whether something normalises them, and whether they start at zero."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from gradlint.graph import Graph, Node
from gradlint.ops import Kind
from gradlint.signal_path import is_weight_layer, kind_of
from gradlint.structure import ResidualSum, Structure

_ON_THE_WAY = frozenset({"sqrt", "rsqrt", "reciprocal", "pow", "add", "mul", "div", "clamp", "maximum", "reshape", "cast"})
_STATISTICS = frozenset({"mean", "sum", "var"})
_DEEPEST = 8  # operators between a statistic and the division by it: mean, add eps, clamp, sqrt, reciprocal, casts
_HIDDEN = frozenset({"batch-norm-folded", "batch-norm-may-be-folded"})  # notes of the ONNX reader
_OFF = 0.5  # decades between the level of a signal and the one that a BatchNorm gives it: a deviation wrong by a factor 3


def hides_norm(node: Node) -> bool:
    """Whether a layer holds, or may hold, a BatchNorm that was folded into it: its weights are not those that were drawn."""
    return not _HIDDEN.isdisjoint(node.notes)


def are_unsettled(graph: Graph, nodes: Iterable[Node], levels: Mapping[str, float | None]) -> bool:
    """Whether most BatchNorms among the nodes, visible or folded, stand on statistics that are not those of their signal.

    `levels` are forward levels in decades. A BatchNorm puts out mean square gamma^2 + beta^2 in training, and in eval mode where
    its running statistics are those of what it reads. A folded one is taken to have gamma 1 and beta 0.
    """
    frozen = [node for node in nodes if hides_norm(node) or (node.op == "batch_norm" and _is_frozen(graph, node))]
    off = [abs(level - _settled_level(node)) > _OFF for node in frozen if (level := levels.get(node.id)) is not None]
    return 2 * sum(off) > len(off)


def _is_frozen(graph: Graph, node: Node) -> bool:
    return not node.attrs.get("training", graph.mode == "train")


def _settled_level(node: Node) -> float:
    scale, bias = node.weights.get("scale"), node.weights.get("bias")
    if node.op != "batch_norm" or scale is None:
        return 0.0
    square = scale.statistics.mean_square + (bias.statistics.mean_square if bias is not None else 0.0)
    return 0.5 * math.log10(square) if square > 0.0 else -math.inf


def normalises(graph: Graph, node: Node) -> bool:
    """Whether a node divides a signal by its own size: a normalisation, or a product or quotient that spells one out.

    A layer that hides a normalisation counts as one. exp(x) / sum(exp(x)) is a softmax and no normalisation.
    """
    if kind_of(node) is Kind.NORM or hides_norm(node):
        return True
    if node.op not in {"mul", "div"}:
        return False
    operands = graph.parents(node.id)
    if len(operands) != 2 or (node.op == "div" and operands[0].op == "exp"):
        return False
    return any(_is_statistic(graph, operand, roots=node.op == "mul") for operand in operands)


def _is_statistic(graph: Graph, node: Node, *, roots: bool) -> bool:
    """Whether a tensor is a mean, sum or variance behind a few pointwise operators; `roots`: one of them takes a power."""
    powered = False
    for _ in range(_DEEPEST):
        if node.op in _STATISTICS:
            return powered or not roots
        parents = graph.parents(node.id)
        if node.op not in _ON_THE_WAY or len(parents) != 1:
            return False
        powered = powered or node.op in {"sqrt", "rsqrt", "reciprocal", "pow", "div"}
        node = parents[0]
    return False


def has_norm(structure: Structure, residual: ResidualSum) -> bool:
    """Whether anything between the fork and the sum is normalised, or was before its BatchNorm was folded away."""
    nodes = (structure.graph[node] for node in (*residual.skip, *residual.branch))
    return any(normalises(structure.graph, node) for node in nodes)


def starts_at_zero(structure: Structure, residual: ResidualSum) -> bool:
    """Whether the last weight layer or scale of the branch is zero, so that the block starts as the identity."""
    for node_id in reversed(residual.branch):
        node = structure.graph[node_id]
        weight = node.weights.get("weight") or node.weights.get("scale")
        if weight is not None:
            return weight.statistics.mean_square == 0.0
    return False


def on_skip(structure: Structure, residual: ResidualSum) -> list[Node]:
    """Operators on the skip path that make it differ from an identity: weight layers, activations and scales."""
    nodes = (structure.graph[node] for node in residual.skip)
    return [node for node in nodes if is_weight_layer(node) or kind_of(node) in {Kind.ACTIVATION, Kind.MUL}]
