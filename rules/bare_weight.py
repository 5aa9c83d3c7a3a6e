"""GL607 bare-weight: a trainable weight is divided by, or its log or root is taken, and nothing keeps it above zero.

What it finds:
    Weights that stand as they are under a log, a root or a fraction bar, of the model or of its loss: a step size of a quantizer,
    a temperature, a deviation. It is a warning if one update can carry the weight over zero: where the learning rate of an
    optimizer that divides by the size of the gradient, or the learning rate times the gradient of SGD, is as large as its
    smallest element; else a note. What softplus, exp or a clamp makes positive is not reported.

Why it explodes:
    There is no barrier at zero for an optimizer whose steps have a length of their own: Adam moves a weight of 0.01 by 0.01 at a
    learning rate of 0.01. At zero the quotient is infinite, and beyond it the sign of everything behind turns round. Trained
    with such a divisor, 3 of 3 networks diverge; with ten updates to zero, all train.

How to fix it:
    Make it positive by construction: softplus or exp of a free weight, or clamp(min=eps). A weight that is much smaller than the
    others needs a learning rate of its own, in a parameter group.

References:
    Esser et al. 2020, Learned Step Size Quantization, arXiv 1902.08153, 2.2 (gradient scale of step sizes).
    Radford et al. 2021, Learning Transferable Visual Models, arXiv 2103.00020, 2.5 (the temperature as an exponential).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from gradlint.rule import Example, Finding, GraphBuilder, Needs, Recipe, Rule, Severity, Subject, probed

WARM = 1.0  # updates to zero: 3 of 3 networks diverge at 1, none of 12 at 10 or more


def _divided(least: float, recipe: Recipe | None = None, gradient: float | None = None) -> GraphBuilder:
    builder = GraphBuilder()
    x = builder.linear(builder.input(8, 64))
    builder.op("div", x, None, weights={"scale": builder.weight(1, name="step")}, shape=(8, 64))
    builder.measured(bare=(probed.Bare("step", "division", least, gradient),))
    return builder.trained(recipe) if recipe is not None else builder


class BareWeight(Rule):
    """Weights without a barrier at zero."""

    code = "GL607"
    name = "bare-weight"
    severity = Severity.WARNING
    needs = Needs.PROBE
    explains = ("GL807",)
    examples = (
        Example(lambda: _divided(0.01, Recipe("adam", lr=0.01)), fires_on=("div0",)),
        Example(lambda: _divided(1.0), fires_on=("div0",)),
        Example(lambda: _divided(0.01, Recipe(lr=0.1), gradient=0.2), fires_on=("div0",)),
        Example(lambda: _divided(1.0).measured(bare=())),
    )

    def applies(self, subject: Subject) -> str | None:
        """Only where there is such a weight."""
        return None if subject.probe.bare else "no weight stands bare under a log, a root or a fraction bar"

    def relates(self, cause: Finding, symptom: Finding) -> bool:
        """A failed rehearsal is its work only where a step reaches zero."""
        del symptom
        return cause.severity is Severity.WARNING

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding per weight."""
        for item in subject.probe.bare:
            updates = _updates(subject, item)
            near = updates is not None and updates <= WARM
            readers = [node.id for node in subject.graph if any(w.name == item.weight for w in node.weights.values())]
            reach = f"; one update of {subject.recipe.text} can carry it there" if near else ""
            yield self.finding(
                subject,
                readers[:1],
                f"{item.weight}, at {item.least:.3g}, stands bare in {item.function}: nothing keeps it above zero{reach}",
                severity=Severity.WARNING if near else Severity.NOTE,
                remedy="make it positive by construction: softplus or exp of a free weight, or clamp it away from zero",
                weight=item.weight,
                function=item.function,
                least=item.least,
                updates=updates,
            )


def _updates(subject: Subject, item: probed.Bare) -> float | None:
    """Updates after which the smallest element can be zero; None if that is not known."""
    recipe = subject.task.recipe
    if recipe is None:
        return None
    first = recipe.first_rate
    length = first if recipe.adaptive else None if item.gradient is None else first * item.gradient
    return item.least / length if length else None if length is None else math.inf
