"""GL709 softmax-applied-twice: the model ends in a softmax or a sigmoid, and the loss applies one itself.

What it finds:
    A model whose last operator is a softmax or a sigmoid, and a loss that is made for logits: with certain probabilities of the
    target, the best that such a model can give, it is still over a third higher than with logits. Log-probabilities are not
    reported, for a second log-softmax leaves them as they are. It is an error if the rehearsal fails.

Why it vanishes:
    Probabilities differ by 1 at most, so that the second softmax is nearly flat: for C classes the loss cannot fall below
    log(1 + (C - 1) / e), 0.31 for two and 5.9 for a thousand, and the gradient passes two softmax where one is meant. Small
    classifiers with SGD at 0.1 stay at the base rate in 3 of 3 runs where the same with logits reach 86 %; Adam loses 2 to 5
    points of a hundred.

How to fix it:
    Return the logits, and take the softmax where predictions are needed; or take the loss of probabilities: nll_loss of
    log_softmax, binary_cross_entropy.

References:
    Zhang et al. 2021, AutoTrainer: An Automatic DNN Training Problem Detection and Repair System, ICSE.
    Humbatova et al. 2020, Taxonomy of Real Faults in Deep Learning Systems, ICSE, arXiv 1910.11015.
"""

from __future__ import annotations

from collections.abc import Iterator

from gradlint.rule import Confidence, Example, Finding, GraphBuilder, Needs, Rule, Severity, Subject, probed


def _ending(op: str, certain: float | None, logits: float | None) -> GraphBuilder:
    builder = GraphBuilder()
    x = builder.linear(builder.input(8, 64), 4)
    if op:
        builder.op(op, x)
    return builder.measured(floor=probed.Floor(certain, logits, bounded=bool(op)))


class SoftmaxAppliedTwice(Rule):
    """Probabilities where logits are expected."""

    code = "GL709"
    name = "softmax-applied-twice"
    severity = Severity.ERROR
    needs = Needs.PROBE
    explains = ("GL807", "GL802")
    examples = (
        Example(lambda: _ending("softmax", 0.74, 0.0), fires_on=("softmax0",)),
        Example(lambda: _ending("sigmoid", 0.5, 0.0), fires_on=("sigmoid0",)),
        Example(lambda: _ending("softmax", 0.82, 0.46), fires_on=("softmax0",)),
        Example(lambda: _ending("softmax", 0.0, -3.9)),
        Example(lambda: _ending("softmax", 0.82, 0.62)),
        Example(lambda: _ending("softmax", 0.0, 0.5)),
        Example(lambda: _ending("", None, 0.0)),
    )

    def applies(self, subject: Subject) -> str | None:
        """Only where the loss was tried on the target of a classifier."""
        found = subject.probe.floor
        return None if found is not None else "no loss and target of a classifier"

    def relates(self, cause: Finding, symptom: Finding) -> bool:
        """A failed rehearsal only where this is the likely reason."""
        return cause.severity is Severity.ERROR or symptom.rule != "GL807"

    def check(self, subject: Subject) -> Iterator[Finding]:
        """At most one finding, at the softmax."""
        found = subject.probe.floor
        if found is None or not found.takes_logits:
            return
        ends = [node for node in subject.outputs if subject.graph[node].op in {"softmax", "sigmoid"}]
        name = subject.graph[ends[0]].op if ends else "softmax"
        tried = subject.training.own_rehearsal
        yield self.finding(
            subject,
            ends or subject.outputs,
            f"the model ends in a {name}, and the loss takes logits: certain and right it is still {found.certain:.3g}, "
            f"where logits reach {found.logits:.3g}",
            severity=Severity.ERROR if tried is not None and tried.fails else Severity.WARNING,
            remedy=f"return what enters the {name}, or take a loss of probabilities",
            confidence=Confidence.MEASURED,
            certain=found.certain,
            logits=found.logits,
        )
