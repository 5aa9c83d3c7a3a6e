"""GL602 unguarded-singularity: nothing keeps the argument of a log, a division, a root or an angle off the point where it breaks.

What it finds:
    Logarithms, divisions, reciprocals, roots, broken and negative powers, arc functions and their kin, in the model and in the
    loss that was given, whose argument reaches the singular point by its range: sigmoid and softmax round to 0 and 1, units of a
    ReLU die together, two embeddings coincide, a variance by subtraction cancels, a weight layer gives any number. An eps, a
    clamp, a maximum, a shift by the largest element or a choice by where, made before the operator, moves the range away. An
    error where the probe saw the argument at the point (in float32 under 1e-30, where only a few updates are left), or the
    rehearsal broke there. Where the range alone says so: a note where what was seen is far off (over 3e-10) and the operator is
    part of the model, or the rehearsal passed; else a warning.

Why it matters:
    At the point the value or the derivative is infinite, and infinity times 0 is NaN, which the next update writes into every
    weight. It happens after hours: one saturated prediction or one pair of equal embeddings is enough. A choice made behind
    the operator does not help, for its zero gradient meets the infinite derivative.

How to fix it:
    Take the fused form: log_softmax, logsigmoid, cross_entropy on logits, torch.linalg.vector_norm, F.normalize. Else bound
    the argument before the operator: log(x + eps), sqrt(x + eps), x / d.clamp(min=eps), acos(c.clamp(-1 + eps, 1 - eps)).

References:
    Yan et al. 2021, Exposing numerical bugs in deep learning via gradient back-propagation, ESEC/FSE (GRIST).
    Zhang et al. 2020, Detecting numerical bugs in neural network architectures, ESEC/FSE (DEBAR).
    Li et al. 2023, Reliability assurance for deep neural network architectures against numerical defects, ICSE (RANUM).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gradlint.rule import Confidence, Example, Finding, GraphBuilder, Hazard, Rule, Severity, Subject, probed

FUSED = {
    "softmax": "take log_softmax, or cross_entropy on the logits",
    "sigmoid": "take logsigmoid (of -x for log(1 - p)), or binary_cross_entropy_with_logits",
}
REMEDIES = {
    "log": "bound what is inside: log(x + eps), or x.clamp(min=eps).log()",
    "division": "bound the denominator: add an eps, or clamp(min=eps)",
    "sqrt": "add an eps inside, sqrt(x + eps); for a distance take torch.linalg.vector_norm, whose derivative at 0 is 0",
    "rsqrt": "add an eps inside: rsqrt(x + eps)",
    "unbiased": "take the biased estimate (unbiased=False), or more than one element",
    "logit": "give logit an eps",
    "atan2": "move one operand off zero with an eps",
    "tan": "bound the angle",
}
INSIDE = "clamp the argument strictly inside, -1 + eps to 1 - eps; or take atan2, which has no edge"
ANGLES = frozenset({"acos", "asin", "atanh"})
OVERFLOWS = frozenset({"exp", "softmax"})
BROKE = ", and it broke in the rehearsal"
FAR = 0.25  # of the way to the point, in decades: under 3e-10 in float32


def _chain(*ops: str, seen: tuple[float, float] | None = None, broken: str = "", eps: float = 0.0) -> GraphBuilder:
    """A weight layer, operators one after another, and what the probe is said to have seen before the last."""
    builder = GraphBuilder()
    x = builder.linear(builder.input(8, 64))
    for op in ops:
        if op == ops[-1] and eps:
            x = builder.op("add", x, None, constant=eps)
        x = builder.op("div", None, x, constant=1.0) if op == "div" else builder.op(op, x)
    if seen is None:
        return builder
    found = probed.NonFinite(broken, "infinity") if broken else None
    before = builder.graph.parents(x)[0].id
    return builder.measured(ranges={before: probed.Range(*seen)}, nonfinite_backward=found)


class UnguardedSingularity(Rule):
    """Operators that may meet a point where they break."""

    code = "GL602"
    name = "unguarded-singularity"
    severity = Severity.ERROR
    explains = ("GL804", "GL805", "GL807")
    examples = (
        Example(lambda: _chain("sigmoid", "log"), fires_on=("log0",)),
        Example(lambda: _chain("sigmoid", "log", seen=(0.2, 0.8)), fires_on=("log0",)),
        Example(lambda: _chain("sigmoid", "log", seen=(1e-33, 0.8)), fires_on=("log0",)),
        Example(lambda: _chain("abs", "sqrt", seen=(0.0, 3.0), broken="sqrt0"), fires_on=("sqrt0",)),
        Example(lambda: _chain("div"), fires_on=("div0",)),
        Example(lambda: _chain("tanh", "sqrt"), fires_on=("sqrt0",)),
        Example(lambda: _chain("sigmoid", "log", eps=1e-12)),
        Example(lambda: _chain("abs", "sqrt", eps=1e-8)),
        Example(lambda: _chain("relu", "sqrt")),
        Example(lambda: _chain("softplus", "div", eps=1e-6)),
        Example(lambda: _chain("sigmoid", "exp")),
    )

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding for each line of the model and of the loss."""
        for worst, line in subject.hazards.lines(overflows=False, hit=_is_hit):
            hit = _is_hit(worst)
            yield self.finding(
                subject,
                [item.node for item in line if item.node],
                _message(subject, worst, hit=hit) + _others(worst, line),
                severity=_severity(subject, worst, hit=hit),
                confidence=Confidence.MEASURED if hit else Confidence.PREDICTED,
                source=worst.source,
                remedy=_remedy(worst.function, subject.graph[worst.maker].op if worst.maker else ""),
                function=worst.function,
                interval=(worst.low, worst.high),
                seen=(worst.seen.low, worst.seen.high) if worst.seen else None,
                points=worst.points,
            )

    def relates(self, cause: Finding, symptom: Finding) -> bool:
        """An operator explains what happens at its own place."""
        return cause.shares_place(symptom)


