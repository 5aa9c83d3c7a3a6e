"""Growth of a whole model from predictions at its nodes, with an interval, and whether that interval settles the verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from gradlint.growth import LIMIT, summarize
from gradlint.growth.chains import chain_of, elements
from gradlint.growth.tracks import decisive, read_tracks
from gradlint.growth.weights import spread
from gradlint.measurements.learning import Learning
from gradlint.ops import Kind
from gradlint.result import Gains, Growth, Measurement, Track
from gradlint.signal_path import is_weight_layer, kind_of
from gradlint.structure import Structure
from gradlint.theory.prediction import Predicted, Prediction

INTERVAL = 1.645
"""Standard deviations on each side of the mean of a normal distribution that hold 90 % of it."""

_ZERO = -100.0  # decades: a predicted gain at or below this counts as zero
_UNFOLLOWED = 0.5 * math.log10(2.0)  # decades that an unfollowed path adds if it carries as much gradient as the followed one
_MOST_UNFOLLOWED = 0.5  # the largest share of the weight layers that a conclusive prediction leaves unfollowed
_NORM_EXCESS = (
    0.0083  # decades a BatchNorm by which predicted growth exceeds the measured one: 0.0078 to 0.0085 in ResNets of 101 to 200
)
_RESIZE = frozenset({Kind.CONV, Kind.LINEAR, Kind.MATMUL, Kind.POOL})  # operators whose gains depend on their sizes
_LOST = 7.0  # decades of a predicted signal: the largest measured one in 40 published networks is 4.6
_TRAINED = 1.4  # decades: root mean square error of predicted growth over 17 trained models; 16 lie within 1.645 times it


@dataclass(frozen=True, slots=True)
class PredictedGrowth:
    """Growth of a model as signal propagation predicts it.

    Attributes:
        chain: Node ids along which growth is read: the spine, or one node for each cut by depth.
        gains: Predicted gains by node, in decades. Cuts of the chain have the gain of all their tensors together.
        growth: Sustained growth over the chain, in decades, with a 90 % interval. None if fewer than two gains are known.
        conclusive: Whether theory followed the chain and most weight layers and the interval does not contain the limit.
        deviations: Standard deviations of the backward gains along the chain, in decades.
        learning: Predicted gradients of the weight matrices; their drift is the smaller end of its interval. Empty for weights
            that were trained.
    """

    chain: tuple[str, ...]
    gains: Mapping[str, Gains]
    growth: Growth | None
    conclusive: bool
    deviations: Mapping[str, float]
    learning: Learning = field(default_factory=Learning)

    def margin(self, node: str) -> float:
        """Return half the width of the 90 % interval of the backward gain at a node of the chain, in decades."""
        return INTERVAL * self.deviations.get(node, 0.0)


def predict_growth(
    structure: Structure, prediction: Prediction, measurement: Measurement | None = None, *, drawn: bool = True
) -> PredictedGrowth:
    """Predict growth over the whole model.

    Predicted gains are summed up in the same way as measured ones, so that both can be compared. The interval holds the growth
    with 90 % probability. It covers the variance of the predictions, and its upper end also covers weight layers that no
    predicted gradient reaches.

    Args:
        structure: The structure of the graph.
        prediction: Predictions by node, from `gradlint.theory.prediction.predict`.
        measurement: What was measured. Growth is predicted along the same chain, or along the one that decides if it is None.
        drawn: Whether the weights look randomly initialized. The interval is wider for trained weights, whose correlations
            mean-field theory neglects.
    """
    found = {node: Gains(_followed(p), p.forward, None) for node, p in prediction.nodes.items()}
    learning = predict_learning(structure, prediction) if drawn else Learning()
    chain, gains, parts = _chain(structure, found, learning, measurement)
    deviations = {name: _deviation([prediction.nodes[node] for node in nodes if node in found]) for name, nodes in parts.items()}
    known = [node for node in chain if node in gains and gains[node].backward is not None]
    if len(known) < 2:
        return PredictedGrowth(tuple(chain), gains, None, conclusive=False, deviations=deviations, learning=learning)
    growth = summarize(structure.graph, chain, gains)
    unfollowed = _unfollowed(structure, found)
    spread = INTERVAL * math.hypot(_spread(growth, deviations, known), 0.0 if drawn else _TRAINED)
    upper = spread + _UNFOLLOWED * len({structure.depths[node] for node in unfollowed})
    growth = replace(growth, interval=(growth.decades - spread, growth.decades + upper))
    settled = _is_settled(growth) or not learning.bears_out(growth.decades)
    learning = _cautious(learning, spread)
    conclusive = _is_whole(structure, gains, chain, unfollowed) and settled and (drawn or not _is_lost(known, gains))
    return PredictedGrowth(tuple(chain), gains, growth, conclusive, deviations, learning)


def _cautious(learning: Learning, margin: float) -> Learning:
    """Return predicted gradients of weights with the smaller end of the interval of their drift, as wide as that of growth."""
    if learning.spread is None:
        return learning
    return replace(learning, spread=math.copysign(max(abs(learning.spread) - margin, 0.0), learning.spread))


def _chain(
    structure: Structure, found: Mapping[str, Gains], learning: Learning, measurement: Measurement | None
) -> tuple[Sequence[str], Mapping[str, Gains], Mapping[str, Sequence[str]]]:
    """Return the chain to read, the gains along it, and the tensors that each of its elements stands for."""
    measured = measurement.gains if measurement is not None else None
    chain, rows = chain_of(structure, [found], measured)
    parts = dict(elements(structure, measured if measured is not None else found))
    cuts = {**found, **rows[0]}
    if measurement is not None:
        track = () if measurement.cut_gains else measurement.spine
    else:
        main = Track(tuple(chain), summarize(structure.graph, chain, cuts))
        others = [track for track in read_tracks(structure, found) if track.nodes != main.nodes]
        track = decisive(structure, main, others, learning).nodes
    if not track or track == tuple(chain):
        return chain, cuts, parts
    return track, found, {node: (node,) for node in track}


def predict_learning(structure: Structure, prediction: Prediction) -> Learning:
    """Predict the gradients of weight matrices from the signal that enters a layer and the cotangent that leaves it.

    The gradient of a linear layer is the outer product of both, summed over batch and positions. Where their terms are
    independent, |d out / d W|^2 = fan_in E[x^2] |delta|^2.
    """
    nodes, squares = prediction.nodes, dict[str, float]()
    levels: dict[str, float] = {}
    for node_id in structure.signal:
        node, out = structure.graph[node_id], nodes.get(node_id)
        fed = next((nodes.get(parent) for parent in structure.signal_parents(node_id)), None)
        weight = node.weights.get("weight")
        if kind_of(node) not in {Kind.LINEAR, Kind.CONV} or weight is None or fed is None or fed.forward is None or out is None:
            continue
        backward = _followed(out)
        if backward is None or not weight.size:
            continue
        energy = 2.0 * (fed.forward + backward) + math.log10(weight.fan_in)
        squares[weight.name] = energy
        levels[weight.name] = 0.5 * (energy - math.log10(weight.size))
    ends = [nodes[ref.node].forward for ref in structure.trunk if ref.node in nodes]
    known = [end for end in ends if end is not None]
    drift = spread(structure, levels)
    excess = _NORM_EXCESS * _batch_norms(structure, drift.nodes) if drift is not None else 0.0
    top = max(squares.values(), default=-math.inf)
    total = top + math.log10(sum(10.0 ** (energy - top) for energy in squares.values())) if math.isfinite(top) else top
    return Learning(
        levels=levels,
        tangent=0.5 * total if squares else None,
        matrices=0.5 * total if squares else None,
        output=max(known, default=None),
        spread=min(drift.decades, max(drift.decades - excess, 0.0)) if drift is not None else None,
        run=drift.nodes if drift is not None else (),
        drawn=True,
    )


def _batch_norms(structure: Structure, run: Sequence[str]) -> int:
    """Return how many BatchNorms use the statistics of the batch between the first and the last node of a run."""
    graph, position = structure.graph, structure.graph.position
    inside = (node for node in graph if position[run[0]] <= position[node.id] <= position[run[-1]])
    return sum(node.op == "batch_norm" and bool(node.attrs.get("training", graph.mode == "train")) for node in inside)


def _followed(predicted: Predicted) -> float | None:
    """Return the backward gain at a node in decades, or None where theory does not predict one."""
    if predicted.backward is None or math.isnan(predicted.backward) or math.isnan(predicted.backward_sd):
        return None
    return predicted.backward


def _deviation(together: Sequence[Predicted]) -> float:
    """Return the standard deviation, in decades, of the gain of several tensors together, weighted by squared gradient."""
    known = [(level, p.backward_sd) for p in together if (level := _followed(p)) is not None and level > -math.inf]
    if len(known) < 2:
        return known[0][1] if known else 0.0
    top = max(level for level, _ in known)
    if top == math.inf:
        return max(sd for level, sd in known if level == top)
    shares = [10.0 ** (2.0 * (level - top)) for level, _ in known]
    return math.sqrt(sum(share * sd**2 for share, (_, sd) in zip(shares, known, strict=True)) / sum(shares))


def _spread(growth: Growth, deviations: Mapping[str, float], chain: Sequence[str]) -> float:
    """Return the standard deviation of growth in decades: what its run of steps adds, or the whole chain without a run."""
    places = [chain.index(place.node) for place in (growth.start, growth.end) if place is not None]
    first, last = places if len(places) == 2 and places[0] < places[1] else (0, len(chain) - 1)
    widest = max(deviations[node] for node in chain[first : last + 1])
    return math.sqrt(max(widest**2 - deviations[chain[last]] ** 2, 0.0))


def _unfollowed(structure: Structure, found: Mapping[str, Gains]) -> list[str]:
    """Return the weight layers on the signal whose gradient theory does not predict."""
    layers = (node for node in structure.signal if is_weight_layer(structure.graph[node]))
    return [node for node in layers if node not in found or found[node].backward is None]


def _is_whole(structure: Structure, gains: Mapping[str, Gains], chain: Sequence[str], unfollowed: Sequence[str]) -> bool:
    """Return whether theory predicts a nonzero gain at every node of the chain and a gain at most of the weight layers."""
    levels = [gains[node].backward if node in gains else None for node in chain]
    layers = sum(is_weight_layer(structure.graph[node]) for node in structure.signal)
    whole = all(level is not None and level > _ZERO for level in levels)
    return whole and layers > 0 and len(unfollowed) <= _MOST_UNFOLLOWED * layers and _is_sized(structure)


def _is_lost(chain: Sequence[str], gains: Mapping[str, Gains]) -> bool:
    """Return whether theory predicts a signal that no network has that was trained, so that it does not follow this one."""
    return any((gains[node].forward or 0.0) > _LOST for node in chain)


def _is_sized(structure: Structure) -> bool:
    """Return whether the number of axes of every operator on the signal that changes their sizes is known."""
    nodes = (structure.graph[node] for node in structure.signal)
    return all(node.shape is not None for node in nodes if kind_of(node) in _RESIZE)


def _is_settled(growth: Growth) -> bool:
    """Return whether the interval of growth contains neither limit."""
    low, high = growth.interval or (-math.inf, math.inf)
    return not any(low < limit < high for limit in (-LIMIT, LIMIT))
