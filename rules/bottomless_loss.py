"""GL710 bottomless-loss: a loss of log-probabilities is given numbers that nothing bounds, and falls without end.

What it finds:
    A target of classes, and a loss that falls below zero in proportion to the output, such as nll_loss, with an output that is no
    logarithm of probabilities: some of its elements are above zero, and no softmax ends the model.

Why it explodes:
    The loss is minus the output of the right class, and nothing holds the others down. Each step raises outputs and weights,
    which raises the gradient: the loss falls to minus infinity, and looks like a success on the way. Of twelve small
    classifiers all failed: SGD diverged, and Adam stayed at the base rate.

How to fix it:
    End the model with log_softmax, or take cross_entropy, which applies it.

References:
    Goodfellow, Bengio, Courville 2016, Deep Learning, 6.2.2 (why the softmax and the log belong together).
    Humbatova et al. 2020, Taxonomy of Real Faults in Deep Learning Systems, ICSE, arXiv 1910.11015.
"""

from __future__ import annotations

from collections.abc import Iterator

from gradlint.rule import Example, Finding, GraphBuilder, Needs, Rule, Severity, Subject, Verdict, probed


def _scored(logits: float, *, bottomless: bool, bounded: bool = False) -> GraphBuilder:
    builder = GraphBuilder()
    builder.linear(builder.input(8, 64), 4)
    return builder.measured(floor=probed.Floor(None, logits, bottomless=bottomless, bounded=bounded))


class BottomlessLoss(Rule):
    """Losses that fall for ever."""

    code = "GL710"
    name = "bottomless-loss"
    severity = Severity.ERROR
    needs = Needs.PROBE
    explains = ("GL807", "GL703")
    verdict = Verdict.UNSTABLE
    examples = (
        Example(lambda: _scored(-50.0, bottomless=True), fires_on=("linear0",)),
        Example(lambda: _scored(-50.0, bottomless=True, bounded=True)),
        Example(lambda: _scored(0.0, bottomless=False)),
    )

    def applies(self, subject: Subject) -> str | None:
        """Only where the loss was tried on the target of a classifier."""
        return None if subject.probe.floor is not None else "no loss and target of a classifier"

    def check(self, subject: Subject) -> Iterator[Finding]:
        """At most one finding, at the output."""
        found = subject.probe.floor
        if found is None or not found.bottomless or found.bounded:
            return
        yield self.finding(
            subject,
            subject.outputs,
            f"the loss falls in proportion to the output, to {found.logits:.3g} for outputs of 50, and the output is no "
            "logarithm of probabilities",
            remedy="end the model with log_softmax, or take cross_entropy",
            lowest=found.logits,
        )