def _is_hit(item: Hazard) -> bool:
    """Whether the probe saw the argument at the point, or the operator break, at once or in the rehearsal."""
    return item.hit or item.broken or (item.broke != "" and item.broke not in OVERFLOWS)


def _severity(subject: Subject, item: Hazard, *, hit: bool) -> Severity:
    """A note for what is far off: of the loss only where a rehearsal has passed it."""
    if hit or (item.node and item.function.startswith("unbiased")):
        return Severity.ERROR
    tried = item.node or subject.training.own_rehearsal is not None
    return Severity.NOTE if item.near < FAR and tried and not subject.training.diverges else Severity.WARNING


def _message(subject: Subject, item: Hazard, *, hit: bool) -> str:
    where, maker = "" if item.node else "in the loss: ", ""
    broke = BROKE * (hit and not item.hit and not item.node)
    if item.function.startswith("unbiased"):
        return f"{where}{item.function} is 0/0{broke}"
    if item.maker:
        made = subject.graph[item.maker]
        maker = f" ({made.called} in {made.module})" if made.module else f" ({made.called})"
    points = " and ".join(f"{point:.3g}" for point in item.points)
    breaks = "where its derivative is infinite" if item.slope else "where it breaks"
    said = f"; the probe saw {item.observed}" if item.seen is not None else ""
    return (
        f"{where}{item.function}: its argument{maker} lies in {item.argument} and {'comes' if hit else 'may come'} to {points}, "
        f"{breaks}{said}{broke}"
    )


def _others(item: Hazard, line: Sequence[Hazard]) -> str:
    """The other operators of the line, whose argument may break too."""
    names = dict.fromkeys(other.function for other in line if other.function != item.function)
    return f"; {' and '.join(names)} on the same line may break too" if names else ""


def _remedy(function: str, maker: str) -> str:
    if function in ANGLES:
        return INSIDE
    if function.startswith(("log", "xlogy")) and function != "logit":
        return FUSED.get("softmax" if "softmax" in function else maker, REMEDIES["log"])
    if function.startswith("x**"):
        return REMEDIES["division" if function.startswith("x**-") else "sqrt"]
    return REMEDIES.get(function.partition(" ")[0], REMEDIES["division"])
