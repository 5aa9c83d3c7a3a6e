"""Residual branches: whether something normalises them, and how much of the gradient they can add."""

from __future__ import annotations

import math

from gradlint.flow import is_weight_layer, kind_of
from gradlint.graph import Graph, Node
from gradlint.ops import Kind
from gradlint.structure import ResidualSum, Structure
from gradlint.theory.gaussian import moments
from gradlint.theory.propagation import Step, squared_gain

_ON_THE_WAY = frozenset({"sqrt", "rsqrt", "reciprocal", "pow", "add", "mul", "div", "clamp", "maximum", "reshape", "cast"})
_STATISTICS = frozenset({"mean", "sum", "var"})
_DEEPEST = 8  # operators between a statistic and the division by it: mean, add eps, clamp, sqrt, reciprocal, casts


def normalises(graph: Graph, node: Node) -> bool:
    """Whether a node divides a signal by its own size: a normalisation, or a product or quotient that spells one out.

    exp(x) / sum(exp(x)) is a softmax and no normalisation.
    """
    if kind_of(node) is Kind.NORM:
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
    return any("batch-norm-folded" in node.notes or normalises(structure.graph, node) for node in nodes)


def starts_at_zero(structure: Structure, residual: ResidualSum) -> bool:
    """Whether the last weight layer or scale of the branch is zero, so that the block starts as the identity."""
    for node_id in reversed(residual.branch):
        node = structure.graph[node_id]
        weight = node.weights.get("weight") or node.weights.get("scale")
        if weight is not None:
            return weight.statistics.mean_square == 0.0
    return False


def sum_growth(structure: Structure, step: Step) -> float:
    """Decades that a residual sum adds: the predicted ones, else those of a branch that adds at most what the skip carries.

    Independent paths add their squared gains: 1/2 log10(1 + g), 1/2 log10 2 for a branch of gain one (Zhang 2019, 1901.09321).
    Where theory cannot follow the branch, g is the largest product of squared gains along its paths, cut off at 1: a softmax
    that averages makes it smaller, never larger.
    """
    if step.decades is not None or step.residual is None:
        return step.decades or 0.0
    gains: dict[str, float] = {step.residual.fork: 1.0}
    inside = set(step.residual.branch)
    for node_id in step.residual.branch:
        reaching = [gains[parent] for parent in structure.signal_parents(node_id) if parent in gains]
        gains[node_id] = max(reaching, default=0.0) * _own_gain(structure.graph[node_id])
    ends = [gains[parent] for parent in structure.signal_parents(step.node) if parent in inside]
    return 0.5 * math.log10(1.0 + min(max(ends, default=0.0), 1.0))


def _own_gain(node: Node) -> float:
    """Squared gain of one operator on its own, 1 where it is not known."""
    if is_weight_layer(node):
        return math.prod(
            squared_gain(weight) for role, weight in node.weights.items() if "bias" not in role and len(weight.shape) > 1
        )
    kind = kind_of(node)
    if kind is Kind.ACTIVATION:
        found = moments(node.op, 1.0, node.attrs)
        return found.slope if found is not None else 1.0
    return _scale(node) if kind is Kind.MUL else 1.0


def _scale(node: Node) -> float:
    scale, constant = node.weights.get("scale"), node.attrs.get("constant")
    square = scale.statistics.mean_square if scale is not None else 1.0
    if isinstance(constant, (int, float)):
        square *= float(constant) * float(constant)  # a product overflows to infinity, a power raises
    return square if node.op == "mul" or square == 0.0 else 1.0 / square
