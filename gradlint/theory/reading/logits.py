"""The predicted spread of attention logits, which decides whether a softmax averages values or selects one."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gradlint.graph import Graph, Node
from gradlint.ops import Kind
from gradlint.signal_path import kind_of
from gradlint.theory.prediction import Prediction
from gradlint.theory.transfer.attention import attention_scale, scaled_logits
from gradlint.theory.transfer.signal import Signal

_ON_THE_WAY = frozenset({Kind.ADD, Kind.MUL, Kind.SHAPE, Kind.DROPOUT, Kind.ACTIVATION, Kind.MATH})
_FARTHEST = 10  # largest number of operators (scale, position bias, mask, cap, casts) between the product and the softmax


@dataclass(frozen=True, slots=True)
class Logits:
    """The predicted logits of an attention.

    Attributes:
        node: Id of the softmax or the fused attention.
        deviation: Standard deviation of the logits over the keys.
        keys: Number of keys.
        factors: Ids of the two nodes whose product the logits are.
    """

    node: str
    deviation: float
    keys: int
    factors: tuple[str, str]

    @property
    def concentration(self) -> float:
        """Deviation over sqrt(2 ln keys), the freezing point of a softmax over independent normal logits (Derrida 1981)."""
        return self.deviation / math.sqrt(2.0 * math.log(self.keys))


def logits_of(graph: Graph, prediction: Prediction, node: Node) -> Logits | None:
    """Return the logits of a fused attention, or of a softmax over a product of two signals; None for any other node."""
    if node.op == "attention":
        return _fused(prediction, node)
    if node.op != "softmax" or not node.inputs or node.inputs[0] is None:
        return None
    signal, factors = prediction.signals.get(node.inputs[0].node), _factors(graph, prediction, node)
    if signal is None or factors is None or not signal.sizes:
        return None
    axis = node.attrs.get("dim", node.attrs.get("axis", -1))
    return _logits(node, signal, (axis if isinstance(axis, int) else -1) % len(signal.sizes), factors)


def _fused(prediction: Prediction, node: Node) -> Logits | None:
    refs = [ref for ref in node.inputs[:2] if ref is not None]
    found = [prediction.signals.get(ref.node) for ref in refs]
    query, key = found if len(found) == 2 else (None, None)
    if query is None or key is None or len(query.sizes) != len(key.sizes) or not 2 <= len(query.sizes) <= 8:
        return None
    signal = scaled_logits(query, key, query.sizes, attention_scale(node, query))
    return _logits(node, signal, len(signal.sizes) - 1, (refs[0].node, refs[1].node))


def _logits(node: Node, signal: Signal, axis: int, factors: tuple[str, str]) -> Logits | None:
    if signal.sizes[axis] < 2 or not signal.level < math.inf:
        return None
    own = math.sqrt(max(1.0 - signal.shared[axis], 0.0))
    return Logits(node.id, own * 10.0 ** min(signal.level, 300.0), signal.sizes[axis], factors)


def _factors(graph: Graph, prediction: Prediction, node: Node) -> tuple[str, str] | None:
    """Return the two signals whose product reaches a softmax through scales, biases and masks, or None."""
    for _ in range(_FARTHEST):
        parents = [parent for parent in graph.parents(node.id) if parent.id in prediction.signals]
        if kind_of(node) is Kind.MATMUL:
            return (parents[0].id, parents[1].id) if len(parents) == 2 else None
        if not parents or (node.op != "softmax" and kind_of(node) not in _ON_THE_WAY):
            return None
        node = parents[0]
    return None
