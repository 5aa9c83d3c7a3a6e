"""GL602 unguarded-singularity: nothing keeps the argument of a log, a division, a root or an angle off the point where it breaks.

What it finds:
    Logarithms, divisions, reciprocals, roots, broken and negative powers, arc functions and their kin, in the model and in the
    loss that was given, whose argument reaches the singular point by its range: sigmoid and softmax round to 0 and 1, units of a
    ReLU die together, two embeddings coincide, a variance by subtraction cancels, a weight layer gives any number. An eps, a
    clamp, a maximum, a shift by the largest element or a choice by where, made before the operator, moves the range away. An
    error where the probe saw the argument at the point, a warning where its range says so.

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

from collections.abc import Iterator

from gradlint.rule import (
    Confidence,
    Example,
    Finding,
    NonFinite,
    Range,
    Rule,
    Severity,
    Singularity,
    Sketch,
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


def _chain(*ops: str, seen: tuple[float, float] | None = None, broken: str = "", eps: float = 0.0) -> Sketch:
    """A weight layer, operators one after another, and what the probe is said to have seen before the last."""
    sketch = Sketch()
    x = sketch.linear(sketch.input(8, 64))
    for op in ops:
        if op == ops[-1] and eps:
            x = sketch.op("add", x, None, constant=eps)
        x = sketch.op("div", None, x, constant=1.0) if op == "div" else sketch.op(op, x)
    if seen is None:
        return sketch
    found = NonFinite(broken, "infinity") if broken else None
    before = sketch.graph.parents(x)[0].id
    return sketch.measured(ranges={before: Range(*seen)}, nonfinite_backward=found)


class UnguardedSingularity(Rule):
    """Operators that may meet a point where they break."""

    code = "GL602"
    name = "unguarded-singularity"
    severity = Severity.ERROR
    examples = (
        Example(lambda: _chain("sigmoid", "log"), fires_on=("log0",)),
        Example(lambda: _chain("sigmoid", "log", seen=(0.2, 0.8)), fires_on=("log0",)),
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
        """One finding for each function and line."""
        groups: dict[tuple[str, object], list[tuple[Singularity, bool]]] = {}
        for item in subject.singularities:
            if item.overflows:
                continue
            hit = _is_hit(subject, item)
            if hit or item.expected:
                groups.setdefault((item.function, subject.graph[item.node].source or item.node), []).append((item, hit))
        for group in groups.values():
            worst, hit = max(group, key=lambda pair: pair[1])
            seen = subject.seen(worst.operand)
            maker = subject.graph[worst.interval.maker or worst.operand]
            yield self.finding(
                subject,
                [item.node for item, _ in group],
                _message(worst, f" ({maker.op} at {maker.label})", seen, hit=hit),
                severity=Severity.ERROR if hit or worst.function.startswith("unbiased") else Severity.WARNING,
                confidence=Confidence.MEASURED if hit else Confidence.PREDICTED,
                remedy=_remedy(worst.function, maker.op),
                function=worst.function,
                interval=(worst.interval.low, worst.interval.high),
                seen=(seen.low, seen.high) if seen else None,
                points=worst.points,
            )
        for suspect in subject.measurement.suspects if subject.measurement else ():
            if not suspect.overflows:
                yield self._of_loss(subject, suspect)

    def _of_loss(self, subject: Subject, item: Suspect) -> Finding:
        """A finding about an operator of the loss function, which is no node."""
        return self.finding(
            subject,
            [],
            f"in the loss: {_message(item, '', Range(item.seen_low, item.seen_high), hit=item.hit)}",
            severity=Severity.ERROR if item.hit else Severity.WARNING,
            confidence=Confidence.MEASURED if item.hit else Confidence.PREDICTED,
            source=item.source,
            remedy=_remedy(item.function, ""),
            function=item.function,
            interval=(item.low, item.high),
            seen=(item.seen_low, item.seen_high),
            points=item.points,
        )


def _is_hit(subject: Subject, item: Singularity) -> bool:
    """Whether the probe saw the argument at the point, or the operator break."""
    measured = subject.measurement
    if measured is None:
        return False
    broken = [found.node for found in (measured.nonfinite_forward, measured.nonfinite_backward) if found is not None]
    seen = subject.seen(item.operand)
    return item.node in broken or (seen is not None and item.hit(seen.low, seen.high))


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
