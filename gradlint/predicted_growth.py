"""From predictions at nodes to what theory says of a whole model: growth, its interval, and whether that settles the verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from gradlint.chains import chain_of, elements
from gradlint.growth import LIMIT, summarise
from gradlint.result import Gains, Growth
from gradlint.signal_path import is_weight_layer
from gradlint.structure import Structure
from gradlint.theory.prediction import Predicted, Prediction

INTERVAL = 1.645
"""Standard deviations of the normal distribution that hold 90 % of it on both sides."""

_ZERO = -100.0  # decades: a predicted factor of zero, which no float can tell from nothing
_BLIND = 0.5 * math.log10(2.0)  # decades that a path adds which is not followed, if it carries as much as the one that is
_TOO_BLIND = 0.5  # of the weight layers
_TRAINED = 1.4  # decades: root mean square error of the growth of 17 trained models, 16 of them within 1.645 times it


@dataclass(frozen=True, slots=True)
class PredictedGrowth:
    """What theory expects of a model: growth along `chain` (None where it follows nothing there) and gains by node.

    `deviations` are the standard deviations of the backward gains along the chain, in decades. `conclusive` says whether the
    chain and most weight layers were followed and the interval of the growth lies on one side of the limit.
    """

    chain: tuple[str, ...]
    gains: Mapping[str, Gains]
    growth: Growth | None
    conclusive: bool
    deviations: Mapping[str, float]

    def margin(self, node: str) -> float:
        """Decades by which the gradient at a node of the chain may miss its prediction (90 % interval)."""
        return INTERVAL * self.deviations.get(node, 0.0)


def predict_growth(
    structure: Structure, prediction: Prediction, measured: Mapping[str, Gains] | None = None, *, drawn: bool = True
) -> PredictedGrowth:
    """Growth as the probe would sum it up, from predictions; cuts by depth are named as in `measured`.

    `drawn` says whether the weights are as an initialiser drew them; what training does to them theory does not know.
    """
    found = {node: Gains(_followed(p), p.forward, None) for node, p in prediction.nodes.items()}
    chain, rows = chain_of(structure, [found], measured)
    gains = {**found, **rows[0]}
    parts = dict(elements(structure, measured if measured is not None else found))
    deviations = {name: _deviation([prediction.nodes[node] for node in nodes if node in found]) for name, nodes in parts.items()}
    known = [node for node in chain if node in gains and gains[node].backward is not None]
    if len(known) < 2:
        return PredictedGrowth(tuple(chain), gains, None, conclusive=False, deviations=deviations)
    growth = summarise(structure.graph, chain, gains)
    missed = _missed(structure, found)
    spread = INTERVAL * math.hypot(_spread(growth, deviations, known), 0.0 if drawn else _TRAINED)
    upper = spread + _BLIND * len({structure.depths[node] for node in missed})
    growth = replace(growth, interval=(growth.decades - spread, growth.decades + upper))
    conclusive = _is_whole(structure, gains, chain, missed) and _is_settled(growth)
    return PredictedGrowth(tuple(chain), gains, growth, conclusive, deviations)


def _followed(predicted: Predicted) -> float | None:
    """The backward gain at a node, None where theory does not follow."""
    if predicted.backward is None or math.isnan(predicted.backward) or math.isnan(predicted.backward_sd):
        return None
    return predicted.backward


def _deviation(together: Sequence[Predicted]) -> float:
    """Standard deviation of the gain of several tensors together: each counts by its share of their energy."""
    known = [(level, p.backward_sd) for p in together if (level := _followed(p)) is not None and level > -math.inf]
    if len(known) < 2:
        return known[0][1] if known else 0.0
    top = max(level for level, _ in known)
    if top == math.inf:
        return max(sd for level, sd in known if level == top)
    shares = [10.0 ** (2.0 * (level - top)) for level, _ in known]
    return math.sqrt(sum(share * sd**2 for share, (_, sd) in zip(shares, known, strict=True)) / sum(shares))


def _spread(growth: Growth, deviations: Mapping[str, float], chain: Sequence[str]) -> float:
    """Standard deviation that the run adds which makes the growth, or the whole chain where there is none."""
    places = [chain.index(place.node) for place in (growth.start, growth.end) if place is not None]
    first, last = places if len(places) == 2 and places[0] < places[1] else (0, len(chain) - 1)
    widest = max(deviations[node] for node in chain[first : last + 1])
    return math.sqrt(max(widest**2 - deviations[chain[last]] ** 2, 0.0))


def _missed(structure: Structure, found: Mapping[str, Gains]) -> list[str]:
    """The weight layers of the signal that no predicted gradient reaches, not even one of zero."""
    layers = (node for node in structure.signal if is_weight_layer(structure.graph[node]))
    return [node for node in layers if node not in found or found[node].backward is None]


def _is_whole(structure: Structure, gains: Mapping[str, Gains], chain: Sequence[str], missed: Sequence[str]) -> bool:
    """Whether the chain is followed without a gap or an exact zero, and so are most of the layers beside it."""
    levels = [gains[node].backward if node in gains else None for node in chain]
    layers = sum(is_weight_layer(structure.graph[node]) for node in structure.signal)
    whole = all(level is not None and level > _ZERO for level in levels)
    return whole and layers > 0 and len(missed) <= _TOO_BLIND * layers


def _is_settled(growth: Growth) -> bool:
    low, high = growth.interval or (-math.inf, math.inf)
    return not any(low < limit < high for limit in (-LIMIT, LIMIT))
