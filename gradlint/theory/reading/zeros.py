"""Which weights of zeros open by themselves: exact zeros block signals and gradients, until a first update moves them.

A weight of zeros moves if its operand is not zero and its result gets a gradient, and with it moved others may: a gain of zero
opens a head of zeros behind a gate of zeros, one update after the other. What never moves is shut for good.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np

from gradlint.graph import Graph, Node
from gradlint.ops import Kind
from gradlint.signal_path import kind_of, passes_gradient
from gradlint.theory.gaussian.functions import function_of

_PRODUCTS = frozenset({Kind.LINEAR, Kind.CONV, Kind.MATMUL, Kind.MUL, Kind.EMBEDDING, Kind.NORM})
_MOVES = frozenset({Kind.SHAPE, Kind.DROPOUT, Kind.POOL, Kind.REDUCE, Kind.CONCAT, Kind.ADD})
_POINTWISE = frozenset({Kind.ACTIVATION, Kind.MATH, Kind.MUL, Kind.ADD})
_FLAT_AT_ZERO = frozenset({"abs", "square", "pow"})


def shut_weights(graph: Graph) -> frozenset[str]:
    """Return the names of trainable weights of zeros that get no gradient, however many updates are made."""
    zeros = {weight.name for weight in graph.weights.values() if weight.statistics.max_abs == 0.0}
    trainable = {name for name in zeros if graph.weights[name].trainable}
    while trainable:
        opened = set(_moved(graph, zeros)) & trainable
        if not opened:
            break
        zeros -= opened
        trainable -= opened
    return frozenset(trainable)


def _moved(graph: Graph, zeros: Collection[str]) -> Iterator[str]:
    """Yield the weights that get a gradient while those of `zeros` are zero."""
    silent = _silent(graph, zeros)
    reached = _reached(graph, zeros, silent)
    for node in graph:
        if node.id in reached:
            fed = not any(parent.id in silent for parent in graph.parents(node.id))
            for role, weight in node.weights.items():
                if fed or "bias" in role or kind_of(node) not in _PRODUCTS:
                    yield weight.name


def _silent(graph: Graph, zeros: Collection[str]) -> set[str]:
    """Return the nodes whose output is exactly zero."""
    found: set[str] = set()
    for node in graph:
        parents = [parent.id in found for parent in graph.parents(node.id) if parent.is_float]
        factors, terms = _weights(node, zeros)
        kind = kind_of(node)
        if kind in _PRODUCTS and (any(parents) or any(factors)):
            silent = all(terms)
        elif kind in _MOVES and parents and not any(ref is None for ref in node.inputs):
            silent = all(parents) and all(factors) and all(terms)
        else:
            silent = bool(parents) and all(parents) and kind in _POINTWISE and _at(node, 0.0) == 0.0
        if silent:
            found.add(node.id)
    return found


def _reached(graph: Graph, zeros: Collection[str], silent: Collection[str]) -> set[str]:
    """Return the nodes whose output gets a gradient."""
    found = {ref.node for ref in graph.outputs}
    for node in reversed(list(graph)):
        if node.id not in found or not passes_gradient(node):
            found.discard(node.id)
            continue
        parents = [parent.id for parent in graph.parents(node.id)]
        blocked = kind_of(node) in _PRODUCTS and any(_weights(node, zeros)[0])
        for parent in parents:
            others = [other for other in parents if other != parent]
            product = kind_of(node) in _PRODUCTS and any(other in silent for other in others)
            flat = parent in silent and kind_of(node) in _POINTWISE and _is_flat_at_zero(node)
            if not (blocked or product or flat):
                found.add(parent)
    return found


def _weights(node: Node, zeros: Collection[str]) -> tuple[list[bool], list[bool]]:
    """Return which factors of a node are zero, and which of the terms that it adds."""
    factors = [weight.name in zeros for role, weight in node.weights.items() if "bias" not in role and "running" not in role]
    return factors, [weight.name in zeros for role, weight in node.weights.items() if "bias" in role]


def _at(node: Node, value: float) -> float:
    function = function_of(node)
    with np.errstate(all="ignore"):
        return float(np.asarray(function(np.array([value])))[0]) if function is not None else np.nan


def _is_flat_at_zero(node: Node) -> bool:
    """Return whether the derivative at zero is zero; that of a ReLU is, by convention."""
    return node.op in _FLAT_AT_ZERO or _at(node, -1e-3) == _at(node, 0.0)
