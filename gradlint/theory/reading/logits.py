"""The predicted spread of attention logits, which decides whether a softmax averages values or selects one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from gradlint.graph import Graph, Node
from gradlint.masks import Masks
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


def logits_of(masks: Masks, prediction: Prediction, node: Node) -> Logits | None:
    """Return the logits of a fused attention, or of a softmax over a product of two signals; None for any other node.

    What is added to them in which no weight takes part, such as a mask of -100, is left out.
    """
    if node.op == "attention":
        return _fused(prediction, node)
    if node.op != "softmax" or not node.inputs or node.inputs[0] is None:
        return None
    signal, path = prediction.signals.get(node.inputs[0].node), _path(masks.graph, prediction, node)
    if signal is None or path is None or not signal.sizes:
        return None
    product = masks.graph.parents(path[-1].id)
    axis = node.attrs.get("dim", node.attrs.get("axis", -1))
    axis = (axis if isinstance(axis, int) else -1) % len(signal.sizes)
    unmasked, decades = _without_masks(masks, prediction, path)
    if unmasked is not None and unmasked.sizes[axis - len(signal.sizes) :][:1] == (signal.sizes[axis],):
        axis, signal = axis - len(signal.sizes), replace(unmasked, level=unmasked.level + decades)
    return _logits(node, signal, axis, (product[0].id, product[1].id))


def _without_masks(masks: Masks, prediction: Prediction, path: Sequence[Node]) -> tuple[Signal | None, float]:
    """Return the logits before the first mask that is added to them, and the decades by which they are scaled after it.

    `path` leads from the softmax back to the product. The result is None if no mask is added.
    """
    found, decades, scaled = None, 0.0, 0.0
    for node, before in pairwise(path):
        constant = node.attrs.get("constant")
        if kind_of(node) is Kind.MUL and isinstance(constant, float) and constant:
            scaled += math.log10(abs(constant)) * (-1.0 if node.op == "div" else 1.0)
        if kind_of(node) is Kind.ADD and masks.is_masked_by(node):
            found, decades = prediction.signals.get(before.id), scaled
    return found, decades


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


def _path(graph: Graph, prediction: Prediction, node: Node) -> list[Node] | None:
    """Return the nodes from a softmax back to the product of two signals that its logits are, or None.

    Between the two lie scales, biases and masks.
    """
    paths = [[node]]
    for _ in range(_FARTHEST):
        longer = []
        for path in paths:
            at = path[-1]
            parents = [parent for parent in graph.parents(at.id) if parent.id in prediction.signals]
            if kind_of(at) is Kind.MATMUL and len(parents) == 2:
                return path
            if at is node or kind_of(at) in _ON_THE_WAY:
                longer += [[*path, parent] for parent in parents]
        paths = longer[:_FARTHEST]
    return None
