"""Decide which claims about predicted growth can be made: which trends are large enough, and what explains them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from statistics import median

from gradlint.growth import HEALTHY, LIMIT
from gradlint.growth.tracks import Places
from gradlint.ops import operator
from gradlint.predicted_growth import INTERVAL
from gradlint.result import Measurement
from gradlint.structure import Structure
from gradlint.theory.initialization import is_initialized, is_torch_default
from gradlint.theory.prediction import Prediction
from gradlint.theory.reading.steps import Step, main_weight
from gradlint.theory.reading.trends import Layer, Trend, fall, layers, rise

_EXPLAINED = 0.5  # smallest share of a predicted trend that a cause explains
_LINEAR = "a linear chain"

Run = tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Imbalance:
    """Weight layers whose gain differs from their critical gain.

    Attributes:
        nodes: Ids of the layers.
        gain: Median of their gains.
        critical: Critical gain of the middle layer, in the order of critical gains.
        typical: Median of their critical gains.
        activation: Activation of the middle layer.
        usual: The most frequent activation.
        decades: Change of the gradient over all layers, the sum of log10(gain / critical gain).
    """

    nodes: tuple[str, ...]
    gain: float
    critical: float
    typical: float
    activation: str
    usual: str
    decades: float

    def __str__(self) -> str:
        return f"{len(self.nodes)} weight layers have gain {self.gain:.2f}; {self.activation} is critical at {self.critical:.2f}"

    def cure(self, where: str) -> str:
        """Return the advice that gives the layers their critical gain. `where` names the layers."""
        scale = self.critical / self.gain
        return f"scale the weights of {where} by {scale:.2f}, or nn.init.orthogonal_(w, gain={self.critical:.2f})"


@dataclass(frozen=True)
class Claims:
    """Claims about the predicted growth of one model; see `Subject.claims`.

    Attributes:
        structure: The structure of the graph.
        prediction: What theory predicts at every node.
        measurement: What the probe measured, or None without a probe.
        places: Where nodes stand on the tracks of the model.
    """

    structure: Structure
    prediction: Prediction
    measurement: Measurement | None
    places: Places

    def margin(self, span: tuple[str, str]) -> float:
        """Return half the width of the 90 % interval of predicted growth over a span, in decades.

        A span is the nodes in which its first and its last step end. The result is 0 if they are not on one track.
        """
        nodes, within = self.prediction.nodes, self.places.between(span)
        if not within:
            return 0.0
        variances = [nodes[node].backward_sd ** 2 if node in nodes else 0.0 for node in (within[0], within[-1])]
        return INTERVAL * math.sqrt(max(variances[0] - variances[1], 0.0))

    def is_sure(self, trend: Trend) -> bool:
        """Return whether the probe checks a trend, or its whole 90 % interval lies beyond `LIMIT` decades."""
        margin = self.margin(trend.span) if trend.span is not None else 0.0
        return self.measurement is not None or abs(trend.decades) - margin >= LIMIT

    def is_large(self, trend: Trend) -> bool:
        """Return whether a predicted trend is large enough for a claim: at least `HEALTHY` decades.

        If the probe checks the claim, it is enough that the 90 % interval reaches `HEALTHY`. An empty trend is not large.
        """
        if trend.span is None:
            return False
        return abs(trend.decades) + (self.margin(trend.span) if self.measurement is not None else 0.0) >= HEALTHY

    def rising(self, runs: Iterable[Run]) -> Iterator[Trend]:
        """Return the sustained growth of each run of steps whose growth is large enough for a claim."""
        return filter(self.is_large, map(rise, runs))

    def falling(self, runs: Iterable[Run]) -> Iterator[Trend]:
        """Return the sustained decay of each run of steps whose decay is large enough for a claim."""
        return filter(self.is_large, map(fall, runs))

    def trends(self, runs: Iterable[Run]) -> Iterator[Trend]:
        """Yield the sustained growth and the sustained decay of each run that are large enough for a claim."""
        for run in runs:
            yield from self.rising([run])
            yield from self.falling([run])

    def largest(self, run: Run) -> Trend:
        """Return the growth or the decay of a run, whichever is larger. A step that theory cannot follow counts as 0 decades."""
        return max(rise(run), fall(run), key=lambda trend: abs(trend.decades))

    def stands(self, nodes: Iterable[str]) -> bool:
        """Return whether a claim about growth through these nodes can stand: the probe checks it, or their weights look drawn.

        Predictions hold for random weights, so a claim about trained weights needs a measurement.
        """
        return self.measurement is not None or is_initialized(self.structure, nodes)

    def explains(self, trend: Trend, laid: Mapping[str, float], through: Iterable[Step]) -> bool:
        """Return whether a cause explains at least half of a trend without its largest step, and a claim about it can stand.

        Args:
            trend: The trend.
            laid: Decades that the cause adds to steps, by node.
            through: The steps of the claim; see `stands`.
        """
        return trend.share(laid) >= _EXPLAINED and self.stands(node for step in through for node in step.via)

    def imbalance(self, trend: Trend, is_off: Callable[[Layer], bool]) -> Imbalance | None:
        """Return the weight layers of a plain trend that `is_off` selects, or None if they explain less than half of it."""
        chain = self.places.chain(trend.steps[0].node)
        found = [layer for layer in layers(self.structure, trend.steps, chain) if is_off(layer)]
        decades = sum(math.log10(layer.gain / layer.critical) for layer in found)
        if not found or decades / trend.decades < _EXPLAINED:
            return None
        middle = sorted(found, key=lambda layer: layer.critical)[len(found) // 2]
        acts = Counter(layer.activation.op for layer in found if layer.activation)
        return Imbalance(
            nodes=tuple(layer.node for layer in found),
            gain=median(layer.gain for layer in found),
            critical=middle.critical,
            typical=median(layer.critical for layer in found),
            activation=middle.activation.op if middle.activation else _LINEAR,
            usual=acts.most_common(1)[0][0] if acts else _LINEAR,
            decades=decades,
        )

    def is_torch_default(self, layer: Layer) -> bool:
        """Return whether a layer with a rectifier has the default weights of `torch.nn.Linear` and `torch.nn.Conv2d`."""
        weight = main_weight(self.structure.graph[layer.node])
        rectified = layer.activation is not None and operator(layer.activation.op).rectifier
        return rectified and weight is not None and is_torch_default(weight)
