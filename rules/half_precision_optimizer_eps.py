"""GL708 half-precision-optimizer-eps: the optimizer's eps is zero in the type of the weights.

What it finds:
    Weights in fp16 that are trained with Adam, RMSprop or another optimizer that divides by the root of a running square, and an
    eps of 3e-8 or less. The default of torch is 1e-8. Mixed precision is left out, for it keeps the weights in fp32.

Why it explodes:
    The state of the optimizer has the type of the weights. The smallest number of fp16 is 2^-24, and half of it or less rounds to
    zero, so that the update is m / sqrt(v) with nothing added. The square of a gradient under 2e-4 rounds to zero as well; with
    the factor 1 - 0.999 of Adam, that of one under 5e-3. Then the update is m / 0, or 0 / 0 for a weight that gets no gradient
    (a row of an embedding, a dead unit), and the first step writes infinity or NaN into the weights.

How to fix it:
    Keep the weights in fp32 and let torch.autocast run the operators in fp16, or train in bf16, which holds 1e-8. Otherwise give
    an eps of 1e-4 or more: it has to be larger than the roots that are lost.

References:
    Micikevicius et al. 2018, Mixed Precision Training, ICLR, arXiv 1710.03740 (a copy of the weights in fp32).
    IEEE 754-2008, binary16: the smallest subnormal number is 2^-24, and ties round to even.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradlint.rule import Example, Finding, GraphBuilder, Needs, Recipe, Rule, Severity, Subject, listed, probed

HALF_OF_LEAST = 2.0**-25  # of fp16; a tie rounds to even, which is zero


def _builder(dtype: str, recipe: Recipe, *, last: float | None = None) -> GraphBuilder:
    builder = GraphBuilder()
    builder.linear(builder.input(8, 64), name="fc", weight=builder.array(np.eye(64, dtype=dtype), name="fc.weight"))
    if last is not None:
        builder.measured(rehearsal=probed.Rehearsal(40, (2.3, last), (1.0,), {}, (0.1,), 2.3, last))
    return builder.trained(recipe)


class HalfPrecisionOptimizerEps(Rule):
    """An eps that rounds to zero."""

    code = "GL708"
    name = "half-precision-optimizer-eps"
    severity = Severity.ERROR
    needs = Needs.RECIPE
    explains = ("GL807",)
    examples = (
        Example(lambda: _builder("float16", Recipe("adam", lr=1e-3)), fires_on=("fc",)),
        Example(lambda: _builder("float16", Recipe("rmsprop", lr=1e-3, eps=2.9e-8)), fires_on=("fc",)),
        Example(lambda: _builder("float16", Recipe("adam", lr=1e-3), last=1.1), fires_on=("fc",)),
        Example(lambda: _builder("float16", Recipe("adam", lr=1e-3, eps=3.1e-8))),
        Example(lambda: _builder("float16", Recipe("adam", lr=1e-3, eps=1e-4))),
        Example(lambda: _builder("float16", Recipe("sgd", lr=0.1))),
        Example(lambda: _builder("float32", Recipe("adam", lr=1e-3, precision="fp16"))),
    )

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding for all weights."""
        recipe = subject.recipe
        if not recipe.adaptive or recipe.eps > HALF_OF_LEAST:
            return
        halves = {
            weight.name: node.id
            for node in subject.graph
            for weight in node.weights.values()
            if weight.trainable and weight.dtype == "float16"
        }
        if halves:
            yield self.finding(
                subject,
                list(dict.fromkeys(halves.values())),
                f"eps {recipe.eps:g} of {recipe.optimizer} is zero in fp16, the type of {listed(list(halves))}: the first update "
                "divides by zero where a gradient is small",
                severity=Severity.WARNING if subject.training.trains else Severity.ERROR,
                remedy="keep the weights in fp32 and use torch.autocast, or train in bf16, or give eps=1e-4",
                eps=recipe.eps,
                limit=HALF_OF_LEAST,
            )
