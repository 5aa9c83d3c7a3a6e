"""Propagate signals and cotangents over a whole graph: predicted gains at every node, with their standard deviations.

The method is mean-field theory (Poole et al. 2016, arXiv 1606.05340; Schoenholz et al. 2017, arXiv 1611.01232; Martens et al.
2021, arXiv 2110.01765) on the real weights of the model, with corrections for finite width (Hanin and Nica 2018, arXiv
1812.05994).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from gradlint.graph import Graph, Node, Ref
from gradlint.ops import Kind, operator
from gradlint.signal_path import kind_of
from gradlint.structure import Structure
from gradlint.theory.transfer import attention, fused_recurrence, joins, layers, norms, pointwise, pools, reshaping
from gradlint.theory.transfer.channel_rules import refine_by_channel
from gradlint.theory.transfer.fluctuation import Overlap
from gradlint.theory.transfer.rule import TRANSFER, Call, OperandCotangents, TransferResult, as_gaussian
from gradlint.theory.transfer.signal import Cotangent, CotangentTerm, Signal, cotangent_of_term, joined, merged

_UNKNOWN = (8, 64)  # assumed lengths of a batch axis and of any other axis of unknown length
_MOST_AXES = 16  # largest number of axes of a tensor that is propagated
_SAMPLED = 0.02**2  # decades^2: variance over batches of inputs and cotangents (benchmarks/theory_random.py)
_NEGLECTED = 0.023**2  # decades^2: robust error against the mean of four draws (benchmarks/theory_random.py)
_NO_RULE = 1.0  # decades^2 that an operator without a rule adds: it may change a gradient by a factor of ten

FAMILIES = (attention, fused_recurrence, joins, layers, norms, pointwise, pools, reshaping)
"""The modules whose import fills the table of transfer rules."""


@dataclass(frozen=True, slots=True)
class Predicted:
    """The predicted gains of one node, in decades.

    Attributes:
        backward: Backward gain, 1/2 log10 of the squared gradient for a cotangent of unit energy on the trunk outputs. None if
            no cotangent reaches the node.
        forward: Root mean square of the signal.
        backward_sd: Standard deviation of `backward`.
        forward_sd: Standard deviation of `forward`.
        because: What the theory does not know about the operator, which widens the interval.
    """

    backward: float | None = None
    forward: float | None = None
    backward_sd: float = 0.0
    forward_sd: float = 0.0
    because: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Prediction:
    """Predictions by node id, and the signals and cotangents from which they were computed.

    `prediction[node]` returns the `Predicted` of a node and raises KeyError for a node that was not propagated.
    """

    nodes: Mapping[str, Predicted]
    signals: Mapping[str, Signal]
    cotangents: Mapping[str, Cotangent]

    def __getitem__(self, node: str) -> Predicted:
        return self.nodes[node]


_CONTRADICTIONS = (ArithmeticError, LookupError, MemoryError, TypeError, ValueError)
"""Exceptions that a rule may raise for a graph whose shapes and attributes contradict one another."""


def predict(structure: Structure, *, strict: bool = False, per_channel: bool = True) -> Prediction:
    """Propagate signals forward from the inputs and cotangents backward from the trunk outputs.

    The cost is linear in the size of the graph, and each weight is read once. Inputs are assumed to have unit variance and mean
    zero. The cotangents on the trunk outputs are independent, with a total energy of 1.

    Args:
        structure: The structure of the graph.
        strict: Whether to let a transfer rule raise if shapes or attributes contradict one another. By default such an operator
            counts as one without a rule.
        per_channel: Whether to propagate the moments of single channels through trained weights.

    Returns:
        Predicted gains in decades for every node that a signal reaches.

    Raises:
        ArithmeticError, LookupError, MemoryError, TypeError, ValueError: A transfer rule failed, and `strict` is set.
    """
    forward = _Forward(structure.graph, strict=strict, per_channel=per_channel)
    cotangents = _backward(structure, forward)
    found: dict[str, Predicted] = {}
    for node_id, signal in forward.signals.items():
        cotangent = cotangents.get(node_id)
        backward = None if cotangent is None else 0.5 * cotangent.energy
        spread = 0.0 if cotangent is None else math.sqrt(cotangent.variance + _SAMPLED + _NEGLECTED)
        forward_spread = math.sqrt(signal.variance + _SAMPLED + _NEGLECTED)
        found[node_id] = Predicted(backward, signal.level, spread, forward_spread, forward.because.get(node_id, ()))
    return Prediction(found, forward.signals, cotangents)


class _Forward:
    """The forward pass: the signal and the pullback of each node, and what the theory does not know about it."""

    def __init__(self, graph: Graph, *, strict: bool, per_channel: bool) -> None:
        self.graph = graph
        self._per_channel = per_channel
        self.contradictions: tuple[type[Exception], ...] = () if strict else _CONTRADICTIONS
        self.signals: dict[str, Signal] = {}
        self.pullbacks: dict[str, TransferResult] = {}
        self.because: dict[str, tuple[str, ...]] = {}
        self._fed: set[str] = set()
        for node in graph:
            if node.op == "input" or any(ref is not None and ref.node in self._fed for ref in node.inputs):
                self._fed.add(node.id)
            self._visit(node)

    def _visit(self, node: Node) -> None:
        if not node.is_float:
            return
        operands = tuple(self.signals.get(ref.node) if ref is not None else None for ref in node.inputs)
        sizes = _sizes(node, operands)
        if len(sizes) > _MOST_AXES:
            return
        if node.op == "input":
            channels = 1 if len(sizes) > 2 else len(sizes) - 1
            self.signals[node.id] = Signal(0.0, sizes, (0.0,) * len(sizes), 0.0, channels if sizes else None)
            return
        call = Call(node, operands, sizes, self.graph.mode == "train")
        result = layers.embedding(call, fed=node.id in self._fed) if kind_of(node) is Kind.EMBEDDING else self._transfer(call)
        if result is None:
            result = _unknown(call)
        if result is None:
            return
        output = result.signal
        if output.channels is not None and output.channels >= len(output.sizes):  # contradictory shapes
            output = replace(output, channels=None)
        self.signals[node.id] = output
        self.pullbacks[node.id] = result
        if result.because:
            self.because[node.id] = result.because

    def _transfer(self, call: Call) -> TransferResult | None:
        if not call.signals:
            return None
        rule = TRANSFER.find(call.node.op)
        if rule is None or any(len(s.sizes) != len(s.shared) for _, s in call.signals):
            return None
        try:
            result = rule(call)
            return refine_by_channel(call, result) if result is not None and self._per_channel else result
        except self.contradictions:
            return None


def _sizes(node: Node, operands: Sequence[Signal | None]) -> tuple[int, ...]:
    """Return the length of each axis of a node's output, or those of its first operand if the shape is unknown."""
    if node.shape is None:
        return next((signal.sizes for signal in operands if signal is not None), ())
    return tuple(size if size is not None else _UNKNOWN[min(axis, 1)] for axis, size in enumerate(node.shape))


