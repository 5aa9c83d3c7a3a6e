"""GL702 clip-threshold: gradient clipping that never acts, or that acts on every step.

What it finds:
    A clip_norm a hundred times the largest, or a hundredth of the smallest, gradient norm that was measured on any batch and at
    any step of the rehearsal; a clip_value in the same relation to the largest entry, or to the root mean square entry. A
    threshold below the norm at the start by less than that is usual, since norms fall as training goes on, and nothing is said.

Why it matters:
    A threshold far above every gradient protects from nothing. One far below makes every step of SGD equally long, learning rate
    times threshold, whatever the loss is like: it neither slows down near a minimum nor follows the learning rate that was meant.
    An optimizer that divides by the size of the gradient, such as Adam, undoes it altogether.

How to fix it:
    Set the threshold to a few times the gradient norm that is usual after the first hundred steps. Where every gradient is far
    above it, look at the loss first: summed instead of averaged, or with targets that are not scaled.

References:
    Pascanu, Mikolov, Bengio 2013, On the difficulty of training recurrent neural networks, arXiv 1211.5063 (how to set it).
    Zhang et al. 2020, Why Gradient Clipping Accelerates Training, arXiv 1905.11881.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from gradlint.rule import Confidence, Example, Finding, GraphBuilder, Needs, Recipe, Rule, Severity, Subject, probed

FAR = 100.0  # times a measured gradient; in 100 steps of plain SGD norms fall up to 89 times (benchmarks/stability_limit.py)


def _builder(recipe: Recipe, norm: float = 2.0) -> GraphBuilder:
    builder = GraphBuilder()
    builder.linear(builder.input(8, 64))
    found = probed.Curvature(2.3, 10.0, -1.0, 0.001, (norm, 1.1 * norm), norm / 10.0, 4096, 0.2)
    return builder.measured(curvature=found).trained(recipe)


class ClipThreshold(Rule):
    """Thresholds out of reach."""

    code = "GL702"
    name = "clip-threshold"
    severity = Severity.WARNING
    needs = Needs.RECIPE
    examples = (
        Example(lambda: _builder(Recipe(clip_norm=221.0)), fires_on=("linear0",)),
        Example(lambda: _builder(Recipe(clip_norm=0.019)), fires_on=("linear0",)),
        Example(lambda: _builder(Recipe(clip_value=21.0)), fires_on=("linear0",)),
        Example(lambda: _builder(Recipe(clip_value=0.0003)), fires_on=("linear0",)),
        Example(lambda: _builder(Recipe(clip_norm=219.0))),
        Example(lambda: _builder(Recipe(clip_norm=0.021))),
        Example(lambda: _builder(Recipe(clip_norm=1.0))),
        Example(lambda: _builder(Recipe(clip_value=0.5))),
        Example(lambda: _builder(Recipe())),
    )

    def applies(self, subject: Subject) -> str | None:
        """Only where something clips, and gradients were measured."""
        if not subject.recipe.clips:
            return "the recipe does not clip"
        return None if subject.training.curvature is not None else "no gradients were measured"

    def check(self, subject: Subject) -> Iterator[Finding]:
        """At most one finding for each kind of threshold."""
        recipe, curvature, rehearsal = subject.recipe, subject.training.curvature, subject.training.rehearsal
        if curvature is None:
            return
        norms = [*curvature.gradient_norms, *(rehearsal.gradient_norms if rehearsal is not None else ())]
        norms = [norm for norm in norms if math.isfinite(norm)]
        if not all(norms):
            return
        mean = min(norms) / math.sqrt(curvature.weights)
        yield from self._compare(subject, recipe, "clip_norm", recipe.clip_norm, (min(norms), max(norms)))
        yield from self._compare(subject, recipe, "clip_value", recipe.clip_value, (mean, curvature.gradient_largest))

    def _compare(
        self, subject: Subject, recipe: Recipe, name: str, threshold: float | None, measured: tuple[float, float]
    ) -> Iterator[Finding]:
        smallest, largest = measured
        if threshold is None or (smallest <= FAR * threshold and threshold <= FAR * largest):
            return
        what = "gradient norm" if name == "clip_norm" else "gradient entry"
        inert = threshold > largest
        if inert:
            message = f"{name} {threshold:g} never acts: the largest {what} measured is {largest:.2g}"
        else:
            message = f"{name} {threshold:g} acts on every step: the smallest {what} measured is {smallest:.2g}"
        yield self.finding(
            subject,
            subject.outputs,
            message,
            severity=Severity.NOTE if inert or recipe.adaptive else Severity.WARNING,
            remedy=f"set it near {largest if inert else smallest:.1g}, or leave it out",
            confidence=Confidence.MEASURED,
            threshold=threshold,
            smallest=smallest,
            largest=largest,
        )
