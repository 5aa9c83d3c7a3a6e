"""Signal propagation along the spine: the squared gradient factor of every step that theory can follow.

State per tensor: q = E h^2, c = the part of q that two inputs share, mean = E h over units (THEORY section 1). A step whose
operators are not all understood has no factor, and the state starts afresh behind it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from gradlint.flow import is_weight_layer, kind_of
from gradlint.graph import Node, Weight
from gradlint.ops import Kind
from gradlint.structure import ResidualSum, Structure
from gradlint.theory.gaussian import moments, shared_moment

_TINY = 1e-300
_HUGE = 1e100  # second moment of a signal that has left the range of any training; its square still fits a float
_NEUTRAL = frozenset({Kind.SHAPE, Kind.POOL})


@dataclass(frozen=True, slots=True)
class State:
    """Second moment, the part of it that is constant over the batch, and the mean over units."""

    q: float = 1.0
    c: float = 0.0
    mean: float = 0.0


@dataclass(frozen=True, slots=True)
class Step:
    """From one spine node to the next: `decades` is 1/2 log10 of the squared gradient factor, None where unknown.

    `via` holds the nodes of the step in order, the spine node it ends in last; `state` is the state behind it.
    """

    node: str
    via: tuple[str, ...]
    decades: float | None
    state: State
    residual: ResidualSum | None = None
    branch: float | None = None  # squared gain of the residual branch


def main_weight(node: Node) -> Weight | None:
    """The weight that a weight layer multiplies by, None when it has none."""
    return node.weights.get("weight") if is_weight_layer(node) else None


def squared_gain(weight: Weight) -> float:
    """fan_in times mean square: the sum of squares per output unit (THEORY section 2)."""
    return weight.fan_in * weight.statistics.mean_square


def propagate(structure: Structure) -> tuple[Step, ...]:
    """Follow the spine from its first node to its last; one step per pair of neighbours."""
    graph, spine = structure.graph, structure.spine
    state = _start(graph[spine[0]]) if spine else State()
    steps = []
    for before, after in itertools.pairwise(spine):
        residual = structure.residual_sum(after)
        if structure.signal_parents(after) == [before]:
            moved = _through(graph[after], state, graph.mode)
            step = Step(after, (after,), _decades(moved), moved[0] if moved else State())
        elif residual is not None and residual.fork == before:
            step = _residual(structure, residual, state)
        else:
            step = Step(after, (after,), None, State())
        steps.append(step)
        state = step.state
    return tuple(steps)


def _start(node: Node) -> State:
    weight = node.weights.get("weight")
    return State(q=weight.statistics.mean_square) if weight is not None else State()


def _decades(moved: tuple[State, float] | None) -> float | None:
    return None if moved is None else _half_log(moved[1])


def _half_log(factor: float) -> float:
    return 0.5 * math.log10(min(max(factor, _TINY), 1.0 / _TINY))


def _residual(structure: Structure, residual: ResidualSum, state: State) -> Step:
    via = (*residual.skip, *residual.branch, residual.node)
    skip = _along(structure, residual.skip, residual.fork, state)
    branch = _along(structure, residual.branch, residual.fork, state)
    if skip is None or branch is None:
        return Step(residual.node, via, None, State(), residual)
    joined = State(skip[0].q + branch[0].q, skip[0].c + branch[0].c, skip[0].mean + branch[0].mean)
    return Step(residual.node, via, _half_log(skip[1] + branch[1]), _bounded(joined), residual, branch[1])


def _along(structure: Structure, nodes: Sequence[str], fork: str, state: State) -> tuple[State, float] | None:
    """State and squared factor behind a plain run of nodes; None when it parts again or is not understood."""
    factor, before = 1.0, fork
    for node_id in nodes:
        if structure.signal_parents(node_id) != [before]:
            return None
        moved = _through(structure.graph[node_id], state, structure.graph.mode)
        if moved is None:
            return None
        state, factor, before = moved[0], factor * moved[1], node_id
    return state, factor


def _through(node: Node, state: State, mode: str) -> tuple[State, float] | None:
    """State behind one operator and its squared gradient factor; None where there is no rule."""
    moved = _moved(node, state, mode)
    return None if moved is None else (_bounded(moved[0]), moved[1])


def _bounded(state: State) -> State:
    """The state of a signal that any number of layers made larger, scaled back to one that floats can hold."""
    if state.q <= _HUGE:
        return state
    scale = _HUGE / state.q if state.q < math.inf else 0.0
    return State(_HUGE, state.c * scale if scale else 0.0, state.mean * math.sqrt(scale))


def _moved(node: Node, state: State, mode: str) -> tuple[State, float] | None:
    kind = kind_of(node)
    if kind in {Kind.LINEAR, Kind.CONV}:
        return _layer(node, state)
    if kind is Kind.ACTIVATION:
        return _activation(node, state)
    if kind is Kind.NORM:
        return _norm(node, state, mode)
    if kind in _NEUTRAL:
        return state, 1.0
    if kind is Kind.DROPOUT:
        p = float(node.attrs.get("p", 0.0)) if node.attrs.get("training", mode == "train") else 0.0
        keep = max(1.0 - p, 1e-6)
        return replace(state, q=state.q / keep), 1.0 / keep
    if kind in {Kind.ADD, Kind.MUL}:
        return _affine(node, state)
    return None


def _layer(node: Node, state: State) -> tuple[State, float] | None:
    weight = main_weight(node)
    if weight is None:
        return None
    gain, bias = squared_gain(weight), node.weights.get("bias")
    shift = bias.statistics.mean_square if bias is not None else 0.0
    return State(gain * state.q + shift, gain * state.c + shift), gain


def _activation(node: Node, state: State) -> tuple[State, float] | None:
    q = max(state.q, 1e-30)
    found = moments(node.op, q, node.attrs)
    shared = shared_moment(node.op, q, state.c, node.attrs)
    if found is None or shared is None:
        return None
    return State(found.second, min(shared, found.second), found.mean), found.slope


def _norm(node: Node, state: State, mode: str) -> tuple[State, float] | None:
    scale, eps = node.weights.get("scale"), float(node.attrs.get("eps", node.attrs.get("epsilon", 1e-5)))
    gamma = scale.statistics.mean_square if scale is not None else 1.0
    if node.op == "batch_norm":
        running = node.weights.get("running_var")
        if running is not None and not node.attrs.get("training", mode == "train"):
            variance = np.maximum(running.matrix().reshape(-1) + eps, 1e-30)
            squares = scale.matrix().reshape(-1) ** 2 if scale is not None else np.ones_like(variance)
            # running statistics are those of the data, so the output has the moments of the affine map
            return State(gamma, 0.0), float(np.mean(squares / variance))
        factor = gamma / max(state.q - state.c + eps, 1e-30)
        return State(gamma, 0.0), factor
    if node.op in {"layer_norm", "group_norm", "instance_norm", "rms_norm"}:
        centred = state.q if node.op == "rms_norm" else max(state.q - state.mean**2, 0.0)
        factor = gamma / max(centred + eps, 1e-30)
        return State(gamma, min(gamma * state.c / max(state.q, 1e-30), gamma)), factor
    return None


def _affine(node: Node, state: State) -> tuple[State, float] | None:
    """A constant or a weight added or multiplied; two activations are not a plain step."""
    if sum(ref is not None for ref in node.inputs) > 1:
        return None
    if node.op == "neg":
        return replace(state, mean=-state.mean), 1.0
    weight = next(iter(node.weights.values()), None)
    constant = node.attrs.get("constant")
    if constant is None and kind_of(node) is Kind.ADD:
        constant = 0.0
    factor = weight.statistics.mean_square if weight is not None else _square(constant)
    if factor is None:
        return None
    if kind_of(node) is Kind.ADD:
        return State(state.q + factor, state.c + factor, state.mean), 1.0
    if node.op == "div":
        if factor == 0.0 or node.inputs[0] is None:
            return None
        factor = 1.0 / factor
    return State(state.q * factor, state.c * factor, state.mean * math.sqrt(factor)), factor


def _square(constant: object) -> float | None:
    """The square of a constant operand, None for one that is no number."""
    if not isinstance(constant, (int, float)) or not math.isfinite(constant):
        return None
    return float(constant) * float(constant)
