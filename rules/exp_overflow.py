"""GL603 exp-overflow: an exponential of what nothing bounds from above.

What it finds:
    exp, and powers, sinh and cosh of its kind, in the model and in the loss that was given, of an argument that a weight layer
    can make as large as it likes: the log-variance of a variational autoencoder, a hand-written softmax without the shift by the
    maximum, a rate or a scale. Softmax and logsumexp shift by themselves; exp(-x^2), exp(x - max x), exp of a clamp are bounded.
    An error where the probe saw the argument close to the limit, 88.7 in float32 and 11.1 in float16, or the rehearsal broke
    there; a warning where it saw over a quarter of it, where the recipe is in fp16, or where the rehearsal diverged; else a note.

Why it explodes:
    Beyond the limit the value is infinite; already before, the gradient is as large as the value, and one outlier in a batch
    throws the weights so far that the next argument is larger still. Infinity over infinity, as in a softmax, is NaN.

How to fix it:
    Clamp the argument (a log-variance to [-10, 10]), or take softplus in place of exp; softmax, logsumexp, log_softmax in place
    of sums of exponentials; expm1 and log1p do not help against large arguments.

References:
    Yan et al. 2021, Exposing numerical bugs in deep learning via gradient back-propagation, ESEC/FSE (GRIST).
    Blanchard, Higham, Higham 2021, Accurately computing the log-sum-exp and softmax functions, IMA J. Numer. Anal. 41.
"""

from __future__ import annotations

from collections.abc import Iterator

from gradlint.rule import Confidence, Example, Finding, GraphBuilder, Hazard, Rule, Severity, Subject, probed

REMEDY = "clamp the argument from above, or take softplus"
SOFTMAX = "take softmax or logsumexp, which subtract the maximum first"
SUMS = frozenset({"sum", "div", "softmax", "log_softmax"})
EXPONENTIALS = frozenset({"exp", "pow", "tan", "softmax"})
CLOSE = 0.25  # of the largest exponent: a learned variance is far below it in a model that trains
BROKE = ", and it overflowed in the rehearsal"
NEAR = 3  # operators behind an exponential among which a sum makes it a softmax


def _chain(*ops: str, seen: tuple[float, float] | None = None, dtype: str = "float32") -> GraphBuilder:
    builder = GraphBuilder()
    x = builder.linear(builder.input(8, 64))
    for op in ops:
        x = builder.op("clamp", x, min=-10.0, max=10.0) if op == "clamp" else builder.op(op, x, dtype=dtype)
    return builder if seen is None else builder.measured(ranges={builder.graph.parents(x)[0].id: probed.Range(*seen)})


def _shifted() -> GraphBuilder:
    builder = GraphBuilder()
    x = builder.linear(builder.input(8, 64))
    top = builder.op("max", x, shape=(8, 1), dim=-1, keepdim=True)
    builder.op("exp", builder.op("sub", x, top, shape=(8, 64)))
    return builder


class ExpOverflow(Rule):
    """Exponentials that nothing bounds."""

    code = "GL603"
    name = "exp-overflow"
    severity = Severity.ERROR
    explains = ("GL804", "GL805", "GL807")
    examples = (
        Example(lambda: _chain("exp"), fires_on=("exp0",)),
        Example(lambda: _chain("exp", seen=(-3.0, 3.0)), fires_on=("exp0",)),
        Example(lambda: _chain("exp", seen=(-3.0, 40.0)), fires_on=("exp0",)),
        Example(lambda: _chain("exp", seen=(-3.0, 86.0)), fires_on=("exp0",)),
        Example(lambda: _chain("clamp", "exp", dtype="float16", seen=(-10.0, 10.0)).measured()),
        Example(lambda: _chain("clamp", "exp")),
        Example(lambda: _chain("tanh", "exp")),
        Example(lambda: _chain("softmax")),
        Example(_shifted),
    )

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding for each line of the model and of the loss."""
        for worst, line in subject.hazards.lines(overflows=True, hit=lambda item: item.hit):
            broke = any(item.broke in EXPONENTIALS for item in line)
            where = "" if worst.node else "in the loss: "
            yield self.finding(
                subject,
                [item.node for item in line if item.node],
                f"{where}{_message(worst)}{BROKE * broke}",
                severity=_severity(subject, worst.near, hit=worst.hit or broke),
                confidence=Confidence.MEASURED if worst.hit or broke else Confidence.PREDICTED,
                source=worst.source,
                remedy=SOFTMAX if worst.node and _is_softmax(subject, worst.node) else REMEDY,
                limit=worst.limit,
                interval=(worst.low, worst.high),
                seen=(worst.seen.low, worst.seen.high) if worst.seen else None,
            )

    def relates(self, cause: Finding, symptom: Finding) -> bool:
        """An operator explains what happens at its own place."""
        return cause.shares_place(symptom)


def _severity(subject: Subject, near: float, *, hit: bool) -> Severity:
    """A model with a learned variance trains well for all that could be: what counts is what was seen."""
    if hit:
        return Severity.ERROR
    recipe = subject.task.recipe
    half = recipe is not None and recipe.precision in {"fp16", "fp8"}
    return Severity.WARNING if near >= CLOSE or half or subject.training.diverges else Severity.NOTE


def _message(item: Hazard) -> str:
    said = f"; the probe saw [{item.seen.low:.3g}, {item.seen.high:.3g}]" if item.seen is not None else ""
    return (
        f"{item.function} of what lies in {item.argument}, which nothing keeps below {item.limit:.3g}, where it overflows{said}"
    )


def _is_softmax(subject: Subject, node: str) -> bool:
    """Whether an exponential is summed, as in a softmax written by hand."""
    level = [subject.graph[node]]
    for _ in range(NEAR):
        if any(item.op in SUMS for item in level):
            return True
        level = [child for item in level for child in subject.graph.children(item.id)]
    return False
