"""Masks: numbers such as -100, -1e4 or -inf that are added to logits, or put in their place, to rule out some of them.

They are no signal: no weight takes part in them, and a softmax turns them into zeros.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from gradlint.graph import Graph, Node, Weight
from gradlint.ops import Kind
from gradlint.signal_path import is_weight_layer, kind_of

_ON_THE_WAY = frozenset({Kind.ADD, Kind.MUL, Kind.SHAPE, Kind.DROPOUT, Kind.ACTIVATION, Kind.MATH})
_FARTHEST = 12  # the most operators between a mask and its softmax
_FILLS = frozenset({"masked_fill", "where"})
_OPERANDS = 3  # queries, keys and values come before the mask of a fused attention
_RULES_OUT = -100.0  # a number from which on it rules out a logit
_EXTREMES = frozenset({"copy", "copy_", "minimum", "maximum", "min", "max", "Min", "Max"})
_MIXING = frozenset({Kind.LINEAR, Kind.CONV, Kind.RNN, Kind.EMBEDDING, Kind.NORM})


def broken_weights(node: Node) -> list[Weight]:
    """Return the weights of a node that hold NaN or infinity. A fixed tensor that is -inf in some places is a mask."""
    broken = [weight for weight in node.weights.values() if not weight.statistics.finite]
    if kind_of(node) not in _MIXING:
        broken = [weight for weight in broken if not _rules_out(weight) and not (_is_extreme(weight) and _takes_extremes(node))]
    return broken


def _is_extreme(weight: Weight) -> bool:
    """Return whether a fixed tensor is infinite everywhere with one sign, as a running minimum or maximum starts."""
    values = weight.array()
    return not weight.trainable and values.size > 0 and bool((values == np.inf).all() or (values == -np.inf).all())


def _takes_extremes(node: Node) -> bool:
    """Return whether a node may write over a running minimum or maximum, or be the minimum or maximum itself."""
    return node.op == "unknown" or node.called in _EXTREMES


def _is_fixed(weight: Weight, sign: float) -> bool:
    """Return whether a summand does not learn. An ONNX file does not say so of one made of zeros and a number that rules out."""
    found = weight.statistics
    number = sign * found.max_abs
    zeros = abs(found.mean_square + found.mean * number) <= 1e-6 * found.mean_square
    return not weight.trainable or (found.max_abs >= -_RULES_OUT and zeros)


def _rules_out(weight: Weight) -> bool:
    """Return whether a weight is -inf in some places, and zero in the others if an ONNX file or a module says that it learns."""
    values = weight.array()
    finite = np.isfinite(values)
    is_fixed = not weight.trainable or weight.statistics.max_abs == 0.0
    return is_fixed and bool(finite.any()) and bool((values[~finite] == -np.inf).all())


@dataclass(frozen=True)
class Masks:
    """The masks of one graph."""

    graph: Graph

    @cached_property
    def learned(self) -> frozenset[str]:
        """The nodes that depend on a weight that learns, or on one that mixes units."""
        found: set[str] = set()
        for node in self.graph:
            own = is_weight_layer(node) or kind_of(node) is Kind.EMBEDDING or any(w.trainable for w in node.weights.values())
            if own or any(parent.id in found for parent in self.graph.parents(node.id)):
                found.add(node.id)
        return frozenset(found)

    @cached_property
    def made(self) -> frozenset[str]:
        """The nodes that do nothing but make masks, with the inputs that are masks themselves."""
        found = {node for made, _ in self._found for node in made}
        for node in reversed(list(self.graph)):
            readers = {child.id for child in self.graph.children(node.id) if child.is_float}
            if not readers <= found | self.masked:  # more than a mask
                found.discard(node.id)
        return frozenset(found)

    @cached_property
    def masked(self) -> frozenset[str]:
        """The nodes that read masks, and those from there on to the softmax: logits with some of them ruled out."""
        return frozenset(node for _, masked in self._found for node in masked)

    def beside(self, node: Node) -> list[Node]:
        """Return the operands of a sum or a fused attention that are masks: tensors in which no weight takes part."""
        parents = self.graph.parents(node.id)
        if kind_of(node) is Kind.ATTENTION:
            return [parent for parent in parents[_OPERANDS:] if parent.id not in self.learned]
        if kind_of(node) is not Kind.ADD or not any(parent.id in self.learned for parent in parents):
            return []
        return [parent for parent in parents if parent.id not in self.learned]

    def is_masked_by(self, node: Node) -> bool:
        """Return whether a node adds a mask, a tensor or a fixed weight, or writes one into logits."""
        sign = -1.0 if node.op == "sub" else 1.0
        fixed = kind_of(node) is Kind.ADD and any(_is_fixed(weight, sign) for weight in node.weights.values())
        return fixed or bool(self.beside(node)) or node.called.lower() in _FILLS

    def broken(self, node: Node) -> list[Weight]:
        """Return the weights of a node that hold NaN or infinity and are no mask."""
        return broken_weights(node)

    @cached_property
    def _found(self) -> list[tuple[set[str], set[str]]]:
        """For each softmax, fused attention and output: what makes its masks, and what it reads that is masked."""
        return [*self._before_softmax(), *self._before_outputs()]

    def _before_softmax(self) -> Iterator[tuple[set[str], set[str]]]:
        for node in self.graph:
            if kind_of(node) is Kind.ATTENTION:
                yield self._makers(self.beside(node)), {node.id}
            elif kind_of(node) is Kind.SOFTMAX or node.op == "log_softmax":
                yield self._walk([parent.id for parent in self.graph.parents(node.id)], {node.id})

    def _before_outputs(self) -> Iterator[tuple[set[str], set[str]]]:
        """Logits that a model returns masked: a number that rules out, or a log of zeros and ones, shows it."""
        for ref in self.graph.outputs:
            made, masked = self._walk([ref.node], set())
            if any(_number(self.graph[node]) <= _RULES_OUT or self.graph[node].op == "log" for node in made):
                yield made, masked

    def _walk(self, starts: Iterable[str], masked: set[str]) -> tuple[set[str], set[str]]:
        """Walk from a softmax back to the product that makes its logits."""
        made: set[str] = set()
        level, behind = list(starts), {start: {start} for start in starts}
        for _ in range(_FARTHEST):
            fresh: list[str] = []
            for at in level:
                node = self.graph[at]
                if kind_of(node) not in _ON_THE_WAY:
                    continue
                if self.is_masked_by(node):
                    masked |= behind[at]
                    made |= self._makers(self.beside(node))
                for parent in self.graph.parents(at):
                    if parent.id in self.learned and parent.id not in behind:
                        behind[parent.id] = behind[at] | {parent.id}
                        fresh.append(parent.id)
            level = fresh
        return made, masked

    def _makers(self, masks: Iterable[Node]) -> set[str]:
        stack = [node.id for node in masks]
        found = set(stack)
        while stack:
            fresh = {parent.id for parent in self.graph.parents(stack.pop())} - found
            found |= fresh
            stack.extend(fresh)
        return found


def _number(node: Node) -> float:
    constant = node.attrs.get("constant")
    return constant if isinstance(constant, float) else 0.0
