"""What may be claimed of predicted growth: which trends are large enough, what explains them, and how sure that is."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from statistics import median

from gradlint.growth import HEALTHY, LIMIT
from gradlint.ops import operator
from gradlint.predicted_growth import INTERVAL
from gradlint.result import Measurement
from gradlint.signal_path import is_weight_layer
from gradlint.structure import Structure
from gradlint.theory.initialization import is_torch_default, looks_initialized
from gradlint.theory.prediction import Prediction
from gradlint.theory.reading.steps import Step, main_weight
from gradlint.theory.reading.trends import Layer, Trend, fall, layers, rise

_EXPLAINED = 0.5  # of a predicted trend: what explains less is not its cause
_LINEAR = "a linear chain"

Run = tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Imbalance:
    """Weight layers that are away from their critical gain, which together change the gradient by `decades`.

    `gain` is their median, `typical` the median of their critical gains. `critical` is the critical gain of the middle layer,
    `activation` its activation and `usual` the most frequent one.
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
        """How the layers, which are called `where`, get their critical gain."""
        scale = self.critical / self.gain
        return f"scale the weights of {where} by {scale:.2f}, or nn.init.orthogonal_(w, gain={self.critical:.2f})"


@dataclass(frozen=True)
class Claims:
    """What may be claimed of the predicted growth of one model, as `Subject.claims`."""

    structure: Structure
    prediction: Prediction
    measurement: Measurement | None

    def margin(self, span: tuple[str, str]) -> float:
        """Decades by which growth over the steps that end in these two spine nodes may miss its prediction (90 % interval)."""
        structure, nodes = self.structure, self.prediction.nodes
        if not structure.spine_index.keys() >= set(span):
            return 0.0
        ends = structure.spine[max(structure.spine_index[span[0]] - 1, 0)], span[1]
        variances = [nodes[node].backward_sd ** 2 if node in nodes else 0.0 for node in ends]
        return INTERVAL * math.sqrt(max(variances[0] - variances[1], 0.0))

    def is_sure(self, trend: Trend) -> bool:
        """Whether a trend is to be taken as it stands: the probe will check it, or its whole interval lies beyond LIMIT."""
        margin = self.margin(trend.span) if trend.span is not None else 0.0
        return self.measurement is not None or abs(trend.decades) - margin >= LIMIT

    def is_large(self, trend: Trend) -> bool:
        """Whether a predicted trend is large enough for a claim: HEALTHY decades or more.

        Where the probe will check it, one that may reach them within its interval is enough.
        """
        if trend.span is None:
            return False
        return abs(trend.decades) + (self.margin(trend.span) if self.measurement is not None else 0.0) >= HEALTHY

    def rising(self, runs: Iterable[Run]) -> Iterator[Trend]:
        """The sustained growth of each run of steps, where it is large enough for a claim."""
        return filter(self.is_large, map(rise, runs))

    def falling(self, runs: Iterable[Run]) -> Iterator[Trend]:
        """The sustained decay of each run of steps, where it is large enough for a claim."""
        return filter(self.is_large, map(fall, runs))

    def trends(self, runs: Iterable[Run]) -> Iterator[Trend]:
        """Both of each run, where they are large enough for a claim."""
        for run in runs:
            yield from self.rising([run])
            yield from self.falling([run])

    def largest(self, run: Run) -> Trend:
        """The growth or the decay of a run, whichever is larger; a step that theory cannot follow counts as neutral."""
        return max(rise(run), fall(run), key=lambda trend: abs(trend.decades))

    def stands(self, nodes: Iterable[str]) -> bool:
        """Whether a claim about growth through these nodes can stand: the probe will check it, or their weights look drawn.

        Predictions are about random weights; about trained ones nothing is claimed that is not measured.
        """
        return self.measurement is not None or is_initialized(self.structure, nodes)

    def explains(self, trend: Trend, laid: Mapping[str, float], through: Iterable[Step]) -> bool:
        """Whether the decades that are laid to some steps, by node, explain half of a trend or more, its largest step aside.

        `through` are the steps that the claim is about: it must be able to stand for what lies inside them.
        """
        return trend.share(laid) >= _EXPLAINED and self.stands(node for step in through for node in step.via)

    def imbalance(self, trend: Trend, is_off: Callable[[Layer], bool]) -> Imbalance | None:
        """The weight layers of a plain trend that are off their critical gain; None where they explain less than half of it."""
        found = [layer for layer in layers(self.structure, trend.steps) if is_off(layer)]
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
        """Whether a layer under a rectifier has the weights that `torch.nn.Linear` and `Conv2d` draw by default."""
        weight = main_weight(self.structure.graph[layer.node])
        rectified = layer.activation is not None and operator(layer.activation.op).rectifier
        return rectified and weight is not None and is_torch_default(weight)


def is_initialized(structure: Structure, nodes: Iterable[str]) -> bool:
    """Whether the weight matrices of these nodes look as if nobody had trained them; masks of attention do not count."""
    graph = structure.graph
    return looks_initialized(
        weight
        for node in nodes
        if is_weight_layer(graph[node]) and graph[node].op != "attention"
        for role, weight in graph[node].weights.items()
        if len(weight.shape) > 1 and "bias" not in role
    )
