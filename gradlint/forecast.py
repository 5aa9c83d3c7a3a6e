"""From predictions at nodes to what theory says of a whole model: growth, its interval, and whether that settles the verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from gradlint.chains import chain_of
from gradlint.flow import is_weight_layer
from gradlint.growth import LIMIT, summarise
from gradlint.result import Gains, Growth
from gradlint.structure import Structure
from gradlint.theory.prediction import Prediction

INTERVAL = 1.645
"""Standard deviations of the normal distribution that hold 90 % of it on both sides."""

_ZERO = -100.0  # decades: a predicted factor of zero, which no float can tell from nothing


@dataclass(frozen=True, slots=True)
class Forecast:
    """What theory expects of a model: growth along `chain` (None where it follows nothing there) and gains by node.

    `conclusive` says whether every weight layer was followed and the interval of the growth lies on one side of the limit.
    """

    chain: tuple[str, ...]
    gains: Mapping[str, Gains]
    growth: Growth | None
    conclusive: bool


def forecast(structure: Structure, prediction: Prediction, measured: Mapping[str, Gains] | None = None) -> Forecast:
    """Growth as the probe would sum it up, from predictions; cuts by depth are named as in `measured`."""
    found = {node: Gains(_followed(p.backward, p.backward_sd), p.forward, None) for node, p in prediction.nodes.items()}
    chain, rows = chain_of(structure, [found], measured)
    gains = {**found, **rows[0]}
    known = [node for node in chain if node in gains and gains[node].backward is not None]
    if len(known) < 2:
        return Forecast(tuple(chain), gains, None, conclusive=False)
    growth = summarise(structure.graph, chain, gains)
    spread = _spread(growth, prediction, known)
    growth = replace(growth, interval=(growth.decades - INTERVAL * spread, growth.decades + INTERVAL * spread))
    return Forecast(tuple(chain), gains, growth, conclusive=_complete(structure, prediction) and _settled(growth))


def _followed(backward: float | None, spread: float) -> float | None:
    return None if backward is None or math.isnan(spread) else max(backward, -math.inf)


def _spread(growth: Growth, prediction: Prediction, chain: Sequence[str]) -> float:
    """Standard deviation of the growth between its two ends; of the whole chain where it has none."""
    ends = [place.node for place in (growth.start, growth.end) if place is not None]
    first, last = (ends[0], ends[-1]) if len(ends) == 2 and ends[0] != ends[-1] else (chain[0], chain[-1])
    variances = [prediction.nodes[node].backward_sd ** 2 if node in prediction.nodes else 0.0 for node in (first, last)]
    return math.sqrt(max(variances[0] - variances[1], 0.0))


def _complete(structure: Structure, prediction: Prediction) -> bool:
    """Whether every weight layer that the gradient passes has a prediction that is no exact zero."""
    levels = [prediction.nodes[node].backward if node in prediction.nodes else None for node in _layers(structure)]
    return bool(levels) and all(level is not None and level > _ZERO for level in levels)


def _layers(structure: Structure) -> list[str]:
    return [node for node in structure.signal if is_weight_layer(structure.graph[node])]


def _settled(growth: Growth) -> bool:
    low, high = growth.interval or (-math.inf, math.inf)
    return not (low < LIMIT < high or low < -LIMIT < high)
