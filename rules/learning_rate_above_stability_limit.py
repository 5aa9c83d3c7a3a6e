"""GL703 learning-rate-above-stability-limit: the steps are longer than the curvature of the loss allows.

What it finds:
    A learning rate above the stability limit: 2 / h for gradient descent, h being the sharpness, the largest eigenvalue of the
    Hessian of the loss at the weights as they are; 2 (1 + b) / h with momentum b; for optimizers that divide the gradient by P,
    the same of P^-1/2 H P^-1/2. With a warm-up the learning rate of the first step counts. Networks often survive more: the loss
    rises, the weights move to where it is flatter, and training goes on. So it speaks where the rehearsal failed, or, without
    one, where SGD is far over the limit of the loss that was given. A limit a thousand times below the learning rate is the
    consequence of a scale, if a finding about one (GL107, GL601) is there; so is one that the scale explains, for the sharpness
    grows with the square of the last layer's gain (GL107), and of the growth along the layers (GL101).

Why it explodes:
    Along the sharpest direction each step multiplies the distance to the valley by 1 - lr h. Beyond 2 / h that is below -1: the
    weights jump from side to side, farther every time, and loss and gradient grow with them.

How to fix it:
    Lower the learning rate to the limit, or let it rise to its value over some hundred steps: the sharpness falls meanwhile.
    Where the limit itself is far below what such models are trained with, look for the cause: unscaled inputs, a summed loss,
    initial weights that are too large, a missing norm.

References:
    LeCun, Simard, Pearlmutter 1993, Automatic Learning Rate Maximization by On-Line Estimation of the Hessian's Eigenvectors.
    Cohen et al. 2021, Gradient Descent on Neural Networks Typically Occurs at the Edge of Stability, arXiv 2103.00065.
    Cohen et al. 2022, Adaptive Gradient Methods at the Edge of Stability, arXiv 2207.14484.
    Lewkowycz et al. 2020, The large learning rate phase of deep learning: the catapult mechanism, arXiv 2003.02218.
    Gilmer et al. 2021, A Loss Curvature Perspective on Training Instability in Deep Learning, arXiv 2110.04369 (warm-up).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gradlint.rule import Confidence, Example, Finding, GraphBuilder, Needs, Recipe, Rule, Severity, Subject, probed

# Times the limit. benchmarks/stability_limit.py trains eleven small networks: nine fail to halve their loss in 100 steps at 32
# times the limit of plain SGD, ten at 12 times that of momentum 0.9; He-initialized ReLU survives 16 times the former. Lewkowycz
# 2020 finds 2 to 6 for the squared error. With Adam none fails up to its limit and eight at 32 times it, but a ResNet with
# BatchNorm survives 64 times: without a rehearsal nothing is said.
PLAIN = 32.0
MOMENTUM = 12.0
OWN = frozenset({"GL105", "GL110", "GL401", "GL710"})
"""Rules that say themselves what they explain."""
SURROGATE = "a surrogate: distance to random numbers"
SCALED = 1000.0  # times the limit: published learning rates of one optimizer span less for models at a usual scale
OTHERS = frozenset({probed.Cause.OPERATOR, probed.Cause.PRECISION, probed.Cause.GROWTH, probed.Cause.SLOW})
"""Causes of a failed rehearsal that are not the step's length."""


def _builder(
    lr: float,
    limit: float,
    *,
    fails: bool | None = None,
    cause: probed.Cause = probed.Cause.RATE,
    stands_in: str = "",
    **more: Any,
) -> GraphBuilder:
    builder = GraphBuilder()
    builder.linear(builder.input(8, 64))
    found = probed.Curvature(2.3, 2.0 / limit, -0.1, 0.001, (1.0,), 0.1, 4096, limit, stands_in=stands_in)
    tried = None
    if fails is not None:
        last = 90.0 if fails else 0.5
        tried = probed.Rehearsal(
            40,
            (2.3, last),
            (1.0,),
            {},
            (0.1,),
            2.3,
            last,
            diverged_at=1 if fails else None,
            cause=cause if fails else None,
        )
    return builder.measured(curvature=found, rehearsal=tried).trained(Recipe(lr=lr, **more))


