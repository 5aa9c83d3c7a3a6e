"""GL107 head-scale: before training, the loss is far above that of a prediction which says nothing.

What it finds:
    An initial loss of at least twice that of equal probabilities (log C for C classes) and at least 1 above it; for a target of
    floats, ten times that of predicting zero, with an output three times as large as the target. Chance is measured, by
    giving the loss an output of zeros. Models whose weights look trained are left out. It is an error if the loss is more than
    a thousand times that of the best constant, unless a rehearsal brings it below that; and if the rehearsal diverges with a
    learning rate over the stability limit by no more than the square of the last layer's gain: with a gain of 1 it would be under
    the limit.

Why it matters:
    The logits are so large that the model is sure of its random answers. The first steps do nothing but shrink them, with
    gradients as large as the loss: the curve falls steeply and tells little, and an unlucky step kills units or diverges.

How to fix it:
    Draw the last layer's weights smaller (normal, deviation 0.01, or 1 / fan_in), or start them at zero; put a norm before it;
    scale logits that are products of vectors by 1 / sqrt(d). Give the last bias the base rates where classes are unbalanced.

References:
    Karpathy 2019, A Recipe for Training Neural Networks (verify the loss at init).
    Yang, Hu 2021, Feature Learning in Infinite-Width Neural Networks, arXiv 2011.14522 (the output layer's scale).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from gradlint.rule import Example, Finding, GraphBuilder, Needs, Recipe, Rule, Severity, Subject, is_weight_layer, probed

OVER_CHANCE = 2.0  # times
EXCESS = 1.0  # nats: what logits of deviation 1.4 cost
OVER_ZERO = 10.0  # times the loss of predicting zero: an output three times as large as the target
LARGER = 3.0
FAR = 1000.0  # times the best constant: an output 30 times as large as the target varies, where sound ones are as large


def _first(value: float, neutral: float, *, output: float = 5.0, target: float | None = None, gain: float = 1.0) -> GraphBuilder:
    builder = GraphBuilder()
    builder.linear(builder.input(8, 64), 10, gain=gain)
    facts = probed.LossFacts(
        value, 1.0, chance=neutral, neutral=neutral, from_zero=True, repeated=1.0, batch=8, terms=8, output=output, target=target
    )
    return builder.measured(loss=facts)


def _diverging(value: float, gain: float) -> GraphBuilder:
    """A head of large weights, and a learning rate 300 times the limit."""
    tried = probed.Rehearsal(40, (value, 1e6), (1.0,), {}, (0.1,), value, 1e6, diverged_at=1, cause=probed.Cause.RATE)
    curvature = probed.Curvature(value, 6000.0, -0.1, 0.001, (1.0,), 0.1, 4096, 0.1 / 300.0)
    return _first(value, 3.3, gain=gain).measured(rehearsal=tried, curvature=curvature).trained(Recipe(lr=0.1))


class HeadScale(Rule):
    """The first loss against chance."""

    code = "GL107"
    name = "head-scale"
    severity = Severity.ERROR
    needs = Needs.PROBE
    explains = ("GL807",)
    explained_by = ("GL601",)
    examples = (
        Example(lambda: _first(27.0, 3.3), fires_on=("linear0",)),
        Example(lambda: _first(900.0, 1.0, output=30.0, target=1.0), fires_on=("linear0",)),
        Example(lambda: _diverging(90.0, 20.0), fires_on=("linear0",)),
        Example(lambda: _first(4.5, 2.3)),
        Example(lambda: _first(1.6, 0.69)),
        Example(lambda: _first(2.35, 2.3, output=0.3)),
        Example(lambda: _first(5.0, 1.0, output=2.0, target=1.0)),
    )

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding, at the output."""
        loss = subject.training.loss
        if loss is None or not _is_high(loss) or not subject.is_initialized(subject.structure.signal):
            return
        assert loss.neutral is not None
        gain = _gain(subject)
        far = loss.over_chance is not None and loss.over_chance > FAR and not subject.training.learns
        far = far or _is_cause(subject, gain)
        against = "predicting zero" if loss.target is not None else "chance"
        level = f"; the output has a root mean square of {loss.output:.3g}" if loss.output is not None else ""
        yield self.on_loss(
            subject,
            f"the initial loss is {loss.value:.3g}, that of {against} {loss.neutral:.3g}{level}",
            severity=Severity.ERROR if far else Severity.WARNING,
            remedy="draw the weights of the last layer smaller, or scale down what it puts out",
            loss=loss.value,
            neutral=loss.neutral,
            chance=loss.chance,
            output=loss.output,
            gain=gain,
        )

    def applies(self, subject: Subject) -> str | None:
        """None where a loss was measured."""
        return None if subject.training.loss is not None else "no loss was given"


def _is_high(loss: probed.LossFacts) -> bool:
    if loss.neutral is None or not loss.neutral > 0.0:
        return False
    if loss.target is not None:
        return loss.value >= OVER_ZERO * loss.neutral and loss.output is not None and loss.output >= LARGER * loss.target
    terms = (loss.terms or 1) if loss.is_sum else 1
    return loss.value >= OVER_CHANCE * loss.neutral and (loss.value - loss.neutral) / terms >= EXCESS


def _gain(subject: Subject) -> float:
    """The gain of the last layer, sqrt(fan_in E W^2): that of a layer which keeps the size of the signal is 1."""
    gains = [1.0]
    for node in subject.probe.trunk:
        weight = subject.graph[node].weights.get("weight")
        if weight is not None and is_weight_layer(subject.graph[node]):
            gains.append(math.sqrt(weight.fan_in * weight.statistics.mean_square))
    return max(gains)


def _is_cause(subject: Subject, gain: float) -> bool:
    """Whether the rehearsal diverges and would be under the stability limit with a last layer of gain 1.

    The sharpness of the loss in the weights before the last layer is proportional to the square of that gain.
    """
    curvature, recipe = subject.training.curvature, subject.task.recipe
    if recipe is None or curvature is None or curvature.is_surrogate or not subject.training.diverges:
        return False
    first = recipe.first_rate
    return curvature.limit < first <= gain**2 * curvature.limit
