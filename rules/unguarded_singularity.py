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

import math
from collections.abc import Iterator, Sequence

from gradlint.rule import (
    Confidence,
    Example,
    Finding,
    GraphBuilder,
    NonFinite,
    Range,
    Rule,
    Severity,
    Singularity,
    Subject,
    Suspect,
    bounds,
)

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
    found = NonFinite(broken, "infinity") if broken else None
    before = builder.graph.parents(x)[0].id
    return builder.measured(ranges={before: Range(*seen)}, nonfinite_backward=found)


class UnguardedSingularity(Rule):
    """Operators that may meet a point where they break."""

    code = "GL602"
    name = "unguarded-singularity"
    severity = Severity.ERROR
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
        """One finding for each line."""
        groups: dict[object, list[tuple[Singularity, bool, float]]] = {}
        for item in subject.singularities:
            seen = subject.seen(item.operand)
            hit = _is_hit(subject, item)
            if not item.overflows and (hit or item.expected):
                near = item.nearness(seen.low, seen.high) if seen is not None else math.nan
                groups.setdefault(subject.graph[item.node].source or item.node, []).append((item, hit, near))
        for group in groups.values():
            worst, hit, near = max(group, key=_rank)
            seen = subject.seen(worst.operand)
            maker = subject.graph[worst.interval.maker or worst.operand]
            place = f" ({maker.called} in {maker.module})" if maker.module else f" ({maker.called})"
            certain = hit or worst.function.startswith("unbiased")
            yield self.finding(
                subject,
                [item.node for item, _, _ in group],
                _message(worst, place, seen, hit=hit) + _others(worst, [item for item, _, _ in group]),
                severity=Severity.ERROR if certain else Severity.NOTE if near < FAR and not _fails(subject) else Severity.WARNING,
                confidence=Confidence.MEASURED if hit else Confidence.PREDICTED,
                remedy=_remedy(worst.function, maker.op),
                function=worst.function,
                interval=(worst.interval.low, worst.interval.high),
                seen=(seen.low, seen.high) if seen else None,
                points=worst.points,
            )
        yield from self._of_loss(subject)

    def _of_loss(self, subject: Subject) -> Iterator[Finding]:
        """Findings about operators of the loss function, which are no nodes; a rehearsal has tried those that were far off."""
        rehearsal = subject.rehearsal
        passed = rehearsal is not None and not _fails(subject)
        lines: dict[object, list[tuple[Suspect, bool, float]]] = {}
        for index, item in enumerate(subject.measurement.suspects if subject.measurement else ()):
            if not item.overflows:
                hit = item.hit or (bool(item.source) and _breaks(subject, item.source))
                lines.setdefault(item.source or index, []).append((item, hit, item.nearness))
        for group in lines.values():
            item, hit, near = max(group, key=_rank)
            said = _message(item, "", Range(item.seen_low, item.seen_high), hit=hit) + BROKE * (hit and not item.hit)
            yield self.finding(
                subject,
                [],
                f"in the loss: {said}{_others(item, [other for other, _, _ in group])}",
                severity=Severity.ERROR if hit else Severity.NOTE if near < FAR and passed else Severity.WARNING,
                confidence=Confidence.MEASURED if hit else Confidence.PREDICTED,
                source=item.source,
                remedy=_remedy(item.function, ""),
                function=item.function,
                interval=(item.low, item.high),
                seen=(item.seen_low, item.seen_high),
                points=item.points,
            )


def _rank(item: tuple[Singularity | Suspect, bool, float]) -> tuple[bool, float]:
    """What is worst: what broke, then what may be on both sides of its pole, then what came nearest."""
    _, hit, near = item
    return hit, 1.0 if math.isnan(near) else near


def _others(item: Singularity | Suspect, group: Sequence[Singularity | Suspect]) -> str:
    """The other operators of the line, whose argument may break too."""
    names = dict.fromkeys(other.function for other in group if other.function != item.function)
    return f"; {' and '.join(names)} on the same line may break too" if names else ""


def _is_hit(subject: Subject, item: Singularity) -> bool:
    """Whether the probe saw the argument at the point, or the operator break, at once or in the rehearsal."""
    measured = subject.measurement
    if measured is None:
        return False
    broken = [found.node for found in (measured.nonfinite_forward, measured.nonfinite_backward) if found is not None]
    seen = subject.seen(item.operand)
    return item.node in broken or _breaks(subject, item.node) or (seen is not None and item.hit(seen.low, seen.high))


def _breaks(subject: Subject, place: str) -> bool:
    """Whether an operator at a node, or at a line of the loss, broke in the rehearsal with the loss that was given."""
    breach = subject.rehearsal.breach if subject.rehearsal is not None else None
    return breach is not None and place == (breach.node or breach.source) and breach.op not in OVERFLOWS


def _fails(subject: Subject) -> bool:
    return subject.rehearsal is not None and subject.rehearsal.diverged_at is not None


def _message(item: Singularity | Suspect, maker: str, seen: Range | None, *, hit: bool) -> str:
    if item.function.startswith("unbiased"):
        return f"{item.function} is 0/0"
    interval = (item.interval.low, item.interval.high) if isinstance(item, Singularity) else (item.low, item.high)
    points = " and ".join(f"{point:.3g}" for point in item.points)
    breaks = "where its derivative is infinite" if item.slope else "where it breaks"
    said = f"; the probe saw {bounds(seen.low, seen.high)}" if seen is not None else ""
    return (
        f"{item.function}: its argument{maker} lies in {bounds(*interval)} and {'comes' if hit else 'may come'} to {points}, "
        f"{breaks}{said}"
    )


def _remedy(function: str, maker: str) -> str:
    if function in ANGLES:
        return INSIDE
    if function.startswith(("log", "xlogy")) and function != "logit":
        return FUSED.get("softmax" if "softmax" in function else maker, REMEDIES["log"])
    if function.startswith("x**"):
        return REMEDIES["division" if function.startswith("x**-") else "sqrt"]
    return REMEDIES.get(function.partition(" ")[0], REMEDIES["division"])
