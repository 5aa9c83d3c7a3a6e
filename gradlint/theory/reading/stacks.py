"""Stacks of one repeated layer on the spine, and their phase."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from gradlint.graph import Node, Weight
from gradlint.ops import Kind, attributes_of
from gradlint.signal_path import is_weight_layer, kind_of
from gradlint.structure import Structure
from gradlint.theory.branches import hides_norm
from gradlint.theory.gaussian.integrals import Key, parameters
from gradlint.theory.initialization import is_constant, looks_initialized
from gradlint.theory.reading.phase import Phase, phase
from gradlint.theory.reading.steps import Step, main_weight, squared_gain
from gradlint.theory.reading.trends import is_plain

_FEWEST = 8  # smallest number of layers to which the limit of infinite depth applies
_ALIKE = 1.25  # largest factor between the gains of one stack
_OFF = 0.05  # decades per layer between phase and prediction above which the phase does not describe the stack
_NORMS = frozenset({"batch_norm", "layer_norm", "rms_norm", "group_norm"})


@dataclass(frozen=True, slots=True)
class Stack:
    """A segment of the spine that repeats one layer `layers` times, from node `start` to node `end`, with its phase."""

    phase: Phase
    layers: int
    start: str
    end: str

    def __str__(self) -> str:
        found, gain = self.phase, f"gain {self.phase.gain:.2f}"
        state = f"near critical ({found.name})" if found.name != "critical" and self.depth > 2 * self.layers else found.name
        if found.critical is not None:
            state += f", {gain}, critical {found.critical:.2f}" + (f" behind {found.norm}" if found.norm else "")
        else:
            state += f" at any gain behind {found.norm} ({gain})" if found.norm else f", {gain}, no gain is critical"
        if found.name == "critical" or not math.isfinite(self.depth):
            return f"{state}: the gradient keeps its size"
        return f"{state}: e-fold {'growth' if found.chi > 1.0 else 'decay'} every {self.depth:.1f} layers"

    @property
    def depth(self) -> float:
        """Number of layers over which the norm of the gradient changes by a factor e."""
        return 2.0 * self.phase.gradient_depth


@dataclass(frozen=True, slots=True)
class _Layer:
    """One layer of a stack: weight layer, added bias, normalization if any, and activation; `decades` is the growth over all."""

    nodes: tuple[Node, ...]
    gain: float
    bias: float
    norm: str | None
    op: str
    key: Key
    decades: float

    @property
    def kind(self) -> tuple[str | None, str, Key]:
        """The properties that all layers of one stack share."""
        return self.norm, self.op, self.key


def stack(structure: Structure, steps: Sequence[Step]) -> Stack | None:
    """Return the longest stack of one repeated plain layer with its phase, or None.

    A phase is that of random weights at infinite depth. The weights must therefore look randomly initialized, and the predicted
    growth per layer must agree with the phase. `steps` are the predicted steps of the spine.
    """
    runs = [run for run in _runs(structure, steps) if len(run) >= _FEWEST]
    run = max(runs, key=len, default=None)
    if run is None or not looks_initialized(_weight(layer) for layer in run):
        return None
    gains = sorted(layer.gain for layer in run)
    low, high = gains[len(gains) // 10], gains[-1 - len(gains) // 10]
    if not 0.0 < high <= _ALIKE * low:
        return None
    first = run[0]
    found = phase(first.op, first.key, median(gains), fmean(layer.bias for layer in run), first.norm)
    later = run[len(run) // 2 :]
    if abs(fmean(layer.decades for layer in later) - found.decades) > _OFF:
        return None
    return Stack(found, len(run), first.nodes[0].id, run[-1].nodes[-1].id)


def _weight(layer: _Layer) -> Weight:
    weight = main_weight(layer.nodes[0])
    assert weight is not None
    return weight


def _runs(structure: Structure, steps: Sequence[Step]) -> Iterator[list[_Layer]]:
    """Yield runs of consecutive layers of one kind."""
    run: list[_Layer] = []
    index = 0
    while index < len(steps):
        layer = _layer(structure, steps, index)
        if run and (layer is None or layer.kind != run[-1].kind):
            yield run
            run = []
        if layer is not None:
            run.append(layer)
        index += len(layer.nodes) if layer is not None else 1
    if run:
        yield run


def _layer(structure: Structure, steps: Sequence[Step], index: int) -> _Layer | None:
    """Return the layer that starts with a step, or None if there is no plain layer."""
    graph = structure.graph
    weight = main_weight(graph[steps[index].node])
    if weight is None or graph[steps[index].node].op not in {"linear", "conv"}:
        return None
    nodes: list[Node] = []
    norm, bias = None, 0.0
    for step in steps[index : index + 4]:
        node = graph[step.node]
        if step.decades is None or not is_plain(structure, step) or hides_norm(node):
            return None
        nodes.append(node)
        if len(nodes) == 1 or (node.op == "add" and norm is None and _is_bias(node)):
            bias += sum(found.statistics.mean_square for role, found in node.weights.items() if role == "bias")
        elif kind_of(node) is Kind.NORM and norm is None and _is_pure(node, training=graph.mode == "train"):
            norm = node.op
        elif kind_of(node) is Kind.ACTIVATION:
            decades = sum(step.decades or 0.0 for step in steps[index : index + len(nodes)])
            return _Layer(tuple(nodes), math.sqrt(squared_gain(weight)), bias, norm, node.op, _key(node), decades)
        else:
            return None
    return None


def _is_bias(node: Node) -> bool:
    return not is_weight_layer(node) and set(node.weights) == {"bias"}


def _is_pure(node: Node, *, training: bool) -> bool:
    """Return whether a norm uses the statistics of its input, with scale 1 and bias 0."""
    scale, bias = node.weights.get("scale"), node.weights.get("bias")
    if scale is not None and not (is_constant(scale) and abs(scale.statistics.mean - 1.0) < 1e-6):
        return False
    if bias is not None and bias.statistics.max_abs > 0.0:
        return False
    on_batch = bool(node.attrs.get("training", training)) or "running_var" not in node.weights
    return node.op in _NORMS and (node.op != "batch_norm" or on_batch)


def _key(node: Node) -> Key:
    return parameters(node.op, attributes_of(node))
