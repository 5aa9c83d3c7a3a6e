"""Facts about residual branches: whether they contain a normalization, and whether they are zero at initialization."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from gradlint.graph import Graph, Node
from gradlint.ops import Kind
from gradlint.signal_path import is_weight_layer, kind_of
from gradlint.structure import ResidualSum, Structure

_ON_THE_WAY = frozenset({"sqrt", "rsqrt", "reciprocal", "pow", "add", "mul", "div", "clamp", "maximum", "reshape", "cast"})
_STATISTICS = frozenset({"mean", "sum", "var"})
_DEEPEST = 8  # largest number of operators (add eps, clamp, sqrt, reciprocal, casts) between a statistic and the division by it
_HIDDEN = frozenset({"batch-norm-folded", "batch-norm-may-be-folded"})  # notes of the ONNX reader
_OFF = 0.5  # decades by which a level differs from that of a BatchNorm if running statistics are wrong by a factor of 3


def hides_norm(node: Node) -> bool:
    """Return whether a BatchNorm was, or may have been, folded into a layer, whose weights then differ from the initial ones."""
    return not _HIDDEN.isdisjoint(node.notes)


def are_unsettled(graph: Graph, nodes: Iterable[Node], levels: Mapping[str, float | None]) -> bool:
    """Return whether most frozen BatchNorms among the nodes, visible or folded, have statistics that do not match their input.

    The output of a BatchNorm has the mean square gamma^2 + beta^2 in train mode, and in eval mode if its running statistics are
    those of its input. A folded BatchNorm counts as one with gamma 1 and beta 0.

    Args:
        graph: The graph.
        nodes: The nodes to look at.
        levels: Forward levels by node id, in decades.
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


def normalizes(graph: Graph, node: Node) -> bool:
    """Return whether a node divides a signal by its own size.

    This is a normalization layer, a layer with a folded normalization, or the product or quotient of a hand-written
    normalization. exp(x) / sum(exp(x)) is a softmax and does not count.
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
    """Return whether a tensor is a mean, sum or variance followed by a few pointwise operators.

    With `roots`, one of these operators must be a root, a power or a division.
    """
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
    """Return whether there is a normalization, possibly folded, on the branch or the skip path of a residual sum."""
    nodes = (structure.graph[node] for node in (*residual.skip, *residual.branch))
    return any(normalizes(structure.graph, node) for node in nodes)


def starts_at_zero(structure: Structure, residual: ResidualSum) -> bool:
    """Return whether the last weight or scale of the branch is zero, so that the block is the identity at initialization."""
    for node_id in reversed(residual.branch):
        node = structure.graph[node_id]
        weight = node.weights.get("weight") or node.weights.get("scale")
        if weight is not None:
            return weight.statistics.mean_square == 0.0
    return False


def on_skip(structure: Structure, residual: ResidualSum) -> list[Node]:
    """Return the operators on the skip path that make it differ from an identity: weight layers, activations and scales."""
    nodes = (structure.graph[node] for node in residual.skip)
    return [node for node in nodes if is_weight_layer(node) or kind_of(node) in {Kind.ACTIVATION, Kind.MUL}]