class LearningRateAboveStabilityLimit(Rule):
    """Steps that overshoot."""

    code = "GL703"
    name = "learning-rate-above-stability-limit"
    severity = Severity.ERROR
    needs = Needs.RECIPE
    explained_by = ("GL101", "GL107", "GL601")
    examples = (
        Example(lambda: _builder(0.3, 0.1, fails=True), fires_on=("linear0",)),
        Example(lambda: _builder(3.3, 0.1), fires_on=("linear0",)),
        Example(lambda: _builder(1.3, 0.1, momentum=0.9), fires_on=("linear0",)),
        Example(lambda: _builder(3.0, 0.1)),
        Example(lambda: _builder(1.0, 0.1, momentum=0.9)),
        Example(lambda: _builder(5.0, 0.1, optimizer="adam")),
        Example(lambda: _builder(3.3, 0.1, fails=False)),
        Example(lambda: _builder(3.3, 0.1, stands_in=SURROGATE)),
        Example(lambda: _builder(0.3, 0.1, fails=True, stands_in=SURROGATE), fires_on=("linear0",)),
        Example(lambda: _builder(0.3, 0.1, fails=True, cause=probed.Cause.PRECISION)),
        Example(lambda: _builder(0.09, 0.1, fails=True)),
        Example(lambda: _builder(3.3, 0.1, schedule="warmup:100")),
    )

    def applies(self, subject: Subject) -> str | None:
        """Only where the curvature was measured."""
        if not subject.recipe.is_modeled:
            return f"no formula gives the stability limit of {subject.recipe.optimizer}"
        return None if subject.training.curvature is not None else "the curvature was not measured"

    def relates(self, cause: Finding, symptom: Finding) -> bool:
        """A scale explains a limit that is far below the learning rate, or one by whose square it is too low."""
        factor = symptom.evidence["factor"]
        if cause.rule in OWN:
            return True
        return bool(factor >= SCALED or max(cause.evidence.get("gain") or 0.0, 10.0**cause.decades) ** 2 >= factor)

    def check(self, subject: Subject) -> Iterator[Finding]:
        """At most one finding."""
        recipe, curvature, rehearsal = subject.recipe, subject.training.curvature, subject.training.rehearsal
        if curvature is None:
            return
        first = recipe.first_rate
        far = MOMENTUM if recipe.momentum else PLAIN
        if rehearsal is not None:
            if first > curvature.limit and rehearsal.fails and not rehearsal.stalled and rehearsal.cause not in OTHERS:
                yield self._report(subject, recipe, curvature, rehearsal)
        elif not recipe.adaptive and not curvature.is_surrogate and first > far * curvature.limit:
            yield self._report(subject, recipe, curvature, None)

    def _report(self, subject: Subject, recipe: Recipe, curvature: probed.Curvature, failed: probed.Rehearsal | None) -> Finding:
        sharpness, limit = curvature.preconditioned or curvature.sharpness, curvature.limit
        what = "the preconditioned sharpness" if curvature.preconditioned else "the sharpness"
        on = f" (on {curvature.stands_in})" if curvature.stands_in else ""
        seen = ", and the rehearsal failed" if failed else ""
        cure = failed.cure if failed is not None else None
        lower = cure is not None and cure.lr < recipe.lr
        advice = f"{cure.lr:.2g}, with which it trains" if cure is not None and lower else f"{limit:.2g} or less"
        first = recipe.first_rate
        rate = f"learning rate {recipe.lr:g}" if first == recipe.lr else f"learning rate {first:.2g} of the first step"
        return self.finding(
            subject,
            subject.outputs,
            f"{rate} is {first / limit:.3g} times the stability limit {limit:.2g} for {what} {sharpness:.3g}{on}{seen}",
            severity=Severity.WARNING if curvature.is_surrogate else subject.training.severity,
            remedy=f"use a learning rate of {advice}, or let it rise over some hundred steps",
            confidence=Confidence.MEASURED,
            learning_rate=first,
            limit=limit,
            factor=first / limit,
            sharpness=curvature.sharpness,
            preconditioned=curvature.preconditioned,
            relative_error=curvature.error,
        )
