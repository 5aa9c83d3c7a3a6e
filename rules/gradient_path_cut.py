"""GL806 gradient-path-cut: trainable weights get no gradient, because an operator behind them passes none.

What it finds:
    An operator on the way to the output that passes no gradient (detach, argmax, round, a no-grad region, a dead activation)
    and behind which trainable weights get none on any other way. It is an error where every path passes it: then nothing before
    it can learn; a note where an activation off that path is dead, which may be so for these inputs alone.

Why it matters:
    The weights before the cut stay at their start. Training goes on, and may even look good, on what lies behind it.

How to fix it:
    Take the operator out of the path, or replace it by one that has a gradient: softmax or Gumbel-softmax for argmax, a
    straight-through estimator, x + (round(x) - x).detach(), for round. If the weights are meant to be frozen, say so with
    requires_grad_(False).

References:
    Bengio, Leonard, Courville 2013, Estimating or Propagating Gradients Through Stochastic Neurons, arXiv 1308.3432.
    Jang, Gu, Poole 2017, Categorical Reparameterization with Gumbel-Softmax, arXiv 1611.01144.
"""

from __future__ import annotations

from collections.abc import Iterator

from gradlint.rule import Confidence, Cut, Example, Finding, Needs, Rule, Severity, Sketch, Subject

SHOWN = 3  # names in the message; the evidence has them all


def _rounded(*cuts: Cut) -> Sketch:
    sketch = Sketch()
    x = sketch.op("round", sketch.linear(sketch.input(8, 64)), shape=(8, 64))
    sketch.linear(x)
    return sketch.measured(cuts=cuts)


class GradientPathCut(Rule):
    """Places where the gradient stops."""

    code = "GL806"
    name = "gradient-path-cut"
    severity = Severity.ERROR
    needs = Needs.PROBE
    examples = (
        Example(lambda: _rounded(Cut("round0", "round", ("fc.weight",), on_spine=True)), fires_on=("round0",)),
        Example(lambda: _rounded(Cut("round0", "round", ("fc.weight",))), fires_on=("round0",)),
        Example(lambda: _rounded(Cut("round0", "dead relu", ("fc.weight",))), fires_on=("round0",)),
        Example(_rounded),
    )

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding per cut."""
        for cut in subject.measurement.cuts if subject.measurement else ():
            names = ", ".join(cut.starved[:SHOWN]) + (f" and {len(cut.starved) - SHOWN} more" if len(cut.starved) > SHOWN else "")
            yield self.finding(
                subject,
                [cut.node],
                f"no gradient passes {cut.cause}" + (f": {names} cannot learn" if names else ""),
                severity=_severity(cut),
                remedy="take it out of the path or use a straight-through estimator; freeze the weights if that is meant",
                confidence=Confidence.MEASURED,
                cause=cut.cause,
                starved=cut.starved,
            )


def _severity(cut: Cut) -> Severity:
    """An error where nothing before the cut can learn; a note where only these inputs may have silenced a side path."""
    if cut.on_spine and cut.starved:
        return Severity.ERROR
    return Severity.NOTE if cut.cause.startswith("dead ") else Severity.WARNING
