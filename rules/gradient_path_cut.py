"""GL806 gradient-path-cut: trainable weights get no gradient, because an operator behind them passes none.

What it finds:
    Trainable weights of layers that ran and get no gradient, on inputs as they were given, and the operator that is to blame:
    detach, argmax, round, a no-grad region, a re-entrant checkpoint whose input needs no gradient, a way through Python numbers
    or arrays, or a module that returns nothing with a gradient. That is an error; parameters that were frozen are counted in the
    report. Without a probe it is what the operators of a module in training mode tell.

    An activation or product that has lost its slope is an error where every path passes it, or where it lasts: sixteen and more
    units of drawn layers that are silent in twelve draws, a product with a constant, a norm over one value. Elsewhere it is a
    note: it may be so for these inputs alone. A layer whose result reaches no output is a note too: a loss may read it. What is
    zero at first and gets a gradient after a few virtual steps is a note (a branch, gain, gate, head or state that starts at
    zero), and so is a bias that a norm takes away again.

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
from dataclasses import replace

from gradlint.rule import Confidence, Example, Finding, GraphBuilder, Rule, Severity, Subject, Verdict, listed, probed

BY_NATURE = "take it out of the path or use a straight-through estimator; freeze the weights if that is meant"
UNREAD = "return it, add it to the loss, or leave the layer out"
SATURATED = "bring its input back to where its slope is not zero: smaller weights, biases or logits, or a norm before it"
FIRST_STEP = "get no gradient in the first step and learn from the second on", None
BY_CONSTRUCTION = {
    "zero-initialized branch": FIRST_STEP,
    "zero-initialized head": FIRST_STEP,
    "zero start": ("get no gradient in the first step and, as virtual steps show, learn after them", None),
    "bias before a norm": ("have no effect and no gradient, for the norm subtracts the mean", "bias=False saves them"),
}


def _rounded(*cuts: probed.Cut) -> GraphBuilder:
    builder = GraphBuilder()
    x = builder.op("round", builder.linear(builder.input(8, 64)), shape=(8, 64))
    builder.linear(x)
    return builder.measured(cuts=cuts)


class GradientPathCut(Rule):
    """Places where the gradient stops."""

    code = "GL806"
    name = "gradient-path-cut"
    severity = Severity.ERROR
    explains = ("GL802",)
    verdict = Verdict.UNTRAINABLE
    examples = (
        Example(lambda: _rounded(probed.Cut("round0", "round", ("fc.weight",), on_spine=True)), fires_on=("round0",)),
        Example(lambda: _rounded(probed.Cut("round0", "round", ("fc.weight",))), fires_on=("round0",)),
        Example(
            lambda: _rounded(probed.Cut("round0", "dead relu", ("a",)), probed.Cut("linear1", "dead relu", ("b",))),
            fires_on=("round0", "linear1"),
        ),
        Example(lambda: _rounded(probed.Cut("round0", "no-grad region", ("fc.weight",), on_spine=True)), fires_on=("round0",)),
        Example(_rounded),
        Example(lambda: _rounded().measured(loss=probed.LossFacts(0.8, 0.0, {"fc.weight": 0.0})), fires_on=("linear1",)),
        Example(
            lambda: _rounded().measured(idle=(probed.ZeroGradient("linear1", "zero-initialized branch", ("a",)),)),
            fires_on=("linear1",),
        ),
    )

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding per cause."""
        if subject.measurement is not None:
            yield from self._idle(subject)
            yield from self._flat(subject)
        yield from self._frozen(subject)
        alike: dict[tuple[str, Severity], list[probed.Cut]] = {}
        for cut in subject.cuts:
            alike.setdefault((cut.cause, _severity(cut)), []).append(cut)
        for (cause, severity), cuts in alike.items():
            starved = list(dict.fromkeys(name for cut in cuts for name in cut.starved))
            places = f"{cause}, in {len(cuts)} places" if len(cuts) > 1 else cause
            found = self.finding(
                subject,
                [cut.node for cut in cuts],
                f"no gradient passes {places}" + (f": {listed(starved)} cannot learn" if starved else ""),
                severity=severity,
                confidence=_confidence(subject),
                remedy=_remedy(cuts[0]),
                cause=cause,
                starved=starved,
            )
            layers = [node.id for node in subject.graph if any(weight.name in starved for weight in node.weights.values())]
            yield replace(found, module=self.where(subject, layers) if layers else found.module)

    def _flat(self, subject: Subject) -> Iterator[Finding]:
        loss = subject.training.loss
        if loss is not None and loss.is_flat:
            yield self.finding(
                subject,
                subject.outputs,
                f"the loss is {loss.value:.4g} and its gradient is exactly zero at every weight: nothing can learn",
                confidence=Confidence.MEASURED,
                remedy="leave comparisons, rounding and argmax out of the loss, or put something smooth in their place",
                cause="flat loss",
            )

    def _frozen(self, subject: Subject) -> Iterator[Finding]:
        learn = subject.trainability
        if learn is not None and learn.frozen and not learn.sizes:
            yield self.finding(
                subject,
                subject.outputs,
                f"all {learn.frozen:,} parameters are frozen: nothing can learn",
                severity=Severity.NOTE,
                confidence=_confidence(subject),
                remedy="call requires_grad_(True) on what should learn",
                cause="frozen",
            )

    def _idle(self, subject: Subject) -> Iterator[Finding]:
        alike: dict[str, list[probed.ZeroGradient]] = {}
        for idle in subject.probe.idle:
            alike.setdefault(idle.cause, []).append(idle)
        for cause, places in alike.items():
            names = list(dict.fromkeys(name for idle in places for name in idle.weights))
            what, remedy = BY_CONSTRUCTION[cause]
            yield self.finding(
                subject,
                [idle.node for idle in places],
                f"{cause}{f', in {len(places)} places' if len(places) > 1 else ''}: {listed(names)} {what}",
                severity=Severity.NOTE,
                confidence=Confidence.MEASURED,
                remedy=remedy,
                cause=cause,
                idle=names,
            )


def _remedy(cut: probed.Cut) -> str:
    if cut.cause == probed.ASIDE:
        return UNREAD
    return SATURATED if cut.depends_on_values else BY_NATURE


def _confidence(subject: Subject) -> Confidence:
    return Confidence.PREDICTED if subject.measurement is None else Confidence.MEASURED


def _severity(cut: probed.Cut) -> Severity:
    """An error where weights cannot learn; a note where only these inputs may have silenced them, or a loss may read them."""
    if cut.cause == probed.ASIDE or (cut.depends_on_values and not cut.stops_all):
        return Severity.NOTE
    return Severity.ERROR if cut.starved else Severity.WARNING