def _unknown(call: Call) -> TransferResult | None:
    """Return the transfer of an operator without a rule: the level stays the same, and the variance grows."""
    found = call.signals
    if not found:
        return None
    widest = max((signal for _, signal in found), key=lambda signal: signal.size)
    same = len(widest.sizes) == len(call.sizes)
    shared = widest.shared if same else (0.0,) * len(call.sizes)
    output = as_gaussian(widest, sizes=call.sizes, shared=shared, channels=None, variance=widest.variance + _NO_RULE)

    def back(terms: Sequence[CotangentTerm]) -> OperandCotangents:
        cotangent = joined(terms, output)
        for slot, signal in found:
            correlation = cotangent.correlation if len(signal.sizes) == len(cotangent.correlation) else (0.0,) * len(signal.sizes)
            yield slot, CotangentTerm(Cotangent(cotangent.energy, correlation, cotangent.variance + _NO_RULE))

    return TransferResult(output, back, (f"no rule for {call.node.op}",))


def _backward(structure: Structure, forward: _Forward) -> dict[str, Cotangent]:
    """Run the backward pass over the signal path, and return the cotangent of each node that one reaches."""
    graph = structure.graph
    terms: dict[str, list[CotangentTerm]] = defaultdict(list)
    for ref, term in _starts(structure.trunk, forward.signals):
        terms[ref.node].append(term)
    cotangents: dict[str, Cotangent] = {}
    for node_id in reversed(structure.signal):
        own, signal = terms.pop(node_id, None), forward.signals.get(node_id)
        if not own or signal is None:
            continue
        own = merged(own)
        own = [term for term in own if len(term.cotangent.correlation) == len(signal.sizes)]  # contradictory shapes
        if not own:
            continue
        own = [
            CotangentTerm(
                term.cotangent, term.root or f"{node_id}#{index}", term.slope, term.values, cotangent_of_term(term, signal)
            )
            for index, term in enumerate(own)
        ]
        cotangent = joined(own, signal)
        if math.isnan(cotangent.energy):  # 0/0
            continue
        cotangents[node_id] = cotangent
        result = forward.pullbacks.pop(node_id, None)  # it holds arrays
        if result is None or operator(graph[node_id].op).cuts:
            continue
        try:
            back = list(result.pullback(own))
        except forward.contradictions:
            continue
        for slot, term in back:
            operand = graph[node_id].inputs[slot]
            if operand is not None and operand.node in structure.signal_set:
                terms[operand.node].append(term)
    return cotangents


def _starts(trunk: Iterable[Ref], signals: Mapping[str, Signal]) -> Iterable[tuple[Ref, CotangentTerm]]:
    """Yield independent cotangents on the trunk outputs, with a total energy of 1."""
    ends = [(ref, signals[ref.node]) for ref in trunk if ref.node in signals]
    total = sum(signal.size for _, signal in ends)
    for ref, signal in ends:
        energy = math.log10(signal.size / total) if total and signal.size else -math.inf if total else 0.0
        own = 1.0 / max(signal.sizes[signal.channels if signal.channels is not None else -1], 1) if signal.sizes else 1.0
        yield ref, CotangentTerm(Cotangent(energy, (0.0,) * len(signal.sizes), overlap=Overlap(own, own)))
